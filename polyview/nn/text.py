"""Encoders of texts and of sets of tokens: `tokens int32[n, length]`, 0 is padding.

Each returns h[n, features], local[n, p, local_features] and real: bool[n, p], True at
positions that are not padding. Padding affects nothing. A row of padding alone has the
h of a mean of zeros. There is no BatchNorm, so a missing text affects no other row.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn.conv import Conv
from polyview.nn.fusion import mean_of
from polyview.nn.vit import Block


class _Encoder(nnx.Module):
    """Embeddings; then LayerNorm and Linear on their mean over real positions."""

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        features: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        check_range(1, vocabulary=vocabulary, width=width, features=features)
        self.features, self.local_features = features, width
        self.vocabulary, self.param_dtype = vocabulary, param_dtype
        self.embed = nnx.Embed(
            vocabulary, width, embedding_init=nnx.initializers.normal(1.0), **options
        )
        self.norm = nnx.LayerNorm(width, **options)
        self.output = nnx.Linear(width, features, **options)

    def _embedded(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens are {tokens.dtype}, not integers")
        real = tokens > 0
        x = jnp.where(real[..., None], self.embed(tokens), 0)
        # Not the table's last row: a wrong vocabulary must not go unseen.
        return jnp.where((tokens < self.vocabulary)[..., None], x, jnp.nan), real

    def _pooled(
        self, local: jax.Array, real: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        h = self.output(self.norm(mean_of(local, real)))
        return h.astype(self.param_dtype), local, real


class TokenSet(_Encoder):
    """Tokens without order, as a bag of words: a ReLU layer on each, then the mean."""

    def __init__(self, *, width: int = 64, features: int = 128, **options: Any):
        super().__init__(width=width, features=features, **options)
        options.pop("vocabulary")
        self.hidden = nnx.Linear(width, width, **options)

    def __call__(
        self, tokens: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, real = self._embedded(tokens)
        return self._pooled(jax.nn.relu(self.hidden(x)), real)


class ConvText(_Encoder):
    """Strided convolutions over the words; a position is a window of words.

    One convolution of width 3 for each of `strides`, ReLU, zero padding. A window is
    real if any of its `stride` words, from the centre on, is real.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        features: int = 128,
        strides: Sequence[int] = (1, 2, 2),
        **options: Any,
    ):
        super().__init__(width=width, features=features, **options)
        options.pop("vocabulary")
        self.strides = tuple(strides)
        self.convolutions = nnx.List(
            [
                Conv(width, width, (3,), strides=stride, padding=1, **options)
                for stride in self.strides
            ]
        )

    def __call__(
        self, tokens: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, real = self._embedded(tokens)
        for convolution, stride in zip(self.convolutions, self.strides, strict=True):
            x = jax.nn.relu(convolution(x))
            real = jnp.pad(real, ((0, 0), (0, -real.shape[1] % stride)))
            real = real.reshape(len(real), -1, stride).any(2)
            # Padding, which a bias made non-zero, must not leak into the next window.
            x = jnp.where(real[..., None], x, 0)
        return self._pooled(x, real)


class TextTransformer(_Encoder):
    """A transformer with learned positions (Vaswani et al. 2017), pre-norm."""

    def __init__(
        self,
        *,
        length: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        features: int = 128,
        **options: Any,
    ):
        check_range(1, 1000, depth=depth)
        check_range(1, length=length, heads=heads)
        super().__init__(width=width, features=features, **options)
        options.pop("vocabulary")
        rngs, param_dtype = options["rngs"], self.param_dtype
        noise = jax.random.normal(rngs.params(), (1, length, width), param_dtype)
        self.position = nnx.Param(0.02 * noise)
        self.blocks = nnx.List([Block(width, heads, **options) for _ in range(depth)])

    def __call__(
        self, tokens: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, real = self._embedded(tokens)
        x = x + self.position[...][:, : x.shape[1]].astype(x.dtype)
        for block in self.blocks:
            x = block(x, real)
        return self._pooled(x, real)
