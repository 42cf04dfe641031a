"""The learner of a data pipeline, built from a config."""

import functools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from polyview import devices
from polyview.config.schema import check_config, total_steps
from polyview.config.spec import build
from polyview.config.trust import targets
from polyview.data import pipeline
from polyview.data.sources.protocol import identity
from polyview.errors import InputError, fits_together
from polyview.evaluation import health
from polyview.evaluation.base import specs_of
from polyview.model import Model, Parts, abstract_module, merge_module
from polyview.runs.checkpoint import saved_steps
from polyview.runs.evaluating import build_evaluations
from polyview.runs.init import LaidOver, begun, entries_of, fixed_again, lay_over
from polyview.runs.lineage import training_sources
from polyview.training import banner, microbatch
from polyview.training.learner import Learner
from polyview.training.outputs import check_outputs
from polyview.training.prefetch import prefetch
from polyview.training.step import TrainState, begin_with, create_state, make_step


class Trainer(Learner):
    """The objects that a config describes, built and checked; compiles nothing yet.

    trusted: what an untrusted config may call (`polyview.config.trust`); None: all.
    """

    def __init__(self, config: ConfigDict, trusted: frozenset[str] | None = None):
        check_config(config)
        self.config, self.trusted = config, trusted
        self.absent: list[str] = []  # set by `trace`
        self.laid_over: LaidOver | None = None
        self.shapes: Any = None  # of a batch, set by `check`
        self.mesh = devices.make_mesh(**config.get("mesh", {}))
        self.slices, self.parts = microbatch.division(config, self.mesh.size)
        self.source = build(config.source, trusted, where="source")
        self.views = build(config.views, trusted, where="views")
        if len(self.source) < config.batch_size:
            raise InputError(
                f"batch_size={config.batch_size}, but {self.source!r} has only "
                f"{len(self.source)} examples"
            )
        self.steps = total_steps(config, len(self.source))
        self.data = {"source": identity(self.source)}
        with fits_together("optimizer"):
            self.optimizer = build(config.optimizer, trusted, where="optimizer")(
                steps=self.steps, batch_size=config.batch_size
            )
        self.objective = build(config.objective, trusted, where="objective")
        learnt_by = functools.partial(training_sources, config.to_dict(), trusted)
        self.evaluations = build_evaluations(specs_of(config), trusted, learnt_by)
        make_module = build(config.model, trusted, where="model")
        with fits_together("model"):
            self.abstract = abstract_module(make_module)
        decay = config.get("target_decay")
        self.seed = devices.put_replicated(np.uint32(config.seed), self.mesh)
        transformation = self.optimizer.transformation
        create = functools.partial(
            create_state, make_module, transformation, target_decay=decay
        )
        shapes = jax.eval_shape(create, self.seed)
        shardings = devices.of_state(shapes, self.mesh)
        whole, rows = devices.replicated(self.mesh), devices.rows(self.mesh)
        self.shape, self.fixed = jax.tree.map(
            lambda shape, sharding: shape.update(sharding=sharding), shapes, shardings
        )
        self.initial = jax.jit(
            create,
            out_shardings=shardings,
            compiler_options=devices.quickly_compiled(),
        )
        self.step = jax.jit(
            make_step(
                self.abstract.graph,
                self.objective,
                transformation,
                decay,
                healths,
                self.logged,
                self.slices,
                self.parts,
            ),
            in_shardings=(*shardings, rows, whole, whole),
            out_shardings=(shardings[0], whole),
            donate_argnums=0,
        )

    def logged(self, step: Any) -> Any:
        """As in `Learner`; `step` may be an array, since the compiled step calls it."""
        return (step % self.config.log_every == 0) | (step == 1) | (step == self.steps)

    def batches(
        self, start: int, steps: int | None = None, workers: int | None = None
    ) -> Iterator:
        """Generate the batches of this process from step `start`."""
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

        Sets `absent` to the modalities with a view that no row of this batch has.
        Raises InputError with the message of the objective, the model or the pipeline.
        """
        with fits_together("source and views"):
            _, batch = next(self.batches(0, steps=1, workers=0))
        present = {name: mask.any(0) for name, mask in batch["present"].items()}
        self.absent = [name for name, some in present.items() if not some.all()]
        processes = jax.process_count()
        # With the shardings of a step's arguments, so that it is not traced again.
        rows, whole = devices.rows(self.mesh), devices.replicated(self.mesh)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (x.shape[0] * processes, *x.shape[1:]),
                jax.dtypes.canonicalize_dtype(x.dtype),
                sharding=rows,
            ),
            batch,
        )
        number = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
        with fits_together("model, views and objective"):
            jax.eval_shape(self.step, self.shape, self.fixed, shapes, number, self.seed)
            own = self.shape.params, self.shape.statistics, self.fixed
            parts = Parts(self.abstract.graph, *own)
            check_outputs(self.objective, parts, shapes, self.source.targets)
        return shapes

    @property
    def samples(self) -> int:  # type: ignore[override]  # read-only
        """The number of views a step."""
        views = self.shapes["views"].values()
        return sum(self.config.batch_size * v.shape[1] for v in views)

    def check(self, workdir: Path) -> None:
        """Trace a step; for a new run, read the donors of its weights."""
        self.shapes = self.trace()
        if not saved_steps(workdir / "checkpoints"):
            self.read_donors()

    def read_donors(self) -> None:
        """Read the weights to start from. Raises InputError if that fails."""
        parts = self.shape.params, self.shape.statistics, self.fixed
        if entries := entries_of(self.config):
            # The user's own config is trusted: donors may call what it calls.
            own = tuple(str(name) for _, name in targets(self.config))
            module = merge_module(*self.abstract)
            self.laid_over = lay_over(entries, module, parts, own)

    def create(self, workdir: Path) -> TrainState:
        """Return the first state, with donors' weights; save the fixed weights."""
        state, fixed = self.initial(self.seed)
        made = state.params, state.statistics, fixed
        parts, self.fixed_record = begun(
            self.laid_over, made, workdir, self.config.seed
        )
        self.fixed = parts[-1]
        return state if self.laid_over is None else begin_with(state, *parts[:2])

    def template(self) -> TrainState:
        """Return the shapes of the state."""
        return self.shape

    def restored(
        self, workdir: Path, saved: TrainState, folder: Path, step: int
    ) -> TrainState:
        """Return the state of a checkpoint; read the fixed weights that it names."""
        # An untrusted config, as in a replay, must not choose files to read.
        known = self.fixed, self.config, self.trusted is None
        self.fixed, self.fixed_record = fixed_again(workdir, folder, *known)
        return saved

    def inputs(self, start: int) -> Generator[tuple]:
        """Generate batches on the devices, some steps ahead."""
        return prefetch(self.batches(start), self.mesh)

    def take(self, state: TrainState, inputs: Any) -> tuple[TrainState, dict]:
        """Take a step with a batch."""
        _, number, batch = inputs
        return self.step(state, self.fixed, batch, number, self.seed)

    def values(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics and the learning rate."""
        rate = float(self.optimizer.schedule(step - 1))
        return metrics | {"learning_rate": rate}

    def model(self, state: TrainState, step: int) -> Model:
        """Return the current model, not its moving average."""
        parts = Parts(self.abstract.graph, state.params, state.statistics, self.fixed)
        return Model(parts, devices.replicated(self.mesh))

    def banner(self, state: TrainState, start: int) -> dict[str, str]:
        """Return the banner: batch size, learning rate and length, with units."""
        return banner.lines(self, state, start)

    def told(self, inputs: Any) -> str:
        """Return a line with the rows of a batch."""
        return f"rows {np.asarray(inputs[2]['index']).tolist()}"


def healths(features: dict) -> dict:
    """Return the health of each tower's z, as metrics."""
    return {
        f"{name}/{measure}": value
        for name, own in features.items()
        for measure, value in health.health(own.z).items()
    }
