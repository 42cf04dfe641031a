"""Fine-tuning on a budget for two CPU cores: does pre-training help an agent?

    python -m benchmarks.sgi_finetune short --workdir runs/sgi_finetune
    python -m benchmarks.sgi_finetune long --workdir runs/sgi_finetune

Plays from a network that has learnt with the options of the SGI demo (`pretrained`),
from random weights (`scratch`), and from random weights with an encoder that never
learns (`frozen`).

short: three games of dense reward with the demo's small network. This is far from
Atari 100k and does not predict its results: 10,000 steps instead of 100,000, 8,000
updates instead of 196,000, 20 games of evaluation, each of at most 3,000 steps.
Learning rates are ten times the official ones, since there are so few updates. long:
one game with the convolutions of size S, 100,000 steps, official rates and 100 games of
evaluation, each of at most 3,000 steps; an update a step where the official agent makes
two, and heads that are half as wide.

Each seed is a separate run: several in one program are slow on a CPU. A finished run is
a row of the JSON and is not repeated: run the command again to resume, or on each core
once. An interrupted run resumes from its last checkpoint.
"""

import argparse
import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.studies import Row, begin, locked, measure_missing
from polyview import drawing, errors
from polyview.config.file import load_config
from polyview.config.text import text_digest, to_json
from polyview.training.train import train
from polyview.training.trainer import Trainer
from sgi import prepare
from sgi.learner import Player
from sgi.reporting.figures import learning_curve
from sgi.reporting.read import read

RESULTS = Path(__file__).parent / "results"
STARTS = ("pretrained", "scratch", "frozen")


class Study(NamedTuple):
    """What is played, and for how long.

    rates: of the optimizer, by start. widths: of the encoder; None: the demo's.
    """

    games: tuple[str, ...]
    seeds: int
    budget: dict[str, Any]
    rates: dict[str, dict[str, float]]
    widths: tuple[int, ...] | None = None


STUDIES = {
    "short": Study(
        games=("breakout", "seaquest", "ms_pacman"),
        seeds=3,
        budget={
            "steps": 10_000,
            "log_every": 250,
            "checkpoint_every": 1000,
            "evaluation.episodes": 20,
            "evaluation.cap": 3000,
        },
        rates={
            "pretrained": {"encoder": 1e-5, "first": 3e-4, "rest": 1e-3},
            "scratch": {"encoder": 1e-3, "first": 1e-3, "rest": 1e-3},
            "frozen": {"encoder": 0.0, "first": 1e-3, "rest": 1e-3},
        },
    ),
    "long": Study(
        games=("breakout",),
        seeds=2,
        budget={
            "steps": 100_000,
            "log_every": 1000,
            "checkpoint_every": 2000,
            "evaluation.cap": 3000,
        },
        rates={"pretrained": {}, "scratch": {}},
        widths=(32, 64, 64),
    ),
}


def main() -> None:
    """Run what is missing; write the JSON after each run, and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--games", nargs="+", help="default: all of the study")
    parser.add_argument("--starts", nargs="+", help="default: all of the study")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=Path, help="JSON (default: in results/)")
    flags = parser.parse_args()
    study = STUDIES[flags.study]
    starts = flags.starts or [*study.rates]
    if unknown := set(starts).difference(study.rates):
        parser.error(f"{flags.study} does not start from {', '.join(sorted(unknown))}")
    output = flags.output or RESULTS / f"sgi_finetune_{flags.study}.json"
    os.environ["POLYVIEW_DATA"] = str(flags.workdir / "data")
    begin(flags.workdir)
    games = flags.games or study.games
    with locked(flags.workdir / "data.lock"):
        for game in games:
            prepare.main(["--game", game])  # whose actions the networks are made for
    seeds = range(study.seeds) if flags.seeds is None else flags.seeds
    steps = flags.steps or study.budget["steps"]

    def runs(rows: list[dict]) -> Iterator[Row]:
        for seed, game, start in itertools.product(seeds, games, starts):
            row = {"game": game, "start": start, "seed": seed, "steps": steps}
            digest = text_digest(to_json(config(study, row)))  # without a donor's path
            row["config"] = digest[:16]
            yield row, functools.partial(played, flags.workdir, study, row)

    about = {
        "command": f"python -m benchmarks.sgi_finetune {flags.study} --workdir DIR",
        "budget": study.budget,
        "rates": study.rates,
    }
    rows = measure_missing(runs, output, flags.workdir, lambda _: about)
    output.with_suffix(".png").write_bytes(drawing.png(curves(rows)))


def played(workdir: Path, study: Study, row: dict) -> dict:
    """Play, and return the scores."""
    game, made = row["game"], config(study, row)
    if row["start"] == "pretrained":
        with locked(workdir / f"{game}.lock"):
            made.init_from = str(pretrained(workdir, study, game))
    run = workdir / f"{game}-{row['start']}-{row['seed']}-{row['config']}"
    train(Player(made), run)
    return scores(run)


def network(study: Study, game: str) -> dict[str, Any]:
    """Return the overrides of the demo's network."""
    model = load_config(f"configs/sgi_demo.py:game={game}").model
    return {
        "model.hidden": model.hidden,
        "model.standardise": model.standardise,
        "model.encoder.widths": study.widths or model.encoder.widths,
    }


def pretrained(workdir: Path, study: Study, game: str) -> Path:
    """Return the run of the network on a game, trained as far as it is not."""
    changes = network(study, game)
    widths = "_".join(map(str, changes["model.encoder.widths"]))
    changes = {key: str(value) for key, value in changes.items()}
    made = load_config(
        f"configs/sgi_demo.py:game={game}", {**changes, "evaluations": "None"}
    )
    run = workdir / f"network-{game}-{widths}"
    train(Trainer(made), run)
    return run


def config(study: Study, row: dict) -> Any:
    """Return the config of a run, with the network of the demo and no donor yet."""
    changes: dict[str, Any] = study.budget | {"steps": row["steps"]}
    changes |= {"seeds": 1, "updates_per_step": 1, "seed": row["seed"]}
    changes |= {f"optimizer.{k}": v for k, v in study.rates[row["start"]].items()}
    changes |= network(study, row["game"])
    file = f"configs/sgi_finetune.py:game={row['game']},size=S"
    file += f",start={'pretrained' if row['start'] == 'pretrained' else 'scratch'}"
    return load_config(file, {key: str(value) for key, value in changes.items()})


def scores(workdir: Path) -> dict:
    """Return what a finished run scored and logged."""
    (run,) = read([workdir])
    first, last = min(run.evaluations), max(run.evaluations)
    found = learning_curve(run)
    curve = [] if found is None else np.round([found[0], found[1][0]], 2).tolist()
    logged = ("distributional", "spr", "gradient_norm")
    return {
        "random": run.evaluations[first]["scores"][0],
        "scores": run.evaluations[last]["scores"][0],
        "games_of_training": [[e["step"], e["score"]] for e in run.episodes],
        "curve": curve,
        "logged": [
            {"step": line["step"]} | {n: line[n] for n in logged if n in line}
            for line in run.history
        ],
        "seconds": run.history[-1]["time"]["seconds"],
    }


@drawing.styled
def curves(rows: list[dict]) -> Figure:
    """Plot the scores in training, and of the evaluation: a panel a game.

    Lines are the means of the seeds, with their least and greatest; marks the mean
    score of the evaluation's games of each seed.
    """
    games = list(dict.fromkeys(row["game"] for row in rows))
    figure = Figure(figsize=(3.2 * len(games), 3.2), layout="constrained")
    panels = figure.subplots(1, len(games), squeeze=False)[0]
    for axes, game in zip(panels, games, strict=True):
        here = [row for row in rows if row["game"] == game]
        for start, color in zip(STARTS, drawing.RUNS, strict=False):
            runs = [row for row in here if row["start"] == start]
            played = [np.array(row["curve"]) for row in runs if row["curve"]]
            if played:
                steps = np.linspace(
                    max(c[0, 0] for c in played), min(c[0, -1] for c in played), 60
                )
                lines = np.stack([np.interp(steps, *c) for c in played])
                axes.plot(steps, lines.mean(0), color=color, label=start)
                axes.fill_between(
                    steps, lines.min(0), lines.max(0), color=color, alpha=0.15, lw=0
                )
            for row in runs:
                axes.plot(row["steps"], np.mean(row["scores"]), "o", color=color)
        level = float(np.mean([row["random"] for row in here]))
        axes.axhline(level, color=drawing.INK, linestyle=":", linewidth=1)
        axes.set_title(game.replace("_", " ").title())
        axes.set_xlabel("step")
    panels[0].set_ylabel("score of a game")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=len(STARTS), frameon=False
    )
    return figure


if __name__ == "__main__":
    errors.run(main)
