"""Some classes of a source, and labels of which a share is wrong."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from polyview.data.sources.digest import derived
from polyview.data.sources.labels import check_label, labels_of, read_rows
from polyview.data.sources.protocol import Source, class_task
from polyview.errors import InputError, check_range


class SomeClasses:
    """The rows of some classes, numbered anew from 0 in the order given.

    The label of every row is read at the first access to one, which takes as long as
    reading the data once; rows that cannot be read are left out.

    Args:
      source: has the target `label`.
      keep: numbers of classes.
      label: a target of kind "class".

    Raises InputError if the source has no such target or class, or `keep` is empty or
    names a class twice.
    """

    def __init__(self, source: Source, keep: Sequence[int], label: str = "label"):
        check_label(source, label, "classes are kept by")
        task = source.targets[label]
        self._source, self._label, self._keep = source, label, [int(c) for c in keep]
        if not self._keep or len(set(self._keep)) < len(self._keep):
            raise InputError(f"keep={list(keep)}: name different classes, at least one")
        absent = [c for c in self._keep if not 0 <= c < task["classes"]]
        if absent:
            raise InputError(
                f"keep={list(keep)}: {source!r} has the classes 0 .. "
                f"{task['classes'] - 1} of {label!r}, not {absent[0]}"
            )
        names = list(task.get("names") or map(str, range(task["classes"])))
        own = class_task([names[number] for number in self._keep])
        self.targets: dict[str, dict[str, Any]] = {**source.targets, label: own}

    @property
    def digest(self) -> str:
        """The digest of the rows, made of the source's."""
        return derived(self._source, ["classes", self._label, self._keep])

    @cached_property
    def _rows(self) -> np.ndarray:
        labels = labels_of(self._source, self._label)
        return np.flatnonzero(np.isin(labels, self._keep))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._renumbered(self._source[int(self._rows[index])])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        rows = [int(row) for row in self._rows[np.asarray(indices, int)]]
        return [self._renumbered(one) for one in read_rows(self._source, rows)]

    def _renumbered(self, example: dict[str, Any]) -> dict[str, Any]:
        return example | {self._label: self._keep.index(int(example[self._label]))}

    def __repr__(self) -> str:
        return f"SomeClasses({self._source!r}, {self._keep})"


class NoisyLabels:
    """A source whose labels are replaced, each with some probability, by a wrong one.

    The wrong label is uniform over the other classes; it depends on the seed and the
    number of the row alone. A label that is unknown, below 0, stays.

    Args:
      source: has the target `label`.
      share: the probability, from 0 to 1.
      seed: of the draws.
      label: a target of kind "class".

    Raises InputError if the source has no such target or one class only, and OutOfRange
    for a share or seed out of range.
    """

    def __init__(
        self, source: Source, share: float, seed: int = 0, label: str = "label"
    ):
        check_label(source, label, "noise replaces")
        check_range(0.0, 1.0, share=share)
        check_range(0, 2**63, seed=seed)
        self._classes = source.targets[label]["classes"]
        if self._classes < 2:
            raise InputError(f"{source!r} has one class: no label can be wrong")
        self._source, self._label = source, label
        self._share, self._seed = share, seed
        self.targets: dict[str, dict[str, Any]] = dict(source.targets)

    @property
    def digest(self) -> str:
        """The digest of the rows, made of the source's."""
        return derived(self._source, ["noise", self._label, self._share, self._seed])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._replaced(int(index), self._source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        examples = read_rows(self._source, indices)
        pairs = zip(indices, examples, strict=True)
        return [self._replaced(int(index), example) for index, example in pairs]

    def _replaced(self, index: int, example: dict[str, Any]) -> dict[str, Any]:
        label = int(example[self._label])
        rng = np.random.default_rng((self._seed, index))
        wrong, further = rng.random() < self._share, rng.integers(1, self._classes)
        if not wrong or label < 0:
            return example
        return example | {self._label: int((label + further) % self._classes)}

    def __repr__(self) -> str:
        return f"NoisyLabels({self._source!r}, {self._share})"
