"""The success rate of a model in an environment, as an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polyview.errors import check_range
from polyview.evaluation.base import Result
from polyview.rl.aggregates import success_interval
from polyview.rl.environment import Environment, Observation
from polyview.rl.rollout import rollout


@dataclass(frozen=True)
class Success:
    """The share of episodes whose score is at least `threshold`.

    The interval is the 95% Wilson score interval.

    Attributes:
      environment: makes the environment.
      threshold: the lowest score of a success.
      episodes: the number of episodes, from the seeds `seed`, `seed` + 1, ...
      limit: the most steps of an episode; its score up to then counts.
      method: a method of the model's module, for `polyview.model.Model.call`:
        `act(observations[1, ...], key) -> actions[1, ...]`.
    """

    environment: Callable[[], Environment]
    threshold: float
    episodes: int = 100
    limit: int = 1000
    seed: int = 0
    method: str = "act"

    def __post_init__(self) -> None:
        check_range(1, 1_000_000, episodes=self.episodes, limit=self.limit)
        check_range(0, 2**31 - self.episodes, seed=self.seed)
        check_range(-1e300, 1e300, threshold=self.threshold)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        del mesh  # episodes run one after another: there is nothing to shard

        def policy(observation: Observation, rng: np.random.Generator) -> Any:
            key = jax.random.key(rng.integers(2**32, dtype=np.uint32))
            row = jax.tree.map(lambda x: np.asarray(x)[None], observation)
            return np.asarray(model.call(self.method, row, key))[0]

        seeds = range(self.seed, self.seed + self.episodes)
        episodes = rollout(self.environment(), policy, seeds, self.limit)
        scores = [float(episode.score) for episode in episodes]
        successes = sum(score >= self.threshold for score in scores)
        rate = successes / self.episodes
        low, high = success_interval(successes, self.episodes)
        numbers = {
            "success": rate,
            "interval": [low, high],
            "threshold": self.threshold,
            "seed": self.seed,
            "limit": self.limit,
            "scores": scores,
            "steps": [int(episode.steps) for episode in episodes],
            "finished": [episode.finished for episode in episodes],
        }
        summary = (
            f"success {rate:.3f} ({low:.3f} to {high:.3f}) of {self.episodes} episodes"
        )
        return Result(numbers, summary=summary, columns={"success": rate})
