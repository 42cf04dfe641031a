"""What evaluations of classifiers share: labels, accuracy, draws of a few rows.

Accuracy p on n rows is a mean of n zeros and ones: its standard error is
sqrt(p (1 - p) / n). It leaves out how the training varies from seed to seed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from polyview.data.sources.manifest import PARTLY
from polyview.data.sources.protocol import Source
from polyview.errors import InputError


def check_target(source: Source, split: str, label: str) -> None:
    """Raise InputError unless `label` is a target of the source and a class."""
    if not source.targets:
        raise InputError(
            f"evaluation: the {split} source has no labels; set {split}.name and "
            f"{split}.split of this evaluation to data with labels, or measure without "
            "labels: --evaluation configs/evaluations/frozen.py"
        )
    if label not in source.targets:
        raise InputError(
            f"evaluation: the {split} source has no target '{label}', only "
            f"{', '.join(source.targets)}; correct its label"
        )
    kind = source.targets[label]["kind"]
    if kind == PARTLY:
        raise InputError(
            f"evaluation: some rows of the {split} source have no '{label}'; set its "
            "labelled=True, which takes the others"
        )
    if kind != "class":
        raise InputError(
            f"evaluation: target '{label}' is of kind '{kind}', not 'class'; "
            "correct its label"
        )


def check_same_classes(train: Source, test: Source, label: str) -> None:
    """Raise InputError if a number means another class in test than in train."""
    names, others = (s.targets[label].get("names") for s in (train, test))
    if names and others and list(names) != list(others):
        raise InputError(
            f"evaluation: '{label}' has other classes in train ({', '.join(names[:3])} "
            f"...) than in test ({', '.join(others[:3])} ...); give both sources the "
            "same names"
        )


class Targeted(Protocol):
    """Rows with targets, such as `polyview.evaluation.features:Extracted`."""

    @property
    def targets(self) -> dict[str, np.ndarray]: ...


def class_labels(extracted: Targeted, label: str) -> np.ndarray:
    """Return the target `label` of each row, int64[n].

    Raises InputError if the views do not pass it on.
    """
    if label not in extracted.targets:
        raise InputError(
            f"evaluation: its views pass on no target '{label}'; "
            f"set its views.targets=('{label}',)"
        )
    return extracted.targets[label].astype(np.int64)


def class_names(task: Mapping[str, Any]) -> list[str]:
    """Return the names of a target's classes; their numbers if it has no names."""
    return list(task.get("names") or map(str, range(task["classes"])))


def top_accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the accuracy of the class with the highest score, and what to see it by.

    scores: float[n, classes]; labels: int[n]. Beside "top1" and, for more than five
    classes, "top5": its "standard_error"; "balanced_accuracy", the mean over the
    classes of `labels` of the accuracy on their rows; "majority_class", the share of
    the most frequent label, which a constant answer reaches.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    hit = order == labels[:, None]
    top = {"top1": float(hit[:, 0].mean())}
    if scores.shape[1] > 5:
        top["top5"] = float(hit[:, :5].any(axis=1).mean())
    rows = np.bincount(labels)
    right = np.bincount(labels, weights=hit[:, 0])
    return top | {
        "standard_error": standard_error(top["top1"], len(labels)),
        "balanced_accuracy": float(np.mean(right[rows > 0] / rows[rows > 0])),
        "majority_class": float(rows.max() / len(labels)),
    }


def standard_error(accuracy: float, rows: int) -> float:
    """Return sqrt(p (1 - p) / n), the standard error of an accuracy p on n rows."""
    return math.sqrt(accuracy * (1 - accuracy) / rows)


def few_rows(labels: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """Return `count` random rows of every class that occurs, int[count * classes].

    labels: int[n]. With one seed, a smaller count gives a part of a larger one's rows.
    Raises InputError if a class has fewer rows.
    """
    rng = np.random.default_rng(seed)
    classes, rows = np.unique(labels, return_counts=True)
    if rows.min() < count:
        raise InputError(
            f"{count} rows a class: class {classes[rows.argmin()]} has only "
            f"{rows.min()} in train"
        )
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == c))[:count] for c in classes]
    )


def over_draws(scores: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the means over D draws of what `top_accuracy` returned for each.

    "draws" has each top-1 accuracy, with deviation s (n - 1);
    "standard_error_of_draws" is s / sqrt(D). "standard_error" is that of the test rows,
    too: sqrt(s^2 / D + e^2), with e the mean of theirs. Both are None for one draw.
    """
    means = {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
    draws = [one["top1"] for one in scores]
    of_draws, both = None, None
    if len(draws) > 1:
        of_draws = float(np.std(draws, ddof=1) / math.sqrt(len(draws)))
        both = math.hypot(of_draws, means["standard_error"])
    errors = {"standard_error": both, "standard_error_of_draws": of_draws}
    return means | errors | {"draws": draws}


def errors_of(
    measured: Mapping[str, Mapping], protocol: Mapping[str, Any]
) -> dict[str, float]:
    """Return the standard errors of accuracies in %, {column: standard error}.

    measured: {column: what `top_accuracy` or `over_draws` returned}. Results of earlier
    versions hold none; theirs come from the rows of test that the protocol names.
    """
    rows = protocol.get("test", {}).get("rows")
    errors = {}
    for column, scores in measured.items():
        error = scores.get("standard_error")
        if "standard_error" not in scores and rows:
            error = standard_error(scores["top1"], rows)
        if error is not None:
            errors[column] = 100 * error
    return errors


def accuracy_table(
    measured: Mapping[str, Mapping[str, Mapping]],
) -> tuple[list[str], list[list[str]]]:
    """Return head and body of a table of accuracies in %.

    measured: {model: {column: what `top_accuracy` or `over_draws` returned}}. Rows
    without a balanced accuracy, from earlier versions, are left out.
    """
    head = ["", "top-1 %", "top-5 %", "balanced %", "majority class %"]
    return head, list(_lines(measured))


def percent(value: float | None, error: float | None = None) -> str:
    """Return a share in %, with its standard error if known; a dash for None."""
    if value is None:
        return "–"
    return f"{100 * value:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _lines(measured: Mapping[str, Mapping[str, Mapping]]) -> Iterator[list[str]]:
    for model, columns in measured.items():
        for column, scores in columns.items():
            if "balanced_accuracy" in scores:
                top = percent(scores["top1"], scores.get("standard_error"))
                rest = ("top5", "balanced_accuracy", "majority_class")
                name = f"{model}: {column.removesuffix(' %')}"
                yield [name, top, *(percent(scores.get(one)) for one in rest)]
