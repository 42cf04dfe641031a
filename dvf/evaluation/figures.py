"""Figures of futures and values."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from polyview.drawing import FAINT, INK, QUIET, RUNS, WIDTH, one_axes, styled

CLOUDS = 8  # queries whose futures are shown
POINTS = 256  # futures of each
_SHOWN = 4  # clouds beside each other


@styled
def clouds(data: Mapping[str, np.ndarray]) -> Figure:
    """Futures from one start under several policies: drawn above, rolled out below.

    drawn, rolled: float[queries, points, 2]. start: float[queries, 2]. policy:
    int[queries]. walls, if given: float[walls, 4], left, bottom, width and height.
    """
    count = min(_SHOWN, len(data["drawn"]))
    figure = Figure(figsize=(WIDTH, 2 * WIDTH / count + 0.5), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for row, kind in enumerate(("drawn", "rolled")):
        for column in range(count):
            own = axes[row, column]
            _walls(own, data)
            points = data[kind][column]
            own.scatter(*points.T, s=3, color=RUNS[row], alpha=0.5, linewidths=0)
            own.plot(*data["start"][column], "o", color=INK, markersize=4)
            own.set_xticks([])
            own.set_yticks([])
            own.set_aspect("equal")
            if row == 0:
                own.set_title(f"policy {data['policy'][column]}", fontsize=8)
        label = "drawn by the model" if kind == "drawn" else "rolled out"
        axes[row, 0].set_ylabel(label, fontsize=8)
    return figure


@styled
def values(numbers: Mapping, data: Mapping[str, np.ndarray]) -> Figure:
    """Told against true values, a dot for each state, policy and reward."""
    figure, axes = one_axes(WIDTH * 0.8)
    true, told = data["true"].reshape(-1), data["told"].reshape(-1)
    top = max(true.max(), told.max())
    axes.plot([0, top], [0, top], color=QUIET, linewidth=0.8)
    axes.scatter(true, told, s=4, color=RUNS[0], alpha=0.3, linewidths=0)
    axes.set_xlabel("value of the roll-outs")
    axes.set_ylabel("value told by the model")
    axes.set_title(f"Correlation {numbers['correlation']:.3f}")
    axes.grid(True)
    return figure


def _walls(axes: Axes, data: Mapping[str, np.ndarray]) -> None:
    for x, y, width, height in data.get("walls", ()):
        axes.add_patch(Rectangle((x, y), width, height, color=FAINT, linewidth=0))
