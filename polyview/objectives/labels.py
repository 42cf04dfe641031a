"""Classes of a batch, from the labels of its samples, in memory linear in the batch."""

import jax
import jax.numpy as jnp
from jax.ops import segment_sum


def classes(labels: jax.Array, b: int) -> jax.Array:
    """Number the classes of b samples: int[b] in [0, b), the same for equal labels.

    labels: int[b]. One below 0 is unknown: that sample is a class of its own. Raises
    ValueError for another shape or type.
    """
    labels = jnp.asarray(labels)
    if labels.shape != (b,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        found = f"{labels.dtype}[{', '.join(map(str, labels.shape))}]"
        raise ValueError(f"labels are {found}; give int[{b}], one class a sample")
    known = jnp.where(labels < 0, -1 - jnp.arange(b), labels)
    return jnp.unique(known, size=b, return_inverse=True)[1]


def views_of_class(labels: jax.Array, present: jax.Array) -> jax.Array:
    """The number of views that are `present: bool[b, m]` in a sample's class: [b, 1]"""
    return _of_class(present.sum(1, keepdims=True), labels)


def mean_of_class(z: jax.Array, labels: jax.Array, present: jax.Array) -> jax.Array:
    """Mean over the other views of a sample's class: float[b, m, d] -> float[b, m, d].

    present: bool[b, m]; missing views must be zeros in z. Zero if there is no other.
    """
    others = jnp.maximum(views_of_class(labels, present) - present, 1)
    total = _of_class(z.sum(1), labels)[:, None]
    return (total - z) / others.astype(z.dtype)[..., None]


def _of_class(x: jax.Array, labels: jax.Array) -> jax.Array:
    """The sum of `x[b, n]` over each sample's class."""
    own = classes(labels, len(x))
    return segment_sum(x, own, len(x))[own]
