"""The protocols of environments: one at a time, rows of them, and on the device.

`Environment` takes one action at a time. It is a function of the seed of its last
`reset` and the actions since. When an episode ends, the next one begins without a
reset; `reset` restarts from a seed.

`Rows` are environments side by side, on the host, and an `ArrayEnvironment` is a pure
function of arrays. Both show the last observation of an episode. An action that is
taken there is ignored: it leads, with reward 0, to the first of the next episode, and
nothing is learnt from it. Their observations are {name: array}; two names have a
meaning: `text: int32[length]`, the tokens of an instruction, -1 after them, the same
for an episode, and `legal: bool[actions]`, the actions that may be taken.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

Observation = Any  # an array, or a dict of arrays
LEGAL = "legal"  # an observation; see the module


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


class Step(NamedTuple):
    """What n rows of environments show.

    Attributes:
      observation: {name: [n, ...]}.
      reward: float32[n], of the actions that led here; 0 where an episode begins.
      terminated: bool[n], the episode is over, and no return is expected beyond it.
      truncated: bool[n], the episode was cut off here. Not both are True.
      success: bool[n], the episode is over, and was successful.
    """

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    success: Any


class Rows(Protocol):
    """Environments on the host, n side by side; see the module.

    Episode k of a row begins from a seed that follows from the seed of the rows, the
    row's own number and k: it does not depend on the other rows.

    Attributes:
      count: n.
      actions: the number of actions.
      limit: the most steps that an episode can have.
      shapes: {name: (shape, dtype)} of one row's observation.
      versions: {package: version} of what decides the episodes.
    """

    count: int
    actions: int
    limit: int
    shapes: Mapping[str, tuple[tuple[int, ...], Any]]
    versions: Mapping[str, str]

    def begin(self) -> Step:
        """Begin the first episode of each row."""

    def step(self, actions: np.ndarray) -> Step:
        """Take int[n] actions. The arrays of the result are the caller's."""

    def saved(self) -> dict[str, np.ndarray]:
        """What `restore` needs to be exactly here again; the shapes never change."""

    def restore(self, saved: Mapping[str, np.ndarray]) -> Step:
        """Return the step at which `saved` was called, and go on from there.

        Raises InputError if the environments do not come to the same place.
        """

    def close(self) -> None:
        """End processes."""


class ArrayEnvironment(Protocol):
    """An environment of one row, as pure functions, for `jit` and `vmap`.

    Its state is a pytree of arrays. Transitions and pictures are apart, so that play
    without pictures is cheap.

    If it draws episodes of a table, it has `data`, {"rows": number, "digest": text}: a
    run is resumed with no other.

    Attributes:
      actions: the number of actions.
      limit: the most steps that an episode can have.
    """

    actions: int
    limit: int

    def begin(self, key: Any) -> Any:
        """Return the first state of an episode that a random key decides."""

    def step(self, state: Any, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Return state, reward, terminated, truncated, success. `state` goes on."""

    def observe(self, state: Any) -> dict[str, Any]:
        """Return {name: array}: what the state looks like."""
