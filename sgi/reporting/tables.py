"""Tables: scores, a row for all seeds; published ones; aggregates over games."""

import html
from collections.abc import Callable, Sequence

import numpy as np

from polyview.reporting.read import naming_the_run
from polyview.reporting.tables import aligned, number
from polyview.rl.aggregates import (
    AGGREGATES,
    improvement_interval,
    interval,
    probability_of_improvement,
)
from sgi.reporting.methods import Method, labels, methods_of
from sgi.reporting.notes import notes_on
from sgi.reporting.read import Run, over_seeds, seed_means
from sgi.reporting.seeds import pooled
from sgi.scores import GAMES, PUBLISHED

TEXT_COLUMNS = 3  # the first columns; the others are numbers


@naming_the_run
def summary(runs: Sequence[Run]) -> str:
    """Return the tables and the notes as plain text."""
    rows = pooled(runs)
    columns = score_columns(rows)
    body = [[column(run) for column in columns.values()] for run in rows]
    parts = [aligned(list(columns), body, TEXT_COLUMNS)]
    if compared := improvement(methods_of(runs)):
        parts += ["", aligned(*compared, 1)]
    return "\n".join([*parts, *(f"note: {note}" for note in notes_on(runs))])


def score_columns(runs: Sequence[Run]) -> dict[str, Callable[[Run], str]]:
    """Return the columns of the table of scores; the first ones are text.

    runs: one a row, as `pooled` returns them.
    """
    method = labels(runs)
    columns = {
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
        columns["random, measured"] = lambda run: _mean(
            seed_means(run.evaluations[0]) if 0 in run.evaluations else None
        )
    return columns


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


def published_scores(games: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of published scores of these games."""
    body = [
        [game, *(number(score, ",.1f") for score in GAMES[game])]
        for game in games
        if game in GAMES
    ]
    return ["game", "random", "human", "SPR", "DER", "data"], body


def aggregate_scores(
    methods: Sequence[Method],
) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of human-normalised scores over games, as HTML."""
    body, missing = [], number(None, "")
    for method in methods:
        assert method.scores is not None  # only such methods have aggregates
        cells = [html.escape(method.label), str(len(method.games))]
        cells.append(missing if method.published else seed_count(method.scores))
        for aggregate in AGGREGATES.values():
            ends = interval(method.scores, aggregate)
            shown = f"{aggregate(method.scores):.3f}"
            if ends is not None:
                shown += f" ({ends[0]:.3f} to {ends[1]:.3f})"
            cells.append(shown)
        body.append(cells)
    if any(set(method.games) == set(GAMES) for method in methods):
        for name, (median, mean) in PUBLISHED.items():
            known = [missing, f"{median:.3f}", f"{mean:.3f}", missing]
            body.append([f"{name}, published*", str(len(GAMES)), missing, *known])
    return ["method", "games", "seeds", *AGGREGATES], body


def improvement(
    methods: Sequence[Method],
) -> tuple[list[str], list[list[str]]] | None:
    """Return head and row of the probability that a method improves on another.

    Returns None unless exactly two methods have scores, both on the same games.
    """
    scored = [(m, m.scores) for m in methods if m.scores is not None]
    if len(scored) != 2 or set(scored[0][0].games) != set(scored[1][0].games):
        return None
    (one, theirs), (other, ours) = scored
    ours = ours[:, [other.games.index(game) for game in one.games]]
    ends = improvement_interval(ours, theirs)
    shown = number(None, "") if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
    chance = f"{probability_of_improvement(ours, theirs):.3f}"
    head = ["improvement", "games", "probability", "95% interval"]
    row = [f"P({other.label} > {one.label})", str(len(one.games)), chance, shown]
    return head, [row]
