"""A script that sees the whole state, and fulfils the goal from any state.

It brings one object after the other: first what it holds, then what is where it stands,
then what is behind no closed door. It is not the shortest way: it opens a door when it
comes to it, and does not plan the order.
"""

from typing import Any

import jax.numpy as jnp

from agents.rearrange.environment import HAND, State, needed, shut
from agents.rearrange.words import CATEGORIES, DOORS, RECEPTACLES

# The first skill of each kind.
_GO = 0
_PICK = _GO + len(RECEPTACLES)
_PLACE = _PICK + len(CATEGORIES)
_OPEN = _PLACE + len(RECEPTACLES)
_CLOSE = _OPEN + DOORS


def solve(state: State) -> Any:
    """Return the next skill, int32."""
    left, holds = needed(state)
    objects = left.any(0)
    held, closed = state.places == HAND, shut(state, jnp.arange(len(RECEPTACLES)))
    in_hand, item = held.any(), jnp.argmax(held)

    # What is held goes to its target; if it is not needed, to that of the first clause,
    # where no other of its category still has to be picked up.
    target = state.episode.target[jnp.argmax(left[:, item])]
    # Else the next object: the lowest cost, of those still needed.
    cost = 2 * (state.places != state.agent) + closed[jnp.minimum(state.places, 7)]
    following = jnp.argmin(jnp.where(objects, cost, 9))
    category = jnp.asarray(state.episode.categories, jnp.int32)[following]

    # Else doors.
    doors = state.episode.doors
    wrong = (doors >= 0) & (doors != state.open)
    door = jnp.argmax(wrong)
    at_last = holds.all()

    place = jnp.where(in_hand, target, state.places[following])
    place = jnp.where(at_last, door, place).astype(jnp.int32)
    there = jnp.where(in_hand, _PLACE + place, _PICK + category)
    there = jnp.where(closed[place], _OPEN + place, there)
    there = jnp.where(at_last & ~closed[place], _CLOSE + place, there)
    return jnp.where(state.agent == place, there, _GO + place).astype(jnp.int32)
