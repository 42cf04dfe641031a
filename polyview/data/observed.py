"""Observed views: modalities of an example, some of which may be missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyview.data.decode import decode
from polyview.data.sources.protocol import CorruptRecord
from polyview.data.views import Augment, Example, take
from polyview.errors import InputError


@dataclass(frozen=True)
class Observed:
    """Gather observed views: each modality stacks fields of the example.

    A field that is absent or None is a missing view. An example without any view raises
    InputError, or with `empty="skip"` CorruptRecord, so that the pipeline skips it.

    Attributes:
      fields: modality -> the fields that are its views, in order.
      shapes: modality -> the shape of one view.
      dtypes: modality -> the type of its views; uint8 by default.
      augments: modality -> an augmentation drawn anew for each view. Without one, an
        encoded image is decoded and any other value is used unchanged.
      targets: the fields passed on for evaluation.
      empty: "stop" or "skip": what to do with an example without any view.
    """

    fields: Mapping[str, Sequence[str]]
    shapes: Mapping[str, Sequence[int]]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    augments: Mapping[str, Augment] = field(default_factory=dict)
    targets: Sequence[str] = ()
    empty: str = "stop"

    def __post_init__(self) -> None:
        for modality, names in self.fields.items():
            if isinstance(names, str):
                raise InputError(f"views.fields: {modality} is a string; write a list")
        if self.empty not in ("stop", "skip"):
            raise InputError(f"views.empty is {self.empty!r}, not 'stop' or 'skip'")

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        views, present = {}, {}
        for modality, names in self.fields.items():
            shape = tuple(self.shapes[modality])
            dtype = self.dtypes.get(modality, "uint8")
            stacked = np.zeros((len(names), *shape), dtype)
            present[modality] = np.zeros(len(names), bool)
            for position, name in enumerate(names):
                value = example.get(name)
                if value is None:
                    continue
                view = self._view(modality, value, rng)
                if view.shape != shape:
                    raise InputError(
                        f"field '{name}' has shape {view.shape}, but views.shapes "
                        f"gives {shape} for '{modality}'; correct it, or add an "
                        "augmentation that resizes"
                    )
                if not np.can_cast(view.dtype, dtype, "same_kind"):
                    raise InputError(
                        f"field '{name}' has type {view.dtype}, but views of "
                        f"'{modality}' are {dtype}; correct views.dtypes"
                    )
                with np.errstate(over="ignore"):  # an overflow is an error below
                    stacked[position] = view
                floats = stacked.dtype.kind == "f"
                if floats and not np.isfinite(stacked[position]).all():
                    raise InputError(
                        f"field '{name}' is not finite as {dtype}; correct the data"
                    )
                present[modality][position] = True
            views[modality] = stacked
        if not any(mask.any() for mask in present.values()):
            names = [n for fields in self.fields.values() for n in fields]
            raise (CorruptRecord if self.empty == "skip" else InputError)(
                f"an example has none of the views {', '.join(names)}; remove it from "
                "the data, or set views.empty to 'skip'"
            )
        targets = {name: np.asarray(take(example, name)) for name in self.targets}
        return {"views": views, "present": present, "targets": targets}

    def _view(self, modality: str, value: Any, rng: np.random.Generator) -> np.ndarray:
        if modality in self.augments:
            return self.augments[modality](value, rng, 1)[0]
        return decode(value) if isinstance(value, bytes) else np.asarray(value)
