"""Bounds on mutual information against the truth, for Gaussian views.

    python -m benchmarks.gaussian --workdir runs/gaussian

Trains each poly-view objective of `configs/polyview_gaussian.py` with 2 to 10 views,
averages its bound over fresh batches, and prints it beside the closed form of the
one-vs-rest mutual information: gap = truth - bound. The table and the figure go to
`benchmarks/results/gaussian.{json,png}`. Finished runs are kept in the workdir: run the
command again to resume.
"""

import argparse
import contextlib
import json
from pathlib import Path

import jax
import numpy as np

from polyview import devices, errors, hosts
from polyview.config.file import load_config
from polyview.data import gaussian, pipeline
from polyview.objectives.bounds import gaussian_information
from polyview.runs.checkpoint import Checkpoints
from polyview.training.train import train
from polyview.training.trainer import Trainer

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs" / "polyview_gaussian.py"
OBJECTIVES = ("multi_crop", "geometric", "arithmetic", "sufficient_statistics")


def measure(config, workdir: Path, batches: int = 60) -> tuple[float, float]:
    """Train `config` in `workdir`; return its bound on fresh batches, and the error.

    Both in nats; the error is the standard error of the mean over the batches.
    """
    train(Trainer(config), workdir)
    run = Trainer(config)
    fresh = pipeline.batches(
        gaussian.Factors(batches * config.batch_size, seed=config.seed + 1),
        run.views,
        seed=config.seed + 1,
        batch_size=config.batch_size,
        steps=batches,
    )
    with jax.set_mesh(run.mesh):
        with contextlib.closing(Checkpoints(workdir / "checkpoints", 3)) as checkpoints:
            _, state = checkpoints.restore_newest(run.shape)
        loss = jax.jit(lambda features: run.objective.loss(features["x"].z).mean())
        model = run.model(state, run.steps)
        losses = [loss(model(devices.put(batch, run.mesh))) for _, batch in fresh]
    values = run.objective.bound(np.array(losses), config.batch_size, config.views.m)
    return float(values.mean()), float(values.std() / batches**0.5)


def row(objective: str, views: int, workdir: Path) -> dict:
    """Return one line of the table, from the workdir if it is there already."""
    path = workdir / f"{objective}-{views}" / "bound.json"
    if path.exists():
        return json.loads(path.read_text())
    config = load_config(f"{CONFIG}:objective={objective},views={views}")
    bound, error = measure(config, path.parent)
    truth = gaussian_information(views, config.views.deviation)
    line = {
        "objective": objective,
        "views": views,
        "bound": bound,
        "standard_error": error,
        "truth": truth,
        "gap": truth - bound,
    }
    path.write_text(json.dumps(line))
    return line


def draw(rows: list[dict], path: Path) -> None:
    """Plot the bounds with the truth, and the gaps, against the number of views."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for objective in OBJECTIVES:
        own = [r for r in rows if r["objective"] == objective]
        views = [r["views"] for r in own]
        label = objective.replace("_", " ")
        errors = [2 * r["standard_error"] for r in own]
        left.errorbar(views, [r["bound"] for r in own], errors, marker="o", label=label)
        right.errorbar(views, [r["gap"] for r in own], errors, marker="o", label=label)
    truth = {r["views"]: r["truth"] for r in rows}
    left.plot(truth.keys(), truth.values(), "k--", label="one-vs-rest truth")
    left.axhline(truth[2], color="k", linestyle=":", label="truth of a pair")
    left.set(xlabel="views", ylabel="bound (nats)")
    right.axhline(0, color="k", linewidth=0.5)
    right.set(xlabel="views", ylabel="truth - bound (nats)")
    left.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the missing cells, then print and write the whole table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/gaussian"))
    arguments = parser.parse_args()

    rows = [
        row(objective, views, arguments.workdir)
        for views in range(2, 11)
        for objective in OBJECTIVES
    ]
    print(f"{'views':>5} {'objective':<22} {'bound':>7} {'truth':>7} {'gap':>7}")
    for r in rows:
        numbers = " ".join(f"{r[key]:>7.4f}" for key in ("bound", "truth", "gap"))
        print(f"{r['views']:>5} {r['objective']:<22} {numbers}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    table = {"command": "python -m benchmarks.gaussian", "machine": hosts.machine()}
    text = json.dumps(table | {"rows": rows}, indent=1)
    (results / "gaussian.json").write_text(text + "\n")
    draw(rows, results / "gaussian.png")


if __name__ == "__main__":
    errors.run(main)
