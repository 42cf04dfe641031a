"""A decoder: from the representation of an image back to its pixels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn.conv import Conv


class Decoder(nnx.Module):
    """A dense layer and transposed convolutions: `h[n, in_features] -> x[n, *shape]`.

    The mirror image of `polyview.nn.small_conv:SmallConv`: each of `widths` is a map
    with LayerNorm and ReLU, then a transposed convolution that doubles its sides.
    `shape` is (height, width, channels) of an image; where the doubled sides exceed it,
    the middle is taken. Pixels are not bounded, as normalised ones are not. Raises
    ValueError for a shape of another length.
    """

    def __init__(
        self,
        in_features: int,
        *,
        shape: Sequence[int],
        widths: Sequence[int] = (96, 48, 24),
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, shape=shape, widths=widths)
        if len(shape) != 3 or not widths:
            raise ValueError(
                f"shape={shape!r}, widths={widths!r}: give the height, width and "
                "channels of an image, and one width or more"
            )
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.shape = height, width, channels = tuple(shape)
        step = 2 ** len(widths)
        self.first = -(-height // step), -(-width // step), widths[0]
        first = self.first[0] * self.first[1] * self.first[2]
        self.dense = nnx.Linear(in_features, first, **options)
        self.norms = nnx.List([nnx.LayerNorm(w, **options) for w in widths])
        outputs = (*widths[1:], channels)
        self.layers = nnx.List(
            [Doubled(i, o, **options) for i, o in zip(widths, outputs, strict=True)]
        )

    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        del train
        x = self.dense(h).reshape(len(h), *self.first)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(jax.nn.relu(norm(x)))
        top, left = ((x.shape[1 + i] - self.shape[i]) // 2 for i in range(2))
        return x[:, top : top + self.shape[0], left : left + self.shape[1]]


class Doubled(nnx.Module):
    """Transposed 4x4 convolution of stride 2: `x[n, h, w, c] -> [n, 2h, 2w, out]`.

    A pixel of the output reads 2x2 of the input. So it is computed as a plain 2x2
    convolution whose channels are then laid out as 2x2 pixels, with the fast forms of
    `polyview.nn.conv`.
    """

    def __init__(self, in_features: int, out: int, **options: Any):
        he = jax.nn.initializers.he_normal()
        form: dict = {"padding": 1, "use_bias": False, "kernel_init": he}
        self.conv = Conv(in_features, 4 * out, (2, 2), **form, **options)
        self.bias = nnx.Param(jnp.zeros(out, options["param_dtype"]))

    def __call__(self, x: jax.Array) -> jax.Array:
        pixels = rearrange(self.conv(x), "n h w (a b c) -> n (h a) (w b) c", a=2, b=2)
        bias = self.bias[...].astype(pixels.dtype)
        return pixels[:, 1:-1, 1:-1] + bias.reshape(1, 1, 1, -1)
