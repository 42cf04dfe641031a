"""Levels of BabyAI (Chevalier-Boisvert et al. 2019), simulated by minigrid.

    grid    uint8[7, 7, 3]             what the agent sees: by column from the left and
                                       row from the farthest, the numbers of object,
                                       colour and state; it stands at [3, 6], where what
                                       it carries is seen, and looks towards row 0
    image   uint8[pixels, pixels, 3]   the same drawn, if asked for

The agent's direction on the map is not observed: no instruction speaks of it, only of
places relative to where the agent stood and looked at first.
"""

import contextlib
import importlib
import io
import os
from importlib import metadata
from typing import Any

import cv2
import numpy as np

from agents.environments.worlds import Observation
from polyview.errors import InputError, nearest
from polyview.rl import episodes
from polyview.rl.environment import Outcome

ACTIONS = (
    "turn left",
    "turn right",
    "go forward",
    "pick up",
    "drop",
    "toggle",
    "done",
)
_VIEW = 7  # cells that the agent sees, across and ahead
_TILE = 32  # pixels of a cell in a film


class BabyAI(episodes.Episodes):
    """A level of BabyAI; see `agents.environments.worlds:World`.

    Args:
      level: its name without prefix and version, such as GoToLocal; see `levels`.
      reward: see `agents.environments.worlds`. The dense one is minigrid's own: 0 until
        success, then 1 less 0.9 of the share of the limit that was used.
      pixels: see `agents.environments.worlds:world`.

    A mission that cannot be fulfilled any more ends the episode without success.
    `limit` holds for all missions of the level; short missions may have a lower one.
    """

    kind = "babyai"

    def __init__(self, level: str, *, reward: str = "success", pixels: int = 0):
        super().__init__(dense=reward == "dense")
        episodes.check_pixels(pixels, 1024)
        gymnasium, known = _gymnasium(), levels()
        if level not in known:
            raise InputError(f"BabyAI has no level '{level}'{nearest(level, known)}")
        made = gymnasium.make(known[level], disable_env_checker=True)
        self.environment: Any = made.unwrapped
        self.name = f"babyai:{level}"
        self.actions: tuple[str, ...] | None = ACTIONS
        self.box: tuple[int, float, float] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {"grid": (_VIEW, _VIEW, 3)}
        if pixels:
            self.shapes["image"] = (pixels, pixels, 3)
        self.versions = {"minigrid": metadata.version("minigrid")}
        self._pixels = pixels
        self.reset(0)
        self.limit = _limit(self.environment)

    def step(self, action: int) -> Outcome:
        """Take an action, its number in `actions`. Raises InputError for no such."""
        number = np.asarray(action)
        if number.shape or number.dtype.kind not in "iu" or not 0 <= number < 7:
            raise InputError(f"{self.name} has the actions 0 .. 6, not {action!r}")
        raw, own, ended, cut, _ = self.environment.step(int(number))
        self.arrived = self._observed(raw)
        self.success = bool(ended and own > 0)
        return self._outcome(own, ended or cut)

    def legal(self) -> None:
        """Return None: every action may be taken at any time."""

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that determines what happens next, uint8[32]."""
        own = self.environment
        return episodes.fingerprint(
            self._seed,
            self._episode,
            self._score,
            own.grid.grid,
            np.array(own.agent_pos),
            own.agent_dir,
            own.carrying,
            own.step_count,
            own.max_steps,
            own.mission,
            own.instrs,  # with what of them is done already
            own.np_random.bit_generator.state,
        )

    def render(self) -> np.ndarray:
        """Draw the whole level, with what the agent sees in a lighter grey."""
        return self.environment.get_frame(tile_size=_TILE)

    def _begin(self) -> None:
        seed = episodes.seed_of(self._seed, self._episode)
        # It prints each mission that it rejects.
        with contextlib.redirect_stdout(io.StringIO()):
            raw, _ = self.environment.reset(seed=seed)
        self._score, self._steps = 0.0, 0
        self.observation = self._observed(raw)

    def _observed(self, raw: dict[str, Any]) -> Observation:
        observation = {"grid": raw["image"], "instruction": raw["mission"]}
        if self._pixels:
            tile = -(-self._pixels // _VIEW)
            view = self.environment.get_frame(tile_size=tile, agent_pov=True)
            size = (self._pixels, self._pixels)
            observation["image"] = cv2.resize(view, size, interpolation=cv2.INTER_AREA)
        return observation


def levels() -> dict[str, str]:
    """Return {name: minigrid's own name} of all levels. InputError without minigrid."""
    names = [name for name in _gymnasium().registry if name.startswith("BabyAI-")]
    return {name.split("-")[1]: name for name in names}


def _limit(level: Any) -> int:
    """Return the most steps of an episode, over all missions of a level."""
    kinds = getattr(level, "instr_kinds", None)
    if level.fixed_max_steps or kinds is None:  # the latter have missions of one kind
        return int(level.max_steps)
    parts = max({"action": 1, "and": 2, "seq": 4}[kind] for kind in kinds)
    ways = 2 if "putnext" in level.action_kinds else 1
    return int(level.room_size**2 * level.num_rows * level.num_cols * parts * ways)


def _gymnasium() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on stdout
    try:
        importlib.import_module("minigrid")  # which registers the levels
        return importlib.import_module("gymnasium")
    except ImportError as error:
        raise InputError(
            f"minigrid is needed for BabyAI ({error}): pip install '.[agents]'"
        ) from error
