"""The table of scores, one run per row."""

from collections.abc import Callable, Sequence

import numpy as np

from polyview.reporting.read import naming_the_run
from polyview.reporting.tables import aligned, number
from polyview.rl.aggregates import interval
from sgi.reporting.methods import labels
from sgi.reporting.notes import notes_on
from sgi.reporting.read import Run, over_seeds, seed_means

TEXT_COLUMNS = 3  # come first; the others are numbers


@naming_the_run
def summary(runs: Sequence[Run]) -> str:
    """Return the table of scores and the notes as plain text."""
    columns = score_columns(runs)
    body = [[column(run) for column in columns.values()] for run in runs]
    table = aligned(list(columns), body, TEXT_COLUMNS)
    return "\n".join([table, *(f"note: {note}" for note in notes_on(runs))])


def score_columns(runs: Sequence[Run]) -> dict[str, Callable[[Run], str]]:
    """Return the columns of the table of scores; the first ones are text."""
    method = labels(runs)
    found = {
        "game": lambda run: run.game,
        "method": lambda run: method[run.name],
        "run": lambda run: run.name,
        "step": lambda run: number(run.evaluated, ","),
        "seeds": lambda run: seed_count(run.scores),
        "score": lambda run: _mean(run.scores),
        "95% interval": lambda run: _interval(run.scores),
        "HNS": lambda run: _mean(run.normalised, "3f"),
        "its interval": lambda run: _interval(run.normalised, "3f"),
    }
    if any(0 in run.evaluations for run in runs):
        found["random, measured"] = lambda run: _mean(
            seed_means(run.evaluations[0]) if 0 in run.evaluations else None
        )
    return found


def seed_count(scores: np.ndarray | None) -> str:
    """Format the number of evaluated seeds as a cell."""
    return number(None if scores is None else len(scores), "d")


def _mean(scores: np.ndarray | None, digits: str = "1f") -> str:
    return number(None if scores is None else scores.mean(), f",.{digits}")


def _interval(scores: np.ndarray | None, digits: str = "1f") -> str:
    ends = None if scores is None else interval(scores, over_seeds)
    if ends is None:
        return number(None, "")
    return " to ".join(f"{end:,.{digits}}" for end in ends)
