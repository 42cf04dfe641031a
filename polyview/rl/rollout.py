"""Whole episodes of an environment, played by a policy. Numpy only."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from polyview.rl.environment import Environment, Observation

Policy = Callable[[Observation, np.random.Generator], Any]


class Episode(NamedTuple):
    """A played episode.

    Attributes:
      score: the sum of its rewards.
      steps: the number of its steps.
      finished: True if the environment ended it, False if the limit did.
    """

    score: float
    steps: int
    finished: bool


def rollout(
    environment: Environment, policy: Policy, seeds: Iterable[int], limit: int
) -> list[Episode]:
    """Play one episode from each seed, of at most `limit` steps.

    policy: `policy(observation, rng) -> action`. An episode is a function of its seed,
    which resets the environment and seeds the policy's own generator.
    """
    return [_episode(environment, policy, seed, limit) for seed in seeds]


def _episode(
    environment: Environment, policy: Policy, seed: int, limit: int
) -> Episode:
    # Differs from a generator that the environment may seed with the bare seed.
    rng = np.random.default_rng((seed, 1))
    observation, score = environment.reset(seed), 0.0
    for _ in range(limit):
        outcome = environment.step(policy(observation, rng))
        if outcome.finished is not None:
            return Episode(*outcome.finished, finished=True)
        observation, score = outcome.observation, score + outcome.reward
    return Episode(score, limit, finished=False)
