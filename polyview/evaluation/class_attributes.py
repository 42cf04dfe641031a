"""The attributes of the classes of a split, and features of several splits.

Every example carries the vector of its class; a table has each class once. Checks say
which classes cannot be told apart, have no attributes, or are not unseen at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyview.data.sources.labels import labels_of
from polyview.data.sources.protocol import Source
from polyview.errors import InputError
from polyview.evaluation.base import in_words
from polyview.evaluation.classification import check_target, class_labels, class_names
from polyview.evaluation.features import Extracted, unit


class ClassTable(NamedTuple):
    """The classes of a split, and the attributes of each.

    classes: int[k], ascending; vectors: float64[k, a], of these classes.
    """

    classes: np.ndarray
    vectors: np.ndarray


def check_attributes(source: Source, split: str, label: str, attributes: str) -> None:
    """Raise InputError unless a source has classes, and attributes of classes."""
    check_target(source, split, label)
    if attributes not in source.targets:
        raise InputError(
            f"evaluation: the {split} source has no target '{attributes}', only "
            f"{', '.join(source.targets)}; name data with attributes of their classes"
        )
    kind = source.targets[attributes]["kind"]
    if kind not in ("multi-label", "regression"):
        raise InputError(
            f"evaluation: target '{attributes}' of {split} is of kind '{kind}', not "
            "'multi-label' or 'regression'; correct the name of the attributes"
        )


def check_same_attributes(train: Source, other: Source, attributes: str) -> None:
    """Raise InputError if a column means another attribute in another source."""
    names, others = (s.targets[attributes].get("names") for s in (train, other))
    if names and others and list(names) != list(others):
        raise InputError(
            f"evaluation: '{attributes}' has {len(names)} names in train and "
            f"{len(others)} in another source, or other ones; give all sources the "
            "same attributes in the same order"
        )


def check_named_sources(sources: Mapping[str, Source], name: str) -> None:
    """Raise InputError unless this is {name: source}, with at least one."""
    if not isinstance(sources, Mapping) or not sources:
        raise InputError(
            f"evaluation: {name} must name its sources, such as "
            f'{name}={{"new fonts": source}}'
        )


def class_table(
    labels: np.ndarray, vectors: np.ndarray, split: str, names: Sequence[str]
) -> ClassTable:
    """Return the attributes of each class that occurs.

    labels: int[n]; vectors: [n, a], those of each row's class; names: of all classes.
    Raises InputError for a class with attributes that are not finite, without any, or
    with several vectors.
    """
    vectors = np.asarray(vectors, np.float64)
    if vectors.ndim != 2:
        raise InputError(
            f"evaluation: attributes of {split} have shape {vectors.shape[1:]} a row; "
            "they must be one vector"
        )
    classes, first, place = np.unique(labels, return_index=True, return_inverse=True)
    table = vectors[first]
    for bad, what in (
        (~np.isfinite(vectors).all(axis=1), "with values that are not finite"),
        (~vectors.any(axis=1), "none of which is set: a class without attributes"),
        ((vectors != table[place]).any(axis=1), "that differ from row to row"),
    ):
        if bad.any():
            raise InputError(
                f"evaluation: {named(np.unique(labels[bad]), names)} of {split} has "
                f"attributes {what}; correct the data, or leave the class out"
            )
    return ClassTable(classes, table)


def check_tables(
    train: ClassTable,
    held: Mapping[str, ClassTable],
    seen: Mapping[str, ClassTable],
    names: Sequence[str],
    attribute_names: Sequence[str] | None = None,
) -> None:
    """Check that classes are told apart by attributes that training has, without leaks.

    train: the seen classes; held: splits of other classes, by name; seen: splits of
    other images of the seen classes. Raises InputError for vectors of several widths, a
    class of `held` in train, a class of `seen` that is not, a class whose vector
    differs between splits, two classes with one vector, as classifiers read them, and
    an attribute that is the same for all classes of train, but not for one of `held`.
    """
    width = train.vectors.shape[1]
    for split, table in {**held, **seen}.items():
        if table.vectors.shape[1] != width:
            raise InputError(
                f"evaluation: classes have {width} attributes in train, but "
                f"{table.vectors.shape[1]} in {split}; give all sources the same ones"
            )
    for split, table in held.items():
        leaked = np.intersect1d(table.classes, train.classes)
        if len(leaked):
            raise InputError(
                f"evaluation: {named(leaked, names)} of {split} is also in train: a "
                "class that training has seen is not unseen; correct the splits"
            )
    for split, table in seen.items():
        other = np.setdiff1d(table.classes, train.classes)
        if len(other):
            raise InputError(
                f"evaluation: {named(other, names)} of {split} is not in train; "
                "that source must have other images of the classes of train"
            )
    vectors: dict[int, np.ndarray] = {}
    for split, table in {"train": train, **held, **seen}.items():
        for number, vector in zip(table.classes.tolist(), table.vectors, strict=True):
            if not np.array_equal(vectors.setdefault(number, vector), vector):
                raise InputError(
                    f"evaluation: {named([number], names)} has other attributes in "
                    f"{split} than in another split; correct the data"
                )
    numbers = np.array([*vectors])
    every = ClassTable(numbers, np.stack([*vectors.values()]))
    rounded = np.round(scaled({"": every})[0][""].vectors, 9)
    _, place, count = np.unique(
        rounded, axis=0, return_inverse=True, return_counts=True
    )
    if (count > 1).any():
        same = numbers[place.ravel() == count.argmax()]
        raise InputError(
            f"evaluation: {named(same, names)} have one and the same attributes, so "
            "nothing tells them apart; keep one of them, or add attributes"
        )
    constant = (train.vectors == train.vectors[0]).all(axis=0)
    for split, table in held.items():
        new = constant & (table.vectors != train.vectors[0])
        if new.any():
            columns = np.flatnonzero(new.any(axis=0))
            known = attribute_names or [str(c) for c in range(width)]
            shown = ", ".join(f"'{known[c]}'" for c in columns[:5])
            classes = table.classes[new.any(axis=1)]
            raise InputError(
                f"evaluation: {named(classes, names)} of {split} needs attributes "
                f"that all classes of train have alike ({shown}), so that they cannot "
                "be learnt; leave these classes out, or train on classes with them"
            )


def scaled(tables: Mapping[str, ClassTable]) -> tuple[dict[str, ClassTable], str]:
    """Return the tables as classifiers read them, and what was done, in words.

    If any value is outside 0 .. 1, each vector is scaled to unit length.
    """
    low = min(table.vectors.min() for table in tables.values())
    high = max(table.vectors.max() for table in tables.values())
    if low >= 0 and high <= 1:
        return dict(tables), "as given, within 0 .. 1"
    units = {n: t._replace(vectors=unit(t.vectors)) for n, t in tables.items()}
    return units, (
        f"each class's vector divided by its length, since values are {low:g} .. "
        f"{high:g}, not within 0 .. 1"
    )


def named(classes: Sequence[int] | np.ndarray, names: Sequence[str]) -> str:
    """Return "class 'a'" or "classes 'a', 'b' ...", the first five by name."""
    shown = ", ".join(f"'{names[c]}'" for c in classes[:5])
    more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
    return f"class{'es' if len(classes) > 1 else ''} {shown}{more}"


class Learnt(NamedTuple):
    """The classes that an encoder was trained on, by name.

    names: None if they are not all known.
    """

    names: frozenset[str] | None = None

    @classmethod
    def of(cls, sources: Sequence[Source] | None, label: str) -> "Learnt":
        """Read the labels of sources; they are not known without labels, or for None.

        A row without a class, or one that cannot be read, may show any.
        """
        if sources is None:
            return cls()
        found: set[str] = set()
        for source in sources:
            if label not in source.targets:
                return cls()
            labels = np.unique(labels_of(source, label))
            if (labels < 0).any():
                return cls()
            names = class_names(source.targets[label])
            found |= {names[number] for number in labels}
        return cls(frozenset(found))

    def check(self, table: ClassTable, split: str, names: Sequence[str]) -> None:
        """Raise InputError if the encoder was trained on a class of a table."""
        known = [c for c in table.classes if names[c] in (self.names or ())]
        if known:
            raise InputError(
                f"evaluation: the encoder was trained on {named(known, names)} of "
                f"{split}: no zero-shot result; train it on the seen classes"
            )

    def __str__(self) -> str:
        if self.names is None:
            return "what it was trained on is not known here"
        return "trained on none of the classes of other splits (its data were read)"


def described_splits(
    spec: Mapping | None,
    sources: Mapping[str, Source],
    read: Mapping[str, Extracted],
    tables: Mapping[str, ClassTable],
) -> dict[str, dict[str, Any]]:
    """Return what a protocol says of each split: source, rows, classes.

    spec: of the evaluation. The source of a split "unseen NAME" stands at unseen.NAME.
    """
    described = {}
    for split, source in sources.items():
        group, _, name = split.partition(" ")
        part = (spec or {}).get(group) if name else spec
        described[split] = {
            "source": in_words(part, name or group, source),
            "rows": len(read[split].index),
            "classes": len(tables[split].classes),
        }
    return described


def table_of(
    extracted: Extracted, split: str, label: str, attributes: str, names: Sequence[str]
) -> ClassTable:
    """Return the classes of a split. Raises InputError as `class_table` does."""
    labels = class_labels(extracted, label)
    if attributes not in extracted.targets:
        raise InputError(
            f"evaluation: its views pass on no target '{attributes}'; set its "
            f"views.targets=('{label}', '{attributes}')"
        )
    return class_table(labels, extracted.targets[attributes], split, names)


class Standard(NamedTuple):
    """Shift and scale, float32[d], that standardise features over the rows of train."""

    shift: np.ndarray
    scale: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.shift) / self.scale


def standardised_over(features: np.ndarray) -> Standard:
    """Return the standardisation by the mean and deviation of rows, float[n, d].

    A dimension that hardly varies becomes zero.
    """
    shift = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = features.std(axis=0, dtype=np.float64).astype(np.float32)
    return Standard(shift, np.where(scale > 1e-3 * scale.max(initial=0), scale, np.inf))
