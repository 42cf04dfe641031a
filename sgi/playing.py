"""Play: a policy acts, and what was seen, done and earned is handed on step by step.

A policy is any function of the last four frames; ours are the uniform one (SGI-R) and
the epsilon-mixture that turns a checkpoint of an agent into play of a certain strength.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sgi.atari import SIZE, Game
from sgi.recording import HISTORY, Step

# Frames uint8[4, 84, 84], the newest last, to an index into the game's actions.
Policy = Callable[[np.ndarray, np.random.Generator], int]


@dataclass(frozen=True)
class Uniform:
    """Every one of `actions` is as likely as another."""

    actions: int

    def __call__(self, stack: np.ndarray, rng: np.random.Generator) -> int:
        return int(rng.integers(self.actions))


@dataclass(frozen=True)
class EpsilonGreedy:
    """A policy that is uniform over `actions` with probability `epsilon`."""

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

    A game starts with 1 .. `noops` frames without action (none if `noops` is 0). As in
    the DQN Replay data a lost life does not end an episode.
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
