"""Effect of the demo's options on SGI's inverse model, and of the loss's terms.

    python -m benchmarks.sgi_learning causes --workdir runs/sgi_learning
    python -m benchmarks.sgi_learning terms --workdir runs/sgi_learning

`causes` trains the inverse term alone in Breakout, with each subset of three things in
which the demo differs from the paper, and with all three and one other change. `terms`
trains every subset of the loss's three terms in three games. Each run is the SGI demo,
400 steps long in Breakout, scored on episodes that nothing was trained on. A finished
run is a row of the JSON and is not repeated: run the command again to resume, or on
each core once. An interrupted run resumes from its last checkpoint.
"""

import argparse
import functools
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

from benchmarks.studies import Row, begin, locked, measure_missing
from polyview import errors
from polyview.config.file import load_config
from polyview.config.text import text_digest, to_json
from polyview.runs.evaluating import Asked, evaluate
from polyview.training.train import train
from polyview.training.trainer import Trainer
from sgi import prepare

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (select the backend first)

RESULTS = Path(__file__).parent / "results"
CONFIG = "configs/sgi_demo.py"
TERMS = ("spr", "inverse", "goal")
# What the demo changes, and the paper's value.
CHANGES = {
    "standardised": {"model.standardise": "False"},
    "both frames": {"objective.inverse_sees": "average"},
    "no augmentation": {"objective.augmentation": "stacks"},
}
# With all three, one other thing.
OTHERS = {
    "a draw a window": {"objective.augmentation": "windows"},
    "a constant rate": {"optimizer.schedule": "constant"},
    "the paper's Adam": {
        "optimizer.schedule": "constant",
        "optimizer.learning_rate.base": "1e-4",
        "optimizer.epsilon": "1.5e-4",
    },
}
GAMES = {"causes": ["breakout"], "terms": ["breakout", "seaquest", "pong"]}
STEPS = {"breakout": 400}  # where it learns sooner
PROBED = {"variables": None, "untrained": "random", "pixels": "pixels"}
LOGGED = (
    *("spr", "spr_now", "inverse", "inverse_accuracy", "goal", "goal_error", "cosine"),
    *("frames/rankme", "frames/standard_deviation", "gradient_norm"),
)


class Arm(NamedTuple):
    """A way to train, by what it changes in the config of the demo."""

    name: str
    overrides: dict[str, str]


def main() -> None:
    """Train the runs that are missing; write the JSON after each, and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=GAMES)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--games", nargs="+", help="default: all of the study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--output", type=Path, help="JSON (default: in results/)")
    flags = parser.parse_args()
    output = flags.output or RESULTS / f"sgi_{flags.study}.json"
    os.environ["POLYVIEW_DATA"] = str(flags.workdir / "data")
    begin(flags.workdir)
    games = flags.games or GAMES[flags.study]
    with locked(flags.workdir / "data.lock"):
        for game in games:
            record(game)
    rows = measure_missing(
        lambda _: runs(flags, games),
        output,
        flags.workdir,
        lambda rows: summary(flags.study, rows),
    )
    plot(rows, flags.study).savefig(output.with_suffix(".png"), dpi=150)


def runs(flags: argparse.Namespace, games: list[str]) -> Iterator[Row]:
    """Yield the runs of a study."""
    for seed, game, arm in itertools.product(flags.seeds, games, arms(flags.study)):
        config = load_config(f"{CONFIG}:game={game},seed={seed}", arm.overrides)
        config.steps = flags.steps or STEPS.get(game, config.steps)
        config.checkpoint_every = config.steps // 4
        row = {"game": game, "arm": arm.name, "seed": seed, "steps": config.steps}
        row["config"] = text_digest(to_json(config))[:16]
        name = arm.name.replace(" ", "_")
        folder = flags.workdir / f"{flags.study}-{game}-{name}-{seed}-{row['config']}"
        references = arm.name == " + ".join(TERMS)
        yield row, functools.partial(run, config, folder, references)


def record(game: str) -> None:
    """Record play to train on and play to score on, as launch/demo_sgi.sh does."""
    prepare.main(["--game", game])
    other = ["--steps", "16000", "--seed", "1", "--name", f"{game}_probe"]
    prepare.main(["--game", game, *other])


def arms(study: str) -> Iterator[Arm]:
    """Yield the arms of a study."""
    if study == "causes":
        alone = {"objective.spr": "0.0", "objective.goal": "0.0"}
        alone["evaluations.variables"] = "None"
        for count in (3, 2, 1, 0):
            for kept in itertools.combinations(CHANGES, count):
                undone = [CHANGES[name] for name in CHANGES if name not in kept]
                yield Arm(" + ".join(kept) or "none", merged(alone, *undone))
        for other, change in OTHERS.items():
            yield Arm(f"all three, {other}", alone | change)
        return
    for count in (3, 2, 1):
        for kept in itertools.combinations(TERMS, count):
            without = {f"objective.{t}": "0.0" for t in TERMS if t not in kept}
            yield Arm(" + ".join(kept), without)


def merged(*parts: dict[str, str]) -> dict[str, str]:
    """Return the union of some overrides."""
    return {key: value for part in parts for key, value in part.items()}


def run(config, workdir: Path, references: bool) -> dict:
    """Train and evaluate one run; return what was logged and measured.

    references: also probe an untrained encoder and raw pixels.
    """
    train(Trainer(config), workdir)
    names = [n for n, spec in config.evaluations.items() if spec is not None]
    results = [workdir / "eval" / f"{config.steps}-{name}.json" for name in names]
    if references or not all(path.exists() for path in results):
        evaluate(workdir, None, Asked(references=references))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    curve = {
        name: [[line["step"], line[name]] for line in logged if name in line]
        for name in LOGGED
    }
    found = {"curve": {name: points for name, points in curve.items() if points}}
    scored = json.loads((workdir / "eval" / f"{config.steps}-actions.json").read_text())
    found["actions"] = {
        key: scored[key] for key in ("accuracy", "chance", "ceiling", "reached")
    }
    for key, of in PROBED.items():
        path = workdir / "eval" / f"{of or config.steps}-variables.json"
        if path.exists():
            scores = json.loads(path.read_text())["variables"]
            found[key] = {
                name: {m: score[m] for m in ("r2", "accuracy")}
                for name, score in scores.items()
            }
    seconds = [line["time"]["seconds"] for line in logged if "time" in line]
    return found | {"seconds": seconds[-1]}


def summary(study: str, rows: list[dict]) -> dict:
    """Return what was trained."""
    return {
        "command": f"python -m benchmarks.sgi_learning {study} --workdir DIR",
        "config": load_config(f"{CONFIG}:game={rows[0]['game']}").to_dict(),
        "steps": STEPS,
        "arms": {arm.name: arm.overrides for arm in arms(study)},
    }


def plot(rows: list[dict], study: str):
    """Plot the accuracy of actions over the steps: a panel a game, a line an arm.

    A line is the accuracy on training batches, averaged over four logged steps; a dot
    is the accuracy on unseen play.
    """
    games = list(dict.fromkeys(row["game"] for row in rows))
    figure, panels = pyplot.subplots(
        1,
        len(games),
        figsize=(4.2 + 3.2 * len(games), 3.4),
        squeeze=False,
        layout="constrained",
    )
    colors = pyplot.get_cmap("tab10").colors
    for axes, game in zip(panels[0], games, strict=True):
        here = [row for row in rows if row["game"] == game]
        here = [row for row in here if study == "causes" or "inverse" in row["arm"]]
        for number, arm in enumerate(arm.name for arm in arms(study)):
            for row in (row for row in here if row["arm"] == arm):
                label = arm if row["seed"] == min(r["seed"] for r in here) else None
                steps, accuracy = np.array(row["curve"]["inverse_accuracy"]).T
                smooth = np.convolve(accuracy, np.full(4, 0.25), "valid")
                color = {"color": colors[number % len(colors)]}
                dashes = "--" if number >= len(colors) else "-"
                axes.plot(steps[3:], smooth, dashes, label=label, **color)
                axes.plot(row["steps"], row["actions"]["accuracy"], "o", **color)
        for name in ("chance", "ceiling"):
            level = float(np.mean([row["actions"][name] for row in here]))
            axes.axhline(level, color="#616e7c", linestyle=":", linewidth=1)
            axes.annotate(name, (1, level), xycoords=("axes fraction", "data"))
        axes.set_title(game.replace("_", " ").title())
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("accuracy of actions")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    errors.run(main)
