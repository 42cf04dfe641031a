"""Cross-modal information maximisation: mutual information between modalities.

In the style of CMIM (Sylvain et al. 2021, whose details are not public): the estimators
of Deep InfoMax (Hjelm et al. 2019) across modalities, in the terms that Fedorov et al.
2024 name. The L views of all modalities (class `View`, one view of one modality) have
global vectors g[a] and local maps l[a] of p positions each. The terms

    CR    within a view:                   l[a] with g[a]
    XX    across, each ordered pair a, c:  l[c] with g[a]
    RR    across, each ordered pair:       g[c] with g[a]
    CC    across, each ordered pair:       l[c] with one position of l[a], at random

are estimates of mutual information, averaged over the L views or L (L - 1) pairs, so
that a weight means the same for any number of modalities. Negatives are the other
samples of the global batch. A missing view takes part in no term.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polyview.errors import InputError, check_range
from polyview.objectives import bounds
from polyview.objectives.base import Batch, Module
from polyview.objectives.positives import anchors as can_be_anchors
from polyview.objectives.positives import check_positive, l2_normalize
from polyview.objectives.supervised import mean_of_present

TERMS = ("CR", "XX", "RR", "CC")


class View(NamedTuple):
    """One view of one modality: the features that critics compare, and their masks."""

    name: str
    z: jax.Array  # [b, d], global
    local: jax.Array | None  # [b, p, d]
    present: jax.Array  # bool[b]
    real: jax.Array | None  # bool[b, p]: positions that are not padding


class Scored(NamedTuple):
    """A critic's scores of anchors and candidates."""

    scores: jax.Array  # float[a, c, p, q]
    raw: jax.Array  # the scores before clipping
    penalty: float  # weight of the mean square of raw in the loss


# (anchors[a, q, d], candidates[c, p, d]) -> Scored.
Critic = Callable[[jax.Array, jax.Array], Scored]


def scaled_dot(
    anchors: jax.Array,
    candidates: jax.Array,
    *,
    clip: float | None = 20.0,
    penalty: float = 0.04,
) -> Scored:
    """s = clip tanh(r / clip), r = anchor . candidate / sqrt(d): float[a, c, p, q].

    anchors: float[a, q, d]. candidates: float[c, p, d]. The clip (None for none) is
    that of AMDIM (Bachman et al. 2019); so is the penalty on r^2, but there it is .05,
    and .04 in the code of Fedorov et al. 2024. Raises ValueError if the anchors and
    candidates differ in d.
    """
    raw = _products(anchors, candidates) * anchors.shape[-1] ** -0.5
    return Scored(raw if clip is None else clip * jnp.tanh(raw / clip), raw, penalty)


def cosine(
    anchors: jax.Array, candidates: jax.Array, *, temperature: float = 0.1
) -> Scored:
    """s = cosine(anchor, candidate) / temperature, unclipped and without a penalty.

    Shapes as in `scaled_dot`. Raises ValueError if anchors and candidates differ in d,
    or if temperature <= 0.
    """
    check_positive(temperature=temperature)
    raw = _products(l2_normalize(anchors), l2_normalize(candidates)) / temperature
    return Scored(raw, raw, 0.0)


def _products(anchors: jax.Array, candidates: jax.Array) -> jax.Array:
    a, c = anchors.shape[-1], candidates.shape[-1]
    if a != c:
        raise ValueError(
            f"the critic compares {a} features with {c}: give the towers' `projector` "
            "and `local` the same `out`"
        )
    return jnp.einsum("aqd,cpd->acpq", anchors, candidates)


def views_of(features: Mapping, present: Mapping) -> list[View]:
    """The views of a batch, of the modalities in `present` sorted by name.

    features: `Features` by modality. present: bool[b, m] by modality. The features of
    a missing view become zeros.
    """
    views = []
    for name in sorted(present):
        tower = features[name]
        z, local, real = tower.z, tower.local, tower.real
        for m in range(z.shape[1]):
            mask = present[name][:, m]
            views.append(
                View(
                    name=f"{name}/{m}" if z.shape[1] > 1 else name,
                    z=_only(z[:, m], mask),
                    local=None if local is None else _only(local[:, m], mask),
                    present=mask,
                    real=None if real is None else real[:, m],
                )
            )
    return views


def _only(x: jax.Array, present: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def term(
    name: str,
    of: list[View],
    *,
    estimator: Callable[..., bounds.Estimate],
    critic: Critic,
    key: jax.Array,
    index: jax.Array,
    same: jax.Array | None = None,
) -> bounds.Estimate:
    """One of the four terms over the views, with the critic's penalty in its loss.

    Args:
      name: of the term, in `TERMS`.
      of: the views, from `views_of`.
      estimator: of `polyview.objectives.bounds`.
      critic: (anchors[a, q, d], candidates[c, p, d]) -> Scored.
      key, index: row i draws its position of CC by (key, index[i]).
      same: bool[b, b], rows of one study, which are never negatives of each other.

    Raises ValueError for another name, if the term needs local maps and a view has
    none, and if it needs two views and there is one.
    """
    if name not in TERMS:
        raise ValueError(f"{name!r} is not a term; the terms are {', '.join(TERMS)}")
    if name != "RR" and (without := [view.name for view in of if view.local is None]):
        raise ValueError(f"{name} needs local maps, but {without[0]} has none")
    if name != "CR" and len(of) < 2:
        raise ValueError(f"{name} compares two views, but there is one")
    itself = jnp.eye(len(index), dtype=bool)
    # A batch may hold a row twice, instead of one that could not be read.
    again = index[:, None] == index[None]
    same = again if same is None else same | again
    ours, masks = jnp.stack([view.z for view in of]), [view.present for view in of]
    if name == "CC":
        draws = [
            drawn(view, 1, jax.random.fold_in(key, number), index)
            for number, view in enumerate(of)
        ]
        ours = jnp.stack([local[:, 0] for local, _ in draws])
        masks = [p & some[:, 0] for p, (_, some) in zip(masks, draws, strict=True)]
    our_mask = jnp.stack(masks)

    def estimate(
        anchors: jax.Array,
        anchor_mask: jax.Array,
        candidates: jax.Array,
        mask: jax.Array,
    ) -> bounds.Estimate:
        """Shapes float[b, d], bool[b], float[b, p, d] and bool[b, p]."""
        compared = anchor_mask[:, None, None, None] & mask[None, :, :, None]
        scored = critic(anchors[:, None], candidates)
        positive = compared & itself[..., None, None]
        negative = compared & ~same[..., None, None]
        estimated = estimator(scored.scores, positive, negative)
        used = positive | negative
        squares = jnp.where(used, jnp.square(scored.raw), 0).sum()
        penalty = scored.penalty * squares / jnp.maximum(used.sum(), 1)
        return bounds.Estimate(estimated.loss + penalty, estimated.bound)

    estimates = []
    for c, view in enumerate(of):
        theirs = view.z[:, None] if name == "RR" else view.local
        assert theirs is not None  # checked above
        mask = jnp.broadcast_to(view.present[:, None], theirs.shape[:2])
        if name != "RR" and view.real is not None:
            mask = mask & view.real
        # One program for all anchors of a candidate, as pairs are many.
        a = np.array([a for a in range(len(of)) if (a == c) == (name == "CR")])
        each = jax.vmap(estimate, (0, 0, None, None))
        estimates.append(each(ours[a], our_mask[a], theirs, mask))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts).mean(), *estimates)


def drawn(
    view: View, count: int, key: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw `count` real positions of each row's local map, uniformly with replacement.

    Returns [b, count, d], and bool[b, count], False in a row without real positions.
    Row i draws by (key, index[i]).
    """
    assert view.local is not None  # the caller checks
    b, p, _ = view.local.shape
    real = jnp.ones((b, p), bool) if view.real is None else view.real
    weights = jnp.where(real, 0.0, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    draw = jax.vmap(lambda k, w: jax.random.categorical(k, w, shape=(count,)))
    position = draw(keys, weights)
    valid = jnp.broadcast_to(real.any(1, keepdims=True), position.shape)
    return jnp.take_along_axis(view.local, position[..., None], 1), valid


def thinned(of: list[View], count: int, key: jax.Array, index: jax.Array) -> list[View]:
    """The views with `count` positions drawn from each larger local map.

    This is the location sampling of Deep InfoMax, which saves time and memory.
    """
    thin = []
    for number, view in enumerate(of):
        if view.local is not None and view.local.shape[1] > count:
            key_of_view = jax.random.fold_in(key, number)
            local, real = drawn(view, count, key_of_view, index)
            view = view._replace(local=local, real=real)
        thin.append(view)
    return thin


def kept(
    present: Mapping[str, jax.Array], drop: float, key: jax.Array, index: jax.Array
) -> dict[str, jax.Array]:
    """Masks in which each present view is dropped with probability `drop`.

    present, and the result: bool[b, m] by modality. If all views of a sample would go,
    one of them stays, each with equal probability. Row i draws by (key, index[i]).
    """
    names, mask = sorted(present), _joined(present)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    noise = jax.vmap(lambda k: jax.random.uniform(k, mask.shape[1:]))(keys)
    stays = mask & (noise >= drop)
    luckiest = jnp.where(mask, noise, -1).argmax(1)
    one = jax.nn.one_hot(luckiest, mask.shape[1], dtype=bool) & mask
    stays = jnp.where(stays.any(1, keepdims=True), stays, one)
    ends = list(accumulate(present[name].shape[1] for name in names))
    return dict(zip(names, jnp.split(stays, ends[:-1], axis=1), strict=True))


@dataclass(frozen=True)
class CrossModal:
    """Objective: tasks, and mutual information between modalities.

    loss = task_weight * sum of the tasks + sum of terms' weights * terms
           + polyview_weight * polyview + pairs_weight * pairs

    Raises InputError if an attribute is out of range or attributes contradict.

    Attributes:
      tasks: target -> loss(outputs[b, n, ...], target) -> [b, n], from
        `polyview.objectives.supervised`. The model returns the outputs under the
        target's name: of the kept views together first, then of each view alone.
      task_weight: weight of the sum of the tasks.
      alone_weight: weight of the predictions from single views, within a task.
      terms: weight of each of CR, XX, RR, CC; a term of weight 0 is not computed.
      estimator: a function of `polyview.objectives.bounds`.
      critic: a partial of a critic here, or None for the model's own (`module.critic`).
      polyview: a loss of `polyview.objectives.contrastive`, over all views of a sample:
        each against all the rest. The project's own extension. The metric
        `bound/polyview` is for `geometric`, `arithmetic`, `sufficient_statistics`.
      polyview_weight: weight of that loss.
      pairs: a `polyview.objectives.pairs:Pairs`, such as CLIP with a learnt scale.
      pairs_weight: weight of its loss.
      train_drop_prob: probability to drop a view from the prediction; one always stays.
      positions: positions drawn of each local map at each step; None for all of them.
      study: the target that names a row's study; rows of one are never negatives.
    """

    tasks: Mapping[str, Callable] = field(default_factory=dict)
    task_weight: float = 1.0
    alone_weight: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)
    estimator: Callable[..., bounds.Estimate] = bounds.info_nce
    critic: Critic | None = scaled_dot
    polyview: Callable | None = None
    polyview_weight: float = 0.0
    pairs: Any = None
    pairs_weight: float = 0.0
    train_drop_prob: float = 0.0
    positions: int | None = None
    study: str | None = None

    def __post_init__(self) -> None:
        check_range(0.0, task_weight=self.task_weight, alone_weight=self.alone_weight)
        check_range(0.0, polyview_weight=self.polyview_weight)
        check_range(0.0, pairs_weight=self.pairs_weight)
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
        for name in "polyview", "pairs":
            if getattr(self, f"{name}_weight") and getattr(self, name) is None:
                raise InputError(f"{name}_weight is set, but objective.{name} is None")
        weights = self.polyview_weight, self.pairs_weight, *self.terms.values()
        if not (self.tasks or any(weights)):
            raise InputError("the objective has no task and no term to minimise")
        if self.polyview_weight and self.study:
            raise InputError(
                "polyview cannot leave out pairs of one study: make them views of one "
                "example, or set polyview_weight to 0"
            )

    @property
    def outputs(self) -> dict[str, str]:
        """{target: where its predictions are among the features}."""
        return {target: target for target in self.tasks}

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        keys = jax.random.split(key, 4)
        present, index = batch["present"], batch["index"]
        kept_now = present
        if self.train_drop_prob:
            kept_now = kept(present, self.train_drop_prob, keys[0], index)
        features = dict(module({**batch, "kept": kept_now}, key=keys[1], train=True))
        metrics: dict[str, Any] = {}
        for target, loss_of in self.tasks.items():
            losses = loss_of(features.pop(target).z, batch["targets"][target])
            metrics[f"task/{target}"] = self._task(losses, present, kept_now)
        terms = {name: weight for name, weight in self.terms.items() if weight}
        # A model may return its predictions only.
        compares = terms or self.polyview_weight or self.pairs_weight
        of = views_of(features, present) if compares else []
        if self.positions is not None:
            of = thinned(of, self.positions, keys[3], index)
        critic = self.critic or partial(_learnt, module)
        study = None if self.study is None else batch["targets"][self.study]
        same = None if study is None else study[:, None] == study[None]
        loss = self.task_weight * sum(metrics.values())
        for name, weight in terms.items():
            estimate = term(
                name,
                of,
                estimator=self.estimator,
                critic=critic,
                key=jax.random.fold_in(keys[2], TERMS.index(name)),
                index=index,
                same=same,
            )
            loss += weight * estimate.loss
            metrics |= {name: estimate.loss, f"bound/{name}": estimate.bound}
        if self.polyview_weight and self.polyview is not None:
            z = jnp.stack([view.z for view in of], 1)
            mask = jnp.stack([view.present for view in of], 1)
            losses = self.polyview(z, present=mask)
            polyview = mean_over_anchors(losses, mask)
            loss += self.polyview_weight * polyview
            metrics["polyview"] = polyview
            if losses.ndim == 2:
                # Some losses have more terms, as rows of one view are negatives too;
                # with this smaller count the bound holds for all of them.
                valid = can_be_anchors(mask)
                others = valid.sum() - valid.sum(1, keepdims=True)
                bounds_of = jnp.log1p(others.astype(losses.dtype)) - losses
                metrics["bound/polyview"] = mean_over_anchors(bounds_of, mask)
        if self.pairs_weight and self.pairs is not None:
            # A batch may hold a row twice, as above.
            group = index if study is None else study
            paired, measured = self.pairs.of_views(module, of, group)
            loss += self.pairs_weight * paired
            metrics |= {"pairs": paired, **measured}
        return loss, {"loss": loss, **metrics, "features": features}

    def _task(
        self, losses: jax.Array, present: Mapping, kept_now: Mapping
    ) -> jax.Array:
        """The mean over rows with a view, of all views together and of each alone."""
        loss = mean_of_present(losses[:, 0], _joined(kept_now).any(1))
        if self.alone_weight:
            alone = _joined(present)
            if losses.shape[1] != 1 + alone.shape[1]:
                raise ValueError(
                    "alone_weight is set, but the model predicts only from all views "
                    "together; set its alone=True"
                )
            loss += self.alone_weight * mean_of_present(losses[:, 1:], alone)
        return loss

    def negatives(self, b: int, m: int) -> int:
        """The most views of other samples an anchor is compared with."""
        if self.polyview_weight:
            return (b - 1) * m
        return b - 1 if self.pairs_weight or any(self.terms.values()) else 0


def mean_over_anchors(losses: jax.Array, present: jax.Array) -> jax.Array:
    """Mean of losses float[b, m] over anchors, or of float[b] over samples with one."""
    valid = can_be_anchors(present)
    return mean_of_present(losses, valid if losses.ndim == 2 else valid.any(1))


def _joined(masks: Mapping[str, jax.Array]) -> jax.Array:
    """The masks of all modalities, sorted and concatenated: bool[b, views]."""
    return jnp.concatenate([masks[name] for name in sorted(masks)], 1)


def _learnt(module: Any, anchors: jax.Array, candidates: jax.Array) -> Scored:
    if not hasattr(module, "critic"):
        raise InputError(
            "neither the objective nor the model has a critic; set objective.critic, "
            "or model.critic and microbatch=None"
        )
    raw = module.critic(anchors, candidates)
    return Scored(raw, raw, 0.0)
