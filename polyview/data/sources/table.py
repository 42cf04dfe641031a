"""Tables as other tools write them: parquet, CSV, and Hugging Face `datasets` on disk.

pyarrow alone reads them. Nothing is unpickled, and no code of a data set runs.
"""

import bisect
import glob
import hashlib
import json
import threading
from collections.abc import Sequence
from csv import reader
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unicodedata import normalize

import pyarrow
from pyarrow import csv, ipc, parquet

from polyview.data.sources.folder import read_image, stored
from polyview.data.sources.manifest import MAX_CLASSES, class_targets
from polyview.data.sources.protocol import CorruptRecord, parse_split
from polyview.errors import InputError, nearest
from polyview.files import fingerprint

_KEPT = 2**30  # bytes of decoded row groups kept for the next rows
ENDINGS = (".csv", ".tsv", ".parquet")


class Table:
    """The rows of a table, whose images are encoded bytes or paths.

    Each column is a field of the examples. A column of images holds bytes, paths below
    the table's folder, or both, as Hugging Face writes them. A row whose class is null,
    empty or -1 has the label -1, for unknown; see `class_targets`.

    Args:
      path: a CSV or parquet file, a pattern of several such as `data/train-*.parquet`,
        or a folder that `datasets` saved.
      split: see `polyview.data.sources.protocol.parse_split`. The splits are those of a
        folder, or the values of a column `split`; a table without either is "train".
      image: the column that becomes the field `image`; None for a table without.
      label: the column of classes that becomes the field `label`; None for none.
      names: the names of the classes, in order. By default those that the file names
        or, of a column of texts, all that occur, sorted; numbers need none.
      labelled: take only the rows that have a class.

    Raises:
      InputError: there is no such file, column or split, or the labels are no classes.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        image: str | None = "image",
        label: str | None = "label",
        names: Sequence[str] | None = None,
        labelled: bool = False,
    ):
        self._description = f"Table('{path}', '{split}')"
        self._rows, self._root, kept = _open(Path(path), split)
        columns = self._rows.schema.names
        for name, column in ("image", image), ("label", label):
            if column is not None and column not in columns:
                raise InputError(
                    f"{path} has no column {column!r}{nearest(column, columns)}; give "
                    f"{name}= its name, or {name}=None"
                )
        self._image, self._label = image, label
        self._index = kept
        self.targets: dict[str, dict[str, Any]] = {}
        self._numbers: dict[str | int, int] | None = None
        if label is not None:
            names = names or _named_classes(self._rows.schema, label)
            cells = list(map(_class, self._rows.column(label)))
            names = self._classes(cells, names, str(path))
            if labelled:
                self._index = [row for row in kept if cells[row] != -1]
                if not self._index:
                    raise InputError(f"no row of {self!r} has a class in {label}")
            taken = [-1 if cells[row] == -1 else 0 for row in self._index]
            self.targets = class_targets(taken, names)

    def _classes(
        self, column: list, names: Sequence[str] | None, path: str
    ) -> Sequence[str]:
        """Return the names of the classes; set the number of each in texts."""
        column = [value for value in column if value != -1]
        if all(type(value) is int for value in column):
            least, most = min(column, default=0), max(column, default=0)
            if most >= MAX_CLASSES:
                raise InputError(f"{path}: {self._label} has {most}, no class number")
            if least < 0 or (names and most >= len(names)):
                known = f"of the {len(names)} names" if names else "0 or more"
                raise InputError(
                    f"{path}: {self._label} has the numbers {least} .. {most}, which "
                    f"must be {known}, or -1 for no class"
                )
            return names or [str(number) for number in range(most + 1)]
        if not all(type(value) is str for value in column):
            raise InputError(
                f"{path}: column {self._label} holds no classes (whole numbers or "
                "names, empty for unknown); give label=None"
            )
        names = [normalize("NFC", name) for name in names or sorted(set(column))]
        self._numbers = {name: number for number, name in enumerate(names)} | {-1: -1}
        if unknown := sorted(set(column) - set(names)):
            near = nearest(unknown[0], names)
            raise InputError(f"{path}: {self._label} has {unknown[0]!r}{near}")
        return names

    @property
    def digest(self) -> str:
        """The digest of the files' names and ends, and of the rows taken."""
        rows = self._index if isinstance(self._index, range) else list(self._index)
        text = json.dumps([self._rows.files(), str(rows), self.targets], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(index)
        rows = self._rows.take([self._index[index] for index in indices])
        return [self._example(row) for row in rows]

    def _example(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._image is not None:
            row["image"] = self._bytes(row[self._image])
        if self._label is not None:
            label = _class(row[self._label])
            row["label"] = label if self._numbers is None else self._numbers[label]
        return row

    def _bytes(self, value: Any) -> bytes | None:
        """Return an encoded image: bytes, a path, or a dict with either."""
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return read_image(stored(self._root, value))
        if value is not None and not isinstance(value, bytes):
            raise CorruptRecord(f"column {self._image} holds a {type(value).__name__}")
        return value

    def __repr__(self) -> str:
        return self._description


class _Rows(Protocol):
    """Rows of files, by their number over all of them."""

    schema: pyarrow.Schema

    def __len__(self) -> int: ...

    def column(self, name: str) -> list:
        """Return a whole column."""
        ...

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return rows, in the order of their numbers."""
        ...

    def files(self) -> list:
        """Return the names and fingerprints of the files."""
        ...


class _Held:
    """A table in memory or in mapped files."""

    def __init__(self, table: pyarrow.Table, paths: Sequence[Path]):
        self.schema, self._table, self._paths = table.schema, table, paths

    def __len__(self) -> int:
        return len(self._table)

    def column(self, name: str) -> list:
        return self._table.column(name).to_pylist()

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [self._table.slice(number, 1).to_pylist()[0] for number in numbers]

    def files(self) -> list:
        return [(path.name, fingerprint(path)) for path in self._paths]


class _Mapped(_Held):
    """A table in files of the Arrow stream format, mapped into memory."""

    def __init__(self, paths: Sequence[Path]):
        maps = [ipc.open_stream(pyarrow.memory_map(str(path))) for path in paths]
        super().__init__(pyarrow.concat_tables(m.read_all() for m in maps), paths)

    def __reduce__(self) -> tuple:
        return type(self), (self._paths,)  # a worker maps the files itself


class _Group(NamedTuple):
    """A row group of a parquet file: the least that can be read."""

    path: Path
    number: int
    rows: int
    size: int  # bytes when decoded


class _Parquet:
    """Rows of parquet files. The row groups read last are kept, up to `_KEPT` bytes."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(paths)
        self.schema: pyarrow.Schema = None
        self._groups: list[_Group] = []
        for path in paths:
            about = parquet.read_metadata(path)
            schema = parquet.read_schema(path)
            if self.schema is not None and not schema.equals(self.schema):
                raise InputError(f"{path} has other columns than {paths[0]}")
            self.schema = schema
            for number in range(about.num_row_groups):
                group = about.row_group(number)
                shape = path, number, group.num_rows, group.total_byte_size
                self._groups.append(_Group(*shape))
        self._ends = list(accumulate(group.rows for group in self._groups))
        self._forget()

    def _forget(self) -> None:
        self._kept: dict[int, pyarrow.Table] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def column(self, name: str) -> list:
        tables = [parquet.read_table(path, columns=[name]) for path in self._paths]
        return pyarrow.concat_tables(tables).column(name).to_pylist()

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        rows: dict[int, dict[str, Any]] = {}
        for number in sorted(set(numbers)):  # each group is then read once
            group = bisect.bisect_right(self._ends, number)
            place = number - (self._ends[group] - self._groups[group].rows)
            rows[number] = self._read(group).slice(place, 1).to_pylist()[0]
        return [dict(rows[number]) for number in numbers]

    def _read(self, number: int) -> pyarrow.Table:
        with self._lock:
            table = self._kept.pop(number, None)
            if table is None:
                group = self._groups[number]
                try:
                    with parquet.ParquetFile(group.path) as file:
                        table = file.read_row_group(group.number)
                except (OSError, pyarrow.ArrowException) as error:
                    raise CorruptRecord(f"{group.path}: {error}") from None
            self._kept[number] = table  # the last used is the last in order
            sizes = [self._groups[kept].size for kept in self._kept]
            while len(sizes) > 1 and sum(sizes) > _KEPT:
                del self._kept[next(iter(self._kept))], sizes[0]
            return table

    def files(self) -> list:
        return [(path.name, fingerprint(path)) for path in self._paths]


def _open(path: Path, split: str) -> tuple[_Rows, Path, Sequence[int]]:
    """Return the rows, the folder that paths begin in, and the numbers of a split."""
    try:
        if path.is_dir():
            folder = _of_split(path, split)
            rows: _Rows = _saved(folder)
            counts = {split.partition("[")[0]: len(rows)}
            _, start, stop = parse_split(split, counts)
            return rows, folder, range(start, stop)
        paths = [Path(p) for p in sorted(glob.glob(str(path)))]
        if path.exists():  # its name may itself look like a pattern
            paths = [path]
        if not paths:
            raise InputError(f"no table {path}; give a file, a pattern or a folder")
        if all(p.suffix == ".parquet" for p in paths):
            rows = _Parquet(paths)
        else:
            rows = _Held(pyarrow.concat_tables(map(_csv, paths)), paths)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        line = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read as a table: {line}") from None
    if "split" not in rows.schema.names:
        _, start, stop = parse_split(split, {"train": len(rows)})
        return rows, paths[0].parent, range(start, stop)
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(rows.column("split")):
        numbers.setdefault(str(name), []).append(number)
    name, start, stop = parse_split(split, {k: len(v) for k, v in numbers.items()})
    return rows, paths[0].parent, numbers[name][start:stop]


def _csv(path: Path) -> pyarrow.Table:
    if path.suffix not in ENDINGS:
        raise ValueError(f"its name ends in none of {', '.join(ENDINGS)}")
    options = csv.ParseOptions(delimiter=separator(path))
    return csv.read_csv(path, parse_options=options)


def separator(path: Path) -> str:
    """Return what separates the cells of a CSV file: comma, semicolon or tab.

    It gives the header most cells, and the first row as many. Raises InputError for a
    file that is not UTF-8; a byte order mark is allowed.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [file.readline(2**16), file.readline(2**16)]
            while file.read(2**20):
                pass
    except UnicodeDecodeError:
        lines = ["\0"]
    if "\0" in lines[0]:  # also of UTF-16 without a mark
        raise InputError(
            f"{path} is not UTF-8; save as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
        )
    marks = "\t,;" if path.suffix == ".tsv" else ",;\t"  # the first of equals counts

    def merit(mark: str) -> tuple[bool, int]:
        header, row = (len(next(reader([x], delimiter=mark), [])) for x in lines)
        return header == row > 1, header

    return max(marks, key=merit)


def _class(value: Any) -> Any:
    """Return a cell of a column of classes; -1 if it is null, NaN, empty or -1.

    Where numbers are missing, pandas writes all as floats. Accents are composed.
    """
    if value is None or value == "" or value != value:
        return -1
    if type(value) is float and value.is_integer():
        return int(value)
    return normalize("NFC", value) if isinstance(value, str) else value


def _of_split(folder: Path, split: str) -> Path:
    """Return the folder of a split that `DatasetDict.save_to_disk` wrote."""
    if not (folder / "dataset_dict.json").is_file():
        if not (folder / "state.json").is_file():
            raise InputError(
                f"{folder} is no folder that `datasets` saved (no state.json); for a "
                "folder of images: python -m polyview.prepare folder"
            )
        return folder
    names = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
    name = split.partition("[")[0]
    if name not in names:
        raise InputError(f"{folder} has no split {name!r}{nearest(name, names)}")
    return folder / name


def _saved(folder: Path) -> _Mapped:
    state = json.loads((folder / "state.json").read_bytes())
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise ValueError("its rows are an index into others; call flatten_indices()")
    return _Mapped([folder / file["filename"] for file in state["_data_files"]])


def _named_classes(schema: pyarrow.Schema, label: str) -> list[str] | None:
    """Return the names of a ClassLabel of Hugging Face, if the file has them."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        feature = about["info"]["features"][label]
        return feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, ValueError, TypeError):
        return None
