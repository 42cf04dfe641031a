"""Fine-tuning on a budget for two CPU cores: does pre-training help an agent?

    python -m benchmarks.sgi_finetune --workdir runs/sgi_finetune

Plays three games of dense reward from the SGI demo's network (`pretrained`), from
random weights (`scratch`), and from random weights with an encoder that never learns
(`frozen`). This is far from Atari 100k and does not predict its results: a small
network, 10,000 steps instead of 100,000, 8,000 updates instead of 196,000, 20 games of
evaluation, each of at most 3,000 steps. Learning rates are ten times the official ones,
since there are so few updates. Each seed is a separate run: several in one program are
slow on a CPU. A finished run is a row of the JSON and is not repeated: run the command
again to resume, or on each core once. An interrupted run resumes from its last
checkpoint.
"""

import argparse
import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

OUTPUT = Path(__file__).parent / "results" / "sgi_finetune.json"
GAMES = ("breakout", "seaquest", "ms_pacman")
BUDGET = {
    "seeds": 1,
    "steps": 10_000,
    "updates_per_step": 1,
    "log_every": 250,
    "checkpoint_every": 1000,
    "evaluation.episodes": 20,
    "evaluation.cap": 3000,
}
RATES = {
    "pretrained": {"encoder": 1e-5, "first": 3e-4, "rest": 1e-3},
    "scratch": {"encoder": 1e-3, "first": 1e-3, "rest": 1e-3},
    "frozen": {"encoder": 0.0, "first": 1e-3, "rest": 1e-3},
}


def main() -> None:
    """Run what is missing; write the JSON after each run, and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--games", nargs="+", default=GAMES)
    parser.add_argument("--starts", nargs="+", default=[*RATES], choices=RATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=BUDGET["steps"])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    flags = parser.parse_args()
    os.environ["POLYVIEW_DATA"] = str(flags.workdir / "data")
    begin(flags.workdir)
    about = {
        "command": "python -m benchmarks.sgi_finetune --workdir DIR",
        "budget": BUDGET,
        "rates": RATES,
    }
    rows = measure_missing(
        lambda _: runs(flags), flags.output, flags.workdir, lambda _: about
    )
    flags.output.with_suffix(".png").write_bytes(drawing.png(curves(rows)))


def runs(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield the runs of all seeds, games and starts."""
    for seed, game, start in itertools.product(flags.seeds, flags.games, flags.starts):
        row = {"game": game, "start": start, "seed": seed, "steps": flags.steps}
        row["config"] = text_digest(to_json(config(row)))[:16]  # without a donor's path
        yield row, functools.partial(played, flags.workdir, row)


def played(workdir: Path, row: dict) -> dict:
    """Play, and return the scores."""
    game, made = row["game"], config(row)
    with locked(workdir / f"{game}.lock"):
        prepare.main(["--game", game])
        if row["start"] == "pretrained":
            made.init_from = str(pretrained(workdir / f"network-{game}", game))
    run = workdir / f"{game}-{row['start']}-{row['seed']}-{row['config']}"
    train(Player(made), run)
    return scores(run)


def pretrained(workdir: Path, game: str) -> Path:
    """Return the run of the demo's network on a game, trained as far as it is not."""
    changes = {"evaluations": "None"}
    train(Trainer(load_config(f"configs/sgi_demo.py:game={game}", changes)), workdir)
    return workdir


def config(row: dict) -> Any:
    """Return the config of a run, with the network of the demo and no donor yet."""
    network = load_config(f"configs/sgi_demo.py:game={row['game']}").model
    changes: dict[str, Any] = BUDGET | {"steps": row["steps"], "seed": row["seed"]}
    changes |= {f"optimizer.{k}": rate for k, rate in RATES[row["start"]].items()}
    changes["model.hidden"] = network.hidden
    changes["model.standardise"] = network.standardise
    changes["model.encoder.widths"] = network.encoder.widths
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
        for start, color in zip(RATES, drawing.RUNS, strict=False):
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
    figure.legend(*handles, loc="outside lower center", ncols=len(RATES), frameon=False)
    return figure


if __name__ == "__main__":
    errors.run(main)
