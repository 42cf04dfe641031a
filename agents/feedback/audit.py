"""How far a judge can be trusted: its bias, its consistency, and its accuracy.

Accuracy is against true values, where there are any: the share of pairs whose score has
the sign of the difference of values. Pairs of equal values and scores of 0 decide
nothing and are left out. Intervals are Wilson's, of 95 %, as if pairs were independent;
those of correlations resample the pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from agents.environments.captions import shows_object
from agents.feedback.labels import SCORED, UNKNOWN, Labels, contradictions
from polyview.errors import InputError
from polyview.evaluation.selective import bootstrap
from polyview.rl.aggregates import success_interval

_GROUPS = ("neither", "one", "both")
_DRAWS = 200  # of a bootstrap


def audit(pairs: Sequence[Mapping[str, Any]], labels: Labels) -> dict[str, Any]:
    """Return what `labels` say of the judge on those of `pairs` that they have.

    pairs         with a label; lines, unknown, contradictions: of the labels
    first_answers the share of answers, to both questions, that prefer what is shown
                  first: 0.5 without bias; agreement: of pairs whose answer is the same
                  in both orders
    accuracy      of the score; accuracy_one_order: of the first question alone;
                  each with its interval and the number of pairs
    by_confidence halves and quarters of the pairs by the size of the score, surest
                  first; by_seen: both captions show an object of BabyAI, one or none
    spearman, kendall    of score and difference of values; with an interval
    """
    there = {int(pair["pair"]): pair for pair in pairs}
    kept = np.isin(labels.ids, np.fromiter(there, np.int64, len(there)))
    lines = Labels(labels.pairs, labels.header, *(part[kept] for part in labels[2:]))
    scored, unknown = lines.given == SCORED, lines.given == UNKNOWN
    first, second = lines.first[scored], lines.second[scored]
    found: dict[str, Any] = {
        "pairs": len(set(lines.ids.tolist())),
        "lines": len(lines.ids),
        "unknown": int(unknown.sum()),
        "contradictions": contradictions(lines),
    }
    if len(first):
        # An answer that prefers neither is half an answer for each.
        answers = np.concatenate([np.sign(first), -np.sign(second)])
        found["first_answers"] = float((1 + answers.mean()) / 2)
        found["agreement"] = float(np.mean(np.sign(first) == np.sign(second)))
    own = [there[number] for number in lines.ids[~unknown].tolist()]
    values = np.array([pair["value"] for pair in own], np.float64).reshape(-1, 2)
    gaps, scores = values[:, 0] - values[:, 1], lines.scores()[~unknown]
    valued = np.isfinite(gaps)
    found |= {"valued": int(valued.sum()), "ties": int((scores == 0).sum())}
    if not valued.any():
        return found
    gaps, scores, one = gaps[valued], scores[valued], lines.first[~unknown][valued]
    found["accuracy"] = share(scores, gaps)
    found["accuracy_one_order"] = share(one, gaps)
    found["by_confidence"] = {
        "halves": _by_confidence(scores, gaps, 2),
        "quarters": _by_confidence(scores, gaps, 4),
    }
    captions = [(pair["caption_1"], pair["caption_2"]) for pair in own]
    seen = np.array([sum(map(shows_object, both)) for both in captions])[valued]
    if seen.any():
        found["by_seen"] = {
            name: share(scores[seen == number], gaps[seen == number])
            for number, name in enumerate(_GROUPS)
        }
    found["spearman"] = _resampled(spearman, scores, gaps)
    found["kendall"] = _resampled(kendall, scores, gaps)
    return found


def share(scores: np.ndarray, gaps: np.ndarray) -> dict[str, Any]:
    """Return the share of pairs whose score has the sign of their gap, of those where
    both decide: {"share", "interval", "pairs"}, the first two None if there is none."""
    decided = (scores != 0) & (gaps != 0)
    count = int(decided.sum())
    if not count:
        return {"share": None, "interval": None, "pairs": 0}
    right = int((np.sign(scores) == np.sign(gaps))[decided].sum())
    interval = list(success_interval(right, count))
    return {"share": right / count, "interval": interval, "pairs": count}


def _by_confidence(scores: np.ndarray, gaps: np.ndarray, parts: int) -> list[dict]:
    order = np.argsort(-np.abs(scores), kind="stable")
    return [share(scores[own], gaps[own]) for own in np.array_split(order, parts)]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of the ranks of two float[n]; NaN if one is constant.

    Equal numbers share the mean of their ranks.
    """
    if len(x) < 2 or not (np.ptp(x) and np.ptp(y)):
        return float("nan")
    return float(stats.spearmanr(x, y)[0])


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Return Kendall's tau-b of two float[n]; NaN if one is constant.

    (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y)
    """
    if len(x) < 2 or not (np.ptp(x) and np.ptp(y)):
        return float("nan")
    return float(stats.kendalltau(x, y)[0])


def _resampled(statistic: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return a statistic, None if it is NaN, and the ends of its interval."""
    value = statistic(x, y)
    if not np.isfinite(value):
        return {"value": None, "interval": None}
    try:
        found = bootstrap(
            lambda rows: statistic(x[rows], y[rows]), [np.arange(len(x))], _DRAWS
        )
    except InputError:  # it is defined for hardly any resample
        return {"value": value, "interval": None}
    return {"value": value, "interval": [found.low, found.high]}


def told(found: Mapping[str, Any]) -> str:
    """Return the audit in a line or two."""
    line = f"{found['pairs']:,} pairs"
    for key in ("unknown", "ties", "contradictions"):
        line += f", {found[key]} {key}" if found[key] else ""
    if "first_answers" in found:
        line += (
            f"; what is shown first is preferred in {found['first_answers']:.1%} of "
            f"answers, both orders agree on {found['agreement']:.1%}"
        )
    if not (found.get("accuracy") or {}).get("pairs"):
        why = "all scores or values are ties" if found["valued"] else "no true values"
        return f"{line}; {why}: there is no accuracy"
    surer, rest = found["by_confidence"]["halves"]
    line += f"\naccuracy {_percent(found['accuracy'])}"
    line += f", one order alone {_percent(found['accuracy_one_order'])}; "
    line += f"surer half {_percent(surer)}, the rest {_percent(rest)}"
    for name, own in found.get("by_seen", {}).items():
        if own["pairs"]:
            line += f"; objects in {name}: {_percent(own)}"
    value = found["spearman"]["value"]
    return line + ("" if value is None else f"; Spearman with values {value:.2f}")


def _percent(own: Mapping[str, Any]) -> str:
    if not own["pairs"]:
        return "unknown"
    low, high = own["interval"]
    return f"{own['share']:.3f} ({low:.3f} to {high:.3f}, {own['pairs']:,} pairs)"
