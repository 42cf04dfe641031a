"""Zero-shot classification by attributes: of classes that training has never shown.

A class c is described by a vector a_c, such as the components of a character. Frozen
features f of images of the seen classes fit a map to attributes; an image of an unseen
class gets the class whose vector agrees best. Two classifiers read the same features,
standardised over the training rows:

    ridge     a(f) = f W + w, least squares on the vector of each row's class;
              argmax over c of cos(a(f) - mean a, a_c - mean a)
    softmax   p(c | f) = softmax over c of -|f W - (a_c - mean a) G|^2, the likelihood
              of the seen classes in training; argmax over c of p(c | f)

with mean a over the seen classes. A ridge shrinks its predictions to their mean: only
what is apart from it tells classes apart, so the cosine is taken of that.

The candidates c are the unseen classes or, in the generalised task, seen and unseen
ones (Xian et al. 2019): with u and s the accuracies on images of unseen and of seen
classes, H = 2 u s / (u + s). Fitted on seen classes, scores favour these, so an offset
is subtracted from theirs (calibrated stacking, Chao et al. 2016). Accuracies are means
over classes of the accuracy on a class's images; those over images stand beside them,
under another name. The strength of the ridge, the weight decay and the offset are
chosen on validation classes, which are neither seen nor unseen. The unseen classes are
read once.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import TINY, InputError, check_range
from polyview.evaluation import handcrafted
from polyview.evaluation.attribute_figures import draw_by_seen_classes, draw_confusions
from polyview.evaluation.attribute_fits import (
    RidgeFit,
    SoftmaxFit,
    SoftmaxHead,
    ascending,
    fit_ridge,
)
from polyview.evaluation.attribute_scores import (
    Stacked,
    best_offset,
    by_seen_classes,
    class_averaged,
    confusions,
    offset_curve,
    slot_accuracies,
    stacked,
    stacked_accuracies,
)
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.class_attributes import (
    ClassTable,
    Learnt,
    check_attributes,
    check_named_sources,
    check_same_attributes,
    check_tables,
    described_splits,
    named,
    scaled,
    standardised_over,
    table_of,
)
from polyview.evaluation.classification import (
    check_same_classes,
    class_labels,
    class_names,
    percent,
)
from polyview.evaluation.features import (
    Extracted,
    extracted_splits,
    one_device,
    raw_features,
)
from polyview.evaluation.probe import held_out

CLASSIFIERS = ("ridge", "softmax")


@dataclasses.dataclass(frozen=True)
class AttributeZeroShot:
    """Accuracy on images of unseen classes, by their attributes.

    Attributes:
      train: images of the seen classes, which fit the classifiers.
      validation: images of other classes, which choose settings.
      unseen: {name: images of unseen classes}, such as in fonts that training has seen
        and in new ones.
      views: example -> views that pass on `label` and `attributes`; features are
        averaged over the views of a sample.
      seen: {name in `unseen`: other images of the seen classes}, for the generalised
        task.
      learnt_from: the sources that the encoder was trained on, whose classes are read,
        to refuse one that trained on an unseen class; None if they are not known. Set
        by `trained_on`.
      label: a target of kind "class", numbered over all classes.
      attributes: a target with the vector of each row's class.
      modality: the modality to encode.
      features: "h", the representation, or "z".
      strengths: of the ridge, to choose from; see `polyview.evaluation.ridge`.
      softmax: settings of the softmax head.
      held_out: the fraction of train left out of the fit that chooses the offset.
      batch_size: global.
      seed: of that fraction, and of the softmax head.
      spec: what a config calls its parts; set by `described`.
    """

    train: Source
    validation: Source
    unseen: Mapping[str, Source]
    views: Callable
    seen: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    learnt_from: Sequence[Source] | None = None
    label: str = "label"
    attributes: str = "attributes"
    modality: str = "image"
    features: str = "h"
    strengths: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    softmax: SoftmaxHead = SoftmaxHead()
    held_out: float = 0.1
    batch_size: int = 500
    seed: int = 0
    spec: Mapping | None = None

    def __post_init__(self) -> None:
        if self.features not in ("h", "z"):
            raise InputError(f"evaluation: features is {self.features!r}, not 'h', 'z'")
        object.__setattr__(self, "strengths", ascending("strengths", self.strengths))
        check_range(1, batch_size=self.batch_size)
        check_range(TINY, 1 - TINY, held_out=self.held_out)
        check_named_sources(self.unseen, "unseen")
        if extra := set(self.seen) - set(self.unseen):
            raise InputError(
                f"evaluation: seen has {sorted(extra)}, but each of its names must be "
                f"one of unseen ({', '.join(self.unseen)}), whose images are alike"
            )
        for split, source in self._sources().items():
            check_attributes(source, split, self.label, self.attributes)
            check_same_classes(self.train, source, self.label)
            check_same_attributes(self.train, source, self.attributes)

    def described(self, spec: Mapping) -> "AttributeZeroShot":
        """Return a copy whose protocol names its parts by their spec."""
        return dataclasses.replace(self, spec=spec)

    def trained_on(self, sources: Sequence[Source] | None) -> "AttributeZeroShot":
        """Return a copy that knows what the encoder was trained on."""
        return dataclasses.replace(self, learnt_from=sources)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality: features}`.

        Raises InputError as `class_table` and `check_tables` do, and for an encoder
        that was trained on an unseen class.
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
        """Accuracies and H in %, and what could not be computed."""
        parts = [
            f"{name.removesuffix(' %')} {value:.2f} %"
            for name, value in AttributeZeroShot.columns(numbers).items()
        ]
        reasons = [
            f"no {n}: {why}" for n, why in numbers.get("not_computed", {}).items()
        ]
        reasons += [numbers["note"]] if "note" in numbers else []
        return "; ".join([", ".join(parts), *reasons])

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Class-averaged accuracy on unseen classes, and H, in %."""
        return {name: 100 * value for name, (value, _) in _columns(numbers).items()}

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard errors of the columns, over classes, in %."""
        return {
            name: 100 * error
            for name, (_, error) in _columns(numbers).items()
            if error is not None
        }

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Accuracies averaged over classes and, apart, over images; u, s, H."""
        head = ["", "class-averaged %", "image-averaged %", "chance %", "u %", "s %"]
        return [*head, "H %"], [
            _line(f"{model}: {name}, {source}", own, source)
            for model, numbers in results.items()
            for name, own in _classifiers(numbers).items()
            for source in own["unseen"]
        ]

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Figure]:
        """Draw accuracy by seen classes, and the parts that errors share."""
        own = _classifiers(numbers)
        drawn = {}
        if any(one.get("by_seen_classes") for one in own.values()):
            drawn["seen_classes"] = draw_by_seen_classes(own)
        if any(
            c["shared"]
            for one in own.values()
            for c in one.get("confusions", {}).values()
        ):
            drawn["shared_parts"] = draw_confusions(own)
        return drawn

    def _sources(self) -> dict[str, Source]:
        return {
            "train": self.train,
            "validation": self.validation,
            **{f"unseen {name}": source for name, source in self.unseen.items()},
            **{f"seen {name}": source for name, source in self.seen.items()},
        }

    def _measured(self, read: Mapping[str, Extracted], learnt: Learnt) -> Result:
        began = time.perf_counter()
        names = class_names(self.train.targets[self.label])
        task = self.train.targets[self.attributes]
        tables = {
            split: table_of(extracted, split, self.label, self.attributes, names)
            for split, extracted in read.items()
        }
        check_tables(
            tables["train"],
            {s: t for s, t in tables.items() if s == "validation" or s[:2] == "un"},
            {s: t for s, t in tables.items() if s.startswith("seen ")},
            names,
            task.get("names"),
        )
        self._check_disjoint(tables, learnt, names)
        binary = all(np.isin(t.vectors, (0, 1)).all() for t in tables.values())
        tables, scaling = scaled(tables)
        rows = _Rows.of(read, self.features, self.label)
        numbers: dict[str, Any] = {
            "protocol": self._describe(read, tables, scaling, learnt),
        }
        reasons = {}
        if not binary:
            why = "attributes are not all 0 or 1, so that classes share none exactly"
            reasons["parts of errors and slots"] = why
        elif not task.get("slots"):
            reasons["accuracy of slots"] = f"'{self.attributes}' names no slots"
        # The rest is small: every process computes it all on one of its devices.
        with jax.set_mesh(one_device()):
            for name in CLASSIFIERS:
                fit, numbers[name] = self._chosen(name, rows, tables)
                numbers[name] |= self._classified(fit, rows, tables, binary)
                if self.seen:
                    setting = numbers[name]["chosen"]["setting"]
                    numbers[name]["generalised"] = self._generalised(
                        name, setting, fit, rows, tables
                    )
                if name == "ridge" and binary and task.get("slots"):
                    numbers["slots"] = self._slots(fit, rows, tables, task["slots"])
        if reasons:
            numbers["not_computed"] = reasons
        if idle := _idle(tables):
            numbers["note"] = (
                f"{idle} of {tables['train'].vectors.shape[1]} attributes are the same "
                "for every class and tell none apart"
            )
        numbers["machine"] = hosts.machine()
        numbers["time"] = {"zero_shot": round(time.perf_counter() - began, 3)}
        return Result(
            numbers,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
            standard_errors=self.standard_errors(numbers),
        )

    def _check_disjoint(
        self,
        tables: Mapping[str, ClassTable],
        learnt: Learnt,
        names: Sequence[str],
    ) -> None:
        """Raise InputError if the unseen classes chose settings, or were learnt."""
        for name in self.unseen:
            table = tables[f"unseen {name}"]
            both = np.intersect1d(table.classes, tables["validation"].classes)
            if len(both):
                raise InputError(
                    f"evaluation: {named(both, names)} of unseen {name} is also in "
                    "validation, which chooses settings; correct the splits"
                )
            learnt.check(table, f"unseen {name}", names)
        learnt.check(tables["validation"], "validation", names)

    def _fits(
        self,
        name: str,
        x: np.ndarray,
        place: np.ndarray,
        vectors: np.ndarray,
        settings: Sequence[float],
    ) -> Iterator[RidgeFit | SoftmaxFit]:
        """Fit a classifier with each of its settings."""
        if name == "ridge":
            yield from fit_ridge(x, place, vectors, settings)
            return
        for decay in settings:
            yield self.softmax.fit(x, place, vectors, decay, self.seed)

    def _chosen(
        self, name: str, rows: "_Rows", tables: Mapping[str, ClassTable]
    ) -> tuple[RidgeFit | SoftmaxFit, dict[str, Any]]:
        """Return the fit that is best on the validation classes, and how it was chosen.

        Ties go to the larger setting, which penalises more.
        """
        settings = self.strengths if name == "ridge" else self.softmax.decays
        train, held = tables["train"], tables["validation"]
        place = np.searchsorted(train.classes, rows.labels["train"])
        accuracies: list[float] = []
        fits = self._fits(name, rows.x["train"], place, train.vectors, settings)
        for fit in fits:
            answers = _answers(fit, rows.x["validation"], held)
            right = answers == rows.labels["validation"]
            found = class_averaged(right, rows.labels["validation"])
            accuracies.append(found["class_averaged_top1"])
            if accuracies[-1] == max(accuracies):
                best = fit
        number = len(settings) - 1 - int(np.argmax(accuracies[::-1]))
        chosen: dict[str, Any] = {
            "chosen": {"setting": settings[number]},
            "validation": {
                "settings": list(settings),
                "class_averaged_top1": accuracies,
                "chance": 1 / len(held.classes),
            },
        }
        if len(settings) > 1 and number in (0, len(settings) - 1):
            key = "strengths" if name == "ridge" else "softmax.decays"
            chosen["warning"] = (
                f"the best setting of the {name} classifier, {settings[number]:g}, "
                f"lies at the end of those tried; widen {key}"
            )
        return best, chosen

    def _classified(
        self,
        fit: RidgeFit | SoftmaxFit,
        rows: "_Rows",
        tables: Mapping[str, ClassTable],
        binary: bool,
    ) -> dict[str, Any]:
        """Measure the unseen classes among themselves."""
        measured: dict[str, Any] = {"unseen": {}}
        counts = (tables["train"].vectors > 0).sum(axis=0)
        for name in self.unseen:
            split = f"unseen {name}"
            table, labels = tables[split], rows.labels[split]
            answers = _answers(fit, rows.x[split], table)
            right = answers == labels
            scores = class_averaged(right, labels) | {"chance": 1 / len(table.classes)}
            measured["unseen"][name] = scores
            if binary:
                rarest = np.where(table.vectors > 0, counts, np.inf).min(axis=1)
                each = rarest[np.searchsorted(table.classes, labels)].astype(int)
                for key, found in (
                    ("by_seen_classes", by_seen_classes(right, labels, each)),
                    ("confusions", confusions(answers, labels, table)),
                ):
                    measured.setdefault(key, {})[name] = found
        return measured

    def _slots(
        self,
        fit: RidgeFit | SoftmaxFit,
        rows: "_Rows",
        tables: Mapping[str, ClassTable],
        slots: Sequence[str],
    ) -> dict[str, Any]:
        assert isinstance(fit, RidgeFit)  # the softmax head predicts no attributes
        counts = (tables["train"].vectors > 0).sum(axis=0)
        return {
            name: slot_accuracies(
                fit.attributes(rows.x[f"unseen {name}"]),
                rows.labels[f"unseen {name}"],
                tables[f"unseen {name}"],
                slots,
                counts,
            )
            for name in self.unseen
        }

    def _generalised(
        self,
        name: str,
        setting: float,
        fit: RidgeFit | SoftmaxFit,
        rows: "_Rows",
        tables: Mapping[str, ClassTable],
    ) -> dict[str, Any]:
        """Measure seen and unseen classes among all of them."""
        train = tables["train"]
        labels = rows.labels["train"]
        place = np.searchsorted(train.classes, labels)
        left_out = held_out(labels, self.held_out, self.seed)
        x = rows.x["train"]
        (partial_fit,) = self._fits(
            name, x[~left_out], place[~left_out], train.vectors, [setting]
        )

        def task(
            by: Any, held: ClassTable, own: tuple, other: tuple
        ) -> tuple[Stacked, Stacked]:
            classes = np.concatenate([train.classes, held.classes])
            order = np.argsort(classes)
            vectors = np.concatenate([train.vectors, held.vectors])[order]
            seen = np.isin(classes[order], train.classes)
            unseen_rows, seen_rows = (
                stacked(by.scores(x, vectors), labels, classes[order], seen)
                for x, labels in (own, other)
            )
            return unseen_rows, seen_rows

        validation = task(
            partial_fit,
            tables["validation"],
            rows.split("validation"),
            (x[left_out], labels[left_out]),
        )
        offset = best_offset(*validation)
        measured: dict[str, Any] = {}
        for source in self.seen:
            own = task(
                fit,
                tables[f"unseen {source}"],
                rows.split(f"unseen {source}"),
                rows.split(f"seen {source}"),
            )
            _, u, s = offset_curve(*own)
            measured[source] = {
                **stacked_accuracies(*own, offset),
                "offset": offset,
                "without_offset": stacked_accuracies(*own, 0.0),
                "area": float(np.trapezoid(u[::-1], s[::-1])),
                "validation": stacked_accuracies(*validation, offset),
            }
        return measured

    def _describe(
        self,
        read: Mapping[str, Extracted],
        tables: Mapping[str, ClassTable],
        scaling: str,
        learnt: Learnt,
    ) -> dict[str, Any]:
        return {
            **described_splits(self.spec, self._sources(), read, tables),
            "views": in_words(self.spec, "views", self.views),
            "views_of_a_sample": "averaged",
            "modality": self.modality,
            "label": self.label,
            "attributes": {
                "target": self.attributes,
                "number": tables["train"].vectors.shape[1],
                "scaled": scaling,
            },
            "features": {
                "read": f"{self.features}, frozen, standardised over train",
                "dimensions": getattr(read["train"], self.features).shape[1],
            },
            "ridge": {
                "fitted": "attributes of each row's class, with a bias",
                "answer": "the class whose vector has the largest cosine with the "
                "predicted attributes, both apart from the mean of the seen classes",
                "strengths": list(self.strengths),
            },
            "softmax": {
                **dataclasses.asdict(self.softmax),
                "answer": "largest softmax over classes of -|f W - (a - mean a) G|^2",
                "optimizer": "L-BFGS, all rows at once",
            },
            "accuracy": "mean over classes of the accuracy on a class's images; over "
            "images where named so; standard errors over classes: s / sqrt(classes)",
            "fitted_on": "train",
            "chosen": "settings: class-averaged top-1 on the validation classes among "
            "themselves; offset: largest H of validation classes and of "
            f"{self.held_out:g} of train left out of that fit, though the encoder was "
            "trained on them; the unseen classes are read once, after",
            "encoder": str(learnt),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


class _Rows(NamedTuple):
    """Standardised features and labels of each split, {split: array}."""

    x: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    @classmethod
    def of(cls, read: Mapping[str, Extracted], features: str, label: str) -> "_Rows":
        standard = standardised_over(getattr(read["train"], features))
        x = {split: standard(getattr(one, features)) for split, one in read.items()}
        return cls(x, {split: class_labels(one, label) for split, one in read.items()})

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.x[name], self.labels[name]


def _answers(
    fit: RidgeFit | SoftmaxFit, x: np.ndarray, table: ClassTable
) -> np.ndarray:
    return table.classes[fit.scores(x, table.vectors).argmax(axis=1)]


def _idle(tables: Mapping[str, ClassTable]) -> int:
    """Return the number of attributes that no two classes have differently."""
    vectors = np.concatenate([table.vectors for table in tables.values()])
    return int((vectors == vectors[0]).all(axis=0).sum())


def _classifiers(numbers: Mapping) -> dict[str, Mapping]:
    return {name: numbers[name] for name in CLASSIFIERS if name in numbers}


def _columns(numbers: Mapping) -> dict[str, tuple[float, float | None]]:
    """Return {column: (value, standard error)}, as shares of one."""
    columns = {}
    for name, own in _classifiers(numbers).items():
        for source, one in own["unseen"].items():
            found = one["class_averaged_top1"], one["standard_error"]
            columns[f"{name}, {source} %"] = found
        for source, one in own.get("generalised", {}).items():
            columns[f"{name} H, {source} %"] = one["H"], one["H_standard_error"]
    return columns


def _line(name: str, own: Mapping, source: str) -> list[str]:
    """Return a row of the comparison table."""

    one = own["unseen"][source]
    both = own.get("generalised", {}).get(source, {})
    return [
        name,
        percent(one["class_averaged_top1"], one["standard_error"]),
        percent(one["image_averaged_top1"], one["image_averaged_standard_error"]),
        percent(one["chance"]),
        *(percent(both.get(k), both.get(f"{k}_standard_error")) for k in "usH"),
    ]
