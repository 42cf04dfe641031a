"""Projectors, linear heads and critics: modules between a representation and a loss.

The loss reads z = g(h), probes read h. The projector may discard what the loss asks it
to forget, and the representation keeps it (Chen et al. 2020, section 4.2).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn.norm import BatchNorm


class Projector(nnx.Module):
    """SimCLR's head: Linear, BatchNorm, ReLU for each hidden width, then Linear.

    `h[n, in_features] -> z[n, out]`. As in google-research/simclr, linear layers before
    a BatchNorm have no bias, and the last BatchNorm has a scale but no bias. Without
    `last_norm` the last linear layer has a bias instead (Chen et al. 2020). With
    `norm="none"` there is no BatchNorm and each linear layer has a bias:
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
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, hidden=hidden, out=out)
        if norm not in ("batch", "none"):
            raise ValueError(f"norm={norm!r} is neither 'batch' nor 'none'")
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        normed = norm == "batch"
        last_norm = last_norm and normed
        dense, norms = [], []
        for features in hidden:
            dense.append(_linear(in_features, features, use_bias=not normed, **options))
            norms.append(BatchNorm(features, **options) if normed else None)
            in_features = features
        self.linear, self.norm = nnx.List(dense), nnx.List(norms)
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
    """A linear classifier, zero at first: `h[n, in_features] -> logits[n, out]`."""

    def __init__(
        self,
        in_features: int,
        *,
        out: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, out=out)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        zeros = jax.nn.initializers.zeros
        self.linear = nnx.Linear(in_features, out, kernel_init=zeros, **options)

    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        return self.linear(h)


class MutualInformationHead(nnx.Module):
    """Head before a critic: `x[..., in_features] -> [..., out]`, position by position.

    LayerNorm(W2 relu(W1 x) + W x), the head of Deep InfoMax (Hjelm et al. 2019) without
    its BatchNorm, whose statistics would include missing views. As there, W starts near
    the identity if out >= in_features.
    """

    def __init__(
        self,
        in_features: int,
        *,
        out: int,
        hidden: int | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        check_range(1, out=out, hidden=hidden)
        hidden = out if hidden is None else hidden
        self.up = _linear(in_features, hidden, **options)
        self.down = _linear(hidden, out, **options)
        start = {"kernel_init": _near_identity} if out >= in_features else {}
        self.shortcut = _linear(in_features, out, use_bias=False, **options | start)
        self.norm = nnx.LayerNorm(out, **options)

    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        del train
        return self.norm(self.down(jax.nn.relu(self.up(x))) + self.shortcut(x))


class ConcatenatedCritic(nnx.Module):
    """Critic: an MLP on both vectors, w2 . relu(W1 [anchor; candidate] + b1) + b2.

    `anchors[a, q, d], candidates[c, p, d] -> scores[a, c, p, q]`; memory grows with
    a c p q hidden.
    """

    def __init__(
        self,
        *,
        features: int,
        hidden: int = 128,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        check_range(1, features=features, hidden=hidden)
        self.anchor = _linear(features, hidden, **options)
        self.candidate = _linear(features, hidden, use_bias=False, **options)
        self.last = _linear(hidden, 1, **options)

    def __call__(self, anchors: jax.Array, candidates: jax.Array) -> jax.Array:
        ours = self.anchor(anchors)[:, None, None]
        theirs = self.candidate(candidates)[None, :, :, None]
        scores = self.last(jax.nn.relu(ours + theirs))[..., 0]
        return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def _near_identity(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    noise = jax.random.uniform(key, shape, dtype, -0.01, 0.01)
    return jnp.eye(shape[0], shape[1], dtype=dtype) + noise


def _linear(in_features: int, out: int, **options: Any) -> nnx.Linear:
    he = jax.nn.initializers.he_normal()
    return nnx.Linear(in_features, out, **{"kernel_init": he} | options)
