"""Does pre-training on recorded play teach an encoder where objects are?

    python -m benchmarks.sgi_probes --workdir runs/sgi_probes

Runs the SGI demo on several games and seeds. Compares its features with those of the
untrained encoder and with raw pixels, by the probes of `sgi.probes`. Each game has one
recording for training and another for the probes; a seed sets the initial weights, the
order and the noise. Finished runs are kept in the workdir: run the command again to
resume.
"""

import argparse
import json
import os
from pathlib import Path

import jax
import matplotlib
import numpy as np

from benchmarks import spread
from polyview import errors, hosts
from polyview.config.file import load_config
from polyview.runs.evaluating import Asked, evaluate
from polyview.training.train import train
from polyview.training.trainer import Trainer
from sgi import prepare

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (select the backend first)

RESULTS = Path(__file__).parent / "results"
CONFIG = "configs/sgi_demo.py"
FEATURES = {"sgi": "SGI", "random": "untrained", "pixels": "raw pixels"}
MEASURES = ("r2", "accuracy", "f1", "validation_r2")


def main() -> None:
    """Run missing runs, then write the table, the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--games", nargs="+", default=["pong", "breakout", "boxing"])
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    os.environ["POLYVIEW_DATA"] = str(flags.workdir / "data")
    # The seeds of a game share one program.
    jax.config.update("jax_compilation_cache_dir", str(flags.workdir / "compiled"))
    for game in flags.games:
        # As in launch/demo_sgi.sh.
        record = ["--game", game, "--steps"]
        prepare.main([*record, "30000"])
        prepare.main([*record, "16000", "--seed", "1", "--name", f"{game}_probe"])
    rows = {
        (game, seed): run(flags.workdir / f"{game}-{seed}", game, seed)
        for seed in range(flags.seeds)
        for game in flags.games
    }
    write(flags, rows)


def run(workdir: Path, game: str, seed: int) -> dict[str, dict]:
    """Train and evaluate one run unless done; return {features: evaluation}."""
    config = load_config(f"{CONFIG}:game={game},seed={seed}")
    paths = {
        "sgi": workdir / "eval" / f"{config.steps}-variables.json",
        "random": workdir / "eval" / "random-variables.json",
        "pixels": workdir / "eval" / "pixels-variables.json",
    }
    if not all(path.exists() for path in paths.values()):
        train(Trainer(config), workdir)
        evaluate(workdir, None, Asked(references=True))
    found = {name: json.loads(path.read_text()) for name, path in paths.items()}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found["sgi"]["seconds"] = json.loads(lines[-1])["time"]["seconds"]
    return found


def write(flags, found: dict) -> None:
    """Print the table; write results/sgi_probes.{json,png}."""
    rows = []
    for game in flags.games:
        for variable in found[game, 0]["sgi"]["variables"]:
            row = {"game": game, "variable": variable}
            for name in FEATURES:
                scores = [
                    found[game, seed][name]["variables"][variable]
                    for seed in range(flags.seeds)
                ]
                row[name] = {
                    measure: spread([score[measure] for score in scores])
                    for measure in MEASURES
                }
            rows.append(row)
            line = "  ".join(
                f"{label} {row[name]['r2']['mean']:.3f} +- "
                f"{row[name]['r2']['std'] or 0:.3f}"
                for name, label in FEATURES.items()
            )
            print(f"{game:9s} {variable:9s} R^2: {line}")
    runs = found.values()
    record = {
        "command": "python -m benchmarks.sgi_probes --workdir DIR",
        "settings": {"games": flags.games, "seeds": flags.seeds},
        "config": load_config(f"{CONFIG}:game={flags.games[0]}").to_dict(),
        "protocol": {game: found[game, 0]["sgi"]["protocol"] for game in flags.games},
        "left_out": {game: found[game, 0]["sgi"]["left_out"] for game in flags.games},
        "seconds_of_training": spread([run["sgi"]["seconds"] for run in runs]),
        "machine": hosts.machine(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1)
    (RESULTS / "sgi_probes.json").write_text(text + "\n")
    plot(rows, flags.games).savefig(RESULTS / "sgi_probes.png", dpi=150)


def plot(rows: list[dict], games: list[str]):
    """Plot R^2 of each variable: one panel per game, one dot per seed."""
    counts = [sum(row["game"] == game for row in rows) for game in games]
    figure, panels = pyplot.subplots(
        1,
        len(games),
        figsize=(1.2 + 0.85 * sum(counts), 3.4),
        width_ratios=counts,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, game in zip(panels[0], games, strict=True):
        here = [row for row in rows if row["game"] == game]
        place = np.arange(len(here))
        for number, (name, label) in enumerate(FEATURES.items()):
            x = place + 0.27 * (number - 1)
            means = [max(row[name]["r2"]["mean"], 0) for row in here]
            color = ("#0072B2", "#E69F00", "#999999")[number]
            axes.bar(x, means, width=0.24, color=color, label=label)
            for at, row in zip(x, here, strict=True):
                values = np.maximum(row[name]["r2"]["values"], 0)
                axes.plot([at] * len(values), values, ".", color="#1f2933", ms=3)
        axes.set_xticks(place, [row["variable"] for row in here])
        axes.set_title(game.replace("_", " ").title())
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("R² on test episodes")
    panels[0, 0].set_ylim(0, 1)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    errors.run(main)
