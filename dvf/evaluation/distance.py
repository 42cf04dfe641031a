"""How well futures are drawn: their histogram against that of roll-outs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dvf.evaluation import figures
from dvf.evaluation.queries import Queries, check_discount, read
from dvf.value import FromFutures
from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import check_range
from polyview.evaluation.base import Result
from polyview.evaluation.selective import bootstrap


@dataclass(frozen=True)
class OccupancyDistance:
    """Total variation between futures drawn and rolled out, over cells of two numbers.

        TV = 1/2 sum over cells |share of futures - share of roll-outs|

    A state k steps ahead in a roll-out counts (1 - g) g^(k - 1). Few futures fill few
    cells, so TV is above 0 for a perfect model as well: beside it stands that of as
    many states drawn from the roll-outs. Intervals (95 %) are over starts.

    Attributes:
      truth: roll-outs; see `dvf.evaluation.queries:read`.
      estimate: draws the futures.
      discount: g.
      cell: the side of a cell, in the units of the states.
      dims: the two numbers of a state that are compared.
      walls: for figures, the sides of the world and walls as `dvf.maze` gives them.
      resamples, seed: of the bootstrap.
    """

    truth: Source
    estimate: FromFutures
    discount: float
    cell: float = 0.5
    dims: tuple[int, int] = (0, 1)
    walls: Any = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(2, resamples=self.resamples)
        check_range(1e-9, cell=self.cell)
        check_discount(self.estimate, self.discount)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Measure a model of occupancy."""
        del mesh  # small: every device draws all
        queries = read(self.truth)
        rollouts, steps = queries.futures.shape[1:3]
        rng = np.random.default_rng(self.seed)
        law = np.power(float(self.discount), np.arange(steps))
        law = np.broadcast_to(law / law.sum() / rollouts, (rollouts, steps))
        distances, as_many, clouds, shown = [], [], [], []
        drawn = self.estimate.futures(
            model, queries.state, queries.policy, queries.action
        )
        row = 0
        for states, weights in drawn:
            for own, weight in zip(states, weights, strict=True):
                true = queries.futures[row]
                distances.append(self._distance((own, weight), (true, law)))
                again = _drawn(true.reshape(-1, true.shape[-1]), law, len(own), rng)
                equal = np.full(len(own), 1 / len(own))
                as_many.append(self._distance((again, equal), (true, law)))
                if row < figures.CLOUDS:
                    clouds.append(_drawn(own, weight, figures.POINTS, rng))
                    shown.append(again[: figures.POINTS])
                row += 1
        numbers = {
            "protocol": {
                "truth": repr(self.truth),
                "queries": row,
                "samples": self.estimate.samples,
                "discount": self.discount,
                "cell": self.cell,
            },
            **self._measured(queries, np.array(distances), np.array(as_many)),
            "machine": hosts.machine(),
        }
        return Result(
            numbers,
            self._figure_data(queries, np.stack(clouds), np.stack(shown)),
            summary=self.summary(numbers),
            columns=self.columns(numbers),
        )

    def _distance(self, *sides: tuple[np.ndarray, np.ndarray]) -> float:
        """Return the total variation between weighted states of two sides."""
        places = [
            np.floor(states[..., self.dims].reshape(-1, 2) / self.cell).astype(np.int64)
            for states, _ in sides
        ]
        _, cell = np.unique(np.concatenate(places), axis=0, return_inverse=True)
        cell = cell.reshape(-1)
        first, second = np.split(cell, [len(places[0])])
        count = cell.max() + 1
        shares = [
            np.bincount(own, weights=weights.reshape(-1), minlength=count)
            for own, (_, weights) in zip((first, second), sides, strict=True)
        ]
        return float(abs(shares[0] - shares[1]).sum() / 2)

    def _measured(
        self, queries: Queries, distances: np.ndarray, as_many: np.ndarray
    ) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        for name, values in ("distance", distances), ("as_many", as_many):
            rows = queries.by_start(values)
            found = bootstrap(np.mean, [rows], self.resamples, self.seed)
            numbers[name] = found.value
            numbers[f"{name}_interval"] = [found.low, found.high]
        return numbers

    def _figure_data(
        self, queries: Queries, drawn: np.ndarray, rolled: np.ndarray
    ) -> dict[str, np.ndarray]:
        count = len(drawn)
        data = {
            "drawn": drawn[..., self.dims],
            "rolled": rolled[..., self.dims],
            "start": queries.state[:count][:, self.dims],
            "policy": queries.policy[:count],
        }
        return data | ({} if self.walls is None else {"walls": np.asarray(self.walls)})

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The distance, and that of as many states of the roll-outs."""
        low, high = numbers["distance_interval"]
        return (
            f"futures: total variation {numbers['distance']:.3f} ({low:.3f} to "
            f"{high:.3f}), of as many states of the roll-outs {numbers['as_many']:.3f}"
        )

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The distance."""
        return {"total variation": numbers["distance"]}

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Clouds of futures, drawn above and rolled out below."""
        return {"futures": figures.clouds(figure_data)}


def _drawn(
    states: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return `count` of states[n, d], drawn by their weights."""
    shares = weights.reshape(-1).astype(np.float64)
    return states[rng.choice(len(states), count, p=shares / shares.sum())]
