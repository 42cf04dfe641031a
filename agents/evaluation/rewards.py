"""How well a reward network orders what is seen, on pairs that it has not seen."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from agents.feedback import labels as files
from agents.feedback.audit import audit, share, spearman
from agents.feedback.distil import Pair
from agents.feedback.pairs import describe
from polyview.data.sources.protocol import Source, default_data_dir
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.selective import bootstrap

_ROWS = 256  # pairs of a call of the model
_OF_JUDGE = ("pairs", "accuracy", "accuracy_one_order", "first_answers", "agreement")


@dataclass(frozen=True)
class Rewards:
    """Order of held-out moments by a reward, and its scale where it was trained.

    Numbers, each with an interval of 95 %:

        spearman    of r and true value over distinct moments, resampled by episode
        truth       the share of pairs that r orders as their true values do; within:
                    of those of one episode; across: of two
        labels      the share that r orders as the labels do, ties left out; None if no
                    pair of this split is labelled
        judge       what the labels of the training split are worth themselves; see
                    `agents.feedback.audit`
        scale       of r over distinct moments of the training split: mean, deviation,
                    and `quantiles`, at 0, .05, ... 1; for `agents.feedback.shaping`

    Attributes:
      test: pairs of a split that the network was not trained on.
      known: pairs that it was trained on.
      views: as in training.
      name, labels, tie_quantile, orders: see `agents.feedback.distil:Preferred`.
      resamples, seed: of the bootstrap.
    """

    test: Source
    known: Source
    views: Pair
    name: str
    labels: str
    tie_quantile: float = 0.2
    orders: str = "both"
    resamples: int = 200
    seed: int = 0
    spec: Mapping | None = None  # what a config calls its parts; set by `described`

    def __post_init__(self) -> None:
        check_range(2, 100_000, resamples=self.resamples)
        check_range(0, seed=self.seed)

    def described(self, spec: Mapping) -> "Rewards":
        """Return a copy whose protocol names its sources by their spec."""
        return dataclasses.replace(self, spec=spec)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Measure a model."""
        del mesh  # small: every device measures all
        pairs, rewards = self._scored(model, self.test)
        values = np.array([pair["value"] for pair in pairs], np.float64)
        seen = _moments(pairs, rewards, values)
        known, of_known = self._scored(model, self.known)
        scale = _scale(_moments(known, of_known, np.zeros(of_known.shape)).rewards)
        labels = self._read()
        judge = audit(known, labels)
        numbers: dict[str, Any] = {
            "protocol": {
                "test": in_words(self.spec, "test", self.test),
                "known": in_words(self.spec, "known", self.known),
                "pairs": len(pairs),
                "labels": self.labels,
                "orders": self.orders,
                "seed": self.seed,
            },
            "moments": len(seen.rewards),
            **self._correlation(seen),
            "truth": _truth(pairs, rewards, values),
            "labels": self._labels(labels, pairs, rewards),
            "judge": {key: judge.get(key) for key in _OF_JUDGE},
            "scale": scale,
        }
        return Result(
            numbers,
            {"rewards": seen.rewards, "values": seen.values},
            summary=self.summary(numbers),
            columns=self.columns(numbers),
        )

    def _scored(self, model: Any, source: Source) -> tuple[list[Any], np.ndarray]:
        """Return the pairs of a split, and their rewards float64[n, 2]."""
        pairs = [source[index] for index in range(len(source))]
        found = []
        for start in range(0, len(pairs), _ROWS):
            own = pairs[start : start + _ROWS]
            rows = [self.views.shown(pair) for pair in own]
            rows += rows[-1:] * (_ROWS - len(own))  # one shape, one program
            views = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            found.append(np.asarray(model.call("pairs", views))[: len(own)])
        return pairs, np.concatenate(found).astype(np.float64)

    def _correlation(self, seen: "_Moments") -> dict[str, Any]:
        valued = np.isfinite(seen.values)
        episodes = np.unique(seen.episodes[valued])
        rows = [
            np.flatnonzero(valued & (seen.episodes == episode)) for episode in episodes
        ]

        def of(chosen: np.ndarray) -> float:
            every = np.concatenate([rows[number] for number in chosen])
            return spearman(seen.rewards[every], seen.values[every])

        nothing = {"spearman": None, "spearman_interval": None}
        if len(rows) < 2 or not np.isfinite(of(np.arange(len(rows)))):
            return nothing
        found = bootstrap(of, [np.arange(len(rows))], self.resamples, self.seed)
        interval = [found.low, found.high]
        return {"spearman": found.value, "spearman_interval": interval}

    def _read(self) -> files.Labels:
        folder = Path(default_data_dir()) / self.name
        path = files.path_of(folder, self.labels)
        return files.read(path, describe(self.name)["digest"])

    def _labels(
        self, labels: files.Labels, pairs: list[Any], rewards: np.ndarray
    ) -> dict | None:
        calibration = {int(pair["pair"]) for pair in _all(self.known)}
        sides = files.preference(labels, self.tie_quantile, self.orders, calibration)
        own = [sides.get(int(pair["pair"]), 0.5) - 0.5 for pair in pairs]
        found = share(rewards[:, 0] - rewards[:, 1], np.array(own))
        return found if found["pairs"] else None

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Correlation with values, and the shares of pairs in the right order."""
        parts = []
        if numbers["spearman"] is not None:
            low, high = numbers["spearman_interval"]
            parts.append(
                f"Spearman {numbers['spearman']:.3f} ({low:.3f} to {high:.3f})"
            )
        for key, name in (("truth", "values"), ("labels", "labels")):
            if (own := numbers[key]) and own["share"] is not None:
                parts.append(f"{own['share']:.3f} of pairs ordered as {name} do")
        if (judge := numbers["judge"]["accuracy"]) and judge["share"] is not None:
            parts.append(f"the labels are right in {judge['share']:.3f}")
        scale = numbers["scale"]
        parts.append(f"reward {scale['mean']:.2f} +- {scale['deviation']:.2f}")
        return ", ".join(parts)

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Correlation with values, and accuracies in %."""
        found = {}
        if numbers["spearman"] is not None:
            found["Spearman"] = numbers["spearman"]
        for key in ("truth", "labels"):
            if (own := numbers[key]) and own["share"] is not None:
                found[f"{key} %"] = 100 * own["share"]
        of_judge = {"accuracy": "judge %", "accuracy_one_order": "asked once %"}
        for key, name in of_judge.items():
            if (judge := numbers["judge"][key]) and judge["share"] is not None:
                found[name] = 100 * judge["share"]
        return found


class _Moments(NamedTuple):
    """Distinct moments: their rewards and values float64[n], and episodes int64[n]."""

    rewards: np.ndarray
    values: np.ndarray
    episodes: np.ndarray


def _moments(pairs: list[Any], rewards: np.ndarray, values: np.ndarray) -> _Moments:
    keys = [
        (pair["task"], int(pair["episode"][i]), int(pair["time"][i]))
        for pair in pairs
        for i in range(2)
    ]
    first: dict[tuple, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    rows = [*first.values()]
    episodes = np.array([task << 32 | seed for task, seed, _ in first], np.int64)
    return _Moments(rewards.reshape(-1)[rows], values.reshape(-1)[rows], episodes)


def _truth(pairs: list[Any], rewards: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    gaps = values[:, 0] - values[:, 1]
    gaps = np.where(np.isfinite(gaps), gaps, 0)  # not known: left out
    scores = rewards[:, 0] - rewards[:, 1]
    within = np.array([len(set(map(int, pair["episode"]))) == 1 for pair in pairs])
    return {
        **share(scores, gaps),
        "within": share(scores[within], gaps[within]),
        "across": share(scores[~within], gaps[~within]),
    }


def _scale(rewards: np.ndarray) -> dict[str, Any]:
    """Return mean, deviation and quantiles. Raises InputError if one is not finite."""
    if not np.isfinite(rewards).all():
        raise InputError(
            "a reward of the training pairs is not finite: the network is damaged, or "
            "its numbers overflow"
        )
    quantiles = np.quantile(rewards, np.linspace(0, 1, 21))
    return {
        "mean": float(rewards.mean()),
        "deviation": float(rewards.std()),
        "quantiles": quantiles.tolist(),
    }


def _all(source: Source) -> list[Any]:
    return [source[index] for index in range(len(source))]
