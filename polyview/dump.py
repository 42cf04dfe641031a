"""The state before a step that was not finite: kept, and taken through it once more."""

import contextlib
import shutil
from pathlib import Path

import jax
import numpy as np

from polyview import mesh as meshes
from polyview import metrics
from polyview.checkpoint import Checkpoints
from polyview.errors import InputError, NonFiniteError


def stop(number: int, state, config_text: str, workdir: Path) -> None:
    """Save the last finite state under `<workdir>/dump/`, and stop.

    Raises NonFiniteError always.
    """
    if meshes.is_first_process():  # an older dump is of a step that was since taken
        shutil.rmtree(workdir / "dump", ignore_errors=True)
    meshes.wait_for_all("dump")
    with contextlib.closing(Checkpoints(workdir / "dump", keep=2)) as dumps:
        dumps.save(number, state, config_text)
    raise NonFiniteError(
        f"step {number + 1} is not finite; the state before it is in "
        f"{workdir}/dump/{number}: see it again with --workdir {workdir} --replay"
    )


def replay(this, workdir: Path) -> None:
    """Take the dumped step of a `train.Run` again and print what it returns."""
    if not (workdir / "dump").is_dir():
        raise InputError(f"{workdir} has no dump to replay")
    with jax.set_mesh(this.mesh):
        with contextlib.closing(Checkpoints(workdir / "dump", keep=2)) as dumps:
            restored = dumps.restore_newest(this.template)
        if restored is None:
            raise InputError(f"{workdir} has no dump to replay")
        number, state = restored
        batches = this.batches(number, steps=number + 1)
        with contextlib.closing(meshes.prefetch(batches, this.mesh)) as ready:
            _, on_devices, batch = next(ready)
        metrics.say(f"step {number + 1}, rows {np.asarray(batch['index']).tolist()}")
        _, values = this.step(state, batch, on_devices, this.seed)
        for name, value in jax.device_get(values).items():
            metrics.say(f"{name:>24} {float(value):.6g}")
