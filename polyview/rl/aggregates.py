"""Aggregates of scores over runs and tasks, and their intervals. Numpy only.

Aggregates map scores float[..., runs, tasks] to float[...], as defined by Agarwal et
al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", and
their library rliable. Scores are normalised so that 1 is the target level.
"""

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np


def median(scores: np.ndarray) -> np.ndarray:
    """The median over tasks of the mean over runs."""
    return np.median(scores.mean(axis=-2), axis=-1)


def mean(scores: np.ndarray) -> np.ndarray:
    """The mean over tasks of the mean over runs."""
    return scores.mean(axis=(-2, -1))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of the middle half of all runs of all tasks (IQM).

    Leaves out the floor(n / 4) lowest and highest of n scores.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def optimality_gap(scores: np.ndarray) -> np.ndarray:
    """The mean shortfall of runs from 1; a score above 1 counts as 1."""
    return 1 - np.minimum(scores, 1).mean(axis=(-2, -1))


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "IQM": interquartile_mean,
    "median": median,
    "mean": mean,
    "optimality gap": optimality_gap,
}


def profile(scores: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """The share of runs above each threshold: a performance profile.

    scores float[..., runs, tasks], thresholds float[k] -> float[..., k]: the mean over
    tasks and runs of [score > threshold] (Agarwal et al. 2021, score distributions). It
    falls from 1 to 0; for scores of 0 or more, the area below it is their mean.
    """
    shares = [(scores > threshold).mean(axis=(-2, -1)) for threshold in thresholds]
    return np.stack(shares, axis=-1)


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The probability that a run of ours scores higher than one of theirs, P(X > Y).

    ours float[..., n, tasks], theirs float[..., k, tasks] -> float[...]: the mean over
    tasks of the Mann-Whitney statistic, the share of the n k pairs of runs of a task
    with X > Y, where X = Y counts a half (Agarwal et al. 2021). 1/2 if both are equally
    good, however large the differences are. Raises ValueError for other tasks.
    """
    if ours.shape[-1] != theirs.shape[-1]:
        raise ValueError(f"{ours.shape[-1]} tasks against {theirs.shape[-1]}")
    won = np.zeros(np.broadcast_shapes(ours.shape[:-2], theirs.shape[:-2]))
    runs = theirs.shape[-2]
    for number in range(runs):  # all pairs at once could take gigabytes
        other = theirs[..., number : number + 1, :]
        won += ((ours > other) + 0.5 * (ours == other)).mean(axis=(-2, -1))
    return won / runs


def interval(
    scores: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    level: float = 0.95,
    repetitions: int = 5000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Ends of a stratified bootstrap percentile interval of a statistic.

    Resamples runs with replacement within each task. scores: float[runs, tasks];
    statistic: float[repetitions, runs, tasks] -> float[repetitions, ...]. Returns None
    for a single run, which has no spread.
    """
    if len(scores) < 2:
        return None
    rng = np.random.default_rng(seed)
    return _ends(statistic(_resampled(scores, repetitions, rng)), level)


def improvement_interval(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    level: float = 0.95,
    repetitions: int = 5000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Ends of a stratified bootstrap interval of `probability_of_improvement`.

    As `interval`, with the runs of both resampled: float[n, tasks] and float[k, tasks].
    Returns None if either is a single run.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    rng = np.random.default_rng(seed)
    both = (_resampled(scores, repetitions, rng) for scores in (ours, theirs))
    return _ends(probability_of_improvement(*both), level)


def _resampled(
    scores: np.ndarray, repetitions: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw runs with replacement within each task: float[repetitions, runs, tasks]."""
    draws = rng.integers(len(scores), size=(repetitions, *scores.shape))
    return np.take_along_axis(scores[None], draws, axis=1)


def _ends(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the middle `level` of values[repetitions, ...]."""
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


def success_interval(
    successes: int, trials: int, level: float = 0.95
) -> tuple[float, float]:
    """Ends of the Wilson score interval of a proportion (Wilson 1927).

    It holds the proportions p with |successes / trials - p| <= z sqrt(p (1 - p) /
    trials), z the normal quantile of (1 + level) / 2. Unlike the normal approximation,
    it stays within [0, 1] and has a width even if all trials agree. Raises ValueError
    unless 0 <= successes <= trials, trials >= 1 and 0 < level < 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: it must be between 0 and 1")
    rate = successes / trials
    z = NormalDist().inv_cdf((1 + level) / 2)
    spread = z / trials * (trials * rate * (1 - rate) + z * z / 4) ** 0.5
    scale = 1 + z * z / trials
    low, high = ((rate + z * z / (2 * trials) + s) / scale for s in (-spread, spread))
    # The exact ends, without rounding errors.
    return 0.0 if successes == 0 else low, 1.0 if successes == trials else high
