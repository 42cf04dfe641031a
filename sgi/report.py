"""Compare fine-tuned runs: scores, aggregates over games, learning curves.

    python -m sgi.report --run runs/a runs/b --output report.html
    python -m sgi.report --run runs/a runs/b --output curves.png

Reads what `sgi.finetune` left in each run (config.json, metrics.jsonl, episodes.jsonl,
eval/<step>.json). A page holds its pictures and asks the network for nothing; a .png
holds the learning curves alone. The table of scores also goes to stdout.
"""

import dataclasses
import html
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from polyview import cli, drawing, errors, files, report
from polyview.config.schema import lasting_keys
from polyview.config.text import dotted
from polyview.errors import InputError
from polyview.rl.aggregates import AGGREGATES, interval
from polyview.runs import metrics
from polyview.terminal import say
from sgi.scores import GAMES, PROTOCOL, PUBLISHED, SOURCE, human_normalised

WINDOW = 10  # finished games that a point of a learning curve is the mean of
POINTS = 100  # of a learning curve
_MOST_SEEDS = 1000  # of a run: an interval draws 5,000 times as many
_READABLE = 10  # runs in a picture of the training's metrics
# What differs between runs of one method.
_OF_A_RUN = {"game", "seed", "seeds", "init_from", "model.actions"}
_AGENTS = {"SPR": "spr", "DER": "der"}
_TEXT_COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class Run(report.Run):
    """A fine-tuned run; `episodes` are its finished games of training."""

    episodes: list[dict]

    @property
    def game(self) -> str:
        """As ale-py spells it."""
        return self.config["game"]

    @property
    def start(self) -> str:
        """Whose weights it began with."""
        return "pre-trained" if self.config.get("init_from") else "from scratch"

    @property
    def evaluated(self) -> int | None:
        """The last step at which the agent was evaluated."""
        return max(filter(None, self.evaluations), default=None)

    @property
    def scores(self) -> np.ndarray | None:
        """float[seeds]: the mean raw score of each seed at that step."""
        step = self.evaluated
        return None if step is None else _seed_means(self.evaluations[step])

    @property
    def normalised(self) -> np.ndarray | None:
        """float[seeds]: `scores`, human-normalised where the game's table allows."""
        known = self.game in GAMES and self.scores is not None
        return human_normalised(self.game, self.scores) if known else None


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs that differ in game and seeds only.

    Attributes:
      label: how they began, and what sets them apart from other such runs.
      games: those of the table in which it was evaluated.
      scores: float[seeds, games], human-normalised; None where `obstacle` says why.
      published: the scores are one mean a game, and not ours.
    """

    label: str
    games: tuple[str, ...]
    scores: np.ndarray | None
    obstacle: str = ""
    published: bool = False


def main() -> None:
    """Read the command line, print the scores and write the page; see `--help`."""
    parser = cli.Parser(
        prog="python -m sgi.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", metavar="DIR", required=True, nargs="+", type=Path)
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), help=".html, or .png"
    )
    flags = parser.parse_args()
    if flags.output.suffix not in (".html", ".png"):
        raise InputError(f"--output {flags.output} must end in .html or .png")
    cli.check_output(flags.output)
    runs = read(flags.run)
    say(summary(runs))
    if flags.output.suffix == ".png":
        content = curves_alone(runs)
    else:
        content = report.encoded(page(runs))
    files.write_whole(flags.output, content)
    say(f"report: {flags.output}")


@report.naming_the_run
def summary(runs: Sequence[Run]) -> str:
    """The table of scores and the notes as plain text."""
    columns = _columns(runs)
    body = [[column(run) for column in columns.values()] for run in runs]
    table = report.aligned(list(columns), body, _TEXT_COLUMNS)
    return "\n".join([table, *(f"note: {note}" for note in notes(runs))])


@report.naming_the_run
def curves_alone(runs: Sequence[Run]) -> bytes:
    """The learning curves as a PNG file; raises InputError where there are none."""
    if not (games := _drawable(runs)):
        raise InputError("no seed has finished a game yet: there is no curve")
    return drawing.png(curves(runs, games))


def read(paths: Sequence[Path]) -> list[Run]:
    """Read fine-tuned runs, and order them by game and start.

    Raises InputError for a path that is no such run, and for a file in it that is
    damaged.
    """
    runs = []
    for path, run in zip(paths, report.read(paths), strict=True):
        if not isinstance(run.config.get("game"), str):
            raise InputError(f"{path} is not a run of sgi.finetune: it names no game")
        episodes = metrics.read(path / "episodes.jsonl")
        fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
        runs.append(Run(**fields, episodes=episodes))
        with errors.fits_together(str(path)):
            _check(runs[-1])
    return sorted(runs, key=lambda run: (run.game, run.start))


def _check(run: Run) -> None:
    for step, evaluation in run.evaluations.items():
        try:
            means = _seed_means(evaluation)
            fits = means.shape == (len(evaluation["seeds"]),) != (0,)
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            fits = False
        if not fits or not np.isfinite(means).all():
            raise InputError(
                f"{run.path}/eval/{step}.json holds no scores of seeds; evaluate again"
            )
        _check_count(len(means))
    if not all({"seed", "score"} <= line.keys() for line in run.episodes):
        raise InputError(f"{run.path}/episodes.jsonl: a line has no seed or no score")
    _check_count(len({line["seed"] for line in run.episodes}))


def _check_count(seeds: int) -> None:
    if seeds > _MOST_SEEDS:
        raise ValueError(f"{seeds} seeds are more than can be compared")


def _seed_means(evaluation: Mapping[str, Any]) -> np.ndarray:
    return np.array([sum(games) / len(games) for games in evaluation["scores"]], float)


def _columns(runs: Sequence[Run]) -> dict[str, Callable[[Run], str]]:
    """The columns of the table of scores; the first ones are text."""
    method = labels(runs)
    columns = {
        "game": lambda run: run.game,
        "method": lambda run: method[run.name],
        "run": lambda run: run.name,
        "step": lambda run: report.number(run.evaluated, ","),
        "seeds": lambda run: _count(run.scores),
        "score": lambda run: _mean(run.scores),
        "95% interval": lambda run: _interval(run.scores),
        "HNS": lambda run: _mean(run.normalised, "3f"),
        "its interval": lambda run: _interval(run.normalised, "3f"),
    }
    if any(0 in run.evaluations for run in runs):
        columns["random, measured"] = lambda run: _mean(
            _seed_means(run.evaluations[0]) if 0 in run.evaluations else None
        )
    return columns


def _over_seeds(scores: np.ndarray) -> np.ndarray:
    return scores.mean(axis=-1)


def _count(scores: np.ndarray | None) -> str:
    return report.number(None if scores is None else len(scores), "d")


def _mean(scores: np.ndarray | None, digits: str = "1f") -> str:
    return report.number(None if scores is None else scores.mean(), f",.{digits}")


def _interval(scores: np.ndarray | None, digits: str = "1f") -> str:
    ends = None if scores is None else interval(scores, _over_seeds)
    if ends is None:
        return report.number(None, "")
    return " to ".join(f"{end:,.{digits}}" for end in ends)


def labels(runs: Sequence[Run]) -> dict[str, str]:
    """Run -> its method: how it began, with a letter where such runs are of several.

    Runs of one method differ in nothing but their game, their seeds and what does not
    change the numbers.
    """
    kinds = {}
    for run in runs:
        kinds.setdefault(run.start, {}).setdefault(_kind(run), []).append(run.name)
    return {
        name: f"{start} {chr(65 + number)}" if len(variants) > 1 else start
        for start, variants in kinds.items()
        for number, names in enumerate(variants.values())
        for name in names
    }


def _kind(run: Run) -> tuple[str, ...]:
    """What of its config makes its method."""
    return tuple(
        f"{key} {json.dumps(value)}"
        for key, value in sorted(lasting_keys(run.config).items())
        if key not in _OF_A_RUN
    )


def methods(runs: Sequence[Run]) -> list[Method]:
    """Gather the evaluated runs of each method, on the games of the table.

    Aggregates need the same number of seeds of each game, at the same step; a game and
    seed that occurs twice leaves open which of the two to take.
    """
    gathered = {}
    for name, label in labels(runs).items():
        gathered.setdefault(label, []).extend(
            run for run in runs if run.name == name and run.normalised is not None
        )
    return [_method(label, found) for label, found in gathered.items() if found]


def _method(label: str, runs: Sequence[Run]) -> Method:
    games, seeds = {}, []
    for run in runs:
        games.setdefault(run.game, []).append(run.normalised)
        seeds += [(run.game, s) for s in run.evaluations[run.evaluated]["seeds"]]
    scores = [np.concatenate(parts) for parts in games.values()]
    counts = {len(column) for column in scores}
    steps = {run.evaluated for run in runs}
    twice = next((pair for pair in seeds if seeds.count(pair) > 1), None)
    if twice:
        obstacle = f"seed {twice[1]} of {twice[0]} is in several runs; leave one out"
    elif len(steps) > 1:
        obstacle = f"its runs were evaluated at steps {min(steps):,} to {max(steps):,}"
    elif len(counts) > 1:
        obstacle = f"its games have {min(counts)} to {max(counts)} seeds"
    else:
        return Method(label, tuple(games), np.stack(scores, axis=1))
    return Method(label, tuple(games), None, obstacle)


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing the rows."""
    found, compared, named = [], methods(runs), labels(runs)
    for run in runs:
        if named[run.name] != run.start:  # a letter to explain
            alike = [set(_kind(other)) for other in runs if other.start == run.start]
            own = sorted(set(_kind(run)) - set.intersection(*alike))
            found.append(f"{named[run.name]}: {', '.join(own)}")
    for method in compared:
        if method.obstacle:
            found.append(f"no aggregate of {method.label}: {method.obstacle}")
    if len({m.games for m in compared if m.scores is not None}) > 1:
        found.append("the aggregates are over different games: they do not compare")
    protocols = [
        dotted(
            {key: last.get(key) for key in ("protocol", "epsilon", "episodes", "cap")}
        )
        for last in (run.result for run in runs)
        if last
    ]
    differing = sorted(
        key
        for key in {key for protocol in protocols for key in protocol}
        if len({json.dumps(protocol.get(key)) for protocol in protocols}) > 1
    )
    if differing:
        found.append(
            f"the runs were evaluated by different protocols ({', '.join(differing)}): "
            "their scores do not compare"
        )
    for run in runs:
        if other := _other_than_published(run):
            found.append(
                f"{run.name} is not as the published scores are ({', '.join(other)}): "
                "its HNS does not compare with theirs"
            )
    for run in runs:
        trained = run.history[-1]["step"] if run.history else None
        if run.game not in GAMES:
            found.append(f"{run.game} has no published human score: raw scores only")
        if run.evaluated is None:
            found.append(f"{run.name} has no evaluation of the agent yet")
        elif trained is not None and trained != run.evaluated:
            found.append(
                f"{run.name} is evaluated at step {run.evaluated:,}, but trained to "
                f"{trained:,}"
            )
        if run.scores is not None and len(run.scores) == 1:
            found.append(f"{run.name} has one seed, from which no interval follows")
    return list(dict.fromkeys(found))


def _other_than_published(run: Run) -> list[str]:
    """In what a run with human-normalised scores differs from Atari 100k."""
    if run.normalised is None:
        return []
    last = run.evaluations[run.evaluated]
    return [
        f"{key} {last.get(key)} instead of {value}"
        for key, value in PROTOCOL.items()
        if last.get(key) != value
    ]


@report.naming_the_run
def page(runs: Sequence[Run]) -> str:
    """The report as one HTML document that refers to nothing outside itself."""
    games = list(dict.fromkeys(run.game for run in runs))
    drawn = report.grid(
        [
            report.picture(curves(runs, [game]), f"learning curves of {game}")
            for game in _drawable(runs)
        ]
    )
    sections = [
        ("Scores", _scores(runs)),
        ("Published scores of these games", _published(games)),
        ("Aggregates over games", _aggregates(runs)),
        ("Learning curves", drawn and f"<p>{_CURVES}</p>{drawn}"),
        ("Training", report.training(runs) if len(runs) <= _READABLE else ""),
        ("Protocol", report.protocol(runs)),
        ("Configs", report.configurations(runs)),
        ("Environment", report.environment(runs)),
    ]
    return report.document("SGI, fine-tuned", ", ".join(games), sections)


_SCORES = """A score is the mean over seeds of the mean raw score of a seed's games of
evaluation; the best of a game is bold. Intervals are bootstrap percentile intervals
over the seeds: rough where seeds are few, and none for one seed. The human-normalised
score (HNS) is (score - random) / (human - random), with the published random and human
below."""
_PUBLISHED = f"""Published, not measured here: all columns are those of {SOURCE}. SPR is
Schwarzer et al. 2021 and DER van Hasselt et al. 2019, both after 100,000 steps; data is
the play in the DQN Replay data set. Other score sets of SPR are in circulation. SGI's
own scores of each game are not publicly confirmed, so there is no such column."""
_AGGREGATES = """Of human-normalised scores, as Agarwal et al. 2021 define them: IQM is
the mean of the middle half of all runs of all games; median and mean are over games, of
the mean over seeds; the optimality gap is by how much runs fall short of 1 on average
(lower is better). In brackets, 95% stratified bootstrap percentile intervals: seeds are
drawn anew within each game. Published rows are of one mean a game: their IQM and
optimality gap are over games instead of over runs, and do not compare exactly."""
_CURVES = f"""Raw score in training, with the noise of exploration: each seed's mean
over its last {WINDOW} finished games, then the mean over seeds with its 95% bootstrap
band (none for one seed). Circles are the evaluations. A step is four frames. Dotted
lines are the published random and human scores, where they are in sight."""


def _scores(runs: Sequence[Run]) -> str:
    columns = _columns(runs)
    best = {}
    for run in runs:
        if run.scores is not None:
            best.setdefault(run.game, []).append(run.scores.mean())
    body = []
    for run in runs:
        cells = {name: html.escape(column(run)) for name, column in columns.items()}
        rivals = best.get(run.game, [])
        if len(rivals) > 1 and run.scores is not None:
            if run.scores.mean() == max(rivals):
                cells["score"] = f"<strong>{cells['score']}</strong>"
        body.append(list(cells.values()))
    compared = report.table(list(columns), body, _TEXT_COLUMNS)
    return f"{compared}\n{report.remarks(notes(runs))}\n<p>{_SCORES}</p>"


def _published(games: Sequence[str]) -> str:
    body = [
        [game, *(report.number(score, ",.1f") for score in GAMES[game])]
        for game in games
        if game in GAMES
    ]
    head = ["game", "random", "human", "SPR", "DER", "data"]
    return body and f"{report.table(head, body, 1)}\n<p>{_PUBLISHED}</p>"


def _aggregates(runs: Sequence[Run]) -> str:
    compared = [m for m in methods(runs) if m.scores is not None]
    if not compared:
        return ""
    compared += references({method.games for method in compared})
    body, missing = [], report.number(None, "")
    for method in compared:
        cells = [html.escape(method.label), str(len(method.games))]
        cells.append(missing if method.published else _count(method.scores))
        for aggregate in AGGREGATES.values():
            ends = interval(method.scores, aggregate)
            shown = f"{aggregate(method.scores):.3f}"
            if ends is not None:
                shown += f" ({ends[0]:.3f} to {ends[1]:.3f})"
            cells.append(shown)
        body.append(cells)
    if any(set(method.games) == set(GAMES) for method in compared):
        for name, (median, mean) in PUBLISHED.items():
            known = [missing, f"{median:.3f}", f"{mean:.3f}", missing]
            body.append([f"{name}, published*", str(len(GAMES)), missing, *known])
    table = report.table(["method", "games", "seeds", *AGGREGATES], body, 1)
    star = "* As paperswithcode lists it, not checked against the paper."
    listed = f" {star}" if "published*" in table else ""
    figure = report.picture(
        intervals(compared, _colors(runs)), "aggregates with their intervals"
    )
    return f"{table}\n<p>{_AGGREGATES}{listed}</p>\n{report.grid([figure])}"


def references(of: set[tuple[str, ...]]) -> list[Method]:
    """The published agents over each of the given sets of games, as methods."""
    found = []
    for games in sorted(of):
        where = "" if len(of) == 1 else f", {len(games)} games"
        for name, field in _AGENTS.items():
            means = [human_normalised(g, getattr(GAMES[g], field)) for g in games]
            label = f"{name}, published{where}"
            found.append(Method(label, games, np.array([means]), published=True))
    return found


@drawing.styled
def intervals(compared: Sequence[Method], colors: Mapping[str, str]) -> Figure:
    """Each aggregate of each method, with its interval where seeds are several."""
    height = 2 * (0.5 + 0.21 * len(compared))
    figure = Figure(figsize=(1.4 * drawing.WIDTH, height), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).ravel()
    for axes, (name, aggregate) in zip(panels, AGGREGATES.items(), strict=True):
        for place, method in enumerate(compared):
            color = colors.get(method.label, drawing.QUIET)
            ends = interval(method.scores, aggregate)
            if ends is not None:
                axes.plot(ends, [place, place], color=color, linewidth=5, alpha=0.35)
            value = aggregate(method.scores)
            axes.plot(value, place, "D" if method.published else "o", color=color)
        axes.set_title(name)
        axes.grid(axis="x")
        axes.set_yticks(range(len(compared)), [method.label for method in compared])
        axes.margins(y=0.12)
    panels[0].invert_yaxis()
    return figure


def learning_curve(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps [points] and raw scores float[seeds, points] of training.

    A point is the mean of the last `WINDOW` games that a seed has finished by then. The
    curve begins where each seed has finished one; None where that never was.
    """
    seeds = sorted({line["seed"] for line in run.episodes})
    if not seeds or len(seeds) < run.config.get("seeds", 1):
        return None
    games = [
        np.array(
            sorted(
                (line["step"], line["score"])
                for line in run.episodes
                if line["seed"] == seed
            ),
            float,
        )
        for seed in seeds
    ]
    first = max(steps[0] for steps, _ in (game.T for game in games))
    steps = np.linspace(first, max(game[-1, 0] for game in games), POINTS)
    scores = []
    for game in games:
        finished = np.searchsorted(game[:, 0], steps, side="right")
        kept = np.minimum(finished, WINDOW)
        sums = np.concatenate([[0], np.cumsum(game[:, 1])])
        scores.append((sums[finished] - sums[finished - kept]) / kept)
    return steps, np.stack(scores)


def _drawable(runs: Sequence[Run]) -> list[str]:
    """The games that have a curve or an evaluation to show."""
    shown = [
        run.game
        for run in runs
        if run.evaluated is not None or learning_curve(run) is not None
    ]
    return list(dict.fromkeys(shown))


@drawing.styled
def curves(runs: Sequence[Run], games: Sequence[str]) -> Figure:
    """The learning curves of games, a panel each; a method has one colour in all."""
    columns = min(3, len(games))
    rows = -(-len(games) // columns)
    size = columns * drawing.WIDTH, rows * 3.1
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(games) :]:
        axes.remove()
    named, colors = labels(runs), _colors(runs)
    for axes, game in zip(panels, games, strict=False):
        axes.set_title(game)
        axes.set_xlabel("step")
        axes.set_ylabel("score")
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.margins(x=0.02)
        ends, drawn = [], [run for run in runs if run.game == game]
        methods_drawn = [named[run.name] for run in drawn]
        for number, (run, label) in enumerate(zip(drawn, methods_drawn, strict=True)):
            style = ("-", "--", ":")[methods_drawn[:number].count(label) % 3]
            last = _curve(axes, run, colors[label], style)
            name = label if methods_drawn.count(label) == 1 else run.name
            ends += [(*last, name, colors[label])] if last else []
        drawing.name_ends(axes, ends + (_levels(axes, game) if ends else []))
    return figure


def _colors(runs: Sequence[Run]) -> dict[str, str]:
    """Method -> its colour, the same in every picture."""
    names = dict.fromkeys(labels(runs).values())
    return dict(zip(names, itertools.cycle(drawing.RUNS), strict=False))


def _curve(axes, run: Run, color: str, style: str) -> tuple[float, float] | None:
    """Draw a run and return the score and the step at its end, if it has any."""
    last = None
    for step in filter(None, run.evaluations):
        scores = _seed_means(run.evaluations[step])
        ends = interval(scores, _over_seeds)
        if ends is not None:
            axes.plot([step, step], ends, color=color, linewidth=1)
        axes.plot(step, scores.mean(), "o", color=color, mfc="white", zorder=3)
        last = scores.mean(), step
    if (curve := learning_curve(run)) is not None:
        steps, scores = curve
        axes.plot(steps, scores.mean(axis=0), color=color, linestyle=style)
        band = interval(scores, lambda s: s.mean(axis=1), repetitions=1000)
        if band is not None:
            axes.fill_between(steps, *band, color=color, alpha=0.18, linewidth=0)
        last = scores[:, -1].mean(), steps[-1]
    return last


def _levels(axes, game: str) -> list[tuple]:
    """Draw random play and the human where they are in sight, and return the ends."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    ends = []
    for name in ("random", "human") if game in GAMES else ():
        level = getattr(GAMES[game], name)
        if low <= level <= high:
            axes.axhline(level, color=drawing.QUIET, linestyle=":", linewidth=1)
            ends.append((level, axes.get_xlim()[1], name, drawing.QUIET))
    return ends


if __name__ == "__main__":
    errors.run(main)
