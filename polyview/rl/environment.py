"""The protocol of an environment: what acts in a world needs this of it. Numpy only.

An environment is a function of the seed of its last `reset` and the actions since. When
an episode ends, the next one begins by itself; `reset` starts anew from a seed.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

Observation = Any  # an array, or a dict of arrays


class Finished(NamedTuple):
    """An episode that has ended: the sum of its rewards, and its number of steps."""

    score: float
    steps: int


class Outcome(NamedTuple):
    """What an action led to.

    Attributes:
      observation: what the next action is chosen on. Where an episode ended, it is the
        first observation of the next one.
      reward: of this step, not clipped.
      done: no return is to be expected from beyond this step. An environment may say so
        within an episode, as when a life is lost.
      finished: the episode, where it ended or was cut off at its limit.
    """

    observation: Observation
    reward: float
    done: bool
    finished: Finished | None


class Environment(Protocol):
    """A world that takes one action at a time."""

    def reset(self, seed: int) -> Observation:
        """Begin an episode from a seed, and return its first observation."""

    def step(self, action: Any) -> Outcome:
        """Take an action."""

    def legal(self) -> np.ndarray | None:
        """Which actions are legal now, bool[actions]; None where all always are."""

    def fingerprint(self) -> np.ndarray:
        """The SHA-256 of everything that decides how it continues, uint8[32]."""
