"""Keys and values of positions that a body has read: a plain pytree.

It is passed in and out of a compiled function, and may be donated. It is not a variable
of the module, which would save it with each checkpoint.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Cache(NamedTuple):
    """What the rows of a batch have read.

    k, v: [layers, b, length, kv_heads, head]; lengths: int32[b], the positions that are
    filled. What lies beyond them is never read.
    """

    k: jax.Array
    v: jax.Array
    lengths: jax.Array


def empty(shape: tuple[int, int, int, int, int], dtype: DTypeLike) -> Cache:
    """Return a cache of the shape [layers, b, length, kv_heads, head], not filled."""
    # Two arrays: one buffer cannot be donated twice.
    k, v = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
    return Cache(k, v, jnp.zeros(shape[1], jnp.int32))


def reset(cache: Cache, rows: jax.Array) -> Cache:
    """Forget what the rows read where `rows: bool[b]` is True; the others go on."""
    return cache._replace(lengths=jnp.where(rows, 0, cache.lengths))
