"""What a source is, and what is checked of its examples.

A source maps an index to one example, a dict of fields: an image is encoded `bytes`
(decoded in `augment`, which knows the size of the crops) or `uint8[h, w, c]`, a label
an int, a text a str. It reads lazily, may be shared by threads, and can be pickled.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polyview.errors import InputError


class CorruptRecord(ValueError):
    """A record that cannot be decoded; the pipeline reads another in its place."""


class Source(Protocol):
    """A sequence of examples.

    `targets` maps a field to its task, such as `{"kind": "class", "classes": 10,
    "names": [...]}` where names are optional; it is empty for unlabelled data. A source
    that reads many examples at once for less may also have `__getitems__(indices) ->
    list`, as in PyTorch and array_record; it raises `CorruptRecord` if any of them is.
    """

    targets: dict[str, dict[str, Any]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def check_targets(source: Source, batch: Mapping[str, Any]) -> None:
    """Raise InputError for a target of the batch that is no class of the source.

    A loss would take -1 for the last class, and make NaN of one that is too large.
    """
    for name, values in batch["targets"].items():
        task = source.targets.get(name, {})
        classes = 2 if task.get("kind") == "multi-label" else task.get("classes")
        if classes is None:
            continue
        wrong = ((values < 0) | (values >= classes)).reshape(len(values), -1)
        if wrong.any():
            row = int(wrong.any(1).argmax())
            value = values.reshape(len(values), -1)[row, wrong[row].argmax()]
            raise InputError(
                f"{source!r}: row {batch['index'][row]} has {name} {value}, outside 0 "
                f".. {classes - 1}; correct the data, or leave it out of views.targets"
            )


def check_numbers(targets: Mapping[str, np.ndarray]) -> None:
    """Raise CorruptRecord for a target that is no number."""
    for name, value in targets.items():
        if value.dtype.kind not in "biuf":
            raise CorruptRecord(f"target '{name}' is no number, but {value!r:.40}")


def default_data_dir() -> Path:
    """Return `$POLYVIEW_DATA`, or `data` in the current directory."""
    return Path(os.environ.get("POLYVIEW_DATA") or "data")


def parse_split(split: str, counts: Mapping[str, int]) -> tuple[str, int, int]:
    """Turn `train[:90%]` into a split's name and its range of indices.

    Args:
      split: `name`, or `name[start:stop]` where either bound is a count, a percentage
        (rounded to the nearest example) or absent.
      counts: the number of examples of each split.

    Raises:
      InputError: the split is unknown, does not parse or holds no example.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if not match:
        raise InputError(
            f"split '{split}' is not of the form train, train[:90%] or train[100:5000]"
        )
    name, first, last = match.groups()
    if name not in counts:
        raise InputError(f"no split '{name}' here; there are: {', '.join(counts)}")
    count = counts[name]

    def position(bound: str) -> int:
        if not bound.endswith("%"):
            return int(bound)
        if int(bound[:-1]) > 100:
            raise InputError(f"split '{split}' asks for more than 100%")
        return round(int(bound[:-1]) * count / 100)

    start = position(first or "0")
    stop = min(position(last or "100%"), count)
    if start >= stop:
        raise InputError(f"split '{split}' is empty: '{name}' has {count} examples")
    return name, start, stop


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
