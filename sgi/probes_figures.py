"""Figures of probes: bars of their scores, and frames with their readings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from polyview.drawing import (
    FAINT,
    INK,
    QUIET,
    RUNS,
    WIDTH,
    check_parts,
    set_title,
    show_image,
    styled,
)


def figures(
    numbers: Mapping[str, Any], figure_data: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """Return the figures of one evaluation, by name."""
    frame, value, reading = (figure_data[n] for n in ("frame", "value", "reading"))
    return {
        "variables": variables({"": numbers}),
        "readings": readings(frame, value, reading, [*numbers["variables"]]),
    }


@styled
def variables(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw R^2 and accuracy of the probes of each variable as bars.

    `results` maps the name of a run or a reference to an evaluation with "variables",
    the same in all. A negative R^2 is drawn as 0 but labelled with its value.
    """
    names = [*next(iter(results.values()))["variables"]]
    count = len(results)
    check_parts(len(names) * count)
    figure = Figure(
        figsize=(WIDTH, 1.0 + 0.17 * len(names) * (count + 1)), layout="constrained"
    )
    panels = figure.subplots(1, 2, sharey=True)
    place = np.arange(len(names))
    measures = {"r2": "R² as a number", "accuracy": "Accuracy as a value"}
    for axes, (measure, title) in zip(panels, measures.items(), strict=True):
        for number, (label, result) in enumerate(results.items()):
            scores = [result["variables"][name][measure] for name in names]
            bars = axes.barh(
                place + (number - (count - 1) / 2) * 0.8 / count,
                np.maximum(scores, 0),
                height=0.7 / count,
                color=RUNS[number % len(RUNS)],
                label=label,
            )
            texts = [f"{score:.2f}" for score in scores]
            axes.bar_label(bars, texts, padding=2, fontsize=6.5, color=QUIET)
        axes.set_title(title)
        axes.set_xlim(0, 1.15)
        axes.set_xticks([0, 0.5, 1])
    panels[0].set_yticks(place, names, color=INK)
    panels[0].invert_yaxis()
    if count > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=count,
            frameon=False,
            fontsize=8,
        )
    return figure


@styled
def readings(
    frame: np.ndarray, value: np.ndarray, reading: np.ndarray, names: Sequence[str]
) -> Figure:
    """Draw frames, each above the variables and, in brackets, the probes' readings.

    frame: uint8[n, h, w]; value, reading: float[n, variables].
    """
    columns = 4
    rows = -(-len(frame) // columns)
    check_parts(len(frame) * max(1, len(names)))
    line = 0.13  # inches
    side = WIDTH / columns
    figure = Figure(figsize=(WIDTH, 0.3 + rows * (side + line * len(names))))
    figure.set_layout_engine("constrained", h_pad=0.03, w_pad=0.03)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(frame) :]:
        axes.set_visible(False)
    for axes, image, true, read in zip(grid, frame, value, reading, strict=False):
        show_image(axes, image, FAINT)
        lines = [
            f"{name} {t:.0f} ({r:.0f})"
            for name, t, r in zip(names, true, read, strict=True)
        ]
        axes.set_xlabel("\n".join(lines), fontsize=6.5, labelpad=2)
    title = "Test frames: variables, and in brackets the probes' readings"
    set_title(figure, title)
    return figure
