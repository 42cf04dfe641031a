"""Save the last finite state when a step gives NaN or infinity; replay that step."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from polyview import hosts
from polyview.config.trust import allow_list, check_trusted
from polyview.errors import InputError, NonFiniteError, fits_together
from polyview.runs.checkpoint import Checkpoints, Damaged, read_state, saved_steps
from polyview.runs.workdir import read_config
from polyview.terminal import say
from polyview.training.learner import Learner


def stop(number: int, save: Callable[[int, Checkpoints], None], workdir: Path) -> None:
    """Save the last finite state under `<workdir>/dump/` and raise NonFiniteError.

    save(step, checkpoints): saves that state. An older dump is removed once the new one
    is complete.
    """
    fresh = workdir / "dump.new"
    try:
        if hosts.is_first_process():
            shutil.rmtree(fresh, ignore_errors=True)
        hosts.wait_for_all("dump")
        with Checkpoints(fresh, keep=2) as dumps:
            save(number, dumps)
        if hosts.is_first_process():
            shutil.rmtree(workdir / "dump", ignore_errors=True)
            fresh.rename(workdir / "dump")
        kept = (
            f"the state before it is in {workdir}/dump/{number}: repeat the step with "
            f"--workdir {workdir} --replay"
        )
    except (InputError, OSError) as error:
        why = error.__cause__ or error
        kept = f"the state before it could not be saved ({str(why).splitlines()[0]})"
    raise NonFiniteError(f"step {number + 1} is not finite; {kept}")


def replay_run(
    kind: Callable[..., Learner], workdir: Path, trust: tuple[str, ...] = ()
) -> None:
    """Repeat the dumped step of a run and print its metrics; write nothing.

    kind(config, trusted): makes the learner; trusted lists what its config may call.
    trust: packages it may name too. Raises InputError if no dump can be read.
    """
    config = read_config(workdir)
    trusted = allow_list(trust)
    check_trusted(config, trusted)
    with fits_together(f"what {workdir} holds"):
        _replay(kind(config, trusted), workdir)


def _replay(learner: Learner, workdir: Path) -> None:
    steps = saved_steps(workdir / "dump")
    if not steps:
        raise InputError(f"{workdir} has no dump to replay")
    number = steps[-1]
    folder = workdir / "dump" / str(number)
    with jax.set_mesh(learner.mesh), contextlib.closing(learner):
        try:
            saved = read_state(folder, learner.template())
        except Damaged as error:
            raise InputError(f"{folder} is damaged: {error}") from error
        state = learner.restored(workdir, saved, folder, number)
        with contextlib.closing(learner.inputs(number)) as inputs:
            given = next(inputs)
        say(f"step {number + 1}, {learner.told(given)}")
        _, values = learner.take(state, given)
        for name, value in jax.device_get(values).items():
            say(f"{name:>24} {float(np.mean(value)):.6g}")
