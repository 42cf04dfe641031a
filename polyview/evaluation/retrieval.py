"""Retrieval between observed views: does one view of a sample find another of it?

Each image of one view is compared, by the cosine of its features, with the images of
another view of all samples; recall at k is the share of samples whose own image is
among the k nearest. A source gives one image a row, with a target that names its sample
and one that names its view, as `polyview.data.sources.unstacked:Unstacked` does.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.classification import class_labels, class_names, standard_error
from polyview.evaluation.features import Extracted, extracted_splits, raw_features
from polyview.evaluation.knn import neighbours

RECALL = (1, 5)


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Recall of a sample's image in one view by its image in each other view.

    Attributes:
      test: a source of one image a row.
      views: example -> views; features are averaged over them.
      sample: the target that names the sample of a row.
      view: the target of kind "class" that names its view.
      modality: the modality to encode.
      features: "h", the representation, or "z", which objectives compare.
      batch_size: global.
      spec: what a config calls its parts; set by `described`.
    """

    test: Source
    views: Callable
    sample: str = "label"
    view: str = "view"
    modality: str = "image"
    features: str = "h"
    batch_size: int = 500
    spec: Mapping | None = None

    def __post_init__(self) -> None:
        check_range(1, batch_size=self.batch_size)
        if self.features not in ("h", "z"):
            raise InputError(f"evaluation: features is {self.features!r}, not 'h', 'z'")
        if absent := {self.sample, self.view} - set(self.test.targets):
            raise InputError(
                f"evaluation: the test source has no target '{min(absent)}', only "
                f"{', '.join(self.test.targets) or 'none'}; correct its sample or view"
            )

    def described(self, spec: Mapping) -> "Retrieval":
        """Return a copy whose protocol names its parts by their spec."""
        return dataclasses.replace(self, spec=spec)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality: features}`."""
        ((_, result),) = self.several({"": represent}, mesh)
        return result

    def several(
        self, models: Mapping[Any, Callable], mesh: Mesh
    ) -> Iterator[tuple[Any, Result]]:
        """Yield (key, result) of each model in turn; the data are decoded once."""
        for key, read in extracted_splits(
            {"test": self.test},
            self.views,
            models,
            mesh,
            modality=self.modality,
            batch_size=self.batch_size,
        ):
            yield key, self._measured(read["test"])

    def raw(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the views as features of the reference, flattened."""
        return raw_features(batch, self.modality)

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Recall, averaged over the ordered pairs of views."""
        return (
            ", ".join(
                f"{name.removesuffix(' %')} {value:.2f} %"
                for name, value in Retrieval.columns(numbers).items()
            )
            + f" between {len(numbers['protocol']['test']['views'])} views"
        )

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The columns that compare runs."""
        return {f"recall@{k} %": 100 * numbers["mean"][f"recall@{k}"] for k in RECALL}

    def _measured(self, test: Extracted) -> Result:
        features = getattr(test, self.features)
        sample = class_labels(test, self.sample)
        view = class_labels(test, self.view)
        names = class_names(self.test.targets[self.view])
        pairs = recall_of_views(features, sample, view, names)
        if not pairs:
            raise InputError(
                "evaluation: no two views have a sample in common; name two or more "
                "views (fields of its test source)"
            )
        mean = {
            f"recall@{k}": float(np.mean([p[f"recall@{k}"] for p in pairs.values()]))
            for k in RECALL
        }
        # Pairs of views share their samples: the samples alone are independent.
        fewest = min(pair["rows"] for pair in pairs.values())
        errors = {
            f"recall@{k} %": 100 * standard_error(mean[f"recall@{k}"], fewest)
            for k in RECALL
        }
        numbers: dict[str, Any] = {
            "protocol": {
                "test": {
                    "source": in_words(self.spec, "test", self.test),
                    "rows": len(test.index),
                    "views": [names[number] for number in np.unique(view)],
                },
                "seen": in_words(self.spec, "views", self.views),
                "features": {"read": self.features, "dimensions": features.shape[1]},
                "retrieval": "cosine, among the samples that have both views",
                "standard_error": "of the fewest samples of a pair; pairs share them",
                "chosen": "nothing: the model as this step left it",
            },
            "mean": mean,
            "pairs": pairs,
            "machine": hosts.machine(),
        }
        return Result(
            numbers,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
            standard_errors=errors,
        )


def recall_of_views(
    features: np.ndarray,
    sample: np.ndarray,
    view: np.ndarray,
    names: Sequence[str],
    ks: Sequence[int] = RECALL,
) -> dict[str, dict[str, Any]]:
    """Return the recall of each view's images by those of each other view.

    features: float[n, d]; sample, view: int[n], at most one row of a sample and a view
    (the first counts); names of the views, by number; ks: how many nearest count. The
    result has an entry "a -> b" of each ordered pair of views with samples in common:
    queries in view a, candidates in view b, "rows" samples that have both, "recall@k".
    """
    rows = {}
    for number in np.unique(view):
        own = np.flatnonzero(view == number)
        found, first = np.unique(sample[own], return_index=True)
        rows[int(number)] = dict(zip(found.tolist(), own[first], strict=True))
    pairs = {}
    for a, b in itertools.permutations(rows, 2):
        both = sorted(rows[a].keys() & rows[b].keys())
        if not both:
            continue
        queries = features[[rows[a][one] for one in both]]
        candidates = features[[rows[b][one] for one in both]]
        near = neighbours(candidates, queries, k=max(ks)).index
        own = near == np.arange(len(both))[:, None]
        recall = {f"recall@{k}": float(own[:, :k].any(1).mean()) for k in ks}
        pairs[f"{names[a]} -> {names[b]}"] = {"rows": len(both), **recall}
    return pairs
