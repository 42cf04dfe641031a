"""Mean and deviation of rows that come one batch after another."""

import numpy as np


class Moments:
    """Of rows [n, d], in float64, of numbers less those of the first row."""

    def __init__(self) -> None:
        self._count, self._first = 0, np.zeros(())
        self._sum, self._squares = np.zeros(()), np.zeros(())

    def add(self, rows: np.ndarray) -> None:
        """Take in rows, of which there are some."""
        rows = rows.astype(np.float64)
        if not self._count:
            self._first = rows[0]
        shifted = rows - self._first
        self._count += len(rows)
        self._sum = self._sum + shifted.sum(0)
        self._squares = self._squares + (shifted**2).sum(0)

    @property
    def mean(self) -> np.ndarray:
        """float64[d]"""
        return self._first + self._sum / self._count

    @property
    def std(self) -> np.ndarray:
        """float64[d], of the population; exactly 0 where all rows are equal."""
        variance = self._squares / self._count - (self._sum / self._count) ** 2
        return np.sqrt(np.maximum(variance, 0))
