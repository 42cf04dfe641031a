"""Views drawn from many images of one thing, such as the fonts of a character."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyview.data.views import Augment, Example, take
from polyview.errors import InputError, check_range


@dataclass(frozen=True)
class Drawn:
    """m images of an example, drawn without replacement, each augmented anew.

    Call it as `views(example, rng)`. The result has one modality, named `name`. If
    there are fewer than m images, each is drawn again only after all have been.

    Attributes:
      m: views per example.
      augment: see `polyview.data.augment`.
      fields: the images, each a field; one that is absent or None is never drawn.
      field: used without `fields`: a field that is a sequence of images, of which the
        first is always drawn and the others are read only if drawn, as of
        `polyview.data.sources.by_class:ByClass`.
      targets: the fields passed on for evaluation.
      name: of the modality.
    """

    m: int
    augment: Augment
    fields: Sequence[str] = ()
    field: str = "images"
    targets: Sequence[str] = ("label",)
    name: str = "image"

    def __post_init__(self) -> None:
        check_range(1, m=self.m)
        if isinstance(self.fields, str):
            raise InputError("views.fields is a string; write a list")

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        images: list[Any]  # where each image is in `source`
        if self.fields:
            source: Any = example
            images = [name for name in self.fields if example.get(name) is not None]
        else:
            source = take(example, self.field)
            images = list(range(len(source)))
        if not images:
            raise InputError(
                "an example has none of the views "
                f"{', '.join(self.fields) or self.field}; remove it from the data"
            )
        always = 0 if self.fields else 1
        others = always + np.argsort(rng.random(len(images) - always))
        order = [*range(always), *others.tolist()]
        drawn = [images[order[view % len(order)]] for view in range(self.m)]
        views = [self.augment(source[image], rng, 1) for image in drawn]
        return {
            "views": {self.name: np.concatenate(views)},
            "present": {self.name: np.ones(self.m, bool)},
            "targets": {name: np.asarray(take(example, name)) for name in self.targets},
        }
