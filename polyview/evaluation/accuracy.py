"""Accuracy on one split of a trained classifier: a tower whose z are logits."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from polyview.evaluation.base import Result
from polyview.evaluation.features import extract
from polyview.evaluation.frozen import check_target, class_labels, top_accuracy


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 of z against a target; called as `accuracy(represent, mesh)`."""

    test: Any
    views: Callable
    modality: str = "image"
    label: str = "label"
    batch_size: int = 500

    def __post_init__(self):
        check_target(self.test, "test", self.label)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality: features}`; z are logits."""
        found = extract(
            represent,
            self.test,
            self.views,
            batch_size=self.batch_size,
            mesh=mesh,
            modality=self.modality,
            name="test",
        )
        protocol = {
            "test": {"source": repr(self.test), "rows": len(found.index)},
            "views": repr(self.views),
            "chosen": "nothing: the classifier as this step left it",
        }
        labels = class_labels(found, self.label)
        numbers = {"protocol": protocol, "classifier": top_accuracy(found.z, labels)}
        return Result(
            numbers, summary=self.summary(numbers), columns=self.columns(numbers)
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Top-1."""
        return f"top-1 {100 * numbers['classifier']['top1']:.2f} %"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """What compares runs."""
        return {"classifier %": 100 * numbers["classifier"]["top1"]}
