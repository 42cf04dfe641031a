"""How well values are known: estimates against roll-outs from the same states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dvf.evaluation import figures
from dvf.evaluation.queries import (
    Queries,
    Truth,
    check_discount,
    read,
    shortness,
    truth,
)
from dvf.rewards import Reward
from dvf.value import Estimate, Value
from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result
from polyview.evaluation.selective import bootstrap


@dataclass(frozen=True)
class ValueAccuracy:
    """Correlation, error and bias of values, pooled over states, policies and rewards.

    Errors and bias are in units of the deviation of the true values. Intervals (95 %)
    are over starts: they hold for this model and these rewards, and leave out how
    training varies from seed to seed.

    Attributes:
      truth: roll-outs; see `dvf.evaluation.queries:read`.
      reward: k rewards of a state, none of which the model need know.
      estimate: `FromFutures` or `Direct` of `dvf.value`.
      discount: g of the values.
      resamples, seed: of the bootstrap.
    """

    truth: Source
    reward: Reward
    estimate: Estimate
    discount: float
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(2, resamples=self.resamples)
        check_discount(self.estimate, self.discount)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Measure a model of occupancy, or of values."""
        del mesh  # small: every device draws all
        queries = read(self.truth)
        true = truth(queries, self.reward, self.discount)
        told = self.estimate(
            model, queries.state, queries.policy, queries.action, self.reward
        )
        numbers: dict[str, Any] = {
            "protocol": {
                "truth": repr(self.truth),
                "queries": len(queries.state),
                "starts": queries.starts,
                "rewards": list(self.reward.names),
                "discount": self.discount,
            },
            **self._measured(queries, true, told),
            "warning": shortness(queries, self.discount),
            "machine": hosts.machine(),
        }
        shown = {"true": true.mean, "told": told.mean}
        return Result(
            numbers,
            shown,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
        )

    def measured(self, queries: Queries, told: Value) -> dict[str, Any]:
        """Return the numbers of values, float64[n, k], told of these queries."""
        return self._measured(queries, truth(queries, self.reward, self.discount), told)

    def _measured(self, queries: Queries, true: Truth, told: Value) -> dict[str, Any]:
        spread = true.mean.std()
        if not spread > 0:
            raise InputError(
                "all true values are equal: no roll-out meets a reward; choose rewards "
                "that policies reach"
            )
        both = queries.by_start(np.stack([true.mean, told.mean], -1))

        def of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            flat = rows.reshape(-1, 2)
            return flat[:, 0], flat[:, 1]

        measures = {
            "correlation": lambda rows: correlation(*of(rows)),
            "rmse": lambda rows: rmse(*of(rows)) / deviation(of(rows)[0]),
            "bias": lambda rows: bias(*of(rows)) / deviation(of(rows)[0]),
        }
        numbers: dict[str, Any] = {}
        for name, measure in measures.items():
            found = bootstrap(measure, [both], self.resamples, self.seed)
            numbers[name] = found.value
            numbers[f"{name}_interval"] = [found.low, found.high]
        per_reward = [
            correlation(true.mean[:, k], told.mean[:, k])
            for k in range(true.mean.shape[1])
        ]
        noise = float(np.square(true.standard_error).mean())
        numbers |= {
            "correlations_by_reward": [
                c if np.isfinite(c) else None for c in per_reward
            ],
            # A model that knew the expected values exactly would have this correlation.
            "ceiling": float(np.sqrt(max(0.0, 1 - noise / spread**2)))
            if np.isfinite(noise)
            else None,
            "deviation": float(spread),
        }
        if told.standard_error is not None:
            own = np.sqrt(np.square(told.standard_error).mean()) / spread
            numbers["standard_error"] = float(own)
        return numbers

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Correlation, error and bias, with the ceiling of the roll-outs."""
        low, high = numbers["correlation_interval"]
        known = numbers["ceiling"]
        most = f"; at most {known:.3f}" if known is not None else ""
        return (
            f"values: correlation {numbers['correlation']:.3f} ({low:.3f} to {high:.3f}"
            f"{most}), RMSE {numbers['rmse']:.3f}, bias {numbers['bias']:+.3f} of the "
            "deviation"
        )

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The numbers of the summary."""
        return {
            "correlation of values": numbers["correlation"],
            "RMSE / deviation": numbers["rmse"],
            "bias / deviation": numbers["bias"],
        }

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Told against true values."""
        return {"values": figures.values(numbers, figure_data)}


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation with a truth x; 0 if y is constant, NaN if x is."""
    x, y = x - x.mean(), y - y.mean()
    of_x, of_y = (x**2).sum(), (y**2).sum()
    if not of_x > 0:
        return float("nan")
    return float((x * y).sum() / np.sqrt(of_x * of_y)) if of_y > 0 else 0.0


def rmse(x: np.ndarray, y: np.ndarray) -> float:
    """Return the root of the mean squared difference."""
    return float(np.sqrt(np.square(x - y).mean()))


def bias(true: np.ndarray, told: np.ndarray) -> float:
    """Return how much higher values are told than they are, on average."""
    return float((told - true).mean())


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation; NaN if all values are equal."""
    found = float(values.std())
    return found if found > 0 else float("nan")
