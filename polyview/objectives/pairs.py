"""Losses of matched pairs: CLIP's and SigLIP's, between two views of each sample.

The scores of all pairs of b rows x and y,

    s[i, j] = scale * x[i] . y[j]  (+ bias),

exist one tile at a time, and once more in the backward pass, so memory is linear in b.
The sums over the other samples, and their gradients, with cotangents g and h:

    CLIP    R[i] = log sum_{j != i} exp s[i, j],   C[j] = log sum_{i != j} exp s[i, j],
            w[i, j] = g[i] exp(s[i, j] - R[i]) + h[j] exp(s[i, j] - C[j])
    SigLIP  N[i] = sum_{j != i} log(1 + exp s[i, j]),   w[i, j] = g[i] sigmoid(s[i, j])

    d x[i] = scale sum_j w[i, j] y[j],   d y[j] = scale sum_i w[i, j] x[i],
    d scale = sum_ij w[i, j] x[i] . y[j],   d bias = sum_ij w[i, j]

One sweep over the tiles serves rows and columns. For b rows of d features that takes
2 b^2 d operations forward and 6 b^2 d backward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polyview.errors import InputError
from polyview.objectives.base import Batch, Module
from polyview.objectives.crossmodal import View, views_of
from polyview.objectives.labels import classes
from polyview.objectives.negatives import (
    Exponentials,
    Rows,
    accumulator,
    product,
    scores_of,
)
from polyview.objectives.positives import check_positive, l2_normalize
from polyview.objectives.tiles import (
    Meeting,
    Plan,
    Sums,
    meet_all,
    padded,
    planned,
)


class Matched(NamedTuple):
    """losses: float[b], of each sample. found: float[b], without a gradient: 1 if x[i]
    retrieves y[i] among the other y, plus 1 if y[i] retrieves x[i], divided by 2."""

    losses: jax.Array
    found: jax.Array


def clip(
    x: jax.Array,
    y: jax.Array,
    scale: float | jax.Array,
    *,
    present: jax.Array | None = None,
    group: jax.Array | None = None,
    normalize: bool = True,
    exchange: Literal["gather", "ring"] = "gather",
    tile: int | None = None,
) -> Matched:
    """CLIP's symmetric InfoNCE, one loss a sample (Radford et al. 2021, figure 3).

    L[i] = -1/2 log [exp s[i, i] / sum_j exp s[i, j]]
           -1/2 log [exp s[i, i] / sum_j exp s[j, i]],   s[i, j] = scale * x[i] . y[j]

    Args:
      x, y: float[b, d], the embeddings of two views of each of b >= 2 samples.
      scale: the inverse of the temperature, positive; one number, which may be learnt.
      present: bool[b], samples that have both views. Another is in no pair, nor is its
        one view a negative: its loss and its gradient are 0.
      group: int[b]. Samples of one group are never negatives of each other; one with a
        number below 0 is a group of its own.
      normalize: l2-normalise x and y along d first.
      exchange, tile: as in `polyview.objectives.negatives:log_negatives`.

    The mean of the losses is `.mean()` if all are present, else
    `.sum() / present.sum()`. Raises ValueError for x and y of different shapes, b < 2,
    a scale that is not positive, a b that the devices cannot share equally, a tile that
    is not positive, an unknown exchange, and inside a `shard_map`.
    """
    x, y, own, given, sample = _sides(x, y, scale, present, group, normalize)
    plan = planned(len(x), exchange, tile)
    rows, columns, *best = _sums_of_logs(plan, x, y, sample)
    losses = (jax.nn.softplus(rows - own) + jax.nn.softplus(columns - own)) / 2
    return _matched(losses, own, best, given)


def siglip(
    x: jax.Array,
    y: jax.Array,
    scale: float | jax.Array,
    bias: float | jax.Array,
    *,
    present: jax.Array | None = None,
    group: jax.Array | None = None,
    normalize: bool = True,
    exchange: Literal["gather", "ring"] = "gather",
    tile: int | None = None,
) -> Matched:
    """SigLIP's sigmoid loss, one loss a sample (Zhai et al. 2023, section 3.2).

    L[i] = -log sigmoid(s[i, i]) - sum_{j != i} log sigmoid(-s[i, j]),
    s[i, j] = scale * x[i] . y[j] + bias

    bias: one number, which may be learnt. The other arguments, the mean and the errors
    are those of `clip`. The gradient does not pass through a softmax, so each pair
    counts alone.
    """
    x, y, own, given, sample = _sides(x, y, scale, present, group, normalize)
    offset = jnp.broadcast_to(jnp.asarray(bias, x.dtype), x.shape[:1])
    plan = planned(len(x), exchange, tile)
    others, *best = _sums_of_sigmoids(plan, x, y, sample, offset)
    losses = jax.nn.softplus(-own - offset) + others
    return _matched(losses, own, best, given)


def _sides(
    x: jax.Array,
    y: jax.Array,
    scale: float | jax.Array,
    present: jax.Array | None,
    group: jax.Array | None,
    normalize: bool,
) -> tuple[jax.Array, ...]:
    """scale * x, y, s[i, i], whether a sample has both views, and its group or -1."""
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"x and y must be [b, d] both, not {x.shape} and {y.shape}")
    check_positive(scale=scale)
    b, dtype = len(x), accumulator(jnp.result_type(x, y))
    given = jnp.ones(b, bool) if present is None else present
    x, y = (jnp.where(given[:, None], side, 0).astype(dtype) for side in (x, y))
    if normalize:
        x, y = l2_normalize(x), l2_normalize(y)
    x = x * jnp.asarray(scale, dtype)
    sample = jnp.arange(b) if group is None else classes(group, b)
    sample = jnp.where(given, sample, -1).astype(jnp.int32)
    return x, y, (x * y).sum(-1), given, sample


def _matched(losses: jax.Array, own: jax.Array, best: Any, given: jax.Array) -> Matched:
    found = sum((own > other).astype(losses.dtype) for other in best) / 2
    return Matched(*(jnp.where(given, part, 0) for part in (losses, found)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_sums(plan: Plan, x: jax.Array, y: jax.Array, sample: jax.Array) -> tuple:
    """R and C above, and the largest score in each: four float[b]."""
    lowest = float(jnp.finfo(x.dtype).min)

    def forward(*arrays: jax.Array) -> tuple:
        rows, columns = _rows(plan, *arrays)

        def meet(own: Any, theirs: Any, block: Rows, at: Meeting) -> tuple[Any, Any]:
            scores, other = scores_of(rows, block, at)
            scores = jnp.where(other, scores, lowest)
            part = jax.tree.map(at.rows.of, own).add(scores, axis=1)
            own = jax.tree.map(at.rows.put, own, part)
            part = jax.tree.map(at.columns.of, theirs).add(scores, axis=0)
            return own, jax.tree.map(at.columns.put, theirs, part)

        zeros = jnp.zeros(len(rows.x), x.dtype)
        start, sums = Exponentials(zeros + lowest, zeros), Exponentials.sums
        both = meet_all(plan, False, meet, start, columns, start, sums(plan, lowest))
        logs = (side.top + jnp.log(side.total) for side in both)
        return _unpadded(arrays[0], (*logs, *(side.top for side in both)))

    return plan.split(forward)(x, y, sample)


def _save_logs(plan: Plan, *arrays: jax.Array) -> tuple:
    sums = _log_sums(plan, *arrays)
    return sums, (arrays, sums[:2])


def _restore_logs(plan: Plan, saved: tuple, cotangents: tuple) -> tuple:
    def weights(scores: jax.Array, of_rows: tuple, of_columns: tuple) -> jax.Array:
        (r, g), (c, h) = of_rows, of_columns
        of_row = g[:, None] * jnp.exp(scores - r[:, None])
        return of_row + h[None, :] * jnp.exp(scores - c[None, :])

    arrays, (r, c) = saved
    g, h = cotangents[:2]
    dx, dy, _ = _gradients(plan, weights, arrays, (r, g), (c, h))
    return dx, dy, None


_log_sums.defvjp(_save_logs, _restore_logs)
# Compiled once for all calls outside of a compiled program, as is `_sums_of_sigmoids`.
_sums_of_logs = jax.jit(_log_sums, static_argnums=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid_sums(
    plan: Plan, x: jax.Array, y: jax.Array, sample: jax.Array, offset: jax.Array
) -> tuple:
    """N above, and the largest x[i] . y[j] of each row and column: three float[b].

    offset: float[b], the bias.
    """
    lowest = float(jnp.finfo(x.dtype).min)

    def forward(offset: jax.Array, *arrays: jax.Array) -> tuple:
        rows, columns = _rows(plan, *arrays)
        bias = padded(plan, offset[:, None])

        def meet(own: Any, theirs: Any, block: Rows, at: Meeting) -> tuple[Any, Any]:
            scores, other = scores_of(rows, block, at)
            terms = jax.nn.softplus(scores + at.rows.of(bias)[:, None])
            scores = jnp.where(other, scores, lowest)
            total, top = map(at.rows.of, own)
            total += jnp.where(other, terms, 0).sum(1)
            part = total, jnp.maximum(top, scores.max(1))
            own = jax.tree.map(at.rows.put, own, part)
            best = jnp.maximum(at.columns.of(theirs), scores.max(0))
            return own, at.columns.put(theirs, best)

        def collect(top: jax.Array) -> jax.Array:
            return plan.own(lax.pmax(top, plan.axes))

        zeros = jnp.zeros(len(rows.x), x.dtype)
        start, sums = zeros + lowest, Sums(lowest, jnp.maximum, collect)
        own, top = meet_all(plan, False, meet, (zeros, start), columns, start, sums)
        return _unpadded(arrays[0], (*own, top))

    return plan.split(forward)(offset, x, y, sample)


def _save_sigmoids(plan: Plan, *arrays: jax.Array) -> tuple:
    return _sigmoid_sums(plan, *arrays), arrays


def _restore_sigmoids(plan: Plan, saved: tuple, cotangents: tuple) -> tuple:
    def weights(scores: jax.Array, of_rows: tuple, of_columns: tuple) -> jax.Array:
        g, bias = of_rows
        return g[:, None] * jax.nn.sigmoid(scores + bias[:, None])

    *arrays, offset = saved
    of_rows = cotangents[0], offset
    dx, dy, total = _gradients(plan, weights, tuple(arrays), of_rows, ())
    return dx, dy, None, total


_sigmoid_sums.defvjp(_save_sigmoids, _restore_sigmoids)
_sums_of_sigmoids = jax.jit(_sigmoid_sums, static_argnums=0)


def _gradients(
    plan: Plan, weights: Callable, arrays: tuple, of_rows: tuple, of_columns: tuple
) -> tuple:
    """sum_j w[i, j] y[j], sum_i w[i, j] x[i] and sum_j w[i, j], of w = `weights`.

    `weights(scores[r, c], of_rows, of_columns)` gets the parts float[r] of the arrays
    float[b] that belong to rows, and float[c] of those that belong to columns.
    """

    def backward(arrays: tuple, of_rows: tuple, of_columns: tuple) -> tuple:
        rows, columns = _rows(plan, *arrays)
        of_rows, of_columns = jax.tree.map(
            lambda part: padded(plan, part[:, None]), (of_rows, of_columns)
        )

        def meet(own: Any, theirs: Any, block: Any, at: Meeting) -> tuple[Any, Any]:
            x, y = at.rows.of(rows.x), at.columns.of(block[0].x)
            scores, other = scores_of(rows, block[0], at)
            parts = tuple(map(at.rows.of, of_rows)), tuple(map(at.columns.of, block[1]))
            w = jnp.where(other, weights(scores, *parts), 0)
            part = product("rc,cd->rd", w, y), w.sum(1)
            part = jax.tree.map(lambda x, more: at.rows.of(x) + more, own, part)
            own = jax.tree.map(at.rows.put, own, part)
            dy = at.columns.of(theirs) + product("rc,rd->cd", w, x)
            return own, at.columns.put(theirs, dy)

        zeros = jnp.zeros_like(rows.x)
        start, sums = (zeros, zeros[:, 0]), Sums(0.0, jnp.add, plan.scatter)
        block = columns, of_columns
        (dx, total), dy = meet_all(plan, False, meet, start, block, zeros, sums)
        return _unpadded(arrays[0], (dx, dy, total))

    return plan.split(backward)(arrays, of_rows, of_columns)


def _rows(
    plan: Plan, x: jax.Array, y: jax.Array, sample: jax.Array
) -> tuple[Rows, Rows]:
    """Rows x and columns y, float[b / devices, d], of groups int32[b / devices]."""
    group = padded(plan, sample[:, None], padding=-1)
    return Rows(padded(plan, x[:, None]), group), Rows(padded(plan, y[:, None]), group)


def _unpadded(x: jax.Array, sums: tuple) -> tuple:
    """The sums of the rows of `x[b / devices, d]`."""
    return tuple(part[: len(x)] for part in sums)


@dataclass(frozen=True)
class Pairs:
    """Objective: the mean, over pairs of views, of a loss above with learnt numbers.

    The model's critic gives the scale and the bias (`polyview.nn.critics:CosineCritic`)
    and is trained with it. A pair of views counts the samples that have both. The
    metrics are the scale, the bias and `retrieval`, the share of samples whose one view
    finds the other among those of the batch. As `CrossModal.pairs`, it is a term beside
    tasks. Raises InputError for a model without such a critic, and for a batch without
    such views.

    Attributes:
      loss: `clip` or `siglip`, or a partial of it.
      between: two modalities, whose views are compared; None for every two views.
    """

    loss: Callable[..., Matched]
    between: tuple[str, str] | None = None

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        features = module(batch, key=key, train=True)
        views = views_of(features, batch["present"])
        # A batch may hold a row twice, instead of one that could not be read.
        loss, metrics = self.of_views(module, views, batch["index"])
        return loss, {"loss": loss, **metrics, "features": features}

    def of_views(
        self, module: Any, views: list[View], group: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss and metrics of views; group: int[b], as in `clip`."""
        if not hasattr(getattr(module, "critic", None), "numbers"):
            raise InputError(
                "the model has no learnt scale; set model.critic to a "
                "polyview.nn.critics:CosineCritic, and microbatch=None"
            )
        numbers = module.critic.numbers()
        names = [view.name.partition("/")[0] for view in views]
        pairs = [
            (a, c)
            for a, c in combinations(range(len(views)), 2)
            if self.between is None
            or sorted(self.between) == sorted((names[a], names[c]))
        ]
        if not pairs:
            wanted = "two views" if self.between is None else " and ".join(self.between)
            raise InputError(
                f"objective compares {wanted}, but the batch has the views "
                f"{', '.join(view.name for view in views)}"
            )
        z = jnp.stack([view.z for view in views])
        present = jnp.stack([view.present for view in views])

        def compared(pair: jax.Array) -> Matched:
            a, c = pair
            both = present[a] & present[c]
            matched = self.loss(z[a], z[c], **numbers, present=both, group=group)
            return Matched(
                *(part.sum() / jnp.maximum(both.sum(), 1) for part in matched)
            )

        losses, found = lax.map(compared, jnp.array(pairs))
        return losses.mean(), {**numbers, "retrieval": found.mean()}

    @staticmethod
    def negatives(b: int, m: int) -> int:
        """The views of other samples that a view is compared with at a time."""
        return b - 1
