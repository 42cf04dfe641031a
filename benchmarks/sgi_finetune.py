"""Fine-tuning on a budget for two CPU cores: pre-trained against from scratch.

    python -m benchmarks.sgi_finetune --workdir runs/sgi_finetune

This is far from Atari 100k and does not predict its results: the small network of
configs/sgi_demo.py, 3,000 steps instead of 100,000, 2,000 updates instead of 196,000,
20 games of evaluation. Learning rates are ten times the official ones, since there are
so few updates. Each seed is a separate run: several in one program are slow on a CPU.
Finished runs are kept in the workdir: run the command again to resume.
"""

import argparse
import json
import os
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from polyview import drawing, errors, hosts
from polyview.config.file import load_config
from polyview.training.train import train
from polyview.training.trainer import Trainer
from sgi import prepare
from sgi.learner import Player
from sgi.reporting.read import Run, read

RESULTS = Path(__file__).parent / "results"
STARTS = ("pretrained", "scratch")
BUDGET = {
    "seeds": 1,
    "steps": 3000,
    "random_steps": 1000,
    "updates_per_step": 1,
    "log_every": 100,
    "checkpoint_every": 500,
    "evaluation.episodes": 20,
}
RATES = {
    "pretrained": {"encoder": 1e-5, "first": 3e-4, "rest": 1e-3},
    "scratch": {"encoder": 1e-3, "first": 1e-3, "rest": 1e-3},
}


def main() -> None:
    """Run missing runs, then print the scores and write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--game", default="boxing")
    parser.add_argument("--starts", nargs="+", default=STARTS, choices=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    flags = parser.parse_args()
    os.environ["POLYVIEW_DATA"] = str(flags.workdir / "data")
    jax.config.update("jax_compilation_cache_dir", str(flags.workdir / "compiled"))
    donor = pretrained(flags.workdir / "pretrained_network", flags.game)
    workdirs = []
    for seed in flags.seeds:
        for start in flags.starts:
            workdirs.append(flags.workdir / f"{start}-{seed}")
            train(Player(config(start, seed, flags.game, donor)), workdirs[-1])
    write(flags, read(workdirs))


def pretrained(workdir: Path, game: str) -> Path:
    """Return the run of the demo's network on a game, trained if it is missing."""
    if not (workdir / "checkpoints").is_dir():
        prepare.main(["--game", game, "--steps", "30000"])
        train(Trainer(load_config(f"configs/sgi_demo.py:game={game}")), workdir)
    return workdir


def config(start: str, seed: int, game: str, donor: Path):
    """Return the config of a run, with the network of the donor."""
    network = load_config(f"configs/sgi_demo.py:game={game}").model
    changes = (
        BUDGET
        | {"seed": seed}
        | {f"optimizer.{k}": rate for k, rate in RATES[start].items()}
    )
    changes |= {"model.hidden": network.hidden}
    changes |= {"model.standardise": network.standardise}
    changes |= {"model.encoder.widths": network.encoder.widths}
    if start == "pretrained":
        changes["init_from"] = donor
    text = {key: str(value) for key, value in changes.items()}
    file = f"configs/sgi_finetune.py:game={game},size=S,start={start}"
    return load_config(file, text)


def write(flags, runs: list[Run]) -> None:
    """Print the scores; write results/sgi_finetune.{json,png}."""
    rows = []
    for run in runs:
        last = run.history[-1]
        rows.append(
            {
                "start": run.start,
                "seed": run.config["seed"],
                "evaluations": {
                    step: {"scores": found["scores"], "mean": found["mean"]}
                    for step, found in sorted(run.evaluations.items())
                },
                "games_of_training": run.episodes,
                "logged_first": metrics_of(run.history[0]),
                "logged_last": metrics_of(last),
                "seconds": last["time"]["seconds"],
            }
        )
        for step, found in sorted(run.evaluations.items()):
            means = ", ".join(f"{mean:.1f}" for mean in found["mean"])
            print(f"{flags.game}, {run.name}, step {step}: mean score {means}")
    record = {
        "command": "python -m benchmarks.sgi_finetune --workdir DIR",
        "game": flags.game,
        "budget": BUDGET,
        "rates": RATES,
        "protocol": runs[0].result["protocol"],
        "machine": hosts.machine(),
        "runs": rows,
    }
    text = json.dumps(record, indent=1)
    (RESULTS / "sgi_finetune.json").write_text(text + "\n")
    (RESULTS / "sgi_finetune.png").write_bytes(drawing.png(curves(runs)))


@drawing.styled
def curves(runs: list[Run]) -> Figure:
    """Plot the loss of returns over steps, and evaluation games before and after."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, run in enumerate(sorted(runs, key=lambda run: run.name)):
        color = drawing.RUNS[run.name.startswith("scratch")]
        lines = [(line["step"], line["distributional"]) for line in run.history]
        left.plot(*np.transpose(lines), color=color, label=run.name)
        for side, found in enumerate(
            run.evaluations[s] for s in sorted(run.evaluations)
        ):
            x = side + 0.12 * (place - 1.5)
            scores = np.ravel(found["scores"])
            right.plot([x] * len(scores), scores, ".", color=color, markersize=3)
            right.plot(x, scores.mean(), "_", color=drawing.INK, markersize=9)
    left.set_title("Cross-entropy of the returns")
    left.set_xlabel("step")
    right.set_title("Scores of 20 games, and their mean")
    right.set_xticks([0, 1], ["random play", f"step {BUDGET['steps']:,}"])
    figure.legend(loc="outside lower center", ncols=len(runs), frameon=False)
    return figure


def metrics_of(line: dict) -> dict:
    return {key: value for key, value in line.items() if key != "time"}


if __name__ == "__main__":
    errors.run(main)
