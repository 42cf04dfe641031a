"""Layers whose initial values are torch's default, as those of the official code.

Kernels and biases are uniform in +-1 / sqrt(inputs).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers


def torch_uniform(inputs: int) -> Callable:
    """torch's default initialiser of kernels and biases: `draw(key, shape, dtype)`."""
    bound = inputs**-0.5

    def draw(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def conv(
    inputs: int,
    features: int,
    size: int,
    stride: int = 1,
    padding: int = 0,
    deviation: float | None = None,
    **options,
) -> nnx.Conv:
    """A square convolution; `deviation` draws its kernel from a normal instead."""
    uniform = torch_uniform(inputs * size * size)
    return nnx.Conv(
        inputs,
        features,
        (size, size),
        strides=stride,
        padding=padding,
        kernel_init=uniform if deviation is None else initializers.normal(deviation),
        bias_init=uniform,
        **options,
    )


def linear(inputs: int, features: int, **options) -> nnx.Linear:
    """A linear layer."""
    uniform = torch_uniform(inputs)
    return nnx.Linear(
        inputs, features, kernel_init=uniform, bias_init=uniform, **options
    )


def flat(x: jax.Array) -> jax.Array:
    """Flatten `x[n, ...]` to `[n, d]`."""
    return x.reshape(len(x), -1)


def cast(dtype, *arrays) -> list[jax.Array]:
    """Convert arrays to the type that a layer computes in."""
    return [jnp.asarray(a, dtype) for a in arrays]


def wide(x: jax.Array) -> jax.Array:
    """Convert to float32 or better, as losses need it whatever layers compute in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
