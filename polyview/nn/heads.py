"""Projectors: what stands between a representation and a loss.

The loss reads z = g(h), probes read h: the projector may throw away what the loss asks
it to forget, and the representation keeps it (Chen et al. 2020, section 4.2).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from polyview.nn.norm import BatchNorm


class Projector(nnx.Module):
    """SimCLR's head: Linear, BatchNorm, ReLU for each hidden width, then Linear.

    `h[n, in_features] -> z[n, out]`. As in google-research/simclr no linear layer under
    a BatchNorm has a bias, and the last BatchNorm has a scale but no bias. Without
    `last_norm` the last linear layer has a bias instead (Chen et al. 2020). With
    `norm="none"` there is no BatchNorm at all and each linear layer has a bias:
    z = W2 relu(W1 h + b1) + b2 (Chen et al. 2020, section 2).
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: Sequence[int] = (2048,),
        out: int = 128,
        norm: str = "batch",
        last_norm: bool = True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        if norm not in ("batch", "none"):
            raise ValueError(f"norm={norm!r} is neither 'batch' nor 'none'")
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        normed = norm == "batch"
        last_norm = last_norm and normed
        linear, norms = [], []
        for features in hidden:
            linear.append(
                _linear(in_features, features, use_bias=not normed, **options)
            )
            norms.append(BatchNorm(features, **options) if normed else None)
            in_features = features
        self.linear, self.norm = nnx.List(linear), nnx.List(norms)
        self.last = _linear(in_features, out, use_bias=not last_norm, **options)
        self.last_norm = BatchNorm(out, bias=False, **options) if last_norm else None

    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        for linear, norm in zip(self.linear, self.norm, strict=True):
            h = linear(h)
            h = jax.nn.relu(h if norm is None else norm(h, train=train))
        z = self.last(h)
        return z if self.last_norm is None else self.last_norm(z, train=train)


class Identity(nnx.Module):
    """No projector: z = h."""

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        del in_features, rngs

    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        return h


class Linear(nnx.Module):
    """A linear classifier: `h[n, in_features] -> logits[n, out]`, from zero."""

    def __init__(
        self,
        in_features: int,
        *,
        out: int,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.linear = nnx.Linear(
            in_features,
            out,
            kernel_init=jax.nn.initializers.zeros,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        return self.linear(h)


def _linear(in_features: int, out: int, **options) -> nnx.Linear:
    he = jax.nn.initializers.he_normal()
    return nnx.Linear(in_features, out, kernel_init=he, **options)
