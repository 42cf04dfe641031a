"""Accuracies of unseen classes: class-averaged, generalised, by slot and by rarity.

See `polyview.evaluation.attributes` for the generalised task and its offset.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from polyview.evaluation.class_attributes import ClassTable
from polyview.evaluation.classification import standard_error


def class_averaged(right: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the mean over classes of the accuracy on a class's rows.

    right: bool[n]; labels: int[n]. "standard_error" is s / sqrt(classes), with s the
    deviation of the classes' accuracies, None for one class. Beside it the share of all
    rows, "image_averaged_top1", which classes with more rows dominate.
    """
    each = _by_class(right, labels)
    share = float(np.mean(right))
    error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else None
    return {
        "class_averaged_top1": float(each.mean()),
        "standard_error": None if error is None else float(error),
        "image_averaged_top1": share,
        "image_averaged_standard_error": standard_error(share, len(right)),
        "classes": len(each),
        "rows": len(right),
    }


def _by_class(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    _, place, rows = np.unique(labels, return_inverse=True, return_counts=True)
    return np.bincount(place, weights=right) / rows


def harmonic_mean(u: float, s: float) -> float:
    """Return 2 u s / (u + s), 0 for two zeros."""
    return 2 * u * s / (u + s) if u + s else 0.0


class Stacked(NamedTuple):
    """Rows in the generalised task, before an offset is subtracted.

    right: bool[n], whether the best class of the truth's group, seen or unseen, is the
    truth; margin: float[n], the best seen score minus the best unseen one; labels:
    int[n]. With an offset, the answer is a seen class where margin > offset.
    """

    right: np.ndarray
    margin: np.ndarray
    labels: np.ndarray


def stacked(
    scores: np.ndarray, labels: np.ndarray, classes: np.ndarray, seen: np.ndarray
) -> Stacked:
    """Return the rows of one group, all of seen or all of unseen classes.

    scores: float[n, c]; labels: int[n]; classes: int[c], the candidates; seen: bool[c].
    """
    group = seen[np.searchsorted(classes, labels[0])]
    own = np.flatnonzero(seen == group)
    best = classes[own[scores[:, own].argmax(axis=1)]]
    margin = scores[:, seen].max(axis=1) - scores[:, ~seen].max(axis=1)
    return Stacked(best == labels, margin, labels)


def stacked_accuracies(
    unseen: Stacked, seen: Stacked, offset: float
) -> dict[str, float | None]:
    """Return u, s and H, and their standard errors, with an offset subtracted.

    Those of u and s are over classes; that of H is the first order in theirs.
    """
    u = class_averaged(unseen.right & (unseen.margin <= offset), unseen.labels)
    s = class_averaged(seen.right & (seen.margin > offset), seen.labels)
    a, b = u["class_averaged_top1"], s["class_averaged_top1"]
    errors = u["standard_error"], s["standard_error"]
    error = None
    if None not in errors and a + b:
        slopes = 2 * b**2 / (a + b) ** 2, 2 * a**2 / (a + b) ** 2
        error = math.hypot(slopes[0] * errors[0], slopes[1] * errors[1])
    return {
        "u": a,
        "u_standard_error": errors[0],
        "s": b,
        "s_standard_error": errors[1],
        "H": harmonic_mean(a, b),
        "H_standard_error": error,
    }


def offset_curve(
    unseen: Stacked, seen: Stacked
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every offset that makes a difference, float[k], ascending; and u, s there.

    Between two margins of rows nothing changes, so an offset is the middle of two
    neighbours; the first and the last lie beyond all margins.
    """
    margins = np.unique(np.concatenate([unseen.margin, seen.margin]))
    middles = (margins[1:] + margins[:-1]) / 2
    step = max(float(np.ptp(margins)), 1.0)
    offsets = np.concatenate([[margins[0] - step], middles, [margins[-1] + step]])

    def weights(rows: Stacked) -> tuple[np.ndarray, np.ndarray]:
        _, place, count = np.unique(
            rows.labels, return_inverse=True, return_counts=True
        )
        order = np.argsort(rows.margin, kind="stable")
        weight = rows.right / count[place] / len(count)
        total = np.concatenate([[0.0], np.cumsum(weight[order])])
        return total, np.searchsorted(rows.margin[order], offsets, side="right")

    below, place = weights(unseen)
    u = below[place]
    below, place = weights(seen)
    return offsets, u, below[-1] - below[place]


def best_offset(unseen: Stacked, seen: Stacked) -> float:
    """Return the offset with the largest H, of those the nearest to zero."""
    offsets, u, s = offset_curve(unseen, seen)
    h = 2 * u * s / np.where(u + s > 0, u + s, 1)
    best = np.flatnonzero(h >= h.max() - 1e-12)
    return float(offsets[best[np.abs(offsets[best]).argmin()]])


def slot_accuracies(
    predicted: np.ndarray,
    labels: np.ndarray,
    table: ClassTable,
    slots: Sequence[str],
    seen: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Return, for each slot, how often its largest predicted attribute is the true one.

    predicted: float[n, a]; labels: int[n]; table: of their classes, values 0 and 1;
    slots: the slot of each attribute; seen: int[a], the seen classes that have it. A
    row counts for a slot if its class has exactly one attribute of it. Candidates are
    the attributes of the slot that a seen class has; "chance" is one of them.
    """
    measured: dict[str, dict[str, Any]] = {}
    place = np.searchsorted(table.classes, labels)
    for slot in dict.fromkeys(slots):
        columns = np.flatnonzero((np.asarray(slots) == slot) & (seen > 0))
        own = table.vectors[place][:, columns]
        rows = own.sum(axis=1) == 1
        if len(columns) < 2 or not rows.any():
            continue
        truth = own[rows].argmax(axis=1)
        right = predicted[rows][:, columns].argmax(axis=1) == truth
        measured[slot] = {
            **class_averaged(right, labels[rows]),
            "attributes": len(columns),
            "chance": 1 / len(columns),
            "by_seen_classes": by_seen_classes(
                right, labels[rows], seen[columns][truth]
            ),
        }
    return measured


def by_seen_classes(
    right: np.ndarray, labels: np.ndarray, seen: np.ndarray
) -> list[dict[str, Any]]:
    """Return accuracies of rows whose parts 1, 2, 3, 4-5, 6-7, 8-10 ... seen classes
    have, in steps of sqrt(2).

    right: bool[n]; labels: int[n]; seen: int[n], numbers of seen classes.
    """
    edges = np.unique(np.rint(np.sqrt(2.0) ** np.arange(60))).astype(int)
    step = np.searchsorted(edges, np.maximum(seen, 1), side="right") - 1
    return [
        {"from": int(edges[k]), "to": int(edges[k + 1]) - 1}
        | class_averaged(right[step == k], labels[step == k])
        for k in np.unique(step)
    ]


def confusions(
    predicted: np.ndarray, labels: np.ndarray, table: ClassTable
) -> dict[str, Any]:
    """Return how many attributes a wrong answer shares with the truth, as shares.

    predicted, labels: int[n], classes of the table, whose values are 0 and 1. "chance"
    is what any other candidate, drawn evenly, would share.
    """
    common = (table.vectors @ table.vectors.T).astype(int)
    truth, answer = (np.searchsorted(table.classes, c) for c in (labels, predicted))
    wrong = truth != answer
    if not wrong.any():
        return {"errors": 0, "shared": []}
    off = ~np.eye(len(common), dtype=bool)
    among = np.stack(
        [
            np.bincount(row[other], minlength=common.max() + 1)
            for row, other in zip(common, off, strict=True)
        ]
    )
    chance = among[truth[wrong]].mean(axis=0) / (len(common) - 1)
    found = np.bincount(common[truth[wrong], answer[wrong]], minlength=len(chance))
    shown = (found > 0) | (chance > 0)
    return {
        "errors": int(wrong.sum()),
        "shared": [
            {
                "attributes": int(k),
                "share": float(found[k] / wrong.sum()),
                "chance": float(chance[k]),
            }
            for k in np.flatnonzero(shown)
        ],
    }
