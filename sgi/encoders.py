"""The encoders of SGI (Schwarzer et al. 2021): images to feature maps.

    Nature      three plain convolutions, SGI's S
    Residual    three groups of inverted residuals, SGI's M and L
    Pooled      either of them as the encoder of a `polyview.nn.towers.Tower`

Initial values follow the official code: torch's defaults, except for the kernels of
`Residual`, which are normal.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

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
    """Convolve each channel of `x[n, h, w, c]` with `kernel[3, 3, c]`, padded by 1.

    "shifts" adds nine shifted products; "lax" is XLA's grouped convolution, which
    returns the same values up to rounding but is several times slower on a CPU, above
    all in the gradient.
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
        raise ValueError(f'form must be "shifts" or "lax", not {form!r}')
    height, width = ((size - 1) // stride * stride + 1 for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(  # type: ignore[return-value]  # of nine arrays, so never the int 0
        padded[:, i : i + height : stride, j : j + width : stride]
        * kernel[None, None, None, i, j]
        for i in range(3)
        for j in range(3)
    )


class Depthwise(nnx.Module):
    """`depthwise` with a bias; its kernel is normal with deviation `deviation`."""

    def __init__(
        self,
        features: int,
        *,
        stride: int,
        deviation: float,
        form: Literal["shifts", "lax"],
        dtype: DTypeLike,
        param_dtype: DTypeLike,
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
    """shortcut(x) + branch(x), with no activation after the sum.

    branch: 1x1 to `expand` times the channels, depthwise 3x3 with the stride, 1x1 to
    `features`; a BatchNorm after each, the last with an initial scale of zero (Sandler
    et al. 2018). shortcut: x, or a convolution with kernel size equal to its stride.
    The initial kernels of the branch are scaled by layers^(-1/4); `layers` counts the
    blocks of the whole encoder.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        *,
        stride: int,
        expand: float,
        layers: int,
        form: Literal["shifts", "lax"],
        **options: Any,
    ):
        if stride == 1 and inputs != features:
            raise ValueError(f"stride=1 requires features={inputs}, not {features}")
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

    `x[n, h, w, history] -> [n, h / 12, w / 12, widths[2]]`; h and w must be multiples
    of 12. The paper's M is `blocks=3, expand=2, widths=(32, 64, 64)`, its L `blocks=5,
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
        depthwise: Literal["shifts", "lax"] = "shifts",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, blocks=blocks, widths=widths)
        options: dict[str, Any] = {
            "form": depthwise,
            "expand": expand,
            "layers": 3 * blocks,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        layers, inputs = [], history
        for width, group_stride in zip(widths, self.STRIDES, strict=True):
            for block in range(blocks):
                stride = group_stride if block == 0 else 1
                layers.append(InvertedResidual(inputs, width, stride=stride, **options))
                inputs = width
        self.blocks = nnx.List(layers)
        self.channels = inputs

    def side(self, size: int) -> int:
        """Return the map's side. Raises ValueError unless 12 divides `size`."""
        if size % prod(self.STRIDES):
            raise ValueError(f"image={size} is not a multiple of {prod(self.STRIDES)}")
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
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, widths=widths)
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        options["rngs"] = rngs
        layers, inputs = [], history
        for width, (size, stride) in zip(widths, self.LAYERS, strict=True):
            layers.append(conv(inputs, width, size, stride, **options))
            inputs = width
        self.layers = nnx.List(layers)
        self.channels = inputs

    def side(self, size: int) -> int:
        """Return the map's side. Raises ValueError if the image is too small."""
        side = size
        for kernel, stride in self.LAYERS:
            side = (side - kernel) // stride + 1
        if side < 1:
            raise ValueError(f"image={size} is too small for this encoder")
        return side

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x


class Pooled(nnx.Module):
    """Makes a tower's encoder of `Residual` or `Nature`: mean of the map, and the map.

    `x[n, h, w, history] -> (h[n, c], local[n, p, c])`. `encoder(rngs=)` makes the inner
    encoder; its weights are at `map`. A network of SGI starts from them by
    `init={"encoder": (run, "towers.frames.encoder.map")}`.
    """

    def __init__(self, encoder: Callable[..., Residual | Nature], *, rngs: nnx.Rngs):
        self.map = encoder(rngs=rngs)
        self.features = self.map.channels

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        del key
        feature_map = self.map(x, train=train)
        local = feature_map.reshape(len(feature_map), -1, self.features)
        return local.mean(1), local


def _deviation(features: int, size: int) -> float:
    """Return He et al.'s standard deviation of a kernel, by fan-out."""
    return (2 / (features * size * size)) ** 0.5


def _last(a: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape `a[c]` to broadcast along the last axis of x."""
    return a.reshape((1,) * (x.ndim - 1) + (-1,))
