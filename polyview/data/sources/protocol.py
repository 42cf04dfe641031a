"""The protocol of sources, and checks of their examples.

A source maps an index to one example, a dict of fields: an image is encoded `bytes`
(decoded in `augment`, which knows the size of the crops) or `uint8[h, w, c]`, a label
an int, a text a str. A source reads lazily, is thread-safe and can be pickled.
"""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polyview.errors import InputError


class CorruptRecord(ValueError):
    """A record that cannot be decoded; the pipeline replaces it by another."""


class Source(Protocol):
    """A sequence of examples.

    `targets` maps a field to its task, such as `{"kind": "class", "classes": 10,
    "names": [...]}` where names are optional. It is empty for unlabelled data. A source
    may also have a faster `__getitems__(indices) -> list`, as in PyTorch and
    array_record, which raises `CorruptRecord` if any of the examples is corrupt; and
    a `digest`, a text that changes when the examples do, as far as is cheap to see.
    """

    targets: dict[str, dict[str, Any]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def identity(source: Source) -> dict[str, Any]:
    """Return the length and the digest of a source; "" for one without a digest."""
    return {"rows": len(source), "digest": getattr(source, "digest", "")}


def class_task(names: Sequence[str]) -> dict[str, Any]:
    """Return the task of a target with these class names; see `Source`."""
    return {"kind": "class", "classes": len(names), "names": list(names)}


def check_targets(source: Source, batch: Mapping[str, Any]) -> None:
    """Raise InputError if a target of the batch is not a class of the source.

    A loss would read -1 as the last class, and give NaN for a class too large.
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
    """Raise CorruptRecord if a target is not numeric."""
    for name, value in targets.items():
        if value.dtype.kind not in "biuf":
            raise CorruptRecord(f"target '{name}' is not numeric: {value!r:.40}")


def default_data_dir() -> Path:
    """Return `$POLYVIEW_DATA`, or `data` in the current directory."""
    return Path(os.environ.get("POLYVIEW_DATA") or "data")


def parse_split(split: str, counts: Mapping[str, int]) -> tuple[str, int, int]:
    """Parse a split such as `train[:90%]` into its name, first and end index.

    Args:
      split: `name` or `name[start:stop]`. Each bound is an index, a percentage (rounded
        to the nearest example) or absent.
      counts: the number of examples of each split.

    Raises:
      InputError: the split is unknown, malformed or empty.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if not match:
        raise InputError(
            f"split '{split}' must look like train, train[:90%] or train[100:5000]"
        )
    name, first, last = match.groups()
    if name not in counts:
        raise InputError(f"no split '{name}'; the data set has: {', '.join(counts)}")
    count = counts[name]

    def position(bound: str) -> int:
        if not bound.endswith("%"):
            return int(bound)
        if int(bound[:-1]) > 100:
            raise InputError(f"split '{split}' has a bound above 100%")
        return round(int(bound[:-1]) * count / 100)

    start = position(first or "0")
    stop = min(position(last or "100%"), count)
    if start >= stop:
        raise InputError(f"split '{split}' is empty: '{name}' has {count} examples")
    return name, start, stop


def check_resources(error: Exception, what: str) -> None:
    """Raise InputError if an error says that memory, threads or open files are short.

    That tells nothing about the data: they are not damaged.
    """
    number = getattr(error, "errno", None)
    if (
        isinstance(error, MemoryError)
        or number in _SHORT
        or _SHORTAGE.search(str(error))
    ):
        raise InputError(
            f"{what} cannot be read now ({first_line(error)}); free memory, or raise "
            "the limits of this process (ulimit -a), and run the same command again"
        ) from None


_SHORT = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
_SHORTAGE = re.compile(
    "|".join(["can't start new thread", *map(os.strerror, _SHORT), "bad_alloc"])
)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error) or type(error).__name__).splitlines()[0]
