"""Denoisers: networks that tell the noise, or the like, in a noisy vector.

Called as `denoiser(x[n, features], time[n], condition[n, condition]) -> [n, features]`,
with a time of the noising in [0, 1] and whatever the vector is conditioned on. What the
output means (noise, velocity, flow) and how it is trained is another module's business.
Rows do not mix.

The last layer starts at zero, and so does the output (as Ho et al. 2020 do): training
starts from the error of predicting 0, the mean of the noise, and has no random function
of x to unlearn.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import TINY, InputError, check_range
from polyview.nn.vit import Block, attention

# Periods in the unit interval of times. With a quarter of a period, no two times look
# alike; more than 32 would set apart times that hardly differ in noise.
_LOWEST, _HIGHEST = 0.25, 32.0


def fourier(values: jax.Array, count: int, lowest: float, highest: float) -> jax.Array:
    """Sines and cosines of numbers: `values[n] -> [n, 2 count]`, in float32 or better.

    sin(2 pi f v) for each f of a geometric series from `lowest` to `highest`, in
    periods per unit of v, then the cosines. One frequency is `lowest`. Raises
    OutOfRange for a count below 1 and for frequencies of 0 or less, or if `highest` is
    below `lowest`.
    """
    check_range(1, count=count)
    check_range(TINY, lowest=lowest)
    check_range(lowest, highest=highest)
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    frequencies = jnp.asarray(np.geomspace(lowest, highest, count), dtype)
    angles = 2 * jnp.pi * values.astype(dtype)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], 1)


class MlpDenoiser(nnx.Module):
    """Layers with SiLU on x, the condition and Fourier features of the time together.

    `condition` may be 0: then pass condition[n, 0]. The result has `param_dtype`.
    Raises InputError for inputs of another width.
    """

    def __init__(
        self,
        *,
        features: int,
        condition: int,
        hidden: Sequence[int] = (128, 128, 128),
        frequencies: int = 16,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, features=features, hidden=hidden, frequencies=frequencies)
        check_range(0, condition=condition)
        layer: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths = [features + condition + 2 * frequencies, *hidden]
        self.layers = nnx.List(
            nnx.Linear(wide, out, **layer) for wide, out in itertools.pairwise(widths)
        )
        self.last = _zero_linear(widths[-1], features, **layer)
        self.features, self.condition = features, condition
        self.frequencies, self.param_dtype = frequencies, param_dtype

    def __call__(
        self, x: jax.Array, time: jax.Array, condition: jax.Array
    ) -> jax.Array:
        _check_inputs(self, x, time, condition)
        at = fourier(time, self.frequencies, _LOWEST, _HIGHEST)
        h = jnp.concatenate([x, condition, at], 1)
        for layer in self.layers:
            h = jax.nn.silu(layer(h))
        return self.last(h).astype(self.param_dtype)


class PerceiverDenoiser(nnx.Module):
    """Perceiver IO (Jaegle et al. 2022): latents read the input, the output reads them.

    tokens = x_i w + position_i of each number, one of the condition and one of the time
    z = latents;   z += attention(z, tokens), MLP;   `blocks` times z += self-attention,
    MLP;   y = tokens of x;   y += attention(y, z), MLP;   output_i = linear(norm(y_i))

    with pre-norm as in `polyview.nn.vit`. The work grows with features times latents,
    not with the square of the features. Queries of the output are the tokens of x, as
    the paper's are for optical flow: so x_i need not come through the latents. Without
    a condition (0; pass condition[n, 0]) it has no token. The result has `param_dtype`.
    Raises InputError for a width that is not a multiple of `heads` and for inputs of
    another width.
    """

    def __init__(
        self,
        *,
        features: int,
        condition: int,
        latents: int = 64,
        width: int = 128,
        blocks: int = 2,
        heads: int = 4,
        frequencies: int = 16,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, features=features, latents=latents, width=width, heads=heads)
        check_range(1, frequencies=frequencies)
        check_range(0, condition=condition)
        check_range(0, 1000, blocks=blocks)
        if width % heads:
            raise InputError(f"width={width} is not a multiple of heads={heads}")
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        bare: dict = {"use_bias": False, **options}  # a position is a bias of its own
        unit = jax.nn.initializers.normal(1.0)
        self.of_number = nnx.Linear(1, width, kernel_init=unit, **bare)
        self.of_time = nnx.Linear(2 * frequencies, width, **bare)
        self.of_condition = nnx.Linear(condition, width, **bare) if condition else None
        # Not small, unlike a ViT's: the norm of x_i w + position_i would otherwise
        # leave nothing but the sign of x_i.
        shape = (1, features + 1 + bool(condition), width)
        self.position = nnx.Param(unit(rngs.params(), shape, param_dtype))
        near_zero = jax.nn.initializers.truncated_normal(0.02)
        shape = (1, latents, width)
        self.latents = nnx.Param(near_zero(rngs.params(), shape, param_dtype))
        self.read = CrossBlock(width, heads, **options)
        self.blocks = nnx.List([Block(width, heads, **options) for _ in range(blocks)])
        self.write = CrossBlock(width, heads, **options)
        self.norm = nnx.LayerNorm(width, **options)
        self.last = _zero_linear(width, 1, **options)
        self.features, self.condition = features, condition
        self.frequencies, self.param_dtype = frequencies, param_dtype

    def __call__(
        self, x: jax.Array, time: jax.Array, condition: jax.Array
    ) -> jax.Array:
        _check_inputs(self, x, time, condition)
        at = fourier(time, self.frequencies, _LOWEST, _HIGHEST)
        parts = [self.of_number(x[..., None]), self.of_time(at)[:, None]]
        if self.of_condition is not None:
            parts.append(self.of_condition(condition)[:, None])
        tokens = jnp.concatenate(parts, 1)
        tokens += self.position[...].astype(tokens.dtype)
        latents = self.latents[...].astype(tokens.dtype)
        z = jnp.broadcast_to(latents, (len(x), *latents.shape[1:]))
        z = self.read(z, tokens)
        for block in self.blocks:
            z = block(z)
        y = self.write(tokens[:, : self.features], z)
        return self.last(self.norm(y))[..., 0].astype(self.param_dtype)


class CrossBlock(nnx.Module):
    """Multi-head attention to other tokens, then a GELU MLP of four times the width.

    `x[n, q, width], others[n, p, width] -> [n, q, width]`, each with a norm of its own.
    """

    def __init__(self, width: int, heads: int, **options: Any):
        options = {"kernel_init": jax.nn.initializers.xavier_uniform(), **options}
        of_norm = {k: v for k, v in options.items() if k != "kernel_init"}
        self.heads = heads
        self.norm1 = nnx.LayerNorm(width, **of_norm)
        self.others = nnx.LayerNorm(width, **of_norm)
        self.query = nnx.Linear(width, width, **options)
        self.key = nnx.Linear(width, width, **options)
        self.value = nnx.Linear(width, width, **options)
        self.out = nnx.Linear(width, width, **options)
        self.norm2 = nnx.LayerNorm(width, **of_norm)
        self.up = nnx.Linear(width, 4 * width, **options)
        self.down = nnx.Linear(4 * width, width, **options)

    def __call__(self, x: jax.Array, others: jax.Array) -> jax.Array:
        def split(h: jax.Array) -> jax.Array:
            return h.reshape(*h.shape[:2], self.heads, -1)

        read = self.others(others)
        query = split(self.query(self.norm1(x)))
        mixed = attention(query, split(self.key(read)), split(self.value(read)))
        x = x + self.out(mixed.reshape(x.shape))
        h = jax.nn.gelu(self.up(self.norm2(x)), approximate=False)
        return x + self.down(h)


def _zero_linear(in_features: int, out: int, **options: Any) -> nnx.Linear:
    zeros = jax.nn.initializers.zeros
    return nnx.Linear(in_features, out, kernel_init=zeros, **options)


def _check_inputs(
    denoiser: MlpDenoiser | PerceiverDenoiser,
    x: jax.Array,
    time: jax.Array,
    condition: jax.Array,
) -> None:
    """Raise InputError for inputs of other shapes than the denoiser was made for."""
    wanted = (len(x), denoiser.features), (len(x),), (len(x), denoiser.condition)
    given = x.shape, time.shape, condition.shape
    if given != wanted:
        raise InputError(
            f"the denoiser takes x[n, {denoiser.features}], time[n] and condition[n, "
            f"{denoiser.condition}], but x, time and condition have shapes "
            f"{', '.join(map(str, given))}; correct its features or condition"
        )
