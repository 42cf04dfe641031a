"""How well scores of reliability rank wrong answers and foreign images.

What is measured of each score, with intervals over resamples of rows, and what of it a
table and a figure show.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from polyview.evaluation.reliability_scores import Scores
from polyview.evaluation.selective import (
    accuracy_after_discarding,
    aucea,
    aurc,
    auroc,
    bootstrap,
    fpr_at,
)

DISCARDED = (0.1, 0.2, 0.3, 0.5)
SHOWN = ("maximum softmax", "density", "error rate")  # in the columns that compare runs
_POINTS = 101  # of a curve
_EXAMPLES = 8  # rows at each end of a score


def not_ranked(right: np.ndarray) -> str:
    """Return why wrong answers cannot be ranked, or "".

    right: bool[n], of test rows.
    """
    if right.any() and not right.all():
        return ""
    return (
        f"all {len(right)} answers are {'right' if right.any() else 'wrong'}: "
        "nothing is to be ranked"
    )


def measured(
    scores: Scores, right: np.ndarray, *, resamples: int, seed: int
) -> dict[str, Any]:
    """Measure each score on wrong answers and on foreign images.

    right: bool[n], of test rows; if they do not differ, nothing is "wrong".
    """
    interval = partial(_interval, resamples=resamples, seed=seed)
    of_scores: dict[str, Any] = {}
    for name, by_split in scores.items():
        own: dict[str, Any] = {"foreign": {}}
        test = by_split["test"]
        if not not_ranked(right):
            own["wrong"] = _wrong(test, right, interval)
        foreign = {s: score for s, score in by_split.items() if s != "test"}
        for split, score in foreign.items():
            own["foreign"][split.removeprefix("foreign ")] = {
                **interval(auroc, [test, score]),
                "fpr95": fpr_at(test, score),
            }
        if foreign:
            own["mean_foreign"] = interval(_mean_auroc, [test, *foreign.values()])
        of_scores[name] = own
    return of_scores


def _wrong(score: np.ndarray, right: np.ndarray, interval: Callable) -> dict[str, Any]:
    pairs = np.stack([score, right.astype(np.float64)], axis=1)

    def area(rows: np.ndarray) -> float:
        return aucea(rows[:, 0], rows[:, 1])

    areas = interval(area, [pairs], "aucea")
    found = interval(auroc, [score[right], score[~right]]) | areas
    discarded = accuracy_after_discarding(score, right, DISCARDED)
    return found | {
        "fpr95": fpr_at(score[right], score[~right]),
        "aurc": aurc(score, right),
        "accuracy_after_discarding": dict(
            zip(map(str, DISCARDED), discarded.tolist(), strict=True)
        ),
    }


def _interval(
    statistic: Callable,
    arrays: list[np.ndarray],
    name: str = "auroc",
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    found = bootstrap(statistic, arrays, resamples, seed)
    ending = "" if name == "auroc" else f"_{name}"
    return {
        name: found.value,
        f"low{ending}": found.low,
        f"high{ending}": found.high,
        f"standard_error{ending}": found.standard_error,
    }


def _mean_auroc(test: np.ndarray, *foreign: np.ndarray) -> float:
    return float(np.mean([auroc(test, one) for one in foreign]))


def curves(scores: Scores, right: np.ndarray) -> dict[str, np.ndarray]:
    """Return the shares of test rows accepted and, of score i, the errors among them.

    right: bool[n] -> "coverage" and "risk_i", float[points].
    """
    coverage = np.linspace(0, 1, _POINTS)[1:]
    data: dict[str, np.ndarray] = {"coverage": coverage}
    for number, by_split in enumerate(scores.values()):
        kept = accuracy_after_discarding(
            by_split["test"], right, [float(share) for share in 1 - coverage]
        )
        data[f"risk_{number}"] = 1 - kept
    return data


def extremes(scores: Scores) -> dict[str, np.ndarray]:
    """Return {"SCORE: most reliable", and least: some test rows, that end first}."""
    ends = {}
    for name in SHOWN:
        if name in scores:
            order = np.argsort(-scores[name]["test"], kind="stable")
            ends[f"{name}: most reliable"] = order[:_EXAMPLES]
            ends[f"{name}: least reliable"] = order[::-1][:_EXAMPLES]
    return ends


def columns(numbers: Mapping) -> dict[str, tuple[float, float | None]]:
    """Return {column: (value, standard error)} of a result, as shares of one."""
    accuracy = numbers["classifier"]
    columns: dict[str, tuple[float, float | None]] = {
        "accuracy %": (accuracy["top1"], accuracy["standard_error"])
    }
    for name in SHOWN:
        own = numbers["scores"].get(name, {})
        if "wrong" in own:
            wrong = own["wrong"]
            columns[f"wrong, {name} %"] = wrong["auroc"], wrong["standard_error"]
        if "mean_foreign" in own:
            mean = own["mean_foreign"]
            columns[f"foreign, {name} %"] = mean["auroc"], mean["standard_error"]
    return columns


def choices(numbers: Mapping) -> dict[str, Mapping]:
    """Return {score: how its bandwidth was chosen} of a result, see `Scored`."""
    patterns = numbers.get("patterns", {})
    of_scores = {"density": "density", "error rate": "error_rate"}
    return {score: patterns[k] for score, k in of_scores.items() if k in patterns}


def table(results: Mapping[str, Mapping]) -> tuple[list[str], list[list[str]]]:
    """Return head and body of a table of all scores, with intervals and bandwidths.

    results: {model: numbers}; lines name the model if there are several.
    """
    foreign = list(
        dict.fromkeys(
            name
            for numbers in results.values()
            for own in numbers["scores"].values()
            for name in own["foreign"]
        )
    )
    head = ["score [95 % interval]", "wrong: AUROC %", "AUCEA %", "FPR95 %"]
    head += [text for f in foreign for text in (f"{f}: AUROC %", "FPR95 %")]
    body = []
    for model, numbers in results.items():
        chosen = choices(numbers)
        for score, own in numbers["scores"].items():
            name = f"{model}: {score}" if len(results) > 1 else score
            if score in chosen:
                name += f", bandwidth {chosen[score]['bandwidth']:g}"
            wrong = own.get("wrong", {})
            line = [name, _cell(wrong), _cell(wrong, "aucea"), _cell(wrong, "fpr95")]
            for f in foreign:
                measured = own["foreign"].get(f, {})
                line += [_cell(measured), _cell(measured, "fpr95")]
            body.append(line)
    return head, body


def _cell(measured: Mapping[str, float], name: str = "auroc") -> str:
    """Return a measure in %, with its interval if known; a dash for none."""
    if name not in measured:
        return "–"
    text = f"{100 * measured[name]:.1f}"
    ending = "" if name == "auroc" else f"_{name}"
    low, high = (measured.get(f"{end}{ending}") for end in ("low", "high"))
    if low is None or high is None:
        return text
    return f"{text} [{100 * low:.1f}, {100 * high:.1f}]"
