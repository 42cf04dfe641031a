"""The documentation site: `sphinx-build -W -b html docs build/docs`.

Its pages are Markdown that GitHub shows as well, so they hold no directive. The side
bar lists the pages in the order in which `index.md` links them; the public API's
docstrings are appended to `api.md`. Formulas become MathML
when the site is built: it reads without a network.
"""

import inspect
import re
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import polyview  # noqa: E402  (the package need not be installed)

project = "polyview"
html_title = "polyview"
html_theme = "furo"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Where a function's name would touch what stands beside it.
NAME = "(<mi>(?:cos|exp|log|tanh)</mi>)"
BEFORE, BEHIND = re.compile(rf"(?<=</m[in]>){NAME}"), re.compile(rf"{NAME}(?!<mo )")
SPACE = '<mspace width="0.17em"/>'


def add_contents(app, page, source):
    """Give the index a table of contents: the pages that it links, in that order."""
    if page == "index":
        pages = dict.fromkeys(re.findall(r"\]\((\w+)\.md\)", source[0]))
        contents = "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])
        source[0] += f"\n\n{contents}\n"


def add_docstrings(app, page, source):
    """Append the head and the docstring of each public name to the API page."""
    if page != "api":
        return
    entries = [(name, getattr(polyview, name)) for name in polyview.__all__]
    position = 1 + [name for name, _ in entries].index("load")
    loaded = inspect.signature(polyview.load).return_annotation
    entries[position:position] = [("Loaded", loaded), ("Loaded.encode", loaded.encode)]
    for name, entry in entries:
        head = inspect.getsource(entry).partition('"""')[0]
        head = inspect.cleandoc("\n" + head).strip()
        text = inspect.getdoc(entry)
        source[0] += f"\n\n## {name}\n\n```python\n{head}\n```\n"
        source[0] += f"\n```text\n{text}\n```\n"


def formula(display):
    """A visitor that writes a formula as MathML."""

    def visit(writer, node):
        mathml = convert(node.astext(), display=display)
        mathml = BEHIND.sub(rf"\1{SPACE}", BEFORE.sub(rf"{SPACE}\1", mathml))
        if display == "block":
            mathml = f'<div class="formula">{mathml}</div>'
        writer.body.append(mathml)
        raise SkipNode

    return visit, None


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("source-read", add_docstrings)
    app.add_html_math_renderer("mathml", formula("inline"), formula("block"))
