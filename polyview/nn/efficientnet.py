"""EfficientNet-Lite (Tan & Le 2019; the Lite form of 2020): inverted bottlenecks.

It differs from EfficientNet by ReLU6 in place of swish, and by no squeeze-excite. The
published weights are TensorFlow's: they need its 'SAME' padding, which is on one side
only where a stride is 2, and its BatchNorm's epsilon of 1e-3.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn import rematerialisation, stochastic_depth
from polyview.nn.conv import Conv
from polyview.nn.norm import BatchNorm

# Blocks, side of the kernel, stride of the first block, expansion and features.
Stage = tuple[int, int, int, int, int]
LITE0: tuple[Stage, ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_norm = partial(BatchNorm, epsilon=1e-3)


def _conv(
    in_features: int, features: int, size: int = 1, stride: int = 1, **options: Any
) -> Conv:
    start = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    options |= {"padding": "SAME", "use_bias": False, "kernel_init": start}
    return Conv(in_features, features, (size, size), strides=stride, **options)


def _depthwise(features: int, size: int, stride: int, **options: Any) -> nnx.Conv:
    """A convolution of each channel by a kernel of its own, [size, size, 1, c]."""
    # Each output has size^2 inputs; the fan out of the whole kernel would count all c.
    start = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    options |= {"padding": "SAME", "use_bias": False, "kernel_init": start}
    options |= {"conv_general_dilated": depthwise, "feature_group_count": features}
    return nnx.Conv(features, features, (size, size), strides=stride, **options)


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Convolve channel by channel `x[n, h, w, c]` with `kernel[kh, kw, 1, c]`.

    As nnx.Conv calls it; options: those of `jax.lax.conv_general_dilated`. On a CPU it
    is a sum over the entries of the kernel, since XLA's grouped convolution takes 5 to
    40 times as long there, its gradient 2 to 20 times. Other platforms take XLA's.
    """
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
    sizes, strides = kernel.shape[:2], tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], sizes, strides, padding)
    return _by_tap(x, kernel, strides, tuple(padding))


# Compiled as one where the caller is not compiled.
@partial(jax.jit, static_argnums=(2, 3), inline=True)
def _by_tap(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    (n, *lengths, c), sizes = padded.shape, kernel.shape[:2]
    high, wide = (
        (length - size) // stride * stride + 1
        for length, size, stride in zip(lengths, sizes, strides, strict=True)
    )
    total: Any = 0
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            ends = (n, i + high, j + wide, c)
            tap = lax.slice(padded, (0, i, j, 0), ends, (1, *strides, 1))
            total = total + tap * kernel[i, j].reshape(1, 1, 1, c)
    return total


class Block(nnx.Module):
    """An inverted bottleneck (Sandler et al. 2018), of `size` and `stride`.

    A 1x1 convolution to `expansion` times the channels (none if that is 1), one of each
    channel with `size` x `size` kernels and `stride`, each with BatchNorm and ReLU6,
    then a 1x1 convolution to `features` with BatchNorm. The input is added if it has
    the same shape; its branch may be scaled by `factors[n]`.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        size: int,
        stride: int,
        expansion: int,
        **options: Any,
    ):
        wide = expansion * in_features
        expands = expansion > 1
        self.expand = _conv(in_features, wide, **options) if expands else None
        self.expand_norm = _norm(wide, **options) if expands else None
        self.depthwise = _depthwise(wide, size, stride, **options)
        self.depthwise_norm = _norm(wide, **options)
        self.project = _conv(wide, features, **options)
        self.project_norm = _norm(features, **options)
        self.adds = stride == 1 and in_features == features

    def __call__(
        self, x: jax.Array, factors: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = jax.nn.relu6(self.expand_norm(self.expand(y), train=train))
        y = jax.nn.relu6(self.depthwise_norm(self.depthwise(y), train=train))
        y = self.project_norm(self.project(y), train=train)
        if not self.adds:
            return y
        return x + (y if factors is None else stochastic_depth.scaled(y, factors))


class EfficientNetLite(nnx.Module):
    """An EfficientNet-Lite without its classifier.

    `x[n, h, w, c] -> (h[n, features], local[n, p, features])`: the last feature map, of
    a 32nd of the resolution, and its mean over positions in `param_dtype`. `stages`
    lists `Stage`s, which follow a 3x3 convolution of stride 2 to `stem` channels and
    precede a 1x1 convolution to `features`. `remat` is "none", "blocks" or "dots": see
    `polyview.nn.rematerialisation`. `drop_path` is the last block's rate, see
    `polyview.nn.stochastic_depth`; blocks that change the shape drop nothing.
    """

    def __init__(
        self,
        *,
        stages: Sequence[Stage],
        stem: int,
        features: int,
        in_channels: int = 3,
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, stem=stem, features=features, in_channels=in_channels)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = _conv(in_channels, stem, 3, 2, **options)
        self.norm = _norm(stem, **options)
        blocks, inputs = [], stem
        for stage in stages:
            check_range(1, stages=stage)
            depth, size, first, expansion, width = stage
            for position in range(depth):
                shape = (size, 1 if position else first, expansion)
                blocks.append(Block(inputs, width, *shape, **options))
                inputs = width
        self.blocks = nnx.List(blocks)
        self.last = _conv(inputs, features, **options)
        self.last_norm = _norm(features, **options)
        self.features, self.in_channels = features, in_channels
        self.param_dtype = param_dtype
        self.remat = rematerialisation.check(remat)
        self.drop_path = stochastic_depth.check(drop_path)

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"images are float[n, h, w, c], not {x.dtype}{x.shape}")
        x = jax.nn.relu6(self.norm(self.conv(x), train=train))
        # Without training there is no gradient, so nothing to rematerialise.
        call = rematerialisation.calls(self.remat if train else "none", train=train)
        factors: Sequence = [None] * len(self.blocks)
        if train and self.drop_path > 0:
            shape = (len(self.blocks),)
            factors = stochastic_depth.factors(self.drop_path, key, shape)
        for block, of_block in zip(self.blocks, factors, strict=True):
            x = call(block, x, of_block)
        x = jax.nn.relu6(self.last_norm(self.last(x), train=train))
        local = x.reshape(x.shape[0], -1, self.features)
        return local.astype(self.param_dtype).mean(1), local


def efficientnet_lite0(**options: Any) -> EfficientNetLite:
    """EfficientNet-Lite0: 3,371,008 parameters at 3 channels, 1,280 features."""
    return EfficientNetLite(stages=LITE0, stem=32, features=1280, **options)
