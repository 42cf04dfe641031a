"""Figures of reliability: risk against coverage, choices, and images at both ends."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from polyview.drawing import (
    RIGHT,
    RUNS,
    WIDTH,
    WRONG,
    check_parts,
    legible,
    one_axes,
    set_note,
    set_title,
    show_image,
    styled,
)


@styled
def draw_curves(names: Sequence[str], figure_data: Mapping) -> Figure:
    """Draw the share of errors among the answers accepted, by each score.

    figure_data: "coverage" and, for score i of `names`, "risk_i", float[points].
    """
    check_parts(len(names))
    figure, axes = one_axes(3.4)
    labels, note = legible(list(names))
    for number, label in enumerate(labels):
        axes.plot(
            100 * figure_data["coverage"],
            100 * figure_data[f"risk_{number}"],
            color=RUNS[number % len(RUNS)],
            linestyle=("-", "--")[number // len(RUNS) % 2],
            label=label,
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("answers accepted, the most reliable first, %")
    axes.set_ylabel("wrong among them, %")
    axes.set_title("Errors that remain when unreliable answers are discarded")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    set_note(figure, note)
    return figure


@styled
def draw_choices(choices: Mapping[str, Mapping]) -> Figure:
    """Draw what each bandwidth of patterns reached on the calibration rows.

    choices: {score: {"bandwidths", "calibration_aucea" of each, "bandwidth" chosen}}.
    """
    check_parts(sum(len(one["bandwidths"]) for one in choices.values()))
    figure, axes = one_axes(2.8)
    for number, (name, one) in enumerate(choices.items()):
        found = 100 * np.asarray(one["calibration_aucea"], float)
        color, marker = RUNS[number % len(RUNS)], "os"[number % 2]
        axes.plot(one["bandwidths"], found, f"{marker}-", color=color, markersize=3)
        chosen = one["bandwidth"]
        axes.plot(
            chosen,
            found[list(one["bandwidths"]).index(chosen)],
            marker,
            color=color,
            markersize=8,
            label=f"{name}: {chosen:g} is chosen",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("bandwidth, in units of the pattern that differ")
    axes.set_ylabel("AUCEA, %")
    axes.set_title("Bandwidths, by the calibration rows alone")
    axes.legend(frameon=False, fontsize=7)
    return figure


@styled
def draw_extremes(figure_data: Mapping) -> Figure:
    """Draw test images by their score, a line for each end of each score.

    figure_data: "image" uint8[lines, n, h, w, c], "right" bool[lines, n], the colour of
    the frame, and "line", what each line shows.
    """
    images, right = figure_data["image"], figure_data["right"]
    lines, columns = images.shape[:2]
    figure = pyplot.figure(figsize=(WIDTH, lines * (WIDTH / columns + 0.28) + 0.4))
    grid = figure.subplots(lines, columns, squeeze=False)
    for line, name in enumerate(figure_data["line"]):
        for column in range(columns):
            frame = RIGHT if right[line, column] else WRONG
            show_image(grid[line, column], np.asarray(images[line, column]), frame)
        grid[line, 0].set_title(str(name), loc="left", fontsize=8)
    set_title(figure, "Test images; the frame says if the answer is right")
    return figure
