"""Read fine-tuned runs from the files that `sgi.finetune` wrote."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyview.errors import InputError, fits_together
from polyview.reporting.read import Run as AnyRun
from polyview.reporting.read import read as read_any
from polyview.runs import metrics
from sgi.scores import GAMES, human_normalised

# Keys of a result that must agree for scores to be comparable.
PROTOCOL_KEYS = ("protocol", "epsilon", "episodes", "cap")
_MOST_SEEDS = 1000  # per run; an interval draws 5,000 times as many


@dataclasses.dataclass(frozen=True)
class Run(AnyRun):
    """A fine-tuned run; `episodes` are the games finished in training."""

    episodes: list[dict]

    @property
    def game(self) -> str:
        """The name of the game, as ale-py spells it."""
        return self.config["game"]

    @property
    def start(self) -> str:
        """How the run started: with pre-trained weights or from scratch."""
        return "pre-trained" if self.config.get("init_from") else "from scratch"

    @property
    def evaluated(self) -> int | None:
        """The last step at which the agent was evaluated."""
        return max(filter(None, self.evaluations), default=None)

    @property
    def scores(self) -> np.ndarray | None:
        """float[seeds]: the mean raw score of each seed at step `evaluated`."""
        step = self.evaluated
        return None if step is None else seed_means(self.evaluations[step])

    @property
    def normalised(self) -> np.ndarray | None:
        """float[seeds]: `scores`, human-normalised; None outside the table of games."""
        if self.game in GAMES and self.scores is not None:
            return human_normalised(self.game, self.scores)
        return None


def read(paths: Sequence[Path]) -> list[Run]:
    """Read fine-tuned runs and sort them by game and start.

    Raises InputError if a path is not such a run or a file in it is damaged.
    """
    runs = []
    for path, run in zip(paths, read_any(paths), strict=True):
        if not isinstance(run.config.get("game"), str):
            raise InputError(f"{path} is not a run of sgi.finetune: it names no game")
        episodes = metrics.read(path / "episodes.jsonl")
        fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
        runs.append(Run(**fields, episodes=episodes))
        with fits_together(str(path)):
            _check(runs[-1])
    return sorted(runs, key=lambda run: (run.game, run.start))


def _check(run: Run) -> None:
    for step, evaluation in run.evaluations.items():
        try:
            means = seed_means(evaluation)
            fits = means.shape == (len(evaluation["seeds"]),) != (0,)
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            fits = False
        if not fits or not np.isfinite(means).all():
            raise InputError(
                f"{run.path}/eval/{step}.json holds no scores of seeds; evaluate again"
            )
        _check_count(len(means))
    if not all({"seed", "score"} <= line.keys() for line in run.episodes):
        raise InputError(f"{run.path}/episodes.jsonl: a line has no seed or no score")
    if not np.isfinite([float(line["score"]) for line in run.episodes]).all():
        raise InputError(f"{run.path}/episodes.jsonl: a score is not finite")
    _check_count(len({line["seed"] for line in run.episodes}))


def _check_count(seeds: int) -> None:
    if seeds > _MOST_SEEDS:
        raise ValueError(f"{seeds} seeds are more than the limit of {_MOST_SEEDS}")


def seed_means(evaluation: Mapping[str, Any]) -> np.ndarray:
    """Return float[seeds]: the mean raw score of each seed of an evaluation."""
    return np.array([sum(games) / len(games) for games in evaluation["scores"]], float)


def over_seeds(scores: np.ndarray) -> np.ndarray:
    """Return the mean over seeds, `scores[..., seeds] -> [...]`."""
    return scores.mean(axis=-1)
