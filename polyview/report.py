"""Compare runs on one page that works offline: table, curves, features, configs.

    python -m polyview.report --run runs/a runs/b --output report.html

Reads what training and `polyview.evaluate` left in each run (config.json,
metrics.jsonl, eval/<step>.json and .npz, eval/pixels.json, eval/random.json), draws it,
and embeds every picture: the page asks the network for nothing. The table also goes to
stdout.
"""

import base64
import dataclasses
import functools
import html
import importlib.metadata
import io
import json
import math
import platform
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyview import cli, drawing, errors, files, hosts
from polyview.config.schema import lasting_keys
from polyview.config.text import dotted
from polyview.errors import InputError
from polyview.runs import metrics
from polyview.terminal import say

REFERENCES = {"random": "untrained encoder", "pixels": "raw pixels"}
_MEASURES = {  # of an evaluation -> their columns
    "linear_probe": "linear probe %",
    "knn": "kNN %",
    "classifier": "classifier %",
}
_FIGURES = {
    "map": "map of the test features",
    "neighbours": "nearest neighbours",
    "sweep": "probe sweep",
    "confusion": "confusion matrix",
    "retrieval": "retrieval",
    "across": "nearest in the other looks",
    "texts": "pictures nearest to a text",
    "variables": "probes of variables",
    "readings": "what the probes read",
}
_MISSING = "–"
# Deviation of a dimension and RankMe below which the page says so; ours. An untrained
# ResNet on the digits has .13 and 2.6.
_COLLAPSED, _ONE_LINE = 0.1, 1.5
_MOST_CURVES = 100  # of what the runs logged: a figure takes a third of a second
_LARGEST_ARRAYS = 2**28  # bytes of an evaluation's, in all; ours are of a few million


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds; `sample` are the arrays of the last evaluation.

    transfers: {data set: (step, evaluation)} of the newest evaluation on each other.
    """

    path: Path
    name: str
    config: dict[str, Any]
    history: list[dict]
    evaluations: dict[int, dict]
    references: dict[str, dict]
    sample: dict[str, np.ndarray]
    transfers: dict[str, tuple[int, dict]]

    @property
    def result(self) -> dict[str, Any]:
        """The evaluation of the last step that has one, or {}."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the comparison; None where the run does not say."""

    run: str
    method: str
    m: int | None = None
    unique_samples: int | None = None
    steps: int | None = None
    linear_probe: float | None = None
    knn: float | None = None
    classifier: float | None = None
    rankme: float | None = None
    seconds: float | None = None

    @property
    def views_per_step(self) -> int | None:
        """Unique samples times views."""
        known = self.m is not None and self.unique_samples is not None
        return self.m * self.unique_samples if known else None


# In the order of what a narrow screen should show first; those of `_IF_ANY` only where
# some run has them.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "run": lambda row: row.run,
    "method": lambda row: row.method,
    "M": lambda row: number(row.m, ","),
    "linear probe %": lambda row: number(row.linear_probe, ".2f", 100),
    "kNN %": lambda row: number(row.knn, ".2f", 100),
    "classifier %": lambda row: number(row.classifier, ".2f", 100),
    "RankMe": lambda row: number(row.rankme, ".1f"),
    "unique samples": lambda row: number(row.unique_samples, ","),
    "views a step": lambda row: number(row.views_per_step, ","),
    "steps": lambda row: number(row.steps, ","),
    "seconds": lambda row: number(row.seconds, ",.0f"),
}
_IF_ANY = {*_MEASURES.values(), "RankMe"}
_TEXT_COLUMNS = 2  # the first ones; the others are numbers, aligned to the right


def main() -> None:
    """Read the command line, print the table and write the page; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", metavar="DIR", required=True, nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    flags = parser.parse_args()
    cli.check_output(flags.output)
    runs = read(flags.run)
    say(summary(runs))
    files.write_whole(flags.output, encoded(page(runs)))
    say(f"report: {flags.output}")


def encoded(text: str) -> bytes:
    """A page as UTF-8; of a name that is no text, the bytes are escaped."""
    return text.encode(errors="backslashreplace")


def naming_the_run(tell: Callable[[Sequence[Run]], Any]) -> Callable:
    """Decorate what tells of runs: it raises InputError for a run whose content is not
    what it should be, and names it."""

    @functools.wraps(tell)
    def told(runs: Sequence[Run]) -> Any:
        try:
            with errors.fits_together(", ".join(str(run.path) for run in runs)):
                return tell(runs)
        except InputError:
            if len(runs) > 1:
                for run in runs:  # is it one of them?
                    told([run])
            raise

    return told


@naming_the_run
def summary(runs: Sequence[Run]) -> str:
    """The tables and the notes as plain text."""
    parts = [text_table(rows(runs))]
    if found := over_seeds(runs):
        parts.append(f"\nover seeds, mean ± standard deviation\n{aligned(*found, 1)}")
    if found := transfers(runs):
        parts.append(f"\non other data sets\n{aligned(*found, 2)}")
    for run in filter(_compared, runs):
        table = aligned(*_variables(run), text_columns=1)
        parts.append(f"\n{run.name}: variables\n{table}")
    parts += [f"note: {note}" for note in notes(runs)]
    return "\n".join(parts)


def read(paths: Sequence[Path]) -> list[Run]:
    """Read run directories.

    Raises InputError for a path that is no run, and for a file in it that is damaged.
    """
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    # A name on the disk need not be text, as a picture's must be.
    names = [encoded(name).decode() for name in names]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Run:
    if not (path / "config.json").is_file():
        what = "has no config.json" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} is not a run: it {what}; name the --workdir of a training"
        )
    evaluations, references, sample, transfers = {}, {}, {}, {}
    for file in sorted((path / "eval").glob("*.json")):
        of, on, data = file.stem.partition("-on-")
        if on and of.isdecimal():
            if int(of) >= transfers.get(data, (0,))[0]:
                transfers[data] = int(of), _json(file)
        elif file.stem.isdecimal():
            evaluations[int(file.stem)] = _json(file)
        elif file.stem in REFERENCES:
            references[file.stem] = _json(file)
    if evaluations:
        sample = _arrays(path / "eval" / f"{max(evaluations)}.npz")
    return Run(
        path=path,
        name=name,
        config=_json(path / "config.json"),
        history=metrics.read(path / "metrics.jsonl"),
        evaluations=dict(sorted(evaluations.items())),
        references=references,
        sample=sample,
        transfers=transfers,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = files.read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); write it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; write it again")
    return content


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        content = io.BytesIO(files.read_bounded(path, _LARGEST_ARRAYS))
        with zipfile.ZipFile(content) as archive:
            _check_sizes(archive)
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # of a dozen kinds: zipfile and numpy name few of them
        raise InputError(f"{path} is damaged ({error}); evaluate again") from error


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise ValueError for arrays of more bytes than any evaluation has."""
    versions = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    size = 0
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in versions:
                raise ValueError(f"{member.filename!r} is of another version")
            shape, _, dtype = versions[version](file)
        # An empty array, too, has sides that are looped over.
        claimed = math.prod(max(1, side) for side in (*shape, dtype.itemsize))
        size += max(claimed, member.file_size)
    if size > _LARGEST_ARRAYS:
        raise ValueError(f"its arrays take more than {_LARGEST_ARRAYS} bytes")


def rows(runs: Sequence[Run]) -> list[Row]:
    """The lines of the table: the runs, then each distinct reference once."""
    lines = [_row(run) for run in runs]
    for name, method in REFERENCES.items():
        distinct = {}
        for run in runs:
            if name in run.references:
                scores = _scores(run.references[name])
                if not any(scores.values()):
                    continue  # another kind of evaluation, which is told apart
                distinct.setdefault(json.dumps(scores), (run.name, scores))
        for run_name, scores in distinct.values():
            label = f"for {run_name}" if len(distinct) > 1 else "reference"
            lines.append(Row(run=label, method=method, **scores))
    return lines


def _row(run: Run) -> Row:
    objective = run.config.get("objective") or {}
    loss = objective.get("loss") or objective
    method = loss.get("partial") or loss.get("target") or _MISSING
    if "terms" in objective:
        method = _cross_modal(objective)
    views = run.config.get("views") or {}
    m = views.get("m") or sum(map(len, (views.get("fields") or {}).values())) or None
    logged = run.history[-1]["step"] if run.history else None
    return Row(
        run=run.name,
        method=str(method).rpartition(":")[2],
        m=m,
        unique_samples=run.config.get("batch_size"),
        steps=max(run.evaluations, default=logged),
        seconds=_seconds(run.history),
        **_scores(run.result),
    )


def _cross_modal(objective: dict[str, Any]) -> str:
    """The terms that a cross-modal objective weighs, beside its tasks."""
    weights = objective["terms"] | {"poly-view": objective.get("polyview_weight", 0)}
    terms = [f"{weight:g} {name}" for name, weight in weights.items() if weight]
    return " + ".join([*objective.get("tasks", {}), *terms])


def _scores(result: dict[str, Any]) -> dict[str, float | None]:
    return {
        "linear_probe": result.get("linear_probe", {}).get("top1"),
        "knn": result.get("knn", {}).get("top1"),
        "classifier": result.get("classifier", {}).get("top1"),
        "rankme": result.get("health", {}).get("h", {}).get("rankme"),
    }


def _seconds(history: list[dict]) -> float | None:
    """Time in training, over all the times the run was resumed."""
    times = [line.get("time") for line in history]
    clock = [t["seconds"] for t in times if isinstance(t, dict) and "seconds" in t]
    if not clock:
        return None
    ends = [a for a, b in zip(clock, clock[1:], strict=False) if b < a]
    return sum(ends) + clock[-1]


def over_seeds(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]] | None:
    """Head and body of a table of the runs that differ in nothing but their seed, two
    or more of a kind, at one step: mean and standard deviation (n - 1) in per cent."""
    kinds: dict[str, dict[Any, Run]] = {}
    for run in runs:
        config = lasting_keys(run.config) | {"seed": None}
        kind = json.dumps([config, max(run.evaluations, default=0)], sort_keys=True)
        kinds.setdefault(kind, {})[run.config.get("seed")] = run
    body, measured = [], {}
    for by_seed in kinds.values():
        if len(by_seed) < 2:
            continue
        scores = [_scores(run.result) for run in by_seed.values()]
        cells = {}
        for measure, column in _MEASURES.items():
            values = [100 * of[measure] for of in scores if of[measure] is not None]
            if len(values) == len(by_seed):
                spread = np.std(values, ddof=1)
                cells[column] = f"{np.mean(values):.2f} ± {spread:.2f}"
        names = ", ".join(run.name for run in by_seed.values())
        body.append((names, len(by_seed), cells))
        measured |= cells
    if not measured:
        return None
    columns = [column for column in _MEASURES.values() if column in measured]
    return ["runs", "seeds", *columns], [
        [names, str(count), *(cells.get(column, _MISSING) for column in columns)]
        for names, count, cells in body
    ]


def transfers(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]] | None:
    """Head and body of a table of the evaluations on other data sets, if any."""
    body = [
        [
            run.name,
            data,
            f"{step:,}",
            *(number(_scores(result)[m], ".2f", 100) for m in ("linear_probe", "knn")),
        ]
        for run in runs
        for data, (step, result) in run.transfers.items()
    ]
    head = ["run", "data set", "step", "linear probe %", "kNN %"]
    return (head, body) if body else None


def number(value: float | None, form: str, scale: float = 1) -> str:
    """A number for a table; a dash where there is none."""
    return _MISSING if value is None else format(scale * value, form)


def _columns(lines: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    return {
        name: column
        for name, column in COLUMNS.items()
        if name not in _IF_ANY or any(column(line) != _MISSING for line in lines)
    }


def text_table(lines: Sequence[Row]) -> str:
    """The comparison as aligned plain text."""
    columns = _columns(lines)
    body = [[column(line) for column in columns.values()] for line in lines]
    return aligned(list(columns), body, text_columns=_TEXT_COLUMNS)


def aligned(head: list[str], body: Iterable[list[str]], text_columns: int) -> str:
    """A table as plain text; all but the first columns are aligned to the right."""
    cells = [head, *body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line_of(row: list[str]) -> str:
        padded = [
            cell.ljust(width) if place < text_columns else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    top, *lines = map(line_of, cells)
    return "\n".join([top, "-" * len(top), *lines])


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing the rows."""
    found = []
    for measure in ("linear_probe", "classifier"):
        protocols = [
            dotted(run.result.get("protocol", {}))
            for run in runs
            if measure in run.result
        ]
        differing = sorted(
            key
            for key in {key for protocol in protocols for key in protocol}
            if key != "features.dimensions"
            and len({json.dumps(protocol.get(key)) for protocol in protocols}) > 1
        )
        if differing:
            found.append(
                "the runs were evaluated by different protocols "
                f"({', '.join(differing)}): their accuracies do not compare"
            )
    for run in runs:
        if not run.evaluations:
            found.append(f"{run.name} has no evaluation: run polyview.evaluate on it")
        elif run.history and run.history[-1]["step"] != max(run.evaluations):
            found.append(
                f"{run.name} is evaluated at step {max(run.evaluations)}, but trained "
                f"to {run.history[-1]['step']}"
            )
        for said in (
            run.result.get("note"),
            run.result.get("linear_probe", {}).get("warning"),
        ):
            if said:
                found.append(f"{run.name}: {said}")
        found += collapsed(run)
    return found


def collapsed(run: Run) -> list[str]:
    """Alerts where features lie almost in one point, or on one line.

    Read are h and z of the last evaluation and z of the last step that was logged.
    """
    measured = {
        f"{of} of the test split": measures
        for of, measures in run.result.get("health", {}).items()
        if isinstance(measures, dict)
    }
    for key, value in (run.history[-1] if run.history else {}).items():
        modality, slash, measure = key.rpartition("/")
        if slash:
            measured.setdefault(f"z of '{modality}'", {})[measure] = value
    alerts = []
    for what, measures in measured.items():
        spread = measures.get("standard_deviation", 1)
        dimensions = measures.get("rankme", 2)
        if spread < _COLLAPSED or dimensions < _ONE_LINE:
            alerts.append(
                f"{run.name}: alert, {what} is close to collapse: deviation of a "
                f"dimension {spread:.3f} (even spread: 1), RankMe {dimensions:.1f}"
            )
    return alerts


@naming_the_run
def page(runs: Sequence[Run]) -> str:
    """The report as one HTML document that refers to nothing outside itself."""
    sections = [
        ("Comparison", _comparison(runs)),
        ("Training", training(runs)),
        *((f"Features of {run.name}", _features(run)) for run in runs),
        ("Protocol", protocol(runs)),
        ("Configs", configurations(runs)),
        ("Environment", environment(runs)),
    ]
    return document("polyview", ", ".join(run.name for run in runs), sections)


def document(title: str, heading: str, sections: Iterable[tuple[str, str]]) -> str:
    """A page of (title, HTML) sections, those without content left out."""
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


def _comparison(runs: Sequence[Run]) -> str:
    lines = rows(runs)
    columns = _columns(lines)
    measures = {column: measure for measure, column in _MEASURES.items()}
    best = {
        measure: max(getattr(line, measure) or 0 for line in lines)
        for measure in _MEASURES
    }
    body = []
    for line in lines:
        cells = []
        for name, column in columns.items():
            text = html.escape(column(line))
            measure = measures.get(name)
            if measure and getattr(line, measure) == best[measure] > 0:
                text = f"<strong>{text}</strong>"
            cells.append(text)
        body.append(cells)
    compared = table(list(columns), body, text_columns=_TEXT_COLUMNS)
    others = {
        "Over seeds, mean ± standard deviation": (over_seeds(runs), 1),
        "On other data sets": (transfers(runs), 2),
    }
    for title, (found, text_columns) in others.items():
        if found:
            head, lines = found
            cells = [[html.escape(cell) for cell in line] for line in lines]
            compared += f"\n<h3>{title}</h3>\n"
            compared += table(head, cells, text_columns)
    return f"{compared}\n{remarks(notes(runs))}"


def remarks(found: Iterable[str]) -> str:
    """Notes as a list, or nothing."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in found)
    return items and f'<ul class="notes">{items}</ul>'


def training(runs: Sequence[Run]) -> str:
    """Curves of all that the runs logged, and of their accuracies."""
    histories = {run.name: run.history for run in runs}
    logged = {
        key
        for history in histories.values()
        for line in history
        for key, value in line.items()
        if key != "step" and isinstance(value, int | float)
    }
    order = list(drawing.TITLES)

    def place(metric: str):
        measure = metric.rpartition("/")[2]
        return order.index(measure) if measure in order else len(order), metric

    shown = sorted(logged, key=place)[:_MOST_CURVES]
    figures = [
        picture(drawing.curve(histories, metric), f"{metric} over the steps")
        for metric in shown
    ]
    accuracies = {
        run.name: [
            {"step": step}
            | {key: 100 * result[key]["top1"] for key in _MEASURES if key in result}
            for step, result in run.evaluations.items()
        ]
        for run in runs
    }
    if any(len(lines) > 1 for lines in accuracies.values()):
        figures += [
            picture(drawing.curve(accuracies, metric), f"{metric} over the steps")
            for metric in sorted(_MEASURES)
            if any(metric in line for lines in accuracies.values() for line in lines)
        ]
    left_out = len(logged) - len(shown)
    note = f"<p>Not drawn: {left_out:,} more that were logged.</p>" if left_out else ""
    return note + grid(figures)


def _features(run: Run) -> str:
    figures = drawing.figures(run.result, run.sample)
    if found := _compared(run):
        figures["variables"] = drawing.variables(found)
    pictures = [
        picture(figure, f"{_FIGURES.get(name, name)} of {run.name}")
        for name, figure in figures.items()
    ]
    compared = ""
    if found:
        head, body = _variables(run)
        cells = [[html.escape(cell) for cell in line] for line in body]
        compared = table(head, cells, text_columns=1)
    return compared + grid(pictures)


def _compared(run: Run) -> dict[str, dict]:
    """Evaluations of variables by name: the run's and its references'."""
    found = {run.name: run.result} | {
        method: run.references[name]
        for name, method in REFERENCES.items()
        if name in run.references
    }
    return {name: result for name, result in found.items() if "variables" in result}


def _variables(run: Run) -> tuple[list[str], list[list[str]]]:
    """The head and the body of a table: a line a variable, the mean last."""
    found = _compared(run)
    measures = {"r2": "R^2", "accuracy": "accuracy", "f1": "F1"}
    head = ["variable"]
    head += [f"{title} {name}" for title in measures.values() for name in found]
    names = [*next(iter(found.values()))["variables"]]
    scores = np.array(
        [
            [found[of]["variables"][name][m] for m in measures for of in found]
            for name in names
        ]
    )
    body = [
        [name, *(f"{score:.3f}" for score in line)]
        for name, line in zip([*names, "mean"], [*scores, scores.mean(0)], strict=True)
    ]
    return head, body


def protocol(runs: Sequence[Run]) -> str:
    """How the first run that has an evaluation was evaluated."""
    for run in runs:
        if run.evaluations:
            flat = dotted(run.result.get("protocol", {})).items()
            cells = [[_code(key), html.escape(_short(value))] for key, value in flat]
            return f"<p>As evaluated in {html.escape(run.name)}.</p>" + table(
                ["what", "how"], cells, text_columns=2
            )
    return ""


def configurations(runs: Sequence[Run]) -> str:
    """Where the configs differ, and each in full."""
    flat = [dotted(run.config) for run in runs]
    keys = sorted({key for config in flat for key in config})
    cells = [
        [
            _code(key),
            *(html.escape(_short(config.get(key, _MISSING))) for config in flat),
        ]
        for key in keys
        if len({json.dumps(config.get(key, _MISSING)) for config in flat}) > 1
    ]
    parts = []
    if cells:
        head = ["key", *(run.name for run in runs)]
        parts.append("<p>Where the configs differ:</p>")
        parts.append(table(head, cells, text_columns=len(head)))
    for run in runs:
        text = html.escape(json.dumps(run.config, indent=2, sort_keys=True))
        name = html.escape(run.name)
        parts.append(
            f"<details><summary>config of {name}</summary><pre>{text}</pre></details>"
        )
    return "\n".join(parts)


def environment(runs: Sequence[Run]) -> str:
    """Where the page was made, and the machines that evaluated."""
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
            said = ", ".join(f"{key} {value}" for key, value in machine.items())
            cells.append([f"evaluation of {run.name}", said])
    escaped = [[html.escape(cell) for cell in row] for row in cells]
    return "<p>Where this page was made:</p>" + table(["", ""], escaped, text_columns=2)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _code(text: str) -> str:
    # A long dotted key may break at its dots, which a phone needs.
    return f"<code>{html.escape(text).replace('.', '.<wbr>')}</code>"


def table(head: list[str], body: Iterable[list[str]], text_columns: int) -> str:
    """A table that scrolls sideways by itself; cells of `body` are HTML already."""

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


def picture(figure, description: str) -> str:
    """A Figure as an image that the page holds itself."""
    data = base64.b64encode(drawing.png(figure)).decode()
    width, height = figure.get_size_inches() * drawing.DPI
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(description)}" '
        f'width="{width:.0f}" height="{height:.0f}">'
    )


def grid(figures: list[str]) -> str:
    """Images side by side, as many as the screen is wide."""
    if not figures:
        return ""
    return f'<div class="figures">{"".join(figures)}</div>'


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


if __name__ == "__main__":
    errors.run(main)
