"""The protocol of an environment. Numpy only.

An environment is a function of the seed of its last `reset` and the actions since. When
an episode ends, the next one begins without a reset; `reset` restarts from a seed.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

Observation = Any  # an array, or a dict of arrays


class Finished(NamedTuple):
    """A finished episode: the sum of its rewards, and its number of steps."""

    score: float
    steps: int


class Outcome(NamedTuple):
    """The result of an action.

    Attributes:
      observation: input of the next action; after the end of an episode, the first
        observation of the next one.
      reward: of this step, not clipped.
      done: True if no return is expected beyond this step. It may be True within an
        episode, as when a life is lost.
      finished: the episode, if it ended or was cut off at its limit, else None.
    """

    observation: Observation
    reward: float
    done: bool
    finished: Finished | None


class Environment(Protocol):
    """An environment that takes one action at a time."""

    def reset(self, seed: int) -> Observation:
        """Start an episode from a seed, and return its first observation."""

    def step(self, action: Any) -> Outcome:
        """Take an action, and return its result."""

    def legal(self) -> np.ndarray | None:
        """The actions that are legal now, bool[actions]; None if all always are."""

    def fingerprint(self) -> np.ndarray:
        """The SHA-256 of all state that future steps depend on, uint8[32]."""
