"""Arrays by name, and checksums of arrays that do not depend on their sharding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flatten(tree: Any) -> dict[str, Any]:
    """Name each leaf of a state by its path, joined with dots."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def checksums(arrays: dict[str, jax.Array]) -> dict[str, list]:
    """Return [shape, dtype, checksum] of each array, the same on any sharding.

    The checksum is two sums modulo 2^32 of the array's 32-bit words, each times an odd
    number that depends on its position. A sum of integers does not depend on their
    order. An odd factor loses no bit, so any single flipped bit changes both sums.
    """
    sums = jax.device_get(_sums(arrays))
    return {
        name: [
            list(a.shape),
            str(a.dtype),
            "".join(f"{int(s):08x}" for s in sums[name]),
        ]
        for name, a in arrays.items()
    }


@jax.jit
def _sums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(_sum_of_words, arrays)


def _sum_of_words(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = 8 * array.dtype.itemsize
    unsigned = jnp.dtype(f"uint{min(bits, 32)}")
    words = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    # Positions come from one iota per axis, so that a sharded array stays sharded.
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position * np.uint32(size) + iota
    factors = (
        2 * position + 1,
        position * np.uint32(0x9E3779B8) + np.uint32(0x85EBCA6B),
    )
    return jnp.stack([jnp.sum(words * f, dtype=jnp.uint32) for f in factors])
