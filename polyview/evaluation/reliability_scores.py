"""Scores of reliability of test rows and foreign images, and how patterns are chosen.

Training rows fit distances and the density; calibration rows fit the error rate and
choose both bandwidths. Test rows and foreign images are scored, and choose nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyview.errors import InputError
from polyview.evaluation import confidence
from polyview.evaluation.activation_patterns import (
    Patterns,
    constant_share,
    error_rates,
    log_densities,
)
from polyview.evaluation.classification import class_labels
from polyview.evaluation.probe import LinearProbe, held_out, logits
from polyview.evaluation.reliability_reading import MANY, Read, known
from polyview.evaluation.selective import aucea

FOLDS = 5  # of the calibration rows, to choose the bandwidth of the error rate
_BOUND_ROWS = 500  # queries of the bound, which is a diagnostic
_BOUND_PATTERNS = 10_000  # above which it is left out: its cost is their square
_FITTED = ("train", "calibration")
_OF_LOGITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "maximum softmax": confidence.log_maximum_softmax,
    "entropy": confidence.negative_entropy,
    "energy": confidence.negative_energy,
    "margin": confidence.margin,
}

Scores = dict[str, dict[str, np.ndarray]]  # {score: {split: float[n]}}


class Scored(NamedTuple):
    """Scores of test rows and foreign images.

    patterns: which patterns were used, for the result; reasons: {score: why it is left
    out}.
    """

    scores: Scores
    patterns: dict[str, Any]
    reasons: dict[str, str]


def with_probe(
    read: Mapping[str, Read],
    probe: LinearProbe,
    *,
    label: str,
    classes: int,
    share: float,
    seed: int,
) -> tuple[dict[str, Read], dict[str, float]]:
    """Return all splits with the logits of a probe of "train", and its settings.

    Without a split "calibration", a share of "train" is held out as such.
    """
    labels = class_labels(read["train"], label)
    splits = dict(read)
    if "calibration" not in splits:
        held = held_out(labels, share, seed)
        whole = splits["train"]
        splits |= {"train": whole.some(~held), "calibration": whole.some(held)}
        labels = labels[~held]
    h = splits["train"].h
    sweep = probe.sweep(h, labels, classes, validation=0.1, seed=seed)
    pair = sweep.learning_rate, sweep.weight_decay
    fitted = probe.fit(h, labels, classes, [pair], seed=seed)
    answered = {
        name: one._replace(logits=logits(fitted, one.h)) for name, one in splits.items()
    }
    return answered, {"learning_rate": pair[0], "weight_decay": pair[1]}


def scored(
    read: Mapping[str, Read],
    labels: Mapping[str, np.ndarray],
    *,
    classes: int,
    neighbours: int,
    bandwidths: Sequence[float],
    seed: int,
) -> Scored:
    """Return every score that can be computed, and why others cannot.

    read: {"train", "calibration", "test" and foreign names}, with logits and patterns;
    labels: {"train", "calibration" and others: int[n]}; neighbours: k; bandwidths: of
    patterns, to choose from. Raises InputError if all exceed the number of units, and
    for patterns that never change.
    """
    train = read["train"]
    asked = {name: one for name, one in read.items() if name not in _FITTED}
    reasons: dict[str, str] = {}
    scores: Scores = {
        name: {split: score(known(one.logits)) for split, one in asked.items()}
        for name, score in _OF_LOGITS.items()
    }

    def nearest(h: np.ndarray) -> np.ndarray:
        return confidence.kth_neighbour(train.h, h, k=neighbours)

    of_distances: dict[str, Callable[[], Callable]] = {
        "nearest neighbours": lambda: nearest,
        "Mahalanobis": lambda: (
            confidence.Mahalanobis.fit(train.h, labels["train"], classes).score
        ),
    }
    for name, fit in of_distances.items():
        try:
            score = fit()
            scores[name] = {split: score(one.h) for split, one in asked.items()}
        except InputError as error:
            reasons[name] = str(error)
    right = {
        split: known(read[split].logits).argmax(axis=1) == labels[split]
        for split in _FITTED
    }
    active = {split: known(one.active) for split, one in read.items()}
    usable = [b for b in bandwidths if b <= active["train"].shape[1]]
    if not usable:
        raise InputError(
            f"evaluation: all bandwidths exceed the {active['train'].shape[1]} units "
            "of the pattern; give smaller ones"
        )
    scores["density"], patterns = _density(active, right, usable)
    wrong = int((~right["calibration"]).sum())
    patterns["calibration_errors"] = wrong
    if wrong:
        scores["error rate"], patterns["error_rate"] = _error_rate(
            active, right["calibration"], usable, seed
        )
    else:
        reasons["error rate"] = (
            f"no error among {len(right['calibration'])} calibration rows: it would "
            "be 0 everywhere; give more rows"
        )
    for name in ("dropout", "ensemble"):
        if not all(name in one.several for one in asked.values()):
            continue
        drawn = asked["test"].several[name]
        if name == "dropout" and (drawn == drawn[:1]).all():
            reasons[name] = "all answers are equal: the model has no dropout"
            continue
        scores[name] = {
            split: confidence.negative_entropy(
                confidence.mean_log_probabilities(one.several[name])
            )
            for split, one in asked.items()
        }
    return Scored(scores, patterns, reasons)


def _density(
    active: Mapping[str, np.ndarray],
    right: Mapping[str, np.ndarray],
    bandwidths: Sequence[float],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the density of each split that fits nothing, and what patterns it uses.

    active: {split: bool[n, units]}; right: {"train", "calibration": bool[n]}.
    """
    fitted = Patterns.fit(active["train"], right["train"], bandwidths[0])
    densities = log_densities(fitted, active["calibration"], bandwidths)
    found = [aucea(one, right["calibration"]) for one in densities]
    chosen = bandwidths[int(np.argmax(found))]
    about: dict[str, Any] = {
        "units": fitted.units,
        "constant_units": constant_share(active["train"]),
        "train_rows": len(active["train"]),
        "distinct": len(fitted.count),
        "density": _choice(chosen, bandwidths, found),
    }
    scores = {
        split: log_densities(fitted, one, [chosen])[0]
        for split, one in active.items()
        if split not in _FITTED
    }
    small = len(fitted.count) <= _BOUND_PATTERNS and fitted.units <= MANY
    if small and fitted.errors:
        some = active["test"][:_BOUND_ROWS]
        bound = dataclasses.replace(fitted, bandwidth=chosen).log10_bound(some)
        about["bound"] = {
            "log10_median": float(np.median(bound)),
            "rows": len(bound),
            "meaning": "an error rate is at most 1, whose log10 is 0: above it the "
            "bound says nothing, and it ranks as the density does",
        }
    return scores, about


def _error_rate(
    active: Mapping[str, np.ndarray],
    right: np.ndarray,
    bandwidths: Sequence[float],
    seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return minus the error rate of each split that fits nothing, and its bandwidth.

    active: as in `_density`; right: bool[n], of the calibration rows.
    """
    rates = _cross_fitted(active["calibration"], right, bandwidths, seed)
    found = [aucea(-one, right) for one in rates]
    chosen = bandwidths[int(np.argmax(found))]
    local = Patterns.fit(active["calibration"], right, chosen)
    scores = {
        split: -error_rates(local, one, [chosen])[0]
        for split, one in active.items()
        if split not in _FITTED
    }
    return scores, _choice(chosen, bandwidths, found)


def _cross_fitted(
    active: np.ndarray, right: np.ndarray, bandwidths: Sequence[float], seed: int
) -> np.ndarray:
    """Return error rates of rows by the other folds, float64[bandwidths, n]."""
    folds = np.random.default_rng(seed).permutation(len(active)) % FOLDS
    rates = np.empty((len(bandwidths), len(active)))
    for fold in range(FOLDS):
        own = folds == fold
        if own.any():
            others = Patterns.fit(active[~own], right[~own], bandwidths[0])
            rates[:, own] = error_rates(others, active[own], bandwidths)
    return rates


def _choice(
    chosen: float, bandwidths: Sequence[float], found: Sequence[float]
) -> dict[str, Any]:
    return {
        "bandwidth": chosen,
        "bandwidths": list(bandwidths),
        "calibration_aucea": [float(one) for one in found],
    }
