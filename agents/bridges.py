"""From observations to tokens of a body: `bridge(x[n, ...]) -> [n, tokens, width]`.

Each is made by `bridge(width, rngs=)`, with the width of the body. Tokens leave with
the scale of embeddings of words, which a fixed body expects.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import InputError, check_range
from polyview.nn.denoiser import CrossBlock
from polyview.nn.towers import Tower
from polyview.nn.vit import sincos

SCALE = 0.1  # root mean square of a token's numbers (ours); SmolLM2's words have .14
_STILL = 1e-3  # of the largest deviation: a number below it does not change (ours)
_CLIP = 5.0  # deviations, beyond which a number of a state says no more (ours)


class _Bridge(nnx.Module):
    """Two layers with SiLU from features to tokens, then the scale of embeddings."""

    def __init__(
        self,
        features: int,
        width: int,
        *,
        tokens: int,
        hidden: int,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_range(1, tokens=tokens, hidden=hidden)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.up = nnx.Linear(features, hidden, **options)
        self.down = nnx.Linear(hidden, tokens * width, **options)
        self.scale = nnx.Param(jnp.full((), SCALE, param_dtype))
        self.count, self.width = tokens, width

    def _bridged(self, x: jax.Array) -> jax.Array:
        y = self.down(jax.nn.silu(self.up(x)))
        y = y.reshape(len(x), -1, self.width)
        spread = jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
        return y / spread * self.scale[...].astype(y.dtype)


class State(_Bridge):
    """Numbers [n, d], by mean and deviation of the training data; clipped at 5.

    Numbers that never change are left out.
    """

    def __init__(
        self,
        width: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        tokens: int = 1,
        hidden: int = 256,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(0.0, std=std)
        if len(mean) != len(std) or not any(std):
            raise InputError("a bridge of states needs as many means as deviations")
        self.kept = tuple(
            int(i) for i in np.flatnonzero(np.asarray(std) > _STILL * max(std))
        )
        self.mean = tuple(float(mean[i]) for i in self.kept)
        self.std = tuple(float(std[i]) for i in self.kept)
        self.size = len(mean)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(len(self.kept), width, tokens=tokens, hidden=hidden, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.ndim != 2 or x.shape[1] != self.size:
            raise InputError(f"states are {x.shape}, not [n, {self.size}]")
        x = x[:, np.asarray(self.kept)]
        mean = jnp.asarray(self.mean, x.dtype)[None]
        std = jnp.asarray(self.std, x.dtype)[None]
        return self._bridged(jnp.clip((x - mean) / std, -_CLIP, _CLIP))


class Grid(_Bridge):
    """Cells [n, h, w, c] of small codes, one table for each of the c channels.

    A cell is the sum of its codes' embeddings, of `features` numbers. Each row of cells
    is a token, so that a row can be compared with the words of an instruction; with
    `whole` all cells are one token.
    """

    def __init__(
        self,
        width: int,
        *,
        shape: Sequence[int],
        codes: int,
        features: int = 16,
        whole: bool = False,
        hidden: int = 256,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, shape=list(shape), codes=codes, features=features)
        h, w, c = shape
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        rows = 1 if whole else h
        read = h // rows * w * features
        super().__init__(read, width, tokens=1, hidden=hidden, **options)
        draw = jax.random.normal(rngs.params(), (1, rows, read), param_dtype)
        self.place = None if whole else nnx.Param(draw)
        self.count = rows
        draw = jax.random.normal(rngs.params(), (c, codes, features), param_dtype)
        self.table = nnx.Param(draw)
        self.shape, self.codes, self.dtype = (h, w, c), codes, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[1:] != self.shape:
            raise InputError(f"grids are {x.shape[1:]}, not {self.shape}")
        chosen = jax.nn.one_hot(x, self.codes, dtype=self.dtype)  # NaN for no code
        chosen = jnp.where((x < self.codes)[..., None], chosen, jnp.nan)
        table = self.table[...].astype(self.dtype)
        cells = jnp.einsum("nhwck,ckf->nhwf", chosen, table)
        rows = cells.reshape(len(x), self.count, -1)
        if self.place is not None:
            rows += self.place[...].astype(rows.dtype)
        return self._bridged(rows.reshape(len(x) * self.count, -1)).reshape(
            len(x), self.count, self.width
        )


class Picture(_Bridge):
    """Images uint8[n, h, w, c] by an encoder that is trained with the policy: a token.

    `encoder(rngs=)` makes an encoder of `polyview.nn`, such as SmallConv.
    """

    def __init__(
        self,
        width: int,
        *,
        encoder: Callable[..., Any],
        hidden: int = 512,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        made: Any = encoder(rngs=rngs)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(made.features, width, tokens=1, hidden=hidden, **options)
        self.encoder = made

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.dtype != jnp.uint8:
            raise InputError(f"pictures are {x.dtype}, not uint8")
        h, _ = self.encoder(x.astype(jnp.float32) / 255 - 0.5, train=False)
        return self._bridged(jax.nn.relu(h))


class Bag(nnx.Module):
    """The mean of the words of a text int32[n, length], in no order: a token.

    Words -1 are padding. Tokens share `rows` rows by their remainder, so that a large
    vocabulary needs no large table (Weinberger et al. 2009).
    """

    count = 1

    def __init__(
        self,
        width: int,
        *,
        rows: int = 4093,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, rows=rows)
        draw = jax.random.normal(rngs.params(), (rows, width), param_dtype)
        self.table = nnx.Param(draw)
        self.rows, self.dtype = rows, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        real = x >= 0
        found = self.table[...].astype(self.dtype)[jnp.where(real, x % self.rows, 0)]
        words = jnp.maximum(real.sum(1, keepdims=True), 1)
        return jnp.where(real[..., None], found, 0).sum(1) / words


class Image(_Bridge):
    """Images [n, h, w, c] by a tower of the engine, and latents that read its map.

    (The resampler of Jaegle et al. 2021.) `tower(rngs=)` makes a
    `polyview.nn.towers:Tower` with `local=True`; its `frozen=True` leaves an encoder's
    weights as `init` gives them. The tower is run as after training: an encoder with
    statistics of the batch keeps those it begins with. Images are resized to `size` a
    side, if it is given. Fixed positions tell the places of the map, which is square.
    """

    def __init__(
        self,
        width: int,
        *,
        tower: Callable[..., Tower],
        size: int | None = None,
        tokens: int = 4,
        features: int = 128,
        heads: int = 4,
        hidden: int = 512,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, features=features, heads=heads, size=size)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(features, width, tokens=1, hidden=hidden, **options)
        self.tower = tower(rngs=rngs)
        if not self.tower.local:
            raise InputError("the tower of a bridge needs local=True")
        encoder = self.tower.encoder
        wide = getattr(encoder, "local_features", encoder.features)
        self.reduce = nnx.Linear(wide, features, **options)
        draw = jax.random.normal(rngs.params(), (1, tokens, features), param_dtype)
        self.latents = nnx.Param(0.02 * draw)
        self.read = CrossBlock(features, heads, **options)
        self.count, self.size = tokens, size

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / 255
        if self.size is not None:
            shape = (len(x), self.size, self.size, x.shape[-1])
            x = jax.image.resize(x, shape, "linear")
        index = jnp.zeros(len(x), jnp.int32)
        found: Any = self.tower(x[:, None], index=index, key=None, train=False)
        local = self.reduce(found.local[:, 0])
        side = math.isqrt(local.shape[1])
        if side**2 != local.shape[1]:
            raise InputError(
                f"the map of a bridge's tower has {local.shape[1]} places, and is not "
                "square; give images as high as wide"
            )
        local += sincos(side, local.shape[2]).astype(local.dtype)
        latents = self.latents[...].astype(local.dtype)
        z = jnp.broadcast_to(latents, (len(x), *latents.shape[1:]))
        z = self.read(z, local)
        return self._bridged(z.reshape(-1, z.shape[-1])).reshape(
            len(x), self.count, self.width
        )
