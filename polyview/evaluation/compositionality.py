"""Compositionality of features: is a class the sum of its attributes?

Tree reconstruction error (TRE, Andreas 2019), with the squared Euclidean distance and
sums as the composition. With x_c the mean of a class's standardised features, scaled to
unit length, and a_c its attribute vector,

    eta = argmin over eta of  sum over seen c of |x_c - sum_k a_ck eta_k|^2
    TRE = mean over classes of |x_c - sum_k a_ck eta_k|^2

which has a closed form: least squares, of smallest norm where attributes are redundant.
The number alone depends on the features' dimensions and noise. The TRE ratio divides it
by the mean TRE after attribute vectors are permuted over classes, among the seen and
among the unseen ones, with eta fitted anew: 1 says that attributes do not compose the
features, 0 that they do exactly. Ratios compare features of equal dimensions only.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import InputError, check_range
from polyview.evaluation import handcrafted
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.class_attributes import (
    ClassTable,
    Learnt,
    check_attributes,
    check_named_sources,
    check_same_attributes,
    check_tables,
    described_splits,
    scaled,
    standardised_over,
    table_of,
)
from polyview.evaluation.classification import (
    check_same_classes,
    class_labels,
    class_names,
)
from polyview.evaluation.features import (
    Extracted,
    extracted_splits,
    raw_features,
    unit,
)

DEFINITION = (
    "TRE = mean over classes of |x - sum of its attributes' eta|^2, x the unit-length "
    "mean of a class's standardised features, eta least squares on the seen classes; "
    "ratio = TRE / its mean with attribute vectors permuted over the classes of a "
    "split; compare at equal dimensions only"
)
SEEN = "seen classes"  # their name beside those of `unseen`


def composition(x: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """Return eta[a, d], the least-squares vector of each attribute.

    x: float[n, d], of n classes; attributes: float[n, a].
    """
    return _inverse(attributes) @ np.asarray(x, np.float64)


def _inverse(attributes: np.ndarray) -> np.ndarray:
    """Return the pseudo-inverse, whose zero singular values are those of rounding."""
    tolerance = 10 * max(attributes.shape) * np.finfo(np.float64).eps
    return np.linalg.pinv(np.asarray(attributes, np.float64), rcond=tolerance)


def distances(x: np.ndarray, attributes: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """Return |x_c - a_c eta|^2 of each class, float64[n]."""
    return np.square(x - attributes @ eta).sum(axis=1)


def tre(x: np.ndarray, attributes: np.ndarray, eta: np.ndarray | None = None) -> float:
    """Return the tree reconstruction error; eta=None is fitted on the same classes.

    x: float[n, d]; attributes: float[n, a]; eta: float[a, d].
    """
    eta = composition(x, attributes) if eta is None else eta
    return float(distances(x, attributes, eta).mean())


class Ratios(NamedTuple):
    """TRE of each class, and its mean over permutations; float64[n] each."""

    own: np.ndarray
    control: np.ndarray

    @property
    def ratio(self) -> float:
        """TRE / mean TRE of the permutations."""
        return float(self.own.mean() / self.control.mean())

    def resampled(self, draws: int, seed: int) -> np.ndarray:
        """Return the ratio of classes drawn with replacement, float64[draws]."""
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(self.own), size=(draws, len(self.own)))
        return self.own[rows].mean(axis=1) / self.control[rows].mean(axis=1)


def tre_ratios(
    seen: tuple[np.ndarray, np.ndarray],
    others: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    permutations: int,
    seed: int,
) -> tuple[Ratios, dict[str, Ratios]]:
    """Return the TRE and its control on the seen classes, and on others by name.

    seen: (x[n, d], attributes[n, a]), on which eta is fitted; others: the same of other
    classes. Vectors are permuted within each split, so that what a split could fit by
    chance stays the same.
    """
    rng = np.random.default_rng(seed)
    splits = {"": seen, **others}
    inverse = _inverse(seen[1])

    def measured(orders: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        # To permute the vectors is to permute the classes against them.
        eta = inverse @ seen[0][orders[""]]
        found = {}
        for name, (x, attributes) in splits.items():
            order = orders[name]
            found[name] = np.empty(len(x))
            found[name][order] = distances(x[order], attributes, eta)
        return found

    own = measured({name: np.arange(len(x)) for name, (x, _) in splits.items()})
    control = {name: np.zeros(len(x)) for name, (x, _) in splits.items()}
    for _ in range(permutations):
        orders = {name: rng.permutation(len(x)) for name, (x, _) in splits.items()}
        for name, each in measured(orders).items():
            control[name] += each / permutations
    ratios = {name: Ratios(own[name], control[name]) for name in splits}
    return ratios.pop(""), ratios


def class_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean of each class's rows, at unit length, in order of the label.

    features: float[n, d]; labels: int[n] -> float64[classes, d].
    """
    classes, place = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), features.shape[1]))
    np.add.at(sums, place, features)
    return unit(sums)


@dataclasses.dataclass(frozen=True)
class Compositionality:
    """The TRE ratio of seen and of unseen classes.

    Attributes:
      train: images of the seen classes, on which eta is fitted.
      unseen: {name: images of unseen classes}.
      views: example -> views that pass on `label` and `attributes`; features are
        averaged over the views of a sample.
      label: a target of kind "class", numbered over all classes.
      attributes: a target with the vector of each row's class.
      modality: the modality to encode.
      features: "h", the representation, or "z".
      dimensions: project standardised features on so many principal components of
        train, so that encoders of several widths can be compared; None keeps them.
      permutations: of the control.
      resamples: of the classes, for intervals.
      batch_size: global.
      seed: of permutations and resamples.
      learnt_from: as in `polyview.evaluation.attributes:AttributeZeroShot`.
      spec: what a config calls its parts; set by `described`.
    """

    train: Source
    unseen: Mapping[str, Source]
    views: Callable
    label: str = "label"
    attributes: str = "attributes"
    modality: str = "image"
    features: str = "h"
    dimensions: int | None = None
    permutations: int = 20
    resamples: int = 1000
    batch_size: int = 500
    seed: int = 0
    learnt_from: Sequence[Source] | None = None
    spec: Mapping | None = None

    def __post_init__(self) -> None:
        if self.features not in ("h", "z"):
            raise InputError(f"evaluation: features is {self.features!r}, not 'h', 'z'")
        check_range(1, permutations=self.permutations, resamples=self.resamples)
        check_range(1, batch_size=self.batch_size, dimensions=self.dimensions)
        check_named_sources(self.unseen, "unseen")
        for split, source in self._sources().items():
            check_attributes(source, split, self.label, self.attributes)
            check_same_classes(self.train, source, self.label)
            check_same_attributes(self.train, source, self.attributes)

    def described(self, spec: Mapping) -> "Compositionality":
        """Return a copy whose protocol names its parts by their spec."""
        return dataclasses.replace(self, spec=spec)

    def trained_on(self, sources: Sequence[Source] | None) -> "Compositionality":
        """Return a copy that knows what the encoder was trained on."""
        return dataclasses.replace(self, learnt_from=sources)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality: features}`.

        Raises InputError as `polyview.evaluation.class_attributes:check_tables` does,
        for features that have fewer `dimensions`, and for an encoder that was trained
        on an unseen class.
        """
        ((_, result),) = self.several({"": represent}, mesh)
        return result

    def several(
        self, models: Mapping[Any, Callable], mesh: Mesh
    ) -> Iterator[tuple[Any, Result]]:
        """Yield (key, result) of each model in turn; the data are decoded once."""
        learnt = Learnt.of(self.learnt_from, self.label)
        for key, read in extracted_splits(
            self._sources(),
            self.views,
            models,
            mesh,
            modality=self.modality,
            batch_size=self.batch_size,
            seed=self.seed,
        ):
            yield key, self._measured(read, learnt)

    def raw(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the views as features of the reference, flattened."""
        return raw_features(batch, self.modality)

    def references(self) -> dict[str, Callable]:
        """Return features of images without learning from labels, by name."""
        return handcrafted.references(
            self.train, self.views, modality=self.modality, seed=self.seed
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """TRE ratios with their intervals, and the dimensions."""
        parts = [
            f"TRE ratio, {name} {one['ratio']:.3f} "
            f"({one['low']:.3f} to {one['high']:.3f})"
            for name, one in numbers["splits"].items()
        ]
        parts.append(f"{numbers['dimensions']} dimensions")
        reasons = [f"no {n}: {w}" for n, w in numbers.get("not_computed", {}).items()]
        return "; ".join([", ".join(parts), *reasons])

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The ratios that compare runs; a lower one is more compositional."""
        splits = numbers["splits"]
        return {f"TRE ratio, {name}": one["ratio"] for name, one in splits.items()}

    # No `standard_errors`: a table sets the highest of a column with errors in bold.

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Ratio, its interval, TRE, its control, and the dimensions."""
        head = ["", "TRE ratio", "95 % of resamples", "TRE", "permuted", "dimensions"]
        return head, [
            [
                f"{model}: {name}",
                f"{one['ratio']:.3f}",
                f"{one['low']:.3f} to {one['high']:.3f}",
                f"{one['tre']:.4f}",
                f"{one['control']:.4f}",
                str(numbers["dimensions"]),
            ]
            for model, numbers in results.items()
            for name, one in numbers["splits"].items()
        ]

    def _sources(self) -> dict[str, Source]:
        unseen = {f"unseen {name}": source for name, source in self.unseen.items()}
        return {"train": self.train, **unseen}

    def _measured(self, read: Mapping[str, Extracted], learnt: Learnt) -> Result:
        began = time.perf_counter()
        names = class_names(self.train.targets[self.label])
        task = self.train.targets[self.attributes]
        tables = {
            split: table_of(extracted, split, self.label, self.attributes, names)
            for split, extracted in read.items()
        }
        held = {split: table for split, table in tables.items() if split != "train"}
        check_tables(tables["train"], held, {}, names, task.get("names"))
        for split, table in held.items():
            learnt.check(table, split, names)
        tables, scaling = scaled(tables)
        means = self._class_means(read)
        (seen, *others) = [(means[s], tables[s].vectors) for s in tables]
        found, of_others = tre_ratios(
            seen,
            dict(zip(self.unseen, others, strict=True)),
            permutations=self.permutations,
            seed=self.seed,
        )
        numbers: dict[str, Any] = {
            "protocol": self._describe(read, tables, scaling),
            "dimensions": means["train"].shape[1],
            "splits": {},
        }
        rank = int(np.linalg.matrix_rank(seen[1]))
        numbers["attributes"] = {"rank": rank, "seen_classes": len(seen[1])}
        reasons = {}
        for name, one in {**of_others, SEEN: found}.items():
            if name == SEEN and rank == len(seen[1]):
                reasons[f"TRE ratio, {name}"] = (
                    f"{rank} independent attributes compose {rank} classes exactly, "
                    "whatever the features"
                )
            elif not one.control.any():
                reasons[f"TRE ratio, {name}"] = "the features of all classes are equal"
            else:
                numbers["splits"][name] = self._summed(one)
        if reasons:
            numbers["not_computed"] = reasons
        numbers["machine"] = hosts.machine()
        numbers["time"] = {"compositionality": round(time.perf_counter() - began, 3)}
        return Result(
            numbers, summary=self.summary(numbers), columns=self.columns(numbers)
        )

    def _class_means(self, read: Mapping[str, Extracted]) -> dict[str, np.ndarray]:
        """Return the unit means of the classes of each split, {split: [classes, d]}."""
        train = getattr(read["train"], self.features)
        standard = standardised_over(train)
        axes = None
        if self.dimensions is not None:
            if self.dimensions > train.shape[1]:
                raise InputError(
                    f"evaluation: dimensions is {self.dimensions}, but the features "
                    f"have {train.shape[1]}; lower it"
                )
            x = standard(train)
            _, axes = np.linalg.eigh((x.T @ x).astype(np.float64))
            axes = axes[:, -self.dimensions :]
        means = {}
        for split, extracted in read.items():
            x = standard(getattr(extracted, self.features))
            x = x if axes is None else x @ axes
            means[split] = class_means(x, class_labels(extracted, self.label))
        return means

    def _summed(self, ratios: Ratios) -> dict[str, Any]:
        drawn = ratios.resampled(self.resamples, self.seed)
        low, high = np.percentile(drawn, [2.5, 97.5])
        return {
            "ratio": ratios.ratio,
            "standard_error": float(drawn.std(ddof=1)) if len(drawn) > 1 else None,
            "low": float(low),
            "high": float(high),
            "tre": float(ratios.own.mean()),
            "control": float(ratios.control.mean()),
            "classes": len(ratios.own),
        }

    def _describe(
        self,
        read: Mapping[str, Extracted],
        tables: Mapping[str, ClassTable],
        scaling: str,
    ) -> dict[str, Any]:
        return {
            **described_splits(self.spec, self._sources(), read, tables),
            "views": in_words(self.spec, "views", self.views),
            "views_of_a_sample": "averaged",
            "modality": self.modality,
            "label": self.label,
            "attributes": {"target": self.attributes, "scaled": scaling},
            "features": {"read": f"{self.features}, frozen, standardised over train"},
            "principal_components": self.dimensions,
            "tre": {
                "definition": DEFINITION,
                "permutations": self.permutations,
                "intervals": f"2.5 and 97.5 % of {self.resamples} resamples of classes",
            },
            "chosen": "nothing; every number is reported",
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
