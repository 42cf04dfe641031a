"""Standard scores of reliability, from logits and from features; higher is better.

Scores of one row depend on that row, and on the training set where it is given; nothing
is fitted to the rows scored. Everything is computed in float64, whatever comes in, so
that confident rows do not tie by rounding; `kth_neighbour` says what it does.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from polyview.errors import InputError
from polyview.evaluation.knn import neighbours

_JITTER = 1e-9  # added to a covariance, times its trace: above the rounding of Cholesky


def maximum_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probability of the likeliest class (Hendrycks & Gimpel 2017).

    logits: float[n, classes] -> float64[n]. It rounds to 1 if the largest logit leads
    by more than 37; `log_maximum_softmax` still tells such rows apart. Raises
    InputError for logits that are not finite, another rank, and fewer than two classes,
    as do the other scores of logits.
    """
    return np.exp(log_maximum_softmax(logits))


def log_maximum_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of `maximum_softmax`: the same order without its ties."""
    return _log_softmax(_checked_logits(logits, 2)).max(axis=-1)


def negative_entropy(logits: np.ndarray) -> np.ndarray:
    """Return sum_c p_c log p_c in nats, p = softmax(logits), float64[n]."""
    log = _log_softmax(_checked_logits(logits, 2))
    return np.sum(np.exp(log) * log, axis=-1)


def negative_energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return T log sum_c exp(logits_c / T), float64[n] (Liu et al. 2020, negated).

    Unlike the other scores it changes if a constant is added to the logits of a row; of
    log-probabilities it is 0 at T = 1. For several draws, average it over them. Raises
    InputError for a temperature that is not above 0.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature={temperature}: it must be a number above 0")
    scaled = _checked_logits(logits, 2) / temperature
    top = scaled.max(axis=-1)
    others = np.exp(scaled - top[:, None]).sum(axis=-1)
    return temperature * (top + np.log(others))


def margin(logits: np.ndarray) -> np.ndarray:
    """Return the difference of the two largest probabilities, float64[n], in [0, 1].

    They are those of the softmax, not the logits themselves.
    """
    log = _log_softmax(_checked_logits(logits, 2))
    second, first = np.partition(log, -2, axis=-1)[:, -2:].T
    return -np.exp(first) * np.expm1(second - first)


def mean_log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax averaged over k draws, float64[n, classes].

    logits: float[k, n, classes], of k passes with dropout (Gal & Ghahramani 2016) or of
    k members of an ensemble (Lakshminarayanan et al. 2017). The functions above take
    the result as logits; only `negative_energy` says nothing then, see there.
    """
    log = _log_softmax(_checked_logits(logits, 3))
    top = log.max(axis=0)
    return top + np.log(np.exp(log - top).mean(axis=0))


def kth_neighbour(train: np.ndarray, query: np.ndarray, k: int = 50) -> np.ndarray:
    """Return minus the distance to the k-th nearest training row (Sun et al. 2022).

    train: float[n, d]; query: float[q, d] -> float64[q]. Rows are scaled to length one;
    a row of zeros is at distance sqrt(2) from all. Cosines are float32 (see
    `polyview.evaluation.knn.neighbours`), so distances below 1e-3 are noise. A query
    that is a training row finds itself. Raises InputError for k outside 1 ... n, other
    widths, and features that are not finite.
    """
    train = _checked_features("train", train)
    query = _checked_features("query", query, train.shape[1])
    if not 1 <= k <= len(train):
        raise InputError(
            f"k={k}: there are {len(train)} training rows; take a k from 1 to that"
        )
    cosine = neighbours(train, query, k=k).similarity[:, -1].astype(np.float64)
    return -np.sqrt(np.maximum(2 - 2 * cosine, 0))


class Mahalanobis(NamedTuple):
    """Distances to the means of classes with one covariance S (Lee et al. 2018).

    Without their perturbation of the input and their other layers. means: float64[c,
    d], of the classes with training rows; factor: float64[d, d], lower triangular L,
    L L' = S + 1e-9 trace(S) I. The small term makes S invertible if some directions do
    not vary in training; a deviation along these counts by far the most, where a
    pseudo-inverse would ignore it.
    """

    means: np.ndarray
    factor: np.ndarray

    @classmethod
    def fit(
        cls, features: np.ndarray, labels: np.ndarray, classes: int
    ) -> "Mahalanobis":
        """Fit means and S = 1/n sum_i (f_i - mean of its class)(...)'.

        features: float[n, d]; labels: int[n], from 0 to classes - 1. Classes without
        rows are left out. Raises InputError for other labels, features that are not
        finite, and rows that do not vary within any class.
        """
        features = _checked_features("train", features)
        labels = np.asarray(labels)
        if labels.shape != (len(features),) or not len(labels):
            raise InputError(
                f"Mahalanobis: {len(features)} rows of features and labels of shape "
                f"{labels.shape}; give one label for each row, and one row or more"
            )
        present = np.unique(labels)
        if labels.dtype.kind not in "iu" or present[0] < 0 or present[-1] >= classes:
            raise InputError(
                f"Mahalanobis: labels from {present[0]} to {present[-1]} for {classes} "
                f"classes; expected integers from 0 to {classes - 1}"
            )
        width = features.shape[1]
        means = np.empty((len(present), width))
        scatter = np.zeros((width, width))
        for i, label in enumerate(present):
            rows = features[labels == label].astype(np.float64)
            means[i] = rows.mean(axis=0)
            rows -= means[i]
            scatter += rows.T @ rows
        covariance = scatter / len(features)
        trace = np.trace(covariance)
        # Equal rows differ from their mean by rounding.
        if trace <= np.square(1e-12 * np.abs(means).max()):
            raise InputError(
                "Mahalanobis: the rows of each class are all equal, so there is no "
                "covariance; give more rows, or features that vary"
            )
        covariance += _JITTER * trace * np.eye(width)
        return cls(means, cholesky(covariance, lower=True, overwrite_a=True))

    def score(self, query: np.ndarray) -> np.ndarray:
        """Return minus the least squared distance to a mean, float[q, d] -> float64[q].

        Raises InputError for another width and features that are not finite.
        """
        query = _checked_features("query", query, self.means.shape[1])
        centre = self.means.mean(axis=0)  # shorter vectors round less
        rows, means = (
            solve_triangular(self.factor, (x - centre).T, lower=True).T
            for x in (query, self.means)
        )
        lengths = np.square(means).sum(axis=1)
        least = np.min(lengths - 2 * rows @ means.T, axis=1)
        return -np.maximum(least + np.square(rows).sum(axis=1), 0)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log softmax over the last axis, accurate where a probability nears 1."""
    best = logits.argmax(axis=-1)[..., None]
    shifted = logits - np.take_along_axis(logits, best, axis=-1)
    others = np.exp(shifted)
    np.put_along_axis(others, best, 0, axis=-1)
    return shifted - np.log1p(others.sum(axis=-1, keepdims=True))


def _checked_logits(logits: np.ndarray, rank: int) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    if logits.ndim != rank or logits.shape[-1] < 2 or (rank == 3 and not len(logits)):
        axes = "[n, classes]" if rank == 2 else "[draws, n, classes]"
        raise InputError(
            f"logits have the shape {logits.shape}; expected {axes} with two or more "
            "classes" + (" and one draw or more" if rank == 3 else "")
        )
    finite = np.isfinite(logits).all(axis=-1)
    if not finite.all():
        raise InputError(
            f"logits: {(~finite).sum()} of {finite.size} rows are not finite; the "
            "model has diverged: evaluate an earlier step"
        )
    return logits


def _checked_features(
    name: str, features: np.ndarray, width: int | None = None
) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or width not in (None, features.shape[1]):
        expected = "[rows, d]" if width is None else f"[rows, {width}], as in train"
        raise InputError(
            f"{name} features have the shape {features.shape}; expected {expected}"
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InputError(
            f"the features of {name}: {(~finite).sum()} of {len(finite)} rows are not "
            f"finite (first: row {finite.argmin()}); evaluate an earlier step"
        )
    return features
