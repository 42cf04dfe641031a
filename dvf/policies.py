"""Which policy acts, as a vector: by its number, or by what it does.

Both are called with one row a policy and have a `width`. `of(batch)` is what a batch
tells of the policy of each episode, or None if it tells nothing.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dvf.condition import Scale
from polyview.errors import InputError, check_range
from polyview.objectives.base import Batch

POLICY, ROLLOUT = "policy", "rollout"  # names of a target and of a view


class Numbered(nnx.Module):
    """One of `count` policies by its number: int[n] -> its indicator, [n, count].

    What is learnt of a policy says nothing of another. A number outside 0 .. count - 1
    is an indicator of zeros, which no training saw.
    """

    def __init__(self, count: int, rngs: nnx.Rngs | None = None):
        check_range(2, count=count)
        self.width = self.count = count

    def __call__(self, policy: jax.Array) -> jax.Array:
        return jax.nn.one_hot(policy, self.count, dtype=jnp.float32)

    def of(self, batch: Batch) -> jax.Array | None:
        """The target "policy" of each episode, int[b]."""
        return batch["targets"].get(POLICY)


class Observed(nnx.Module):
    """A policy by a roll-out of it: float[n, steps, d] -> the mean of an MLP's output.

    The MLP sees each state and the change to the next, in units of the deviation, and
    its mean over time has no order: what is told are the places and the ways of the
    policy (as a set, Zaheer et al. 2017). So a policy that no training saw has a
    representation as well. The roll-out must not be the future that is to be told.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        hidden: Sequence[int] = (64, 64),
        width: int = 16,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, hidden=hidden, width=width)
        self.scale, self.width = Scale(mean, std), width
        widths = [2 * len(mean), *hidden, width]
        layer: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layers = nnx.List(
            nnx.Linear(wide, out, **layer) for wide, out in pairwise(widths)
        )

    def __call__(self, policy: jax.Array) -> jax.Array:
        n, steps, d = policy.shape
        if steps < 2:
            raise InputError(f"a roll-out of {steps} states shows no change; give more")
        flat = self.scale.apart(policy.reshape(n * steps, d)).reshape(n, steps, d)
        h = jnp.concatenate([flat[:, :-1], flat[:, 1:] - flat[:, :-1]], 2)
        for layer in self.layers[:-1]:
            h = jax.nn.silu(layer(h))
        return self.layers[-1](h).mean(1).astype(jnp.float32)

    def of(self, batch: Batch) -> jax.Array | None:
        """The view "rollout" of each episode, float[b, steps, d]."""
        return batch["views"].get(ROLLOUT)
