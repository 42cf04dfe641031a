"""Ridge regression in closed form: many targets, and several strengths, at once.

    minimise over W, c:  sum_i |x_i W + c - y_i|^2 + strength * total * |W|^2

with `total` the sum of the squares of the centred x, so that a strength means the same
for features of any scale and number of rows (Hoerl & Kennard 1970).
"""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.linalg import cho_factor, cho_solve


def predictions(
    x: np.ndarray, y: np.ndarray, at: np.ndarray, strengths: Iterable[float]
) -> Iterator[np.ndarray]:
    """Yield for each strength what the fit to (x, y) says of the rows `at`.

    x float[n, d], y float[n, t], at float[m, d] -> float64[m, t]. What is solved has as
    many unknowns as the smaller of n and d.
    """
    shift, mean = (a.mean(0, dtype=np.float64) for a in (x, y))
    x, y, at = x - shift, y - mean, at - shift
    by_rows = len(x) < x.shape[1]
    gram = x @ x.T if by_rows else x.T @ x
    left, right = (at @ x.T, y) if by_rows else (at, x.T @ y)
    total = np.trace(gram) or 1.0  # features that are all the same
    for strength in strengths:
        penalised = gram + strength * total * np.eye(len(gram))
        factor = cho_factor(penalised, overwrite_a=True, check_finite=False)
        yield left @ cho_solve(factor, right, check_finite=False) + mean
