"""Returns of a policy that acts in its world."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dvf.rewards import Reward, rewarded
from dvf.value import returns
from dvf.worlds import World, at_rest
from polyview import hosts
from polyview.errors import check_range
from polyview.evaluation.base import Result
from polyview.evaluation.selective import bootstrap


@dataclass(frozen=True)
class Returns:
    """Discounted returns of `dvf.acting:Policy` from states at rest anywhere.

    Attributes:
      world: of `dvf.worlds`.
      reward: k rewards of a state.
      discount: g.
      starts: how many; drawn by `seed`, the same for all policies.
      horizon: steps.
      resamples: of the bootstrap over starts.
    """

    world: World
    reward: Reward
    discount: float
    starts: int = 100
    horizon: int = 200
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(2, starts=self.starts, resamples=self.resamples)
        check_range(1, horizon=self.horizon)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Let a model act."""
        del mesh  # small: every device draws all
        earned = self.earned(lambda states: np.asarray(model.call("act", states)))
        numbers: dict[str, Any] = {
            "protocol": {
                "world": self.world.name,
                "starts": self.starts,
                "horizon": self.horizon,
                "discount": self.discount,
                "rewards": list(self.reward.names),
                "seed": self.seed,
            }
        }
        found = bootstrap(np.mean, [earned], self.resamples, self.seed)
        numbers |= {
            "return": found.value,
            "return_interval": [found.low, found.high],
            "returns": earned.mean(0).tolist(),
            "machine": hosts.machine(),
        }
        return Result(
            numbers, summary=self.summary(numbers), columns=self.columns(numbers)
        )

    def earned(self, act: Any) -> np.ndarray:
        """Return the returns float64[starts, k] of act(float32[n, d]) -> [n, a]."""
        rng = np.random.default_rng(self.seed)
        states = at_rest(self.world, rng, self.starts)
        self.world.begin(states)
        passed = []
        for _ in range(self.horizon):
            states = self.world.step(np.asarray(act(states.astype(np.float32))))
            passed.append(states.astype(np.float32))
        rewards = rewarded(self.reward, np.stack(passed, 1))
        return returns(rewards, self.discount)

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The mean return."""
        low, high = numbers["return_interval"]
        return f"return {numbers['return']:.3f} ({low:.3f} to {high:.3f})"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The mean return."""
        return {"return": numbers["return"]}
