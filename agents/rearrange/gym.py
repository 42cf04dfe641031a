"""TextRearrange for gymnasium: `gymnasium.make("TextRearrange-v0", split="train")`."""

import string
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from agents.rearrange.pictures import SIZE
from agents.rearrange.room import Room
from agents.rearrange.words import SKILLS

_LETTERS = string.ascii_letters + " .,;:?'"


class TextRearrange(gymnasium.Env):
    """The episodes of a split. The actions are the skills of `agents.rearrange.words`.

    Observes `image`, uint8[32, 32, 3], and `instruction`, a text that stays the same
    for an episode. `info["success"]` says whether the goal was reached.

    `reset` draws an episode, or takes row k of the table with `options={"row": k}`.

    Args:
      split: of `agents.rearrange.tasks.SPLITS`.
      invalid_penalty: see `agents.rearrange.environment`.
      render_mode: "rgb_array", or None.

    Raises InputError for an unknown split or action.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self,
        split: str = "train",
        invalid_penalty: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self._room = Room(split, invalid_penalty=invalid_penalty)
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(SKILLS))
        longest = max(map(len, self._room.table.texts))
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
                "instruction": spaces.Text(longest, charset=_LETTERS),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        row = (options or {}).get("row")
        if row is None:
            row = int(self.np_random.integers(len(self._room.table)))
        return self._shown(self._room.begin_at(row)), {"success": False}

    def step(
        self, action: int
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take a skill."""
        image, *results = self._room.step(action)
        return self._shown(image), *results  # type: ignore[return-value]

    def render(self) -> np.ndarray | None:
        """Draw the room, uint8[h, w, 3]; None without the mode "rgb_array"."""
        return self._room.render() if self.render_mode == "rgb_array" else None

    def _shown(self, image: np.ndarray) -> dict[str, Any]:
        return {"image": image, "instruction": self._room.instruction}
