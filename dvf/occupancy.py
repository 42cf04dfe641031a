"""Models of the discounted occupancy of the future.

    rho(s' | s, policy) = (1 - g) sum_{k >= 1} g^(k - 1) P(s_{t+k} = s' | s_t = s)

Both learn from states alone: neither rewards nor, unless told, actions. They share

    sample(state, offset, policy, action, candidates, key, index) -> Futures
    log_ratio(state, offset, policy, action, later)       (the contrastive one alone)

with state: float[n, d]; offset: int[n, count], how far ahead each future lies; policy:
n rows as the model's policies take it, or None; action: float[n, a], the first one, or
None; candidates: float[c, d], states of the data, of which a model that only compares
takes its futures; index: int[n, count], which decides the random numbers of a future.

A model is told the offset k, and what it says of all k is put together again by the
true law of the offset (Mazoure et al. 2023), which `dvf.value:FromFutures` draws: so
the discount may be chosen after training, as the reward. Pairs that end beyond an
episode are missing in training, most of them of far offsets; that changes how often an
offset is seen, and not what is learnt of it. Without the offset (`offset_features=0`),
a model knows the discount of its training alone, and futures come out too near.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dvf.condition import Condition, Scale
from dvf.futures import Futures, Pairs
from polyview.errors import InputError, check_range
from polyview.objectives.diffusion import Process


class DiffusionOccupancy(nnx.Module):
    """A state that comes later, denoised given state, offset, policy and action.

    Args:
      mean, std: float[d] each, of the states of the data.
      process: `Diffusion` or `Flow` of `polyview.objectives.diffusion`; a clip is in
        units of the deviation.
      denoiser: makes the network, from `features`, `condition` and `rngs`.
      policies, actions, offset_features: see `dvf.condition:Condition`.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        process: Process,
        denoiser: Callable[..., nnx.Module],
        policies: Callable[..., nnx.Module] | None = None,
        actions: int = 0,
        offset_features: int = 16,
        rngs: nnx.Rngs,
    ):
        scale = Scale(mean, std)
        self.condition = Condition(
            scale=scale,
            policies=None if policies is None else policies(rngs=rngs),
            actions=actions,
            offset_features=offset_features,
        )
        self.denoiser = denoiser(
            features=scale.features, condition=self.condition.width, rngs=rngs
        )
        self.scale, self.process = scale, process

    def losses(self, pairs: Pairs, key: jax.Array) -> jax.Array:
        """Return the error of one prediction a pair, float[n]."""
        condition = self.condition(
            pairs.state, pairs.offset, pairs.policy, pairs.action
        )
        later = self.scale.apart(pairs.later)
        return self.process.loss(self.denoiser, later, condition, key, pairs.number)

    def sample(
        self,
        state: jax.Array,
        offset: jax.Array,
        policy: jax.Array | None,
        action: jax.Array | None,
        candidates: jax.Array | None,
        key: jax.Array,
        index: jax.Array,
    ) -> Futures:
        """Return a draw for each offset, all of one weight."""
        n, count = index.shape
        if offset.shape != index.shape:
            raise InputError(
                f"offset has shape {offset.shape} and index {index.shape}; give one of "
                "each for each future"
            )
        condition = self.condition(
            jnp.repeat(state, count, 0),
            offset.reshape(-1),
            _repeated(self.condition.of_policy(policy), count),
            _repeated(action, count),
        )
        features = self.scale.features
        drawn = self.process.sample(
            self.denoiser, condition, key, index.reshape(-1), features=features
        )
        states = self.scale.together(drawn).reshape(n, count, features)
        return Futures(states, jnp.full((n, count), 1 / count, states.dtype))


class ContrastiveOccupancy(nnx.Module):
    """log rho(s' | s) / p(s') as a product of two encodings, up to a number of s.

    p is the distribution of later states in the data. A future is one of `candidates`,
    drawn from p, with a weight that grows with the ratio: importance sampling
    (Eysenbach et al. 2021 learn such a ratio to reach goals).

    Args:
      width: of both encodings.
      hidden: of both networks, with SiLU.
      others: as in `DiffusionOccupancy`.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        policies: Callable[..., nnx.Module] | None = None,
        actions: int = 0,
        offset_features: int = 16,
        width: int = 64,
        hidden: Sequence[int] = (128, 128, 128),
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, width=width, hidden=hidden)
        self.scale = Scale(mean, std)
        self.condition = Condition(
            scale=self.scale,
            policies=None if policies is None else policies(rngs=rngs),
            actions=actions,
            offset_features=offset_features,
        )
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.of_now = Layers([self.condition.width, *hidden, width], **options)
        self.of_later = Layers([self.scale.features, *hidden, width], **options)

    def encodings(self, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        """Return float[n, width] of the states now, and of those that come later.

        Their products are divided by sqrt(width).
        """
        now = self._now(pairs.state, pairs.offset, pairs.policy, pairs.action)
        return now, self.of_later(self.scale.apart(pairs.later))

    def log_ratio(
        self,
        state: jax.Array,
        offset: jax.Array,
        policy: jax.Array | None,
        action: jax.Array | None,
        later: jax.Array,
    ) -> jax.Array:
        """Return the logarithm of the ratio, float[n, c], of each row to later[c, d].

        A number that depends on the row alone is missing from it. offset: int[n].
        """
        now = self._now(state, offset, self.condition.of_policy(policy), action)
        return now @ self.of_later(self.scale.apart(later)).T

    def sample(
        self,
        state: jax.Array,
        offset: jax.Array,
        policy: jax.Array | None,
        action: jax.Array | None,
        candidates: jax.Array | None,
        key: jax.Array,
        index: jax.Array,
    ) -> Futures:
        """Return all candidates for each row; their weights are averaged over offsets.

        Nothing is drawn by key and index.

        Raises InputError without candidates.
        """
        if candidates is None:
            raise InputError(
                "a model that compares takes its futures among states of the data; set "
                "estimate.candidates to dvf.value:later_states"
            )
        n, (c, d) = len(state), candidates.shape

        encoded = self.condition.of_policy(policy)
        to = self.of_later(self.scale.apart(candidates)).T

        def add(total: jax.Array, steps: jax.Array) -> tuple[jax.Array, None]:
            logs = self._now(state, steps, encoded, action) @ to
            return total + jax.nn.softmax(logs, 1) / offset.shape[1], None

        start = jnp.zeros((n, c), jnp.float32)
        weights = jax.lax.scan(add, start, offset.T)[0]
        return Futures(jnp.broadcast_to(candidates[None], (n, c, d)), weights)

    def _now(
        self,
        state: jax.Array,
        offset: jax.Array,
        policy: jax.Array | None,
        action: jax.Array | None,
    ) -> jax.Array:
        encoded = self.of_now(self.condition(state, offset, policy, action))
        return encoded / np.sqrt(encoded.shape[-1]).astype(np.float32)


class Layers(nnx.Module):
    """Linear layers of these widths with SiLU between them, in float32 at the end."""

    def __init__(self, widths: Sequence[int], **options: Any):
        self.layers = nnx.List(
            nnx.Linear(wide, out, **options) for wide, out in pairwise(widths)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = jax.nn.silu(layer(x))
        return self.layers[-1](x).astype(jnp.float32)


def _repeated(rows: jax.Array | None, count: int) -> jax.Array | None:
    return None if rows is None else jnp.repeat(rows, count, 0)
