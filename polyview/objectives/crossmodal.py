"""Cross-modal information maximisation: what one modality tells about another.

In the style of CMIM (Sylvain et al. 2021, whose details are not public): the estimators
of Deep InfoMax (Hjelm et al. 2019) across modalities, in the terms that Fedorov et al.
2024 name. A look is one view of one modality; of L looks, with global vectors g[a] and
local maps l[a] of p positions each,

    CR    within a look:                   l[a] with g[a]
    XX    across, each ordered pair a, c:  l[c] with g[a]
    RR    across, each ordered pair:       g[c] with g[a]
    CC    across, each ordered pair:       l[c] with one position of l[a], at random

are estimates of mutual information, averaged over the L looks or L (L - 1) pairs, so
that a weight means the same for any number of modalities. Negatives are the other
samples of the global batch. A look that is missing has no part in any of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polyview.errors import TINY, InputError, check_range
from polyview.objectives import bounds
from polyview.objectives.positives import anchors as can_be_anchors
from polyview.objectives.positives import l2_normalize

TERMS = ("CR", "XX", "RR", "CC")


class Look(NamedTuple):
    """One view of one modality: what critics compare, and where it is there."""

    name: str
    z: jax.Array  # [b, d], global
    local: jax.Array | None  # [b, p, d]
    present: jax.Array  # bool[b]
    real: jax.Array | None  # bool[b, p]: positions that are no padding


class Scored(NamedTuple):
    """What a critic says of anchors and candidates."""

    scores: jax.Array  # float[a, c, p, q]
    raw: jax.Array  # the same before they were clipped
    penalty: float  # weight of the mean square of raw in the loss


# (anchors[a, q, d], candidates[c, p, d]) -> Scored.
Critic = Callable[[jax.Array, jax.Array], Scored]


def scaled_dot(
    anchors, candidates, *, clip: float | None = 20.0, penalty: float = 0.04
) -> Scored:
    """s = clip tanh(r / clip), r = anchor . candidate / sqrt(d).

    The clip and the penalty on r^2 are those of AMDIM (Bachman et al. 2019).
    """
    raw = _products(anchors, candidates) * anchors.shape[-1] ** -0.5
    return Scored(raw if clip is None else clip * jnp.tanh(raw / clip), raw, penalty)


def cosine(anchors, candidates, *, temperature: float = 0.1) -> Scored:
    """s = cosine(anchor, candidate) / temperature."""
    raw = _products(l2_normalize(anchors), l2_normalize(candidates)) / temperature
    check_range(TINY, temperature=temperature)
    return Scored(raw, raw, 0.0)


def _products(anchors, candidates):
    a, c = anchors.shape[-1], candidates.shape[-1]
    if a != c:
        raise ValueError(
            f"the critic compares {a} features with {c}: give the towers' `projector` "
            "and `local` the same `out`"
        )
    return jnp.einsum("aqd,cpd->acpq", anchors, candidates)


def looks(features: Mapping, present: Mapping) -> list[Look]:
    """The looks of a batch: of each modality that is `present`, sorted, each view.

    Whatever stands in the features of a missing view is replaced by zeros.
    """
    found = []
    for name in sorted(present):
        of = features[name]
        for m in range(of.z.shape[1]):
            there = present[name][:, m]
            found.append(
                Look(
                    name=f"{name}/{m}" if of.z.shape[1] > 1 else name,
                    z=_only(of.z[:, m], there),
                    local=None if of.local is None else _only(of.local[:, m], there),
                    present=there,
                    real=None if of.real is None else of.real[:, m],
                )
            )
    return found


def _only(x: jax.Array, present: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def term(
    name: str,
    of: list[Look],
    *,
    estimator: Callable[..., bounds.Estimate],
    critic: Critic,
    key: jax.Array,
    index: jax.Array,
    same: jax.Array | None = None,
) -> bounds.Estimate:
    """One of the four terms over the looks, with the critic's penalty in its loss.

    same: bool[b, b], rows of one study, which are never negatives of each other.
    key, index: row i draws its position of CC by (key, index[i]). Raises ValueError
    where a term needs local maps and a look has none, and for the name of no term.
    """
    if name not in TERMS:
        raise ValueError(f"{name!r} is no term; there are {', '.join(TERMS)}")
    if name != "RR" and (without := [look.name for look in of if look.local is None]):
        raise ValueError(f"{name} needs local maps, and {without[0]} has none")
    if name != "CR" and len(of) < 2:
        raise ValueError(f"{name} compares two looks, and there is one")
    itself = jnp.eye(len(index), dtype=bool)
    # A row may stand in a batch twice, in the place of one that could not be read.
    again = index[:, None] == index[None]
    same = again if same is None else same | again
    ours, there = jnp.stack([look.z for look in of]), [look.present for look in of]
    if name == "CC":
        draws = [
            drawn(look, 1, jax.random.fold_in(key, number), index)
            for number, look in enumerate(of)
        ]
        ours = jnp.stack([local[:, 0] for local, _ in draws])
        there = [p & some[:, 0] for p, (_, some) in zip(there, draws, strict=True)]
    there = jnp.stack(there)

    def estimate(anchors, anchor_there, candidates, mask):
        """Of float[b, d], bool[b], float[b, p, d] and bool[b, p]."""
        compared = anchor_there[:, None, None, None] & mask[None, :, :, None]
        scored = critic(anchors[:, None], candidates)
        positive = compared & itself[..., None, None]
        negative = compared & ~same[..., None, None]
        found = estimator(scored.scores, positive, negative)
        used = positive | negative
        squares = jnp.where(used, jnp.square(scored.raw), 0).sum()
        penalty = scored.penalty * squares / jnp.maximum(used.sum(), 1)
        return bounds.Estimate(found.loss + penalty, found.bound)

    estimates = []
    for c, look in enumerate(of):
        theirs = look.z[:, None] if name == "RR" else look.local
        mask = jnp.broadcast_to(look.present[:, None], theirs.shape[:2])
        if name != "RR" and look.real is not None:
            mask = mask & look.real
        # One program for all anchors of a candidate: pairs are many.
        a = np.array([a for a in range(len(of)) if (a == c) == (name == "CR")])
        each = jax.vmap(estimate, (0, 0, None, None))
        estimates.append(each(ours[a], there[a], theirs, mask))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts).mean(), *estimates)


def drawn(
    look: Look, count: int, key: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`count` positions of each row's local map, with replacement, uniformly among the
    real ones: [b, count, d], and bool[b, count], false in a row that has none."""
    b, p, _ = look.local.shape
    real = jnp.ones((b, p), bool) if look.real is None else look.real
    weights = jnp.where(real, 0.0, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    draw = jax.vmap(lambda k, w: jax.random.categorical(k, w, shape=(count,)))
    position = draw(keys, weights)
    there = jnp.broadcast_to(real.any(1, keepdims=True), position.shape)
    return jnp.take_along_axis(look.local, position[..., None], 1), there


def thinned(of: list[Look], count: int, key: jax.Array, index: jax.Array) -> list[Look]:
    """The looks with `count` positions drawn from each local map: location sampling, as
    in Deep InfoMax, for time and memory; maps that are no larger stay whole."""
    thin = []
    for number, look in enumerate(of):
        if look.local is not None and look.local.shape[1] > count:
            key_of_look = jax.random.fold_in(key, number)
            local, real = drawn(look, count, key_of_look, index)
            look = look._replace(local=local, real=real)
        thin.append(look)
    return thin


def kept(
    present: Mapping[str, jax.Array], drop: float, key: jax.Array, index: jax.Array
) -> dict[str, jax.Array]:
    """Masks with each look that is present dropped with probability `drop`.

    The last one of a sample never goes: where all would, one of them stays, each as
    likely as another. Row i draws by (key, index[i]).
    """
    names, there = sorted(present), _joined(present)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    noise = jax.vmap(lambda k: jax.random.uniform(k, there.shape[1:]))(keys)
    stays = there & (noise >= drop)
    luckiest = jnp.where(there, noise, -1).argmax(1)
    one = jax.nn.one_hot(luckiest, there.shape[1], dtype=bool) & there
    stays = jnp.where(stays.any(1, keepdims=True), stays, one)
    ends = list(accumulate(present[name].shape[1] for name in names))
    return dict(zip(names, jnp.split(stays, ends[:-1], axis=1), strict=True))


@dataclass(frozen=True)
class CrossModal:
    """Tasks, and beside them the mutual information between modalities.

    loss = task_weight * sum of the tasks + sum of terms' weights * terms
           + polyview_weight * polyview

    Attributes:
      tasks: target -> loss of (outputs[b, n, ...], target) -> [b, n], from
        `polyview.objectives.supervised`; the model returns the outputs under the
        target's name, of the looks that are kept together first, then of each alone.
      task_weight: of all of them.
      alone_weight: of the looks alone, within a task.
      terms: weight of each of CR, XX, RR, CC; none is computed at 0.
      estimator: of `polyview.objectives.bounds`.
      critic: a partial of one here, or None for that of the model (`module.critic`).
      polyview: a loss of `polyview.objectives.contrastive` that takes `present`, over
        all looks of a sample: each against all the rest. The project's own extension.
      polyview_weight: of it.
      train_drop_prob: of a look, for the prediction; never all of them.
      positions: of each local map, drawn anew at each step; None for all of them.
      study: the target that says which rows are of one study, never negatives.
    """

    tasks: Mapping[str, Callable] = field(default_factory=dict)
    task_weight: float = 1.0
    alone_weight: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)
    estimator: Callable[..., bounds.Estimate] = bounds.info_nce
    critic: Critic | None = scaled_dot
    polyview: Callable | None = None
    polyview_weight: float = 0.0
    train_drop_prob: float = 0.0
    positions: int | None = None
    study: str | None = None

    def __post_init__(self):
        check_range(0.0, task_weight=self.task_weight, alone_weight=self.alone_weight)
        check_range(0.0, polyview_weight=self.polyview_weight)
        if unknown := set(self.terms) - set(TERMS):
            raise InputError(
                f"objective.terms has {sorted(unknown)[0]!r}; there are "
                f"{', '.join(TERMS)}"
            )
        for name, weight in self.terms.items():
            if not weight >= 0:
                raise InputError(f"objective.terms.{name} is {weight}, not 0 or more")
        if not 0 <= self.train_drop_prob < 1:
            raise InputError(
                f"train_drop_prob is {self.train_drop_prob}, not 0 or more, below 1"
            )
        if self.positions is not None and self.positions < 1:
            raise InputError(f"positions is {self.positions}, not 1 or more, or None")
        if self.polyview_weight and self.polyview is None:
            raise InputError("polyview_weight is set, but objective.polyview is None")
        if not (self.tasks or any(self.terms.values()) or self.polyview_weight):
            raise InputError("the objective has no task and no term to minimise")
        if self.polyview_weight and self.study:
            raise InputError(
                "polyview cannot leave out pairs of one study: make them views of one "
                "example, or set polyview_weight to 0"
            )

    def __call__(self, module, target_module, batch, key):
        keys = jax.random.split(key, 4)
        present, index = batch["present"], batch["index"]
        kept_now = present
        if self.train_drop_prob:
            kept_now = kept(present, self.train_drop_prob, keys[0], index)
        features = dict(module({**batch, "kept": kept_now}, key=keys[1], train=True))
        metrics = {}
        for target, loss_of in self.tasks.items():
            losses = loss_of(features.pop(target).z, batch["targets"][target])
            metrics[f"task/{target}"] = self._task(losses, present, kept_now)
        terms = {name: weight for name, weight in self.terms.items() if weight}
        # A model that is only told what to predict may return nothing else.
        of = looks(features, present) if terms or self.polyview_weight else []
        if self.positions is not None:
            of = thinned(of, self.positions, keys[3], index)
        critic = self.critic or partial(_learnt, module)
        same = None
        if self.study is not None:
            study = batch["targets"][self.study]
            same = study[:, None] == study[None]
        loss = self.task_weight * sum(metrics.values())
        for name, weight in terms.items():
            found = term(
                name,
                of,
                estimator=self.estimator,
                critic=critic,
                key=jax.random.fold_in(keys[2], TERMS.index(name)),
                index=index,
                same=same,
            )
            loss += weight * found.loss
            metrics |= {name: found.loss, f"bound/{name}": found.bound}
        if self.polyview_weight:
            z = jnp.stack([look.z for look in of], 1)
            there = jnp.stack([look.present for look in of], 1)
            valid = can_be_anchors(there)
            losses = self.polyview(z, present=there)
            found = _mean(losses, valid)
            loss += self.polyview_weight * found
            # Fewer than the terms of some losses, to which a row of one view adds too:
            # the bound holds for all of them.
            others = valid.sum() - valid.sum(1, keepdims=True)
            bound = _mean(jnp.log1p(others.astype(losses.dtype)) - losses, valid)
            metrics |= {"polyview": found, "bound/polyview": bound}
        return loss, {"loss": loss, **metrics, "features": features}

    def _task(self, losses: jax.Array, present: Mapping, kept_now: Mapping):
        """Mean over the rows that have a look, of all together and of each alone."""
        loss = _mean(losses[:, 0], _joined(kept_now).any(1))
        if self.alone_weight:
            alone = _joined(present)
            if losses.shape[1] != 1 + alone.shape[1]:
                raise ValueError(
                    "alone_weight is set, but the model predicts from all looks "
                    "together only; set alone=True in it"
                )
            loss += self.alone_weight * _mean(losses[:, 1:], alone)
        return loss

    def negatives(self, b: int, m: int) -> int:
        """Views of other samples that an anchor is compared with, at most."""
        if self.polyview_weight:
            return (b - 1) * m
        return b - 1 if any(self.terms.values()) else 0


def _joined(masks: Mapping[str, jax.Array]) -> jax.Array:
    """The masks of all modalities, sorted, side by side: bool[b, looks]."""
    return jnp.concatenate([masks[name] for name in sorted(masks)], 1)


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def _learnt(module, anchors, candidates) -> Scored:
    if not hasattr(module, "critic"):
        raise InputError(
            "the objective has no critic, and the model none of its own; set "
            "objective.critic, or model.critic and microbatch=None"
        )
    raw = module.critic(anchors, candidates)
    return Scored(raw, raw, 0.0)
