"""Probes: what does a linear function of frozen features say of the game's variables?

    python -m sgi.prepare --game pong --steps 20000 --seed 1 --name pong_probe
    python -m polyview.evaluate --run runs/a --references

As Anand et al. 2019 (AtariARI) ask, of bytes of the console's memory in recorded play.
A variable is predicted as a number, by ridge regression, and as one of the values that
it takes, by a linear classifier: ridge regression onto one-hot rows, whose greatest
output answers. Their strengths are chosen for each variable on episodes held out from
training; other, later episodes are for the test alone.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from sklearn.metrics import f1_score

from polyview import hosts
from polyview.errors import InputError, nearest
from polyview.evaluation.base import Result
from polyview.evaluation.features import Extracted, extract
from polyview.evaluation.ridge import predictions
from polyview.nn.towers import Features
from sgi import recording
from sgi.ram import ADDRESSES
from sgi.replay import Replay, Window

_SHOWN = 12  # frames of the test episodes kept for a figure


class Parts(NamedTuple):
    """Masks bool[n] of the rows, by their episodes, in the order of play."""

    fit: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class Variables:
    """R^2, accuracy and macro F1 of each variable; called as `(represent, mesh)`.

    Attributes:
      recording: play whose memory was recorded; read when called.
      data_dir: where it is; see `sgi.replay.Replay`.
      every: of its steps every so many-th is a row: neighbours are much alike.
      history: frames of an observation.
      validation, test: shares of the episodes, one at least; test takes the last.
      strengths: of the penalty, to choose from; see `polyview.evaluation.ridge`.
      entropy: in nats; a variable below it is left out (AtariARI: 0.6).
      batch_size: global, of the encoder.
    """

    recording: str
    data_dir: str | None = None
    every: int = 2
    history: int = recording.HISTORY
    validation: float = 0.2
    test: float = 0.2
    strengths: Sequence[float] = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    entropy: float = 0.6
    batch_size: int = 100

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {"frames": features}` of stacks of frames.

        Raises InputError where the game has no known variables or the recording no
        memory, or too few episodes.
        """
        began = time.perf_counter()
        game = recording.describe(self.recording, self.data_dir)["game"]
        if game not in ADDRESSES:
            raise InputError(
                f"no variables of '{game}' known{nearest(game, ADDRESSES)}"
            )
        source = Replay(
            self.recording, data_dir=self.data_dir, ahead=0, every=self.every
        )
        found = extract(
            represent,
            source,
            Window(jumps=0, history=self.history, goal=None),
            batch_size=self.batch_size,
            mesh=mesh,
            modality="frames",
            name="probes",
        )
        if "ram" not in found.targets:
            raise InputError(
                f"recording '{self.recording}' has no memory of the console, as none "
                "that was imported; record play with sgi.prepare"
            )
        parts = self._parts(source.episode[found.index])
        values = {
            name: found.targets["ram"][:, address].astype(int)
            for name, address in ADDRESSES[game].items()
        }
        entropies = {name: entropy(of) for name, of in values.items()}
        kept = {n: v for n, v in values.items() if entropies[n] >= self.entropy}
        extracted = time.perf_counter()
        variables, readings = self._probe(found.h, kept, parts)
        numbers = {
            "protocol": self._describe(game, found, source, parts),
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
            "frame": np.stack([_newest(source[i]) for i in found.index[rows[shown]]]),
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
        """R^2 of each variable, and the means of the other measures."""
        each = [f"{n} {of['r2']:.2f}" for n, of in numbers["variables"].items()]
        columns = Variables.columns(numbers)
        accuracy, f1 = columns["accuracy %"], columns["F1 %"]
        return f"R^2 {', '.join(each)}; accuracy {accuracy:.1f} %, F1 {f1:.1f} %"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Means over the variables."""
        found = [*numbers["variables"].values()]
        measures = {
            "R^2": ("r2", 1),
            "accuracy %": ("accuracy", 100),
            "F1 %": ("f1", 100),
        }
        return {
            column: scale * sum(one[measure] for one in found) / max(len(found), 1)
            for column, (measure, scale) in measures.items()
        }

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Bars of the variables, and readings beside frames."""
        from sgi import probes_figures

        return probes_figures.figures(numbers, figure_data)

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Head and body: a line a variable, the mean last; a column a measure and
        result."""
        measures = {"r2": "R^2", "accuracy": "accuracy", "f1": "F1"}
        head = ["variable"]
        head += [f"{title} {name}" for title in measures.values() for name in results]
        names = [*next(iter(results.values()))["variables"]]
        scores = np.array(
            [
                [results[of]["variables"][name][m] for m in measures for of in results]
                for name in names
            ]
        )
        lines = zip([*names, "mean"], [*scores, scores.mean(0)], strict=True)
        return head, [[name, *(f"{s:.3f}" for s in line)] for name, line in lines]

    @staticmethod
    def comparison(results: Mapping[str, Mapping]) -> dict[str, Any]:
        """The same bars for a run and its references, by their names."""
        from sgi import probes_figures

        return {"variables": probes_figures.variables(results)}

    def raw(self, batch):
        """The features of the reference: the stack at half its size, mean of 2 x 2."""
        frames = jnp.asarray(batch["views"]["frames"])[:, : self.history]
        b, t, h, w = frames.shape
        small = frames.reshape(b, t, h // 2, 2, w // 2, 2).mean((3, 5))
        flat = small.reshape(b, 1, -1) / 255
        return {"frames": Features(z=flat, h=flat, local=None)}

    def _parts(self, episode: np.ndarray) -> Parts:
        order = np.unique(episode)
        count = [max(1, round(s * len(order))) for s in (self.validation, self.test)]
        if len(order) <= sum(count):
            raise InputError(
                f"recording '{self.recording}' has {len(order)} episodes: too few to "
                "fit, choose and test on different ones; record more steps"
            )
        test = order[-count[1]]
        validation = order[-sum(count)]
        return Parts(
            episode < validation,
            (validation <= episode) & (episode < test),
            test <= episode,
        )

    def _probe(self, h: np.ndarray, values: dict[str, np.ndarray], parts: Parts):
        """What is said of each variable, and float[test rows, v] as numbers."""
        train = ~parts.test
        columns = np.stack([*values.values()], 1)
        classes = [np.unique(column) for column in columns[train].T]
        hot = [columns[:, [i]] == values for i, values in enumerate(classes)]
        targets = np.concatenate([columns, *hot], 1).astype(np.float64)
        ends = np.cumsum([columns.shape[1], *map(len, classes)])[:-1]

        def read(rows: np.ndarray, at: np.ndarray):
            """The rows `at` as numbers and as values: [strengths, rows, v] both."""
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
        said = {}
        for i, name in enumerate(values):
            usual = np.bincount(columns[train, i]).argmax()
            said[name] = {
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
        return said, numbers

    def _describe(self, game, found: Extracted, source, parts: Parts) -> dict[str, Any]:
        episode = source.episode[found.index]
        return {
            "recording": repr(source),
            "game": game,
            "every": self.every,
            "history": self.history,
            **{
                name: {
                    "rows": int(rows.sum()),
                    "episodes": len(np.unique(episode[rows])),
                }
                for name, rows in parts._asdict().items()
            },
            "order": "fit, validation and test are whole episodes, in order of play",
            "features": {
                "read": "h, frozen, not trained, centred",
                "dimensions": found.h.shape[1],
            },
            "r2": "ridge regression of the value",
            "accuracy": "greatest output of ridge regression onto one-hot values",
            "f1": "of the same answers, mean over the values that occur in test",
            "strengths": list(self.strengths),
            "chosen": "for each variable on validation; refitted on fit and validation",
            "entropy": self.entropy,
        }


def entropy(values: np.ndarray) -> float:
    """Entropy of the frequencies of `values: int[n]`, in nats."""
    frequency = np.unique(values, return_counts=True)[1] / len(values)
    return float((frequency * np.log(1 / frequency)).sum())


def r2(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 - squared error / variance of `true[n, v]`, for `predicted[..., n, v]`; 0 where
    it does not vary."""
    variance = true.var(0)
    error = ((predicted - true) ** 2).mean(-2)
    return np.where(variance > 0, 1 - error / np.maximum(variance, 1e-9), 0)


def macro_f1(true: np.ndarray, answers: np.ndarray) -> float:
    """F1 of each value that occurs in `true: int[n]`, and their mean."""
    return float(
        f1_score(
            true, answers, labels=np.unique(true), average="macro", zero_division=0
        )
    )


def _newest(example: dict[str, Any]) -> np.ndarray:
    return example["frames"][example["time"]]
