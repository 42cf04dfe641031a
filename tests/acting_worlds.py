"""Small environments on the device, for tests of actors and their learner."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from polyview.errors import check_range


class State(NamedTuple):
    """The word that was told, what is shown now, and the steps so far."""

    word: jax.Array
    shown: jax.Array
    steps: jax.Array


class Told:
    """Take the action that was told as a word: reward 1, and the episode is over.

    What is shown are three random numbers, of no use. An episode has at most `limit`
    steps. With `first_only` the word is seen in the first observation alone.
    """

    actions = 4

    def __init__(self, limit: int = 4, length: int = 3, first_only: bool = False):
        check_range(1, limit=limit)
        self.limit, self.length, self.first_only = limit, length, first_only

    def begin(self, key: jax.Array) -> State:
        word, shown = jax.random.split(key)
        number = jax.random.randint(word, (), 0, self.actions)
        return State(number, jax.random.normal(shown, (3,)), jnp.zeros((), jnp.int32))

    def step(self, state: State, action: jax.Array) -> tuple[State, Any, Any, Any, Any]:
        right = action == state.word
        steps = state.steps + 1
        shown = jnp.roll(state.shown, 1) * jnp.float32(0.9)
        new = State(state.word, shown, steps)
        return new, right.astype(jnp.float32), right, steps >= self.limit, right

    def observe(self, state: State) -> dict[str, jax.Array]:
        place = jnp.arange(self.length)
        # Words have one or two tokens, so that padding differs between rows.
        told = jnp.where(place == 0, 10 + state.word, -1)
        told = jnp.where((place == 1) & (state.word % 2 == 0), 20, told)
        numbers = state.shown
        if self.first_only:
            own = jnp.where(state.steps == 0, state.word, -1)
            numbers = numbers.at[0].set(own.astype(numbers.dtype))
            return {"state": numbers}
        return {"state": numbers, "text": told.astype(jnp.int32)}
