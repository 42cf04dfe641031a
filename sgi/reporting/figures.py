"""Learning curves, aggregates with their intervals, performance profiles."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from polyview import drawing
from polyview.errors import InputError
from polyview.reporting.read import naming_the_run
from polyview.rl.aggregates import AGGREGATES, interval, profile
from sgi.reporting.methods import Method, labels
from sgi.reporting.read import Run, over_seeds, seed_means
from sgi.reporting.seeds import pooled
from sgi.scores import GAMES

WINDOW = 10  # finished games averaged in a point of a learning curve
POINTS = 100  # points of a learning curve


@naming_the_run
def curves_alone(runs: Sequence[Run]) -> bytes:
    """Return the learning curves as a PNG file. Raises InputError if there are none."""
    rows = pooled(runs)
    if not (games := drawable(rows)):
        raise InputError("there is no curve to draw: no seed has finished a game yet")
    return drawing.png(curves(rows, games))


@drawing.styled
def intervals(compared: Sequence[Method], colors: Mapping[str, str]) -> Figure:
    """Draw each aggregate of each method, with an interval if it has several seeds."""
    height = 2 * (0.5 + 0.21 * len(compared))
    figure = Figure(figsize=(1.4 * drawing.WIDTH, height), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).ravel()
    for axes, (name, aggregate) in zip(panels, AGGREGATES.items(), strict=True):
        for place, method in enumerate(compared):
            assert method.scores is not None  # only such methods are compared
            color = colors.get(method.label, drawing.QUIET)
            ends = interval(method.scores, aggregate)
            if ends is not None:
                axes.plot(ends, [place, place], color=color, linewidth=5, alpha=0.35)
            value = aggregate(method.scores)
            axes.plot(value, place, "D" if method.published else "o", color=color)
        axes.set_title(name)
        axes.grid(axis="x")
        axes.set_yticks(range(len(compared)), [method.label for method in compared])
        axes.margins(y=0.12)
    panels[0].invert_yaxis()
    return figure


@drawing.styled
def profiles(compared: Sequence[Method], colors: Mapping[str, str]) -> Figure:
    """Draw each method's performance profile, with a band if it has several seeds."""
    figure, axes = drawing.one_axes(3.4)
    highest = max(float(m.scores.max()) for m in compared if m.scores is not None)
    thresholds = np.linspace(0, max(highest, 1), POINTS)
    ends = []
    for method in compared:
        assert method.scores is not None  # only such methods are compared
        color = colors.get(method.label, drawing.QUIET)
        shares = profile(method.scores, thresholds)
        axes.plot(thresholds, shares, color=color, drawstyle="steps-post")
        band = interval(
            method.scores, lambda s: profile(s, thresholds), repetitions=1000
        )
        if band is not None:
            axes.fill_between(
                thresholds, *band, color=color, alpha=0.18, linewidth=0, step="post"
            )
        ends.append((float(shares[-1]), float(thresholds[-1]), method.label, color))
    axes.set_xlabel("human-normalised score")
    axes.set_ylabel("share of runs above")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y")
    axes.margins(x=0.02)
    drawing.name_ends(axes, ends)
    return figure


def learning_curve(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """Return steps [points] and raw scores float[seeds, points] of training.

    A point is the mean of the last `WINDOW` games that a seed has finished by then. The
    curve begins when every seed has finished a game; None if some seed never did.
    """
    seeds = sorted({line["seed"] for line in run.episodes})
    if not seeds or len(seeds) < run.config.get("seeds", 1):
        return None
    games = [
        np.array(
            sorted(
                (line["step"], line["score"])
                for line in run.episodes
                if line["seed"] == seed
            ),
            float,
        )
        for seed in seeds
    ]
    first = max(steps[0] for steps, _ in (game.T for game in games))
    steps = np.linspace(first, max(game[-1, 0] for game in games), POINTS)
    scores = []
    for game in games:
        finished = np.searchsorted(game[:, 0], steps, side="right")
        kept = np.minimum(finished, WINDOW)
        sums = np.concatenate([[0], np.cumsum(game[:, 1])])
        scores.append((sums[finished] - sums[finished - kept]) / kept)
    return steps, np.stack(scores)


def drawable(runs: Sequence[Run]) -> list[str]:
    """Return the games with a learning curve or an evaluation."""
    games = [
        run.game
        for run in runs
        if run.evaluated is not None or learning_curve(run) is not None
    ]
    return list(dict.fromkeys(games))


@drawing.styled
def curves(runs: Sequence[Run], games: Sequence[str]) -> Figure:
    """Draw the learning curves, one panel per game and one colour per method."""
    columns = min(3, len(games))
    rows = -(-len(games) // columns)
    size = columns * drawing.WIDTH, rows * 3.1
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(games) :]:
        axes.remove()
    methods, colors = labels(runs), method_colors(runs)
    for axes, game in zip(panels, games, strict=False):
        axes.set_title(game)
        axes.set_xlabel("step")
        axes.set_ylabel("score")
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.margins(x=0.02)
        ends, drawn = [], [run for run in runs if run.game == game]
        methods_drawn = [methods[run.name] for run in drawn]
        for number, (run, label) in enumerate(zip(drawn, methods_drawn, strict=True)):
            style = ("-", "--", ":")[methods_drawn[:number].count(label) % 3]
            last = _curve(axes, run, colors[label], style)
            name = label if methods_drawn.count(label) == 1 else run.name
            ends += [(*last, name, colors[label])] if last else []
        drawing.name_ends(axes, ends + (_levels(axes, game) if ends else []))
    return figure


def method_colors(runs: Sequence[Run]) -> dict[str, str]:
    """Return the colour of each method, the same in every figure."""
    names = dict.fromkeys(labels(runs).values())
    return dict(zip(names, itertools.cycle(drawing.RUNS), strict=False))


def _curve(axes: Axes, run: Run, color: str, style: str) -> tuple[float, float] | None:
    """Draw a run; return its last score and step, or None if it has none."""
    last = None
    for step in filter(None, run.evaluations):
        scores = seed_means(run.evaluations[step])
        ends = interval(scores, over_seeds)
        if ends is not None:
            axes.plot([step, step], ends, color=color, linewidth=1)
        axes.plot(step, scores.mean(), "o", color=color, mfc="white", zorder=3)
        last = scores.mean(), step
    if (curve := learning_curve(run)) is not None:
        steps, scores = curve
        axes.plot(steps, scores.mean(axis=0), color=color, linestyle=style)
        band = interval(scores, lambda s: s.mean(axis=1), repetitions=1000)
        if band is not None:
            axes.fill_between(steps, *band, color=color, alpha=0.18, linewidth=0)
        last = scores[:, -1].mean(), steps[-1]
    return last


def _levels(axes: Axes, game: str) -> list[tuple]:
    """Draw the random and human scores within the axes; return their lines' ends."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    ends = []
    for name in ("random", "human") if game in GAMES else ():
        level = getattr(GAMES[game], name)
        if low <= level <= high:
            axes.axhline(level, color=drawing.QUIET, linestyle=":", linewidth=1)
            ends.append((level, axes.get_xlim()[1], name, drawing.QUIET))
    return ends
