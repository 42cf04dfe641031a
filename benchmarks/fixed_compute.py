"""At a fixed number of views a step: are fewer samples with more views better?

    python -m benchmarks.fixed_compute fashion_mnist --workdir runs/fixed_compute
    python -m benchmarks.fixed_compute han --workdir runs/fixed_compute

Tests the claim of Shidani et al. 2024: M views of K samples, with M * K and the number
of steps fixed, so that all cells with one M * K cost the encoder the same. Views are
crops of Fashion-MNIST, or Han characters in several fonts. Each cell's learning rate is
chosen from one grid with seed 0: by the probe's accuracy on rows held out from the
training split, or by the recall of validation characters. Test results are those at the
chosen rate; a row says whether that lies at an end of the grid. Finished runs are kept
in the workdir, with the digest of their config: run the command again to resume.
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import spread
from benchmarks.studies import begin
from polyview import devices, errors, hosts
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.config.text import text_digest, to_json
from polyview.runs.load import frozen_model
from polyview.training.train import train
from polyview.training.trainer import Trainer

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (select the backend first)

RESULTS = Path(__file__).parent / "results"
LOSSES = ("geometric", "arithmetic", "sufficient_statistics")
STYLES = dict(
    zip(LOSSES, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")), strict=True)
)
TO_TWO = "_minus_two_views"  # ends the name of a measure's difference to two views


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
    begin(flags.workdir)

    cells = list(itertools.product(flags.budgets, study.cells))
    chosen: dict[tuple[int, str, int], float] = {}
    for seed in range(flags.seeds):
        for budget, (loss, m) in cells:
            rates = flags.rates if seed == 0 else [chosen[budget, loss, m]]
            scores = {
                rate: cell(flags, budget, loss, m, rate, seed)["validation"]
                for rate in rates
            }
            if seed == 0:
                chosen[budget, loss, m] = max(scores, key=scores.__getitem__)
        write(flags, chosen, seed + 1)


def cell(
    flags: argparse.Namespace, budget: int, loss: str, m: int, rate: float, seed: int
) -> dict:
    """Train and evaluate one cell, or read its result from the workdir.

    A result that another config left there does not count; one without a digest does.
    """
    study = STUDIES[flags.study]
    name = f"{flags.study}-{budget}-{loss}-{m}-{rate:g}-{seed}-{flags.steps}"
    path = flags.workdir / f"{name}.json"
    config = load_config(f"{study.config}:objective={loss},views={m}")
    config.seed = seed
    config.steps = flags.steps
    config.batch_size = budget // m
    config.log_every = config.checkpoint_every = flags.steps
    config.optimizer.learning_rate.base = rate
    digest = text_digest(to_json(config))[:8]
    if path.exists():
        kept = json.loads(path.read_text())
        if kept.get("config", digest) == digest:
            return kept
    began = time.monotonic()
    workdir = flags.workdir / name
    with contextlib.redirect_stdout(io.StringIO()):
        train(Trainer(config), workdir)
    seconds = time.monotonic() - began
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        model = frozen_model(str(workdir))
        values = study.score(config, model, mesh)
    values["seconds"] = round(seconds, 1)
    path.write_text(json.dumps(values | {"config": digest}))
    shutil.rmtree(workdir)
    print(name, {k: round(v, 4) for k, v in values.items()}, flush=True)
    return values


def write(flags: argparse.Namespace, chosen: dict, seeds: int) -> None:
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
            "rate_at_end_of_grid": rate in (min(flags.rates), max(flags.rates)),
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
            row[measure + TO_TWO] = spread([a - b for a, b in pairs])
        shown = ", ".join(
            f"{measure} {row[measure]['mean']:.2f} "
            f"({row[measure + TO_TWO]['mean']:+.2f})"
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


def plot(rows: list[dict], flags: argparse.Namespace, seeds: int) -> Figure:
    """Plot each measure, and below it its paired difference to two views, against M.

    One panel per budget; bars are standard deviations over seeds, of the difference
    those of the seeds' differences.
    """
    study = STUDIES[flags.study]
    lines = {}
    for measure, label in study.measures.items():
        lines[measure] = label
        lines[measure + TO_TWO] = "difference to M = 2,\npoints"
    figure, panels = pyplot.subplots(
        len(lines),
        len(flags.budgets),
        figsize=(3.4 * len(flags.budgets), 0.6 + 2.5 * len(lines)),
        height_ratios=[3, 2] * len(study.measures),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, budget in enumerate(flags.budgets):
        here = [row for row in rows if row["views_per_step"] == budget]
        for panel, measure in zip(panels[:, column], lines, strict=True):
            draw(panel, here, measure, study)
            if measure not in study.measures:
                panel.axhline(0, color="#616e7c", linewidth=1, zorder=1)
        panels[0, column].set_title(f"{budget} views a step", fontsize=11)
        panels[-1, column].set_xlabel("views of a sample, M")
    for panel, label in zip(panels[:, 0], lines.values(), strict=True):
        panel.set_ylabel(label)
    if len({loss for loss, _ in study.cells}) > 1:
        panels[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{flags.study}, {flags.steps} steps, mean and standard deviation of {seeds} "
        "seeds",
        fontsize=11,
    )
    return figure


def draw(panel: Axes, rows: list[dict], measure: str, study: Study) -> None:
    """Draw a measure of one budget's rows against M, a line per loss."""
    losses = [name for name in LOSSES if any(name == loss for loss, _ in study.cells)]
    for place, loss in enumerate(losses):
        colour, marker = STYLES[loss]
        shift = 0.12 * (place - (len(losses) - 1) / 2)  # lest bars hide one another
        own = [row for row in rows if row["loss"] == loss or row["m"] == 2]
        panel.errorbar(
            [row["m"] + shift for row in own],
            [row[measure]["mean"] for row in own],
            [row[measure]["std"] or 0 for row in own],
            color=colour,
            marker=marker,
            capsize=3,
            label=loss.replace("_", " "),
        )
    panel.set_xticks(sorted({m for _, m in study.cells}))
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    errors.run(main)
