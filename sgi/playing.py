"""Play a game with a policy, and yield the steps.

A policy is any function of the last four frames. Ours are the uniform policy (SGI-R)
and an epsilon-greedy mixture, which turns an agent into play of a certain strength.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sgi.atari import SIZE, Game
from sgi.recording import HISTORY, Step

# Maps frames uint8[4, 84, 84], the newest last, to an index into the game's actions.
Policy = Callable[[np.ndarray, np.random.Generator], int]


@dataclass(frozen=True)
class Uniform:
    """Draws each of `actions` actions with equal probability."""

    actions: int

    def __call__(self, stack: np.ndarray, rng: np.random.Generator) -> int:
        return int(rng.integers(self.actions))


@dataclass(frozen=True)
class EpsilonGreedy:
    """A policy that acts uniformly over `actions` with probability `epsilon`."""

    policy: Policy
    epsilon: float
    actions: int

    def __call__(self, stack: np.ndarray, rng: np.random.Generator) -> int:
        if rng.random() < self.epsilon:
            return int(rng.integers(self.actions))
        return self.policy(stack, rng)


def play(
    game: Game, policy: Policy, steps: int, rng: np.random.Generator, noops: int
) -> Iterator[Step]:
    """Yield `steps` steps of whole games; the last one may be left unfinished.

    A game starts with 1 .. `noops` frames without action (none if `noops` is 0). A lost
    life does not end an episode, as in the DQN Replay data.
    """
    stack = np.zeros((HISTORY, SIZE, SIZE), np.uint8)
    first = True
    for _ in range(steps):
        if first:
            stack[:] = 0
            stack[-1] = game.reset(int(rng.integers(1, noops + 1)) if noops else 0)
        frame, ram = stack[-1].copy(), game.ram()
        action = policy(stack, rng)
        outcome = game.step(action)
        over = outcome.game_over or outcome.truncated
        yield Step(frame, action, outcome.reward, over, first, ram)
        stack = np.concatenate([stack[1:], outcome.frame[None]])
        first = over
