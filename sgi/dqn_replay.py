"""Read and write the files of the DQN Replay data set (Agarwal et al. 2020).

Checkpoint N of a game is four files, each a gzipped .npy of up to a million rows:
`$store$_observation_ckpt.N.gz` uint8[n, 84, 84], `..._action_...` int32[n],
`..._reward_...` float32[n] and `..._terminal_...` uint8[n]. SGI renames them to
`observation_N.gz` and so on. Three rows of zeros precede each episode and pad its first
stacks of four frames; they are not play, and reading drops them.
"""

import contextlib
import gzip
import re
import tokenize
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from polyview.data.prepare import records
from polyview.errors import InputError
from sgi.atari import SIZE
from sgi.recording import HISTORY, Recording, Step, impossible

SOURCE = "DQN Replay data set (Agarwal et al. 2020)"
_TYPES = {
    "observation": ("|u1", (SIZE, SIZE)),
    "action": ("<i4", ()),
    "reward": ("<f4", ()),
    "terminal": ("|u1", ()),
}
_NAME = re.compile(r"(?:\$store\$_)?([a-z]+)_(?:ckpt\.)?(\d+)\.gz")
_ROWS = 2**22  # most rows accepted; the data set has a million a file
_BLOCK = 1024  # frames held in memory at a time; a file unpacks to 7 GB
_PADDING = HISTORY - 1
_HELP = (
    "They were published at gs://atari-replay-datasets/dqn/<Game>/<run>/replay_logs/, "
    "which has returned 403 to the public since 2025; without your own copy, record "
    "play instead: leave out --import"
)

Files = dict[str, Path]


def find(directory: Path, checkpoints: Sequence[int] | None = None) -> list[Files]:
    """Return the four files of each checkpoint.

    Args:
      directory: holds the files, under either name.
      checkpoints: numbers of the checkpoints, in this order; by default all, ascending.

    Raises:
      InputError: there are no files, one is missing, or one occurs twice.
    """
    by_number: dict[int, dict[str, list[Path]]] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and match[1] in _TYPES:
            kinds = by_number.setdefault(int(match[2]), {})
            kinds.setdefault(match[1], []).append(path)
    if not by_number:
        raise InputError(
            f"{directory} holds no files of the {SOURCE}, such as "
            f"$store$_observation_ckpt.1.gz or observation_1.gz. {_HELP}"
        )
    numbers = sorted(by_number) if checkpoints is None else checkpoints
    for number in numbers:
        for kind, paths in by_number.get(number, {}).items():
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                raise InputError(
                    f"{directory} has {len(paths)} files of the {kind} of checkpoint "
                    f"{number}: {names}; keep those of one spelling"
                )
        missing = [kind for kind in _TYPES if kind not in by_number.get(number, ())]
        if missing:
            raise InputError(
                f"checkpoint {number} in {directory} has no file of: "
                f"{', '.join(missing)} (checkpoints found: "
                f"{', '.join(map(str, sorted(by_number)))}). {_HELP}"
            )
    return [
        {kind: paths[0] for kind, paths in by_number[number].items()}
        for number in numbers
    ]


class Checkpoint:
    """The play of one checkpoint, without padding; iterates over its steps.

    Frames are unpacked twice, once to find the padding and once to yield them, because
    holding a million of them takes 7 GB.

    Raises:
      InputError: a file is damaged, does not match the others or the game, or holds a
        value that play does not give. The official code of SGI takes a reward of NaN
        as 0.
    """

    def __init__(self, files: Files, actions: int):
        self._files = files
        columns = {
            kind: _column(files[kind], kind) for kind in _TYPES if kind[0] != "o"
        }
        for kind, column in columns.items():
            if len(column) != len(columns["action"]):
                raise InputError(
                    f"{files[kind]} has {len(column)} rows, but {files['action']} has "
                    f"{len(columns['action'])}"
                )
        action, reward = columns["action"], columns["reward"]
        _check(files, "action", action, (action < 0) | (action >= actions), actions)
        _check(files, "reward", reward, impossible(reward), actions)
        _check(files, "terminal", columns["terminal"], columns["terminal"] > 1, actions)
        self._action, self._reward = action, reward
        self._terminal = columns["terminal"] != 0
        black = np.concatenate(
            [~block.any((1, 2)) for block in self._blocks("finding episodes")]
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

    def _blocks(self, task: str | None = None) -> Iterator[np.ndarray]:
        path, rows = self._files["observation"], len(self._action)
        with _named(path), gzip.open(path) as file:
            _header(file, "observation", rows)
            bar = tqdm(total=rows, desc=task, unit=" frames", delay=3, disable=not task)
            with bar:
                for start in range(0, rows, _BLOCK):
                    count = min(_BLOCK, rows - start)
                    data = file.read(count * SIZE * SIZE)
                    if len(data) < count * SIZE * SIZE:
                        raise ValueError("it holds less than its header says")
                    bar.update(count)
                    yield np.frombuffer(data, np.uint8).reshape(count, SIZE, SIZE)
            if file.read(1):  # also checks the sum at the end
                raise ValueError("it holds more than its header says")


def padding_rows(blank: np.ndarray) -> np.ndarray:
    """Return which rows are padding, given which are all zeros: bool[n] to bool[n].

    In a run of three or more zero rows, the first three pad an episode's start. At the
    start of a file, which may begin within padding, fewer count too. Elsewhere a
    shorter run is play: a black screen.
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

    Raises InputError if the folder exists or cannot be written.
    """
    if directory.exists():
        raise InputError(f"{directory} already exists; export into a new folder")
    # Row r of play comes after all padding so far; the other rows are zeros.
    places = np.arange(len(play.first)) + _PADDING * np.cumsum(play.first)
    rows = len(play.first) + _PADDING * int(play.first.sum())
    with records.whole_folder(directory) as folder:
        for kind in _TYPES:
            path = folder / f"$store$_{kind}_ckpt.1.gz"
            with records.writing(directory), gzip.open(path, "wb", 6) as file:
                _write(file, kind, play, places, rows)


def _write(
    file: gzip.GzipFile, kind: str, play: Recording, places: np.ndarray, rows: int
) -> None:
    dtype, shape = _TYPES[kind]
    header = {"descr": dtype, "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    column = play.frames if kind == "observation" else getattr(play, kind)
    for start in range(0, rows, _BLOCK):
        block = np.zeros((min(_BLOCK, rows - start), *shape), dtype)
        first, last = np.searchsorted(places, [start, start + len(block)])
        block[places[first:last] - start] = column[first:last]
        file.write(block.tobytes())


def _check(
    files: Files, kind: str, column: np.ndarray, wrong: np.ndarray, actions: int
) -> None:
    """Raise InputError, with file and step, if a value is `wrong`."""
    if not wrong.any():
        return
    step = int(wrong.argmax())
    expected = {
        "action": f"the game has {actions} actions; is the file from another game?",
        "reward": "a change of the score is a finite number of at most 32 bits; give "
        "an undamaged file, or leave its checkpoint out",
        "terminal": "it must be 0 or 1; give an undamaged file, or leave its "
        "checkpoint out",
    }
    raise InputError(
        f"{files[kind]} holds {kind} {column[step]} at step {step} (counted from 0, "
        f"with padding), but {expected[kind]}"
    )


def _column(path: Path, kind: str) -> np.ndarray:
    dtype, _ = _TYPES[kind]
    with _named(path), gzip.open(path) as file:
        rows = _header(file, kind)
        # Read at most one byte too many: a small file can unpack to gigabytes.
        content = file.read(rows * np.dtype(dtype).itemsize + 1)
        column = np.frombuffer(content, dtype)
        if len(column) != rows:
            raise ValueError(f"it does not hold the {rows} rows of its header")
        return column


def _header(file: gzip.GzipFile, kind: str, rows: int | None = None) -> int:
    """Read and check the header of a .npy file; return its number of rows."""
    dtype, shape = _TYPES[kind]
    if np.lib.format.read_magic(file) == (1, 0):
        stored, fortran, stored_dtype = np.lib.format.read_array_header_1_0(file)
    else:
        stored, fortran, stored_dtype = np.lib.format.read_array_header_2_0(file)
    expected = (stored[:1] if rows is None else (rows,)) + shape
    if stored != expected or stored_dtype != np.dtype(dtype) or fortran or not stored:
        raise ValueError(
            f"it holds {stored_dtype}{list(stored)}, not {dtype}{list(expected)}"
        )
    if not 0 < stored[0] <= _ROWS:
        raise ValueError(f"its header gives {stored[0]} rows, not 1 to {_ROWS}")
    return stored[0]


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Report a damaged file as an InputError that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, tokenize.TokenError) as error:
        raise InputError(f"{path} is damaged or not of the {SOURCE}: {error}") from None
