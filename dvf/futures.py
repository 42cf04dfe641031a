"""Pairs of a state and a later one as rows, and futures as weighted states."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dvf.condition import Condition
from polyview.data.later import ACTION, OFFSET
from polyview.errors import InputError
from polyview.objectives.base import Batch

STATE, LATER = "state", "later"


class Futures(NamedTuple):
    """States that come later, and their probabilities.

    states: float[n, count, d]. weights: float[n, count], which sum to 1.
    """

    states: jax.Array
    weights: jax.Array


class Pairs(NamedTuple):
    """The n = b m pairs of a batch, in order of their episodes.

    state, later: float[n, d]. offset: int[n]. present: bool[n], whether there is a
    later state. policy: float[n, p], its representation, or None. action: float[n, a],
    or None. number: int[n], a number of its own for each pair.
    """

    state: jax.Array
    later: jax.Array
    offset: jax.Array
    present: jax.Array
    policy: jax.Array | None
    action: jax.Array | None
    number: jax.Array


def pairs(batch: Batch, condition: Condition) -> Pairs:
    """Return the pairs of a batch of `polyview.data.later:Later`.

    Raises InputError for a batch of other views, or without the policy it should tell.
    """
    views, targets = batch["views"], batch["targets"]
    for part, name in (views, STATE), (views, LATER), (targets, OFFSET):
        if name not in part:
            raise InputError(
                f"the batch has no {name!r}, only {', '.join(sorted(part)) or 'none'}; "
                "set views to polyview.data.later:Later, with its own names"
            )
    b, m = views[STATE].shape[:2]

    def rows(x: jax.Array) -> jax.Array:
        return x.reshape(b * m, *x.shape[2:])

    policies = condition.policies
    policy = condition.of_policy(None if policies is None else policies.of(batch))
    action = views.get(ACTION)
    episode = batch["index"]
    number = episode[:, None] * m + jnp.arange(m, dtype=episode.dtype)[None]
    return Pairs(
        rows(views[STATE]),
        rows(views[LATER]),
        rows(targets[OFFSET]),
        rows(batch["present"][LATER]),
        None if policy is None else jnp.repeat(policy, m, 0),
        None if action is None else rows(action.astype(jnp.float32)),
        rows(number),
    )
