"""Evaluation of frozen features; checkpoints and references share one protocol.

Extracts the frozen features h of a train and a test split, one view a sample; then
runs weighted kNN, a linear probe and health measures that need no labels. The probe's
hyper-parameters are chosen on rows held out from the train split; nothing is chosen on
the test split. The result includes the whole protocol, since a number without its
protocol cannot be compared. What cannot be computed, such as a probe of one image a
class, is left out of the result with its reason; the rest is measured.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import InputError
from polyview.evaluation import health
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.classification import (
    accuracy_table,
    check_same_classes,
    check_target,
    class_labels,
    class_names,
    errors_of,
    few_rows,
    over_draws,
    top_accuracy,
)
from polyview.evaluation.features import (
    Decoded,
    Extracted,
    extract,
    one_device,
    raw_features,
    small_image,
    with_modality,
)
from polyview.evaluation.knn import WeightedKnn, neighbours
from polyview.evaluation.probe import LinearProbe, logits

_HEALTH_ROWS = 10_000  # uniformity compares all pairs
_SAMPLE_ROWS = 1_000  # test rows in the map of the features
_QUERIES, _NEAREST = 6, 8  # rows and columns of the grid of nearest neighbours


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """Weighted kNN, linear probe and health of frozen features.

    Attributes:
      train, test: sources (see `polyview.data.sources`).
      views: example -> views; features are averaged over the views of a sample.
      modality: the modality to encode.
      label: the target to predict; without targets only the health is measured.
      batch_size: global.
      validation: the fraction of train held out to choose the probe's hyper-parameters.
      knn, probe: settings of the two classifiers.
      seed: for the held-out rows, the probe's mini-batches and few-shot draws.
      spec: what a config calls its parts; set by `described`.
    """

    train: Source
    test: Source
    views: Callable
    modality: str = "image"
    label: str | None = "label"
    batch_size: int = 500
    validation: float = 0.1
    knn: WeightedKnn = WeightedKnn()
    probe: LinearProbe = LinearProbe()
    seed: int = 0
    spec: Mapping | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(
                f"evaluation: batch_size is {self.batch_size}; set it to 1 or more"
            )
        if not 0 < self.validation < 1:
            raise InputError(
                f"evaluation: validation is {self.validation}; choose a fraction "
                "between 0 and 1"
            )
        for split, source in (("train", self.train), ("test", self.test)):
            if source.targets and self.label is not None:
                check_target(source, split, self.label)
        if self.label is not None and self.train.targets and self.test.targets:
            check_same_classes(self.train, self.test, self.label)

    def described(self, spec: Mapping) -> "FrozenFeatures":
        """Return a copy whose protocol names its sources by their spec."""
        return dataclasses.replace(self, spec=spec)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality: features}` (see `features.extract`).

        Raises InputError for features that are not finite and labels out of range.
        """
        ((_, result),) = self.several({"": represent}, mesh)
        return result

    def several(
        self, models: Mapping[Any, Callable], mesh: Mesh
    ) -> Iterator[tuple[Any, Result]]:
        """Yield (key, result) of each model in turn, as if called with it.

        The data are decoded once, unless they are larger than `Decoded` keeps.
        """
        most = 0 if len(models) == 1 else None
        batches = {
            split: Decoded(
                source,
                self.views,
                batch_size=self.batch_size,
                mesh=mesh,
                seed=self.seed,
                most=most,
            )
            for split, source in (("train", self.train), ("test", self.test))
        }
        for key, represent in models.items():
            yield key, self._measured(represent, batches, mesh)

    def _measured(
        self, represent: Callable, batches: Mapping[str, Decoded], mesh: Mesh
    ) -> Result:
        seconds: dict[str, float] = {}
        with _timed(seconds, "features"):
            train = self._extract(represent, self.train, batches, mesh, "train")
            test = self._extract(represent, self.test, batches, mesh, "test")
        numbers: dict[str, Any] = {"protocol": self._describe(train, test)}
        # The rest is small: every process computes it all on one of its devices.
        with jax.set_mesh(one_device()):
            if self.label is not None and self.train.targets and self.test.targets:
                numbers |= self._classified(train, test, seconds)
            else:
                numbers["note"] = (
                    "the source has no labels: health only, no kNN, no probe"
                )
            with _timed(seconds, "health"):
                numbers["health"] = _health(test)
            with _timed(seconds, "sample"):
                sample = self._sample(train, test)
        return Result(
            {**numbers, "machine": hosts.machine(), "time": seconds},
            sample,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
            standard_errors=self.standard_errors(numbers),
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Accuracies in %, RankMe, and what could not be computed."""
        columns = FrozenFeatures.columns(numbers)
        parts = [
            f"{name.removesuffix(' %')} {value:.2f} %"
            for name, value in columns.items()
            if name.endswith("%")
        ]
        if "RankMe" in columns:
            parts.append(f"RankMe {columns['RankMe']:.1f}")
        reasons = [f"no {n}: {why}" for n, why in _not_computed(numbers).items()]
        reasons += [numbers["note"]] if "note" in numbers else []
        return "; ".join([", ".join(parts), *reasons])

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The columns that compare runs."""
        accuracies = _accuracies(numbers)
        columns = {column: 100 * one["top1"] for column, one in accuracies.items()}
        if "health" in numbers:
            columns["RankMe"] = numbers["health"]["h"]["rankme"]
        return columns

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard errors of the accuracies among the columns, in %."""
        return errors_of(_accuracies(numbers), numbers.get("protocol", {}))

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Top-1 with its standard error, beside balanced accuracy and the majority."""
        return accuracy_table({name: _accuracies(one) for name, one in results.items()})

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Draw the map, the neighbours, the sweep and the confusion matrix."""
        from polyview.evaluation import frozen_figures

        return frozen_figures.figures(numbers, figure_data)

    def raw(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the views as features of the reference, flattened.

        Views of uint8 are divided by 255.
        """
        return raw_features(batch, self.modality)

    def _extract(
        self,
        represent: Callable,
        source: Source,
        batches: Mapping[str, Decoded],
        mesh: Mesh,
        name: str,
    ) -> Extracted:
        extracted = extract(
            represent,
            source,
            self.views,
            batch_size=self.batch_size,
            mesh=mesh,
            modality=self.modality,
            seed=self.seed,
            name=name,
            batches=batches[name],
        )
        return with_modality(extracted, name, self.modality)

    @property
    def _task(self) -> dict[str, Any]:
        return self.train.targets[str(self.label)]

    def _classified(
        self, train: Extracted, test: Extracted, seconds: dict[str, float]
    ) -> dict[str, Any]:
        """Return kNN and probe, or why they cannot be computed."""
        assert self.label is not None  # as the caller has checked
        labels = class_labels(train, self.label), class_labels(test, self.label)
        if len(np.unique(labels[0])) == 1:
            only = class_names(self._task)[labels[0][0]]
            if (labels[1] == labels[0][0]).all():
                why = "one class: kNN and probe would be 100 %"
            else:
                why = f"one class in train: kNN and probe would always answer '{only}'"
            return {"note": f"{why}, so health only"}
        parts: dict[str, Callable] = {"knn": self._knn, "linear_probe": self._probe}
        parts |= {
            f"{count}-shot knn": functools.partial(self._few_shot, count=count)
            for count in self.knn.per_class
        }
        numbers: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for name, compute in parts.items():
            with _timed(seconds, name):
                try:
                    found = compute(train, test, *labels)
                except InputError as error:  # this part alone is impossible
                    reasons[name] = str(error)
                    continue
            few_shot = numbers.get("few_shot", {}) | found.pop("few_shot", {})
            numbers |= found | ({"few_shot": few_shot} if few_shot else {})
        return numbers | ({"not_computed": reasons} if reasons else {})

    def _knn(
        self,
        train: Extracted,
        test: Extracted,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        most: int | None = None,
    ) -> dict[str, Any]:
        classes = self._task["classes"]
        votes = self.knn.scores(train.h, train_labels, test.h, classes, most)
        return {name: top_accuracy(own, test_labels) for name, own in votes.items()}

    def _few_shot(
        self,
        train: Extracted,
        test: Extracted,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
        count: int,
    ) -> dict[str, Any]:
        """Return {"few_shot": {count: {name: accuracy over draws}}}."""
        draws = []
        for draw in range(self.knn.draws):
            rows = few_rows(train_labels, count, seed=(self.seed, draw))
            drawn = jax.tree.map(lambda x, rows=rows: x[rows], train)
            labels = train_labels[rows], test_labels
            draws.append(self._knn(drawn, test, *labels, most=count))
        each = {name: over_draws([draw[name] for draw in draws]) for name in draws[0]}
        return {"few_shot": {str(count): each}}

    def _probe(
        self,
        train: Extracted,
        test: Extracted,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
    ) -> dict[str, Any]:
        classes = self._task["classes"]
        sweep = self.probe.sweep(
            train.h, train_labels, classes, validation=self.validation, seed=self.seed
        )
        chosen = (sweep.learning_rate, sweep.weight_decay)
        fitted = self.probe.fit(
            train.h, train_labels, classes, [chosen], seed=self.seed
        )
        test_logits = logits(fitted, test.h)
        confusion = np.zeros((classes, classes), int)
        np.add.at(confusion, (test_labels, test_logits.argmax(axis=1)), 1)
        rows = confusion.sum(axis=1)
        result = {
            **top_accuracy(test_logits, test_labels),
            "validation_top1": float(sweep.accuracy.max()),
            "chosen": {
                "learning_rate": sweep.learning_rate,
                "weight_decay": sweep.weight_decay,
            },
            "sweep": {
                "learning_rate": list(self.probe.learning_rates),
                "weight_decay": list(self.probe.weight_decays),
                "validation_top1": sweep.accuracy.tolist(),
            },
            "classes": class_names(self._task),
            "per_class": [
                float(confusion[c, c] / rows[c]) if rows[c] else None
                for c in range(classes)
            ],
            "confusion": confusion.tolist(),
        }
        if sweep.border:
            keys = [f"probe.{name}s" for name in sweep.border]
            result["warning"] = (
                f"the best {' and '.join(sweep.border)} lies at the end of the sweep; "
                f"widen {' and '.join(keys)}"
            )
        return {"linear_probe": result}

    def _sample(self, train: Extracted, test: Extracted) -> dict[str, np.ndarray]:
        rows = _spread(len(test.h), _SAMPLE_ROWS)
        queries = self._queries(test)
        near = neighbours(train.h, test.h[queries], k=_NEAREST).index
        sample = {"h": test.h[rows]}
        if self.label in test.targets:
            sample["label"] = test.targets[self.label][rows]
            sample["query_label"] = test.targets[self.label][queries]
            sample["neighbour_label"] = train.targets[self.label][near]
        image = functools.partial(
            small_image, views=self.views, modality=self.modality, seed=self.seed
        )
        queried = [image(self.test, row) for row in test.index[queries]]
        found = [image(self.train, row) for row in train.index[near].ravel()]
        images = [image for image in queried + found if image is not None]
        if len(images) == len(queried) + len(found):
            sample["query"] = np.stack(images[: len(queried)])
            nearest = np.stack(images[len(queried) :])
            sample["neighbour"] = nearest.reshape(*near.shape, *nearest.shape[1:])
        return sample

    def _queries(self, test: Extracted) -> np.ndarray:
        """Positions for the grid: the first row of some classes, evenly spaced."""
        if self.label not in test.targets:
            return _spread(len(test.h), _QUERIES)
        _, first = np.unique(test.targets[self.label], return_index=True)
        return first[_spread(len(first), _QUERIES)]

    def _describe(self, train: Extracted, test: Extracted) -> dict[str, Any]:
        def rows(split: str, source: Source, extracted: Extracted) -> dict[str, Any]:
            name = in_words(self.spec, split, source)
            count: dict[str, Any] = {"source": name, "rows": len(extracted.index)}
            if len(source) > len(extracted.index):
                count["left_out"] = len(source) - len(extracted.index)
                count["left_out_why"] = f"unreadable, or without '{self.modality}'"
            return count

        return {
            "train": rows("train", self.train, train),
            "test": rows("test", self.test, test),
            "views": in_words(self.spec, "views", self.views),
            "views_of_a_sample": "averaged",
            "modality": self.modality,
            "label": self.label,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "features": {
                "read": "h, frozen, not trained",
                "dimensions": train.h.shape[1],
            },
            "knn": {
                **self.knn.described(),
                "distance": "cosine",
                "votes": "exp(cosine / temperature)",
                "chosen": "fixed by the config; nothing is chosen on test",
            },
            "linear_probe": {
                **dataclasses.asdict(self.probe),
                "optimizer": "SGD, momentum 0.9, cosine schedule, from zero",
                "standardised": "by mean and standard deviation of the fitted rows",
                "validation": self.validation,
                "validation_rows": "of train, the same fraction of a class, by seed",
                "chosen": "best top-1 on the validation rows; test is read once, after",
                "refitted": "on all train rows with the chosen pair",
            },
            "health": {
                "rows": f"at most {_HEALTH_ROWS} of test, evenly spaced",
                "uniformity": "t = 2, unit rows (Wang & Isola 2020)",
                "rankme": "not centred (Garrido et al. 2023)",
                "standard_deviation": "of unit rows, times sqrt(d), mean over d",
            },
        }


def _not_computed(numbers: Mapping) -> dict[str, str]:
    """Return {part: reason} of the parts that a result lacks, in words."""
    reasons = numbers.get("not_computed", {})
    return {name.replace("_", " "): why for name, why in reasons.items()}


def _accuracies(numbers: Mapping) -> dict[str, Mapping]:
    """Return {column: accuracy} of what a result has, the linear probe first."""
    found = {"linear_probe": "linear probe %", "knn": "kNN %"}
    found |= {name: f"kNN@{name[4:]} %" for name in numbers if name.startswith("knn@")}
    accuracies = {column: numbers[n] for n, column in found.items() if n in numbers}
    for count, by_name in numbers.get("few_shot", {}).items():
        for name, accuracy in by_name.items():
            accuracies[f"{name.replace('knn', 'kNN')} {count}-shot %"] = accuracy
    return accuracies


def _health(test: Extracted) -> dict[str, Any]:
    rows = _spread(len(test.h), _HEALTH_ROWS)

    def measure(x: Any) -> dict[str, Any]:
        return {
            "uniformity": float(jax.jit(health.uniformity)(x)),
            "rankme": float(jax.jit(health.rankme)(x)),
            "standard_deviation": float(jnp.mean(health.standard_deviation(x))),
            "dimensions": x.shape[1],
        }

    return {"rows": len(rows), "h": measure(test.h[rows]), "z": measure(test.z[rows])}


def _spread(length: int, most: int) -> np.ndarray:
    """At most `most` of 0 .. length - 1. Evenly spaced: a split may be sorted."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(int)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 3)
