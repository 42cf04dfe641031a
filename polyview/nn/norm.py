"""Batch normalisation as in torch, with statistics in the type of the parameters.

    y = scale * (x - mean) / sqrt(var + epsilon) + bias

In training, mean and (biased) variance are those of the whole batch, of all devices if
`jax.jit` shards its rows. The running statistics follow torch with momentum 0.1 and the
unbiased variance: running = 0.9 running + 0.1 batch. `nnx.BatchNorm` differs: it keeps
the biased variance, in bfloat16 it rounds the running statistics before using them, and
in float64 its statistics change type after the first step.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class BatchNorm(nnx.Module):
    """Normalise the last axis by statistics over the others (Ioffe, Szegedy 2015).

    `x[..., features]` gives the same shape in `dtype`; statistics and parameters have
    `param_dtype`. `scale` is the initial scale; without `bias` nothing is added.
    """

    def __init__(
        self,
        features: int,
        *,
        scale: float = 1.0,
        bias: bool = True,
        epsilon: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del rngs  # the initial values are constants
        self.dtype, self.epsilon = dtype, epsilon
        self.scale = nnx.Param(jnp.full(features, scale, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype)) if bias else None
        self.mean = nnx.BatchStat(jnp.zeros(features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(features, param_dtype))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if train:
            exact = x.astype(self.mean.dtype)
            axes = tuple(range(x.ndim - 1))
            mean = exact.mean(axes)
            # One pass over x, as in flax. Rounding can make the difference slightly
            # negative; precision suffers if the mean is a thousand deviations or more.
            var = jnp.maximum((exact * exact).mean(axes) - mean * mean, 0)
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(mean)
            self.var[...] = 0.9 * self.var[...] + 0.1 * jax.lax.stop_gradient(unbiased)
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        shift = -mean * scale
        if self.bias is not None:
            shift += self.bias[...]
        last = (1,) * (x.ndim - 1) + (-1,)
        return (x * scale.reshape(last) + shift.reshape(last)).astype(self.dtype)
