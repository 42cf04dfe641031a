"""Views of one image in several sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyview.data.decode import Range, decode, to_bytes
from polyview.data.views import Augment, Example, take
from polyview.errors import InputError, check_range


@dataclass(frozen=True)
class MultiCrop:
    """Augmentations of one image in several sizes (Caron et al. 2020).

    Call it as `views(example, rng)`. The image is decoded once, in full. Each size is a
    modality, as in m={"image": 2, "local": 6}; one without a tower of its own uses
    another's (`shares` of `polyview.nn.towers:Towers`).

    Attributes:
      m: modality -> views per example.
      augments: modality -> its augmentation; see `polyview.data.augment`.
      field: the name of the image, encoded or an array.
      targets: the fields passed on for evaluation.
      range: the values that become 0 and 255, of images of more than 8 bits; here, not
        in the augmentations, which get bytes.
    """

    m: Mapping[str, int]
    augments: Mapping[str, Augment]
    field: str = "image"
    targets: Sequence[str] = ("label",)
    range: Range | None = None

    def __post_init__(self) -> None:
        if not self.m or set(self.m) != set(self.augments):
            raise InputError(
                f"views.m has the modalities {sorted(self.m)} and views.augments "
                f"{sorted(self.augments)}; give each in both"
            )
        if any(getattr(augment, "range", None) for augment in self.augments.values()):
            raise InputError("views.augments: give `range` to the views instead")
        check_range(1, **self.m)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        image = take(example, self.field)
        if isinstance(image, bytes):
            pixels = decode(image, range=self.range)
        else:
            pixels = to_bytes(np.asarray(image), self.range)
        # Sorted: a config may be read back in another order.
        return {
            "views": {
                name: self.augments[name](pixels, rng, self.m[name])
                for name in sorted(self.m)
            },
            "present": {name: np.ones(m, bool) for name, m in self.m.items()},
            "targets": {name: np.asarray(take(example, name)) for name in self.targets},
        }
