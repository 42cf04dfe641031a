"""Tiled reduction over all pairs of rows and columns, on one device or on a mesh.

Arrays hold rows, `[rows, ...]`. Columns are the rows of this device and of all others.
The caller defines the sums over rows and columns. This file decides which tiles meet,
in which order, and where the columns are.

With symmetric scores one meeting serves both sides. Of C tiles, row tile I then meets
the column tiles I, I + 1, ..., I + C/2 (mod C), so devices share the work evenly. The
first, and for even C the last, add nothing to the sums over columns, since the same
rows meet those columns from the other side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

# Rows of a tile. On a CPU its scores should fit in the cache (measured, see
# `benchmarks/loss.py`); accelerators need large tiles (not yet measured).
TILE = {"cpu": 1024}
LARGE_TILE = 4096


class Plan(NamedTuple):
    """The static arguments of a reduction."""

    exchange: str
    tile: int
    axes: tuple[str, ...]  # empty on one device
    devices: int

    def split(self, function: Callable) -> Callable:
        """`function` over each device's own rows."""
        if not self.axes:
            return function
        rows = PartitionSpec(self.axes)
        return jax.shard_map(function, in_specs=rows, out_specs=rows, check_vma=False)

    def index(self) -> int | jax.Array:  # type: ignore[override]  # not tuple.index
        """The index of this device."""
        return lax.axis_index(self.axes) if self.axes else 0

    def scatter(self, x: jax.Array) -> jax.Array:
        """This device's part of the sum over devices of `x[devices * n, ...]`."""
        return lax.psum_scatter(x, self.axes, tiled=True)

    def own(self, x: jax.Array) -> jax.Array:
        """This device's part of `x[devices * n, ...]`."""
        n = len(x) // self.devices
        return lax.dynamic_slice_in_dim(x, self.index() * n, n)


def planned(b: int, exchange: str, tile: int | None) -> Plan:
    """Return the plan for b samples on the mesh in scope.

    Raises ValueError for b = 1, a b that the devices cannot share equally, a tile that
    is not positive, an unknown exchange, and inside a `shard_map`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = max(mesh.size, 1)
    if mesh.manual_axes:
        manual = ", ".join(mesh.manual_axes)
        raise ValueError(f"a shard_map over {manual} hides rows; call the loss outside")
    if b < 2:
        raise ValueError(f"negatives are other samples: b = {b} has none; use b >= 2")
    if tile is not None and tile < 1:
        raise ValueError(f"tile is {tile}; use 1 row or more, or None")
    if b % devices:
        raise ValueError(f"b = {b} samples do not divide among {devices} devices")
    if exchange not in ("gather", "ring"):
        raise ValueError(f'exchange must be "gather" or "ring", not {exchange!r}')
    tile = tile or TILE.get(jax.default_backend(), LARGE_TILE)
    return Plan(exchange, tile, mesh.axis_names if devices > 1 else (), devices)


class Part(NamedTuple):
    """Consecutive rows."""

    first: jax.Array
    size: int

    def of(self, x: jax.Array) -> jax.Array:
        """These rows of `x[rows, ...]`."""
        return lax.dynamic_slice_in_dim(x, self.first, self.size)

    def put(self, x: jax.Array, part: jax.Array) -> jax.Array:
        """`x[rows, ...]` with these rows replaced."""
        return lax.dynamic_update_slice_in_dim(x, part, self.first, 0)


class Meeting(NamedTuple):
    """A tile of rows and one or more tiles of columns."""

    rows: Part
    columns: Part
    met: jax.Array  # bool[columns]: the column counts
    both: jax.Array  # bool[columns]: the meeting adds to the sums over columns too


class Sums(NamedTuple):
    """A kind of sums: a tree of arrays `[rows, ...]`."""

    empty: Any  # the number that starts each array
    join: Callable[[Any, Any], Any]  # two parts -> their sum
    collect: Callable[[Any], Any]  # each device's sums of all rows -> sums of its own


def meet_all(
    plan: Plan,
    symmetric: bool,
    meet: Callable[..., tuple[Any, Any]],
    own: Any,
    columns: Any,
    theirs: Any,
    sums: Sums,
) -> tuple[Any, Any]:
    """Let each tile of this device's rows meet every tile of columns, or half of them.

    `meet(own, theirs, block, meeting) -> own, theirs` adds a meeting of rows with
    columns of `block` to the sums over rows (`own`) and columns (`theirs`, of the kind
    `sums`, shaped as this device's `columns`). Returns both sums for its rows.
    """
    rows, size = _tiles(plan, own)
    here, width = _tiles(plan, columns)
    # If each device has few rows, they meet several tiles at a time.
    several = max(1, plan.tile**2 // (size * width))

    def sweep(
        own: Any, theirs: Any, block: Any, first: Any, tiles: int, count: int, both: Any
    ) -> tuple[Any, Any]:
        wide = -(-count // -(-count // several))  # tiles at a time, constant
        spare = (wide - 1) * width  # the first columns follow the last
        if spare:
            block = jax.tree.map(lambda x: jnp.concatenate([x, x[:spare]]), block)
            theirs = jax.tree.map(
                lambda x, e: jnp.concatenate([x, jnp.full_like(x[:spare], e)]),
                theirs,
                sums.empty,
            )

        def at(carry: tuple, _: None) -> tuple[tuple, None]:
            step, own, theirs = carry
            k, i = jnp.divmod(step, rows)
            k = k * wide
            of_columns = k + jnp.arange(wide * width) // width
            met = of_columns < count
            across = Part((first + i + k) % tiles * width, wide * width)
            meeting = Meeting(Part(i * size, size), across, met, met & both(of_columns))
            return (step + 1, *meet(own, theirs, block, meeting)), None

        # Tied to the data: in an outer loop JAX would compute what depends only on the
        # step before that loop, for all steps at once, and keep it.
        block, start = lax.optimization_barrier((block, jnp.int32(0)))
        steps = -(-count // wide) * rows
        _, own, theirs = lax.scan(at, (start, own, theirs), length=steps)[0]
        if spare:
            head = jax.tree.map(lambda x: x[:spare], theirs)
            tail = jax.tree.map(lambda x: x[tiles * width :], theirs)
            head = sums.join(head, tail)
            theirs = jax.tree.map(
                lambda x, head: x[: tiles * width].at[:spare].set(head), theirs, head
            )
        return own, theirs

    def round_of(tiles: int) -> tuple[int, int, Callable[[jax.Array], Any]]:
        """Tiles of columns, the number a row tile meets, which of them serve both."""
        if not symmetric:
            return tiles, tiles, lambda k: True
        return tiles, tiles // 2 + 1, lambda k: (k > 0) & (2 * k != tiles)

    if plan.devices == 1:
        return sweep(own, theirs, columns, 0, *round_of(here))
    if plan.exchange == "gather":
        block = lax.all_gather(columns, plan.axes, tiled=True)
        theirs = jax.tree.map(lambda x: jnp.concatenate([x] * plan.devices), theirs)
        first = plan.index() * here
        own, theirs = sweep(own, theirs, block, first, *round_of(plan.devices * here))
        return own, sums.collect(theirs)

    def send(tree: Any, places: int) -> Any:
        n = plan.devices
        to = [(source, (source + places) % n) for source in range(n)]
        return jax.tree.map(lambda x: lax.ppermute(x, plan.axes, to), tree)

    def hop(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
        own, block, theirs = carry
        block, theirs = send((block, theirs), -1)
        both = 2 * number != plan.devices if symmetric else True
        own, theirs = sweep(own, theirs, block, 0, here, here, lambda k: both)
        return (own, block, theirs), None

    own, theirs = sweep(own, theirs, columns, 0, *round_of(here))
    hops = plan.devices // 2 if symmetric else plan.devices - 1
    carry = (own, columns, theirs)
    (own, _, theirs), _ = lax.scan(hop, carry, 1 + jnp.arange(hops))
    return own, send(theirs, hops)


def padded(plan: Plan, x: jax.Array, padding: int = 0) -> jax.Array:
    """The rows of `x[b, m, ...]`, padded so that tiles have equal size."""
    x = x.reshape(-1, *x.shape[2:])
    tiles, size = _tiles(plan, x)
    pad = [(0, tiles * size - len(x))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad, constant_values=padding)


def unpadded(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `padded`: rows to `shape`, [b, m, ...]."""
    return x[: shape[0] * shape[1]].reshape(shape)


def _tiles(plan: Plan, tree: Any) -> tuple[int, int]:
    """The number of tiles of a tree's rows, and the rows of each.

    The number is odd: of an even one, tiles half way round would meet twice.
    """
    rows = len(jax.tree.leaves(tree)[0])
    tiles = -(-rows // plan.tile) | 1
    return tiles, -(-rows // tiles)
