"""Recorded play on disk: chunks of 256 steps in array_record, and a manifest.

A step is (frame, action, reward, terminal): the frame *before* the action, and whether
the action ended the episode. Each frame is stored once, not in stacks: 256 frames
compressed together take 1 to 4 % of their size and a few milliseconds to unpack. So a
recording is read into memory as a whole, once, and any window is then a slice.
"""

import hashlib
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.manifest import read_manifest
from polyview.data.sources.protocol import CorruptRecord, default_data_dir, parse_split
from polyview.errors import InputError
from sgi.atari import RAM, SIZE

HISTORY = 4  # frames of an observation
_CHUNK = 256
_LONGEST_CHUNK = 4096  # most steps of a chunk accepted when reading
_LEVEL = 6  # half the size of level 1, still ten times as fast as the emulator
_VERSION = "1.0.0"
_LARGEST = 2**31  # above any change of a score: the emulator counts in 32 bits


def impossible(rewards: np.ndarray) -> np.ndarray:
    """Return which rewards no game gives: NaN, infinite or beyond 32 bits, bool[n]."""
    return ~(abs(np.asarray(rewards, np.float64)) < _LARGEST)


class Step(NamedTuple):
    """One step of play.

    Attributes:
      frame: uint8[84, 84], before the action.
      action: an index into the game's actions.
      reward: raw, not clipped.
      terminal: whether the action ended the episode.
      first: whether the step begins an episode.
      ram: uint8[128] at the time of the frame, or None if unknown.
    """

    frame: np.ndarray
    action: int
    reward: float
    terminal: bool
    first: bool
    ram: np.ndarray | None = None


@dataclass(frozen=True)
class Recording:
    """Steps as arrays: frames uint8[n, 84, 84], action int32[n], reward float32[n],
    terminal and first bool[n], ram uint8[n, 128] or None."""

    frames: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    first: np.ndarray
    ram: np.ndarray | None


def write(
    directory: Path,
    steps: Iterable[Step],
    count: int,
    *,
    source: str,
    licence: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write `count` steps and their manifest, all or nothing.

    Args:
      directory: folder of the recording; it must not exist.
      steps: the steps, in the order of play.
      count: the number of steps.
      source, licence: descriptions for the manifest.
      provenance: how the steps were made: game, actions, policy, sticky ...; counts of
        steps and episodes and the mean return are added.

    Raises:
      InputError: a reward or an action is impossible, or the disk refuses a write.
    """
    chunks = _Chunks(steps, count, len(provenance["actions"]))
    records.write(
        directory,
        {"train": chunks},
        version=_VERSION,
        targets={},
        source=source,
        licence=licence,
        # `chunks.counts` is complete by the time the manifest is written.
        provenance={**provenance, "chunk": _CHUNK, "counts": chunks.counts},
    )


@dataclass
class _Chunks:
    """Steps as records, with a length for the progress bar."""

    unit: ClassVar[str] = f" records of {_CHUNK} steps"

    steps: Iterable[Step]
    count: int
    actions: int
    counts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return -(-self.count // _CHUNK)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        steps = iter(self.steps)
        self.counts |= {"steps": 0, "episodes": 0, "finished": 0}
        returns, earned = [], 0.0
        while chunk := list(itertools.islice(steps, _CHUNK)):
            self._check(chunk)
            for step in chunk:
                earned = step.reward + (0.0 if step.first else earned)
                if step.terminal:
                    returns.append(earned)
            self.counts["steps"] += len(chunk)
            self.counts["episodes"] += sum(step.first for step in chunk)
            yield _pack(chunk)
        self.counts["finished"] = len(returns)
        self.counts["mean_return"] = float(np.mean(returns)) if returns else None

    def _check(self, chunk: list[Step]) -> None:
        """Raise InputError for a step that no game gives, by its number."""
        rewards = np.array([step.reward for step in chunk], float)
        actions = np.array([step.action for step in chunk])
        wrong = {
            "reward": (rewards, impossible(rewards)),
            "action": (actions, (actions < 0) | (actions >= self.actions)),
        }
        for kind, (values, where) in wrong.items():
            if where.any():
                first = int(where.argmax())
                raise InputError(
                    f"step {self.counts['steps'] + first} has {kind} {values[first]}, "
                    f"which a game of {self.actions} actions does not give; nothing "
                    "was written"
                )


def _pack(chunk: list[Step]) -> dict[str, Any]:
    columns: Any = Step(*zip(*chunk, strict=True))  # each field a tuple over the chunk
    record = {
        "frames": zlib.compress(np.stack(columns.frame).tobytes(), _LEVEL),
        "action": np.array(columns.action, np.uint8),
        "reward": np.array(columns.reward, np.float32),
        "terminal": np.array(columns.terminal, bool),
        "first": np.array(columns.first, bool),
    }
    if columns.ram[0] is not None:
        # By address, which compresses well: most bytes rarely change.
        record["ram"] = zlib.compress(np.stack(columns.ram).T.tobytes(), _LEVEL)
    return record


def digest(name: str, split: str, data_dir: str | Path | None = None) -> str:
    """Return the digest of a recording's files and of a split."""
    manifest = read_manifest(Path(data_dir or default_data_dir()) / name)
    files = [part["files"] for part in manifest["splits"].values()]
    text = json.dumps([files, split], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(name: str, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Return the provenance of a recording: its game, actions, policy, counts ...

    Raises InputError if the recording does not exist or its manifest is damaged.
    """
    directory = Path(data_dir or default_data_dir()) / name
    if not (directory / "manifest.json").is_file():
        raise InputError(
            f"no recording '{name}' in {directory.parent.absolute()}; {_advice(name)}"
        )
    provenance = read_manifest(directory).get("provenance")
    known = {"game": str, "actions": list, "chunk": int, "counts": dict}
    if not isinstance(provenance, dict) or not all(
        type(provenance.get(key)) is kind for key, kind in known.items()
    ):
        raise InputError(f"{directory} holds no recorded play, but other data")
    counts = provenance["counts"]
    finished = counts.get("finished")
    relied_on = {  # value, minimum, maximum
        "steps per record": (provenance["chunk"], 1, _LONGEST_CHUNK),
        "steps": (counts.get("steps"), 1, math.inf),
        "episodes": (counts.get("episodes"), 0, math.inf),
        "finished episodes": (finished, 0, math.inf),
    }
    for what, (number, least, most) in relied_on.items():
        if type(number) is not int or not least <= number <= most:
            raise InputError(
                f"{directory} is damaged: its number of {what} is {number!r}"
            )
    mean = counts.get("mean_return")
    if finished and (type(mean) is not float or not math.isfinite(mean)):
        raise InputError(f"{directory} is damaged: its mean return is not a number")
    if not all(type(action) is str for action in provenance["actions"]):
        raise InputError(f"{directory} is damaged: its actions are not names")
    return provenance


def _advice(name: str) -> str:
    """Say how to make a missing recording, by the naming scheme of the configs."""
    game, _, kind = name.rpartition("_")
    if kind == "random":
        return f"run: python -m sgi.prepare --game {game}"
    if kind == "probe":  # the seed differs from that of the training play
        how = f"--game {game} --steps 20000 --seed 1 --name {name}"
        return f"run: python -m sgi.prepare {how}"
    return (
        "record an agent's play under that name (python -m sgi.prepare --agent), or "
        "import DQN Replay files (--import)"
    )


def read(
    name: str, split: str = "train", data_dir: str | Path | None = None
) -> Recording:
    """Read steps into memory; `split` counts steps, as in `train[:90%]`.

    The first step of the split counts as the start of an episode. Raises InputError if
    the recording is missing or damaged.
    """
    provenance = describe(name, data_dir)
    size = provenance["chunk"]
    counts = {"train": provenance["counts"]["steps"]}
    _, start, stop = parse_split(split, counts)
    source = ArrayRecord(name, data_dir=data_dir)
    if -(-counts["train"] // size) != len(source):
        raise InputError(
            f"recording '{name}' has {len(source)} records, which does not match "
            f"{counts['train']} steps; remove it and prepare it again"
        )
    skipped = start // size * size
    count = min(-(-stop // size) * size, counts["train"]) - skipped
    frames = np.empty((count, SIZE, SIZE), np.uint8)

    def unpack(number: int) -> dict[str, Any]:
        record = source[number]
        place = number * size - skipped
        into = frames[place : place + size]
        into[:] = _array(record.pop("frames"), into.shape)
        if "ram" in record:
            record["ram"] = _array(record["ram"], (RAM, len(into))).T
        return {key: record[key][: len(into)] for key in record}

    try:
        # Threads help because zlib releases the GIL.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            chunks = list(pool.map(unpack, range(start // size, -(-stop // size))))
        columns = {
            key: np.concatenate([chunk[key] for chunk in chunks])[start - skipped :]
            for key in chunks[0]
        }
        wrong = columns["action"] >= len(provenance["actions"])
        if wrong.any() or impossible(columns["reward"]).any():
            raise ValueError("it holds a reward or an action that no game gives")
    except (CorruptRecord, KeyError, ValueError, zlib.error) as error:
        raise InputError(
            f"recording '{name}' is damaged ({error}); remove it and prepare it again"
        ) from None
    length = stop - start
    columns = {key: column[:length] for key, column in columns.items()}
    columns["first"][0] = True
    return Recording(
        frames[start - skipped :][:length],
        columns["action"].astype(np.int32),
        columns["reward"],
        columns["terminal"],
        columns["first"],
        columns.get("ram"),
    )


def _array(compressed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    # Limited to the expected size: a few bytes can unpack to gigabytes.
    unpacked = zlib.decompressobj().decompress(compressed, math.prod(shape) + 1)
    return np.frombuffer(unpacked, np.uint8).reshape(shape)
