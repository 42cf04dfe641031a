"""Benchmarks: each prints a table and writes it, with the machine, to results/."""

import numpy as np


def spread(values: list[float]) -> dict:
    """Return the mean, the standard deviation over seeds, and the values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}
