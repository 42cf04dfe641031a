"""Figures of frozen features: map, neighbours, probe sweep, confusion matrix."""

from collections.abc import Mapping, Sequence

import matplotlib.patches
import numpy as np
from matplotlib.figure import Figure

from polyview.drawing import (
    CLASSES,
    FAINT,
    INK,
    QUIET,
    RIGHT,
    RUNS,
    WIDTH,
    WRONG,
    check_parts,
    hide_frame,
    legible,
    one_axes,
    set_note,
    set_title,
    short,
    show_image,
    styled,
    write_cell,
)

_MOST_POINTS = 5000  # in a map
_MOST_CELLS = 250  # a side of a confusion matrix


def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Figure]:
    """Draw the figures that the data of an evaluation allow, by name.

    Labels are shown if a probe names them. Raises ValueError for too much data, and any
    exception for malformed data.
    """
    probe = numbers.get("linear_probe")
    classes = probe["classes"] if probe else []

    def labels(name: str) -> np.ndarray | None:
        return figure_data.get(name) if probe else None

    drawn = {}
    if "h" in figure_data:
        drawn["map"] = embedding(figure_data["h"], labels("label"), classes)
    if "query" in figure_data:
        drawn["neighbours"] = nearest(
            figure_data["query"],
            figure_data["neighbour"],
            labels("query_label"),
            labels("neighbour_label"),
            classes,
        )
    if probe:
        drawn["sweep"] = sweep(probe)
        drawn["confusion"] = confusion(probe["confusion"], classes)
    return drawn


@styled
def embedding(h: np.ndarray, labels: np.ndarray | None, names: Sequence[str]) -> Figure:
    """Draw a t-SNE map of features, coloured by class.

    h is float[n, d], n at most a few thousand; labels int[n] or None. The map starts
    from the principal components and is deterministic. Neither the distance between far
    groups nor the size of a group has a meaning in such a map.
    """
    if len(h) > _MOST_POINTS:
        raise ValueError(f"a map of {len(h)} points takes too long to make")
    figure, axes = one_axes(4.6)
    x, y = _map(h).T
    if labels is None:
        axes.scatter(x, y, s=6, color=RUNS[0], linewidths=0)
    else:
        names, note = legible(names)
        present, counts = np.unique(labels, return_counts=True)
        shown = np.sort(present[np.argsort(-counts, kind="stable")[: len(CLASSES)]])
        rest = ~np.isin(labels, shown)
        if rest.any():
            axes.scatter(x[rest], y[rest], s=5, color=FAINT, linewidths=0)
        for color, label in zip(CLASSES, shown, strict=False):
            rows = labels == label
            axes.scatter(
                x[rows], y[rows], s=7, color=color, linewidths=0, label=names[label]
            )
        figure.legend(
            loc="outside lower center",
            ncols=min(5, len(shown)),
            frameon=False,
            fontsize=8,
            markerscale=2.4,
            handletextpad=0.2,
            columnspacing=1.0,
        )
        grey = f"grey: the other {len(present) - len(shown)} classes"
        notes = [grey if rest.any() else "", note]  # above the legend
        axes.set_xlabel("\n".join(filter(None, notes)))
    axes.set_title(f"Map of {len(h):,} test features (t-SNE)")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


def _map(h: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(h) < 5 or not np.ptp(h, axis=0).any():  # too few, or all the same
        return np.pad(h, ((0, 0), (0, 2)))[:, :2]
    few = PCA(min(50, *h.shape), random_state=0).fit_transform(h.astype(np.float64))
    if few.shape[1] < 2:
        return np.pad(few, ((0, 0), (0, 1)))
    perplexity = min(30.0, (len(h) - 1) / 3)
    # Half of the usual iterations: from the principal components the map has settled.
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500)
    # Waiting threads spin: on shared cores two threads are four times slower.
    with threadpool_limits(1):
        return tsne.fit_transform(few)


@styled
def nearest(
    query: np.ndarray,
    neighbour: np.ndarray,
    query_label: np.ndarray | None,
    neighbour_label: np.ndarray | None,
    names: Sequence[str],
) -> Figure:
    """Draw test images and the training images nearest to each, nearest first.

    query: uint8[q, h, w, c]; neighbour: uint8[q, k, h, w, c]; labels int[q], int[q, k].
    The frame shows whether a neighbour has the query's class; a wrong class is named.
    """
    rows, columns = neighbour.shape[:2]
    check_parts(rows * (columns + 1))
    names, note = legible(names)
    figure = Figure(figsize=(WIDTH, 0.3 + WIDTH / (columns + 1.3) * rows * 1.24))
    figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.03, hspace=0.0)
    grid = figure.add_gridspec(
        rows, columns + 2, width_ratios=[1, 0.15] + [1] * columns
    )
    for row in range(rows):
        axes = figure.add_subplot(grid[row, 0])
        show_image(axes, query[row], INK)
        if query_label is not None:
            axes.set_xlabel(short(names[query_label[row]]), fontsize=6.5, labelpad=2)
        for column in range(columns):
            axes = figure.add_subplot(grid[row, column + 2])
            color = QUIET
            if query_label is not None and neighbour_label is not None:
                label = neighbour_label[row, column]
                color = RIGHT if label == query_label[row] else WRONG
                if color == WRONG:
                    name = short(names[label])
                    axes.set_xlabel(name, fontsize=6.5, labelpad=2, color=WRONG)
            show_image(axes, neighbour[row, column], color)
    set_title(figure, "Test image, and its nearest training images")
    set_note(figure, note)
    return figure


@styled
def sweep(result: Mapping) -> Figure:
    """Draw held-out accuracy over the linear probe's grid, the chosen pair framed.

    `result` is the "linear_probe" of an evaluation.
    """
    grid, chosen = result["sweep"], result["chosen"]
    rates, decays = grid["learning_rate"], grid["weight_decay"]
    accuracy = 100 * np.asarray(grid["validation_top1"])
    check_parts(accuracy.size)
    figure, axes = one_axes(1.2 + 0.36 * len(rates))
    low = max(accuracy.min(), accuracy.max() - 10)  # diverged pairs are off the scale
    axes.imshow(accuracy, cmap="cividis", vmin=low, aspect="auto")
    middle = (low + accuracy.max()) / 2
    for (row, column), value in np.ndenumerate(accuracy):
        color = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    best = rates.index(chosen["learning_rate"]), decays.index(chosen["weight_decay"])
    frame = matplotlib.patches.Rectangle(
        (best[1] - 0.47, best[0] - 0.44), 0.94, 0.88, fill=False, ec=WRONG, lw=2.5
    )
    axes.add_patch(frame)
    axes.set_xticks(range(len(decays)), [f"{d:g}" for d in decays])
    axes.set_yticks(range(len(rates)), [f"{r:g}" for r in rates])
    axes.set_xlabel("weight decay")
    axes.set_ylabel("learning rate")
    axes.set_title("Linear probe: held-out accuracy (%), chosen pair framed")
    hide_frame(axes)
    return figure


@styled
def confusion(
    counts: np.ndarray, names: Sequence[str], of: str = "Linear probe"
) -> Figure:
    """Draw a confusion matrix: % of each true class (row) by answer (column).

    counts is int[c, c]; `of` names what answered. Beyond 20 classes, cells have no
    numbers and ticks no names. Beyond 250, a cell is the largest of a block of them,
    since those of single classes would be smaller than a pixel.
    """
    counts = np.asarray(counts)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = -(-len(counts) // _MOST_CELLS)  # classes of a block
    cells = _block_maxima(share, side)
    end = side * len(cells) - 0.5
    figure, axes = one_axes(4.8)
    axes.imshow(cells, cmap="Blues", vmin=0, vmax=100, extent=(-0.5, end, end, -0.5))
    axes.set_title(f"{of}: answers, % of each true class (row)")
    hide_frame(axes)
    if len(counts) > 20:
        block = f"; a cell is the largest of {side} x {side}" if side > 1 else ""
        axes.set_xlabel(f"{len(counts)} classes{block}")
        return figure
    for (row, column), value in np.ndenumerate(share):
        if value >= 1:
            write_cell(axes, row, column, f"{value:.0f}", value > 55, fontsize=7)
    names, note = legible(names)
    set_note(figure, note)
    ticks = [short(name) for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), ticks, fontsize=8)
    return figure


def _block_maxima(grid: np.ndarray, side: int) -> np.ndarray:
    """Return the maximum of each block of `side` x `side`; the last may be smaller."""
    fill = -len(grid) % side
    padded = np.pad(grid, ((0, fill), (0, fill)))
    blocks = len(padded) // side
    return padded.reshape(blocks, side, blocks, side).max((1, 3))
