"""Worlds that say what they show in words, and worlds whose actions are not as usual.

A language model acts in `Captioned`: the instruction of each observation is a prompt of
the goal and of what is seen now. `Moves` gives the arm of Meta-World actions with
names, and `Permuted` other effects to the actions of BabyAI, which nothing that is said
of them tells.
"""

from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from agents.environments.babyai import BabyAI
from agents.environments.worlds import Observation, World
from polyview.errors import InputError, check_range
from polyview.rl import episodes
from polyview.rl.environment import Outcome

Caption = Callable[[World], str]
Prompt = Callable[[str, str], str]  # of a goal and a caption


class _Around:
    """A world that passes on to another one what it does not do itself."""

    def __init__(self, own: World):
        self.own, self.kind, self.name = own, own.kind, own.name
        self.actions, self.box, self.limit = own.actions, own.box, own.limit
        self.shapes, self.versions = own.shapes, own.versions
        self.environment, self.success = own.environment, own.success

    def legal(self) -> np.ndarray | None:
        """The actions that are legal now; None if all always are."""
        return self.own.legal()

    def fingerprint(self) -> np.ndarray:
        """The SHA-256 of all that determines what happens next, uint8[32]."""
        return self.own.fingerprint()

    def render(self) -> np.ndarray:
        """Draw the world, uint8[h, w, 3]."""
        return self.own.render()


class Captioned(_Around):
    """A world whose instruction is a prompt of what it shows now.

    Args:
      own: the world.
      caption: describes `arrived` of a world, as `agents.environments.captions` do.
      prompt: makes the prompt of a goal, the world's own instruction, and a caption.
    """

    def __init__(self, own: World, caption: Caption, prompt: Prompt):
        super().__init__(own)
        self._caption, self._prompt = caption, prompt
        self.on_end, own.on_end = own.on_end, self._ended
        self.observation = self._asked(own.observation)
        self.arrived = self._asked(own.arrived)

    def reset(self, seed: int) -> Observation:
        """Start an episode from a seed, and return its first observation."""
        self.own.reset(seed)
        self.success = self.own.success
        self.observation = self.arrived = self._asked(self.own.observation)
        return self.observation

    def step(self, action: Any) -> Outcome:
        """Take an action of the world."""
        outcome = self.own.step(action)
        self.observation = self._asked(outcome.observation)
        if outcome.finished is None:
            self.arrived, self.success = self.observation, self.own.success
        return outcome._replace(observation=self.observation)

    def _ended(self) -> None:
        # Before the next episode begins: captions may look into the environment.
        self.arrived = self._asked(self.own.arrived)
        self.success = self.own.success
        if self.on_end is not None:
            self.on_end()

    def _asked(self, observation: Observation) -> Observation:
        # Not the world itself, whose `arrived` may be of the episode before.
        shown: Any = SimpleNamespace(arrived=observation, environment=self.environment)
        prompt = self._prompt(observation["instruction"], self._caption(shown))
        return observation | {"instruction": prompt}


_MOVES = {
    "move left": (-1, 0, 0),
    "move right": (1, 0, 0),
    "move nearer": (0, -1, 0),
    "move farther": (0, 1, 0),
    "move down": (0, 0, -1),
    "move up": (0, 0, 1),
}
_GRIPS = {"open the gripper": -1.0, "close the gripper": 1.0}


class Moves(_Around):
    """A task of Meta-World with numbered actions: a move along an axis, or the gripper.

    A move goes as far as the box allows. The gripper stays open or closed until it is
    told otherwise.
    Raises InputError for a world of another kind.
    """

    def __init__(self, own: World):
        super().__init__(own)
        if own.kind != "metaworld":
            raise InputError(f"{own.name} is no task of Meta-World; its actions stay")
        self.actions: tuple[str, ...] | None = (*_MOVES, *_GRIPS)
        self.box: tuple[int, float, float] | None = None
        self.on_end, own.on_end = own.on_end, self._ended
        self.observation, self.arrived = own.observation, own.arrived
        self._grip = 0.0

    def reset(self, seed: int) -> Observation:
        """Start an episode from a seed, with a gripper that was told nothing."""
        self._grip = 0.0
        self.observation = self.arrived = self.own.reset(seed)
        self.success = self.own.success
        return self.observation

    def step(self, action: int) -> Outcome:
        """Take a move, its number in `actions`. Raises InputError for no such."""
        names = (*_MOVES, *_GRIPS)
        if not 0 <= action < len(names):
            raise InputError(f"{self.name} has no move {action!r}")
        self._grip = _GRIPS.get(names[int(action)], self._grip)
        move = _MOVES.get(names[int(action)], (0, 0, 0))
        outcome = self.own.step(np.array([*move, self._grip], np.float32))
        self.observation = outcome.observation
        self.arrived, self.success = self.own.arrived, self.own.success
        return outcome

    def fingerprint(self) -> np.ndarray:
        """The SHA-256 of all that determines what happens next, uint8[32]."""
        return episodes.fingerprint(self.own.fingerprint(), self._grip)

    def _ended(self) -> None:
        self._grip = 0.0
        self.arrived, self.success = self.own.arrived, self.own.success
        if self.on_end is not None:
            self.on_end()


class Permuted(BabyAI):
    """A level of BabyAI in which the first six actions have the effects of others.

    `effects[action]` is the number of the action whose effect it has; at least one has
    another than its own. The expert knows.

    Args:
      level, reward, pixels: see `agents.environments.babyai:BabyAI`.
      seed: draws the effects.
    """

    def __init__(
        self, level: str, seed: int, *, reward: str = "success", pixels: int = 0
    ):
        check_range(0, seed=seed)
        super().__init__(level, reward=reward, pixels=pixels)
        rng = np.random.default_rng((seed, 4))
        drawn = np.arange(6)
        while (drawn == np.arange(6)).all():
            drawn = np.argsort(rng.random(6))
        self.effects = (*drawn.tolist(), 6)
        # Where minigrid looks up the number of an action, and its bot too.
        numbers = {
            own.name: self.effects.index(int(own)) for own in self.environment.actions
        }
        # Members that have a lower number come first, as in minigrid's own.
        ordered = dict(sorted(numbers.items(), key=lambda item: item[1]))
        make: Any = IntEnum
        self.environment.actions = make("Actions", ordered)
