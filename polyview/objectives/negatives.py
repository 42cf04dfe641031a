"""The one expensive term of the contrastive losses: the scores of other samples.

Every loss of the family compares an anchor with its positives and with views of the
other samples of the global batch. The losses differ only in which of those views count,
so one function serves them all, and nothing else ever sees scores between samples:

    n[i, a] = log sum_{j != i} sum_g exp s,    s = anchors[i, a] . candidates[j, g] / T

with T the temperature. Scores exist one tile at a time, and once more in the backward
pass, so memory is linear in the rows. The gradient of sum_r g[r] n[r] over rows r is

    d anchors[r] = sum_c w[r, c] candidates[c] / T,
    d candidates[c] = sum_r w[r, c] anchors[r] / T,
    w[r, c] = g[r] exp(s[r, c] - n[r]) for rows of two samples, else 0

Where the candidates are the anchors themselves, s is symmetric and a tile serves the
rows of both its sides, with w[r, c] + w[c, r] in place of w[r, c]. Of C tiles, row tile
I then meets the column tiles I, I + 1, ..., I + C/2 (mod C): half of them, as many for
each I, so that devices share the work evenly. For r rows of d features the products
take 4 r^2 d operations (1 r^2 d forward, 3 backward), where all tiles would take 8.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

# Rows of a tile: on a CPU a tile of scores should stay in the cache (measured, see
# `benchmarks/loss.py`), an accelerator wants large ones (not yet measured).
TILE = {"cpu": 512}
LARGE_TILE = 4096


class Negatives(Protocol):
    """What a loss needs of `log_negatives`, or of a partial of it."""

    def __call__(
        self,
        anchors: jax.Array,
        candidates: jax.Array | None = None,
        *,
        temperature: float,
    ) -> jax.Array: ...


def log_negatives(
    anchors: jax.Array,
    candidates: jax.Array | None = None,
    *,
    temperature: float,
    exchange: Literal["gather", "ring"] = "gather",
    dtype=None,
    tile: int | None = None,
) -> jax.Array:
    """Log-sum-exp of each anchor's scores against the views of the other samples.

    anchors float[b, m, d] and candidates float[b, n, d] give float[b, m]; without
    candidates the anchors are scored among themselves, at half the cost. Products read
    `dtype` (None: as given) and accumulate in float32, or float64 if given that; so is
    the result. A tile has `tile` rows (None: what suits the backend).

    Under a mesh (`jax.set_mesh`, Auto axes) the rows are sharded over all of its axes.
    With "gather" a device holds all candidates at once; with "ring" they go from device
    to device, so that its memory does not grow with their number. Raises ValueError for
    b = 1, and for a b that the devices cannot share equally.
    """
    b, mesh = len(anchors), jax.sharding.get_abstract_mesh()
    devices = max(mesh.size, 1)
    if b < 2:
        raise ValueError(f"negatives are other samples: b = {b} has none, give b >= 2")
    if b % devices:
        raise ValueError(f"b = {b} samples cannot be divided among {devices} devices")
    if exchange not in ("gather", "ring"):
        raise ValueError(f'exchange is "gather" or "ring", not {exchange!r}')
    if candidates is None:
        pair = (anchors / temperature**0.5,)
    else:
        pair = (anchors / temperature, candidates)
    if dtype is not None:
        pair = tuple(x.astype(dtype) for x in pair)
    tile = tile or TILE.get(jax.default_backend(), LARGE_TILE)
    axes = mesh.axis_names if devices > 1 else ()
    return _log_negatives(_Plan(exchange, tile, axes, devices), *pair)


@partial(jax.jit, static_argnames="negatives")
def log_negatives_by_view(
    anchors: jax.Array,
    candidates: jax.Array,
    *,
    temperature: float,
    negatives: Negatives = log_negatives,
) -> jax.Array:
    """The same, one view of the candidates at a time: float[b, m, n].

    A log-sum-exp over the last axis gives `log_negatives`.
    """

    def of_view(view):
        return negatives(anchors, view[:, None], temperature=temperature)

    return jnp.moveaxis(lax.map(of_view, jnp.moveaxis(candidates, 1, 0)), 0, -1)


class _Plan(NamedTuple):
    """What is known when a program is traced."""

    exchange: str
    tile: int
    axes: tuple[str, ...]  # none where there is one device
    devices: int

    def split(self, function: Callable) -> Callable:
        """`function`, of each device's own rows. Nothing differentiates through it."""
        if not self.axes:
            return function
        rows = PartitionSpec(self.axes)
        return jax.shard_map(function, in_specs=rows, out_specs=rows, check_vma=False)

    def index(self):
        """Which of the devices this is."""
        return lax.axis_index(self.axes) if self.axes else 0


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(plan, *pair):
    return plan.split(partial(_forward, plan))(*pair)


def _save(plan, *pair):
    lse = _differentiable(plan, *pair)
    return lse, (pair, lse)


def _restore(plan, saved, cotangent):
    pair, lse = saved
    return plan.split(partial(_backward, plan))(pair, lse, cotangent)


_differentiable.defvjp(_save, _restore)
# Compiled once for all who call a loss outside of a compiled program.
_log_negatives = jax.jit(_differentiable, static_argnums=0)


class _Tiles(NamedTuple):
    """Rows of one device or of all, `t` tiles of `r` rows."""

    x: jax.Array  # [t, r, d]
    sample: jax.Array  # int32[t, r], the row's place in the global batch; -1 is padding


class _Sum(NamedTuple):
    """Sums of exponentials, `total * exp(top)`, that overflow for no score."""

    top: jax.Array  # [t, r]
    total: jax.Array  # [t, r]


def _forward(plan, *pair):
    rows, columns = _tiles(plan, pair[0]), _tiles(plan, pair[-1])
    symmetric = len(pair) == 1

    def add(sums, at, scores, axis, weight=1.0):
        top, total = sums.top[at], sums.total[at]
        new = jnp.maximum(top, scores.max(axis))
        exponentials = jnp.exp(scores - jnp.expand_dims(new, axis)).sum(axis)
        total = total * jnp.exp(top - new) + weight * exponentials
        return _Sum(sums.top.at[at].set(new), sums.total.at[at].set(total))

    def meet(own, theirs, block, i, j, both):
        scores, other = _scores(plan, rows, block, i, j)
        # Not -inf: a row may meet no other sample until the next tile.
        scores = jnp.where(other, scores, jnp.finfo(scores.dtype).min)
        own = add(own, i, scores, 1)
        if symmetric:
            theirs = add(theirs, j, scores, 0, weight=both.astype(scores.dtype))
        return own, theirs

    def empty(tiles):
        dtype = _accumulator(tiles.x.dtype)
        low = jnp.full(tiles.sample.shape, jnp.finfo(dtype).min)
        return _Sum(low, jnp.zeros_like(low))

    def collect(sums):
        if not symmetric:
            return sums
        top = lax.pmax(sums.top, plan.axes)
        total = _scatter(plan, sums.total * jnp.exp(sums.top - top))
        return _Sum(_own(plan, top, len(total)), total)

    theirs = empty(columns) if symmetric else ()
    own, theirs = _meet_all(
        plan, symmetric, meet, empty(rows), columns, theirs, collect
    )
    if symmetric:
        top = jnp.maximum(own.top, theirs.top)
        total = own.total * jnp.exp(own.top - top)
        own = _Sum(top, total + theirs.total * jnp.exp(theirs.top - top))
    return _untile(own.top + jnp.log(own.total), pair[0].shape[:2])


def _backward(plan, pair, lse, cotangent):
    symmetric = len(pair) == 1
    rows = (_tiles(plan, pair[0]), _tile(plan, lse), _tile(plan, cotangent))
    columns = rows if symmetric else (_tiles(plan, pair[1]),)

    def meet(own, theirs, block, i, j, both):
        scores, other = _scores(plan, rows[0], block[0], i, j)

        def weights(side, at, axis):
            _, lse, cotangent = side
            lse, cotangent = (jnp.expand_dims(x[at], axis) for x in (lse, cotangent))
            return cotangent * jnp.exp(scores - lse)

        w = weights(rows, i, 1)
        if symmetric:
            w += weights(block, j, 0)
        w = jnp.where(other, w, 0).astype(block[0].x.dtype)
        own = own.at[i].add(_product("rc,cd->rd", w, block[0].x[j]))
        product = _product("rc,rd->cd", w, rows[0].x[i])
        if symmetric:
            product *= both.astype(product.dtype)
        return own, theirs.at[j].add(product)

    def empty(tiles):
        return jnp.zeros(tiles.x.shape, _accumulator(tiles.x.dtype))

    own, theirs = _meet_all(
        plan,
        symmetric,
        meet,
        empty(rows[0]),
        columns,
        empty(columns[0]),
        partial(_scatter, plan),
    )
    gradients = (own + theirs,) if symmetric else (own, theirs)
    return tuple(
        _untile(g, x.shape).astype(x.dtype)
        for g, x in zip(gradients, pair, strict=True)
    )


def _meet_all(plan, symmetric, meet, own, columns, theirs, collect):
    """Let each tile of this device's rows meet every tile of columns, or its half.

    `meet(own, theirs, block, i, j, both) -> own, theirs` adds what row tile i and
    column tile j of `block` make of each other to the sums over rows (`own`) and over
    columns (`theirs`, shaped for `columns`, the columns of this device), to the latter
    only if `both`. Returns both sums, complete: `collect` adds `theirs` up over devices
    that each hold sums over all columns, and keeps this device's part.
    """
    rows, here = (len(jax.tree.leaves(tree)[0]) for tree in (own, columns))

    def sweep(own, theirs, block, first, steps, both):
        tiles = len(jax.tree.leaves(block)[0])

        def at(carry, step):
            k, i = jnp.divmod(step, rows)
            return meet(*carry, block, i, (first + i + k) % tiles, both(k)), None

        return lax.scan(at, (own, theirs), jnp.arange(steps * rows))[0]

    def round_of(tiles):
        """Steps along the columns, and in which of them a pair is met only once."""
        if not symmetric:
            return tiles, lambda k: jnp.bool_(True)
        return tiles // 2 + 1, lambda k: (k > 0) & (2 * k != tiles)

    if plan.devices == 1:
        return sweep(own, theirs, columns, 0, *round_of(here))
    if plan.exchange == "gather":
        block = lax.all_gather(columns, plan.axes, tiled=True)
        theirs = jax.tree.map(lambda x: jnp.concatenate([x] * plan.devices), theirs)
        first = plan.index() * here
        own, theirs = sweep(own, theirs, block, first, *round_of(plan.devices * here))
        return own, collect(theirs)

    def send(tree, places):
        n = plan.devices
        to = [(source, (source + places) % n) for source in range(n)]
        return jax.tree.map(lambda x: lax.ppermute(x, plan.axes, to), tree)

    def hop(carry, number):
        own, block, theirs = carry
        block, theirs = send((block, theirs), -1)
        both = 2 * number != plan.devices if symmetric else jnp.bool_(True)
        own, theirs = sweep(own, theirs, block, 0, here, lambda k: both)
        return (own, block, theirs), None

    own, theirs = sweep(own, theirs, columns, 0, *round_of(here))
    hops = plan.devices // 2 if symmetric else plan.devices - 1
    carry = (own, columns, theirs)
    (own, _, theirs), _ = lax.scan(hop, carry, 1 + jnp.arange(hops))
    return own, send(theirs, hops)


def _scores(plan, rows, columns, i, j):
    """The scores of a tile, and which of them are of two samples, neither padding."""
    scores = _product("rd,cd->rc", rows.x[i], columns.x[j])
    row, column = rows.sample[i][:, None], columns.sample[j][None, :]
    return scores, (row != column) & (row >= 0) & (column >= 0)


def _product(equation, x, y):
    # Accelerators would round float32 to fewer bits on their own.
    return jnp.einsum(
        equation,
        x,
        y,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=_accumulator(x.dtype),
    )


def _accumulator(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _tiles(plan, x) -> _Tiles:
    """The rows of `x[b/devices, m, d]`, in tiles."""
    b, m, _ = x.shape
    sample = plan.index() * b + jnp.arange(b, dtype=jnp.int32)
    sample = jnp.broadcast_to(sample[:, None], (b, m))
    # Tied to x: in a loop over views, JAX would compute what depends on the samples
    # alone before the loop, for all tiles at once, and keep it.
    x, sample = lax.optimization_barrier((x, sample))
    return _Tiles(_tile(plan, x), _tile(plan, sample, padding=-1))


def _tile(plan, x, padding=0):
    """`x[b, m, ...]` as tiles `[t, r, ...]` of equal size, with rows of padding."""
    x = x.reshape(-1, *x.shape[2:])
    tiles = -(-len(x) // plan.tile)
    size = -(-len(x) // tiles)
    pad = [(0, tiles * size - len(x))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad, constant_values=padding).reshape(tiles, size, *x.shape[1:])


def _untile(x, shape):
    """What `_tile` made, without its padding."""
    flat = x.reshape(-1, *x.shape[2:])
    return flat[: shape[0] * shape[1]].reshape(shape)


def _scatter(plan, x):
    """The sum over devices of `x[devices * t, ...]`, this device's part of it."""
    return lax.psum_scatter(x, plan.axes, tiled=True)


def _own(plan, x, tiles):
    """This device's part of `x[devices * tiles, ...]`."""
    return lax.dynamic_slice_in_dim(x, plan.index() * tiles, tiles)
