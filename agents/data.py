"""Spans of demonstrations, as views.

    views    text          int32[1, length]: the instruction's tokens, -1 after them
             OBSERVATION   [m, ...] for each that is asked for
    targets  action        [m, ...], those that the expert took
             task          int64

m = span consecutive steps of one episode. The span may begin before the episode and end
after it, so that every step is drawn alike; such steps are not present, and zeros. With
`whole` it is the episode from its first step. With a span of 1, m = draws steps at
uniform times, for a policy that is asked about each alone.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.environments.rows import Told
from agents.llm.tokenizer import Tokenizer
from polyview.data.later import ACTION, rows_of
from polyview.data.views import Example, take
from polyview.errors import InputError, check_range

TEXT, TASK = "text", "task"


@dataclass(frozen=True)
class Context:
    """A span of an episode with its instruction; see the module.

    Attributes:
      observations: fields of the episode to show.
      span: consecutive steps.
      draws: steps at uniform times, if span is 1.
      whole: begin with the episode; one of more steps than span is an InputError.
      text: the tokenizer of instructions; None shows none.
      length: room for an instruction, in tokens; a longer one is an InputError.
      before: text that stands before each instruction, and after: after it.
      actions: the field of actions.
      instruction: the field of the instruction.
    """

    observations: Sequence[str]
    span: int = 1
    draws: int = 1
    text: Tokenizer | None = None
    length: int = 16
    before: str = ""
    after: str = ""
    actions: str = "actions"
    instruction: str = "instruction"
    whole: bool = False

    def __post_init__(self) -> None:
        check_range(1, span=self.span, draws=self.draws, length=self.length)
        if self.whole and self.span == 1:
            raise InputError("views.whole shows an episode: give views.span")
        if self.span > 1 and self.draws > 1:
            raise InputError("views.span and views.draws are both above 1; keep one")
        if isinstance(self.observations, str) or not self.observations:
            raise InputError("views.observations is a list of one field or more")

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        actions = rows_of(example, self.actions)
        if not len(actions):
            raise InputError("an episode has no step; record it again")
        # Not `rng.integers`, which another version of NumPy may draw otherwise.
        count = len(actions) + self.span - 1
        last = (rng.random(self.draws) * count).astype(np.int64)
        time = last if self.span == 1 else last + np.arange(1 - self.span, 1)
        if self.whole:
            time = np.arange(self.span)
            if len(actions) > self.span:
                raise InputError(
                    f"an episode has {len(actions)} steps, and views.span is "
                    f"{self.span}; give more"
                )
        real = (time >= 0) & (time < len(actions))
        found: dict[str, Any] = {}
        for name in self.observations:
            values = rows_of(example, name)
            if len(values) < len(actions):
                raise InputError(
                    f"field '{name}' has {len(values)} rows, and there are "
                    f"{len(actions)} actions; correct views.observations, or the data"
                )
            found[name] = _taken(values, time, real)
        told = "" if self.text is None else f"{take(example, self.instruction)}"
        views = self.shown(found, told)
        return {
            "views": views,
            "present": {
                name: np.ones(1, bool) if name == TEXT else real.copy()
                for name in views
            },
            "targets": {
                ACTION: _taken(actions, time, real),
                TASK: np.asarray(take(example, TASK), np.int64),
            },
        }

    def shown(
        self, observations: Mapping[str, np.ndarray], instruction: str
    ) -> dict[str, np.ndarray]:
        """Return the views of observations [m, ...] under an instruction."""
        views = {name: observations[name] for name in self.observations}
        if self.text is not None:
            views[TEXT] = self.told(instruction)
        return views

    def told(self, instruction: str) -> np.ndarray:
        """Return the tokens of an instruction, int32[1, length], padded with -1."""
        return self._told(instruction)[None]

    @functools.cached_property
    def _told(self) -> Told:
        assert self.text is not None
        return Told(self.text, self.length, self.before, self.after)


@dataclass(frozen=True)
class Frames:
    """m images of an episode that are near in time: views "image", [m, h, w, c].

    For encoders that are trained on the frames of demonstrations without actions: what
    is a moment later has one meaning.

    Attributes:
      m: views.
      augment: `augment(image, rng, 1)` makes a view of each, as
        `polyview.data.augment:RandomResizedCrop` does.
      within: steps from a moment drawn uniformly, to each side.
      field: of the images.
    """

    m: int
    augment: Callable[..., np.ndarray]
    within: int = 2
    field: str = "image"

    def __post_init__(self) -> None:
        check_range(1, m=self.m)
        check_range(0, within=self.within)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        frames = rows_of(example, self.field)
        # Not `rng.integers`, which another version of NumPy may draw otherwise.
        moment = int(rng.random() * len(frames))
        first = max(moment - self.within, 0)
        count = min(moment + self.within + 1, len(frames)) - first
        times = first + (rng.random(self.m) * count).astype(np.int64)
        shown = [self.augment(frames[time], rng, 1) for time in times]
        return {
            "views": {"image": np.concatenate(shown)},
            "present": {"image": np.ones(self.m, bool)},
            "targets": {},
        }


def _taken(values: np.ndarray, time: np.ndarray, real: np.ndarray) -> np.ndarray:
    taken = np.zeros((len(time), *values.shape[1:]), values.dtype)
    taken[real] = values[time[real]]
    return taken
