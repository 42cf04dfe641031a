"""Worlds by their names: `babyai:GoToLocal`, `metaworld:reach-v3`, `rearrange:train`,
`wordle:english`. Those of other packages are `MODULE:CLASS`, with a dot in the module.

A world is an environment (`polyview.rl.environment`) whose observations are dicts: the
arrays of one step, and `instruction`, a text that stays the same for an episode. With
reward "success" the step that succeeds is worth 1 and ends the episode, all others are
worth 0: the score of an episode is 1 or 0. With reward "dense" rewards, and the end of
an episode, are the world's own.

An episode depends on its seed and its actions alone, not on what was played before.
When it ends, the next one begins from a seed that follows from that of the reset.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from polyview.config.spec import build
from polyview.config.trust import allow_list
from polyview.errors import InputError, nearest
from polyview.rl.environment import Environment

KINDS = ("babyai", "metaworld", "rearrange", "wordle")
REWARDS = ("success", "dense")

Observation = dict[str, Any]


class World(Environment, Protocol):
    """An environment with instructions; see the module.

    A class of another package need not know of this one. It takes `reward` and `pixels`
    as `world` does, and may have a method `expert()`, which returns an expert
    (`agents.demonstrate:Expert`) for the episode that has just begun.
    `polyview.rl.episodes:Episodes` has what all worlds do alike.

    Attributes:
      name: of the world, as `world` takes it.
      kind: one of `KINDS`, or another word for what is alike in several worlds.
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


def world(
    name: str, *, reward: str = "success", pixels: int = 0, typed: bool = False
) -> World:
    """Return the world of a name, in an episode of seed 0; see the module.

    Args:
      name: `KIND:TASK` or `MODULE:CLASS`.
      reward: see the module.
      pixels: the size of the field `image` of observations, uint8[pixels, pixels, 3]; 0
        for none, or for the world's own size where it always shows one.
      typed: the user typed this name, and any module may be imported. Others come from
        a manifest or a config, which may be a stranger's: then only what is in some
        `trusted.txt` is (`polyview.config.trust`).

    Raises InputError for an unknown name or reward, a name that is not trusted, and if
    the package that simulates the world is not installed.
    """
    kind, task = parse(name)
    if reward not in REWARDS:
        raise InputError(f"no reward '{reward}' of {name}{nearest(reward, REWARDS)}")
    if kind not in KINDS:
        return _brought(name, reward, pixels, typed)
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


def _brought(name: str, reward: str, pixels: int, typed: bool) -> World:
    """Return the world of a class `MODULE:CLASS`."""
    parts = name.partition(":")[0].split(".")
    if not typed and not allow_list() & {name, *accumulate(parts, "{}.{}".format)}:
        raise InputError(
            f"{name} is in no trusted.txt and may be a stranger's; if you trust it, "
            f"give {{'partial': '{name}'}} in its place, and --trust {parts[0]}"
        )
    spec = {"target": name, "reward": reward, "pixels": pixels}
    return build(spec, None if typed else allow_list(), "the world")


def made_of(one: str | Callable[[], World], pixels: int = 0) -> World:
    """Return the world of a name, with images, or the one that a function makes."""
    return world(one, pixels=pixels) if isinstance(one, str) else one()


def parse(name: str) -> tuple[str, str]:
    """Return kind and task of a world's name, or module and class; nothing is imported.

    Raises InputError for an unknown kind, and what is no name of a class.
    """
    kind, _, task = name.partition(":")
    words = [*kind.split("."), task]
    brought = len(words) > 2 and all(word.isidentifier() for word in words)
    if not brought and (kind not in KINDS or not task):
        raise InputError(
            f"'{name}' is no world; give one such as babyai:GoToLocal, "
            f"metaworld:reach-v3, rearrange:train, wordle:english or package.module:"
            f"Class{nearest(kind, KINDS) if kind not in KINDS else ''}"
        )
    return kind, task


def kind_of(names: Sequence[str], verb: str) -> str:
    """Return the kind, or the module, of worlds that make one data set.

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
