"""Examples held in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyview.errors import InputError


class InMemory:
    """Examples held as columns: `{"image": uint8[n, h, w, c], "label": int[n]}`."""

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any] | np.ndarray],
        targets: Mapping[str, dict[str, Any]] | None = None,
    ):
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"columns must have one length, not {lengths}")
        self._columns = dict(columns)
        self._length = next(iter(lengths.values()))
        self.targets: dict[str, dict[str, Any]] = dict(targets or {})

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self._columns.items()}

    def __repr__(self) -> str:
        return f"InMemory({', '.join(self._columns)}: {self._length})"
