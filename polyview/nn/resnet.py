"""Residual networks (He et al. 2016), in torchvision's v1.5 layout.

Padding is explicit and symmetric as in torch. 'SAME' would pad a strided convolution on
one side only, and give other features than any published checkpoint.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn import rematerialisation, stochastic_depth
from polyview.nn.conv import Conv
from polyview.nn.norm import BatchNorm


def _conv(
    in_features: int, features: int, size: int, stride: int = 1, **options: Any
) -> Conv:
    """A convolution: odd kernels are centred as in torch, even ones tile the image."""
    start = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    options |= {"padding": size // 2 if size % 2 else 0, "kernel_init": start}
    sizes = (in_features, features, (size, size))
    return Conv(*sizes, strides=stride, use_bias=False, **options)


class Basic(nnx.Module):
    """Two 3x3 convolutions and a shortcut.

    With `zero_scale` the last BatchNorm starts at scale 0, so that the block starts as
    its shortcut (Goyal et al. 2017).
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        zero_scale: bool = False,
        **options: Any,
    ):
        self.features = width
        self.conv1 = _conv(in_features, width, 3, stride, **options)
        self.norm1 = BatchNorm(width, **options)
        self.conv2 = _conv(width, width, 3, **options)
        self.norm2 = BatchNorm(width, scale=0.0 if zero_scale else 1.0, **options)
        self.shortcut = _shortcut(in_features, self.features, stride, **options)

    def __call__(
        self, x: jax.Array, factors: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        if self.shortcut is not None:
            x = self.shortcut(x, train=train)
        if factors is not None:
            y = stochastic_depth.scaled(y, factors)
        return jax.nn.relu(x + y)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; four times `width` features.

    The 3x3 convolution has the stride ("v1.5"). `zero_scale` as in `Basic`.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        zero_scale: bool = False,
        **options: Any,
    ):
        self.features = 4 * width
        self.conv1 = _conv(in_features, width, 1, **options)
        self.norm1 = BatchNorm(width, **options)
        self.conv2 = _conv(width, width, 3, stride, **options)
        self.norm2 = BatchNorm(width, **options)
        self.conv3 = _conv(width, self.features, 1, **options)
        self.norm3 = BatchNorm(4 * width, scale=0.0 if zero_scale else 1.0, **options)
        self.shortcut = _shortcut(in_features, self.features, stride, **options)

    def __call__(
        self, x: jax.Array, factors: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        y = jax.nn.relu(self.norm2(self.conv2(y), train=train))
        y = self.norm3(self.conv3(y), train=train)
        if self.shortcut is not None:
            x = self.shortcut(x, train=train)
        if factors is not None:
            y = stochastic_depth.scaled(y, factors)
        return jax.nn.relu(x + y)


class _Shortcut(nnx.Module):
    """The projection of a block that changes the shape."""

    def __init__(self, in_features: int, features: int, stride: int, **options: Any):
        self.conv = _conv(in_features, features, 1, stride, **options)
        self.norm = BatchNorm(features, **options)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(self.conv(x), train=train)


def _shortcut(
    in_features: int, features: int, stride: int, **options: Any
) -> _Shortcut | None:
    if stride == 1 and in_features == features:
        return None
    return _Shortcut(in_features, features, stride, **options)


# Kernel size and stride; a max-pool follows in "imagenet".
_STEMS = {"imagenet": (7, 2), "small": (3, 1), "patch": (4, 4)}


class ResNet(nnx.Module):
    """A residual network without its classifier.

    `x[n, h, w, c] -> (h[n, features], local[n, p, features])`: the last feature map and
    its mean over positions in `param_dtype`. `stages` gives the blocks of each stage,
    `widths` their width; each stage but the first halves the resolution. `block` is
    `Basic`, `Bottleneck` or a partial of them. `stem` is one of
    "imagenet": 7x7 convolution of stride 2, then 3x3 max-pool of stride 2 (He et al.);
    "small": 3x3 convolution of stride 1, no pool (Chen et al. 2020, for CIFAR);
    "patch": 4x4 convolution of stride 4 without padding (Liu et al. 2022).
    `remat` is "none", "blocks" or "dots": see `polyview.nn.rematerialisation`.
    `drop_path` is the last block's rate, see `polyview.nn.stochastic_depth`.
    """

    def __init__(
        self,
        *,
        stages: Sequence[int],
        widths: Sequence[int],
        block: Callable[..., Basic | Bottleneck],
        stem: str = "imagenet",
        in_channels: int = 3,
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, widths=widths, in_channels=in_channels)
        if stem not in _STEMS:
            raise ValueError(f"stem={stem!r} is not one of {sorted(_STEMS)}")
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        size, stride = _STEMS[stem]
        self.pool, self.in_channels = stem == "imagenet", in_channels
        self.conv = _conv(in_channels, widths[0], size, stride, **options)
        self.norm = BatchNorm(widths[0], **options)
        blocks = []
        features = widths[0]
        for stage, (depth, width) in enumerate(zip(stages, widths, strict=True)):
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(block(features, width, stride, **options))
                features = blocks[-1].features
        self.blocks = nnx.List(blocks)
        self.features, self.param_dtype = features, param_dtype
        self.remat = rematerialisation.check(remat)
        self.drop_path = stochastic_depth.check(drop_path)

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"images are float[n, h, w, c], not {x.dtype}{x.shape}")
        x = jax.nn.relu(self.norm(self.conv(x), train=train))
        if self.pool:
            pad = ((1, 1), (1, 1))
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=pad)
        # Without training there is no gradient, so nothing to rematerialise.
        call = rematerialisation.calls(self.remat if train else "none", train=train)
        factors: Sequence = [None] * len(self.blocks)
        if train and self.drop_path > 0:
            shape = (len(self.blocks),)
            factors = stochastic_depth.factors(self.drop_path, key, shape)
        for block, of_block in zip(self.blocks, factors, strict=True):
            x = call(block, x, of_block)
        local = x.reshape(x.shape[0], -1, self.features)
        return local.astype(self.param_dtype).mean(1), local


def resnet18(*, zero_scale: bool = False, **options: Any) -> ResNet:
    """ResNet-18: 11,176,512 parameters at 3 channels, 512 features."""
    block = partial(Basic, zero_scale=zero_scale)
    widths = (64, 128, 256, 512)
    return ResNet(stages=(2, 2, 2, 2), widths=widths, block=block, **options)


def resnet50(*, zero_scale: bool = False, **options: Any) -> ResNet:
    """ResNet-50 v1.5: 23,508,032 parameters at 3 channels, 2,048 features."""
    block = partial(Bottleneck, zero_scale=zero_scale)
    widths = (64, 128, 256, 512)
    return ResNet(stages=(3, 4, 6, 3), widths=widths, block=block, **options)


def resnet_tiny(*, width: int = 64, **options: Any) -> ResNet:
    """A ResNet for 28 x 28 grey images on a CPU: 0.3 M parameters, 128 features.

    A CPU runs wide convolutions on few positions (7 x 7, then 4 x 4) near its peak, and
    spends its time on memory in narrow ones on many positions.
    """
    check_range(1, width=width)
    form: dict = {"stages": (1, 1), "widths": (width, 2 * width), "block": Basic}
    return ResNet(**form | {"stem": "patch", "in_channels": 1} | options)
