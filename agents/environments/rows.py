"""Worlds with numbered actions as rows, for reinforcement learning.

Observations are those of the world (`agents.environments.worlds`), and with a tokenizer
`text`, int32[length]: the tokens of the instruction, -1 after them. With `caption` also
`caption`, int32[caption_length]: those of what is seen, in words.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from agents.environments import worlds
from agents.environments.captions import captioner
from polyview.errors import InputError, check_range
from polyview.rl import episodes
from polyview.rl.rows import HostRows, Shapes

PADDING = -1  # of texts; 0 is a token
CAPTION = 192  # room for a caption, in tokens
_KNOWN = 2**14  # texts whose tokens are kept


class Texts(Protocol):
    """What makes tokens of texts, such as `agents.llm.tokenizer:Tokenizer`."""

    def rows(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens int32[n, length], and bool: not padding.

        Raises InputError for a text of more tokens.
        """


class Told:
    """Tokens of instructions, int32[length], padded with -1; those seen are kept.

    Args:
      text: makes the tokens.
      length: room for an instruction. A longer one is an InputError that quotes it.
      before: text that stands before each instruction, and after: after it.
    """

    def __init__(self, text: Texts, length: int, before: str = "", after: str = ""):
        check_range(1, length=length)
        self._text, self._length = text, length
        self._before, self._after = before, after
        self._kept = functools.lru_cache(_KNOWN)(self._tokens)

    def __call__(self, instruction: str) -> np.ndarray:
        return self._kept(instruction)

    def _tokens(self, instruction: str) -> np.ndarray:
        whole = f"{self._before}{instruction}{self._after}"
        tokens, real = self._text.rows([whole], self._length)
        return np.where(real, tokens, PADDING).astype(np.int32)[0]


class WorldRow:
    """A world as `polyview.rl.rows:Single`; see `rows`.

    Raises InputError for an unknown world or reward, for continuous actions, for a
    limit above the world's own, and as `captioning`.
    """

    def __init__(
        self,
        name: str,
        *,
        text: Texts | None = None,
        length: int = 16,
        before: str = "",
        after: str = "",
        caption: bool = False,
        caption_length: int = CAPTION,
        goal_only: bool = False,
        reward: str = "success",
        limit: int | None = None,
        pixels: int = 0,
    ) -> None:
        self._world = worlds.world(name, reward=reward, pixels=pixels)
        if self._world.actions is None:
            raise InputError(f"{name} has continuous actions; rows need numbered ones")
        check_range(1, self._world.limit, limit=limit)
        self.name, self.actions = name, len(self._world.actions)
        self.limit = limit or self._world.limit
        self.versions: Mapping[str, str] = self._world.versions
        self._dense = reward == "dense"
        self._told = None if text is None else Told(text, length, before, after)
        self._text: np.ndarray | None = None
        self._captions = captioning(name, text, caption, caption_length, goal_only)
        shown = self._world.observation
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            field: (shape, shown[field].dtype)
            for field, shape in self._world.shapes.items()
        }
        if text is not None:
            shapes["text"] = ((length,), np.dtype(np.int32))
        if caption:
            shapes["caption"] = ((caption_length,), np.dtype(np.int32))
        self.shapes: Shapes = shapes
        # The world's outcome does not say which end it was: look at its package's own.
        self._result: tuple[Any, float, bool, bool, Any]
        self._own_step = self._world.environment.step
        self._world.environment.step = self._step_and_keep
        # Its next episode would begin from a seed of its own: half of all resets for
        # nothing.
        self._world.on_end = episodes.stop

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Begin an episode from a seed, and return what it shows."""
        shown = self._world.reset(seed)
        if self._told is not None:
            self._text = self._told(shown["instruction"])
        return self._shown(shown)

    def step(
        self, action: int
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """Return observation, reward, terminated, truncated, success."""
        over = False
        try:
            self._world.step(action)
        except episodes.Over:
            over = True
        success = self._world.success
        _, own, ended, cut, _ = self._result
        reward = float(own) if self._dense else float(success)
        # What the package does not end or cut off has ended by its success.
        terminated = over and bool(ended or not cut)
        shown = self._shown(self._world.arrived)
        return shown, reward, terminated, over and not terminated, success

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that determines what happens next, uint8[32]."""
        return self._world.fingerprint()

    def _shown(self, shown: worlds.Observation) -> dict[str, np.ndarray]:
        found = {name: shown[name] for name in self._world.shapes}
        if self._text is not None:
            found["text"] = self._text
        if self._captions is not None:
            describe, told = self._captions
            found["caption"] = told(describe(self._world))
        return found

    def _step_and_keep(self, action: Any) -> Any:
        self._result = self._own_step(action)
        return self._result


def captioning(
    name: str, text: Texts | None, caption: bool, length: int, goal_only: bool
) -> tuple[Callable[[worlds.World], str], Told] | None:
    """Return what describes a world, and what makes tokens of that; None if not asked.

    Raises InputError for captions without a tokenizer, for goal_only without captions,
    and as `agents.environments.captions:captioner`.
    """
    if not caption:
        if goal_only:
            raise InputError("goal_only applies to captions alone: set caption too")
        return None
    if text is None:
        raise InputError(f"captions of {name} need a tokenizer: give text")
    return captioner(name, goal_only), Told(text, length)


def rows(
    name: str,
    count: int,
    seed: int,
    *,
    first: int = 0,
    text: Texts | None = None,
    length: int = 16,
    before: str = "",
    after: str = "",
    caption: bool = False,
    caption_length: int = CAPTION,
    goal_only: bool = False,
    reward: str = "success",
    limit: int | None = None,
    pixels: int = 0,
    processes: int = 0,
) -> HostRows:
    """Return rows of a world, such as babyai:GoToLocal.

    Args:
      name: see `agents.environments.worlds:world`, also for `reward` and `pixels`.
      count, seed, first, processes: see `polyview.rl.rows:HostRows`.
      text: the tokenizer of instructions; None shows none.
      length, before, after: see `Told`.
      caption: show captions, of at most caption_length tokens; a longer one is an
        InputError that quotes it. goal_only: see `agents.environments.captions:babyai`.
      limit: the most steps of an episode; by default, and at most, the world's own.

    Raises InputError as `WorldRow` and `HostRows` do.
    """
    make = functools.partial(
        WorldRow,
        name,
        text=text,
        length=length,
        before=before,
        after=after,
        caption=caption,
        caption_length=caption_length,
        goal_only=goal_only,
        reward=reward,
        limit=limit,
        pixels=pixels,
    )
    return HostRows(make, count, seed, first=first, processes=processes)
