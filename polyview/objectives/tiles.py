"""Every row meets every column, a tile at a time, on one device or on a mesh.

Arrays hold rows, `[rows, ...]`. Columns are rows too, of this device and of all others,
and what is summed over rows and over columns is the caller's affair: here it is decided
which tiles of them meet, in which order, and where the columns are.

Where scores are symmetric a meeting serves both sides. Of C tiles, row tile I then
meets the column tiles I, I + 1, ..., I + C/2 (mod C): half of them, as many for each I,
so that devices share the work evenly. The first, and for even C the last, give their
columns nothing, since the same rows meet them from the other side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec


class Plan(NamedTuple):
    """What is known when a program is traced."""

    exchange: str
    tile: int
    axes: tuple[str, ...]  # none where there is one device
    devices: int

    def split(self, function: Callable) -> Callable:
        """`function`, of each device's own rows."""
        if not self.axes:
            return function
        rows = PartitionSpec(self.axes)
        return jax.shard_map(function, in_specs=rows, out_specs=rows, check_vma=False)

    def index(self):
        """Which of the devices this is."""
        return lax.axis_index(self.axes) if self.axes else 0

    def scatter(self, x):
        """The sum over devices of `x[devices * n, ...]`, this device's part of it."""
        return lax.psum_scatter(x, self.axes, tiled=True)

    def own(self, x):
        """This device's part of `x[devices * n, ...]`."""
        n = len(x) // self.devices
        return lax.dynamic_slice_in_dim(x, self.index() * n, n)


class Part(NamedTuple):
    """Some rows that follow one another."""

    first: jax.Array
    size: int

    def of(self, x):
        """Their part of `x[rows, ...]`."""
        return lax.dynamic_slice_in_dim(x, self.first, self.size)

    def put(self, x, part):
        """`x[rows, ...]` with another part in that place."""
        return lax.dynamic_update_slice_in_dim(x, part, self.first, 0)


class Meeting(NamedTuple):
    """A tile of rows and a tile of columns, or several at once."""

    rows: Part
    columns: Part
    met: jax.Array  # bool[columns]: whether a column counts at all
    both: jax.Array  # bool[columns]: whether it takes its own share from this meeting


class Sums(NamedTuple):
    """What to know of a kind of sums over rows, each a tree of arrays `[rows, ...]`."""

    empty: Any  # a number for each array
    join: Callable  # two parts -> their sum
    collect: Callable  # sums over all rows, on each device -> those of its own rows


def meet_all(plan, symmetric, meet, own, columns, theirs, sums):
    """Let each tile of this device's rows meet every tile of columns, or its half.

    `meet(own, theirs, block, meeting) -> own, theirs` adds what the rows and those
    columns of `block` make of each other to the sums over rows (`own`) and to the sums
    over columns, which are described by `sums`. `theirs` is shaped for `columns`, the
    columns of this device. Returns both sums, complete, for this device's rows.
    """
    rows, size = _tiles(plan, own)
    here, width = _tiles(plan, columns)
    # Few rows, as each of many devices has, meet several tiles at a time.
    several = max(1, plan.tile**2 // (size * width))

    def sweep(own, theirs, block, first, tiles, count, both):
        wide = -(-count // -(-count // several))  # the same in each step
        spare = (wide - 1) * width  # columns go round, so the first follow the last
        if spare:
            block = jax.tree.map(lambda x: jnp.concatenate([x, x[:spare]]), block)
            theirs = jax.tree.map(
                lambda x, e: jnp.concatenate([x, jnp.full_like(x[:spare], e)]),
                theirs,
                sums.empty,
            )

        def at(carry, _):
            step, own, theirs = carry
            k, i = jnp.divmod(step, rows)
            k = k * wide
            of_columns = k + jnp.arange(wide * width) // width
            met = of_columns < count
            place = (first + i + k) % tiles
            meeting = Meeting(
                Part(i * size, size),
                Part(place * width, wide * width),
                met,
                met & both(of_columns),
            )
            return (step + 1, *meet(own, theirs, block, meeting)), None

        # Tied to the data: in a loop around this one, JAX would compute what depends on
        # the step alone before it, for all steps at once, and keep it.
        block, start = lax.optimization_barrier((block, jnp.int32(0)))
        steps = -(-count // wide) * rows
        _, own, theirs = lax.scan(at, (start, own, theirs), length=steps)[0]
        if spare:
            head = jax.tree.map(lambda x: x[:spare], theirs)
            tail = jax.tree.map(lambda x: x[tiles * width :], theirs)
            theirs = jax.tree.map(
                lambda x, head: x[: tiles * width].at[:spare].set(head),
                theirs,
                sums.join(head, tail),
            )
        return own, theirs

    def round_of(tiles):
        """Tiles of columns, how many a row tile meets, and which serve both sides."""
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

    def send(tree, places):
        n = plan.devices
        to = [(source, (source + places) % n) for source in range(n)]
        return jax.tree.map(lambda x: lax.ppermute(x, plan.axes, to), tree)

    def hop(carry, number):
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


def padded(plan, x, padding=0):
    """The rows of `x[b, m, ...]`, and of padding, so that tiles are of equal size."""
    x = x.reshape(-1, *x.shape[2:])
    tiles, size = _tiles(plan, x)
    pad = [(0, tiles * size - len(x))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad, constant_values=padding)


def unpadded(x, shape):
    """What `padded` made, as it was."""
    return x[: shape[0] * shape[1]].reshape(shape)


def _tiles(plan, tree) -> tuple[int, int]:
    """How many tiles the rows of a tree make, and of how many rows."""
    rows = len(jax.tree.leaves(tree)[0])
    tiles = -(-rows // plan.tile)
    return tiles, -(-rows // tiles)
