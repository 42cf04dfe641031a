"""What is about to run, in the units that people confuse."""

import jax
import numpy as np

from polyview import hosts
from polyview.terminal import say


def show(this, shapes: dict, state, start: int) -> None:
    """Print it for a `train.Run` that goes on from step `start`."""
    config, machine = this.config, hosts.machine()
    b, devices = config.batch_size, this.mesh.size
    slices, parts = this.slices, this.parts
    m = sum(v.shape[1] for v in shapes["views"].values())
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    peak = max(
        float(this.optimizer.schedule(s))
        for s in np.linspace(0, this.steps, 101).astype(int)
    )
    lines = {
        "samples": f"{len(this.source):,} in the source, {b} unique in a global batch",
        "views": f"{m} a sample, {b * m} a step",
        "rows": f"{b // devices} samples on each of {devices} devices "
        f"({machine['device']}, {machine['processes']} processes)",
        "learning rate": f"{peak:.4g} at its peak",
        "parameters": f"{parameters:,}",
        "steps": f"{this.steps:,}, from {start:,}"
        f" ({this.steps * b / len(this.source):.1f} epochs)",
    }
    if hasattr(this.objective, "negatives"):
        count = this.objective.negatives(b // parts, m)
        lines["negatives"] = f"up to {count} views of other samples for each anchor"
    if slices > 1:
        rows = b // slices
        lines["microbatch"] = (
            f"{rows} samples encoded at once, {slices} slices, one loss"
        )
    if parts > 1:
        lines["accumulate"] = f"{parts} parts of {b // parts} samples, a loss each"
    if this.absent:
        names = ", ".join(this.absent)
        lines["missing"] = f"{names}: a view in no row of the first batch; a misspelt "
        lines["missing"] += "field?"
    for name, text in lines.items():
        say(f"{name:>14}  {text}")
