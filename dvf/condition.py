"""What a future is conditioned on: state, offset, policy and action, as one vector.

An offset enters as Fourier features of its logarithm, a policy by `dvf.policies`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from polyview.errors import TINY, InputError, check_range
from polyview.nn.denoiser import fourier

# Periods of the logarithm of the offset, from 1 to the longest that is told apart.
_LOWEST, _HIGHEST = 0.25, 4.0


class Scale(nnx.Module):
    """States in units of their deviation: (state - mean) / std, and back.

    Raises InputError for means and deviations of different numbers, and OutOfRange for
    a deviation that is not positive: such a dimension is constant.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        if len(mean) != len(std) or not len(mean):
            raise InputError(
                f"mean has {len(mean)} numbers and std {len(std)}; give one of each "
                "for each dimension of a state"
            )
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        check_range(-1e30, 1e30, mean=self.mean)
        check_range(TINY, 1e30, std=self.std)
        self.features = len(self.mean)

    def apart(self, states: jax.Array) -> jax.Array:
        """Return float[n, d] with mean 0 and deviation 1 over the data."""
        return (states - _row(self.mean)) / _row(self.std)

    def together(self, scaled: jax.Array) -> jax.Array:
        """Return the states float[n, d] of what `apart` returned."""
        return scaled * _row(self.std) + _row(self.mean)


def _row(numbers: Sequence[float]) -> np.ndarray:
    return np.array([numbers], np.float32)


class Condition(nnx.Module):
    """One vector of a state, an offset, a policy and an action: float[n, width].

    Args:
      scale: of the states.
      policies: a module of `dvf.policies`; None if one policy acted, or if the model
        should not distinguish them.
      actions: the size of the action that follows the state; 0: none is known, and what
        follows is the policy's own.
      offset_features: a quarter of a period to 4 periods of log(offset), sines and
        cosines; 0: no offset is told, and futures of all offsets are one distribution.
      longest: offsets from here on look alike.
    """

    def __init__(
        self,
        *,
        scale: Scale,
        policies: Any = None,
        actions: int = 0,
        offset_features: int = 16,
        longest: float = 1000.0,
    ):
        check_range(0, actions=actions, offset_features=offset_features)
        check_range(1.0 + TINY, longest=longest)
        if offset_features % 2:
            raise InputError(
                f"offset_features={offset_features}: it counts sines and cosines; give "
                "an even number"
            )
        self.scale, self.policies, self.actions = scale, policies, actions
        self.offset_features, self.longest = offset_features, longest
        told = 0 if policies is None else policies.width
        self.width = scale.features + offset_features + told + actions

    def of_policy(self, policy: jax.Array | None) -> jax.Array | None:
        """Return the representation float[n, p] of policies, None for a model of one.

        policy: as the module of policies takes it. Raises InputError if there is none.
        """
        if self.policies is None:
            return None
        if policy is None:
            raise InputError(
                "the batch does not say which policy acted; add 'policy' to "
                "views.targets, or set model.policies to None"
            )
        return self.policies(policy)

    def __call__(
        self,
        state: jax.Array,
        offset: jax.Array,
        policy: jax.Array | None,
        action: jax.Array | None,
    ) -> jax.Array:
        """state: float[n, d], offset: int[n], action: float[n, a] where `actions`.

        policy: what `of_policy` returns, with n rows. Raises InputError for a missing
        action, and for states and actions of another size.
        """
        d, n = self.scale.features, len(state)
        if state.shape != (n, d):
            raise InputError(
                f"states have shape {state.shape}, the model takes [n, {d}]; set "
                "model.scale to the mean and deviation of these data"
            )
        parts = [self.scale.apart(state)]
        if self.offset_features:
            steps = jnp.clip(offset.astype(jnp.float32), 1, self.longest)
            place = jnp.log(steps) / math.log(self.longest)
            parts.append(fourier(place, self.offset_features // 2, _LOWEST, _HIGHEST))
        if policy is not None:
            parts.append(policy)
        if not self.actions and action is not None:
            raise InputError(
                "the model is not told actions (model.actions=0), and there are some; "
                "evaluate on roll-outs without a first one, such as values_test"
            )
        if self.actions:
            if action is None or action.shape != (n, self.actions):
                has = "none" if action is None else f"actions of shape {action.shape}"
                raise InputError(
                    f"the model takes actions [n, {self.actions}], and there are {has};"
                    " set views.actions and model.actions to the data"
                )
            parts.append(action)
        return jnp.concatenate([p.astype(jnp.float32) for p in parts], 1)
