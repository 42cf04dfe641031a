"""The banner of a run: batch size, learning rate and length, each with its unit."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from polyview import hosts

if TYPE_CHECKING:
    from polyview.training.step import TrainState
    from polyview.training.trainer import Trainer


def lines(trainer: "Trainer", state: "TrainState", start: int) -> dict[str, str]:
    """Return {name: text} for a run that begins, or resumes from step `start`."""
    config, machine = trainer.config, hosts.machine()
    b, count = config.batch_size, trainer.mesh.size
    slices, parts = trainer.slices, trainer.parts
    m = trainer.samples // b
    marks = np.linspace(0, trainer.steps, 101).astype(np.int32)
    peak = float(jax.jit(jax.vmap(trainer.optimizer.schedule))(marks).max())
    text = {
        "samples": f"{len(trainer.source):,} in the source, {b} unique in a batch",
        "views": f"{m} a sample, {b * m} a step",
        "rows": f"{b // count} samples on each of {count} devices "
        f"({machine['device']}, {machine['processes']} processes)",
        "learning rate": f"{peak:.4g} at its peak",
        "parameters": f"{_size(state.params):,} trained",
        "steps": f"{trainer.steps:,}, from {start:,}"
        f" ({trainer.steps * b / len(trainer.source):.1f} epochs)",
    }
    if fixed := _size(trainer.fixed):
        text["parameters"] += f", {fixed:,} fixed"
    if trainer.laid_over is not None:
        text["begins with"] = f"{trainer.laid_over}"
    if hasattr(trainer.objective, "negatives"):
        pairs = trainer.objective.negatives(b // parts, m)
        text["negatives"] = f"up to {pairs} views of other samples for each anchor"
    if slices > 1:
        rows = b // slices
        text["microbatch"] = (
            f"{rows} samples encoded at once, {slices} slices, one loss"
        )
    if parts > 1:
        text["accumulate"] = f"{parts} parts of {b // parts} samples, a loss each"
    if trainer.absent:
        names = ", ".join(trainer.absent)
        text["missing"] = (
            f"{names}: a view in no row of the first batch; a misspelt field?"
        )
    return text


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))
