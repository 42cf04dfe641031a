"""Self-contained HTML: tables, pictures, documents."""

import base64
import html
from collections.abc import Iterable

from matplotlib.figure import Figure

from polyview.drawing import DPI, png


def encoded(text: str) -> bytes:
    """Encode a page as UTF-8; undecodable bytes of file names are escaped."""
    return text.encode(errors="backslashreplace")


def document(title: str, heading: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a page of (title, HTML) sections; empty sections are left out."""
    body = "\n".join(
        f"<section><h2>{html.escape(name)}</h2>\n{content}\n</section>"
        for name, content in sections
        if content
    )
    title, heading = html.escape(title), html.escape(heading)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: {heading}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{title}</h1><p>{heading}</p></header>
{body}
</body>
</html>
"""


def remarks(found: Iterable[str]) -> str:
    """Return notes as an HTML list, or an empty string without notes."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in found)
    return items and f'<ul class="notes">{items}</ul>'


def table(head: list[str], body: Iterable[list[str]], text_columns: int) -> str:
    """Return a table that scrolls sideways; cells of `body` must be HTML already."""

    def line(cells: Iterable[str], tag: str) -> str:
        kinds = [f"<{tag}>", f'<{tag} class="number">']
        parts = (f"{kinds[i >= text_columns]}{c}</{tag}>" for i, c in enumerate(cells))
        return f"<tr>{''.join(parts)}</tr>"

    top = line(map(html.escape, head), "th") if any(head) else ""
    lines = "\n".join(line(cells, "td") for cells in body)
    return (
        f'<div class="wide"><table><thead>{top}</thead>\n<tbody>{lines}</tbody>'
        "</table></div>"
    )


def picture(figure: Figure, description: str) -> str:
    """Return a figure as an embedded image."""
    width, height = figure.get_size_inches() * DPI
    return embedded(png(figure), description, width, height)


def embedded(
    content: bytes, description: str, width: float, height: float, kind: str = "png"
) -> str:
    """Return the content of a PNG or GIF file as an embedded image; sizes in pixels."""
    data = base64.b64encode(content).decode()
    return (
        f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(description)}" '
        f'width="{width:.0f}" height="{height:.0f}">'
    )


def grid(figures: list[str]) -> str:
    """Place images side by side, as many as fit the screen's width."""
    if not figures:
        return ""
    return f'<div class="figures">{"".join(figures)}</div>'


def code(text: str) -> str:
    """Return text as HTML code; a long key may wrap at its dots, to fit a phone."""
    return f"<code>{html.escape(text).replace('.', '.<wbr>')}</code>"


_STYLE = """
:root { color: #1f2933; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
body { max-width: 76rem; margin: 0 auto; padding: 1rem; }
header { border-bottom: 2px solid #1f2933; margin-bottom: 1.5rem; }
h1 { margin: 0; font-size: 1.6rem; }
header p { margin: 0 0 .6rem; color: #52606d; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e7eb; }
th { color: #52606d; font-weight: 600; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; }
code, pre { font-size: .82rem;
  font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
pre { overflow-x: auto; background: #f5f7fa; padding: .8rem; }
summary { cursor: pointer; padding: .3rem 0; }
.notes { padding-left: 1.1rem; color: #8a4b08; font-size: .9rem; }
.figures { display: grid; gap: 1.4rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.figures img { width: 100%; max-width: 36rem; height: auto; }
"""
