"""Evaluation of frozen features; checkpoints and references share one protocol.

Extracts the frozen features h of a train and a test split, one view a sample; then
runs weighted kNN, a linear probe and health measures that need no labels. The probe's
hyper-parameters are chosen on rows held out from the train split; nothing is chosen on
the test split. The result includes the whole protocol, since a number without its
protocol cannot be compared.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import InputError
from polyview.evaluation import health
from polyview.evaluation.base import Result
from polyview.evaluation.features import Extracted, extract
from polyview.evaluation.knn import WeightedKnn, neighbours
from polyview.evaluation.probe import LinearProbe, logits

_HEALTH_ROWS = 10_000  # uniformity compares all pairs
_SAMPLE_ROWS = 1_000  # test rows in the map of the features
_QUERIES, _NEAREST = 6, 8  # rows and columns of the grid of nearest neighbours
_PIXELS = 64  # longest side of an image kept for a figure


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
      seed: for the held-out rows and the probe's mini-batches.
    """

    train: Source
    test: Source
    views: Callable
    modality: str = "image"
    label: str = "label"
    batch_size: int = 500
    validation: float = 0.1
    knn: WeightedKnn = WeightedKnn()
    probe: LinearProbe = LinearProbe()
    seed: int = 0

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
            if source.targets:
                check_target(source, split, self.label)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality: features}` (see `features.extract`).

        Raises InputError for features that are not finite and labels out of range.
        """
        seconds: dict[str, float] = {}
        with _timed(seconds, "features"):
            train = self._extract(represent, self.train, mesh, "train")
            test = self._extract(represent, self.test, mesh, "test")
        numbers: dict[str, Any] = {"protocol": self._describe(train, test)}
        # The rest is small: every process computes it all on one of its devices.
        with jax.set_mesh(_one_device()):
            if self.train.targets and self.test.targets:
                labels = (
                    class_labels(train, self.label),
                    class_labels(test, self.label),
                )
                with _timed(seconds, "knn"):
                    numbers["knn"] = self._knn(train, test, *labels)
                with _timed(seconds, "linear_probe"):
                    numbers["linear_probe"] = self._probe(train, test, *labels)
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
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Accuracies in % and RankMe."""
        columns = FrozenFeatures.columns(numbers)
        names = {"linear probe %": "linear probe", "kNN %": "kNN"}
        parts = [f"{n} {columns[c]:.2f} %" for c, n in names.items() if c in columns]
        if "RankMe" in columns:
            parts.append(f"RankMe {columns['RankMe']:.1f}")
        return ", ".join(parts)

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The columns that compare runs."""
        measures = {"linear probe %": "linear_probe", "kNN %": "knn"}
        columns = {
            c: 100 * numbers[m]["top1"] for c, m in measures.items() if m in numbers
        }
        if "health" in numbers:
            columns["RankMe"] = numbers["health"]["h"]["rankme"]
        return columns

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Draw the map, the neighbours, the sweep and the confusion matrix."""
        from polyview.evaluation import frozen_figures

        return frozen_figures.figures(numbers, figure_data)

    def raw(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the views as features of the reference, flattened.

        Views of uint8 are divided by 255.
        """
        view = batch["views"][self.modality]
        unit = 255 if view.dtype == jnp.uint8 else 1
        flat = view.reshape(*view.shape[:2], -1).astype(jnp.float32) / unit
        return {self.modality: _Flat(h=flat, z=flat)}

    def _extract(
        self, represent: Callable, source: Source, mesh: Mesh, name: str
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
        )
        if not extracted.present.any():
            raise InputError(
                f"no row of the {name} split has the modality '{self.modality}'"
            )
        return jax.tree.map(lambda x: x[extracted.present], extracted)

    @property
    def _task(self) -> dict[str, Any]:
        return self.train.targets[self.label]

    def _knn(
        self,
        train: Extracted,
        test: Extracted,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
    ) -> dict[str, Any]:
        classes = self._task["classes"]
        votes = self.knn.scores(train.h, train_labels, test.h, classes)
        return top_accuracy(votes, test_labels)

    def _probe(
        self,
        train: Extracted,
        test: Extracted,
        train_labels: np.ndarray,
        test_labels: np.ndarray,
    ) -> dict[str, Any]:
        classes, names = self._task["classes"], self._task.get("names")
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
            "classes": list(names) if names else [str(c) for c in range(classes)],
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
        return result

    def _sample(self, train: Extracted, test: Extracted) -> dict[str, np.ndarray]:
        rows = _spread(len(test.h), _SAMPLE_ROWS)
        queries = self._queries(test)
        near = neighbours(train.h, test.h[queries], k=_NEAREST).index
        sample = {"h": test.h[rows]}
        if self.label in test.targets:
            sample["label"] = test.targets[self.label][rows]
            sample["query_label"] = test.targets[self.label][queries]
            sample["neighbour_label"] = train.targets[self.label][near]
        queried = [self._image(self.test, row) for row in test.index[queries]]
        found = [self._image(self.train, row) for row in train.index[near].ravel()]
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

    def _image(self, source: Source, row: int) -> np.ndarray | None:
        """The first view of a row as a small uint8[h, w, c], or None if no image."""
        generated = self.views(source[int(row)], np.random.default_rng(self.seed))
        image = generated["views"][self.modality][0]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
            return None
        height, width, channels = image.shape
        shrink = _PIXELS / max(height, width, _PIXELS)
        if shrink < 1:
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return image.reshape(*image.shape[:2], channels)

    def _describe(self, train: Extracted, test: Extracted) -> dict[str, Any]:
        def rows(source: Source, extracted: Extracted) -> dict[str, Any]:
            count: dict[str, Any]
            count = {"source": repr(source), "rows": len(extracted.index)}
            if len(source) > len(extracted.index):
                count["left_out"] = len(source) - len(extracted.index)
                count["left_out_why"] = f"unreadable, or without '{self.modality}'"
            return count

        return {
            "train": rows(self.train, train),
            "test": rows(self.test, test),
            "views": repr(self.views),
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
                **dataclasses.asdict(self.knn),
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


class _Flat(NamedTuple):
    h: jax.Array
    z: jax.Array


def check_target(source: Source, split: str, label: str) -> None:
    """Raise InputError unless `label` is a target of the source and a class."""
    if label not in source.targets:
        known = (
            f"only {', '.join(source.targets)}" if source.targets else "nor any other"
        )
        raise InputError(
            f"evaluation: the {split} source has no target '{label}', {known}; "
            "correct its label"
        )
    kind = source.targets[label]["kind"]
    if kind != "class":
        raise InputError(
            f"evaluation: target '{label}' is of kind '{kind}', not 'class'; "
            "correct its label"
        )


def class_labels(extracted: Extracted, label: str) -> np.ndarray:
    """Return the target `label` of each row, int64[n].

    Raises InputError if the views do not pass it on.
    """
    if label not in extracted.targets:
        raise InputError(
            f"evaluation: its views pass on no target '{label}'; "
            f"set its views.targets=('{label}',)"
        )
    return extracted.targets[label].astype(np.int64)


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


def top_accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the top-1 accuracy, and top-5 if there are more than five classes.

    scores: float[n, classes]; labels: int[n].
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    hit = order == labels[:, None]
    top = {"top1": float(hit[:, 0].mean())}
    if scores.shape[1] > 5:
        top["top5"] = float(hit[:, :5].any(axis=1).mean())
    return top


def _spread(length: int, most: int) -> np.ndarray:
    """At most `most` of 0 .. length - 1. Evenly spaced: a split may be sorted."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(int)


def _one_device() -> Mesh:
    return Mesh(np.asarray(jax.local_devices()[:1]), ("data",))


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 3)
