"""Rows of text and numbers that compare runs, and notes on them."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polyview.config.schema import lasting_keys
from polyview.config.text import dotted
from polyview.reporting.read import REFERENCES, Run, naming_the_run

MISSING = "–"
# The page warns if the standard deviation of a dimension, or RankMe, is lower. The
# thresholds are ours; an untrained ResNet on the digits has 0.13 and 2.6.
_COLLAPSED, _ONE_LINE = 0.1, 1.5
TEXT_COLUMNS = 2  # the first columns; the others are numbers, right-aligned
ERRORS = (
    "± is the standard error: sqrt(p (1 - p) / n) of an accuracy p on n test rows, in "
    "few-shot columns with that of the draws; of an average over classes, over these"
)
BEST = (
    "bold exceeds the next best of its column by more than the standard error of their "
    "difference, sqrt(a² + b²)"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the comparison; a value absent from the run is None.

    errors: the standard errors of those scores for which they are known.
    """

    run: str
    method: str
    scores: Mapping[str, float]
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    m: int | None = None
    unique_samples: int | None = None
    steps: int | None = None
    seconds: float | None = None

    @property
    def views_per_step(self) -> int | None:
        """Unique samples times views."""
        if self.m is None or self.unique_samples is None:
            return None
        return self.m * self.unique_samples


def columns_of(lines: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Return the comparison's columns, the most important first for narrow screens."""
    scores = dict.fromkeys(name for line in lines for name in line.scores)

    def score_column(name: str) -> Callable[[Row], str]:
        return lambda row: with_error(row.scores.get(name), row.errors.get(name), name)

    return {
        "run": lambda row: row.run,
        "method": lambda row: row.method,
        "M": lambda row: number(row.m, ","),
        **{name: score_column(name) for name in scores},
        "unique samples": lambda row: number(row.unique_samples, ","),
        "views a step": lambda row: number(row.views_per_step, ","),
        "steps": lambda row: number(row.steps, ","),
        "seconds": lambda row: number(row.seconds, ",.0f"),
    }


def score(value: float | None, column: str) -> str:
    """Format a score for a table: percentages to hundredths, others to four digits."""
    return number(value, ".2f" if column.endswith("%") else ".4g")


def with_error(value: float | None, error: float | None, column: str) -> str:
    """Format a score for a table, with its standard error if that is known."""
    text = score(value, column)
    return (
        text if value is None or error is None else f"{text} ± {score(error, column)}"
    )


def clearly_best(lines: Sequence[Row], column: str) -> Row | None:
    """Return the row with the best score of a column, if it is clearly the best.

    It exceeds the next best by more than the standard error of their difference,
    sqrt(a^2 + b^2) for independent test rows. On the same test rows, where models tend
    to be right together, this is cautious. None if no row does, or if a standard error
    is unknown.
    """
    scored = sorted(
        (line for line in lines if column in line.scores),
        key=lambda line: line.scores[column],
        reverse=True,
    )
    if len(scored) < 2 or not all(column in line.errors for line in scored[:2]):
        return None
    best, following = scored[:2]
    error = math.hypot(best.errors[column], following.errors[column])
    return best if best.scores[column] - following.scores[column] > error else None


@naming_the_run
def summary(runs: Sequence[Run]) -> str:
    """Return the tables and the notes as plain text."""
    lines = rows(runs)
    parts = [text_table(lines)]
    if any(line.errors for line in lines):
        parts.append(ERRORS)
    if found := over_seeds(runs):
        parts.append(f"\nover seeds, mean ± standard deviation\n{aligned(*found, 1)}")
    if found := transfers(runs):
        parts.append(f"\non other data sets\n{aligned(*found, 2)}")
    for run in runs:
        for title, head, body in beside_references(run):
            table = aligned(head, body, text_columns=1)
            parts.append(f"\n{run.name}: {title}\n{table}")
    parts += [f"note: {note}" for note in notes(runs)]
    return "\n".join(parts)


def beside_references(run: Run) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return tables that compare a run with its references: (title, head, body)."""
    tables = []
    for name in run.results:
        compared = with_references(run, name)
        made = run.evaluation(name, run.last(name))
        if hasattr(made, "comparison_table"):
            head, body = made.comparison_table(compared)
            tables += [(name or "evaluation", head, body)] if body else []
    return tables


def with_references(run: Run, name: str) -> dict[str, dict]:
    """Return an evaluation's last result and those of its references, by label."""
    return {run.name: run.last(name)} | {
        method: run.references[name][reference]
        for reference, method in REFERENCES.items()
        if reference in run.references.get(name, {})
    }


def rows(runs: Sequence[Run]) -> list[Row]:
    """Return the rows of the comparison: the runs, then each distinct reference."""
    lines = [_row(run) for run in runs]
    for reference, method in REFERENCES.items():
        distinct: dict[str, Row] = {}
        for run in runs:
            scores: dict[str, float] = {}
            errors: dict[str, float] = {}
            for name, by_reference in run.references.items():
                if reference in by_reference:
                    result = run.with_columns(name, by_reference[reference])
                    scores |= result["columns"]
                    errors |= result["standard_errors"]
            if scores:
                row = Row(f"for {run.name}", method, scores, errors)
                distinct.setdefault(json.dumps(scores), row)
        if len(distinct) == 1:
            (only,) = distinct.values()
            lines.append(dataclasses.replace(only, run="reference"))
        else:
            lines += distinct.values()
    return lines


def _row(run: Run) -> Row:
    objective = run.config.get("objective") or {}
    loss = objective.get("loss") or objective
    method = loss.get("partial") or loss.get("target") or MISSING
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
        scores=run.result.get("columns", {}),
        errors=run.result.get("standard_errors", {}),
    )


def _cross_modal(objective: dict[str, Any]) -> str:
    """Name a cross-modal objective by its tasks and weighted terms."""
    weights = objective["terms"] | {"poly-view": objective.get("polyview_weight", 0)}
    terms = [f"{weight:g} {name}" for name, weight in weights.items() if weight]
    return " + ".join([*objective.get("tasks", {}), *terms])


def _seconds(history: list[dict]) -> float | None:
    """Sum the seconds of training over all resumes; each resume restarts the clock."""
    times = [line.get("time") for line in history]
    clock = [t["seconds"] for t in times if isinstance(t, dict) and "seconds" in t]
    if not clock:
        return None
    ends = [a for a, b in zip(clock, clock[1:], strict=False) if b < a]
    return sum(ends) + clock[-1]


def over_seeds(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]] | None:
    """Return head and body of a table of scores over seeds, or None for single seeds.

    A row is two or more runs evaluated at one step that differ only in their seed. A
    cell is the mean and the standard deviation (n - 1).
    """
    kinds: dict[str, dict[Any, Run]] = {}
    for run in runs:
        config = lasting_keys(run.config) | {"seed": None}
        kind = json.dumps([config, max(run.evaluations, default=0)], sort_keys=True)
        kinds.setdefault(kind, {})[run.config.get("seed")] = run
    body: list[tuple[str, int, dict[str, str]]] = []
    measured: dict[str, str] = {}
    for by_seed in kinds.values():
        if len(by_seed) < 2:
            continue
        scores = [run.result.get("columns", {}) for run in by_seed.values()]
        cells = {}
        for column in scores[0]:
            values = [of_run[column] for of_run in scores if column in of_run]
            if len(values) == len(by_seed):
                mean, spread = np.mean(values), np.std(values, ddof=1)
                cells[column] = f"{score(mean, column)} ± {score(spread, column)}"
        names = ", ".join(run.name for run in by_seed.values())
        body.append((names, len(by_seed), cells))
        measured |= cells
    if not measured:
        return None
    return ["runs", "seeds", *measured], [
        [names, str(count), *(cells.get(column, MISSING) for column in measured)]
        for names, count, cells in body
    ]


def transfers(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]] | None:
    """Return head and body of a table of evaluations on other data sets, or None."""
    evaluated = [
        (run.name, data, step, run.with_columns(name, numbers))
        for run in runs
        for (name, data), (step, numbers) in run.transfers.items()
    ]
    columns = dict.fromkeys(name for *_, one in evaluated for name in one["columns"])
    body = [
        [
            run,
            data,
            f"{step:,}",
            *(
                with_error(one["columns"].get(c), one["standard_errors"].get(c), c)
                for c in columns
            ),
        ]
        for run, data, step, one in evaluated
    ]
    return (["run", "data set", "step", *columns], body) if body else None


def number(value: float | None, form: str, scale: float = 1) -> str:
    """Format a number for a table, or None as a dash."""
    return MISSING if value is None else format(scale * value, form)


def text_table(lines: Sequence[Row]) -> str:
    """Return the comparison as aligned plain text."""
    columns = columns_of(lines)
    body = [[column(line) for column in columns.values()] for line in lines]
    return aligned(list(columns), body, text_columns=TEXT_COLUMNS)


def aligned(head: list[str], body: Iterable[list[str]], text_columns: int) -> str:
    """Return a table as plain text; all but the text columns are right-aligned."""
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
    """Return caveats for a comparison of the rows."""
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.results):
        found += different_protocols(
            run.last(name).get("protocol", {}) for run in runs if name in run.results
        )
    for run in runs:
        for name, by_reference in run.references.items():
            if name in run.results:
                results = [run.last(name), *by_reference.values()]
                found += different_protocols(
                    (result.get("protocol", {}) for result in results),
                    f"{run.name} and its references",
                )
        if not run.evaluations:
            found.append(f"{run.name} has no evaluation: run polyview.evaluate on it")
        elif run.history and run.history[-1]["step"] != max(run.evaluations):
            found.append(
                f"{run.name} is evaluated at step {max(run.evaluations)}, but trained "
                f"to {run.history[-1]['step']}"
            )
        found += [f"{run.name}: {remark}" for remark in _remarks(run)]
        found += collapsed(run)
    return found


def _remarks(run: Run) -> list[str]:
    """Return what the last result of each evaluation notes, each remark once."""
    remarks: dict[str, None] = {}
    for name in run.results:
        numbers = run.last(name)
        parts = [numbers.get("note"), numbers.get("warning")]
        parts += [p.get("warning") for p in numbers.values() if isinstance(p, dict)]
        reasons = numbers.get("not_computed", {}).items()
        parts += [f"no {part.replace('_', ' ')}: {why}" for part, why in reasons]
        remarks |= dict.fromkeys(str(part) for part in parts if part)
    return [*remarks]


def different_protocols(
    protocols: Iterable[Mapping], what: str = "the runs"
) -> list[str]:
    """Return a note that names the keys in which protocols differ, if they do.

    what: the evaluated ones, in words.

    A missing key equals None. The dimensions of features may differ, because the width
    of an encoder sets them.
    """
    flat = [dotted(protocol) for protocol in protocols]
    differing = sorted(
        key
        for key in {key for protocol in flat for key in protocol}
        if key != "features.dimensions"
        and len({json.dumps(protocol.get(key)) for protocol in flat}) > 1
    )
    if not differing:
        return []
    return [
        f"{what} were evaluated by different protocols ({', '.join(differing)}): "
        "their scores are not comparable"
    ]


def collapsed(run: Run) -> list[str]:
    """Return alerts for features that almost collapse to a point or a line.

    Checks h and z of the last evaluation, and z of the last logged step.
    """
    measured = {
        f"{name} of the test split": measures
        for name, measures in run.result.get("health", {}).items()
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
