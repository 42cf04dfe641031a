"""Rows that bring the other images of their class, as objectives on classes need."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from polyview.data.sources.digest import derived
from polyview.data.sources.labels import check_label, labels_of, read_rows
from polyview.data.sources.protocol import Source
from polyview.errors import InputError

_log = logging.getLogger(__name__)


class ByClass:
    """A source whose row i also has `images`: that of row i, then others of its class.

    Other fields and targets are those of row i, so that a batch of b rows with m views
    drawn by `polyview.data.drawn:Drawn` is b classes (not always different ones) with m
    images each. The images are read when they are asked for.

    The label of every row is read at the first access to one, which takes as long as
    reading the data once. A row that cannot be read, or whose label is negative (no
    class), is not among the images of others; the latter brings its own image alone.
    A warning then counts the classes with one image, all of whose views show it.

    Args:
      source: has one image a row.
      label: a target of kind "class", by which rows go together.
      field: the image of a row.

    Raises InputError if the source has no such target or field.
    """

    def __init__(self, source: Source, label: str = "label", field: str = "image"):
        check_label(source, label, "rows are grouped by")
        self._source, self._label, self._field = source, label, field
        self.targets: dict[str, dict[str, Any]] = dict(source.targets)

    @property
    def digest(self) -> str:
        """The digest of the rows, made of the source's."""
        return derived(self._source, ["by class", self._label, self._field])

    @cached_property
    def _rows(self) -> dict[int, np.ndarray]:
        """The rows of each class, ascending."""
        labels = labels_of(self._source, self._label)
        order = np.argsort(labels, kind="stable")
        classes, first = np.unique(labels[order], return_index=True)
        groups = np.split(order, first[1:])
        rows = dict(zip(classes.tolist(), groups, strict=True))
        rows = {number: own for number, own in rows.items() if number >= 0}
        if single := [number for number, own in rows.items() if len(own) == 1]:
            _log.warning(
                "%r: %d of %d classes have one image (the first: %s %d), so all "
                "their views show it",
                self._source,
                len(single),
                len(rows),
                self._label,
                single[0],
            )
        return rows

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._with_images(int(index), self._source[int(index)])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        examples = zip(indices, read_rows(self._source, indices), strict=True)
        return [self._with_images(int(index), example) for index, example in examples]

    def _with_images(self, index: int, example: dict[str, Any]) -> dict[str, Any]:
        if self._field not in example:
            raise InputError(
                f"{self._source!r}: an example has no field {self._field!r}, only "
                f"{', '.join(example)}; correct `field`"
            )
        rows = self._rows.get(int(example[self._label]), np.array([], np.int64))
        others = rows[rows != index]
        images = Images(example[self._field], self._source, self._field, others)
        return example | {"images": images}

    def __repr__(self) -> str:
        return f"ByClass({self._source!r}, '{self._label}')"


class Images:
    """A sequence of an image and those of other rows, read when they are asked for."""

    def __init__(self, first: Any, source: Source, field: str, others: np.ndarray):
        self._first, self._source, self._field = first, source, field
        self._others = others

    def __len__(self) -> int:
        return 1 + len(self._others)

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number == 0:
            return self._first
        return self._source[int(self._others[number - 1])][self._field]
