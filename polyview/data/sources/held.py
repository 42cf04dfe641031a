"""The rows of a small data set, read once and held in memory."""

from typing import Any

from polyview.data.sources.protocol import CorruptRecord, Source


class Held:
    """Another source, whose rows are read when this one is made.

    For small rows, of which reading one takes longer than making its views: episodes of
    a few numbers a state. A row that cannot be read raises CorruptRecord each time it
    is asked for, as in the source itself.
    """

    def __init__(self, source: Source):
        self._source = source
        self.targets: dict[str, dict[str, Any]] = dict(source.targets)
        self.digest = getattr(source, "digest", "")
        self._rows = [_read(source, index) for index in range(len(source))]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        if isinstance(row, CorruptRecord):
            raise row
        return dict(row)

    def __repr__(self) -> str:
        return f"Held({self._source!r})"


def _read(source: Source, index: int) -> dict[str, Any] | CorruptRecord:
    try:
        return source[index]
    except CorruptRecord as error:
        return error
