"""How well a score of reliability ranks wrong or foreign rows last.

A higher score means more reliable. Every measure depends on the order of the scores
alone, not on their units, and not on the order of the rows: rows with equal scores are
accepted in random order, and what is returned is the exact expectation over it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from polyview.errors import InputError

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996, and means 29 rows
SIDES = ("reliable", "unreliable")


def auroc(
    positive: np.ndarray, negative: np.ndarray, names: tuple[str, str] = SIDES
) -> float:
    """Return the probability that a reliable row scores above an unreliable one.

    positive: float[n], scores of reliable rows; negative: float[m], of unreliable ones.
    Pairs with equal scores count 1/2: this is U / (n m) of Mann & Whitney 1947, the
    area under the ROC curve. Scores may be infinite. Raises InputError for NaN, and if
    a side has no rows; `names` of the sides are for the message.
    """
    above, below = _sides(positive, negative, names)
    below = np.sort(below)
    less = np.searchsorted(below, above, side="left").sum()
    less_or_equal = np.searchsorted(below, above, side="right").sum()
    return float((less + less_or_equal) / (2 * len(above) * len(below)))


def fpr_at(
    positive: np.ndarray,
    negative: np.ndarray,
    recall: float = 0.95,
    names: tuple[str, str] = SIDES,
) -> float:
    """Return the share of unreliable rows that score at least the threshold.

    The threshold is the largest at which a share `recall`, in (0, 1], of the reliable
    rows do. Arguments and errors are as in `auroc`.
    """
    if not 0 < recall <= 1:
        raise InputError(f"recall={recall}: it must be above 0 and at most 1")
    above, below = _sides(positive, negative, names)
    needed = max(1, int(np.ceil(recall * len(above) - _ROUNDING)))
    return float(np.mean(below >= np.sort(above)[-needed]))


class RiskCoverage(NamedTuple):
    """Share of errors among the rows accepted, at each distinct score as threshold.

    coverage: float64[k], shares of rows accepted, ascending to 1; risk: float64[k].
    """

    coverage: np.ndarray
    risk: np.ndarray


def risk_coverage(scores: np.ndarray, right: np.ndarray) -> RiskCoverage:
    """Return the risk-coverage curve (El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017).

    scores: float[n]; right: bool[n], whether the answer to a row is right. Rows with
    equal scores make one point. Between two points, the expected number of errors is
    linear in the number of rows accepted, which the risk is not. Raises InputError for
    no rows, NaN, other lengths, and values of `right` other than 0 and 1.
    """
    accepted, errors = _accepted(scores, right)
    return RiskCoverage(accepted / accepted[-1], errors / accepted)


def aurc(scores: np.ndarray, right: np.ndarray) -> float:
    """Return the area under the risk-coverage curve; lower is better.

    The mean, over k = 1 ... n, of the expected share of errors among the k rows with
    the highest scores (the curve: Geifman & El-Yaniv 2017; its area: Geifman, Uziel &
    El-Yaniv 2019). The least that any score reaches is not 0 where there are errors.
    Arguments and errors are as in `risk_coverage`.
    """
    count = np.arange(1, np.size(scores) + 1)
    return float(np.mean(_expected_errors(scores, right, count) / count))


def aucea(scores: np.ndarray, right: np.ndarray) -> float:
    """Return the area under coverage and accuracy of the rows accepted, 1 - `aurc`.

    The mean, over coverages k / n for k = 1 ... n, of the expected accuracy of the k
    rows with the highest scores: the area of Ji et al. 2021 (arXiv 2106.08365), with
    every row counted once. Their code instead places thresholds at even steps between
    the lowest and the highest finite score and joins the points by straight lines, from
    accuracy 0 at coverage 0. That depends on the units of the score, and takes away
    half of the area up to the first point, which is much where many rows tie at the
    top. Arguments and errors are as in `risk_coverage`.
    """
    return 1 - aurc(scores, right)


def accuracy_after_discarding(
    scores: np.ndarray, right: np.ndarray, shares: Sequence[float]
) -> np.ndarray:
    """Return the expected accuracy of what is left of n rows, float64[len(shares)].

    shares: of rows to discard, each in [0, 1), lowest scores first; of a share, the
    whole rows in it are, and one always stays. Other arguments and errors are as in
    `risk_coverage`.
    """
    share = np.asarray(shares, np.float64)
    if share.ndim != 1 or not ((share >= 0) & (share < 1)).all():
        raise InputError(
            f"shares of rows to discard are {shares}; give a list of numbers of at "
            "least 0 and below 1"
        )
    rows = np.size(scores)
    kept = np.maximum(rows - np.floor(share * rows + _ROUNDING), 1)
    return 1 - _expected_errors(scores, right, kept) / kept


class Interval(NamedTuple):
    """A statistic, its interval of 95 % and its standard error, by the bootstrap.

    undefined: the number of resamples left out, for which there is no statistic.
    """

    value: float
    low: float
    high: float
    standard_error: float
    undefined: int


def bootstrap(
    statistic: Callable[..., float],
    arrays: Sequence[np.ndarray],
    resamples: int = 1000,
    seed: int | Sequence[int] = 0,
) -> Interval:
    """Return statistic(*arrays) and how much it varies from one set of rows to another.

    arrays: each [n, ...], with an n of its own. Their rows are resampled array by
    array, so that the numbers of reliable and unreliable rows stay; columns of one
    array stay together, such as (score, right) for `aurc`, or the scores of two methods
    for the difference of theirs. low, high: percentiles 2.5 and 97.5 of the resamples
    (Efron 1979). Resamples for which `statistic` raises InputError or is not finite,
    such as those with rows of one class only, are left out. The interval leaves out
    how the training varies from seed to seed. Raises InputError for an array without
    rows, and if fewer than two resamples are left.
    """
    given = [np.asarray(array) for array in arrays]
    if not given or any(array.ndim == 0 or len(array) == 0 for array in given):
        raise InputError("bootstrap: give a list of arrays with one row or more each")
    value = float(statistic(*given))
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = [array[rng.integers(0, len(array), len(array))] for array in given]
        try:
            resampled = float(statistic(*drawn))
        except InputError:
            continue
        if np.isfinite(resampled):
            values.append(resampled)
    if len(values) < 2:
        raise InputError(
            f"bootstrap: the statistic is defined for {len(values)} of {resamples} "
            "resamples, and two are needed; use more rows or more resamples"
        )
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(
        value=value,
        low=float(low),
        high=float(high),
        standard_error=float(np.std(values, ddof=1)),
        undefined=resamples - len(values),
    )


def _sides(
    positive: np.ndarray, negative: np.ndarray, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    for side, name in zip((positive, negative), names, strict=True):
        if np.size(side) == 0:
            raise InputError(
                f"{names[0]} against {names[1]} rows: there are no {name} rows; "
                "evaluate on data that have both"
            )
    above, below = (
        _checked(side, f"{name} rows")
        for side, name in zip((positive, negative), names, strict=True)
    )
    return above, below


def _checked(scores: np.ndarray, of: str) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise InputError(
            f"the scores of {of} have the shape {scores.shape}; give one number a row, "
            "and one row or more"
        )
    undefined = np.isnan(scores)
    if undefined.any():
        raise InputError(
            f"{undefined.sum()} of {len(scores)} scores of {of} are NaN (first: row "
            f"{undefined.argmax()}); check the features or logits they come from"
        )
    return scores


def _accepted(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows score at least each distinct score, from the highest on, and
    how many of them are wrong: int[k] and float64[k]."""
    scores, right = _checked(scores, "rows"), np.asarray(right)
    if right.shape != scores.shape or not np.isin(right, (0, 1)).all():
        raise InputError(
            f"right: expected {len(scores)} values, each 0 or 1, one for each score, "
            f"not those of shape {right.shape}; compare predictions with labels first"
        )
    _, place = np.unique(-scores, return_inverse=True)
    wrong = np.bincount(place, weights=1.0 - right)
    return np.cumsum(np.bincount(place)), np.cumsum(wrong)


def _expected_errors(
    scores: np.ndarray, right: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """Return the expected errors among the `count` highest scores, float64[k].

    A row drawn from those of one score is wrong as often as they are on average, so the
    expectation grows linearly from one distinct score to the next.
    """
    accepted, errors = _accepted(scores, right)
    return np.interp(count, np.append(0, accepted), np.append(0, errors))
