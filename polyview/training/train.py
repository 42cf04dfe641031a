"""A run from top to bottom: build, restore, and the loop of every objective."""

import contextlib
import functools
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from polyview import devices, hosts
from polyview.config.schema import check_config, total_steps
from polyview.config.spec import build
from polyview.config.text import to_json
from polyview.config.trust import allow_list, check_trusted
from polyview.data import pipeline
from polyview.errors import InputError, Preempted, fits_together
from polyview.evaluation import health
from polyview.evaluation.frozen import write_result
from polyview.model import abstract_module, make_represent
from polyview.runs import metrics
from polyview.runs.checkpoint import Checkpoints, saved_steps
from polyview.runs.load import donate
from polyview.runs.workdir import claimed_workdir, read_config
from polyview.training import banner, microbatch, nonfinite
from polyview.training.prefetch import prefetch
from polyview.training.step import TrainState, create_state, make_step


class Run:
    """Everything a config describes, built and checked; nothing is compiled yet."""

    def __init__(self, config):
        check_config(config)
        self.config = config
        self.absent = []  # see `trace`
        self.mesh = devices.make_mesh(**config.get("mesh", {}))
        self.slices, self.parts = microbatch.division(config, self.mesh.size)
        self.source = build(config.source, where="source")
        self.views = build(config.views, where="views")
        if len(self.source) < config.batch_size:
            raise InputError(
                f"batch_size={config.batch_size}, but {self.source!r} has only "
                f"{len(self.source)} examples"
            )
        self.steps = total_steps(config, len(self.source))
        with fits_together("optimizer"):
            self.optimizer = build(config.optimizer, where="optimizer")(
                steps=self.steps, batch_size=config.batch_size
            )
        self.objective = build(config.objective, where="objective")
        self.evaluation = build(config.get("evaluation"), where="evaluation")
        make_module = build(config.model, where="model")
        with fits_together("model"):
            self.graph, *_ = abstract_module(make_module)
        decay = config.get("target_decay")
        self.seed = devices.put_replicated(np.uint32(config.seed), self.mesh)
        transformation = self.optimizer.transformation
        create = functools.partial(
            create_state, make_module, transformation, target_decay=decay
        )
        shapes = jax.eval_shape(create, self.seed)
        shardings = devices.of_state(shapes, self.mesh)
        whole, rows = devices.replicated(self.mesh), devices.rows(self.mesh)
        self.template = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(
                s.shape, s.dtype, sharding=sharding
            ),
            shapes,
            shardings,
        )
        self.create = jax.jit(create, out_shardings=shardings)
        self.step = jax.jit(
            make_step(
                self.graph,
                self.objective,
                transformation,
                decay,
                looks,
                self.logged,
                self.slices,
                self.parts,
            ),
            in_shardings=(shardings, rows, whole, whole),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        )
        self.represent = jax.jit(
            make_represent(self.graph),
            in_shardings=(shardings.params, shardings.statistics, rows),
            out_shardings=whole,
        )

    def logged(self, done):
        """Whether the step that makes `done` is logged: an int, or an array of one."""
        return (done % self.config.log_every == 0) | (done == 1) | (done == self.steps)

    def batches(
        self, start: int, steps: int | None = None, workers: int | None = None
    ) -> Iterator:
        """The batches of this process, from step `start` on."""
        return pipeline.batches(
            self.source,
            self.views,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            start=start,
            steps=self.steps if steps is None else steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.config.get("workers", 0) if workers is None else workers,
        )

    def trace(self) -> dict:
        """Trace one step on the shapes of a batch, and return the batch's shapes.

        `absent` becomes the modalities of which no row of this batch has some view.
        Raises InputError with the words of the objective, the model or the pipeline.
        """
        with fits_together("source and views"):
            _, batch = next(self.batches(0, steps=1, workers=0))
        there = {name: mask.any(0) for name, mask in batch["present"].items()}
        self.absent = [name for name, some in there.items() if not some.all()]
        hosts = jax.process_count()
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (x.shape[0] * hosts, *x.shape[1:]),
                jax.dtypes.canonicalize_dtype(x.dtype),
            ),
            batch,
        )
        number = jax.ShapeDtypeStruct((), np.int32)
        with fits_together("model, views and objective"):
            jax.eval_shape(self.step, self.template, shapes, number, self.seed)
        return shapes


def looks(features: dict) -> dict:
    """The health of what each tower returned, as metrics."""
    return {
        f"{name}/{measure}": value
        for name, of in features.items()
        for measure, value in health.health(of.z).items()
    }


def run(config, workdir: str | Path) -> None:
    """Train what `config` describes in `workdir`, from where it stands to the end.

    Raises InputError for a config that cannot run, before anything is compiled or
    written; NonFiniteError and Preempted as their docstrings say.
    """
    workdir = Path(workdir)
    this = Run(config)
    with jax.set_mesh(this.mesh):
        shapes = this.trace()
        given, donor = this.template, config.get("init_from")
        if donor is not None and not saved_steps(workdir / "checkpoints"):
            given = donate(donor, given, devices.replicated(this.mesh))
        with (
            claimed_workdir(workdir, config),
            Checkpoints(workdir / "checkpoints", config.get("keep", 3)) as checkpoints,
        ):
            restored = checkpoints.restore_newest(this.template)
            start, state = restored or (0, initial(this, given))
            rows = config.batch_size
            views = sum(rows * v.shape[1] for v in shapes["views"].values())
            first = hosts.is_first_process()
            writer = metrics.Writer(workdir, start, this.steps, views, first)
            if first:
                banner.show(this, shapes, state, start)
            with contextlib.closing(writer):
                state = loop(this, state, start, checkpoints, writer, workdir)


def initial(this: Run, given: TrainState) -> TrainState:
    """The state before the first step, with the arrays of `given` where it has any."""
    return jax.tree.map(
        lambda made, other: other if isinstance(other, jax.Array) else made,
        this.create(this.seed),
        given,
    )


def loop(this: Run, state, start: int, checkpoints, writer, workdir: Path):
    """Take the steps from `start` on; log, save and evaluate as the config says."""
    config, steps = this.config, this.steps
    config_text = to_json(config)

    def due(step: int, every: str) -> bool:
        interval = config.get(every, 0)
        return bool(interval) and step % interval == 0

    def finish(step: int, values: dict) -> None:
        """Read what a step returned, once the next one is under way."""
        if not bool(jax.device_get(values.pop("healthy"))):
            nonfinite.stop(step - 1, state, config_text, workdir)
        if this.logged(step):
            values = {k: float(v) for k, v in jax.device_get(values).items()}
            values["learning_rate"] = float(this.optimizer.schedule(step - 1))
            writer.write(step, values)
        writer.advance(step)

    pending = None
    batches = prefetch(this.batches(start), this.mesh)
    with stop_requested() as stopping, contextlib.closing(batches):
        for index, number, batch in batches:
            done = index + 1
            with jax.transfer_guard("disallow"):
                state, values = this.step(state, batch, number, this.seed)
            if pending is not None:
                finish(*pending)
            pending = (done, values)
            stop = stopping(done)
            save = due(done, "checkpoint_every") or done == steps or stop
            asked = this.evaluation is not None and config.get("evaluate_every", 0)
            evaluate = asked and (due(done, "evaluate_every") or done == steps)
            if save or evaluate:
                finish(*pending)
                pending = None
            if evaluate:  # before saving: a kill between the two must not lose it
                result = this.evaluation(represent(this, state), this.mesh)
                write_result(workdir, done, result)
            if save:
                checkpoints.save(done, state, config_text)
            if stop and done < steps:
                checkpoints.wait()
                raise Preempted(
                    f"stopped at step {done} of {steps}; its state is saved: run the "
                    "same command again to go on"
                )
    return state


def represent(this: Run, state):
    """Return `represent(batch) -> {name: Features}` of a state, for evaluation."""
    return functools.partial(this.represent, state.params, state.statistics)


@contextlib.contextmanager
def stop_requested():
    """Yield `stopping(step) -> bool`: save and end? All processes agree on it."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    requested = []
    try:
        old = signal.signal(signal.SIGTERM, lambda *_: requested.append(True))
    except ValueError:  # not the main thread, as in a notebook: nobody sends us signals
        yield lambda step: False
        return
    try:
        yield lambda step: bool(requested)
    finally:
        signal.signal(signal.SIGTERM, old)


def replay(workdir: str | Path, trust: tuple[str, ...] = ()) -> None:
    """Take the dumped step of a run again and print where it stops being finite."""
    config = read_config(Path(workdir))
    check_trusted(config, allow_list(trust))
    with fits_together(f"what {workdir} holds"):
        nonfinite.replay(Run(config), Path(workdir))
