"""The encoders of SGI (Schwarzer et al. 2021): images to maps of features.

    Nature      three plain convolutions, SGI's S
    Residual    three groups of inverted residuals, SGI's M and L
    Pooled      either of them as the encoder of a `polyview.nn.towers.Tower`

Initial values are those of the official code: torch's default, but for the kernels of
`Residual`, which are normal.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from polyview.errors import check_range
from polyview.nn.norm import BatchNorm
from sgi.layers import cast, conv, torch_uniform


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    form: Literal["shifts", "lax"] = "shifts",
) -> jax.Array:
    """3x3 convolution of each channel by itself, padded by 1.

    `x[n, h, w, c]`, `kernel[3, 3, c]`. "shifts" adds up nine shifted products, "lax" is
    XLA's grouped convolution: the same values to rounding, several times slower on a
    CPU, its gradient above all.
    """
    if form == "lax":
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
    if form != "shifts":
        raise ValueError(f'form is "shifts" or "lax", not {form!r}')
    height, width = ((size - 1) // stride * stride + 1 for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i : i + height : stride, j : j + width : stride]
        * kernel[None, None, None, i, j]
        for i in range(3)
        for j in range(3)
    )


class Depthwise(nnx.Module):
    """`depthwise` with a bias; kernels drawn from N(0, deviation)."""

    def __init__(
        self,
        features: int,
        *,
        stride: int,
        deviation: float,
        form: str,
        dtype,
        param_dtype,
        rngs: nnx.Rngs,
    ):
        normal = initializers.normal(deviation)
        shape = (3, 3, features)
        self.kernel = nnx.Param(normal(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(torch_uniform(9)(rngs.params(), (features,), param_dtype))
        self.stride, self.form, self.dtype = stride, form, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = cast(self.dtype, x, self.kernel[...], self.bias[...])
        return depthwise(x, kernel, stride=self.stride, form=self.form) + _last(bias, x)


class InvertedResidual(nnx.Module):
    """shortcut(x) + branch(x), without an activation after the sum.

    branch: 1x1 to `expand` times the channels, depthwise 3x3 of the stride, 1x1 to
    `features`; a BatchNorm after each, whose last scale starts at zero (Sandler et al.
    2018). shortcut: x, or a convolution whose kernel is as large as its stride.
    `layers` of the whole encoder make the initial kernels of the branch smaller.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        *,
        stride: int,
        expand: float,
        layers: int,
        form: str,
        **options,
    ):
        if stride == 1 and inputs != features:
            raise ValueError(f"a block of stride 1 keeps its {inputs} channels")
        hidden = round(inputs * expand)
        small = layers**-0.25
        shortcut = {"deviation": _deviation(features, stride), **options}
        self.shortcut = (
            conv(inputs, features, stride, stride, **shortcut) if stride > 1 else None
        )
        deviation = small * _deviation(hidden, 1)
        self.up = conv(inputs, hidden, 1, deviation=deviation, **options)
        deviation = small * _deviation(hidden, 3)
        self.depthwise = Depthwise(
            hidden, stride=stride, deviation=deviation, form=form, **options
        )
        deviation = small * _deviation(features, 1)
        self.down = conv(hidden, features, 1, deviation=deviation, **options)
        self.norm1 = BatchNorm(hidden, **options)
        self.norm2 = BatchNorm(hidden, **options)
        self.norm3 = BatchNorm(features, scale=0.0, **options)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.up(x), train=train))
        y = jax.nn.relu(self.norm2(self.depthwise(y), train=train))
        y = self.norm3(self.down(y), train=train)
        return y + (x if self.shortcut is None else self.shortcut(x))


class Residual(nnx.Module):
    """The encoder of SGI-M: three groups of inverted residuals, strides 3, 2 and 2.

    `x[n, h, w, history] -> [n, h / 12, w / 12, widths[2]]`; h and w are multiples of
    12. The paper's M is `blocks=3, expand=2, widths=(32, 64, 64)`, its L `blocks=5,
    expand=4, widths=(48, 96, 96)`.
    """

    STRIDES = (3, 2, 2)

    def __init__(
        self,
        *,
        blocks: int = 3,
        expand: float = 2,
        widths: Sequence[int] = (32, 64, 64),
        history: int = 4,
        depthwise: str = "shifts",
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        check_range(1, blocks=blocks, widths=widths)
        options |= {"form": depthwise, "expand": expand, "layers": 3 * blocks}
        layers, inputs = [], history
        for width, group_stride in zip(widths, self.STRIDES, strict=True):
            for block in range(blocks):
                stride = group_stride if block == 0 else 1
                layers.append(InvertedResidual(inputs, width, stride=stride, **options))
                inputs = width
        self.blocks = nnx.List(layers)
        self.channels = inputs

    def side(self, size: int) -> int:
        """The side of the map of an image. Raises ValueError if it does not divide."""
        if size % prod(self.STRIDES):
            raise ValueError(f"image={size} is no multiple of {prod(self.STRIDES)}")
        return size // prod(self.STRIDES)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for block in self.blocks:
            x = block(x, train=train)
        return x


class Nature(nnx.Module):
    """The encoder of Mnih et al. 2015, SGI's S: 84 x 84 to 7 x 7 x 64, no norm."""

    LAYERS = ((8, 4), (4, 2), (3, 1))  # size and stride

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 64),
        history: int = 4,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, widths=widths)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        layers, inputs = [], history
        for width, (size, stride) in zip(widths, self.LAYERS, strict=True):
            layers.append(conv(inputs, width, size, stride, **options))
            inputs = width
        self.layers = nnx.List(layers)
        self.channels = inputs

    def side(self, size: int) -> int:
        """The side of the map of an image. Raises ValueError where nothing is left."""
        left = size
        for kernel, stride in self.LAYERS:
            left = (left - kernel) // stride + 1
        if left < 1:
            raise ValueError(f"image={size} is too small for this encoder")
        return left

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x


class Pooled(nnx.Module):
    """An encoder of maps as the encoder of a tower: its map, and the mean of the map.

    `x[n, h, w, history] -> (h[n, c], local[n, p, c])`. `encoder(rngs=)` makes the other
    one, whose weights lie at `map`: a network of SGI begins with them by
    `init={"encoder": (run, "towers.frames.encoder.map")}`.
    """

    def __init__(self, encoder: Callable[..., nnx.Module], *, rngs: nnx.Rngs):
        self.map = encoder(rngs=rngs)
        self.features = self.map.channels

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        del key
        found = self.map(x, train=train)
        local = found.reshape(len(found), -1, self.features)
        return local.mean(1), local


def _deviation(features: int, size: int) -> float:
    """He et al.'s deviation of a kernel by what leaves it."""
    return (2 / (features * size * size)) ** 0.5


def _last(a: jax.Array, x: jax.Array) -> jax.Array:
    """`a[c]` along the last axis of x."""
    return a.reshape((1,) * (x.ndim - 1) + (-1,))
