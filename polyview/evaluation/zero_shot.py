"""Classification by prototypes: no classifier is trained, only similarities compared.

A class c has a prototype p_c of unit length; a row with features f gets the class

    argmax over c of  f p_c / |f|

`ZeroShot` takes p_c from text: the mean, over prompt templates, of the unit features
of the class's name in each (Radford et al. 2021, section 3.1.4). `ClassMeans` takes it
from N labelled training rows of the class: the mean of their unit features, scaled to
unit length (nearest class mean; "L2N" of Wang et al. 2019, with the cosine).
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from polyview import hosts
from polyview.data.prepare.text import Vocabulary
from polyview.data.sources.manifest import read_manifest
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord, Source, default_data_dir
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.classification import (
    accuracy_table,
    check_target,
    class_labels,
    class_names,
    errors_of,
    few_rows,
    over_draws,
    top_accuracy,
)
from polyview.evaluation.features import (
    Extracted,
    extract,
    extracted_splits,
    raw_features,
    unit,
    with_modality,
)


class PreparedWords:
    """The words of a text as numbers, as `polyview.prepare` wrote a data set's texts.

    Called as `words(text) -> int32[length]`, 0 is padding. Raises InputError for a data
    set without a vocabulary, and when called for a text without words.
    """

    def __init__(self, name: str, length: int, data_dir: str | Path | None = None):
        check_range(1, length=length)
        directory = Path(data_dir or default_data_dir()) / name
        if not (directory / "manifest.json").is_file():
            raise InputError(f"no data set '{name}' in {directory.parent.absolute()}")
        words = read_manifest(directory).get("provenance", {}).get("vocabulary")
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise InputError(
                f"the data set '{name}' has no vocabulary of texts; name the text data "
                "that the run was trained on"
            )
        self._vocabulary, self._length, self._name = Vocabulary(words), length, name

    def __call__(self, text: str) -> np.ndarray:
        numbers = self._vocabulary.encode(text, self._length)
        if numbers is None:
            raise InputError(f"the prompt {text!r} has no words")
        return numbers

    def __repr__(self) -> str:
        return f"PreparedWords('{self._name}', {self._length})"


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Zero-shot classification by the names of the classes.

    Attributes:
      test: a source (see `polyview.data.sources`).
      views: example -> views, of the modalities that the model takes.
      tokens: text -> the numbers of one view of the modality `text`.
      label: a target of kind "class" whose names are the classes; or a field of texts,
        whose distinct texts in `test` are.
      modality: what is classified; features are averaged over its views.
      text: the modality of the prompts.
      templates: prompts; each has one {}, the place of a class's name.
      features: "z", which objectives compare, or "h".
      batch_size: global.
      spec: what a config calls its parts; set by `described`.
    """

    test: Source
    views: Callable
    tokens: Callable[[str], np.ndarray]
    label: str = "label"
    modality: str = "image"
    text: str = "text"
    templates: Sequence[str] = ("{}",)
    features: str = "z"
    batch_size: int = 500
    spec: Mapping | None = None

    def __post_init__(self) -> None:
        _check(self.features, self.batch_size)
        if self.label in self.test.targets:
            check_target(self.test, "test", self.label)
        bad = [t for t in self.templates if t.count("{}") != 1]
        if bad or not self.templates:
            raise InputError(
                f"evaluation: templates are {list(self.templates)}; each needs one "
                "{}, the place of a class's name"
            )

    def described(self, spec: Mapping) -> "ZeroShot":
        """Return a copy whose protocol names its parts by their spec."""
        return dataclasses.replace(self, spec=spec)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality: features}`.

        Raises InputError for classes without names, for a model that lacks a modality,
        and if the features of the two modalities differ in width.
        """
        began = time.perf_counter()
        test = extract(
            represent,
            self.test,
            self.views,
            batch_size=self.batch_size,
            mesh=mesh,
            modality=self.modality,
            name="test",
        )
        test = with_modality(test, "test", self.modality)
        names, labels = self._classes(test)
        words = [name.replace("_", " ") for name in names]
        prompts = [t.replace("{}", name) for name in words for t in self.templates]
        encoded = self._encoded(represent, mesh, prompts)
        features = getattr(test, self.features)
        if encoded.shape[1] != features.shape[1]:
            raise InputError(
                f"features {self.features} of '{self.modality}' have "
                f"{features.shape[1]} dimensions, of '{self.text}' {encoded.shape[1]}: "
                "they cannot be compared; set this evaluation's features to "
                f"'{'h' if self.features == 'z' else 'z'}'"
            )
        named = np.arange(len(names)).repeat(len(self.templates))
        prototypes = class_prototypes(encoded, named)
        numbers: dict[str, Any] = {
            "protocol": self._describe(test, features.shape[1]),
            "zero_shot": top_accuracy(unit(features) @ prototypes.T, labels),
            "classes": len(names),
        }
        distinct = len(np.unique(prototypes, axis=0))
        if distinct < len(names):
            numbers["note"] = (
                f"the names of {len(names)} classes give {distinct} prototypes: some "
                "have the same known words; change the templates or the names"
            )
        numbers["machine"] = hosts.machine()
        numbers["time"] = {"zero_shot": round(time.perf_counter() - began, 3)}
        return _result(self, numbers)

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Accuracy in %, and the note if there is one."""
        return _summary(ZeroShot.columns(numbers), numbers)

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The column that compares runs."""
        return {"zero-shot %": 100 * numbers["zero_shot"]["top1"]}

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard error of the column, in %."""
        return errors_of({"zero-shot %": numbers["zero_shot"]}, numbers["protocol"])

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Top-1 with its standard error, beside balanced accuracy and the majority."""
        return accuracy_table(
            {name: {"zero-shot %": one["zero_shot"]} for name, one in results.items()}
        )

    def _classes(self, test: Extracted) -> tuple[list[str], np.ndarray]:
        """Return the names of the classes, and the class of each row."""
        if self.label in self.test.targets:
            task = self.test.targets[self.label]
            if not task.get("names"):
                raise InputError(
                    f"evaluation: the classes of '{self.label}' have no names to "
                    "encode; classify by examples (by=examples), or prepare the data "
                    "with names"
                )
            return class_names(task), class_labels(test, self.label)
        texts = [self.test[int(row)].get(self.label) for row in test.index]
        if not all(isinstance(text, str) for text in texts):
            known = ", ".join(self.test.targets) or "none"
            raise InputError(
                f"evaluation: '{self.label}' is no target of the test source (it has "
                f"{known}), and no field of texts; correct its label"
            )
        names, labels = np.unique(np.asarray(texts), return_inverse=True)
        return names.tolist(), labels

    def _encoded(
        self, represent: Callable, mesh: Mesh, prompts: Sequence[str]
    ) -> np.ndarray:
        """Return the features of each prompt, float32[n, d]."""
        views = _PromptViews(_first_views(self.test, self.views), self.text)
        tokens = np.stack([views.checked(self.tokens(prompt)) for prompt in prompts])
        extracted = extract(
            represent,
            InMemory({self.text: tokens}),
            views,
            batch_size=self.batch_size,
            mesh=mesh,
            modality=self.text,
            name="prompts",
        )
        return getattr(extracted, self.features)

    def _describe(self, test: Extracted, dimensions: int) -> dict[str, Any]:
        return {
            "test": {
                "source": in_words(self.spec, "test", self.test),
                "rows": len(test.index),
            },
            "views": in_words(self.spec, "views", self.views),
            "tokens": in_words(self.spec, "tokens", self.tokens),
            "label": self.label,
            "modality": self.modality,
            "text": self.text,
            "templates": list(self.templates),
            "features": {"read": self.features, "dimensions": dimensions},
            "prototypes": "mean over templates of unit features, unit length",
            "chosen": "nothing: the model as this step left it",
        }


@dataclasses.dataclass(frozen=True)
class ClassMeans:
    """Classification by the nearest mean of labelled training rows of each class.

    Attributes:
      train, test: sources with the target `label`.
      views: example -> views; features are averaged over the views of a sample.
      label: a target of kind "class".
      modality: the modality to encode.
      per_class: numbers of training rows a class, drawn at random; the means of all
        rows are always measured, too.
      draws: how often these are drawn.
      features: "h", the representation, or "z".
      batch_size: global.
      seed: of the draws.
      spec: what a config calls its parts; set by `described`.
    """

    train: Source
    test: Source
    views: Callable
    label: str = "label"
    modality: str = "image"
    per_class: Sequence[int] = (1, 5, 10)
    draws: int = 5
    features: str = "h"
    batch_size: int = 500
    seed: int = 0
    spec: Mapping | None = None

    def __post_init__(self) -> None:
        _check(self.features, self.batch_size)
        check_range(1, per_class=self.per_class, draws=self.draws)
        for split, source in (("train", self.train), ("test", self.test)):
            check_target(source, split, self.label)

    def described(self, spec: Mapping) -> "ClassMeans":
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
            {"train": self.train, "test": self.test},
            self.views,
            models,
            mesh,
            modality=self.modality,
            batch_size=self.batch_size,
            seed=self.seed,
        ):
            yield key, self._measured(**read)

    def raw(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the views as features of the reference, flattened."""
        return raw_features(batch, self.modality)

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Accuracies in %, and what could not be computed."""
        return _summary(ClassMeans.columns(numbers), numbers)

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The columns that compare runs."""
        return {c: 100 * one["top1"] for c, one in _means_of(numbers).items()}

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard errors of the columns, in %."""
        return errors_of(_means_of(numbers), numbers["protocol"])

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Top-1 with its standard error, beside balanced accuracy and the majority."""
        return accuracy_table({name: _means_of(one) for name, one in results.items()})

    def _measured(self, train: Extracted, test: Extracted) -> Result:
        labels = class_labels(train, self.label)
        truth = class_labels(test, self.label)
        features = getattr(train, self.features)
        queries = unit(getattr(test, self.features))
        classes = self.train.targets[self.label]["classes"]

        def accuracy(rows: np.ndarray) -> dict[str, float]:
            scores = np.full((len(queries), classes), -np.inf)
            seen = np.unique(labels[rows])  # a class without a row has no prototype
            scores[:, seen] = queries @ class_prototypes(features[rows], labels[rows]).T
            return top_accuracy(scores, truth)

        numbers: dict[str, Any] = {
            "protocol": self._describe(train, test),
            "class_means": accuracy(np.arange(len(labels))),
            "few_shot": {},
        }
        for count in self.per_class:
            try:
                drawn = [
                    few_rows(labels, count, seed=(self.seed, draw))
                    for draw in range(self.draws)
                ]
            except InputError as error:  # this number alone is impossible
                reasons = numbers.setdefault("not_computed", {})
                reasons[f"{count}-shot class means"] = str(error)
                continue
            means = over_draws([accuracy(rows) for rows in drawn])
            numbers["few_shot"][str(count)] = means
        if len(np.unique(labels)) == 1:
            numbers["note"] = "one class in train: every row gets it"
        return _result(self, {**numbers, "machine": hosts.machine()})

    def _describe(self, train: Extracted, test: Extracted) -> dict[str, Any]:
        def rows(split: str, source: Source, extracted: Extracted) -> dict[str, Any]:
            name = in_words(self.spec, split, source)
            return {"source": name, "rows": len(extracted.index)}

        return {
            "train": rows("train", self.train, train),
            "test": rows("test", self.test, test),
            "views": in_words(self.spec, "views", self.views),
            "label": self.label,
            "modality": self.modality,
            "features": {
                "read": self.features,
                "dimensions": getattr(train, self.features).shape[1],
            },
            "prototypes": "mean of the unit features of a class, unit length",
            "per_class": list(self.per_class),
            "draws": self.draws,
            "seed": self.seed,
            "chosen": "nothing; every number is reported",
        }


def class_prototypes(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean of the unit features of each class that occurs, at unit length.

    features: float[n, d]; labels: int[n] -> float64[classes, d], in order of the label.
    """
    rows = unit(features)
    classes, place = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), features.shape[1]))
    np.add.at(sums, place, rows)
    return unit(sums)


class _PromptViews:
    """Views of a prompt: its tokens as the first view of a modality, all else missing.

    like: the views of any example, for the shapes and types that the model takes.
    """

    def __init__(self, like: Mapping[str, Mapping[str, Any]], text: str):
        if text not in like["views"]:
            raise InputError(
                f"modality '{text}' is not among the views {sorted(like['views'])}: "
                "the run has no text tower; set this evaluation's `text`, or classify "
                "by examples (by=examples)"
            )
        self._like, self._text = like, text

    def checked(self, tokens: np.ndarray) -> np.ndarray:
        """Return tokens in the type of the views. Raises InputError for their shape."""
        view = self._like["views"][self._text][0]
        if np.shape(tokens) != view.shape:
            raise InputError(
                f"the tokens of a prompt have shape {np.shape(tokens)}, but views of "
                f"'{self._text}' have {view.shape}; correct the evaluation's tokens"
            )
        return np.asarray(tokens, view.dtype)

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        views = {name: np.zeros_like(x) for name, x in self._like["views"].items()}
        present = {n: np.zeros_like(mask) for n, mask in self._like["present"].items()}
        views[self._text][0] = example[self._text]
        present[self._text][0] = True
        return {"views": views, "present": present, "targets": {}}


def _first_views(source: Source, views: Callable) -> Mapping[str, Any]:
    """Return the views of the first readable example."""
    for row in range(len(source)):
        try:
            return views(source[row], np.random.default_rng(0))
        except CorruptRecord:
            continue
    raise InputError(f"{source!r} has no readable row")


def _check(features: str, batch_size: int) -> None:
    if features not in ("h", "z"):
        raise InputError(f"evaluation: features is {features!r}, not 'h' or 'z'")
    check_range(1, batch_size=batch_size)


def _means_of(numbers: Mapping) -> dict[str, Mapping]:
    """Return {column: accuracy} of a result of `ClassMeans`."""
    few = {f"class means {n}-shot %": one for n, one in numbers["few_shot"].items()}
    return {"class means %": numbers["class_means"], **few}


def _summary(columns: Mapping[str, float], numbers: Mapping) -> str:
    parts = [
        f"{name.removesuffix(' %')} {value:.2f} %" for name, value in columns.items()
    ]
    reasons = [f"no {n}: {why}" for n, why in numbers.get("not_computed", {}).items()]
    reasons += [numbers["note"]] if "note" in numbers else []
    return "; ".join([", ".join(parts), *reasons])


def _result(evaluation: Any, numbers: dict[str, Any]) -> Result:
    return Result(
        numbers,
        summary=evaluation.summary(numbers),
        columns=evaluation.columns(numbers),
        standard_errors=evaluation.standard_errors(numbers),
    )
