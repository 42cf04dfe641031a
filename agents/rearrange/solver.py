"""A script that fulfils the goal from any state: all-seeing, or one that searches.

It brings one object after the other: first what it holds, then what is where it stands,
then what is behind no closed door. It is not the shortest way: it opens a door when it
comes to it, and does not plan the order. If it knows only what it has looked at, and
nothing of that is needed, it looks at the next receptacle to the right, and opens it.
A policy that sees pictures can imitate that one: it is told where to go by what it saw.
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


def look(state: State, seen: Any) -> Any:
    """Return the receptacles that were looked at, bool[8], with the one that is now."""
    now = jnp.arange(len(RECEPTACLES)) == state.agent
    return seen | (now & ~shut(state, state.agent))


def solve(state: State, seen: Any = None) -> Any:
    """Return the next skill, int32.

    seen: bool[8], the receptacles that were looked at since the start (`look`); None
    sees everything.
    """
    left, holds = needed(state)
    held, closed = state.places == HAND, shut(state, jnp.arange(len(RECEPTACLES)))
    in_hand, item = held.any(), jnp.argmax(held)
    seen = jnp.ones(len(RECEPTACLES), bool) if seen is None else seen
    objects = left.any(0) & seen[jnp.minimum(state.places, len(RECEPTACLES) - 1)]
    right = (jnp.arange(len(RECEPTACLES)) - state.agent) % len(RECEPTACLES)
    unseen = jnp.argmin(jnp.where(seen, len(RECEPTACLES), right))
    lost = ~objects.any() & ~in_hand & ~holds.all()

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
    place = jnp.where(lost, unseen, jnp.where(at_last, door, place)).astype(jnp.int32)
    there = jnp.where(in_hand, _PLACE + place, _PICK + category)
    there = jnp.where(closed[place], _OPEN + place, there)
    there = jnp.where(at_last & ~closed[place], _CLOSE + place, there)
    return jnp.where(state.agent == place, there, _GO + place).astype(jnp.int32)
