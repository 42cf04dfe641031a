"""The page that compares runs."""

import html
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from typing import Any

from polyview import hosts
from polyview.config.text import dotted
from polyview.reporting.figures import CHANCE, TITLES, curve
from polyview.reporting.html import (
    code,
    document,
    embedded,
    grid,
    picture,
    remarks,
    table,
)
from polyview.reporting.read import Run, drawn_pictures, naming_the_run
from polyview.reporting.tables import (
    BEST,
    ERRORS,
    MISSING,
    TEXT_COLUMNS,
    beside_references,
    clearly_best,
    columns_of,
    notes,
    over_seeds,
    rows,
    transfers,
    with_references,
)

_MOST_CURVES = 100  # curves of logged metrics; each takes a third of a second


@naming_the_run
def html_page(runs: Sequence[Run]) -> str:
    """Return the report as one self-contained HTML document."""
    sections = [
        ("Comparison", _comparison(runs)),
        ("Training", training(runs)),
        *((f"Evaluations of {run.name}", _features(run)) for run in runs),
        ("Protocol", protocol(runs)),
        ("Configs", configurations(runs)),
        ("Environment", environment(runs)),
    ]
    return document("polyview", ", ".join(run.name for run in runs), sections)


def _comparison(runs: Sequence[Run]) -> str:
    lines = rows(runs)
    columns = columns_of(lines)
    best = {
        column: clearly_best(lines, column)
        for column in columns
        if column.endswith("%")
    }
    body = []
    for line in lines:
        cells = []
        for name, column in columns.items():
            text = html.escape(column(line))
            if line is best.get(name):
                text = f"<strong>{text}</strong>"
            cells.append(text)
        body.append(cells)
    compared = table(list(columns), body, text_columns=TEXT_COLUMNS)
    if any(line.errors for line in lines):
        compared += f"\n<p>{html.escape(f'{ERRORS}; {BEST}.')}</p>"
    others = {
        "Over seeds, mean ± standard deviation": (over_seeds(runs), 1),
        "On other data sets": (transfers(runs), 2),
    }
    for title, (content, text_columns) in others.items():
        if content:
            head, entries = content
            compared += f"\n<h3>{title}</h3>\n"
            compared += table(head, _escaped(entries), text_columns)
    return f"{compared}\n{remarks(notes(runs))}"


def _escaped(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[html.escape(cell) for cell in line] for line in lines]


def training(runs: Sequence[Run]) -> str:
    """Draw curves of logged metrics and of scores evaluated at several steps."""
    histories = {run.name: run.history for run in runs}
    logged = {
        key
        for history in histories.values()
        for line in history
        for key, value in line.items()
        if key != "step" and isinstance(value, int | float)
        if not key.endswith(CHANCE)
    }
    order = list(TITLES)

    def place(metric: str) -> tuple[int, str]:
        measure = metric.rpartition("/")[2]
        return order.index(measure) if measure in order else len(order), metric

    shown = sorted(logged, key=place)[:_MOST_CURVES]
    figures = [
        picture(curve(histories, metric), f"{metric} over the steps")
        for metric in shown
    ]
    scores = {
        run.name: [
            {"step": step} | result.get("columns", {})
            for step, result in run.evaluations.items()
        ]
        for run in runs
    }
    if any(len(lines) > 1 for lines in scores.values()):
        columns = {key for lines in scores.values() for line in lines for key in line}
        figures += [
            picture(curve(scores, column), f"{column} over the steps")
            for column in sorted(columns - {"step"})
        ]
    left_out = len(logged) - len(shown)
    note = f"<p>Not drawn: {left_out:,} more logged metrics.</p>" if left_out else ""
    return note + grid(figures)


def _features(run: Run) -> str:
    """Return each evaluation's tables and figures, made by its class."""
    tables = [
        table(head, _escaped(body), text_columns=1)
        for _, head, body in beside_references(run)
    ]
    pictures = []
    for name in run.results:
        numbers = run.last(name)
        made = run.evaluation(name, numbers)
        figures = {}
        if hasattr(made, "figures"):
            figures = made.figures(numbers, run.figure_data.get(name, {}))
        elif made is None:  # an untrusted class: show the PNG files it wrote
            pictures += [
                embedded(content, f"{title} of {run.name}", width, height)
                for title, content, width, height in drawn_pictures(run, name)
            ]
        compared = with_references(run, name)
        if hasattr(made, "comparison") and len(compared) > 1:
            figures |= made.comparison(compared)
        pictures += [
            picture(figure, f"{title} of {run.name}")
            for title, figure in figures.items()
        ]
    return "".join(tables) + grid(pictures)


def protocol(runs: Sequence[Run]) -> str:
    """Show the protocol of the first run that was evaluated."""
    for run in runs:
        if run.evaluations:
            flat = dotted(run.result.get("protocol", {})).items()
            cells = [[code(key), html.escape(_short(value))] for key, value in flat]
            return f"<p>As evaluated in {html.escape(run.name)}.</p>" + table(
                ["what", "how"], cells, text_columns=2
            )
    return ""


def configurations(runs: Sequence[Run]) -> str:
    """Show the keys in which configs differ, then each config in full."""
    flat = [dotted(run.config) for run in runs]
    keys = sorted({key for config in flat for key in config})
    cells = [
        [
            code(key),
            *(html.escape(_short(config.get(key, MISSING))) for config in flat),
        ]
        for key in keys
        if len({json.dumps(config.get(key, MISSING)) for config in flat}) > 1
    ]
    parts = []
    if cells:
        head = ["key", *(run.name for run in runs)]
        parts.append("<p>Differences between the configs:</p>")
        parts.append(table(head, cells, text_columns=len(head)))
    for run in runs:
        text = html.escape(json.dumps(run.config, indent=2, sort_keys=True))
        name = html.escape(run.name)
        parts.append(
            f"<details><summary>config of {name}</summary><pre>{text}</pre></details>"
        )
    return "\n".join(parts)


def environment(runs: Sequence[Run]) -> str:
    """Show the machine that made the page and those that evaluated the runs."""
    packages = ("polyview", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
    cells = [["Python", platform.python_version()]]
    for package in packages:
        try:
            cells.append([package, importlib.metadata.version(package)])
        except importlib.metadata.PackageNotFoundError:
            continue
    cells.append(["processor", hosts.processor()])
    cells.append(["cores", str(hosts.cores())])
    for run in runs:
        if machine := run.result.get("machine"):
            text = ", ".join(f"{key} {value}" for key, value in machine.items())
            cells.append([f"evaluation of {run.name}", text])
    content = table(["", ""], _escaped(cells), text_columns=2)
    return f"<p>Where this page was made:</p>{content}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
