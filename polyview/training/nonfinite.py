"""The state before a step that was not finite: kept, and taken through it once more."""

import contextlib
import shutil
from pathlib import Path

import jax
import numpy as np

from polyview import hosts
from polyview.errors import InputError, NonFiniteError
from polyview.runs.checkpoint import Checkpoints, Damaged, read_state, saved_steps
from polyview.terminal import say
from polyview.training.prefetch import prefetch


def stop(number: int, state, config_text: str, workdir: Path) -> None:
    """Save the last finite state under `<workdir>/dump/`, and stop.

    An older dump, of a step that was taken since, goes once the new one is whole.
    Raises NonFiniteError always.
    """
    fresh = workdir / "dump.new"
    try:
        if hosts.is_first_process():
            shutil.rmtree(fresh, ignore_errors=True)
        hosts.wait_for_all("dump")
        with Checkpoints(fresh, keep=2) as dumps:
            dumps.save(number, state, config_text)
        if hosts.is_first_process():
            shutil.rmtree(workdir / "dump", ignore_errors=True)
            fresh.rename(workdir / "dump")
        kept = (
            f"the state before it is in {workdir}/dump/{number}: see it again with "
            f"--workdir {workdir} --replay"
        )
    except (InputError, OSError) as error:
        why = error.__cause__ or error
        kept = f"the state before it cannot be kept ({str(why).splitlines()[0]})"
    raise NonFiniteError(f"step {number + 1} is not finite; {kept}")


def replay(this, workdir: Path) -> None:
    """Take the dumped step of a `train.Run` again and print what it returns.

    Nothing is written. Raises InputError where there is no dump that can be read.
    """
    steps = saved_steps(workdir / "dump")
    if not steps:
        raise InputError(f"{workdir} has no dump to replay")
    number = steps[-1]
    with jax.set_mesh(this.mesh):
        try:
            state = read_state(workdir / "dump" / str(number), this.template)
        except Damaged as error:
            raise InputError(f"{workdir}/dump/{number} is damaged: {error}") from error
        batches = this.batches(number, steps=number + 1)
        with contextlib.closing(prefetch(batches, this.mesh)) as ready:
            _, on_devices, batch = next(ready)
        say(f"step {number + 1}, rows {np.asarray(batch['index']).tolist()}")
        _, values = this.step(state, batch, on_devices, this.seed)
        for name, value in jax.device_get(values).items():
            say(f"{name:>24} {float(value):.6g}")
