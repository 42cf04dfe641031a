"""At a fixed number of views a step: are fewer samples with more views better?

    python -m benchmarks.fixed_compute --workdir runs/fixed_compute

Tests the claim of Shidani et al. 2024 on Fashion-MNIST: M views of K samples, with
M * K and the number of steps fixed, so that all cells with one M * K cost the encoder
the same. Each cell's learning rate is chosen from one grid, by the probe's accuracy on
rows held out from the training split. Test results are those at the chosen rate.
Finished runs are kept in the workdir: run the command again to resume.
"""

import argparse
import contextlib
import io
import itertools
import json
import time
from pathlib import Path

import jax
import matplotlib
import numpy as np

from polyview import devices, errors, hosts
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.runs.load import evaluated_model, load
from polyview.training.train import train
from polyview.training.trainer import Trainer

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (select the backend first)

RESULTS = Path(__file__).parent / "results"
CONFIG = "configs/polyview_fashion_mnist.py"
# At two views the three losses are equal.
METHODS = [("geometric", 2)] + [
    (loss, m)
    for m in (4, 8)
    for loss in ("geometric", "arithmetic", "sufficient_statistics")
]


def main() -> None:
    """Run the missing cells of the grid; write the table, the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--labels", type=int, default=20_000, help="rows of the probe")
    flags = parser.parse_args()
    flags.workdir.mkdir(parents=True, exist_ok=True)
    # The seeds of a cell share one program.
    jax.config.update("jax_compilation_cache_dir", str(flags.workdir / "compiled"))

    cells = list(itertools.product(flags.budgets, METHODS))
    chosen = {}
    for seed in range(flags.seeds):
        for budget, (loss, m) in cells:
            rates = flags.rates if seed == 0 else [chosen[budget, loss, m]]
            accuracy = {
                rate: cell(flags, budget, loss, m, rate, seed)["validation"]
                for rate in rates
            }
            if seed == 0:
                chosen[budget, loss, m] = max(accuracy, key=accuracy.get)
    write(flags, chosen)


def cell(flags, budget: int, loss: str, m: int, rate: float, seed: int) -> dict:
    """Train and evaluate one cell, or read its result from the workdir."""
    name = f"{budget}-{loss}-{m}-{rate:g}-{seed}-{flags.steps}-{flags.labels}"
    path = flags.workdir / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    config = load_config(f"{CONFIG}:objective={loss},views={m}")
    config.seed = seed
    config.steps = flags.steps
    config.batch_size = budget // m
    config.log_every = config.checkpoint_every = flags.steps
    config.optimizer.learning_rate.base = rate
    config.evaluations.frozen.train.split = f"train[:{flags.labels}]"
    began = time.monotonic()
    workdir = flags.workdir / name
    with contextlib.redirect_stdout(io.StringIO()):
        train(Trainer(config), workdir)
    seconds = time.monotonic() - began
    mesh = devices.make_mesh()
    whole = devices.replicated(mesh)
    protocol = build(config.evaluations.frozen)
    with jax.set_mesh(mesh):
        result = protocol(evaluated_model(load(workdir, None, whole), whole), mesh)
    values = {
        "validation": result["linear_probe"]["validation_top1"],
        "test_linear_probe": result["linear_probe"]["top1"],
        "test_knn": result["knn"]["top1"],
        "rankme": result["health"]["h"]["rankme"],
        "seconds": round(seconds, 1),
    }
    path.write_text(json.dumps(values))
    print(name, {k: round(v, 4) for k, v in values.items()}, flush=True)
    return values


def write(flags, chosen: dict) -> None:
    """Print the table; write results/fixed_compute.{json,png}."""
    rows = []
    for (budget, loss, m), rate in chosen.items():
        runs = [cell(flags, budget, loss, m, rate, seed) for seed in range(flags.seeds)]
        row = {
            "views_per_step": budget,
            "loss": loss,
            "m": m,
            "unique_samples": budget // m,
            "rate": rate,
        }
        for measure in ("test_linear_probe", "test_knn", "validation"):
            values = [100 * run[measure] for run in runs]
            row[measure] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": values,
            }
        rows.append(row)
        probe, knn = row["test_linear_probe"], row["test_knn"]
        print(
            f"{budget:4d} views  {loss:22s} M={m}  K={budget // m:3d}  rate {rate:g}  "
            f"probe {probe['mean']:.2f} +- {probe['std'] or 0:.2f}  "
            f"kNN {knn['mean']:.2f} +- {knn['std'] or 0:.2f}"
        )
    record = {
        "command": "python -m benchmarks.fixed_compute --workdir DIR",
        "settings": {k: v for k, v in vars(flags).items() if k != "workdir"},
        "config": CONFIG,
        "machine": hosts.machine(),
        "rate_chosen_by": "probe accuracy on rows held out from train, seed 0",
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1)
    (RESULTS / "fixed_compute.json").write_text(text + "\n")
    plot(rows, flags).savefig(RESULTS / "fixed_compute.png", dpi=150)


def plot(rows: list[dict], flags):
    """Plot accuracy against the number of views, one panel per budget."""
    figure, panels = pyplot.subplots(
        2,
        len(flags.budgets),
        figsize=(3.4 * len(flags.budgets), 6),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    styles = {
        "geometric": ("#0072B2", "o"),
        "arithmetic": ("#D55E00", "s"),
        "sufficient_statistics": ("#009E73", "^"),
    }
    for column, budget in enumerate(flags.budgets):
        here = [r for r in rows if r["views_per_step"] == budget]
        for line, measure in enumerate(("test_linear_probe", "test_knn")):
            panel = panels[line, column]
            for shift, (loss, (colour, marker)) in enumerate(styles.items()):
                own = [r for r in here if r["loss"] == loss or r["m"] == 2]
                panel.errorbar(
                    [r["m"] + 0.12 * (shift - 1) for r in own],
                    [r[measure]["mean"] for r in own],
                    [r[measure]["std"] or 0 for r in own],
                    color=colour,
                    marker=marker,
                    capsize=3,
                    label=loss.replace("_", " "),
                )
            panel.set_xticks([2, 4, 8])
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
            if line == 0:
                panel.set_title(f"{budget} views a step", fontsize=11)
            else:
                panel.set_xlabel("views of a sample, M")
    panels[0, 0].set_ylabel("linear probe, test %")
    panels[1, 0].set_ylabel("kNN, test %")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"Fashion-MNIST, {flags.steps} steps, mean and standard deviation of "
        f"{flags.seeds} seeds",
        fontsize=11,
    )
    return figure


if __name__ == "__main__":
    errors.run(main)
