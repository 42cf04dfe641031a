"""From an example to its views: several looks at the same thing, and which are there.

A view is generated (an augmentation of an image) or observed (a modality of its own).
Both come out as `{"views": {name: [m, ...]}, "present": {name: bool[m]}, "targets":
{name: [...]}}`, so that nothing downstream asks where a view came from. A view that is
missing is zeros with a False beside it, never a magic value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyview.data.augment import decode
from polyview.errors import InputError

Example = Mapping[str, Any]
Augment = Callable[[np.ndarray | bytes, np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Generated:
    """m augmentations of one image.

    Called as `views(example, rng)`; the result's only modality has the name `field`.

    Attributes:
      m: views per example.
      augment: see `polyview.data.augment`.
      field: the example's image, encoded or uint8[h, w, c].
      targets: the fields handed on for evaluation.
    """

    m: int
    augment: Augment
    field: str = "image"
    targets: Sequence[str] = ("label",)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        image = _take(example, self.field)
        return {
            "views": {self.field: self.augment(image, rng, self.m)},
            "present": {self.field: np.ones(self.m, bool)},
            "targets": {
                name: np.asarray(_take(example, name)) for name in self.targets
            },
        }


@dataclass(frozen=True)
class Observed:
    """Views that were recorded: each modality gathers fields of the example.

    A field that is absent or None is a missing view.

    Attributes:
      fields: modality -> the fields that are its views, in order.
      shapes: modality -> the shape of one view.
      dtypes: modality -> its type where that is not uint8.
      augments: modality -> an augmentation drawn anew for each view. Without one, an
        encoded image is decoded and anything else taken as it is.
      targets: the fields handed on for evaluation.
    """

    fields: Mapping[str, Sequence[str]]
    shapes: Mapping[str, Sequence[int]]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    augments: Mapping[str, Augment] = field(default_factory=dict)
    targets: Sequence[str] = ()

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
                looks[position] = look
                present[modality][position] = True
            views[modality] = looks
        targets = {name: np.asarray(_take(example, name)) for name in self.targets}
        return {"views": views, "present": present, "targets": targets}

    def _look(self, modality: str, value: Any, rng: np.random.Generator) -> np.ndarray:
        if modality in self.augments:
            return self.augments[modality](value, rng, 1)[0]
        return decode(value) if isinstance(value, bytes) else np.asarray(value)


def _take(example: Example, name: str) -> Any:
    if name not in example:
        raise InputError(
            f"an example has no field '{name}', only {', '.join(example)}; "
            "correct `field`, `fields` or `targets` of the views"
        )
    return example[name]
