"""Compare stages of a policy by domain: success, differences, curves and films.

    python -m polyview.evaluate --run runs/gea --references
    python -m agents.video --run runs/gea --world babyai:GoToLocal \\
        --output runs/gea/films/gotolocal.gif
    python -m agents.report --run runs/gea runs/gea_online --output gea.html

The first run is what others are compared with. Films are those in a run's folder
`films`.
"""

import html
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from polyview import cli, errors, files
from polyview.errors import InputError
from polyview.evaluation.selective import bootstrap
from polyview.reporting.html import document, embedded, encoded, grid, remarks, table
from polyview.reporting.page import configurations, environment, training
from polyview.reporting.read import Run, naming_the_run, read
from polyview.rl.aggregates import interquartile_mean, mean

_LARGEST_FILM = 2**24  # bytes; ours are some hundred kB
_FILMS = 12  # of a run


def main(arguments: list[str] | None = None) -> None:
    """Write the page that the command line asks for; see `--help`."""
    parser = cli.Parser(
        prog="python -m agents.report", description=cli.first_line(__doc__)
    )
    add = parser.add_argument
    add("--run", metavar="DIR", required=True, nargs="+", type=Path)
    add("--output", type=Path, default=Path("report.html"), help="(report.html)")
    flags = parser.parse_args(arguments)
    cli.check_output(flags.output)
    runs = read(flags.run)
    page, text = html_page(runs), summary(runs)
    files.write_whole(flags.output, encoded(page))
    print(f"{text}\n{flags.output}")


def played(run: Run) -> dict[str, dict]:
    """Return the last result of each evaluation that plays in worlds, by its name."""
    found = {}
    for name in run.results:
        numbers = run.last(name)
        if "worlds" in numbers and "episodes" in numbers.get("protocol", {}):
            found[name] = numbers
    return found


def chance(runs: Sequence[Run], name: str) -> float | None:
    """Return the success of actions by chance, if it was measured beside a run."""
    for run in runs:
        if (known := run.references.get(name, {}).get("chance")) is not None:
            return float(known["success"])
    return None


def difference(one: Mapping, other: Mapping) -> tuple[float, float, float] | None:
    """Return other - one, and its 95 % interval by a paired bootstrap over episodes.

    None for results that did not play the same episodes.
    """
    same = ("worlds", "episodes", "split", "seed")
    if any(one["protocol"].get(key) != other["protocol"].get(key) for key in same):
        return None
    pairs = [
        (after, before)
        for world, own in one["worlds"].items()
        for before, after in zip(
            own["successes"], other["worlds"][world]["successes"], strict=True
        )
    ]
    found = bootstrap(_gain, [np.array(pairs, float)], 2000, 0)
    return found.value, found.low, found.high


def _gain(pairs: np.ndarray) -> float:
    return float((pairs[:, 0] - pairs[:, 1]).mean())


@naming_the_run
def rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Return the head of a table of domains, and its rows.

    Raises InputError for runs without a result of play.
    """
    results = [played(run) for run in runs]
    names = sorted({name for own in results for name in own})
    if not names:
        raise InputError(
            f"{runs[0].path} has no success in worlds; run python -m polyview.evaluate "
            f"--run {runs[0].path}"
        )
    head = ["domain", "chance", *(run.name for run in runs)]
    head += [f"{run.name} - {runs[0].name}" for run in runs[1:]]
    levels = {name: chance(runs, name) for name in names}
    body = []
    for name in names:
        line = [name, _percent(levels[name])]
        for own in results:
            line.append(_rate(own[name]) if name in own else "")
        for own in results[1:]:
            both = name in own and name in results[0]
            gain = difference(results[0][name], own[name]) if both else None
            line.append("" if gain is None else _gained(*gain))
        body.append(line)
    for label, aggregate in (("mean", mean), ("IQM", interquartile_mean)):
        line = [f"{label}, from chance (0) to always (1)", ""]
        for own in results:
            scores = [
                (own[name]["success"] - level) / (1 - level)
                for name in own
                if (level := levels[name]) is not None and level < 1
            ]
            whole = bool(scores) and len(scores) == len(own)
            made = float(aggregate(np.array([scores]))) if whole else None
            line.append("" if made is None else f"{made:.3f}")
        body.append(line + [""] * (len(runs) - 1))
    return head, body


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f}"


def _rate(numbers: Mapping) -> str:
    low, high = numbers["interval"]
    return f"{100 * numbers['success']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _gained(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def summary(runs: Sequence[Run]) -> str:
    """Return the table as text."""
    head, body = rows(runs)
    lines = [head, *body]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


_EXPLAINED = """Success in % of the episodes, with Wilson intervals of 95 %; differences
are paired by episode, with bootstrap intervals over episodes: they do not say how runs
of other seeds would differ. Mean and interquartile mean (IQM) over domains are of
signed scores, (success - chance) / (1 - chance): below 0 is worse than chance."""


def html_page(runs: Sequence[Run]) -> str:
    """Return the comparison as one self-contained HTML document."""
    head, body = rows(runs)
    cells = [[html.escape(cell) for cell in line] for line in body]
    absent = [
        f"{name}: no actions by chance; evaluate a run with --references"
        for name in dict.fromkeys(name for run in runs for name in played(run))
        if chance(runs, name) is None
    ]
    sections = [
        (
            "Success by domain",
            f"{table(head, cells, 1)}\n{remarks(absent)}\n<p>{_EXPLAINED}</p>",
        ),
        ("Films", "\n".join(filter(None, map(films, runs)))),
        ("Training", training(runs)),
        ("Configs", configurations(runs)),
        ("Environment", environment(runs)),
    ]
    return document("One policy, several domains", "", sections)


def films(run: Run) -> str:
    """Return the films in a run's folder; "" without any."""
    shown = []
    for path in sorted((run.path / "films").glob("*.gif"))[:_FILMS]:
        if path.stat().st_size > _LARGEST_FILM:
            continue
        content = path.read_bytes()
        if content[:4] != b"GIF8" or len(content) < 10:
            continue
        width, height = struct.unpack("<HH", content[6:10])
        scale = min(1, 320 / max(width, height, 1))
        what = f"{run.name}: {path.stem}"
        picture = embedded(content, what, scale * width, scale * height, "gif")
        words = html.escape(path.stem)
        shown.append(f"<figure>{picture}<figcaption>{words}</figcaption></figure>")
    return f"<h3>{html.escape(run.name)}</h3>{grid(shown)}" if shown else ""


if __name__ == "__main__":
    errors.run(main)
