"""Predict with modalities missing: cross-modal information against its baselines.

    python -m polyview.prepare openi
    python -m benchmarks.missing openi --workdir runs/missing

Each method runs with seed 0 for each weight of its terms. The weight, and the step of
each run, are chosen by the score of the weak views alone on the validation split. The
chosen weight then runs with the other seeds, and the test split is read once per run,
at its chosen step. Baselines without a weight are treated in the same way. Finished
runs are kept in the workdir: run the command again to resume.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import spread
from benchmarks.studies import begin
from polyview import devices, drawing, errors, files, hosts
from polyview.config.file import load_config
from polyview.config.overrides import apply_overrides
from polyview.config.spec import build
from polyview.errors import InputError, nearest
from polyview.evaluation import missing_figures
from polyview.runs.checkpoint import saved_steps
from polyview.runs.load import evaluated_model, load
from polyview.runs.workdir import claim_workdir
from polyview.training.train import train
from polyview.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"


class Data(NamedTuple):
    """The comparison on one data set."""

    measure: str
    target: str
    weak: tuple[str, ...]  # views; each alone selects weight and step
    steps: int
    every: int  # steps between evaluations on the validation split
    weights: tuple[float, ...]  # of the terms; the best is chosen
    methods: dict[str, str]  # name -> arguments, with {weight} if it has one


def informed(*names: str) -> dict[str, str]:
    """Return methods with a weight, by name."""
    return {name: f"method={name},weight={{weight}}" for name in names}


DATA = {
    "openi": Data(
        measure="auroc",
        target="labels",
        weak=("indication", "descriptors"),
        steps=400,
        every=50,
        weights=(0.1, 0.3),
        methods={
            "indication alone": "method=supervised,views=indication,drop=0.0",
            "descriptors alone": "method=supervised,views=descriptors,drop=0.0",
            "joint": "method=supervised,drop=0.0",
            "joint with dropout": "method=supervised",
            **informed("intra", "clip", "cmim", "polyview"),
        },
    ),
    "emoji": Data(
        measure="top1",
        target="subgroup",
        weak=("noto", "twemoji", "openmoji", "fluent"),
        steps=300,
        every=100,
        weights=(0.1, 0.3, 1.0),
        methods={
            "joint": "method=supervised,drop=0.0",
            "joint with dropout": "method=supervised",
            **informed("clip", "cmim", "polyview"),
        },
    ),
    "mri": Data(
        measure="dice",
        target="mask",
        weak=("t1", "t2"),
        steps=300,
        every=100,
        weights=(0.1,),
        methods={
            "zero filling": "model=early,method=supervised",
            "HeMIS": "method=supervised",
            "HeMIS + CMIM": "method=cmim,weight={weight}",
        },
    ),
}


def main() -> None:
    """Run missing runs, print the table, write the JSON and the heat-map."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", help="(default: all, and the table)")
    flags = parser.parse_args()
    begin(flags.workdir)
    data, found = DATA[flags.data], {}
    for name in flags.methods or data.methods:
        if name not in data.methods:
            raise InputError(f"--methods {name}{nearest(name, data.methods)}")
        arguments = data.methods[name]
        weights = data.weights if "{weight}" in arguments else (None,)
        trials = {
            weight: run(flags, name, arguments, weight, seed=0) for weight in weights
        }
        weight = max(trials, key=lambda weight: trials[weight]["validation"])
        runs = [run(flags, name, arguments, weight, s) for s in range(flags.seeds)]
        found[name] = {
            "weight": weight,
            "validation_of_weights": {
                str(w): trial["validation"] for w, trial in trials.items()
            },
            "runs": [test(flags, one) for one in runs],
        }
        print(f"{name}: {told(data, found[name])}", flush=True)
    if not flags.methods:
        write(flags, data, found)


def run(flags, name: str, arguments: str, weight: float | None, seed: int) -> dict:
    """Train one run and choose its step on the validation split."""
    data = DATA[flags.data]
    label = name.replace(" ", "_") + (f"-{weight}" if weight is not None else "")
    workdir = flags.workdir / flags.data / f"{label}-{seed}"
    arguments = arguments.format(weight=weight)
    config = load_config(
        f"configs/crossmodal_{flags.data}.py:{arguments},split=validation,"
        f"steps={data.steps}",
        {
            "seed": str(seed),
            "evaluate_every": str(data.every),
            "checkpoint_every": str(data.every),
            "keep": str(data.steps // data.every),
        },
    )
    config.evaluations.pop("frozen", None)
    if data.steps in saved_steps(workdir / "checkpoints"):
        claim_workdir(workdir, config)  # raises if it is a run of another config
    else:
        train(Trainer(config), workdir)
    by_step = {}
    for step in range(data.every, data.steps + 1, data.every):
        result = json.loads((workdir / "eval" / f"{step}-missing.json").read_text())
        alone = scores(data, result)
        by_step[step] = float(
            np.mean([alone[view] for view in data.weak if view in alone])
        )
    step = max(by_step, key=by_step.get)
    return {"workdir": workdir, "step": step, "validation": by_step[step]}


def scores(data: Data, result: dict) -> dict[str, float]:
    """Return the measure of each subset, by the names of its views joined by +."""
    return {
        "+".join(score["looks"]): score[data.measure]
        for score in result["subsets"][data.target]
        if data.measure in score
    }


def test(flags, chosen: dict) -> dict:
    """Evaluate on the test split at the chosen step, once."""
    path = chosen["workdir"] / f"test-{chosen['step']}.json"
    if not path.exists():
        mesh = devices.make_mesh()
        whole = devices.replicated(mesh)
        model = load(chosen["workdir"], chosen["step"], whole)
        apply_overrides(model.config, {"evaluations.missing.test.split": "test"})
        evaluation = build(model.config.evaluations.missing)
        with jax.set_mesh(mesh):
            result = evaluation(evaluated_model(model, whole), mesh)
        files.write_whole(path, json.dumps(result).encode())
    data, result = DATA[flags.data], json.loads(path.read_text())
    return {
        "step": chosen["step"],
        "validation": chosen["validation"],
        "subsets": scores(data, result),
        # Methods without terms never train z, so compare h as well.
        "retrieval": {
            key: {name: pair["recall@1"] for name, pair in result.get(key, {}).items()}
            for key in ("retrieval_of_h", "retrieval")
        },
        "protocol": result["protocol"],
    }


def told(data: Data, method: dict) -> str:
    """Return one line for a method: each weak view alone, and all views."""
    subsets = [run["subsets"] for run in method["runs"]]
    largest = max(subsets[0], key=lambda name: name.count("+"))
    parts = []
    for name in (*data.weak, largest):
        if name in subsets[0]:
            found = spread([s[name] for s in subsets])
            parts.append(f"{name} {found['mean']:.3f} +- {found['std'] or 0:.3f}")
    return f"weight {method['weight']}: " + ", ".join(parts)


def write(flags, data: Data, found: dict) -> None:
    """Write results/<data>.{json,png}."""
    rows = {}
    for name, method in found.items():
        runs = method["runs"]
        rows[name] = {
            "weight": method["weight"],
            "validation_of_weights": method["validation_of_weights"],
            "steps": [one["step"] for one in runs],
            "subsets": {
                subset: spread([one["subsets"][subset] for one in runs])
                for subset in runs[0]["subsets"]
            },
            "recall@1": {
                key: {
                    pair: spread([one["retrieval"][key][pair] for one in runs])
                    for pair in pairs
                }
                for key, pairs in runs[0]["retrieval"].items()
            },
        }
    record = {
        "command": f"python -m benchmarks.missing {flags.data} --workdir DIR "
        f"--seeds {flags.seeds}",
        "settings": {"seeds": flags.seeds, **data._asdict()},
        "chosen": "weight on seed 0, step in each run: weak views alone, validation",
        "protocol": [*found.values()][-1]["runs"][0]["protocol"],
        "machine": hosts.machine(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{flags.data}.json").write_text(json.dumps(record, indent=1) + "\n")
    table = {
        name: {subset: score["mean"] for subset, score in row["subsets"].items()}
        for name, row in rows.items()
    }
    figure = missing_figures.subsets(table, data.measure)
    (RESULTS / f"{flags.data}.png").write_bytes(drawing.png(figure))


if __name__ == "__main__":
    errors.run(main)
