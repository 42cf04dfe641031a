"""Accuracy of a trained classifier on one split; the z of its tower are logits."""

import dataclasses
from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from polyview.data.sources.protocol import Source
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.classification import (
    accuracy_table,
    check_target,
    class_labels,
    errors_of,
    top_accuracy,
)
from polyview.evaluation.features import extract


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1, top-5 and balanced accuracy of the logits z on a target."""

    test: Source
    views: Callable
    modality: str = "image"
    label: str = "label"
    batch_size: int = 500
    spec: Mapping | None = None  # what a config calls its parts; set by `described`

    def __post_init__(self) -> None:
        check_target(self.test, "test", self.label)

    def described(self, spec: Mapping) -> "Accuracy":
        """Return a copy whose protocol names its sources by their spec."""
        return dataclasses.replace(self, spec=spec)

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
            "test": {
                "source": in_words(self.spec, "test", self.test),
                "rows": len(extracted.index),
            },
            "views": in_words(self.spec, "views", self.views),
            "chosen": "nothing: the classifier as this step left it",
        }
        labels = class_labels(extracted, self.label)
        accuracy = top_accuracy(extracted.z, labels)
        numbers = {"protocol": protocol, "classifier": accuracy}
        return Result(
            numbers,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
            standard_errors=self.standard_errors(numbers),
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Top-1 accuracy in %."""
        return f"top-1 {100 * numbers['classifier']['top1']:.2f} %"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The columns that compare runs."""
        return {"classifier %": 100 * numbers["classifier"]["top1"]}

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard errors of the columns, in %."""
        return errors_of(
            {"classifier %": numbers["classifier"]}, numbers.get("protocol", {})
        )

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Top-1 with its standard error, beside balanced accuracy and the majority."""
        return accuracy_table(
            {name: {"classifier %": one["classifier"]} for name, one in results.items()}
        )
