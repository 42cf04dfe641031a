"""Worlds by their names: `babyai:GoToLocal`, `metaworld:reach-v3`, `rearrange:train`,
`wordle:english`.

A world is an environment (`polyview.rl.environment`) whose observations are dicts: the
arrays of one step, and `instruction`, a text that stays the same for an episode. With
reward "success" the step that succeeds is worth 1 and ends the episode, all others are
worth 0: the score of an episode is 1 or 0. With reward "dense" rewards, and the end of
an episode, are the world's own.

An episode depends on its seed and its actions alone, not on what was played before.
When it ends, the next one begins from a seed that follows from that of the reset.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import numpy as np

from polyview.errors import InputError, nearest
from polyview.rl.environment import Environment, Finished, Outcome

KINDS = ("babyai", "metaworld", "rearrange", "wordle")
REWARDS = ("success", "dense")

Observation = dict[str, Any]


class World(Environment, Protocol):
    """An environment with instructions; see the module.

    Attributes:
      name: of the world, as `world` takes it.
      kind: one of `KINDS`.
      actions: the names of numbered actions; None if actions are continuous.
      box: (number of values, lowest, highest) of continuous actions; None if numbered.
      limit: the most steps that an episode can have.
      shapes: of the arrays of an observation.
      versions: of the packages that decide what happens; the first is the world's own.
      observation: input of the next action.
      arrived: the observation that the last action led to. It is another than
        `observation` if it was the last of an episode: the next one has begun.
      success: whether the last action succeeded.
      on_end: called, if set, when an episode has ended and the next has not begun.
      environment: the environment of the package, which experts look into.
    """

    name: str
    kind: str
    actions: tuple[str, ...] | None
    box: tuple[int, float, float] | None
    limit: int
    shapes: dict[str, tuple[int, ...]]
    versions: dict[str, str]
    observation: Observation
    arrived: Observation
    success: bool
    on_end: Callable[[], None] | None
    environment: Any

    def render(self) -> np.ndarray:
        """Draw the world as it is now, uint8[h, w, 3], for people."""


class Episodes(ABC):
    """The episodes of a world, one after another; see the module.

    A world begins the next one in `_begin`, with the seed that `seed_of` gives, and
    returns `_outcome` from its `step`, having set `arrived` and `success`.
    """

    def __init__(self, dense: bool) -> None:
        self._dense = dense
        self.observation: Observation = {}
        self.arrived: Observation = {}
        self.on_end: Callable[[], None] | None = None
        self._score, self._steps = 0.0, 0

    def reset(self, seed: int) -> Observation:
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


def world(name: str, *, reward: str = "success", pixels: int = 0) -> World:
    """Return the world of a name, `KIND:TASK`, in an episode of seed 0.

    reward: see the module. pixels: the size of the field `image` of observations,
    uint8[pixels, pixels, 3]; 0 for none.

    Raises InputError for an unknown name or reward, and if the package that simulates
    the world is not installed.
    """
    kind, task = parse(name)
    if reward not in REWARDS:
        raise InputError(f"no reward '{reward}' of {name}{nearest(reward, REWARDS)}")
    if kind == "babyai":
        from agents.environments.babyai import BabyAI

        return BabyAI(task, reward=reward, pixels=pixels)
    if kind == "rearrange":
        from agents.environments.rearrange import Rearrange

        return Rearrange(task, reward=reward, pixels=pixels)
    if kind == "wordle":
        from agents.environments.wordle import Wordle

        return Wordle(task, reward=reward, pixels=pixels)
    from agents.environments.metaworld import MetaWorld

    return MetaWorld(task, reward=reward, pixels=pixels)


def made_of(one: str | Callable[[], World], pixels: int = 0) -> World:
    """Return the world of a name, with images, or the one that a function makes."""
    return world(one, pixels=pixels) if isinstance(one, str) else one()


def parse(name: str) -> tuple[str, str]:
    """Return kind and task of a world's name. Raises InputError for an unknown kind."""
    kind, _, task = name.partition(":")
    if kind not in KINDS or not task:
        raise InputError(
            f"'{name}' is no world; give one such as babyai:GoToLocal, "
            f"metaworld:reach-v3, rearrange:train or wordle:english"
            f"{nearest(kind, KINDS) if kind not in KINDS else ''}"
        )
    return kind, task


def kind_of(names: Sequence[str], verb: str) -> str:
    """Return the kind of worlds that make one data set.

    verb: what is done to them, for messages. Raises InputError if there are none, if
    they are of several kinds, and if one is there twice.
    """
    if not names:
        raise InputError(f"no world to {verb}; give one such as babyai:GoToLocal")
    kinds = {parse(name)[0] for name in names}
    if len(kinds) > 1:
        raise InputError(
            f"{' and '.join(sorted(kinds))} are not one world; make a data set of each"
        )
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice")
    return kinds.pop()


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
