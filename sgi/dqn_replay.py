"""The files of the DQN Replay data set (Agarwal et al. 2020), read and written.

A checkpoint N of a game is four files, each the gzip of one .npy of up to a million
rows: `$store$_observation_ckpt.N.gz` uint8[n, 84, 84], `..._action_...` int32[n],
`..._reward_...` float32[n] and `..._terminal_...` uint8[n]. SGI renames them to
`observation_N.gz` and so on. Before each episode stand three rows of zeros, which pad
the first stacks of four frames; they are no play and are left out when read.
"""

import contextlib
import gzip
import re
import tokenize
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from polyview.data.prepare import records
from polyview.errors import InputError
from sgi.atari import SIZE
from sgi.recording import HISTORY, Recording, Step

SOURCE = "DQN Replay data set (Agarwal et al. 2020)"
_TYPES = {
    "observation": ("|u1", (SIZE, SIZE)),
    "action": ("<i4", ()),
    "reward": ("<f4", ()),
    "terminal": ("|u1", ()),
}
_NAME = re.compile(r"(?:\$store\$_)?([a-z]+)_(?:ckpt\.)?(\d+)\.gz")
_ROWS = 2**22  # at most; the data set has a million in a file
_BLOCK = 1024  # frames held at a time, of files that unpack to 7 GB
_PADDING = HISTORY - 1
_HELP = (
    "They were published as gs://atari-replay-datasets/dqn/<Game>/<run>/replay_logs/, "
    "which has answered 403 to the public since 2025; without a copy of your own, "
    "record play instead: leave out --import"
)

Files = dict[str, Path]


def find(directory: Path, checkpoints: Sequence[int] | None = None) -> list[Files]:
    """Return the four files of each checkpoint, in the order of their numbers.

    Args:
      directory: holds the files under either name.
      checkpoints: the numbers wanted, in this order; by default all.

    Raises:
      InputError: there are none, or one is missing.
    """
    found: dict[int, Files] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and match[1] in _TYPES:
            found.setdefault(int(match[2]), {})[match[1]] = path
    if not found:
        raise InputError(
            f"{directory} holds no files of the {SOURCE}, such as "
            f"$store$_observation_ckpt.1.gz or observation_1.gz. {_HELP}"
        )
    numbers = sorted(found) if checkpoints is None else checkpoints
    for number in numbers:
        missing = [kind for kind in _TYPES if kind not in found.get(number, ())]
        if missing:
            raise InputError(
                f"checkpoint {number} in {directory} lacks its file of: "
                f"{', '.join(missing)} (there are checkpoints "
                f"{', '.join(map(str, sorted(found)))}). {_HELP}"
            )
    return [found[number] for number in numbers]


class Checkpoint:
    """The play of one checkpoint, without padding: iterates over its steps.

    Frames are unpacked twice, once to find the padding and once to hand them on, since
    a million of them need 7 GB.

    Raises:
      InputError: a file is damaged, or does not fit the others or the game.
    """

    def __init__(self, files: Files, actions: int):
        self._files = files
        columns = {
            kind: _column(files[kind], kind) for kind in _TYPES if kind[0] != "o"
        }
        self._action, self._terminal = columns["action"], columns["terminal"] != 0
        reward = columns["reward"]
        self._reward = np.where(np.isnan(reward), np.float32(0), reward)
        for kind, column in columns.items():
            if len(column) != len(self._action):
                raise InputError(
                    f"{files[kind]} has {len(column)} rows, but {files['action']} has "
                    f"{len(self._action)}"
                )
        strange = (self._action < 0) | (self._action >= actions)
        if strange.any():
            raise InputError(
                f"{files['action']} holds action {self._action[strange][0]}, but the "
                f"game has {actions}; is it another game's?"
            )
        black = np.concatenate(
            [~block.any((1, 2)) for block in self._blocks("looking for episodes")]
        )
        idle = (self._action == 0) & (self._reward == 0) & ~self._terminal
        padding = padding_rows(black & idle)
        self._kept = ~padding
        self._first = np.concatenate([[True], padding[:-1] | self._terminal[:-1]])

    def __len__(self) -> int:
        return int(self._kept.sum())

    def __iter__(self) -> Iterator[Step]:
        row = 0
        for block in self._blocks():
            for frame in block:
                if self._kept[row]:
                    yield Step(
                        frame,
                        int(self._action[row]),
                        float(self._reward[row]),
                        bool(self._terminal[row]),
                        bool(self._first[row]),
                    )
                row += 1

    def _blocks(self, doing: str | None = None) -> Iterator[np.ndarray]:
        path, rows = self._files["observation"], len(self._action)
        with _named(path), gzip.open(path) as file:
            _header(file, "observation", rows)
            bar = tqdm(
                total=rows, desc=doing, unit=" frames", delay=3, disable=not doing
            )
            with bar:
                for start in range(0, rows, _BLOCK):
                    count = min(_BLOCK, rows - start)
                    data = file.read(count * SIZE * SIZE)
                    if len(data) < count * SIZE * SIZE:
                        raise ValueError("there is less than its header says")
                    bar.update(count)
                    yield np.frombuffer(data, np.uint8).reshape(count, SIZE, SIZE)
            if file.read(1):  # also checks the sum at the end
                raise ValueError("there is more than its header says")


def padding_rows(blank: np.ndarray) -> np.ndarray:
    """Say which rows are padding, given which are all zeros: bool[n] to bool[n].

    The first three of three zero rows or more pad an episode's start; so do fewer at
    the start of a file, which may begin among them. A shorter black screen is play.
    """
    padding = np.zeros(len(blank), bool)
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], blank, [False]]).view("i1"))
    )
    for start, stop in edges.reshape(-1, 2):
        if start == 0 or stop - start >= _PADDING:
            padding[start : min(stop, start + _PADDING)] = True
    return padding


def export(play: Recording, directory: Path) -> None:
    """Write a recording as checkpoint 1, padded, under the original names.

    Raises:
      InputError: the folder is there already, or cannot be written.
    """
    if directory.exists():
        raise InputError(f"{directory} is there already; export into a new folder")
    # Row r of play stands behind all padding so far; the other rows are zeros.
    at = np.arange(len(play.first)) + _PADDING * np.cumsum(play.first)
    rows = len(play.first) + _PADDING * int(play.first.sum())
    with records.whole_folder(directory) as folder:
        for kind in _TYPES:
            path = folder / f"$store$_{kind}_ckpt.1.gz"
            with records.writing(directory), gzip.open(path, "wb", 6) as file:
                _write(file, kind, play, at, rows)


def _write(
    file: BinaryIO, kind: str, play: Recording, at: np.ndarray, rows: int
) -> None:
    dtype, shape = _TYPES[kind]
    header = {"descr": dtype, "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    column = play.frames if kind == "observation" else getattr(play, kind)
    for start in range(0, rows, _BLOCK):
        block = np.zeros((min(_BLOCK, rows - start), *shape), dtype)
        first, last = np.searchsorted(at, [start, start + len(block)])
        block[at[first:last] - start] = column[first:last]
        file.write(block.tobytes())


def _column(path: Path, kind: str) -> np.ndarray:
    dtype, _ = _TYPES[kind]
    with _named(path), gzip.open(path) as file:
        rows = _header(file, kind)
        # One byte more than there should be: a small file can unfold to gigabytes.
        content = file.read(rows * np.dtype(dtype).itemsize + 1)
        column = np.frombuffer(content, dtype)
        if len(column) != rows:
            raise ValueError(f"it does not hold the {rows} rows of its header")
        return column


def _header(file: BinaryIO, kind: str, rows: int | None = None) -> int:
    """Read the header of a .npy, check it and return the number of its rows."""
    dtype, shape = _TYPES[kind]
    if np.lib.format.read_magic(file) == (1, 0):
        found, fortran, kind_found = np.lib.format.read_array_header_1_0(file)
    else:
        found, fortran, kind_found = np.lib.format.read_array_header_2_0(file)
    expected = (found[:1] if rows is None else (rows,)) + shape
    if found != expected or kind_found != np.dtype(dtype) or fortran or not found:
        raise ValueError(
            f"it holds {kind_found}{list(found)}, not {dtype}{list(expected)}"
        )
    if not 0 < found[0] <= _ROWS:
        raise ValueError(f"it says it has {found[0]} rows, not 1 to {_ROWS}")
    return found[0]


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn the ways in which a file can be damaged into an error with its name."""
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, tokenize.TokenError) as error:
        raise InputError(f"{path} is damaged or not of the {SOURCE}: {error}") from None
