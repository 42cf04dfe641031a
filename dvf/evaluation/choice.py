"""Control by choosing a policy: generalised policy improvement over known policies.

At a start, the policy (or first action) with the highest value is followed (Barreto et
al. 2017). The share of the gap compares its true return with choosing at random and
with the best choice:

    share = sum (V[chosen] - mean V) / sum (max V - mean V)

over starts and rewards, V being the means of the roll-outs.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dvf.control import best_policy
from dvf.evaluation.queries import Queries, check_discount, read, truth
from dvf.rewards import Reward
from dvf.value import Estimate, Value
from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result
from polyview.evaluation.selective import bootstrap


@dataclass(frozen=True)
class PolicyChoice:
    """Returns of the choice with the highest value at each start, for each reward.

    Compared with the best single choice: that which is best on average over the starts,
    chosen by their true values; and with choices by half of the roll-outs, measured in
    the other half. The best is found where choices differ at all. The intervals (95 %)
    are over starts.

    Attributes:
      truth, reward, estimate, discount, resamples, seed: see
        `dvf.evaluation.accuracy:ValueAccuracy`. Each start needs the same choices, in
        the same order.
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
        """Measure the choices by a model's values."""
        del mesh  # small: every device draws all
        queries = read(self.truth)
        if queries.by_start(queries.policy).shape[1] < 2:
            raise InputError(f"{self.truth!r} has one row a start: nothing to choose")
        told = self.estimate(
            model, queries.state, queries.policy, queries.action, self.reward
        )
        numbers: dict[str, Any] = {
            "protocol": {
                "truth": repr(self.truth),
                "starts": queries.starts,
                "choices": len(queries.state) // queries.starts,
                "rewards": list(self.reward.names),
                "discount": self.discount,
            },
            **self.measured(queries, told),
            "machine": hosts.machine(),
        }
        return Result(
            numbers, summary=self.summary(numbers), columns=self.columns(numbers)
        )

    def measured(self, queries: Queries, told: Value) -> dict[str, Any]:
        """Return the numbers of the choices by values, float64[n, k], of queries."""
        true = queries.by_start(truth(queries, self.reward, self.discount).mean)
        chosen = best_policy(queries.by_start(told.mean))
        rows = np.arange(len(true))[:, None]
        got = true[rows, chosen, np.arange(true.shape[2])[None]]
        best, average = true.max(1), true.mean(1)
        single = true[:, true.mean(0).argmax(0), np.arange(true.shape[2])]
        if not (best - average).sum() > 0:
            raise InputError("all choices are worth the same; choose other rewards")
        differs = best > average
        numbers: dict[str, Any] = {}
        for name, by in ("share", got), ("single", single):
            found = bootstrap(
                lambda part: share(*np.moveaxis(part, -1, 0)),
                [np.stack([by, average, best], -1)],
                self.resamples,
                self.seed,
            )
            numbers[name] = found.value
            numbers[f"{name}_interval"] = [found.low, found.high]
        return numbers | {
            "best_found": float((got >= best)[differs].mean()),
            "by_half": self._by_half(queries),
            "returns": {
                "chosen": float(got.mean()),
                "best single": float(single.mean()),
                "best": float(best.mean()),
                "at random": float(average.mean()),
            },
            "chosen": chosen.tolist(),
        }

    def _by_half(self, queries: Queries) -> float | None:
        """Return the share of the choices by half of the roll-outs, in the other half.

        None for one roll-out. True values are estimates too, and their best is partly
        chance: a model that knows them all does not find it either.
        """
        half = queries.futures.shape[1] // 2
        if not half:
            return None
        first, rest = (
            queries.by_start(truth(part, self.reward, self.discount).mean)
            for part in (
                dataclasses.replace(queries, futures=queries.futures[:, :half]),
                dataclasses.replace(queries, futures=queries.futures[:, half:]),
            )
        )
        rows, rewards = np.arange(len(rest))[:, None], np.arange(rest.shape[2])[None]
        got = rest[rows, best_policy(first), rewards]
        found = share(got, rest.mean(1), rest.max(1))
        return found if np.isfinite(found) else None

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The share of the gap, beside the best single choice."""
        low, high = numbers["share_interval"]
        known = numbers.get("by_half")
        other = f", by half of the roll-outs {known:.3f}" if known is not None else ""
        return (
            f"choice: {numbers['share']:.3f} ({low:.3f} to {high:.3f}) of the gap, the "
            f"best single choice {numbers['single']:.3f}{other}; the best is found in "
            f"{100 * numbers['best_found']:.0f} %"
        )

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The share of the gap."""
        return {"share of the gap": numbers["share"]}


def share(got: np.ndarray, average: np.ndarray, best: np.ndarray) -> float:
    """Return sum (got - average) / sum (best - average); NaN if all are equal."""
    gap = float((best - average).sum())
    return float((got - average).sum()) / gap if gap > 0 else float("nan")
