"""Chains of few states, whose occupancy is known exactly."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyview.errors import TINY, InputError, check_range


def occupancy(transition: np.ndarray, discount: float) -> np.ndarray:
    """Return (1 - g) P (I - g P)^-1, float64[states, states]: row s is rho(. | s).

    transition: float[states, states], P(s' | s) in row s.
    """
    check_range(0.0, 1 - TINY, discount=discount)
    P = np.asarray(transition, np.float64)
    # P and (I - g P)^-1 commute.
    return (1 - discount) * np.linalg.solve(np.eye(len(P)) - discount * P, P)


def grid(side: int) -> np.ndarray:
    """Return the transitions of a walk on side x side cells, float64[cells, cells].

    Each step goes up, down, left or right with probability 1/4; a step against the
    border stays where it is.
    """
    check_range(1, side=side)
    P = np.zeros((side * side, side * side))
    for cell in range(side * side):
        row, column = divmod(cell, side)
        for down, right in (1, 0), (-1, 0), (0, 1), (0, -1):
            to = np.clip([row + down, column + right], 0, side - 1)
            P[cell, to[0] * side + to[1]] += 0.25
    return P


def walk(
    transition: np.ndarray, starts: np.ndarray, steps: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the states that chains pass, int64[n, steps + 1], from starts: int[n]."""
    sums = np.cumsum(transition, 1)
    passed = [np.asarray(starts, np.int64)]
    for _ in range(steps):
        drawn = rng.random((len(starts), 1)) * sums[passed[-1], -1:]
        passed.append((drawn >= sums[passed[-1]]).sum(1))
    return np.stack(passed, 1)


class Walks:
    """A source of episodes: walks of a chain, each from a state drawn uniformly.

    Row i is {"states": float32[steps + 1, d], "terminal": False}, drawn by (seed, i)
    when the source is made.

    Args:
      transition: as of `occupancy`.
      places: float[states, d], what a state looks like.
      episodes, steps: how many walks, and their length.

    Raises InputError for probabilities that do not sum to 1, and another number of
    places than states.
    """

    def __init__(
        self,
        transition: Sequence[Sequence[float]] | np.ndarray,
        places: Sequence[Sequence[float]] | np.ndarray,
        episodes: int,
        steps: int,
        seed: int = 0,
    ):
        check_range(1, episodes=episodes, steps=steps)
        P, looks = np.asarray(transition, np.float64), np.asarray(places, np.float32)
        if P.ndim != 2 or P.shape != (len(looks), len(looks)) or looks.ndim != 2:
            raise InputError(
                f"transition has shape {P.shape} and places {looks.shape}; give [n, n] "
                "and [n, d] for n states"
            )
        if not (P.min() >= 0 and abs(P.sum(1) - 1).max() <= 1e-6):  # NaN is refused
            raise InputError("a row of transition is not made of probabilities")
        rng = np.random.default_rng(seed)
        starts = rng.integers(len(P), size=episodes)
        self._states = looks[walk(P, starts, steps, rng)]
        self.digest = hashlib.sha256(self._states.tobytes()).hexdigest()
        self.targets: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"states": self._states[index], "terminal": False}

    def __repr__(self) -> str:
        return f"Walks({len(self)} of {self._states.shape[1]} states)"


def grid_walks(side: int, episodes: int, steps: int, seed: int = 0) -> Walks:
    """Return walks of `grid(side)`; a state looks like its (row, column)."""
    cells = [divmod(cell, side) for cell in range(side * side)]
    return Walks(grid(side), np.array(cells), episodes, steps, seed)
