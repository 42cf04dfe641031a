"""The training loop of every learner: log, evaluate, save, stop."""

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from polyview import hosts
from polyview.config.text import to_json
from polyview.errors import Preempted
from polyview.evaluation.base import result_name, write_result
from polyview.runs import metrics
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.workdir import claimed_workdir
from polyview.terminal import say
from polyview.training import nonfinite
from polyview.training.learner import Learner, State


def train(learner: Learner, workdir: str | Path) -> State:
    """Train in `workdir` to the end, resuming if it has checkpoints; return the state.

    Raises InputError for a config that cannot run, before anything is compiled or
    written; NonFiniteError if a step is not finite; Preempted if told to stop.
    """
    workdir, config = Path(workdir), learner.config
    with jax.set_mesh(learner.mesh), contextlib.closing(learner):
        hosts.check_equal("config", to_json(config))
        hosts.check_equal("data", json.dumps(learner.data))
        learner.check(workdir)
        with (
            claimed_workdir(workdir, config, learner.data),
            Checkpoints(workdir / "checkpoints", config.get("keep", 3)) as checkpoints,
        ):
            newest = checkpoints.restore_newest(learner.template())
            if newest is None:
                start, state = 0, learner.create(workdir)
            else:
                start, saved = newest
                folder = checkpoints.folder / str(start)
                state = learner.restored(workdir, saved, folder, start)
            first = hosts.is_first_process()
            sizes = learner.steps, learner.samples
            told = learner.shown, learner.unit
            writer = metrics.Writer(workdir, start, *sizes, first, *told)
            if first:
                banner = learner.banner(state, start)
                kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
                if kept:
                    banner |= {"compiled": f"programs are kept in {kept}"}
                for name, text in banner.items():
                    say(f"{name:>14}  {text}")
            with contextlib.closing(writer):
                return _loop(learner, state, start, checkpoints, writer, workdir)


def _loop(
    learner: Learner,
    state: State,
    start: int,
    checkpoints: Checkpoints,
    writer: metrics.Writer,
    workdir: Path,
) -> State:
    """Take all steps from `start`."""
    steps, every = learner.steps, learner.config.get("checkpoint_every", 0)
    config_text = to_json(learner.config)

    def save(step: int, folder: Checkpoints = checkpoints) -> None:
        folder.save(step, learner.saved(state), config_text, learner.fixed_record)

    def finish(step: int, values: dict) -> None:
        """Check and log the metrics of a step."""
        if not bool(jax.device_get(values.pop("healthy"))):
            nonfinite.stop(step - 1, save, workdir)
        if learner.logged(step):
            values = {k: float(np.mean(v)) for k, v in jax.device_get(values).items()}
            writer.write(step, learner.values(step, values))
        writer.advance(step)

    if start == 0 and learner.evaluated(0):
        evaluate(learner, state, 0, workdir)
    pending = None
    with (
        stop_requested() as stopping,
        contextlib.closing(learner.inputs(start)) as inputs,
    ):
        for done, given in enumerate(inputs, start + 1):
            with jax.transfer_guard("disallow"):
                state, values = learner.take(state, given)
            if pending is not None:
                finish(*pending)
            pending = (done, values)
            stop = stopping(done)
            saved = stop or done == steps or bool(every) and done % every == 0
            evaluated = learner.evaluated(done)
            if saved or evaluated or learner.acts:
                finish(*pending)
                pending = None
            if evaluated:  # before saving: a kill in between must not lose it
                try:
                    evaluate(learner, state, done, workdir)
                except Exception:  # a broken evaluation must not lose the steps
                    save(done)
                    raise
            if saved:
                save(done)
            if stop and done < steps:
                checkpoints.wait()
                raise Preempted(
                    f"stopped at step {done} of {steps}; its state is saved: run the "
                    "same command again to resume"
                )
    return state


def evaluate(learner: Learner, state: State, step: int, workdir: Path) -> None:
    """Run the learner's evaluations and write each result when it is ready."""
    model = learner.model(state, step)
    for name, evaluation in learner.evaluations.items():
        result = evaluation(model, learner.mesh)
        path = write_result(workdir, result_name(step, name), result, evaluation)
        if hosts.is_first_process() and result.summary:
            say(f"{path}: {result.summary}")


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[int], bool]]:
    """Yield `stopping(step) -> bool`: stop after this step? All processes agree."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    requested: list[bool] = []
    try:
        old = signal.signal(signal.SIGTERM, lambda *_: requested.append(True))
    except ValueError:  # outside the main thread, as in a notebook
        yield lambda step: False
        return
    try:
        yield lambda step: bool(requested)
    finally:
        signal.signal(signal.SIGTERM, old)
