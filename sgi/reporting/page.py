"""The report as one HTML document."""

import html
from collections.abc import Sequence

from polyview.reporting.html import document, grid, picture, remarks, table
from polyview.reporting.page import configurations, environment, protocol, training
from polyview.reporting.read import naming_the_run
from sgi.reporting.figures import (
    WINDOW,
    curves,
    drawable,
    intervals,
    method_colors,
    profiles,
)
from sgi.reporting.methods import methods_of, references
from sgi.reporting.notes import notes_on
from sgi.reporting.read import Run
from sgi.reporting.seeds import pooled
from sgi.reporting.tables import (
    TEXT_COLUMNS,
    aggregate_scores,
    improvement,
    published_scores,
    score_columns,
)
from sgi.scores import SOURCE

_READABLE = 10  # most runs in one figure of training metrics


@naming_the_run
def html_page(runs: Sequence[Run]) -> str:
    """Return the report as one self-contained HTML document."""
    games = list(dict.fromkeys(run.game for run in runs))
    rows = pooled(runs)
    drawn = grid(
        [
            picture(curves(rows, [game]), f"learning curves of {game}")
            for game in drawable(rows)
        ]
    )
    sections = [
        ("Scores", _scores(runs)),
        ("Published scores of these games", _published(games)),
        ("Aggregates over games", aggregates(runs)),
        ("Learning curves", drawn and f"<p>{_CURVES}</p>{drawn}"),
        ("Training", training(runs) if len(runs) <= _READABLE else ""),
        ("Protocol", protocol(runs)),
        ("Configs", configurations(runs)),
        ("Environment", environment(runs)),
    ]
    return document("SGI, fine-tuned", ", ".join(games), sections)


_SCORES = """A score is the mean over seeds of the mean raw score of a seed's evaluation
games; the best of each game is bold. Runs that differ only in their seeds share a row.
Intervals are bootstrap percentile intervals over the seeds: rough with few seeds, and
absent with one. The human-normalised score (HNS)
is (score - random) / (human - random), with the published random and human below."""
_PUBLISHED = f"""Published, not measured here: all columns are those of {SOURCE}. SPR is
Schwarzer et al. 2021 and DER van Hasselt et al. 2019, both after 100,000 steps; data is
the play in the DQN Replay data set. Other sets of SPR scores exist. SGI's own scores of
each game are not publicly confirmed, so there is no such column."""
_AGGREGATES = """Aggregates of human-normalised scores, defined as in Agarwal et al.
2021: IQM is the mean of the middle half of all runs of all games; median and mean are
over games, of the mean over seeds; the optimality gap is how far runs fall short of 1
on average (lower is better). In brackets: 95% stratified bootstrap percentile
intervals, with seeds resampled within each game. Published rows have one mean per game:
their IQM and optimality gap are over games, not runs, so they compare only roughly."""
_PROFILES = """A performance profile is the share of the runs of all games above each
score, with a 95% stratified bootstrap band (none for one seed); higher is better."""
_IMPROVEMENT = """The probability that a run of the first method scores higher than one
of the second in the same game, a mean over games (Agarwal et al. 2021): 0.5 if neither
is better. The interval resamples the seeds of both."""
_CURVES = f"""Raw score in training, with exploration noise: each seed's mean over its
last {WINDOW} finished games, then the mean over seeds with its 95% bootstrap band (none
for one seed). Circles are evaluations. A step is four frames. Dotted lines are the
published random and human scores, where they are within the axes."""


def _scores(runs: Sequence[Run]) -> str:
    rows = pooled(runs)
    columns = score_columns(rows)
    means: dict[str, list[float]] = {}
    for run in rows:
        if run.scores is not None:
            means.setdefault(run.game, []).append(run.scores.mean())
    body = []
    for run in rows:
        cells = {name: html.escape(column(run)) for name, column in columns.items()}
        rivals = means.get(run.game, [])
        if len(rivals) > 1 and run.scores is not None:
            if run.scores.mean() == max(rivals):
                cells["score"] = f"<strong>{cells['score']}</strong>"
        body.append(list(cells.values()))
    compared = table(list(columns), body, TEXT_COLUMNS)
    return f"{compared}\n{remarks(notes_on(runs))}\n<p>{_SCORES}</p>"


def _published(games: Sequence[str]) -> str:
    head, body = published_scores(games)
    return f"{table(head, body, 1)}\n<p>{_PUBLISHED}</p>" if body else ""


def aggregates(runs: Sequence[Run]) -> str:
    """Return the section of aggregates over games, or "" if no method has any."""
    compared = [m for m in methods_of(runs) if m.scores is not None]
    if not compared:
        return ""
    colors = method_colors(runs)
    profile_figure = picture(profiles(compared, colors), "performance profiles")
    chance = improvement(compared)
    compared += references({method.games for method in compared})
    head, body = aggregate_scores(compared)
    compared_table = table(head, body, 1)
    footnote = " * As listed by paperswithcode, not checked against the paper."
    listed = footnote if "published*" in compared_table else ""
    figure = picture(intervals(compared, colors), "aggregates with their intervals")
    parts = [
        f"{compared_table}\n<p>{_AGGREGATES}{listed}</p>",
        grid([figure, profile_figure]),
        f"<p>{_PROFILES}</p>",
    ]
    if chance is not None:
        head, body = chance
        cells = [[html.escape(cell) for cell in row] for row in body]
        parts.append(f"{table(head, cells, 1)}\n<p>{_IMPROVEMENT}</p>")
    return "\n".join(parts)
