"""Does the official code of SGI learn where ours does not, on the same play?

    python -m benchmarks.sgi_peer --workdir runs/sgi_peer \\
        --official CHECKOUT --peer_python PYTHON

Pre-trains size S by the paper's recipe, in batches of 32 windows of recorded Breakout,
with all terms of the loss and with the inverse model alone: by the official code (see
benchmarks/sgi_official.py for what PYTHON and CHECKOUT are) and by ours. Each starts
from weights of its own and draws its own windows. Logged are the terms over each 25
steps. A finished run is a row of the JSON and is not repeated: run the command again to
resume, or on each core once.
"""

import argparse
import functools
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.studies import Row, begin, locked, measure_missing
from polyview import errors
from polyview.config.file import load_config
from polyview.runs import metrics
from polyview.training.train import train
from polyview.training.trainer import Trainer
from sgi import prepare

RESULTS = Path(__file__).parent / "results" / "sgi_peer.json"
GAME = "breakout"
TERMS = ("spr", "goal", "inverse")
ARMS = {"all terms": TERMS, "inverse alone": ("inverse",)}
EVERY = 25  # steps


def main() -> None:
    """Train what is missing; write the JSON after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--workdir", type=Path, required=True)
    add("--official", type=Path, required=True, help="clone of mila-iqia/SGI")
    add("--peer_python", required=True, help="a Python that can run it")
    add("--steps", type=int, default=2000)
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("--output", type=Path, default=RESULTS)
    flags = parser.parse_args()
    os.environ["POLYVIEW_DATA"] = str(flags.workdir / "data")
    begin(flags.workdir)
    with locked(flags.workdir / "data.lock"):
        export(flags.workdir / "official")

    def runs(rows: list[dict]) -> Iterator[Row]:
        arms = itertools.product(flags.seeds, ARMS, ("official", "ours"))
        for seed, arm, code in arms:
            row = {"code": code, "arm": arm, "seed": seed, "steps": flags.steps}
            learn = theirs if code == "official" else ours
            yield row, functools.partial(learn, flags, row)

    measure_missing(runs, flags.output, flags.workdir, summary)


def export(folder: Path) -> None:
    """Record play at random, and write it as the official loader reads it."""
    prepare.main(["--game", GAME])
    if not folder.exists():
        whole = folder.with_name("exported")
        shutil.rmtree(whole, ignore_errors=True)
        prepare.main(["--game", GAME, "--export", str(whole)])
        (folder / "game").mkdir(parents=True)
        for kind in ("observation", "action", "terminal"):
            path = whole / f"$store$_{kind}_ckpt.1.gz"
            path.rename(folder / "game" / f"{kind}_1.gz")


def theirs(flags: argparse.Namespace, row: dict) -> dict:
    """Train by the official code, in a process of its own."""
    program = Path(__file__).with_name("sgi_official.py")
    words = [flags.peer_python, program, flags.official, "learn"]
    words += [flags.workdir / "official", row["steps"], row["seed"], *ARMS[row["arm"]]]
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(flags: argparse.Namespace, row: dict) -> dict:
    """Train by ours."""
    left_out = {f"objective.{t}": "0.0" for t in TERMS if t not in ARMS[row["arm"]]}
    config = load_config(
        f"configs/sgi_pretrain.py:game={GAME},size=S",
        {**left_out, "steps": str(row["steps"]), "seed": str(row["seed"])}
        | {"epochs": "None", "batch_size": "32", "log_every": str(EVERY)}
        | {"checkpoint_every": str(row["steps"]), "evaluations": "None"},
    )
    name = f"{row['arm']}-{row['seed']}-{row['steps']}".replace(" ", "_")
    run = flags.workdir / name
    train(Trainer(config), run)
    lines = metrics.read(run / "metrics.jsonl")
    shutil.rmtree(run)
    return {
        "curve": {
            term: [[line["step"], line[term]] for line in lines if term in line]
            for term in (*TERMS, "inverse_accuracy", "cosine", "frames/rankme")
        }
    }


def summary(rows: list[dict]) -> dict:
    """Return the inverse model's loss over the last tenth, by code and arm."""
    found: dict[str, list[float]] = {}
    for row in rows:
        values = [value for _, value in row["curve"]["inverse"]]
        last = float(np.mean(values[-max(len(values) // 10, 1) :]))
        found.setdefault(f"{row['code']}, {row['arm']}", []).append(last)
    return {
        "command": "python -m benchmarks.sgi_peer --workdir DIR --official CHECKOUT "
        "--peer_python PYTHON",
        "chance": float(np.log(4)),
        "inverse_at_the_end": found,
    }


if __name__ == "__main__":
    errors.run(main)
