"""How well values are known in recorded play: against what the recording shows.

The rewards are variables that stand beside the states. The value of one at state t is

    V(s[t]) = sum_{k = 1 .. H} g^k x[t + k]

of the one roll-out that there is. It is noisy, so no estimate reaches a correlation of
1 with it; two references show what is within reach:

    as it is      the variable keeps the value that is read from the state now
    regression    a linear regression of these sums on the state, which needs the
                  variables in training: what supervision attains

The model's values need labels only to read the variables from a state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

from dvf.evaluation.accuracy import bias, correlation, deviation, rmse
from dvf.evaluation.queries import check_discount
from dvf.rewards import Linear, linear, rewarded
from dvf.value import Estimate, returns
from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.drawing import INK, RUNS, WIDTH, styled
from polyview.errors import TINY, InputError, check_range
from polyview.evaluation.base import Result
from polyview.evaluation.selective import bootstrap

SCORE = "score"
KINDS = ("model", "as it is", "regression")
_ROUNDING = 1e-9  # of a sum: a variable that never changes has equal sums but for it


MEASURES = {
    "correlation": correlation,
    "rmse": lambda true, told: rmse(true, told) / deviation(true),
    "bias": lambda true, told: bias(true, told) / deviation(true),
}


class Starts(NamedTuple):
    """States with H steps after them. state: float32[n, d]. policy, episode: int[n].
    value: float64[n, k], of k variables."""

    state: np.ndarray
    policy: np.ndarray
    episode: np.ndarray
    value: np.ndarray


class Labels(NamedTuple):
    """States and the k variables there: float32[n, d], float64[n, k]."""

    state: np.ndarray
    variable: np.ndarray


@dataclass(frozen=True)
class RecordedReturns:
    """Correlation, error and bias of the values of each variable, and of the score.

    Errors and bias are in units of the deviation of the true values, and intervals
    (95 %) are over episodes. The model estimates an infinite sum, but a recording ends,
    so its estimate is multiplied by 1 - g^H, the share of the sum that falls within H
    steps if a variable stays at its mean over the futures. States with fewer than H
    steps left are skipped, so the values assume that play continues for H steps.

    Attributes:
      episodes: tested on, with the fields "states" [t, d], "variables" [t, v] and
        "rewards" [t], as `python -m sgi.latents` writes them.
      labelled: from which the variables are learnt as rewards of a state, and the
        regression. None of its episodes should be in the other.
      variables: {name: its column}, of those that are tested beside the score.
      estimate: `FromFutures` of `dvf.value`.
      discount: g, as in the estimate.
      horizon: H, in steps.
      stride: every so many-th state of an episode is asked.
      resamples, seed: of the bootstrap.
    """

    episodes: Source
    labelled: Source
    variables: Mapping[str, int]
    estimate: Estimate
    discount: float
    horizon: int
    stride: int = 5
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(TINY, 1 - TINY, discount=self.discount)
        check_range(1, horizon=self.horizon, stride=self.stride)
        check_range(2, resamples=self.resamples)
        check_discount(self.estimate, self.discount)
        if SCORE in self.variables:
            raise InputError(f"a variable is called {SCORE!r}; rename it")

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Measure a model of occupancy."""
        del mesh  # small: every device draws all
        names = [*self.variables, SCORE]
        asked, tested = self.read(self.episodes)
        known, labelled = self.read(self.labelled)
        if len(np.unique(asked.episode)) < 2:
            raise InputError(
                f"{self.episodes!r} has one episode of more than {self.horizon} states;"
                " lower the horizon, or record more"
            )
        reward = linear(labelled.state, labelled.variable, names)
        supervised = linear(known.state, known.value, names)
        told = self.estimate(model, asked.state, asked.policy, None, reward)
        powers = np.power(float(self.discount), np.arange(1, self.horizon + 1))
        within = 1 - powers[-1]  # of an endless sum
        values = {
            "model": told.mean * within,
            "as it is": rewarded(reward, asked.state) * powers.sum(),
            "regression": rewarded(supervised, asked.state),
        }
        numbers: dict[str, Any] = {
            "protocol": {
                "episodes": repr(self.episodes),
                "labelled": repr(self.labelled),
                "asked": {
                    "states": len(asked.state),
                    "episodes": len(np.unique(asked.episode)),
                },
                "labels": len(labelled.state),
                "discount": self.discount,
                "horizon": self.horizon,
                "stride": self.stride,
            },
            **self.measured(asked, values, names),
            "machine": hosts.machine(),
        }
        for name, one in numbers["variables"].items():
            column = names.index(name)
            one["read"] = _explained(reward, tested, column)
            if told.standard_error is not None:
                own = np.sqrt(np.square(told.standard_error[:, column]).mean())
                one["standard_error"] = float(own) * within / one["deviation"]
        return Result(
            numbers,
            {"true": asked.value, "told": values["model"]},
            summary=self.summary(numbers),
            columns=self.columns(numbers),
        )

    def read(self, source: Source) -> tuple[Starts, Labels]:
        """Return the starts and all labelled states of episodes.

        Raises InputError for other fields, and if no episode is long enough.
        """
        starts: list[Starts] = []
        labels: list[Labels] = []
        for number in range(len(source)):
            example = source[number]
            states, variables = self._fields(example, source)
            labels.append(Labels(states, variables))
            if len(states) <= self.horizon:
                continue
            ahead = np.lib.stride_tricks.sliding_window_view(
                variables[1:], self.horizon, axis=0
            )[:: self.stride]
            value = returns(np.moveaxis(ahead, -1, -2), self.discount)
            n = len(value)
            policy = np.full(n, example.get("policy", 0), np.int32)
            own = states[:: self.stride][:n]
            starts.append(Starts(own, policy, np.full(n, number), value))
        if not starts:
            raise InputError(
                f"{source!r} has no episode of more than {self.horizon} states; lower "
                "the horizon, or record longer episodes"
            )
        return (
            Starts(*map(np.concatenate, zip(*starts, strict=True))),
            Labels(*map(np.concatenate, zip(*labels, strict=True))),
        )

    def _fields(
        self, example: Mapping[str, Any], source: Source
    ) -> tuple[np.ndarray, np.ndarray]:
        wanted = {"states", "variables", "rewards"}
        if not wanted <= set(example):
            raise InputError(
                f"{source!r} has {sorted(example)}, and this evaluation reads "
                f"{sorted(wanted)}; write them with python -m sgi.latents"
            )
        states = np.asarray(example["states"], np.float32)
        variables = np.asarray(example["variables"], np.float64)
        most = max(self.variables.values(), default=-1)
        if variables.ndim != 2 or not most < variables.shape[1]:
            raise InputError(
                f"{source!r} has variables of shape {list(variables.shape)}, without a "
                f"column {most}; correct variables"
            )
        columns = variables[:, [*map(int, self.variables.values())]]
        score = np.asarray(example["rewards"], np.float64)[:, None]
        return states, np.concatenate([columns, score], 1)

    def measured(
        self, asked: Starts, values: Mapping[str, np.ndarray], names: list[str]
    ) -> dict[str, Any]:
        """Return the numbers of values {kind: float64[n, k]} of these starts."""
        order = np.unique(asked.episode)
        rows = [np.flatnonzero(asked.episode == episode) for episode in order]
        variables: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        for column, name in enumerate(names):
            true = asked.value[:, column]
            if not true.std() > _ROUNDING * abs(true).max():
                left_out[name] = f"its value is {true[0]:g} throughout"
                continue
            variables[name] = {"deviation": float(true.std())}
            for kind in KINDS:
                both = true, values[kind][:, column]
                variables[name][kind] = self._measured(rows, *both)
        if not variables:
            raise InputError(
                f"{self.episodes!r}: no variable and no score changes; record others"
            )
        return {"variables": variables, "left_out": left_out}

    def _measured(
        self, rows: list[np.ndarray], true: np.ndarray, told: np.ndarray
    ) -> dict[str, Any]:
        """Return each measure and its interval."""
        numbers: dict[str, Any] = {}
        for name, measure in MEASURES.items():

            def of(episodes: np.ndarray, measure: Any = measure) -> float:
                drawn = np.concatenate([rows[episode] for episode in episodes])
                return measure(true[drawn], told[drawn])

            every = [np.arange(len(rows))]
            found = bootstrap(of, every, self.resamples, self.seed)
            numbers[name] = found.value
            numbers[f"{name}_interval"] = [found.low, found.high]
        return numbers

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The correlation of each variable, and of both references on average."""
        told = []
        for name, one in numbers["variables"].items():
            low, high = one["model"]["correlation_interval"]
            value = f"{one['model']['correlation']:.2f} ({low:.2f} to {high:.2f})"
            told.append(f"{name} {value}")
        means = [f"{kind} {_mean(numbers, kind, 'correlation'):.2f}" for kind in KINDS]
        return f"correlation of returns: {', '.join(told)}; mean: {', '.join(means)}"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Means over the variables."""
        return {
            "correlation of returns": _mean(numbers, "model", "correlation"),
            "as it is": _mean(numbers, "as it is", "correlation"),
            "regression": _mean(numbers, "regression", "correlation"),
            "RMSE / deviation": _mean(numbers, "model", "rmse"),
        }

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """The correlation of each variable, beside both references."""
        del figure_data
        return {"returns": bars(numbers["variables"])}


def _explained(reward: Linear, labels: Labels, column: int) -> float | None:
    """Return R^2 of a variable as read from the states; None if it is constant."""
    true = labels.variable[:, column]
    error = rewarded(reward, labels.state)[:, column] - true
    if not true.std() > 0:
        return None
    return float(1 - np.square(error).mean() / true.var())


def _mean(numbers: Mapping, kind: str, measure: str) -> float:
    """Return the mean of a measure over the variables."""
    each = [one[kind][measure] for one in numbers["variables"].values()]
    return sum(each) / len(each)


@styled
def bars(variables: Mapping[str, Mapping]) -> Figure:
    """Correlations with returns and their intervals, three bars a variable."""
    figure = Figure(figsize=(WIDTH, 1.0 + 0.5 * len(variables)), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(variables), dtype=float)
    for number, kind in enumerate(KINDS):
        found = [one[kind] for one in variables.values()]
        value = np.array([one["correlation"] for one in found])
        ends = [one["correlation_interval"] for one in found]
        away = abs(np.array(ends).T - value[None])
        axes.barh(
            place + 0.27 * (number - 1),
            value,
            0.25,
            xerr=away,
            color=RUNS[number],
            ecolor=INK,
            error_kw={"elinewidth": 0.8},
            label=kind,
        )
    axes.set_yticks(place, list(variables))
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("correlation with the return of the recording")
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return figure
