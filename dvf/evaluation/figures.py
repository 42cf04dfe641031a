"""Figures of futures and values."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from polyview.drawing import FAINT, INK, QUIET, RUNS, WIDTH, one_axes, styled

CLOUDS = 8  # queries whose futures are shown
POINTS = 256  # futures of each
_SHOWN = 4  # clouds, or maps, beside each other


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


@styled
def maps(data: Mapping[str, np.ndarray]) -> Figure:
    """Values over a maze: of the policies that value most, and the highest of all.

    told, and true, if given: float[policies, places], drawn above and below. places:
    float[places, 2]. step: of their lattice. goals: float[discs, 2], with radius, if
    given. walls: float[walls, 4].
    """
    told = data["told"]
    rows = {"told by the model": told} | (
        {"rolled out": data["true"]} if "true" in data else {}
    )
    shown = np.sort(np.argsort(-told.mean(1), kind="stable")[: _SHOWN - 1])
    # One scale for all panels, which are compared; of roots, as values fall steeply.
    low = min(0.0, *(values.min() for values in rows.values()))
    top = max(values.max() for values in rows.values())
    scale = PowerNorm(0.5, low, top if top > low else low + 1)
    count = len(shown) + (len(told) > 1)
    side = (WIDTH - 0.9) / max(count, 2)  # of a panel; the rest is for the labels
    size = (count * side + 0.9, len(rows) * side + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (label, values) in enumerate(rows.items()):
        panels = {f"policy {policy}": values[policy] for policy in shown}
        if len(told) > 1:
            panels[f"best of {len(told)}"] = values.max(0)
        for own, (title, heights) in zip(axes[row], panels.items(), strict=True):
            _walls(own, data)
            image, extent = _pixels(data["places"], heights, float(data["step"]))
            shade = own.imshow(
                image, cmap="viridis", norm=scale, extent=extent, origin="lower"
            )
            _goals(own, data)
            _fit(own, data)
            if row == 0:
                own.set_title(title, fontsize=8)
        axes[row, 0].set_ylabel(label, fontsize=8)
    bar = figure.colorbar(shade, ax=axes, aspect=30, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("value", fontsize=7)
    return figure


def _pixels(
    places: np.ndarray, values: np.ndarray, step: float
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return an image of values at places of a lattice, NaN elsewhere, and its box.

    The box is left, right, bottom and top; the first row of the image is at its bottom.
    """
    low, high = places.min(0), places.max(0)
    column, row = np.round((places - low) / step).astype(int).T
    image = np.full((row.max() + 1, column.max() + 1), np.nan)
    image[row, column] = values
    left, bottom = low - step / 2
    right, top = high + step / 2
    return image, (left, right, bottom, top)


def _goals(axes: Axes, data: Mapping[str, np.ndarray]) -> None:
    radius = float(data.get("radius", 0.0))
    for x, y in data.get("goals", ()):
        for color, width in ("white", 2.4), (INK, 1.0):  # seen on light and dark
            axes.add_patch(
                Circle((x, y), radius, fill=False, color=color, linewidth=width)
            )


def _fit(axes: Axes, data: Mapping[str, np.ndarray]) -> None:
    """Show all walls, without a frame: they are one."""
    left, bottom, width, height = data["walls"].T
    axes.set_xlim(left.min(), (left + width).max())
    axes.set_ylim(bottom.min(), (bottom + height).max())
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _walls(axes: Axes, data: Mapping[str, np.ndarray]) -> None:
    for x, y, width, height in data.get("walls", ()):
        axes.add_patch(Rectangle((x, y), width, height, color=FAINT, linewidth=0))
