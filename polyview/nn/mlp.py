"""Encoders without convolutions: of plain vectors, and of small images."""

import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import TINY, check_range


class Mlp(nnx.Module):
    """One hidden layer with GELU: x[n, inputs] -> h[n, features], and local[n, 1, ...].

    A vector has one position, so `local` is h itself.
    """

    def __init__(
        self,
        *,
        inputs: int,
        hidden: int = 64,
        features: int = 16,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, inputs=inputs, hidden=hidden, features=features)
        self.features = features
        layer: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.hidden = nnx.Linear(inputs, hidden, **layer)
        self.output = nnx.Linear(hidden, features, **layer)

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        h = self.output(nnx.gelu(self.hidden(x)))
        return h, h[:, None, :]


class ReluMlp(nnx.Module):
    """Layers with ReLU and dropout: `x[n, size, size, in_channels] -> h[n, features]`.

    Each width is a linear layer, ReLU and dropout (Srivastava et al. 2014); h is the
    last. `local[n, 1, features]` is h itself. Dropout acts wherever a key is passed,
    outside of training too: passes with other keys are draws of a distribution of
    answers (Gal & Ghahramani 2016). Row i of a batch draws by key[i]. Raises ValueError
    for images of another size.
    """

    def __init__(
        self,
        *,
        size: int,
        in_channels: int = 1,
        widths: Sequence[int] = (256, 512),
        dropout: float = 0.5,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, size=size, in_channels=in_channels, widths=widths)
        check_range(0.0, 1 - TINY, dropout=dropout)
        layer: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        he = jax.nn.initializers.he_normal()
        sides = [size * size * in_channels, *widths]
        self.layers = nnx.List(
            nnx.Linear(wide, out, kernel_init=he, **layer)
            for wide, out in itertools.pairwise(sides)
        )
        self.size, self.in_channels = size, in_channels
        self.features, self.dropout = sides[-1], dropout

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        if x.shape[1:3] != (self.size, self.size):
            raise ValueError(
                f"images are {x.shape[1]} x {x.shape[2]}, but the encoder's "
                f"size={self.size}"
            )
        h = x.reshape(len(x), -1)
        for number, layer in enumerate(self.layers):
            h = jax.nn.relu(layer(h))
            if key is not None and self.dropout > 0:
                keys = jax.vmap(jax.random.fold_in, (0, None))(key, number)
                keep = partial(jax.random.bernoulli, p=1 - self.dropout)
                kept = jax.vmap(partial(keep, shape=h.shape[1:]))(keys)
                h = jnp.where(kept, h / (1 - self.dropout), 0)
        return h, h[:, None, :]
