"""Overhead of the trainer: its views per second against the bare compiled step's.

    python -m benchmarks.step

The bare step runs on one batch that stays on the device. The trainer reads, augments
and transfers a new batch each step, logs, and checks for NaN. The two take turns, so
that a busy machine slows both; the ratio is that of the medians.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from polyview import devices, errors, hosts
from polyview.config.file import load_config
from polyview.training.prefetch import prefetch
from polyview.training.train import train
from polyview.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print the table and write results/step.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/polyview_fashion_mnist.py")
    parser.add_argument("--steps", type=int, default=60, help="per turn")
    parser.add_argument("--turns", type=int, default=4)
    flags = parser.parse_args()
    config = load_config(flags.config, {"steps": str(flags.steps)})
    config.checkpoint_every = 10 * flags.steps
    run = Trainer(config)
    with jax.set_mesh(run.mesh):
        shapes = run.trace()
        views = sum(s.shape[0] * s.shape[1] for s in shapes["views"].values())
        bare_step(run, 2)
        trainer(run, views)  # compiles the rest
        rates = {"trainer": [], "bare step": []}
        for _ in range(flags.turns):
            rates["bare step"].append(views * flags.steps / bare_step(run, flags.steps))
            rates["trainer"].append(views * flags.steps / trainer(run, views))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratio = medians["trainer"] / medians["bare step"]
    for name, median in medians.items():
        print(f"{name:>10}  {median:8.0f} views/s")
    print(f"{'ratio':>10}  {ratio:8.3f}")
    record = {
        "command": f"python -m benchmarks.step --turns {flags.turns}",
        "steps": flags.steps,
        "config": flags.config,
        "machine": hosts.machine(),
        "views_per_second": rates,
        "ratio_of_medians": ratio,
    }
    (RESULTS / "step.json").write_text(json.dumps(record, indent=1) + "\n")


def bare_step(run: Trainer, steps: int) -> float:
    """Measure the seconds of `steps` steps on one batch that stays on the device."""
    state, fixed = run.initial(run.seed)
    with contextlib.closing(prefetch(run.batches(0, 1), run.mesh)) as batches:
        _, _, batch = next(batches)
    # A step rejects a batch drawn for another step number.
    numbers = [devices.put_replicated(np.int32(i), run.mesh) for i in range(steps)]
    jax.block_until_ready((batch, numbers))
    began = time.perf_counter()
    for number in numbers:
        state, _ = run.step(state, fixed, batch, number, run.seed)
    jax.block_until_ready(state)
    return time.perf_counter() - began


def trainer(run: Trainer, views: int) -> float:
    """Measure the seconds of a run by the training loop, with logs and last save."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            train(run, Path(folder))
        seconds = time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    errors.run(main)
