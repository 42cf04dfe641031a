"""Data sets written by `polyview.prepare`: array_record files and a manifest.

array_record allows random access by index without a separate shuffle. Each record is
one msgpack dict. Nothing is unpickled: data may be untrusted.
"""

import hashlib
import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from polyview.data.sources.manifest import read_manifest
from polyview.data.sources.protocol import (
    CorruptRecord,
    check_resources,
    default_data_dir,
    first_line,
    parse_split,
)
from polyview.errors import InputError, nearest

_ROOM = 2**31  # bytes of address space; with 1.4 GB array_record has hung
_ARRAY = 1  # msgpack extension code of a numpy array


def pack(example: Mapping[str, Any]) -> bytes:
    """Write one example as a record: msgpack, with arrays as (dtype, shape, bytes)."""
    return msgpack.packb(dict(example), default=_pack_value)


def unpack(record: bytes) -> dict[str, Any]:
    """Read one example from a record. Raises CorruptRecord if it holds none."""
    try:
        example = msgpack.unpackb(record, ext_hook=_unpack_array)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptRecord(f"not a msgpack record: {error}") from None
    if not isinstance(example, dict):
        raise CorruptRecord(f"a record must be a dict, not a {type(example).__name__}")
    return example


def _pack_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise ValueError("an array of objects cannot be written without pickle")
        fields = (value.dtype.str, value.shape, value.tobytes())
        return msgpack.ExtType(_ARRAY, msgpack.packb(fields))
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"a record cannot hold a {type(value).__name__}")


def _unpack_array(code: int, data: bytes) -> np.ndarray:
    if code != _ARRAY:
        raise ValueError(f"unknown extension code {code}")
    dtype, shape, values = msgpack.unpackb(data)
    return np.frombuffer(values, np.dtype(dtype)).reshape(shape)


def _check_room(directory: Path) -> None:
    """Raise InputError if the address space is limited to less than `_ROOM` more.

    Threads of array_record that cannot start make it hang.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    usage = Path("/proc/self/statm")  # Linux
    if limit == resource.RLIM_INFINITY or not usage.exists():
        return
    room = limit - int(usage.read_text().split()[0]) * resource.getpagesize()
    if room < _ROOM:
        raise InputError(
            f"{directory} cannot be read with {room / 2**30:.1f} GiB of address space; "
            f"array_record needs {_ROOM / 2**30:.0f}: raise `ulimit -v`"
        )


class ArrayRecord:
    """A data set written by `python -m polyview.prepare`.

    Args:
      name: the data set, a folder of `data_dir`.
      split: see `parse_split`.
      data_dir: by default `$POLYVIEW_DATA`, else `./data`.

    Raises InputError if the data set is absent or damaged, or has no such split.

    Attributes:
      digest: of the rows, from the checksums of their files, and of the targets.
    """

    def __init__(
        self, name: str, split: str = "train", data_dir: str | Path | None = None
    ):
        directory = Path(data_dir or default_data_dir()) / name
        if not (directory / "manifest.json").is_file():
            flag = f" --data_dir {data_dir}" if data_dir else ""
            names = [m.parent.name for m in directory.parent.glob("*/manifest.json")]
            raise InputError(
                f"no data set '{name}' in {directory.parent.absolute()}; run: python "
                f"-m polyview.prepare {name}{flag}{nearest(name, names)}"
            )
        manifest = read_manifest(directory)
        counts = {name: entry["count"] for name, entry in manifest["splits"].items()}
        split_name, self._start, self._stop = parse_split(split, counts)
        files = [file["name"] for file in manifest["splits"][split_name]["files"]]
        _check_room(directory)
        try:
            self._records = ArrayRecordDataSource([str(directory / f) for f in files])
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            check_resources(error, str(directory))
            raise InputError(
                f"{directory} is damaged ({first_line(error)}); "
                "remove it and prepare again"
            ) from None
        if len(self._records) != counts[split_name]:
            raise InputError(
                f"{directory} holds {len(self._records)} {split_name} records, but its "
                f"manifest lists {counts[split_name]}; remove it and prepare again"
            )
        labelled = split_name not in manifest.get("unlabelled", ())
        self.targets: dict[str, dict[str, Any]] = (
            manifest["targets"] if labelled else {}
        )
        content = [manifest["splits"][split_name]["files"], self._start, self._stop]
        text = json.dumps([*content, self.targets], sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self._description = f"ArrayRecord('{name}', '{split}')"

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = self._records[self._start + int(index)]
        except (RuntimeError, ValueError) as error:
            check_resources(error, repr(self))
            raise CorruptRecord(first_line(error)) from None
        return unpack(record)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        # One call for many records takes a fifth of the time of single calls.
        try:
            records = self._records.__getitems__([self._start + i for i in indices])
        except (RuntimeError, ValueError) as error:
            check_resources(error, repr(self))
            raise CorruptRecord(first_line(error)) from None
        return [unpack(record) for record in records]

    def __repr__(self) -> str:
        return self._description
