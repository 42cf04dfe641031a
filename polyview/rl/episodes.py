"""The episodes of a world, one after another, and fingerprints of where it stands.

A world is an `Environment` of `polyview.rl.environment` whose observations are dicts.
Its episodes depend on their seed and their actions alone, not on what was played
before. When one ends, the next one begins from a seed that follows from the reset's.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np

from polyview.errors import InputError
from polyview.rl.environment import Finished, Outcome


class Episodes(ABC):
    """The episodes of a world, one after another; see the module.

    A world begins the next one in `_begin`, with the seed that `seed_of` gives, and
    returns `_outcome` from its `step`, having set `arrived` and `success`.

    Args:
      dense: rewards are the world's own; else 1 for success, and 0.

    Attributes:
      observation: input of the next action.
      arrived: the observation that the last action led to.
      success: whether the last action succeeded.
      on_end: called, if set, when an episode has ended and the next has not begun.
    """

    def __init__(self, dense: bool) -> None:
        self._dense = dense
        self.observation: dict[str, Any] = {}
        self.arrived: dict[str, Any] = {}
        self.on_end: Callable[[], None] | None = None
        self._score, self._steps = 0.0, 0

    def reset(self, seed: int) -> dict[str, Any]:
        """Start an episode from a seed, and return its first observation."""
        check_seed(seed)
        self._seed, self._episode = int(seed), 0
        self._begin()
        self.arrived, self.success = self.observation, False
        return self.observation

    @abstractmethod
    def _begin(self) -> None:
        """Begin an episode, and set `observation` and the score."""

    def _outcome(self, own: float, over: bool) -> Outcome:
        """Return the result of a step; begin the next episode if this one is over.

        own: the world's own reward.
        """
        reward = float(own) if self._dense else float(self.success)
        self._score, self._steps = self._score + reward, self._steps + 1
        if not over:
            self.observation = self.arrived
            return Outcome(self.observation, reward, False, None)
        finished = Finished(self._score, self._steps)
        self._episode += 1
        if self.on_end is not None:
            self.on_end()
        self._begin()
        return Outcome(self.observation, reward, True, finished)


class Over(Exception):
    """The episode is over; the world does not begin the next one. See `stop`."""


def stop() -> None:
    """Raise Over. As a world's `on_end` it keeps the next episode from beginning.

    What the world has set of the episode's last step, such as `arrived`, stays.
    """
    raise Over


def seed_of(seed: int, episode: int) -> int:
    """Return the seed of an episode, counted from 0 since the reset with `seed`."""
    if not episode:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(episode,)).generate_state(1)[0])


def check_pixels(pixels: int, most: int) -> None:
    """Raise InputError if a world cannot draw images of a size."""
    if type(pixels) is not int or not 0 <= pixels <= most:
        raise InputError(f"images of {pixels} pixels cannot be drawn; give 0 to {most}")


def check_seed(seed: int) -> None:
    """Raise InputError if no episode can be reset with a seed."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"a world cannot be reset with seed {seed!r}; give 0 or more")


def fingerprint(*values: Any) -> np.ndarray:
    """Return the SHA-256 of values, uint8[32].

    They are numbers, texts, arrays, containers of values, and objects, which count by
    their class and their fields. An object that occurs twice is not the same as two
    equal ones. Fields called `env` are left out: they point back to the whole.
    """
    digest = hashlib.sha256()
    seen: dict[int, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str | bytes):
            digest.update(f"{type(value).__name__} {value!r};".encode())
        elif isinstance(value, np.ndarray):
            digest.update(f"{value.dtype} {value.shape};".encode())
            digest.update(value.tobytes())
        elif isinstance(value, Mapping):
            digest.update(f"{len(value)} items;".encode())
            for key in sorted(value, key=str):
                digest.update(f"{key}=".encode())
                add(value[key])
        elif isinstance(value, Sequence):
            digest.update(f"{len(value)} values;".encode())
            for item in value:
                add(item)
        elif id(value) in seen:
            digest.update(f"object {seen[id(value)]};".encode())
        else:
            seen[id(value)] = len(seen)
            digest.update(f"{type(value).__name__}:".encode())
            add({name: v for name, v in vars(value).items() if name != "env"})

    for value in values:
        add(value)
    return np.frombuffer(digest.digest(), np.uint8)
