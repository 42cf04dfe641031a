"""Recorded play as a Source, and the views of a time step in it: later frames.

An example is an episode and a time in it, as slices of arrays in memory, not copies.
`Stacks` takes whole observations, for any objective on views. `Window` takes only the
frames that the losses need: with the paper's numbers 9 around the time and 4 of a goal,
whereas stacks for the whole window of 50 steps would be 240.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyview.data.views import Example
from polyview.errors import InputError, check_range
from sgi import recording
from sgi.recording import HISTORY


class Replay:
    """A recording as a source: example i is the i-th time at which a window may start.

    A window may start at any step, the last of an episode included. In an episode left
    unfinished at the end of the recording or of the split, `ahead` steps must follow,
    because later frames are unknown.

    An example holds the whole episode, frames uint8[t, 84, 84], action int32[t], reward
    float32[t], terminal bool[t] and, where recorded, ram uint8[t, 128], and the `time`.

    The arrays are in memory once (7 kB a step), shared by threads. A copy sent to
    another process reads them again, so leave `workers` at 0.

    Args:
      name: the recording, a folder in `data_dir`; see `python -m sgi.prepare`.
      split: counts steps; see `polyview.data.sources.protocol.parse_split`.
      data_dir: by default `$POLYVIEW_DATA`, else `./data`.
      ahead: how far a window reaches: the larger of its jumps and its latest goal.
      every: keep every so many-th of these times, as for probes.

    Attributes:
      actions: names of the game's actions.
      episode: int[n], the number of example i's episode within the split.
      digest: of the recording's files and the split.

    Raises:
      InputError: the recording is missing, damaged or too short.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | Path | None = None,
        ahead: int = 49,
        every: int = 1,
    ):
        self._arguments = (name, split, data_dir, ahead, every)
        self.targets: dict[str, dict[str, Any]] = {}
        self.actions: list[str] = recording.describe(name, data_dir)["actions"]
        play = recording.read(name, split, data_dir)
        self._columns = {
            key: column for key, column in vars(play).items() if column is not None
        }
        length = len(play.first)
        self._bounds = np.append(np.flatnonzero(play.first), length)
        episode = np.cumsum(play.first) - 1
        stop = self._bounds[episode + 1]
        whole = play.terminal[stop - 1] | (np.arange(length) + ahead < stop)
        self._rows = np.flatnonzero(whole)[::every]
        self.episode = episode[self._rows]
        if not len(self._rows):
            raise InputError(
                f"{self!r} has no finished episode and none of {ahead + 1} steps; "
                "record more steps"
            )
        self.digest = recording.digest(name, split, data_dir)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, episode = self._rows[index], self.episode[index]
        start, stop = self._bounds[episode], self._bounds[episode + 1]
        example = {key: column[start:stop] for key, column in self._columns.items()}
        return {**example, "time": int(row - start)}

    def __reduce__(self) -> tuple[type["Replay"], tuple]:
        return type(self), self._arguments

    def __repr__(self) -> str:
        return f"Replay('{self._arguments[0]}', '{self._arguments[1]}')"


@dataclass(frozen=True)
class Window:
    """The frames around a time t of an episode, and a later goal; K = `jumps`.

        views    frames uint8[history + K, h, w]: times t - history + 1 .. t + K
                 goal   uint8[history, h, w]: up to t + j, j uniform in `goal`
        targets  action int32[K], reward float32[K]: steps t .. t + K - 1
                 terminal bool[K + 2]: whether step t + k ended the episode; the last
                 is read only for the masks of the official code
                 ram uint8[128]: at frame t, where recorded

    The observation at t + k is frames[k : k + history]. Frames before the episode's
    start are zeros, and `present` is False. After its end the last frame repeats and
    the goal is the last stack; actions, rewards and terminals are zero. `terminal`
    marks that end. The official code of Schwarzer et al. 2021 means the same, but reads
    the end a step late: the stack before the last one repeats, and if the step at t
    ended the episode, the next episode's frames follow. No option does that.

    Attributes:
      jumps: steps of the latent dynamics, K.
      history: frames of an observation.
      goal: the first and the last offset of a goal; None for no goal, as for probes.
    """

    jumps: int = 5
    history: int = HISTORY
    goal: Sequence[int] | None = (2, 49)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        frames, time = example["frames"], example["time"]
        last = len(frames) - 1
        reach = max(self.jumps, self.goal[1] if self.goal is not None else 0)
        _check_reach(reach, last - time, example["terminal"][last])
        stack = np.arange(1 - self.history, 1)
        times = {"frames": time + np.arange(1 - self.history, self.jumps + 1)}
        if self.goal is not None:
            offset = rng.integers(self.goal[0], self.goal[1] + 1)
            times["goal"] = min(time + offset, last) + stack
        views = {name: _frames_at(frames, at) for name, at in times.items()}
        steps = slice(time, time + self.jumps)
        targets = {
            "action": _filled(example["action"][steps], self.jumps),
            "reward": _filled(example["reward"][steps], self.jumps),
            "terminal": _filled(
                example["terminal"][time : time + self.jumps + 2], self.jumps + 2
            ),
        }
        if "ram" in example:
            targets["ram"] = example["ram"][time]
        present = {name: at >= 0 for name, at in times.items()}
        return {"views": views, "present": present, "targets": targets}


@dataclass(frozen=True)
class Stacks:
    """Stacks of frames from a time t of an episode on, each a view of the same moment.

        views    frames uint8[m, h, w, history]: the observation at t + offset
        targets  action int32[]: taken at t

    for each of the m `offsets`, 0 or more. As in `Window`, frames before the episode's
    start are zeros, and after its end the last stack repeats.
    """

    offsets: Sequence[int] = (0, 3)
    history: int = HISTORY

    def __post_init__(self) -> None:
        check_range(0, offsets=self.offsets)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        del rng
        frames, time = example["frames"], example["time"]
        last = len(frames) - 1
        _check_reach(max(self.offsets), last - time, example["terminal"][last])
        stack = np.arange(1 - self.history, 1)
        times = [min(time + offset, last) + stack for offset in self.offsets]
        stacks = np.stack([_frames_at(frames, at) for at in times])
        return {
            "views": {"frames": np.moveaxis(stacks, 1, -1)},
            "present": {"frames": np.ones(len(times), bool)},
            "targets": {"action": np.asarray(example["action"][time])},
        }


def _check_reach(reach: int, left: int, ended: bool) -> None:
    """Raise InputError if a window reaches beyond an unfinished episode."""
    if left < reach and not ended:
        raise InputError(
            f"a window reaches {reach} steps ahead, but an unfinished episode has only "
            f"{left} left; set `ahead` of the source to {reach}"
        )


def _frames_at(frames: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the frames at `times`: zeros before the first, the last after the last."""
    taken = frames[np.clip(times, 0, len(frames) - 1)]
    taken[times < 0] = 0
    return taken


def _filled(values: np.ndarray, length: int) -> np.ndarray:
    """Return `values`, padded at the end with zeros to `length`."""
    filled = np.zeros(length, values.dtype)
    filled[: len(values)] = values
    return filled
