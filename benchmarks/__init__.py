"""Each prints a table and keeps it, with the machine, in results/."""

import numpy as np


def spread(values: list[float]) -> dict:
    """Mean, standard deviation over the seeds, and the values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}
