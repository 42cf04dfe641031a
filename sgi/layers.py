"""Layers with torch's default initial values, as in the official code.

Kernels and biases are uniform in +-1 / sqrt(inputs).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from polyview.nn.conv import Conv


def torch_uniform(inputs: int) -> Callable[..., jax.Array]:
    """Return torch's default initialiser for a fan-in: `draw(key, shape, dtype)`."""
    bound = inputs**-0.5

    def draw(
        key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def conv(
    inputs: int,
    features: int,
    size: int,
    stride: int = 1,
    padding: int = 0,
    deviation: float | None = None,
    **options: Any,
) -> Conv:
    """Return a square convolution; with `deviation`, its kernel is normal instead."""
    uniform = torch_uniform(inputs * size * size)
    return Conv(
        inputs,
        features,
        (size, size),
        strides=stride,
        padding=padding,
        kernel_init=uniform if deviation is None else initializers.normal(deviation),
        bias_init=uniform,
        **options,
    )


def linear(inputs: int, features: int, **options: Any) -> nnx.Linear:
    """Return a linear layer."""
    uniform = torch_uniform(inputs)
    return nnx.Linear(
        inputs, features, kernel_init=uniform, bias_init=uniform, **options
    )


def flat(x: jax.Array) -> jax.Array:
    """Flatten `x[n, ...]` to `[n, d]`."""
    return x.reshape(len(x), -1)


def cast(dtype: DTypeLike, *arrays: ArrayLike) -> list[jax.Array]:
    """Convert arrays to the type that a layer computes in."""
    return [jnp.asarray(a, dtype) for a in arrays]


def wide(x: jax.Array) -> jax.Array:
    """Convert to float32 or better, which losses need whatever the layers' type."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
