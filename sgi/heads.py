"""Prediction heads of SGI's network and of its agent.

    head         logits of Z(z, a): value + advantage - its mean over the actions
    projection   the first linear layers of a head, concatenated, without noise
    goal head    a head with its hidden layers scaled and shifted according to a goal
    inverse      logits of the action between two projections

No module keeps random state: each call is given the key of its noise.
"""

from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sgi.layers import cast, conv, flat, linear, torch_uniform, wide

ATOMS = 51
LIMIT = 10.0


def support(dtype: DTypeLike = float) -> jax.Array:
    """Return the atoms of the heads' distributions: 51 returns from -10 to 10."""
    return jnp.linspace(-LIMIT, LIMIT, ATOMS, dtype=dtype)


class NoisyLinear(nnx.Module):
    """A linear layer with learned, factorised Gaussian noise (Fortunato et al. 2018).

    y = (W + S * f(e) f(e')^T) x + b + s * f(e), f(e) = sign(e) sqrt|e|. e and e' are
    normal, drawn from `key` once for the whole batch; without a key, y = W x + b. S
    starts at `sigma / sqrt(inputs)`, s at `sigma / sqrt(outputs)`; both are trained,
    even from 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        sigma: float,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        uniform = torch_uniform(inputs)
        self.kernel = nnx.Param(uniform(rngs.params(), (inputs, outputs), param_dtype))
        self.bias = nnx.Param(uniform(rngs.params(), (outputs,), param_dtype))
        noise = jnp.full((inputs, outputs), sigma / inputs**0.5, param_dtype)
        self.kernel_sigma = nnx.Param(noise)
        self.bias_sigma = nnx.Param(
            jnp.full((outputs,), sigma / outputs**0.5, param_dtype)
        )
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        kernel, bias = self.kernel[...], self.bias[...]
        if key is not None:
            draws = (
                jax.random.normal(k, (size,), kernel.dtype)
                for k, size in zip(jax.random.split(key), kernel.shape, strict=True)
            )
            into, out = (jnp.sign(e) * jnp.sqrt(abs(e)) for e in draws)
            kernel += self.kernel_sigma[...] * (into[:, None] * out[None])
            bias += self.bias_sigma[...] * out
        x, kernel, bias = cast(self.dtype, x, kernel, bias)
        return x @ kernel + bias[None]


class Head(nnx.Module):
    """Distributions of the return of each action, duelling and noisy.

    `latent[n, ...] -> logits[n, actions, atoms]` (Bellemare et al. 2017; Wang et al.
    2016). The gradient into the latent is scaled by 1 / sqrt(2), because each of the
    two streams contributes one.
    """

    def __init__(
        self, inputs: int, actions: int, *, hidden: int, sigma: float, **options: Any
    ):
        self.actions = actions
        options |= {"sigma": sigma}
        self.advantage1 = NoisyLinear(inputs, hidden, **options)
        self.advantage2 = NoisyLinear(hidden, actions * ATOMS, **options)
        self.value1 = NoisyLinear(inputs, hidden, **options)
        self.value2 = NoisyLinear(hidden, ATOMS, **options)

    def __call__(self, latent: jax.Array, *, key: jax.Array | None) -> jax.Array:
        first, second = _split(key)
        return self.logits(*self.hidden(latent, key=first), key=second)

    def hidden(self, latent: jax.Array, *, key: jax.Array | None) -> list[jax.Array]:
        """Return the hidden layers of advantage and value, `[n, hidden]` each."""
        constant = jax.lax.stop_gradient(latent)
        x = flat(constant + 2**-0.5 * (latent - constant))
        layers = self.advantage1, self.value1
        return [
            jax.nn.relu(layer(x, key=k))
            for layer, k in zip(layers, _split(key), strict=True)
        ]

    def logits(
        self, advantage: jax.Array, value: jax.Array, *, key: jax.Array | None
    ) -> jax.Array:
        """Return logits `[n, actions, atoms]` of both hidden layers."""
        first, second = _split(key)
        advantage = self.advantage2(advantage, key=first)
        advantage = advantage.reshape(-1, self.actions, ATOMS)
        value = self.value2(value, key=second)[:, None]
        return wide(value + advantage - advantage.mean(1, keepdims=True))

    def project(self, latent: jax.Array) -> jax.Array:
        """Return the projection `[n, 2 hidden]`: the first layers, before the ReLU."""
        layers = self.advantage1, self.value1
        x = flat(latent)
        return wide(jnp.concatenate([layer(x, key=None) for layer in layers], -1))


class Conditioner(nnx.Module):
    """FiLM of two hidden layers by a goal: `goal[n, y, x, c] -> [n, 2, 2, hidden]`.

    The axes after n: the stream (advantage, value), then shift and scale (Perez et al.
    2018).
    """

    def __init__(self, side: int, channels: int, *, hidden: int, **options: Any):
        wide = 2 * channels
        self.hidden = hidden
        self.first = conv(channels, wide, 3, padding=1, **options)
        self.second = conv(wide, wide, 3, padding=1, **options)
        self.last = linear(side * side * wide, 4 * hidden, **options)

    def __call__(self, goal: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.second(jax.nn.relu(self.first(goal))))
        return self.last(flat(x)).reshape(-1, 2, 2, self.hidden)


class GoalHead(nnx.Module):
    """A head with hidden layers conditioned on a goal, which is itself a latent.

    `film_value_from` selects the layer that the goal scales and shifts for the value:
    "value", its own hidden layer; "advantage", the advantage's hidden layer after its
    own conditioning. The official code does the latter; the first layer of the value
    then learns through the projection only.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        actions: int,
        *,
        hidden: int,
        sigma: float,
        film_value_from: Literal["advantage", "value"],
        **options: Any,
    ):
        if film_value_from not in ("advantage", "value"):
            raise ValueError(
                'film_value_from must be "advantage" or "value", not '
                f"{film_value_from!r}"
            )
        self.film_value_from = film_value_from
        inputs = side * side * channels
        self.head = Head(inputs, actions, hidden=hidden, sigma=sigma, **options)
        self.conditioner = Conditioner(side, channels, hidden=hidden, **options)

    def __call__(
        self, latent: jax.Array, goal: jax.Array, *, key: jax.Array | None
    ) -> jax.Array:
        """Return logits `[n, actions, atoms]`; latent and goal are `[n, y, x, c]`."""
        first, second = _split(key)
        advantage, value = self.head.hidden(latent, key=first)
        film = self.conditioner(goal)
        advantage = advantage * film[:, 0, 1] + film[:, 0, 0]
        value = advantage if self.film_value_from == "advantage" else value
        value = value * film[:, 1, 1] + film[:, 1, 0]
        return self.head.logits(advantage, value, key=second)


class Inverse(nnx.Module):
    """Predicts the action between two projections: `[n, d]` each -> `[n, actions]`."""

    def __init__(self, inputs: int, actions: int, **options: Any):
        self.first = linear(2 * inputs, 256, **options)
        self.last = linear(256, actions, **options)

    def __call__(self, before: jax.Array, after: jax.Array) -> jax.Array:
        x = self.first(jnp.concatenate([before, after], -1))
        return wide(self.last(jax.nn.relu(x)))


def _split(key: jax.Array | None) -> Iterable[jax.Array | None]:
    """Return two keys, or None twice."""
    return (None, None) if key is None else jax.random.split(key)
