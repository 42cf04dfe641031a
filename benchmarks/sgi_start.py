"""When does SGI's official recipe begin to learn, and what reaches its encoder?

    python -m benchmarks.sgi_start --workdir runs/sgi_start

Trains `configs/sgi_pretrain.py`, size S, on recorded play of one game. At regular steps
it measures a batch of other play: each term of the loss, the ranks of latents and
projections, and the gradient's norm in each layer, of the whole loss and of the inverse
term alone. The inverse model is scored on the other play as in pre-training's
evaluation. Run the command again to resume; the JSON is written after each measurement.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.sgi_learning import record
from polyview import devices, drawing, errors, files, hosts
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.data import pipeline
from polyview.evaluation.health import rankme, standard_deviation
from polyview.model import merge_module
from polyview.runs.checksum import flatten
from polyview.training.step import TrainState
from polyview.training.train import train
from polyview.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
STUDIED = 256  # windows of the batch that is measured


class Watched(Trainer):
    """A trainer that measures a batch of other play every so many steps."""

    def __init__(self, config: Any, every: int, output: Path, about: dict):
        super().__init__(config)
        self.every, self.output, self.about = every, output, about
        other = {**config.source, "name": config.source.name.replace("random", "probe")}
        held = build(other, None, where="source")
        sample = partial(pipeline.batches, held, self.views, seed=1, steps=1)
        _, batch = next(sample(batch_size=STUDIED))
        self.held = devices.put_replicated(batch, self.mesh)
        alone = dataclasses.replace(self.objective, spr=0.0, goal=0.0)
        self.measures = {
            "all": jax.jit(partial(self.gradient, self.objective)),
            "inverse": jax.jit(partial(self.gradient, alone)),
        }

    def gradient(
        self, objective: Any, state: TrainState, fixed: dict, batch: Mapping
    ) -> tuple[dict, dict]:
        """Return gradients, and metrics with the measures of latents and projections.

        The key is that of no training step.
        """

        def loss_of(params: dict) -> tuple[jax.Array, dict]:
            module = merge_module(self.abstract.graph, params, state.statistics, fixed)
            target = merge_module(self.abstract.graph, **state.target, fixed=fixed)
            loss, metrics = objective(module, target, batch, jax.random.key(1))
            frames = metrics.pop("features")["frames"]
            for name, rows in (
                ("latents", frames.h[:, 0]),
                ("projections", frames.z[:, 0]),
            ):
                metrics[f"rankme_of_{name}"] = rankme(rows)
                metrics[f"deviation_of_{name}"] = standard_deviation(rows)
            return loss, metrics

        return jax.grad(loss_of, has_aux=True)(state.params)

    def take(self, state: TrainState, inputs: Any) -> tuple[TrainState, dict]:
        """Take a step; measure before the first and after each `every` of them."""
        step = int(inputs[1])
        if step == 0:
            self.measure(state, 0)
        state, metrics = super().take(state, inputs)
        if (step + 1) % self.every == 0:
            self.measure(state, step + 1)
        return state, metrics

    def measure(self, state: TrainState, step: int) -> None:
        """Add a row to the JSON."""
        row: dict[str, Any] = {"step": step, "norms": {}}
        for name, measure in self.measures.items():
            gradients, metrics = jax.device_get(measure(state, self.fixed, self.held))
            if name == "all":
                row |= {key: float(np.mean(value)) for key, value in metrics.items()}
            row["norms"][name] = by_layer(gradients)
        content = {"rows": []} | read(self.output)
        rows = [old for old in content["rows"] if old["step"] < step]
        text = json.dumps(content | self.about | {"rows": [*rows, row]}, indent=1)
        files.write_whole(self.output, f"{text}\n".encode())


def by_layer(gradients: dict) -> dict[str, float]:
    """Return the norm of each layer's gradient."""
    squares: dict[str, float] = {}
    for name, array in flatten(gradients).items():
        layer = name.rpartition(".")[0]
        squares[layer] = squares.get(layer, 0.0) + float(np.square(array).sum())
    return {layer: square**0.5 for layer, square in squares.items()}


def read(path: Path) -> dict:
    """Return a JSON file's content; empty if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    """Train, or resume; write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--game", default="breakout")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--every", type=int, default=250)
    flags = parser.parse_args()
    os.environ["POLYVIEW_DATA"] = str(flags.workdir / "data")
    record(flags.game)
    changes = {
        "steps": str(flags.steps),
        "epochs": "None",
        "batch_size": str(flags.batch_size),
        "checkpoint_every": str(flags.every),
        "evaluate_every": str(2 * flags.every),
        "evaluations.variables": "None",
    }
    config = load_config(f"configs/sgi_pretrain.py:size=S,game={flags.game}", changes)
    named = f"sgi_start_{flags.game}_{flags.batch_size}"
    output, workdir = RESULTS / f"{named}.json", flags.workdir / named
    command = f"python -m benchmarks.sgi_start --workdir DIR --game {flags.game}"
    about = {
        "command": f"{command} --steps {flags.steps} --batch_size {flags.batch_size}",
        "machine": hosts.machine(),
        "batch": f"{STUDIED} windows of play of another seed",
    }
    train(Watched(config, flags.every, output, about), workdir)
    content = read(output)
    content["actions"] = [
        {"step": int(path.name.partition("-")[0]), **read(path)}
        for path in sorted((workdir / "eval").glob("*-actions.json"))
    ]
    files.write_whole(output, f"{json.dumps(content, indent=1)}\n".encode())
    output.with_suffix(".png").write_bytes(drawing.png(curves(content)))


@drawing.styled
def curves(content: dict) -> Figure:
    """Plot terms, accuracy, ranks and gradients over the steps."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panels = figure.subplots(2, 2)
    rows = content["rows"]
    steps = [row["step"] for row in rows]

    def lines(axes: Any, title: str, **values: list) -> None:
        for label, line in values.items():
            axes.plot(steps, line, label=label.replace("_", " "))
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=7)

    terms = {name: [row[name] for row in rows] for name in ("spr", "inverse")}
    lines(panels[0, 0], "Terms of the loss", **terms)
    right = panels[0, 1]
    accuracy = [row["inverse_accuracy"] for row in rows]
    lines(right, "Actions inferred", as_in_the_loss=accuracy)
    scored = sorted((one["step"], one["accuracy"]) for one in content["actions"])
    right.plot(*np.transpose(scored), "o", markersize=3, label="as evaluated")
    for level in ("chance", "ceiling"):
        right.axhline(content["actions"][0][level], linestyle=":", color=drawing.INK)
        right.annotate(level, (0, content["actions"][0][level]))
    right.legend(frameon=False, fontsize=7)
    ranks = {
        of: [row[f"rankme_of_{of}"] for row in rows]
        for of in ("latents", "projections")
    }
    lines(panels[1, 0], "RankMe", **ranks)
    norms = {
        f"{name}, {of}": [row["norms"][of][name] for row in rows]
        for of in ("all", "inverse")
        for name in rows[0]["norms"][of]
        if name.startswith(("encoder", "inverse.first"))
    }
    lines(panels[1, 1], "Norm of the gradient", **norms)
    panels[1, 1].set_yscale("log")
    for axes in panels[1]:
        axes.set_xlabel("step")
    return figure


if __name__ == "__main__":
    errors.run(main)
