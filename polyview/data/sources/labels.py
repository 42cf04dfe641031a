"""The label of every row of a source, read in blocks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyview.data.sources.manifest import PARTLY
from polyview.data.sources.protocol import CorruptRecord, Source
from polyview.errors import InputError, nearest

_BLOCK = 1024  # rows read at a time


def check_label(source: Source, label: str, use: str) -> None:
    """Raise InputError unless `label` is a target of kind "class", also a partial one.

    use: what needs it, such as "rows are grouped by".
    """
    if label not in source.targets:
        near = nearest(label, source.targets) or "; it has no targets"
        raise InputError(f"{source!r} has no target {label!r}{near}")
    kind = source.targets[label]["kind"]
    if kind not in ("class", PARTLY):
        raise InputError(
            f"{source!r}: target {label!r} is of kind {kind!r}; {use} a target of kind "
            "'class'"
        )


def labels_of(source: Source, label: str) -> np.ndarray:
    """Return the label of each row, int64[n]; -1 for one that cannot be read.

    It takes as long as reading the data once.
    """
    return np.concatenate(
        [
            np.asarray(_labels(source, label, range(start, stop)), np.int64)
            for start in range(0, len(source), _BLOCK)
            if (stop := min(start + _BLOCK, len(source)))
        ]
        or [np.empty(0, np.int64)]
    )


def read_rows(source: Source, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return some examples, by the source's `__getitems__` if it has one."""
    read_many = getattr(source, "__getitems__", None)
    if read_many is not None:
        return read_many(rows)
    return [source[row] for row in rows]


def _labels(source: Source, label: str, rows: Sequence[int]) -> list[int]:
    try:
        return [int(example[label]) for example in read_rows(source, rows)]
    except CorruptRecord:
        if len(rows) == 1:
            return [-1]
        return [one for row in rows for one in _labels(source, label, [row])]
