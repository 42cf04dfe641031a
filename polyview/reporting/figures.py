"""Curves of metrics logged in training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from polyview.drawing import (
    QUIET,
    RUNS,
    legible,
    name_ends,
    one_axes,
    set_note,
    styled,
)

CHANCE = "_chance"  # the end of the name of another metric's level
TITLES = {
    "loss": "Loss",
    "mi_bound": "Lower bound on mutual information (nats)",
    "alignment": "Alignment (lower: a sample's views are closer)",
    "uniformity": "Uniformity (lower: samples spread further)",
    "rankme": "RankMe (dimensions in use)",
    "standard_deviation": "Deviation of a dimension (0: collapsed)",
    "gradient_norm": "Norm of the gradient",
    "learning_rate": "Learning rate",
    "knn": "kNN: test accuracy (%)",
    "linear_probe": "Linear probe: test accuracy (%)",
    "classifier": "Classifier: test accuracy (%)",
}


@styled
def curve(runs: Mapping[str, Sequence[Mapping]], metric: str) -> Figure:
    """Draw one metric against steps, one line per run, labelled at its end.

    `runs` maps each run's name to the lines of its metrics.jsonl. Runs without the
    metric and non-finite values are left out. The metric `METRIC_chance`, if it is
    logged, is a dotted level: the value of guesses.
    """
    figure, axes = one_axes(3.1)
    axes.grid(axis="y")
    ends = []
    names, note = legible([*runs])
    set_note(figure, note)
    logged = (_finite(lines, f"{metric}{CHANCE}") for lines in runs.values())
    for level in {value for points in logged for value in points[:, 1]}:
        axes.axhline(level, color=QUIET, linestyle=":", linewidth=1)
        axes.annotate("chance", (1, level), xycoords=("axes fraction", "data"))
    for number, lines in enumerate(runs.values()):
        points = _finite(lines, metric)
        if not len(points):
            continue
        color = RUNS[number % len(RUNS)]
        style = ("-", "--", ":")[number // len(RUNS) % 3]
        axes.plot(*points.T, color=color, linestyle=style)
        axes.plot(*points[-1], "o", color=color, markersize=3.5)
        ends.append((points[-1, 1], points[-1, 0], names[number], color))
    modality, _, measure = metric.rpartition("/")
    title = TITLES.get(measure, measure.replace("_", " "))
    axes.set_title(f"{title}, {modality}" if modality else title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.02)
    name_ends(axes, ends)
    return figure


def _finite(lines: Sequence[Mapping], metric: str) -> np.ndarray:
    """Return steps and finite values of a metric, `float[n, 2]`."""
    logged: list[Any] = [(line["step"], line.get(metric)) for line in lines]
    numbers = [p for p in logged if isinstance(p[1], int | float)]
    return np.array([p for p in numbers if np.isfinite(p[1])], float).reshape(-1, 2)
