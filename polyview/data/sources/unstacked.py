"""One row for each observed view of an example."""

from collections.abc import Sequence
from typing import Any

from polyview.data.sources.digest import derived
from polyview.data.sources.labels import read_rows
from polyview.data.sources.protocol import CorruptRecord, Source, class_task
from polyview.errors import InputError


class Unstacked:
    """The views of a source as rows: row i is view i % k of example i // k, of k views.

    The view is the field `name`; the example's other views are left out, and other
    fields are as in the example. The target `view` is the number of the view. A row
    whose view is None counts as corrupt.

    Args:
      source: its examples have the views as fields.
      fields: the views.
      name: of the view in a row.

    Raises InputError if there are no fields, or an example lacks one.

    Attributes:
      digest: of the rows, made of the source's.
    """

    def __init__(self, source: Source, fields: Sequence[str], name: str = "image"):
        if isinstance(fields, str) or not fields or len(set(fields)) != len(fields):
            raise InputError(f"fields={fields!r} must be a list of different fields")
        self._source, self._fields, self._name = source, tuple(fields), name
        self.targets: dict[str, dict[str, Any]] = {
            **source.targets,
            "view": class_task(self._fields),
        }
        self.digest = derived(source, ["unstacked", self._fields, name])

    def __len__(self) -> int:
        return len(self._source) * len(self._fields)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        example, view = divmod(int(index), len(self._fields))
        return self._row(self._source[example], view)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        # Rows of one example are often read together: it is read once.
        places = [divmod(int(index), len(self._fields)) for index in indices]
        needed = list(dict.fromkeys(example for example, _ in places))
        examples = dict(zip(needed, read_rows(self._source, needed), strict=True))
        return [self._row(examples[example], view) for example, view in places]

    def _row(self, example: dict[str, Any], view: int) -> dict[str, Any]:
        field = self._fields[view]
        if field not in example:
            raise InputError(
                f"{self._source!r}: an example has no field '{field}', only "
                f"{', '.join(example)}; correct `fields`"
            )
        if example[field] is None:
            raise CorruptRecord(f"an example has no view '{field}'")
        kept = {key: value for key, value in example.items() if key not in self._fields}
        return kept | {self._name: example[field], "view": view}

    def __repr__(self) -> str:
        return f"Unstacked({self._source!r}, {', '.join(self._fields)})"
