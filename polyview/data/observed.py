"""Views that were recorded: modalities of one thing, some of which may be missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyview.data.augment import decode
from polyview.data.sources.protocol import CorruptRecord
from polyview.data.views import Augment, Example, take
from polyview.errors import InputError


@dataclass(frozen=True)
class Observed:
    """Views that were recorded: each modality gathers fields of the example.

    A field that is absent or None is a missing view. Raises InputError for an example
    without any view, or with `empty="skip"` what makes the pipeline pass on to the next
    one (`CorruptRecord`).

    Attributes:
      fields: modality -> the fields that are its views, in order.
      shapes: modality -> the shape of one view.
      dtypes: modality -> its type where that is not uint8.
      augments: modality -> an augmentation drawn anew for each view. Without one, an
        encoded image is decoded and anything else taken as it is.
      targets: the fields handed on for evaluation.
      empty: "stop" or "skip", at an example without any view.
    """

    fields: Mapping[str, Sequence[str]]
    shapes: Mapping[str, Sequence[int]]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    augments: Mapping[str, Augment] = field(default_factory=dict)
    targets: Sequence[str] = ()
    empty: str = "stop"

    def __post_init__(self):
        for modality, names in self.fields.items():
            if isinstance(names, str):
                raise InputError(f"views.fields: {modality} is a word; write a list")
        if self.empty not in ("stop", "skip"):
            raise InputError(f"views.empty is {self.empty!r}, not 'stop' or 'skip'")

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        views, present = {}, {}
        for modality, names in self.fields.items():
            shape = tuple(self.shapes[modality])
            dtype = self.dtypes.get(modality, "uint8")
            looks = np.zeros((len(names), *shape), dtype)
            present[modality] = np.zeros(len(names), bool)
            for position, name in enumerate(names):
                value = example.get(name)
                if value is None:
                    continue
                look = self._look(modality, value, rng)
                if look.shape != shape:
                    raise InputError(
                        f"field '{name}' has shape {look.shape}, but views of "
                        f"'{modality}' are said to be {shape}; give it an augmentation "
                        "that resizes, or correct `shapes`"
                    )
                if not np.can_cast(look.dtype, dtype, "same_kind"):
                    raise InputError(
                        f"field '{name}' is of type {look.dtype}, but views of "
                        f"'{modality}' are {dtype}; correct `dtypes`"
                    )
                with np.errstate(over="ignore"):  # said below
                    looks[position] = look
                floats = looks.dtype.kind == "f"
                if floats and not np.isfinite(looks[position]).all():
                    raise InputError(
                        f"field '{name}' is not finite as {dtype}; correct the data"
                    )
                present[modality][position] = True
            views[modality] = looks
        if not any(there.any() for there in present.values()):
            names = [n for of in self.fields.values() for n in of]
            raise (CorruptRecord if self.empty == "skip" else InputError)(
                f"an example has none of the views {', '.join(names)}; leave it out of "
                "the data, or set views.empty to 'skip'"
            )
        targets = {name: np.asarray(take(example, name)) for name in self.targets}
        return {"views": views, "present": present, "targets": targets}

    def _look(self, modality: str, value: Any, rng: np.random.Generator) -> np.ndarray:
        if modality in self.augments:
            return self.augments[modality](value, rng, 1)[0]
        return decode(value) if isinstance(value, bytes) else np.asarray(value)
