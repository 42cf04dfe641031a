"""At a fixed number of views a step: are fewer samples with more views better?

    python -m benchmarks.fixed_compute fashion_mnist --workdir runs/fixed_compute
    python -m benchmarks.fixed_compute han --workdir runs/fixed_compute

Tests the claim of Shidani et al. 2024: M views of K samples, with M * K and the number
of steps fixed, so that all cells with one M * K cost the encoder the same. Views are
crops of Fashion-MNIST, or Han characters in several fonts. Each cell's learning rate is
chosen from one grid with seed 0: by the probe's accuracy on rows held out from the
training split, or by the recall of validation characters. Test results are those at the
chosen rate. Finished runs are kept in the workdir: run the command again to resume.
"""

import argparse
import contextlib
import io
import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
LOSSES = ("geometric", "arithmetic", "sufficient_statistics")


class Study(NamedTuple):
    """One data set: what is trained on it, and how that is scored.

    score: (config, model, mesh) -> {"validation": ..., measure: ...}, of which the
    first chooses the rate; measures: {measure: label of its axis}; cells: (loss, M).
    """

    config: str
    score: Callable[[Any, Callable, Any], dict[str, float]]
    measures: dict[str, str]
    cells: list[tuple[str, int]]
    budgets: tuple[int, ...]
    steps: int
    rates: tuple[float, ...]
    chosen_by: str
    output: str


def probed(config: Any, model: Callable, mesh: Any) -> dict[str, float]:
    """Score by a linear probe on 20,000 labels, and by kNN."""
    config.evaluations.frozen.train.split = "train[:20000]"
    result = build(config.evaluations.frozen)(model, mesh)
    return {
        "validation": result["linear_probe"]["validation_top1"],
        "test_linear_probe": result["linear_probe"]["top1"],
        "test_knn": result["knn"]["top1"],
        "rankme": result["health"]["h"]["rankme"],
    }


def recalled(config: Any, model: Callable, mesh: Any) -> dict[str, float]:
    """Score by the recall of characters in one font by another."""
    spec, scores = config.evaluations.retrieval, {}
    for split, name in (("validation", "validation"), ("test", "test_recall")):
        spec.test.source.split = split
        scores[name] = build(spec)(model, mesh)["mean"]["recall@1"]
    return scores


STUDIES = {
    "fashion_mnist": Study(
        config="configs/polyview_fashion_mnist.py",
        score=probed,
        measures={
            "test_linear_probe": "linear probe, test %",
            "test_knn": "kNN, test %",
        },
        # At two views the three losses are equal.
        cells=[("geometric", 2), *((loss, m) for m in (4, 8) for loss in LOSSES)],
        budgets=(64, 128, 512),
        steps=200,
        rates=(1e-3, 3e-3),
        chosen_by="probe accuracy on rows held out from train, seed 0",
        output="fixed_compute",
    ),
    "han": Study(
        config="configs/polyview_han.py",
        score=recalled,
        measures={"test_recall": "recall at 1 of unseen characters, %"},
        cells=[("geometric", m) for m in (2, 3, 4, 6, 8, 12)],
        budgets=(96, 384),
        steps=500,
        rates=(1e-3, 3e-3),
        chosen_by="recall of validation characters, seed 0",
        output="fixed_compute_han",
    ),
}


def main() -> None:
    """Run the missing cells of the grid; write the table, the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--budgets", type=int, nargs="+")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+")
    flags = parser.parse_args()
    study = STUDIES[flags.study]
    for name in ("budgets", "steps", "rates"):
        if getattr(flags, name) is None:
            setattr(flags, name, getattr(study, name))
    flags.workdir.mkdir(parents=True, exist_ok=True)
    # The seeds of a cell share one program.
    jax.config.update("jax_compilation_cache_dir", str(flags.workdir / "compiled"))
    hosts.keep_freed_memory()

    cells = list(itertools.product(flags.budgets, study.cells))
    chosen = {}
    for seed in range(flags.seeds):
        for budget, (loss, m) in cells:
            rates = flags.rates if seed == 0 else [chosen[budget, loss, m]]
            scores = {
                rate: cell(flags, budget, loss, m, rate, seed)["validation"]
                for rate in rates
            }
            if seed == 0:
                chosen[budget, loss, m] = max(scores, key=scores.get)
        write(flags, chosen, seed + 1)


def cell(flags, budget: int, loss: str, m: int, rate: float, seed: int) -> dict:
    """Train and evaluate one cell, or read its result from the workdir."""
    study = STUDIES[flags.study]
    name = f"{flags.study}-{budget}-{loss}-{m}-{rate:g}-{seed}-{flags.steps}"
    path = flags.workdir / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    config = load_config(f"{study.config}:objective={loss},views={m}")
    config.seed = seed
    config.steps = flags.steps
    config.batch_size = budget // m
    config.log_every = config.checkpoint_every = flags.steps
    config.optimizer.learning_rate.base = rate
    began = time.monotonic()
    workdir = flags.workdir / name
    with contextlib.redirect_stdout(io.StringIO()):
        train(Trainer(config), workdir)
    seconds = time.monotonic() - began
    mesh = devices.make_mesh()
    whole = devices.replicated(mesh)
    with jax.set_mesh(mesh):
        model = evaluated_model(load(workdir, None, whole), whole)
        values = study.score(config, model, mesh)
    values["seconds"] = round(seconds, 1)
    path.write_text(json.dumps(values))
    shutil.rmtree(workdir)
    print(name, {k: round(v, 4) for k, v in values.items()}, flush=True)
    return values


def write(flags, chosen: dict, seeds: int) -> None:
    """Print the table of some seeds; write its JSON and plot into results/."""
    study, rows = STUDIES[flags.study], []
    for (budget, loss, m), rate in chosen.items():
        runs = [cell(flags, budget, loss, m, rate, seed) for seed in range(seeds)]
        row = {
            "views_per_step": budget,
            "loss": loss,
            "m": m,
            "unique_samples": budget // m,
            "rate": rate,
        }
        for measure in (*study.measures, "validation"):
            row[measure] = spread([100 * run[measure] for run in runs])
        rows.append(row)
    for row in rows:
        two = next(
            r
            for r in rows
            if r["m"] == 2 and r["views_per_step"] == row["views_per_step"]
        )
        for measure in study.measures:
            pairs = zip(row[measure]["values"], two[measure]["values"], strict=True)
            row[f"{measure}_minus_two_views"] = spread([a - b for a, b in pairs])
        shown = ", ".join(
            f"{measure} {row[measure]['mean']:.2f} "
            f"({row[f'{measure}_minus_two_views']['mean']:+.2f})"
            for measure in study.measures
        )
        print(
            f"{row['views_per_step']:4d} views  {row['loss']:22s} M={row['m']:2d}  "
            f"K={row['unique_samples']:3d}  rate {row['rate']:g}  {shown}"
        )
    record = {
        "command": f"python -m benchmarks.fixed_compute {flags.study} --workdir DIR",
        "settings": {k: v for k, v in vars(flags).items() if k != "workdir"},
        "config": study.config,
        "machine": hosts.machine(),
        "rate_chosen_by": study.chosen_by,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    output = RESULTS / study.output
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    plot(rows, flags, seeds).savefig(output.with_suffix(".png"), dpi=150)


def spread(values: list[float]) -> dict:
    """Return the mean and the standard deviation of values, and these."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}


def plot(rows: list[dict], flags, seeds: int):
    """Plot each measure against the number of views, one panel per budget."""
    study = STUDIES[flags.study]
    figure, panels = pyplot.subplots(
        len(study.measures),
        len(flags.budgets),
        figsize=(3.4 * len(flags.budgets), 3 * len(study.measures)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    styles = dict(
        zip(LOSSES, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")), strict=True)
    )
    views = sorted({m for _, m in study.cells})
    for column, budget in enumerate(flags.budgets):
        here = [r for r in rows if r["views_per_step"] == budget]
        for line, (measure, label) in enumerate(study.measures.items()):
            panel = panels[line, column]
            for shift, (loss, (colour, marker)) in enumerate(styles.items()):
                if loss not in {loss for loss, _ in study.cells}:
                    continue
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
            panel.set_xticks(views)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
            if line == 0:
                panel.set_title(f"{budget} views a step", fontsize=11)
            if line == len(study.measures) - 1:
                panel.set_xlabel("views of a sample, M")
            if column == 0:
                panel.set_ylabel(label)
    if len({loss for loss, _ in study.cells}) > 1:
        panels[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{flags.study}, {flags.steps} steps, mean and standard deviation of {seeds} "
        "seeds",
        fontsize=11,
    )
    return figure


if __name__ == "__main__":
    errors.run(main)
