"""A small convolutional encoder, for images that a CPU trains on in minutes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn.conv import Conv


class SmallConv(nnx.Module):
    """Three strided convolutions and a dense layer: 0.4 M parameters at 40 x 40.

    `x[n, size, size, in_channels] -> (h[n, features], local[n, p, local_features])`.
    The convolutions, 4x4 and then 3x3, each halve the map and are followed by a
    LayerNorm over the channels and ReLU; h is a dense layer on the whole last map.
    `local` is the map before the last convolution, each position of which has seen
    8x8 pixels: parts of an object, not the object. No layer mixes rows. The widths are
    ours. Raises ValueError for images of another size and for fewer than two widths.
    """

    def __init__(
        self,
        *,
        size: int,
        in_channels: int = 1,
        widths: Sequence[int] = (24, 48, 96),
        features: int = 128,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(2, size=size)
        check_range(1, in_channels=in_channels, widths=widths, features=features)
        if len(widths) < 2:
            raise ValueError(
                f"widths={widths!r}: give two or more, since the map before the last "
                "convolution is the local one"
            )
        he = jax.nn.initializers.he_normal()
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        form: dict = {"strides": 2, "padding": 1, "use_bias": False, "kernel_init": he}
        layers, norms, side = [], [], size
        for layer, (inputs, width) in enumerate(
            zip((in_channels, *widths[:-1]), widths, strict=True)
        ):
            kernel = (3, 3) if layer else (4, 4)
            layers.append(Conv(inputs, width, kernel, **form, **options))
            norms.append(nnx.LayerNorm(width, **options))
            # Of an odd side a 3x3 kernel keeps the larger half, a 4x4 the smaller.
            side = (side + 1) // 2 if layer else side // 2
        self.layers, self.norms = nnx.List(layers), nnx.List(norms)
        self.dense = nnx.Linear(side * side * widths[-1], features, **options)
        self.size, self.in_channels = size, in_channels
        self.features, self.local_features = features, widths[-2]

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        if x.shape[1:3] != (self.size, self.size):
            raise ValueError(
                f"images are {x.shape[1]} x {x.shape[2]}, but the encoder's "
                f"size={self.size}"
            )
        local = x
        for conv, norm in zip(self.layers, self.norms, strict=True):
            local, x = x, jax.nn.relu(norm(conv(x)))
        h = self.dense(x.reshape(len(x), -1))
        return h, local.reshape(len(local), -1, self.local_features)
