"""Scores against other samples: the one expensive term of the contrastive losses.

The losses differ only in the views of other samples that they compare an anchor with,
so one function serves them all:

    n[i, a] = log sum_{j != i} sum_g exp s,    s = anchors[i, a] . candidates[j, g] / T

with T the temperature. Scores exist one tile at a time, and once more in the backward
pass, so memory is linear in the rows. The gradient of sum_r g[r] n[r] over rows r is

    d anchors[r] = sum_c w[r, c] candidates[c] / T,
    d candidates[c] = sum_r w[r, c] anchors[r] / T,
    w[r, c] = g[r] exp(s[r, c] - n[r]) for rows of two samples, else 0

If the candidates are the anchors, s is symmetric: one tile of scores serves rows and
columns, with w[r, c] + w[c, r] for w[r, c]. For r rows of d features that takes 4 r^2 d
operations, r^2 d of them forward, instead of 8 r^2 d and 2 r^2 d. C tiles a side cost
1 + 1 / C times that, as those on the diagonal are scored in full, or 1 + 2 / C times if
C is even, as those half way round are scored twice; one device has an odd number.

If the caller bounds the scores (`largest`), exponentials are summed without subtracting
a maximum first, so that one exponential a score serves rows and columns.
"""

from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from polyview.objectives.positives import check_positive
from polyview.objectives.tiles import (
    Meeting,
    Plan,
    Sums,
    meet_all,
    padded,
    planned,
    unpadded,
)

# For |s| up to this, sums of exp(s) over 1e9 columns, and products with another exp(s),
# are normal numbers in float32.
SAFE = 40.0
_NOTHING = Sums((), lambda *_: (), lambda _: ())
_ABSENT = -1e30  # the score of a missing view times the temperature, below any other


class Negatives(Protocol):
    """`log_negatives`, or a partial, as `partial(log_negatives, exchange="ring")`."""

    def __call__(
        self,
        anchors: jax.Array,
        candidates: jax.Array | None = None,
        *,
        temperature: float,
        largest: float | None = None,
    ) -> jax.Array: ...


def log_negatives(
    anchors: jax.Array,
    candidates: jax.Array | None = None,
    *,
    temperature: float,
    largest: float | None = None,
    exchange: Literal["gather", "ring"] = "gather",
    dtype: DTypeLike | None = None,
    tile: int | None = None,
) -> jax.Array:
    """Log-sum-exp of each anchor's scores against the views of the other samples.

    anchors float[b, m, d] and candidates float[b, n, d] give float[b, m]; without
    candidates the anchors are scored among themselves, at half the cost. Computes in
    float32, or float64 for such inputs. With `dtype`, the rows are rounded to it after
    scaling by the temperature; products still accumulate in float32. A tile has `tile`
    rows (None: the default of the backend). largest: a bound on the absolute value of
    every score, such as 1 / temperature for rows of length 1; up to 40 it saves half of
    the exponentials. The result may overflow if a score exceeds it.

    Under a mesh (`jax.set_mesh`, Auto axes) the rows are sharded over all of its axes.
    With "gather" each device holds all candidates at once; with "ring" they move from
    device to device, so memory does not grow with their number. A second derivative is
    correct but takes memory quadratic in the rows; there is no forward mode (`jvp`).
    Raises ValueError for b = 1, candidates of another b, a b that the devices cannot
    share equally, a temperature or tile that is not positive, a dtype that is not
    floating, an unknown exchange, and inside a `shard_map`.
    """
    b = len(anchors)
    plan = planned(b, exchange, tile)
    if candidates is not None and len(candidates) != b:
        raise ValueError(f"anchors of b = {b} samples, candidates of {len(candidates)}")
    check_positive(temperature=temperature)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {dtype}; use a floating one, such as bfloat16")
    anchors = anchors.astype(accumulator(anchors.dtype))
    if candidates is None:
        pair: tuple = (anchors / temperature**0.5,)
    else:
        pair = (anchors / temperature, candidates.astype(anchors.dtype))
    if dtype is not None:
        pair = tuple(x.astype(dtype) for x in pair)
    safe = largest is not None and largest <= SAFE
    return _log_negatives(plan, safe, *pair)


def of_present(negatives: Negatives, present: jax.Array | None) -> Negatives:
    """Return `negatives` restricted to candidates that are `present: bool[b, n]`.

    An extra feature lowers the scores of missing candidates until their exp is exactly
    0. If all are missing, the result is below any score. None: all are present.
    """
    if present is None:
        return negatives

    def restricted(
        anchors: jax.Array,
        candidates: jax.Array | None = None,
        *,
        temperature: float,
        largest: float | None = None,
    ) -> jax.Array:
        del largest  # the mark of a missing candidate exceeds it
        candidates = anchors if candidates is None else candidates
        mark = jnp.where(present, 0, _ABSENT)[..., None].astype(candidates.dtype)
        marked = jnp.concatenate([candidates, mark], -1)
        one = jnp.ones_like(anchors[..., :1])
        anchors = jnp.concatenate([anchors, one], -1)
        return negatives(anchors, marked, temperature=temperature, largest=None)

    return restricted


def log_negatives_by_view(
    anchors: jax.Array,
    candidates: jax.Array,
    *,
    temperature: float,
    largest: float | None = None,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
) -> jax.Array:
    """`log_negatives` for one view of the candidates at a time: float[b, m, n].

    A log-sum-exp over the last axis gives `log_negatives`. present: as `of_present`.
    """
    check_positive(temperature=temperature)  # a traced one cannot be checked
    return _by_view(anchors, candidates, present, temperature, largest, negatives)


@partial(jax.jit, static_argnums=(4, 5))
def _by_view(
    anchors: jax.Array,
    candidates: jax.Array,
    present: jax.Array | None,
    temperature: float,
    largest: float | None,
    negatives: Negatives,
) -> jax.Array:
    # A keyword only where it says something, for a `negatives` that lacks it.
    bound = {} if largest is None else {"largest": largest}

    def of_view(view: tuple) -> jax.Array:
        x, given = jax.tree.map(lambda part: part[:, None], view)
        return of_present(negatives, given)(
            anchors, x, temperature=temperature, **bound
        )

    views = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (candidates, present))
    return jnp.moveaxis(lax.map(of_view, views), 0, -1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(plan: Plan, safe: bool, *pair: jax.Array) -> jax.Array:
    forward = _forward_bounded if safe else _forward
    return plan.split(partial(forward, plan))(*pair)


def _save(plan: Plan, safe: bool, *pair: jax.Array) -> tuple:
    lse = _differentiable(plan, safe, *pair)
    return lse, (pair, lse)


def _restore(plan: Plan, safe: bool, saved: tuple, cotangent: jax.Array) -> tuple:
    pair, lse = saved
    return plan.split(partial(_backward, plan, safe))(pair, lse, cotangent)


_differentiable.defvjp(_save, _restore)
# Compiled once for all calls of a loss outside of a compiled program.
_log_negatives = jax.jit(_differentiable, static_argnums=(0, 1))


class Rows(NamedTuple):
    """Embeddings and their samples."""

    x: jax.Array  # [rows, d]
    sample: jax.Array  # int32[rows], index in the global batch; -1 is padding


class Exponentials(NamedTuple):
    """Sums of exponentials as `total * exp(top)`, which never overflow."""

    top: Any  # float[rows], or a number to fill it with
    total: Any

    def add(self, scores: jax.Array, axis: int, weight: Any = 1.0) -> "Exponentials":
        """Add the exponentials of scores along an axis."""
        top = jnp.maximum(self.top, scores.max(axis))
        exponentials = jnp.exp(scores - jnp.expand_dims(top, axis)).sum(axis)
        total = self.total * jnp.exp(self.top - top) + weight * exponentials
        return Exponentials(top, total)

    def join(self, other: "Exponentials") -> "Exponentials":
        """Add two."""
        top = jnp.maximum(self.top, other.top)
        one, two = (x.total * jnp.exp(x.top - top) for x in (self, other))
        return Exponentials(top, one + two)

    @staticmethod
    def sums(plan: Plan, lowest: float) -> Sums:
        """How the sums over columns, which start from a lowest score, are collected."""

        def collect(sums: "Exponentials") -> "Exponentials":
            top = lax.pmax(sums.top, plan.axes)
            total = plan.scatter(sums.total * jnp.exp(sums.top - top))
            return Exponentials(plan.own(top), total)

        return Sums(Exponentials(lowest, 0.0), Exponentials.join, collect)


def _forward(plan: Plan, *pair: jax.Array) -> jax.Array:
    rows, columns = _rows(plan, pair[0]), _rows(plan, pair[-1])
    symmetric = len(pair) == 1
    dtype = accumulator(rows.x.dtype)
    # Not -inf: the first tile of a row may contain no other sample.
    lowest = float(jnp.finfo(dtype).min)

    def meet(own: Any, theirs: Any, block: Rows, at: Meeting) -> tuple[Any, Any]:
        scores, other = scores_of(rows, block, at)
        scores = jnp.where(other, scores, lowest)
        part = jax.tree.map(at.rows.of, own).add(scores, axis=1)
        own = jax.tree.map(at.rows.put, own, part)
        if symmetric:
            weight = at.both.astype(dtype)
            part = jax.tree.map(at.columns.of, theirs).add(scores, 0, weight)
            theirs = jax.tree.map(at.columns.put, theirs, part)
        return own, theirs

    zeros = jnp.zeros(rows.sample.shape, dtype)
    own = Exponentials(zeros + lowest, zeros)
    if symmetric:
        sums = Exponentials.sums(plan, lowest)
        own, theirs = meet_all(plan, True, meet, own, columns, own, sums)
        own = own.join(theirs)
    else:
        own, _ = meet_all(plan, False, meet, own, columns, (), _NOTHING)
    return unpadded(own.top + jnp.log(own.total), pair[0].shape[:2])


def _forward_bounded(plan: Plan, *pair: jax.Array) -> jax.Array:
    """As `_forward`, for scores whose exponentials cannot overflow."""
    rows, columns = _rows(plan, pair[0]), _rows(plan, pair[-1])
    symmetric = len(pair) == 1

    def meet(own: Any, theirs: Any, block: Rows, at: Meeting) -> tuple[Any, Any]:
        scores, other = scores_of(rows, block, at)
        exponentials = jnp.where(other, jnp.exp(scores), 0)
        own = at.rows.put(own, at.rows.of(own) + exponentials.sum(1))
        if symmetric:
            part = at.both * exponentials.sum(0)
            theirs = at.columns.put(theirs, at.columns.of(theirs) + part)
        return own, theirs

    own = jnp.zeros(rows.sample.shape, accumulator(rows.x.dtype))
    theirs = own if symmetric else ()
    sums = Sums(0.0, jnp.add, plan.scatter)
    own, theirs = meet_all(
        plan, symmetric, meet, own, columns, theirs, sums if symmetric else _NOTHING
    )
    return unpadded(jnp.log(own + theirs if symmetric else own), pair[0].shape[:2])


def _backward(
    plan: Plan, safe: bool, pair: tuple, lse: jax.Array, cotangent: jax.Array
) -> tuple:
    symmetric = len(pair) == 1
    scale = cotangent * jnp.exp(-lse) if safe else cotangent
    rows = (_rows(plan, pair[0]), padded(plan, lse), padded(plan, scale))
    columns = rows if symmetric else (_rows(plan, pair[1]),)

    def weights(scores: jax.Array, of_rows: tuple, of_columns: tuple) -> jax.Array:
        """w[r, c], or w[r, c] + w[c, r], also between views of one sample."""
        if safe:
            scale = of_rows[1][:, None]
            if symmetric:
                scale += of_columns[1][None, :]
            return scale * jnp.exp(scores)
        w = of_rows[1][:, None] * jnp.exp(scores - of_rows[0][:, None])
        if symmetric:
            w += of_columns[1][None, :] * jnp.exp(scores - of_columns[0][None, :])
        return w

    def meet(own: Any, theirs: Any, block: Any, at: Meeting) -> tuple[Any, Any]:
        x, y = at.rows.of(rows[0].x), at.columns.of(block[0].x)
        scores, other = scores_of(rows[0], block[0], at)
        of_rows = tuple(map(at.rows.of, rows[1:]))
        w = weights(scores, of_rows, tuple(map(at.columns.of, block[1:])))
        w = jnp.where(other, w, 0).astype(x.dtype)
        own = at.rows.put(own, at.rows.of(own) + product("rc,cd->rd", w, y))
        part = product("rc,rd->cd", w, x)
        if symmetric:
            part *= at.both.astype(part.dtype)[:, None]
        return own, at.columns.put(theirs, at.columns.of(theirs) + part)

    sums = Sums(0.0, jnp.add, plan.scatter)
    own, theirs = (
        jnp.zeros(x.x.shape, accumulator(x.x.dtype)) for x in (rows[0], columns[0])
    )
    own, theirs = meet_all(plan, symmetric, meet, own, columns, theirs, sums)
    gradients = (own + theirs,) if symmetric else (own, theirs)
    return tuple(
        unpadded(g, x.shape).astype(x.dtype)
        for g, x in zip(gradients, pair, strict=True)
    )


def scores_of(rows: Rows, block: Rows, at: Meeting) -> tuple[jax.Array, jax.Array]:
    """The scores of a meeting, and a mask of those between two samples, not padding."""
    scores = product("rd,cd->rc", at.rows.of(rows.x), at.columns.of(block.x))
    row, column = at.rows.of(rows.sample), at.columns.of(block.sample)
    other = (row[:, None] != column[None, :]) & (row >= 0)[:, None]
    return scores, other & ((column >= 0) & at.met)[None, :]


def product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    # By default accelerators would round float32 to fewer bits.
    exact, kind = lax.Precision.HIGHEST, accumulator(x.dtype)
    return jnp.einsum(equation, x, y, precision=exact, preferred_element_type=kind)


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _rows(plan: Plan, x: jax.Array) -> Rows:
    """The rows of `x[b / devices, m, d]`."""
    b, m, _ = x.shape
    sample = plan.index() * b + jnp.arange(b, dtype=jnp.int32)
    sample = jnp.broadcast_to(sample[:, None], (b, m))
    # Tied to x: else JAX computes masks of all tiles at once, before a loop over views.
    x, sample = lax.optimization_barrier((x, sample))
    return Rows(padded(plan, x), padded(plan, sample, padding=-1))
