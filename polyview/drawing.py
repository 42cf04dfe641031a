"""Figures of a run and of its evaluation: one function a figure, arrays in, Figure out.

Every figure is about as wide as a phone, so that a page can lay several side by side.
Colours are those of Okabe & Ito and of Tol's "muted", which colour-blind readers can
tell apart; no figure says by colour alone what matters in it.
"""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.patches
import matplotlib.text
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, QUIET, FAINT = "#1f2933", "#616e7c", "#e4e7eb"
RUNS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CLASSES = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#DDCC77"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#7F7F7F"),
)
RIGHT, WRONG = "#009E73", "#D55E00"
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

MEASURES = {  # of a prediction -> its name
    "auroc": "mean area under the ROC curve",
    "dice": "mean Dice score",
    "r2": "R²",
    "top1": "accuracy",
}

DPI = 140
WIDTH = 5.2  # inches
_MOST_PARTS = 1000  # texts or pictures of a figure: more take minutes
_MOST_LETTERS = 10_000
_MOST_POINTS = 5000  # of a map
# Decorates a function that draws, also one of another module.
styled = matplotlib.rc_context(
    {
        "text.parse_math": False,  # a name with two $ in it is no formula
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "axes.labelcolor": QUIET,
        "axes.edgecolor": QUIET,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": FAINT,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "lines.linewidth": 1.6,
        "lines.solid_capstyle": "round",
    }
)


def figures(result: Mapping, sample: Mapping[str, np.ndarray]) -> dict[str, Figure]:
    """The figures of one evaluation by name: map, neighbours, sweep, confusion; or, of
    probes of variables, variables and readings.

    `result` and its `sample` are those of `polyview.evaluation.base.Result`; a
    figure whose data they lack is left out. Labels are shown where a probe names them.
    Raises whatever comes of data of another form, ValueError for too much of them.
    """
    probe = result.get("linear_probe")
    classes = probe["classes"] if probe else []

    def labels(name: str) -> np.ndarray | None:
        return sample.get(name) if probe else None

    found = {}
    if "h" in sample:
        found["map"] = embedding(sample["h"], labels("label"), classes)
    if "query" in sample:
        found["neighbours"] = nearest(
            sample["query"],
            sample["neighbour"],
            labels("query_label"),
            labels("neighbour_label"),
            classes,
        )
    if probe:
        found["sweep"] = sweep(probe)
        found["confusion"] = confusion(probe["confusion"], classes)
    if "variables" in result:
        found["variables"] = variables({"": result})
        found["readings"] = readings(
            sample["frame"], sample["value"], sample["reading"], [*result["variables"]]
        )
    for target, said in result.get("subsets", {}).items():
        for measure in (m for m in MEASURES if any(m in one for one in said)):
            scores = {"+".join(one["looks"]): one.get(measure) for one in said}
            found[f"subsets-{target}"] = subsets({target: scores}, measure)
    if result.get("retrieval"):
        found["retrieval"] = retrieval(result["retrieval"], result["looks"])
    if "across_query" in sample:
        found["across"] = across(
            sample["across_query"],
            sample["across_found"],
            sample["across_right"],
            [str(look) for look in sample["across_look"]],
        )
    if "text_query" in sample:
        found["texts"] = texts(
            [str(name) for name in sample["text_query"]],
            sample["text_found"],
            sample["text_right"],
        )
    return found


def png(figure: Figure) -> bytes:
    """The figure as a PNG file of `DPI` dots an inch; raises ValueError for a figure
    with so long names that drawing them takes minutes."""
    texts = figure.findobj(matplotlib.text.Text)
    if (letters := sum(len(text.get_text()) for text in texts)) > _MOST_LETTERS:
        raise ValueError(f"a figure with {letters} letters takes too long to draw")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


@styled
def curve(runs: Mapping[str, Sequence[Mapping]], metric: str) -> Figure:
    """One metric over the steps, a line a run, its name at the line's end.

    `runs` maps a name to the lines of its metrics.jsonl; runs without the metric, and
    values that are not finite, are left out.
    """
    figure, axes = _axes(3.1)
    axes.grid(axis="y")
    ends = []
    for number, (name, lines) in enumerate(runs.items()):
        points = [(line["step"], line.get(metric)) for line in lines]
        points = [p for p in points if isinstance(p[1], int | float)]
        points = np.asarray([p for p in points if np.isfinite(p[1])], float)
        if not len(points):
            continue
        color = RUNS[number % len(RUNS)]
        style = ("-", "--", ":")[number // len(RUNS) % 3]
        axes.plot(*points.T, color=color, linestyle=style)
        axes.plot(*points[-1], "o", color=color, markersize=3.5)
        ends.append((points[-1, 1], points[-1, 0], name, color))
    modality, _, measure = metric.rpartition("/")
    title = TITLES.get(measure, measure.replace("_", " "))
    axes.set_title(f"{title}, {modality}" if modality else title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.02)
    name_ends(axes, ends)
    return figure


def name_ends(axes, ends: list) -> None:
    """Write each name beside the end of its line, moved apart where they would meet.

    `ends` are (value, step, name, colour) of each line; the limits of y must be final.
    """
    low, high = axes.get_ylim()
    line_height = 0.065 * (high - low)
    ends = sorted(ends)
    places = np.asarray([end[0] for end in ends])
    for place in range(1, len(ends)):  # upwards
        places[place] = max(places[place], places[place - 1] + line_height)
    if len(ends):
        places -= max(0, places[-1] - high)  # and back, if that left the figure
    for (value, step, name, color), place in zip(ends, places, strict=True):
        axes.annotate(
            name,
            xy=(step, value),
            xytext=(1.03, (place - low) / (high - low)),
            textcoords="axes fraction",
            color=color,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )


@styled
def embedding(h: np.ndarray, labels: np.ndarray | None, names: Sequence[str]) -> Figure:
    """A t-SNE map of features, coloured by class.

    h is float[n, d], n at most a few thousand; labels int[n] or None. The map starts at
    the principal components and is the same each time. Distances between far groups,
    and the size of a group, mean nothing in such a map.
    """
    if len(h) > _MOST_POINTS:
        raise ValueError(f"a map of {len(h)} points takes too long to make")
    figure, axes = _axes(4.6)
    x, y = _map(h).T
    if labels is None:
        axes.scatter(x, y, s=6, color=RUNS[0], linewidths=0)
    else:
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
        if rest.any():
            axes.set_xlabel(f"grey: the other {len(present) - len(shown)} classes")
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
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    # Its threads spin while they wait: on shared cores two are four times slower.
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
    """Test images and the training images nearest to each, nearest first.

    query: uint8[q, h, w, c]; neighbour: uint8[q, k, h, w, c]; labels int[q], int[q, k].
    A frame says whether a neighbour has the query's class; a wrong one is named.
    """
    rows, columns = neighbour.shape[:2]
    _check_parts(rows * (columns + 1))
    figure = Figure(figsize=(WIDTH, 0.3 + WIDTH / (columns + 1.3) * rows * 1.24))
    figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.03, hspace=0.0)
    grid = figure.add_gridspec(
        rows, columns + 2, width_ratios=[1, 0.15] + [1] * columns
    )
    for row in range(rows):
        known = query_label is not None
        axes = figure.add_subplot(grid[row, 0])
        _image(axes, query[row], INK)
        if known:
            axes.set_xlabel(_short(names[query_label[row]]), fontsize=6.5, labelpad=2)
        for column in range(columns):
            axes = figure.add_subplot(grid[row, column + 2])
            right = known and neighbour_label[row, column] == query_label[row]
            color = (RIGHT if right else WRONG) if known else QUIET
            _image(axes, neighbour[row, column], color)
            if known and not right:
                name = _short(names[neighbour_label[row, column]])
                axes.set_xlabel(name, fontsize=6.5, labelpad=2, color=WRONG)
    figure.suptitle(
        "Test image, and its nearest training images",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    return figure


def _image(axes, image: np.ndarray, frame: str) -> None:
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=frame, linewidth=1.8)


def _short(name: str) -> str:
    return name if len(name) <= 11 else f"{name[:10]}…"


@styled
def sweep(result: Mapping) -> Figure:
    """Held-out accuracy over the grid of the linear probe; a frame marks the choice.

    `result` is the "linear_probe" of an evaluation.
    """
    grid, chosen = result["sweep"], result["chosen"]
    rates, decays = grid["learning_rate"], grid["weight_decay"]
    accuracy = 100 * np.asarray(grid["validation_top1"])
    _check_parts(accuracy.size)
    figure, axes = _axes(1.2 + 0.36 * len(rates))
    low = max(accuracy.min(), accuracy.max() - 10)  # diverged pairs leave the scale
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
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


@styled
def confusion(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Percent of each true class (row) given each class (column) by the probe.

    counts is int[c, c]. Beyond 20 classes cells carry no number and ticks no name.
    """
    counts = np.asarray(counts)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _axes(4.8)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.set_title("Linear probe: answers, % of each true class (row)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(counts) > 20:
        axes.set_xlabel(f"{len(counts)} classes")
        return figure
    for (row, column), value in np.ndenumerate(share):
        if value >= 1:
            _number(axes, row, column, f"{value:.0f}", value > 55, fontsize=7)
    short = [_short(name) for name in names]
    axes.set_xticks(range(len(names)), short, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), short, fontsize=8)
    return figure


def _number(axes, row: int, column: int, text: str, dark: bool, **style) -> None:
    """Write into a cell of a heat-map."""
    color = "white" if dark else INK
    axes.text(column, row, text, ha="center", va="center", color=color, **style)


@styled
def subsets(scores: Mapping[str, Mapping[str, float]], measure: str) -> Figure:
    """What each method predicts from each subset of the looks: a heat-map of numbers.

    `scores` maps a method to {"a+b": score}, None where there is none; a row is a
    subset, its looks marked by dots on the left, a column a method.
    """
    methods = [*scores]
    rows = [*max(scores.values(), key=len)]  # methods may know fewer looks
    rows += sorted({row for of in scores.values() for row in of} - {*rows})
    looks = [*dict.fromkeys(look for row in rows for look in row.split("+"))]
    _check_parts(len(rows) * max(len(methods), len(looks)))
    grid = np.asarray([[scores[m].get(r) for m in methods] for r in rows], float)
    figure, axes = _axes(1.6 + 0.21 * len(rows))
    low, high = np.nanmin(grid), np.nanmax(grid)
    axes.imshow(grid, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        dark = value > low + 0.6 * (high - low)
        text = "–" if np.isnan(value) else f"{value:.3f}"
        _number(axes, row, column, text, dark, fontsize=7)
    # Dots left of the map: a column a look, filled where the row has it.
    step = 0.06
    for number, look in enumerate(looks):
        x = -step * (len(looks) - number)
        for row, name in enumerate(rows):
            has = look in name.split("+")
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
            look,
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
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.suptitle(
        f"Predicted from the looks marked: {MEASURES[measure]}",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    return figure


@styled
def retrieval(pairs: Mapping[str, Mapping], looks: Sequence[str]) -> Figure:
    """Recall at 1 in %, from each look (row) to each other (column).

    `pairs` and `looks` are those of an evaluation.
    """
    _check_parts(len(looks) ** 2)
    grid = np.full((len(looks), len(looks)), np.nan)
    place = {look: number for number, look in enumerate(looks)}
    for pair in pairs.values():
        if "recall@1" in pair:
            grid[place[pair["from"]], place[pair["to"]]] = 100 * pair["recall@1"]
    figure, axes = _axes(1.2 + 0.5 * len(looks))
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if row != column:
            text = "–" if np.isnan(value) else f"{value:.0f}"
            _number(axes, row, column, text, value > 55)
    axes.set_xticks(range(len(looks)), looks, rotation=30, ha="right")
    axes.set_yticks(range(len(looks)), looks)
    axes.set_title("Retrieval, % found at the first place: row in column")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


@styled
def across(query, found, right, looks: Sequence[str]) -> Figure:
    """Pictures of one look, and the nearest to each in every other look.

    query: uint8[q, h, w, c]; found: uint8[q, looks - 1, h, w, c], framed by whether it
    is of the same thing, `right: bool[q, looks - 1]`.
    """
    rows, columns = right.shape
    figure, grid = _pictures(rows, columns, "Nearest in the other looks", left=0)
    for row in range(rows):
        axes = figure.add_subplot(grid[row, 0])
        _image(axes, query[row], INK)
        for column in range(columns):
            other = figure.add_subplot(grid[row, column + 1])
            color = RIGHT if right[row, column] else WRONG
            _image(other, found[row, column], color)
            if not row:
                other.set_title(looks[column + 1], fontsize=8, fontweight="normal")
        if not row:
            axes.set_title(looks[0], fontsize=8, fontweight="normal")
    return figure


@styled
def texts(query: Sequence[str], found, right) -> Figure:
    """Texts, and the pictures nearest to each, the nearest first.

    found: uint8[q, k, h, w, c], framed by whether it is of the same thing, `right:
    bool[q, k]`.
    """
    rows, columns = right.shape
    title = "Pictures nearest to a text"
    figure, grid = _pictures(rows, columns - 1, title, left=2.2)
    for row in range(rows):
        axes = figure.add_subplot(grid[row, 0])
        axes.axis("off")
        axes.text(0, 0.5, query[row], va="center", fontsize=8, wrap=True)
        for column in range(columns):
            color = RIGHT if right[row, column] else WRONG
            other = figure.add_subplot(grid[row, column + 1])
            _image(other, found[row, column], color)
    return figure


def _pictures(rows: int, columns: int, title: str, left: float):
    """A figure of rows of pictures, one and so many more, right of `left` widths."""
    _check_parts(rows * (columns + 1))
    widths = ([left] if left else []) + [1] * (columns + 1)
    side = WIDTH / sum(widths)
    figure = Figure(figsize=(WIDTH, 0.5 + rows * side))
    figure.set_layout_engine("constrained", h_pad=0.03, w_pad=0.03)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure, figure.add_gridspec(rows, len(widths), width_ratios=widths)


@styled
def variables(results: Mapping[str, Mapping]) -> Figure:
    """What linear probes say of each variable: bars of R^2 and of accuracy.

    `results` maps a name, of a run or a reference, to an evaluation with "variables";
    all of them measure the same ones. A negative R^2 is drawn as 0, with its number.
    """
    names = [*next(iter(results.values()))["variables"]]
    count = len(results)
    _check_parts(len(names) * count)
    figure = Figure(
        figsize=(WIDTH, 1.0 + 0.17 * len(names) * (count + 1)), layout="constrained"
    )
    panels = figure.subplots(1, 2, sharey=True)
    place = np.arange(len(names))
    measures = {"r2": "R² as a number", "accuracy": "Accuracy as a value"}
    for axes, (measure, title) in zip(panels, measures.items(), strict=True):
        for number, (label, result) in enumerate(results.items()):
            found = [result["variables"][name][measure] for name in names]
            bars = axes.barh(
                place + (number - (count - 1) / 2) * 0.8 / count,
                np.maximum(found, 0),
                height=0.7 / count,
                color=RUNS[number % len(RUNS)],
                label=label,
            )
            texts = [f"{value:.2f}" for value in found]
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
    """Frames, and beneath each what the variables are and, in brackets, what was read.

    frame: uint8[n, h, w]; value, reading: float[n, variables].
    """
    columns = 4
    rows = -(-len(frame) // columns)
    _check_parts(len(frame) * max(1, len(names)))
    line = 0.13  # inches
    side = WIDTH / columns
    figure = Figure(figsize=(WIDTH, 0.3 + rows * (side + line * len(names))))
    figure.set_layout_engine("constrained", h_pad=0.03, w_pad=0.03)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(frame) :]:
        axes.set_visible(False)
    for axes, image, true, read in zip(grid, frame, value, reading, strict=False):
        _image(axes, image, FAINT)
        lines = [
            f"{name} {t:.0f} ({r:.0f})"
            for name, t, r in zip(names, true, read, strict=True)
        ]
        axes.set_xlabel("\n".join(lines), fontsize=6.5, labelpad=2)
    figure.suptitle(
        "Test frames: variables, and in brackets what the probes read",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    return figure


def _check_parts(count: int) -> None:
    if count > _MOST_PARTS:
        raise ValueError(f"a figure of {count} parts takes too long to draw")


def _axes(height: float):
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()
