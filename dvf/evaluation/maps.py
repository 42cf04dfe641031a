"""Values over a maze, of each policy: told by a model, and rolled out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dvf.evaluation import figures
from dvf.evaluation.accuracy import correlation
from dvf.evaluation.queries import check_discount, read, truth
from dvf.maze import Maze
from dvf.rewards import Reward
from dvf.value import Estimate
from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result


@dataclass(frozen=True)
class ValueMaps:
    """Maps of a reward that is chosen after training: V at rest, over all free cells.

    With roll-outs from these places the result has the correlation of both maps, over
    places and policies, and the same of the highest value at each place.

    Attributes:
      maze: rows, cell and centre, as `dvf.maze:Maze` takes them.
      rest: a state at rest, float[d]; its first two numbers are replaced by places.
      policies: how many, by their number.
      reward: one reward.
      estimate: `FromFutures` or `Direct` of `dvf.value`.
      discount: g of the values.
      side: places along the side of a cell.
      truth: roll-outs from these places; see `dvf.evaluation.queries:read`. None: a map
        of the model alone.
    """

    maze: Mapping[str, Any]
    rest: Sequence[float]
    policies: int
    reward: Reward
    estimate: Estimate
    discount: float
    side: int = 2
    truth: Source | None = None

    def __post_init__(self) -> None:
        check_range(1, policies=self.policies, side=self.side)
        check_discount(self.estimate, self.discount)
        if len(self.reward.names) != 1:
            raise InputError(
                f"a map shows one reward, and there are {len(self.reward.names)}"
            )

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Draw the maps of a model of occupancy, or of values."""
        del mesh  # small: every device draws all
        maze = Maze(self.maze["rows"], self.maze["cell"], self.maze["centre"])
        places = maze.places(self.side)
        told = self._told(model, places)
        data = {
            "told": told,
            "places": places,
            "step": np.array(maze.cell / self.side),
            "walls": maze.blocks(),
        }
        if hasattr(self.reward, "centres") and hasattr(self.reward, "radius"):
            goals = np.asarray(self.reward.centres, np.float64)[:, :2]
            data |= {"goals": goals, "radius": np.array(self.reward.radius)}
        numbers: dict[str, Any] = {
            "protocol": {
                "truth": None if self.truth is None else repr(self.truth),
                "places": len(places),
                "policies": self.policies,
                "reward": self.reward.names[0],
                "discount": self.discount,
            },
            "highest": float(told.max()),
        }
        if self.truth is not None:
            data["true"] = true = self._true(self.truth, places)
            pairs = {
                "correlation": (true, told),
                "correlation_of_best": (true.max(0), told.max(0)),
            }
            for name, (x, y) in pairs.items():
                found = correlation(x.reshape(-1), y.reshape(-1))
                # No roll-out may meet the reward.
                numbers[name] = found if np.isfinite(found) else None
        numbers["machine"] = hosts.machine()
        return Result(numbers, data, summary=self.summary(numbers))

    def _told(self, model: Any, places: np.ndarray) -> np.ndarray:
        """Return the values that a model tells, float64[policies, places]."""
        states = np.tile(np.asarray(self.rest, np.float32), (len(places), 1))
        states[:, :2] = places
        told = self.estimate(
            model,
            np.tile(states, (self.policies, 1)),
            np.repeat(np.arange(self.policies, dtype=np.int32), len(places)),
            None,
            self.reward,
        )
        return told.mean.reshape(self.policies, len(places))

    def _true(self, source: Source, places: np.ndarray) -> np.ndarray:
        """Return the values of the roll-outs, float64[policies, places].

        Raises InputError for roll-outs from other places, or of other policies.
        """
        queries = read(source)
        begun = queries.by_start(queries.state)[:, 0, :2]
        acting = queries.by_start(queries.policy)[0]
        if (
            begun.shape != places.shape
            or not np.allclose(begun, places, atol=1e-4)
            or acting.tolist() != list(range(self.policies))
        ):
            raise InputError(
                f"{source!r} has roll-outs of policies {acting.tolist()} from "
                f"{len(begun)} places, not of {self.policies} policies from these "
                f"{len(places)}; set side and policies to the data"
            )
        true = truth(queries, self.reward, self.discount).mean
        return queries.by_start(true)[..., 0].T

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The highest value, and how well the maps agree, where roll-outs tell."""
        places, highest = numbers["protocol"]["places"], numbers["highest"]
        text = f"maps: values up to {highest:.2f} at {places} places"
        if (known := numbers.get("correlation")) is None:
            return text
        return (
            f"{text}, correlation with roll-outs {known:.3f}, of the best policy's "
            f"{numbers['correlation_of_best']:.3f}"
        )

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Maps of policies, told above and rolled out below."""
        return {"maps": figures.maps(figure_data)}
