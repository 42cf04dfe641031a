"""Benchmarks: each prints a table and writes it, with the machine, to results/."""

import numpy as np


def spread(values: list[float]) -> dict:
    """Return the mean, the standard deviation over seeds, and the values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}


def student(values: list[float]) -> list[float | None]:
    """Return the mean and the ends of its 95 % interval, None of fewer than two."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [mean, None, None]
    from scipy import stats  # here, since a peer's Python may lack it

    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return [mean, mean - half, mean + half]
