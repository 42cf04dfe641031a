"""Turn an example into its views and a mask of those present.

A view is generated (an augmentation of an image) or observed (a field of the example).
Both are returned as `{"views": {name: [m, ...]}, "present": {name: bool[m]}, "targets":
{name: [...]}}`, so that later code need not know where a view came from. A missing view
is zeros with False in `present`, never a magic value.
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

    Call it as `views(example, rng)`. The result has one modality, named `field`.

    Attributes:
      m: views per example.
      augment: see `polyview.data.augment`.
      field: the name of the image, encoded or uint8[h, w, c].
      targets: the fields passed on for evaluation.
    """

    m: int
    augment: Augment
    field: str = "image"
    targets: Sequence[str] = ("label",)

    def __post_init__(self) -> None:
        check_range(1, m=self.m)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        image = take(example, self.field)
        return {
            "views": {self.field: self.augment(image, rng, self.m)},
            "present": {self.field: np.ones(self.m, bool)},
            "targets": {name: np.asarray(take(example, name)) for name in self.targets},
        }


def take(example: Example, name: str) -> Any:
    """Return a field. Raises InputError if the example lacks it."""
    if name not in example:
        raise InputError(
            f"an example has no field '{name}', only {', '.join(example)}; "
            "correct `field`, `fields` or `targets` of the views"
        )
    return example[name]
