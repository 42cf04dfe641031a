"""Computations of the contrastive losses within a sample: embeddings and positives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polyview.errors import TINY, OutOfRange, check_range
from polyview.objectives.labels import views_of_class


def check_positive(**numbers: Any) -> None:
    """Raise OutOfRange unless each is one number above 0; a traced one is not known."""
    for name, number in numbers.items():
        if np.ndim(number):
            raise OutOfRange(f"{name} has shape {np.shape(number)}: use one number")
        known = not isinstance(number, jax.core.Tracer)
        if known and isinstance(number, jax.Array | np.ndarray | np.generic):
            number = number.item()
        check_range(TINY, **{name: number})


def embeddings(
    z: jax.Array, normalize: bool = True, present: jax.Array | None = None
) -> jax.Array:
    """Return z: float[b, m, d] in float32 or better, l2-normalised if `normalize`.

    Views that are not `present: bool[b, m]` become zeros, even if NaN. Raises
    ValueError if b < 2 or m < 2.
    """
    b, m, _ = z.shape
    if b < 2 or m < 2:
        raise ValueError(f"z must be [b >= 2 samples, m >= 2 views, d], not {z.shape}")
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    if present is not None:
        z = jnp.where(present[..., None], z, 0)
    return l2_normalize(z) if normalize else z


def l2_normalize(x: jax.Array) -> jax.Array:
    """Normalise the last axis to unit length; the gradient at zero is finite."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def mean_of_others(z: jax.Array, present: jax.Array | None = None) -> jax.Array:
    """Mean over the other views of a sample: float[b, m, d] -> float[b, m, d].

    With `present: bool[b, m]`, over the present ones, zero if there are none. Missing
    views must be zeros in z.
    """
    others: int | jax.Array = z.shape[1] - 1
    if present is not None:
        others = present.sum(1, keepdims=True) - present
        others = jnp.maximum(others, 1).astype(z.dtype)[..., None]
    return (z.sum(axis=1, keepdims=True) - z) / others


def anchors(present: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """Views that can be anchors, bool[b, m]: present, and not alone in their sample.

    present: bool[b, m]. labels: as `supcon`'s; then, not alone in their class. Losses
    with missing views average over the anchors: `losses.sum() / anchors(present).sum()`
    """
    if labels is not None:
        return present & (views_of_class(labels, present) > 1)
    return present & (present.sum(1, keepdims=True) > 1)


def positive_scores(z: jax.Array, temperature: float) -> jax.Array:
    """Scores of the pairs of views (a, c) of a sample, c != a: float[b, m, m - 1]."""
    return off_diagonal(jnp.einsum("bmd,bnd->bmn", z, z)) / temperature


def both_present(z: jax.Array, present: jax.Array | None) -> jax.Array:
    """Whether views a and c != a of a sample are present: bool[b, m, m - 1]."""
    mask = jnp.ones(z.shape[:2], bool) if present is None else present
    return off_diagonal(mask[:, :, None] & mask[:, None, :])


def off_diagonal(pairs: jax.Array) -> jax.Array:
    """The entries [b, a, c] with c != a: [b, m, m] -> [b, m, m - 1]."""
    b, m, _ = pairs.shape
    view, other = np.nonzero(~np.eye(m, dtype=bool))
    return pairs[:, view, other].reshape(b, m, m - 1)
