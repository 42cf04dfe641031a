"""The style that all figures share: colours, widths, fonts, and small parts.

A function decorated with `styled` draws one figure: arrays in, Figure out. A figure is
about as wide as a phone, so that a page can show several side by side. The colours are
those of Okabe & Ito and of Tol's "muted", which colour-blind readers can tell apart; no
figure relies on colour alone.
"""

import functools
import io
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.text
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
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
_MOST_PARTS = 1000  # texts or images in a figure; more take minutes
_MOST_LETTERS = 10_000
_FAMILY = "DejaVu Sans"  # matplotlib's own
# Families with Chinese, Japanese or Korean glyphs, of Linux, macOS and Windows. Those
# that are installed serve the characters that DejaVu Sans lacks.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK JP", "Noto Sans CJK KR"),
    *("Noto Sans SC", "Noto Sans TC", "Noto Sans JP", "Noto Sans KR"),
    *("Source Han Sans SC", "Source Han Sans", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAexGothic", "IPAGothic"),
    *("TakaoGothic", "VL Gothic", "NanumGothic", "UnDotum", "PingFang SC"),
    *("Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo", "Heiti TC"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic"),
    *("Arial Unicode MS", "Unifont"),
)
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a name with two $ is not a formula
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


def styled(draw: Callable) -> Callable:
    """Decorate a drawing function, also of another module, to use the style."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Any:
        with matplotlib.rc_context({**_STYLE, "font.family": list(families())}):
            return draw(*arguments, **options)

    return drawn


@functools.cache
def families() -> tuple[str, ...]:
    """Return the font families of figures: DejaVu Sans, and installed fallbacks."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return (_FAMILY, *(name for name in FALLBACKS if name in installed))


@functools.cache
def _glyphs() -> frozenset[int]:
    """Return the characters that these families have."""
    paths = [
        font_manager.findfont(font_manager.FontProperties(family=[family]))
        for family in families()
    ]
    return frozenset().union(*(font_manager.get_font(p).get_charmap() for p in paths))


def legible(names: Sequence[str]) -> tuple[list[str], str]:
    """Return names for a figure, and a note on them.

    A name with a character that no family of figures has would be drawn as boxes: it
    becomes its number, from 0 on. The note says so; it is "" if all names are kept.
    """
    shown = [
        name if all(ord(c) in _glyphs() or c == "\n" for c in name) else str(number)
        for number, name in enumerate(names)
    ]
    changed = shown != list(names)
    return shown, "Numbers: names that no installed font can write" if changed else ""


def set_note(figure: Figure, note: str) -> None:
    """Write a small line at the foot of a figure, unless it is empty."""
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=6.5, color=QUIET)


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file of `DPI` dots per inch.

    Raises ValueError for a figure with so much text that drawing takes minutes.
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


def name_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end; names that would overlap move apart.

    ends: (value, step, name, colour) of each line. The y limits must be final.
    """
    low, high = axes.get_ylim()
    line_height = 0.065 * (high - low)
    ends = sorted(ends)
    places = np.asarray([end[0] for end in ends])
    for row in range(1, len(ends)):  # move up
        places[row] = max(places[row], places[row - 1] + line_height)
    if len(ends):
        places -= max(0, places[-1] - high)  # move down again if that left the axes
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


def show_image(axes: Axes, image: np.ndarray, frame: str) -> None:
    """Show a colour or grey image in a frame of the given colour."""
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=frame, linewidth=1.8)


def short(name: str) -> str:
    """Return the name, cut to the width of 11 letters; Chinese ones count twice."""
    widths = [1 + (unicodedata.east_asian_width(c) in "WF") for c in name]
    if sum(widths) <= 11:
        return name
    fit = int(np.searchsorted(np.cumsum(widths), 10, side="right"))
    return f"{name[:fit]}…"


def write_cell(
    axes: Axes, row: int, column: int, text: str, dark: bool, **style: Any
) -> None:
    """Write text into a cell of a heat-map, in white if the cell is dark."""
    color = "white" if dark else INK
    axes.text(column, row, text, ha="center", va="center", color=color, **style)


def hide_frame(axes: Axes) -> None:
    """Hide the spines and tick marks of axes; keep the tick labels."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def check_parts(count: int) -> None:
    """Raise ValueError if a figure has so many parts that drawing takes minutes."""
    if count > _MOST_PARTS:
        raise ValueError(f"a figure of {count} parts takes too long to draw")


def one_axes(height: float) -> tuple[Figure, Axes]:
    """Return a figure of the usual width and its only axes; height is in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()
