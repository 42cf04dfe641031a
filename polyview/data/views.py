"""From an example to its views: several looks at the same thing, and which are there.

A view is generated (an augmentation of an image) or observed (a modality of its own).
Both come out as `{"views": {name: [m, ...]}, "present": {name: bool[m]}, "targets":
{name: [...]}}`, so that nothing downstream asks where a view came from. A view that is
missing is zeros with a False beside it, never a magic value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyview.errors import InputError, check_range

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

    def __post_init__(self):
        check_range(1, m=self.m)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        image = take(example, self.field)
        return {
            "views": {self.field: self.augment(image, rng, self.m)},
            "present": {self.field: np.ones(self.m, bool)},
            "targets": {name: np.asarray(take(example, name)) for name in self.targets},
        }


def take(example: Example, name: str) -> Any:
    """Return a field. Raises InputError that names those there are."""
    if name not in example:
        raise InputError(
            f"an example has no field '{name}', only {', '.join(example)}; "
            "correct `field`, `fields` or `targets` of the views"
        )
    return example[name]
