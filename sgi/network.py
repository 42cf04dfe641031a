"""The network of SGI and of the agent it is fine-tuned into (Schwarzer et al. 2021).

    latent       z = renormalise(encoder(x))           x[n, h, w, 4] -> z[n, y, x, c]
    transition   z' = renormalise(relu(conv(norm(relu(conv([z, one-hot action]))))))

The encoders are in `sgi.encoders`, the heads in `sgi.heads`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn.norm import BatchNorm
from polyview.nn.towers import Features
from polyview.objectives.base import Batch
from sgi.encoders import Nature, Residual
from sgi.heads import GoalHead, Head, Inverse
from sgi.layers import conv, flat, linear, wide


def renormalise(x: jax.Array) -> jax.Array:
    """Map each row of `x[n, ...]` from its minimum and maximum onto [0, 1].

    (x - min) / (max - min + 1e-5), in float32 or better; a constant row becomes zero.
    The official code adds no 1e-5, so a constant row becomes NaN there.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(1, x.ndim))
    low, high = (f(x, axes, keepdims=True) for f in (jnp.min, jnp.max))
    return (x - low) / (high - low + 1e-5)


class Transition(nnx.Module):
    """Predicts the latent after an action: `latent[n, y, x, c]`, `action: int[n]`."""

    def __init__(self, channels: int, actions: int, **options: Any):
        self.actions = actions
        self.first = conv(channels + actions, channels, 3, padding=1, **options)
        self.norm = BatchNorm(channels, **options)
        self.last = conv(channels, channels, 3, padding=1, **options)

    def __call__(
        self, latent: jax.Array, action: jax.Array, *, train: bool
    ) -> jax.Array:
        chosen = jax.nn.one_hot(action, self.actions, dtype=latent.dtype)
        shape = (*latent.shape[:-1], self.actions)
        chosen = jnp.broadcast_to(chosen[:, None, None], shape)
        x = self.first(jnp.concatenate([latent, chosen], -1))
        x = self.norm(jax.nn.relu(x), train=train)  # the norm follows the ReLU
        return renormalise(jax.nn.relu(self.last(x)))


class Standardise(nnx.Module):
    """(x - mean) / sqrt(var + 1e-5) of each of the last axis's `features`.

    Mean and variance of `x[b, ..., features]` are over b alone. Each step has its own,
    because observed and predicted latents differ by an offset that would otherwise
    dominate. The running statistics, for use outside of training, follow the first
    step; momentum 0.1. Nothing is learned.
    """

    def __init__(self, features: int, param_dtype: DTypeLike):
        self.mean = nnx.BatchStat(jnp.zeros(features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(features, param_dtype))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        mean, var = self.mean[...], self.var[...]
        if train:
            exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean, var = exact.mean(0, keepdims=True), exact.var(0, keepdims=True)
            for running, batch in (self.mean, mean), (self.var, var):
                first = jax.lax.stop_gradient(batch.reshape(-1, batch.shape[-1])[0])
                moved = 0.9 * running[...] + 0.1 * first
                running[...] = moved.astype(running[...].dtype)
        leading = (1,) * (x.ndim - mean.ndim)
        mean, var = (a.reshape(*leading, *a.shape) for a in (mean, var))
        return ((x - mean) * jax.lax.rsqrt(var + 1e-5)).astype(x.dtype)


class Network(nnx.Module):
    """The whole of SGI for one game: the pre-trained parts and the agent's own head.

    `actions` is the size of the game's action set. `encoder(history=, rngs=, ...)`
    makes an encoder of stacks of `history` frames, `image` pixels a side. `hidden` is
    the width of the heads, `sigma` their initial noise: 0 in pre-training, 0.5 in
    fine-tuning. See `GoalHead` for `film_value_from`. With `standardise`, latents are
    standardised before they are projected (`Standardise`), which the paper does not do:
    frames of a game share almost all of a latent, and without it projections hardly
    differ.
    """

    def __init__(
        self,
        *,
        actions: int,
        encoder: Callable[..., Residual | Nature],
        hidden: int = 512,
        sigma: float = 0.0,
        film_value_from: Literal["advantage", "value"] = "advantage",
        standardise: bool = False,
        history: int = 4,
        image: int = 84,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        options["rngs"] = rngs
        check_range(1, actions=actions, hidden=hidden, history=history, image=image)
        self.history, self.actions = history, actions
        self.encoder = encoder(history=history, **options)
        side, channels = self.encoder.side(image), self.encoder.channels
        self.transition = Transition(channels, actions, **options)
        heads = {"hidden": hidden, "sigma": sigma} | options
        self.head = Head(side * side * channels, actions, **heads)
        self.goal_head = GoalHead(
            side, channels, actions, film_value_from=film_value_from, **heads
        )
        size = side * side * channels
        self.standardise = Standardise(size, param_dtype) if standardise else None
        self.predictor = linear(2 * hidden, 2 * hidden, **options)
        self.inverse = Inverse(2 * hidden, actions, **options)

    def encode(self, stacks: jax.Array, *, train: bool) -> jax.Array:
        """Return latents `[n, y, x, c]` in [0, 1] of `stacks[n, h, w, history]`.

        Stacks are uint8, or floats in or near [0, 1].
        """
        if stacks.dtype == jnp.uint8:
            stacks = stacks.astype(float) / 255
        return renormalise(self.encoder(stacks, train=train))

    def project(
        self, latents: jax.Array, *, train: bool, head: Head | None = None
    ) -> jax.Array:
        """Project `latents[..., y, x, c]` to `[..., d]` by a head, the goal's if None.

        If the network standardises, each k of `latents[b, k, y, x, c]` has its own mean
        and deviation over the batch.
        """
        leading, size = latents.shape[:-3], math.prod(latents.shape[-3:])
        x = latents.reshape(*leading, size)
        if self.standardise is not None:
            x = self.standardise(x, train=train)
        z = (self.goal_head.head if head is None else head).project(x.reshape(-1, size))
        return z.reshape(*leading, -1)

    def predict(self, projections: jax.Array) -> jax.Array:
        """Predict the target network's projections, `[..., d]`."""
        return wide(self.predictor(projections))

    def infer(self, frames: jax.Array) -> jax.Array:
        """Return logits `[b, actions]` of the action before the last frame.

        `frames: uint8[b, history + 1, h, w]`. Uses the weights, not their average, for
        both stacks, and running statistics.
        """
        frames = jnp.asarray(frames)
        stacks = (frames[:, :-1], frames[:, 1:])
        before, after = (
            self.project(self.encode(jnp.moveaxis(x, 1, -1), train=False), train=False)
            for x in stacks
        )
        return self.inverse(before, after)

    def __call__(
        self, batch: Batch, *, key: jax.Array | None, train: bool
    ) -> dict[str, Features]:
        """Return {"frames": features} of the stack at time t: h latent, z projection.

        `batch["views"]["frames"]: uint8[b, history or more, h, w]`. Uses no noise.
        """
        del key
        frames = batch["views"]["frames"][:, : self.history]
        latents = self.encode(jnp.moveaxis(jnp.asarray(frames), 1, -1), train=train)
        return {"frames": features(latents, self.project(latents, train=train))}


def features(latents: jax.Array, projections: jax.Array) -> Features:
    """Return features with one view a row; h is the flattened latent."""
    return Features(z=projections[:, None], h=flat(latents)[:, None], local=None)
