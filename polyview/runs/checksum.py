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
    if all(_in_host_memory(array) for array in arrays.values()):  # compiles nothing
        sums = {name: _sums_on_host(np.asarray(a)) for name, a in arrays.items()}
    else:
        sums = jax.device_get(_sums_on_devices(arrays))
    return {
        name: [list(a.shape), str(a.dtype), _text(*map(int, sums[name]))]
        for name, a in arrays.items()
    }


def _text(total: int, weighted: int) -> str:
    """Return the checksum from the sum of the words and that of word times position."""
    # Both factors, 2 position + 1 and 0x9E3779B8 position + 0x85EBCA6B, are odd.
    sums = 2 * weighted + total, 0x9E3779B8 * weighted + 0x85EBCA6B * total
    return "".join(f"{one % 2**32:08x}" for one in sums)


def _in_host_memory(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return True
    cpu = all(device.platform == "cpu" for device in array.sharding.device_set)
    return cpu and array.is_fully_addressable


def _sums_on_host(array: np.ndarray) -> tuple[int, int]:
    bits = min(8 * array.dtype.itemsize, 32)
    words = np.ascontiguousarray(array).reshape(-1).view(f"uint{bits}")
    total = weighted = 0
    for start in range(0, len(words), 2**20):  # a part at a time, to need little memory
        part = words[start : start + 2**20].astype(np.uint32)
        position = np.arange(len(part), dtype=np.uint32) + np.uint32(start % 2**32)
        total += int(part.sum(dtype=np.uint64))
        weighted += int(np.dot(part, position))
    return total, weighted


@jax.jit
def _sums_on_devices(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(_sums_of_words, arrays)


def _sums_of_words(array: jax.Array) -> jax.Array:
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
    return jnp.stack([jnp.sum(w, dtype=jnp.uint32) for w in (words, words * position)])
