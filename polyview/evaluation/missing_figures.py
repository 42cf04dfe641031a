"""Figures of predictions from subsets of the views, and of retrieval."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from polyview.drawing import (
    FAINT,
    INK,
    RIGHT,
    WIDTH,
    WRONG,
    check_parts,
    hide_frame,
    legible,
    one_axes,
    set_note,
    set_title,
    show_image,
    styled,
    write_cell,
)
from polyview.evaluation.missing import MEASURES


def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Figure]:
    """Draw the figures that the data of an evaluation allow, by name."""
    drawn = {}
    for target, scores in numbers["subsets"].items():
        for measure in (m for m in MEASURES if any(m in one for one in scores)):
            each = {"+".join(one["looks"]): one.get(measure) for one in scores}
            drawn[f"subsets-{target}"] = subsets({target: each}, measure)
    if numbers.get("retrieval"):
        drawn["retrieval"] = retrieval(numbers["retrieval"], numbers["looks"])
    if "across_query" in figure_data:
        drawn["across"] = across(
            figure_data["across_query"],
            figure_data["across_found"],
            figure_data["across_right"],
            [str(view) for view in figure_data["across_look"]],
        )
    if "text_query" in figure_data:
        drawn["texts"] = texts(
            [str(name) for name in figure_data["text_query"]],
            figure_data["text_found"],
            figure_data["text_right"],
        )
    return drawn


@styled
def subsets(scores: Mapping[str, Mapping[str, float]], measure: str) -> Figure:
    """Draw a heat-map of the score of each method (column) on each subset (row).

    `scores` maps a method to {"a+b": score or None}. Dots on the left mark the views of
    a subset.
    """
    methods = [*scores]
    rows = [*max(scores.values(), key=len)]  # methods may have fewer views
    rows += sorted({row for own in scores.values() for row in own} - {*rows})
    views = [*dict.fromkeys(view for row in rows for view in row.split("+"))]
    check_parts(len(rows) * max(len(methods), len(views)))
    grid = np.asarray([[scores[m].get(r) for m in methods] for r in rows], float)
    figure, axes = one_axes(1.6 + 0.21 * len(rows))
    low, high = np.nanmin(grid), np.nanmax(grid)
    axes.imshow(grid, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        dark = value > low + 0.6 * (high - low)
        text = "–" if np.isnan(value) else f"{value:.3f}"
        write_cell(axes, row, column, text, dark, fontsize=7)
    # Dots left of the map: one column per view, dark where the subset has it.
    step = 0.06
    shown, note = legible(views)
    set_note(figure, note)
    for number, view in enumerate(views):
        x = -step * (len(views) - number)
        for row, name in enumerate(rows):
            has = view in name.split("+")
            axes.plot(
                x,
                row,
                "o",
                transform=axes.get_yaxis_transform(),
                clip_on=False,
                markersize=4,
                color=INK if has else FAINT,
            )
        axes.annotate(
            shown[number],
            (x, 1.0),
            xytext=(0, 6),
            xycoords=("axes fraction", "axes fraction"),
            textcoords="offset points",
            rotation=60,
            fontsize=7,
            ha="left",
            va="bottom",
            annotation_clip=False,
        )
    axes.set_yticks([])
    axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right", fontsize=8)
    hide_frame(axes)
    set_title(figure, f"Predicted from the marked views: {MEASURES[measure]}")
    return figure


@styled
def retrieval(pairs: Mapping[str, Mapping], views: Sequence[str]) -> Figure:
    """Draw recall at 1 in %, from each view (row) to each other (column).

    `pairs` and `views` are the "retrieval" and "looks" of an evaluation.
    """
    check_parts(len(views) ** 2)
    grid = np.full((len(views), len(views)), np.nan)
    place = {view: number for number, view in enumerate(views)}
    for pair in pairs.values():
        if "recall@1" in pair:
            grid[place[pair["from"]], place[pair["to"]]] = 100 * pair["recall@1"]
    figure, axes = one_axes(1.2 + 0.5 * len(views))
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if row != column:
            text = "–" if np.isnan(value) else f"{value:.0f}"
            write_cell(axes, row, column, text, value > 55)
    shown, note = legible(views)
    set_note(figure, note)
    axes.set_xticks(range(len(views)), shown, rotation=30, ha="right")
    axes.set_yticks(range(len(views)), shown)
    axes.set_title("Retrieval: % found first, from row to column")
    hide_frame(axes)
    return figure


@styled
def across(
    query: np.ndarray, found: np.ndarray, right: np.ndarray, views: Sequence[str]
) -> Figure:
    """Draw pictures of one view, and the nearest to each in every other view.

    query: uint8[q, h, w, c]; found: uint8[q, m - 1, h, w, c]; right: bool[q, m - 1];
    views: the m names. The colour of a frame shows whether a picture shows the query's
    sample.
    """
    rows, columns = right.shape
    figure, grid = _pictures(rows, columns, "Nearest in the other views", left=0)
    views, note = legible(views)
    set_note(figure, note)
    for row in range(rows):
        axes = figure.add_subplot(grid[row, 0])
        show_image(axes, query[row], INK)
        for column in range(columns):
            other = figure.add_subplot(grid[row, column + 1])
            color = RIGHT if right[row, column] else WRONG
            show_image(other, found[row, column], color)
            if not row:
                other.set_title(views[column + 1], fontsize=8, fontweight="normal")
        if not row:
            axes.set_title(views[0], fontsize=8, fontweight="normal")
    return figure


@styled
def texts(query: Sequence[str], found: np.ndarray, right: np.ndarray) -> Figure:
    """Draw texts and the pictures nearest to each, the nearest first.

    found: uint8[q, k, h, w, c]; right: bool[q, k]. The colour of a frame shows whether
    a picture shows the text's sample.
    """
    rows, columns = right.shape
    title = "Pictures nearest to a text"
    figure, grid = _pictures(rows, columns - 1, title, left=2.2)
    query, note = legible(query)
    set_note(figure, note)
    for row in range(rows):
        axes = figure.add_subplot(grid[row, 0])
        axes.axis("off")
        axes.text(0, 0.5, query[row], va="center", fontsize=8, wrap=True)
        for column in range(columns):
            color = RIGHT if right[row, column] else WRONG
            other = figure.add_subplot(grid[row, column + 1])
            show_image(other, found[row, column], color)
    return figure


def _pictures(
    rows: int, columns: int, title: str, left: float
) -> tuple[Figure, GridSpec]:
    """A figure and its grid: rows of 1 + `columns` pictures, right of `left` widths."""
    check_parts(rows * (columns + 1))
    widths = ([left] if left else []) + [1] * (columns + 1)
    side = WIDTH / sum(widths)
    figure = Figure(figsize=(WIDTH, 0.5 + rows * side))
    figure.set_layout_engine("constrained", h_pad=0.03, w_pad=0.03)
    set_title(figure, title)
    return figure, figure.add_gridspec(rows, len(widths), width_ratios=widths)
