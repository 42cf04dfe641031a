"""Splits of TextRearrange (`agents.rearrange`), such as `rearrange:context`.

    image   uint8[32, 32, 3]   the receptacle where the agent stands

The instruction is that of the episode. Any skill may be asked for at any time: one that
cannot be done changes nothing, and which can be done is for the agent to see.
"""

from typing import Any

import numpy as np

from agents.environments.worlds import Observation
from agents.rearrange.environment import LIMIT
from agents.rearrange.pictures import SIZE
from agents.rearrange.room import Room
from agents.rearrange.words import SKILLS
from polyview.errors import InputError
from polyview.rl import episodes
from polyview.rl.environment import Outcome


class Rearrange(episodes.Episodes):
    """A split of TextRearrange; see `agents.environments.worlds:World`.

    Args:
      split: its name, such as context; see `agents.rearrange.tasks.SPLITS`.
      reward: see `agents.environments.worlds`. The dense one is the benchmark's own;
        see `agents.rearrange.environment`. Success ends the episode with both.
      pixels: 32, or 0 for the same: images have this size.

    The episode of a seed is row `seed % rows` of the split's table: as many seeds in a
    row as it has rows play each episode once.
    """

    kind = "rearrange"

    def __init__(self, split: str, *, reward: str = "success", pixels: int = 0):
        super().__init__(dense=reward == "dense")
        if type(pixels) is not int or pixels not in (0, SIZE):
            raise InputError(
                f"TextRearrange has images of {SIZE} pixels, not {pixels!r}; give "
                f"{SIZE}, or leave it out"
            )
        self.environment: Any = Room(split)
        self.name = f"rearrange:{split}"
        self.actions: tuple[str, ...] | None = SKILLS
        self.box: tuple[int, float, float] | None = None
        self.limit = LIMIT
        self.shapes: dict[str, tuple[int, ...]] = {"image": (SIZE, SIZE, 3)}
        self.versions = {"numpy": np.__version__}  # which draws the table
        self.reset(0)

    def step(self, action: int) -> Outcome:
        """Take a skill, its number in `actions`. Raises InputError for no such."""
        image, own, ended, cut, _ = self.environment.step(action)
        self.arrived = self._observed(image)
        self.success = ended
        return self._outcome(own, ended or cut)

    def legal(self) -> None:
        """Return None: any skill may be asked for at any time."""

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that determines what happens next, uint8[32]."""
        state = self.environment.state
        moving = map(np.asarray, state[1:])
        row = self._row()
        return episodes.fingerprint(
            self._seed, self._episode, self._score, row, *moving
        )

    def render(self) -> np.ndarray:
        """Draw the whole room, with what is behind doors, uint8[236, 968, 3]."""
        return self.environment.render()

    def _row(self) -> int:
        seed = episodes.seed_of(self._seed, self._episode)
        return seed % len(self.environment.table)

    def _begin(self) -> None:
        self._score, self._steps = 0.0, 0
        self.observation = self._observed(self.environment.begin_at(self._row()))

    def _observed(self, image: np.ndarray) -> Observation:
        return {"image": image, "instruction": self.environment.instruction}
