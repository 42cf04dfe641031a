"""The metrics of a run: metrics.jsonl (the reference), TensorBoard, a line or a bar.

A line of metrics.jsonl is one JSON object: "step", the values at that step, and under
"time" every value that depends on the clock, so that runs can be compared without it.
"""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from polyview import files
from polyview.errors import InputError
from polyview.terminal import duration, say

LONGEST = 2**30  # bytes of a metrics.jsonl: a line per second for weeks


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a truncated last line is left out.

    Raises InputError if the file cannot be read, or if another line is not a JSON
    object with an integer "step".
    """
    if not Path(path).exists():
        return []
    try:
        content = io.BytesIO(files.read_bounded(Path(path), LONGEST)).readlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {why}") from error
    lines = []
    for number, line in enumerate(content, 1):
        try:
            lines.append(_parse(line))
        except ValueError as error:
            if line.endswith(b"\n"):
                raise InputError(
                    f"{path}, line {number} is damaged: {error}"
                ) from error
    return lines


def _parse(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        raise ValueError('it is not an object with an integer "step"')
    return values


def keep_until(path: str | Path, step: int) -> None:
    """Drop the lines after `step`, atomically: the run will write them again."""
    lines = read(path)
    kept = [line for line in lines if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    files.write_whole(Path(path), text.encode())


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Turn a disk error into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; fix that and run the "
            "same command again: it resumes from its last checkpoint"
        ) from error


class Lines:
    """A file to which lines of JSON are appended, unbuffered.

    Raises InputError if the disk refuses a write.
    """

    def __init__(self, path: Path):
        self._path = path
        with _writing(path):  # unbuffered, so that closing does not write again
            self._file = path.open("ab", buffering=0)

    def write(self, line: dict) -> None:
        """Append a line."""
        rest = (json.dumps(line) + "\n").encode()
        with _writing(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Board:
    """TensorBoard's event file, written without a thread.

    The libraries' own writers use a thread. If it dies (full disk), the program hangs.
    """

    def __init__(self, folder: Path, step: int):
        """step: the first step from which earlier events are void."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._path, self._event, self._summary = folder, Event, Summary
        with _writing(folder):
            folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(step=step, session_log=start))
            self._file.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add the values at a step."""
        summaries = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        with _writing(self._path):
            self._file.write_event(
                self._event(
                    step=step,
                    wall_time=time.time(),
                    summary=self._summary(value=summaries),
                )
            )
            self._file.flush()

    def close(self) -> None:
        """Close the file; events that a full disk refused are lost."""
        with contextlib.suppress(OSError):
            self._file.close()


class Writer:
    """Writes metrics on the first process; does nothing on the others."""

    def __init__(
        self,
        workdir: Path,
        step: int,
        steps: int,
        views: int,
        active: bool,
        shown: Sequence[str] = (),
        unit: str = "views",
    ):
        """step: current step, of `steps`. views: per step, for the rate, in `unit`.

        shown: values to print beside the loss.
        """
        self._steps, self._views, self._active = steps, views, active
        self._shown, self._unit = shown, unit
        self._last = self._began = (step, time.monotonic())
        if not active:
            return
        path = workdir / "metrics.jsonl"
        keep_until(path, step)
        self._board = Board(workdir / "tensorboard", step + 1)
        self._lines = Lines(path)
        # A bar in a log file would be thousands of lines.
        self._bar = (
            tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values at a step."""
        if not self._active:
            return
        now = time.monotonic()
        first, steps = self._last == self._began, step - self._last[0]
        rate = steps / max(now - self._last[1], 1e-9)
        self._last = (step, now)
        times = {
            "seconds": now - self._began[1],
            "steps_per_second": rate,
            "views_per_second": rate * self._views,
        }
        self._lines.write({"step": step, **values, "time": times})
        rate_of_views = {"views_per_second": times["views_per_second"]}
        self._board.write(step, values | rate_of_views)
        text = f"loss {values['loss']:.4f}"
        text += "".join(f"  {name} {values[name]:.3f}" for name in self._shown)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            left = (self._steps - step) / max(rate, 1e-9)
            speed = (
                f"{rate:.2f} steps/s  {rate * self._views:.0f} {self._unit}/s  "
                f"{duration(left)} left"
            )
            # The first steps of a process wait for the compiler: no rate to go by.
            spent = f"after {duration(times['seconds'])}, with compilation"
            say(f"step {step}/{self._steps}  {text}  {spent if first else speed}")

    def advance(self, step: int) -> None:
        """Move the bar, if there is one."""
        if self._active and self._bar is not None:
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Flush and close."""
        if self._active:
            self._lines.close()
            self._board.close()
            if self._bar is not None:
                self._bar.close()
