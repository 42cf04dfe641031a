"""Vision transformers (Dosovitskiy et al. 2021), pre-norm, without a classifier.

x = patches W + position;   x += attention(norm(x));   x += mlp(norm(x));   norm(x)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn import rematerialisation, stochastic_depth

_norm = partial(nnx.LayerNorm, epsilon=1e-6)
_linear = partial(nnx.Linear, kernel_init=jax.nn.initializers.xavier_uniform())


class Block(nnx.Module):
    """Multi-head self-attention, then a GELU MLP of four times the width."""

    def __init__(self, width: int, heads: int, **options: Any):
        self.heads = heads
        self.norm1 = _norm(width, **options)
        self.qkv = _linear(width, 3 * width, **options)
        self.out = _linear(width, width, **options)
        self.norm2 = _norm(width, **options)
        self.up = _linear(width, 4 * width, **options)
        self.down = _linear(4 * width, width, **options)

    def __call__(
        self,
        x: jax.Array,
        real: jax.Array | None = None,
        factors: jax.Array | None = None,
    ) -> jax.Array:
        """`x[n, p, width]` -> the same shape; `real: bool[n, p]` as in `attention`.

        factors: float[2, n], of attention and MLP (`polyview.nn.stochastic_depth`).
        """
        n, p, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, p, 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        mixed = attention(query, key, value, real)
        mixed = self.out(mixed.reshape(n, p, width))
        if factors is not None:
            mixed = stochastic_depth.scaled(mixed, factors[0])
        x = x + mixed
        y = self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=False))
        if factors is not None:
            y = stochastic_depth.scaled(y, factors[1])
        return x + y


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, real: jax.Array | None = None
) -> jax.Array:
    """softmax(q k / sqrt(features)) v of `[n, p, heads, features]`, in that shape.

    Attends only to positions that are `real: bool[n, p]`, or to all if none is. The
    weights are in float32 or better. (`jax.nn.dot_product_attention` rounds float64 to
    float32, so a step would depend on the number of devices.)
    """
    scores = jnp.einsum(
        "nqhd,nkhd->nhqk",
        query,
        key,
        # In bfloat16 the backward products then have bfloat16 factors too.
        precision="BF16_BF16_F32" if query.dtype == jnp.bfloat16 else None,
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )
    if real is not None:
        real = real | ~real.any(1, keepdims=True)
        scores = jnp.where(real[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5)
    return jnp.einsum("nhqk,nkhd->nqhd", weights.astype(value.dtype), value)


class ViT(nnx.Module):
    """`x[n, image, image, c] -> (h[n, width], local[n, p, width])`.

    `local` is the patch tokens after the last norm. `pool` is "cls", the class token
    (Dosovitskiy et al. 2021), or "mean", the mean of the patch tokens, without a class
    token (Beyer et al. 2022). `position` is "learned", or "sincos": fixed sines and
    cosines of both coordinates (Chen, Xie, He 2021). `remat` is "none", "blocks" or
    "dots": see `polyview.nn.rematerialisation`. `drop_path` is the last block's rate,
    see `polyview.nn.stochastic_depth`. Raises ValueError for other values, for an
    `image` that is not a multiple of `patch`, and for images of another size.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int = 16,
        image: int = 224,
        pool: str = "cls",
        position: str = "learned",
        in_channels: int = 3,
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, width=width, heads=heads, patch=patch, image=image)
        check_range(0, 1000, depth=depth)
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool={pool!r} is neither 'cls' nor 'mean'")
        if position not in ("learned", "sincos"):
            raise ValueError(f"position={position!r} is neither 'learned' nor 'sincos'")
        if image % patch:
            raise ValueError(f"image={image} is not a multiple of patch={patch}")
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.features, self.in_channels = width, in_channels
        self.patch, self.side = patch, image // patch
        self.dtype, self.param_dtype = dtype, param_dtype
        self.remat = rematerialisation.check(remat)
        self.drop_path = stochastic_depth.check(drop_path)
        self.embed = _linear(patch * patch * in_channels, width, **options)
        cls = pool == "cls"
        self.cls = nnx.Param(jnp.zeros((1, 1, width), param_dtype)) if cls else None
        learned = position == "learned"
        shape = (1, self.side**2 + cls, width)
        noise = jax.random.truncated_normal(rngs.params(), -2, 2, shape, param_dtype)
        self.position = nnx.Param(0.02 * noise) if learned else None
        self.blocks = nnx.List([Block(width, heads, **options) for _ in range(depth)])
        self.norm = _norm(width, **options)

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        n, side, patch = len(x), self.side, self.patch
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"images are float[n, h, w, c], not {x.dtype}{x.shape}")
        if x.shape[1:3] != (side * patch, side * patch):
            raise ValueError(f"images are {x.shape[1:3]}, not {side * patch} a side")
        patches = "n (i h) (j w) c -> n (i j) (h w c)"
        x = self.embed(rearrange(x, patches, h=patch, w=patch))
        if self.position is None:  # the class token has no position
            x += sincos(side, self.features).astype(x.dtype)
        if self.cls is not None:
            cls = jnp.broadcast_to(self.cls[...], (n, 1, self.features))
            x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
        if self.position is not None:
            x += self.position[...].astype(x.dtype)
        factors: Sequence = [None] * len(self.blocks)
        if train and self.drop_path > 0:
            shape = len(self.blocks), 2
            factors = stochastic_depth.factors(self.drop_path, key, shape)
        call = rematerialisation.calls(self.remat if train else "none")
        for block, of_block in zip(self.blocks, factors, strict=True):
            x = call(block, x, None, of_block)
        x = self.norm(x)
        if self.cls is not None:
            return x[:, 0].astype(self.param_dtype), x[:, 1:]
        return x.astype(self.param_dtype).mean(1), x


def sincos(side: int, width: int) -> jax.Array:
    """Fixed 2-D positions `[1, side * side, width]`: a quarter each of sin x, cos x,
    sin y, cos y at `width / 4` wavelengths from 2 pi to 20,000 pi (MoCo v3). Raises
    ValueError if 4 does not divide `width`."""
    if width % 4:
        raise ValueError(f"sincos positions need a width divisible by 4, not {width}")
    frequency = 10_000.0 ** -(jnp.arange(width // 4) / (width // 4))
    y, x = jnp.divmod(jnp.arange(side * side), side)
    x, y = x[:, None] * frequency[None], y[:, None] * frequency[None]
    return jnp.concatenate([f(a) for a in (x, y) for f in (jnp.sin, jnp.cos)], 1)[None]


def vit_s(**options: Any) -> ViT:
    """ViT-S: 21,665,664 parameters with 16-pixel patches of 224 x 224 x 3."""
    return ViT(**{"width": 384, "depth": 12, "heads": 6} | options)


def vit_b(**options: Any) -> ViT:
    """ViT-B: 85,798,656 parameters with 16-pixel patches of 224 x 224 x 3."""
    return ViT(**{"width": 768, "depth": 12, "heads": 12} | options)
