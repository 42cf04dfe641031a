"""Accuracy of a trained classifier on one split; the z of its tower are logits."""

import dataclasses
from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from polyview.data.sources.protocol import Source
from polyview.evaluation.base import Result
from polyview.evaluation.features import extract
from polyview.evaluation.frozen import check_target, class_labels, top_accuracy


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy of the logits z on a target."""

    test: Source
    views: Callable
    modality: str = "image"
    label: str = "label"
    batch_size: int = 500

    def __post_init__(self) -> None:
        check_target(self.test, "test", self.label)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality: features}`, whose z are logits."""
        extracted = extract(
            represent,
            self.test,
            self.views,
            batch_size=self.batch_size,
            mesh=mesh,
            modality=self.modality,
            name="test",
        )
        protocol = {
            "test": {"source": repr(self.test), "rows": len(extracted.index)},
            "views": repr(self.views),
            "chosen": "nothing: the classifier as this step left it",
        }
        labels = class_labels(extracted, self.label)
        accuracy = top_accuracy(extracted.z, labels)
        numbers = {"protocol": protocol, "classifier": accuracy}
        return Result(
            numbers, summary=self.summary(numbers), columns=self.columns(numbers)
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Top-1 accuracy in %."""
        return f"top-1 {100 * numbers['classifier']['top1']:.2f} %"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The columns that compare runs."""
        return {"classifier %": 100 * numbers["classifier"]["top1"]}
