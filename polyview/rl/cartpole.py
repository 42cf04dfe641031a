"""The pole on a cart (Barto, Sutton & Anderson 1983), on the device.

Equations, limits and rewards are those of Gymnasium's CartPole-v1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GRAVITY, CART, POLE, HALF = 9.8, 1.0, 0.1, 0.5  # m/s^2, kg, kg, m
FORCE, SECONDS = 10.0, 0.02
FARTHEST, WIDEST = 2.4, 12 * 2 * jnp.pi / 360  # m, radians


class State(NamedTuple):
    """Place, speed, angle and its speed, float[4], and the steps so far."""

    numbers: jax.Array
    steps: jax.Array


class CartPole:
    """An `polyview.rl.environment:ArrayEnvironment`: reward 1 a step until it falls.

    Two actions push left and right. Success is to reach the limit.
    """

    actions = 2

    def __init__(self, limit: int = 500):
        self.limit = limit

    def begin(self, key: jax.Array) -> State:
        """Return a pole near the middle, upright and at rest."""
        numbers = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return State(numbers, jnp.zeros((), jnp.int32))

    def step(self, state: State, action: jax.Array) -> tuple[State, Any, Any, Any, Any]:
        """Push, by one step of Euler."""
        x, v, angle, turn = state.numbers
        force = jnp.where(action == 1, FORCE, -FORCE)
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        whole = CART + POLE
        pushed = (force + POLE * HALF * turn**2 * sine) / whole
        lever = HALF * (4 / 3 - POLE * cosine**2 / whole)
        turning = (GRAVITY * sine - cosine * pushed) / lever
        moving = pushed - POLE * HALF * turning * cosine / whole
        rates = jnp.stack([v, moving, turn, turning])
        numbers = state.numbers + SECONDS * rates
        steps = state.steps + 1
        fell = (jnp.abs(numbers[0]) > FARTHEST) | (jnp.abs(numbers[2]) > WIDEST)
        cut = steps >= self.limit
        one = jnp.ones((), jnp.float32)
        return State(numbers, steps), one, fell, cut, cut & ~fell

    def observe(self, state: State) -> dict[str, jax.Array]:
        """Return the four numbers."""
        return {"state": state.numbers}
