"""Noisy readings of a Gaussian factor: views with known mutual information.

c ~ N(0, s0^2) and view a is x_a ~ N(c, s^2), so the views are independent given c
(Shidani et al. 2024). `objectives.bounds.gaussian_information` is the closed form.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyview.data.views import Example
from polyview.errors import TINY, check_range


class Factors:
    """A source of `size` independent draws of the factor: {"factor": float}."""

    def __init__(self, size: int, deviation: float = 1.0, seed: int = 0):
        check_range(1, size=size)
        check_range(TINY, deviation=deviation)
        self._draws = np.random.default_rng(seed).normal(0.0, deviation, size)
        self.targets: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"factor": self._draws[index]}


@dataclass(frozen=True)
class Readings:
    """m readings of a factor with independent noise: views["x"] is float32[m, 1]."""

    m: int
    deviation: float = 0.5

    def __post_init__(self) -> None:
        check_range(1, m=self.m)
        check_range(TINY, deviation=self.deviation)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        x = rng.normal(example["factor"], self.deviation, size=(self.m, 1))
        return {
            "views": {"x": x.astype(np.float32)},
            "present": {"x": np.ones(self.m, bool)},
            "targets": {},
        }
