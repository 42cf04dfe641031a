"""Linear probes: how well do frozen features predict the variables of a game?

    python -m sgi.prepare --game pong --steps 20000 --seed 1 --name pong_probe
    python -m polyview.evaluate --run runs/a --references

As in Anand et al. 2019 (AtariARI), variables are bytes of the console's RAM in recorded
play. Each is predicted as a number, by ridge regression, and as one of its values, by a
linear classifier: ridge regression onto one-hot rows, then the largest output. The
penalties are chosen for each variable on episodes held out from training; the test uses
other, later episodes only.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from sklearn.metrics import f1_score

from polyview import hosts
from polyview.errors import InputError, nearest
from polyview.evaluation.base import Result
from polyview.evaluation.ridge import predictions
from polyview.nn.towers import Features
from sgi import recording
from sgi.episodes import OfEpisodes, Parts, Read
from sgi.ram import ADDRESSES

_SHOWN = 12  # frames of the test episodes kept for a figure


@dataclasses.dataclass(frozen=True)
class Variables(OfEpisodes):
    """R^2, accuracy and macro F1 of each variable; called as `(represent, mesh)`.

    The recording must have RAM.

    Attributes:
      strengths: ridge penalties to choose from; see `polyview.evaluation.ridge`.
      entropy: in nats; variables below it are left out (AtariARI: 0.6).
    """

    strengths: Sequence[float] = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    entropy: float = 0.6

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {"frames": features}` on stacks of frames.

        Raises InputError if the game has no known variables, or if the recording has no
        RAM or too few episodes.
        """
        began = time.perf_counter()
        game = recording.describe(self.recording, self.data_dir)["game"]
        if game not in ADDRESSES:
            raise InputError(
                f"no known variables of '{game}'{nearest(game, ADDRESSES)}"
            )
        read = self.read(represent, mesh, jumps=0, name="probes")
        source, features, _, parts = read
        if "ram" not in features.targets:
            raise InputError(
                f"recording '{self.recording}' has no RAM of the console (imported "
                "recordings have none); record play with sgi.prepare"
            )
        values = {
            name: features.targets["ram"][:, address].astype(int)
            for name, address in ADDRESSES[game].items()
        }
        entropies = {name: entropy(column) for name, column in values.items()}
        kept = {n: v for n, v in values.items() if entropies[n] >= self.entropy}
        extracted = time.perf_counter()
        variables, readings = self._probe(features.h, kept, parts)
        numbers = {
            "protocol": self._describe(game, read),
            "variables": variables,
            "left_out": {
                name: f"entropy {entropies[name]:.2f} nats, below {self.entropy}"
                for name in values
                if name not in kept
            },
            "machine": hosts.machine(),
            "time": {
                "features": round(extracted - began, 3),
                "probes": round(time.perf_counter() - extracted, 3),
            },
        }
        rows = np.flatnonzero(parts.test)
        shown = np.linspace(0, len(rows) - 1, _SHOWN).round().astype(int)
        sample = {
            "frame": np.stack(
                [_newest(source[i]) for i in features.index[rows[shown]]]
            ),
            "value": np.stack([v[rows[shown]] for v in kept.values()], 1),
            "reading": readings[shown],
        }
        return Result(
            numbers,
            sample,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Return a line: R^2 of each variable, and means of the other measures."""
        each = [f"{n} {one['r2']:.2f}" for n, one in numbers["variables"].items()]
        columns = Variables.columns(numbers)
        accuracy, f1 = columns["accuracy %"], columns["F1 %"]
        return f"R^2 {', '.join(each)}; accuracy {accuracy:.1f} %, F1 {f1:.1f} %"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Return the means over the variables."""
        variables = [*numbers["variables"].values()]
        measures = {
            "R^2": ("r2", 1),
            "accuracy %": ("accuracy", 100),
            "F1 %": ("f1", 100),
        }
        return {
            column: scale * sum(v[measure] for v in variables) / max(len(variables), 1)
            for column, (measure, scale) in measures.items()
        }

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Draw bars of the variables, and frames with readings."""
        from sgi import probes_figures

        return probes_figures.figures(numbers, figure_data)

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Return head and body: a row per variable, the mean last; a column per measure
        and result."""
        measures = {"r2": "R^2", "accuracy": "accuracy", "f1": "F1"}
        head = ["variable"]
        head += [f"{title} {name}" for title in measures.values() for name in results]
        names = [*next(iter(results.values()))["variables"]]
        scores = np.array(
            [
                [r["variables"][name][m] for m in measures for r in results.values()]
                for name in names
            ]
        )
        lines = zip([*names, "mean"], [*scores, scores.mean(0)], strict=True)
        return head, [[name, *(f"{s:.3f}" for s in line)] for name, line in lines]

    @staticmethod
    def comparison(results: Mapping[str, Mapping]) -> dict[str, Any]:
        """Draw the bars of a run and its references, given by name."""
        from sgi import probes_figures

        return {"variables": probes_figures.variables(results)}

    def raw(self, batch: Mapping[str, Any]) -> dict[str, Features]:
        """Return the reference's features: the stack at half size, by 2 x 2 means."""
        frames = jnp.asarray(batch["views"]["frames"])[:, : self.history]
        b, t, h, w = frames.shape
        small = frames.reshape(b, t, h // 2, 2, w // 2, 2).mean((3, 5))
        flat = small.reshape(b, 1, -1) / 255
        return {"frames": Features(z=flat, h=flat, local=None)}

    def _probe(
        self, h: np.ndarray, values: dict[str, np.ndarray], parts: Parts
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return the scores of each variable, and the readings float[test rows, v]."""
        train = ~parts.test
        columns = np.stack([*values.values()], 1)
        classes = [np.unique(column) for column in columns[train].T]
        hot = [columns[:, [i]] == taken for i, taken in enumerate(classes)]
        targets = np.concatenate([columns, *hot], 1).astype(np.float64)
        ends = np.cumsum([columns.shape[1], *map(len, classes)])[:-1]

        def read(rows: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Fit `rows`; predict `at` as numbers and values, [strengths, rows, v]."""
            numbers, answers = [], []
            for predicted in predictions(h[rows], targets[rows], h[at], self.strengths):
                number, *votes = np.split(predicted, ends, 1)
                most = [v.argmax(1) for v in votes]
                numbers.append(number)
                answers.append(np.stack([*map(np.take, classes, most)], 1))
            return np.stack(numbers), np.stack(answers)

        numbers, answers = read(parts.fit, parts.validation)
        held_r2 = r2(columns[parts.validation], numbers)
        held_accuracy = (answers == columns[parts.validation]).mean(1)
        best_r2, best_accuracy = held_r2.argmax(0), held_accuracy.argmax(0)

        numbers, answers = read(train, parts.test)
        each = np.arange(columns.shape[1])
        numbers, answers = (
            numbers[best_r2, :, each].T,
            answers[best_accuracy, :, each].T,
        )
        true = columns[parts.test]
        test_r2, accuracy = r2(true, numbers), (answers == true).mean(0)
        scores = {}
        for i, name in enumerate(values):
            usual = np.bincount(columns[train, i]).argmax()
            scores[name] = {
                "r2": float(test_r2[i]),
                "accuracy": float(accuracy[i]),
                "f1": macro_f1(true[:, i], answers[:, i]),
                "most_frequent": float(np.mean(true[:, i] == usual)),
                "values": len(classes[i]),
                "validation_r2": float(held_r2[best_r2[i], i]),
                "validation_accuracy": float(held_accuracy[best_accuracy[i], i]),
                "chosen": {
                    "r2": self.strengths[best_r2[i]],
                    "accuracy": self.strengths[best_accuracy[i]],
                },
            }
        return scores, numbers

    def _describe(self, game: str, read: Read) -> dict[str, Any]:
        return {
            "recording": repr(read.source),
            "game": game,
            "every": self.every,
            "history": self.history,
            **{
                name: {
                    "rows": int(rows.sum()),
                    "episodes": len(np.unique(read.episode[rows])),
                }
                for name, rows in read.parts._asdict().items()
            },
            "order": "fit, validation and test are whole episodes, in order of play",
            "features": {
                "read": "h, frozen, not trained, centred",
                "dimensions": read.features.h.shape[1],
            },
            "r2": "ridge regression of the value",
            "accuracy": "greatest output of ridge regression onto one-hot values",
            "f1": "of the same answers, mean over the values that occur in test",
            "strengths": list(self.strengths),
            "chosen": "for each variable on validation; refitted on fit and validation",
            "entropy": self.entropy,
        }


def entropy(values: np.ndarray) -> float:
    """Return the entropy of the frequencies of `values: int[n]`, in nats."""
    frequency = np.unique(values, return_counts=True)[1] / len(values)
    return float((frequency * np.log(1 / frequency)).sum())


def r2(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return 1 - squared error / variance of `true[n, v]`, for `predicted[..., n, v]`;
    0 where the variance is 0."""
    variance = true.var(0)
    error = ((predicted - true) ** 2).mean(-2)
    return np.where(variance > 0, 1 - error / np.maximum(variance, 1e-9), 0)


def macro_f1(true: np.ndarray, answers: np.ndarray) -> float:
    """Return the mean F1 over the values that occur in `true: int[n]`."""
    return float(
        f1_score(
            true, answers, labels=np.unique(true), average="macro", zero_division=0
        )
    )


def _newest(example: dict[str, Any]) -> np.ndarray:
    return example["frames"][example["time"]]
