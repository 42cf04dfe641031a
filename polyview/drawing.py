"""The style that all figures share: colours, widths, fonts, and pieces of a figure.

A function decorated with `styled` draws one figure: arrays in, Figure out. Each is
about as wide as a phone, so that a page can lay several side by side. Colours are those
of Okabe & Ito and of Tol's "muted", which colour-blind readers can tell apart; no
figure says by colour alone what matters in it.
"""

import io

import matplotlib
import matplotlib.text
import numpy as np
from matplotlib.figure import Figure

INK, QUIET, FAINT = "#1f2933", "#616e7c", "#e4e7eb"
RUNS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CLASSES = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#DDCC77"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#7F7F7F"),
)
RIGHT, WRONG = "#009E73", "#D55E00"

DPI = 140
WIDTH = 5.2  # inches
_MOST_PARTS = 1000  # texts or pictures of a figure: more take minutes
_MOST_LETTERS = 10_000
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


def png(figure: Figure) -> bytes:
    """The figure as a PNG file of `DPI` dots an inch.

    Raises ValueError for a figure whose names are so long that it takes minutes.
    """
    texts = figure.findobj(matplotlib.text.Text)
    if (letters := sum(len(text.get_text()) for text in texts)) > _MOST_LETTERS:
        raise ValueError(f"a figure with {letters} letters takes too long to draw")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def set_title(figure: Figure, title: str) -> None:
    """Write a title above all axes of a figure, at its left edge."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")


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


def show_image(axes, image: np.ndarray, frame: str) -> None:
    """Show an image, in colour or grey, in a frame of the given colour."""
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=frame, linewidth=1.8)


def short(name: str) -> str:
    """The name, cut to 11 characters."""
    return name if len(name) <= 11 else f"{name[:10]}…"


def write_cell(axes, row: int, column: int, text: str, dark: bool, **style) -> None:
    """Write into a cell of a heat-map."""
    color = "white" if dark else INK
    axes.text(column, row, text, ha="center", va="center", color=color, **style)


def hide_frame(axes) -> None:
    """Hide the spines and tick marks of axes, but keep the labels of the ticks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def check_parts(count: int) -> None:
    """Raise ValueError for a figure of so many parts that it takes minutes to draw."""
    if count > _MOST_PARTS:
        raise ValueError(f"a figure of {count} parts takes too long to draw")


def one_axes(height: float):
    """A figure of the usual width and one axes in it; the height is in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()
