"""Ridge regression in closed form, for several targets and strengths at once.

    minimise over W, c:  sum_i |x_i W + c - y_i|^2 + strength * total * |W|^2

with `total` the sum of squares of the centred x, so that a strength has the same effect
for features of any scale and any number of rows (Hoerl & Kennard 1970).
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.linalg import cho_factor, cho_solve


def predictions(
    x: np.ndarray, y: np.ndarray, at: np.ndarray, strengths: Iterable[float]
) -> Iterator[np.ndarray]:
    """Fit (x, y) with each strength and yield the predictions for the rows `at`.

    x float[n, d], y float[n, t], at float[m, d] -> float64[m, t]. The linear system has
    min(n, d) unknowns.
    """
    shift, mean = (a.mean(0, dtype=np.float64) for a in (x, y))
    x, y, at = x - shift, y - mean, at - shift
    by_rows = len(x) < x.shape[1]
    gram = x @ x.T if by_rows else x.T @ x
    left, right = (at @ x.T, y) if by_rows else (at, x.T @ y)
    total = np.trace(gram) or 1.0  # 0 if all rows are equal
    for strength in strengths:
        penalised = gram + strength * total * np.eye(len(gram))
        factor = cho_factor(penalised, overwrite_a=True, check_finite=False)
        yield left @ cho_solve(factor, right, check_finite=False) + mean
