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
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result
from polyview.evaluation.selective import bootstrap


@dataclass(frozen=True)
class OccupancyDistance:
    """Total variation between futures drawn and rolled out, over cells of two numbers.

        TV = 1/2 sum over cells |share of futures - share of roll-outs|

    A state k steps ahead in a roll-out counts (1 - g) g^(k - 1). Few futures fill few
    cells, and roll-outs differ, so TV is above 0 for a perfect model as well. Beside it
    stands that of as many states drawn from one half of the roll-outs to the other
    half: a model can be a little nearer than that, since it is compared with all.
    Intervals (95 %) are over starts. Raises InputError for fewer than two roll-outs.

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
        if rollouts < 2:
            raise InputError(
                f"{self.truth!r} has one roll-out a row; record two or more"
            )
        rng = np.random.default_rng(self.seed)
        law = np.power(float(self.discount), np.arange(steps))
        half = rollouts // 2
        shown = self._shown(queries)
        distances, as_many, clouds, rolled = [], [], [], []
        drawn = self.estimate.futures(
            model, queries.state, queries.policy, queries.action
        )
        row = 0
        for states, weights in drawn:
            for own, weight in zip(states, weights, strict=True):
                true = queries.futures[row]
                parts = true, true[:half], true[half:]
                whole, first, rest = ((part, _weights(law, part)) for part in parts)
                distances.append(self._distance((own, weight), whole))
                again = _drawn(*first, len(own), rng), np.full(len(own), 1 / len(own))
                as_many.append(self._distance(again, rest))
                if row in shown:
                    clouds.append(_drawn(own, weight, figures.POINTS, rng))
                    rolled.append(_drawn(*whole, figures.POINTS, rng))
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
            self._figure_data(queries, shown, np.stack(clouds), np.stack(rolled)),
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

    def _shown(self, queries: Queries) -> list[int]:
        """Return the rows of the figure: one of each policy, from the first start."""
        of_start = queries.by_start(queries.policy)[0]
        _, first = np.unique(of_start, return_index=True)
        return first[: figures.CLOUDS].tolist()

    def _figure_data(
        self,
        queries: Queries,
        shown: list[int],
        drawn: np.ndarray,
        rolled: np.ndarray,
    ) -> dict[str, np.ndarray]:
        data = {
            "drawn": drawn[..., self.dims],
            "rolled": rolled[..., self.dims],
            "start": queries.state[shown][:, self.dims],
            "policy": queries.policy[shown],
        }
        return data | ({} if self.walls is None else {"walls": np.asarray(self.walls)})

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The distance, and that between halves of the roll-outs."""
        low, high = numbers["distance_interval"]
        return (
            f"futures: total variation {numbers['distance']:.3f} ({low:.3f} to "
            f"{high:.3f}), between halves of the roll-outs {numbers['as_many']:.3f}"
        )

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The distance."""
        return {"total variation": numbers["distance"]}

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Clouds of futures, drawn above and rolled out below."""
        return {"futures": figures.clouds(figure_data)}


def _weights(law: np.ndarray, rollouts: np.ndarray) -> np.ndarray:
    """Return the weights [r, t] of the states of roll-outs[r, t, d], by law[t]."""
    return np.broadcast_to(law / law.sum() / len(rollouts), rollouts.shape[:2])


def _drawn(
    states: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return `count` of states[..., d], drawn by their weights[...]."""
    flat = states.reshape(-1, states.shape[-1])
    shares = weights.reshape(-1).astype(np.float64)
    return flat[rng.choice(len(flat), count, p=shares / shares.sum())]
