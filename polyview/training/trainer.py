"""The learner of a data pipeline: a config's source, views, model and objective."""

import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from polyview import devices
from polyview.config.schema import check_config, total_steps
from polyview.config.spec import build
from polyview.config.trust import targets
from polyview.data import pipeline
from polyview.errors import InputError, fits_together
from polyview.evaluation import health
from polyview.evaluation.base import specs_of
from polyview.model import Model, Parts, abstract_module, merge_module
from polyview.runs.checkpoint import fixed_record, saved_steps
from polyview.runs.evaluating import build_evaluations
from polyview.runs.init import entries_of, lay_over
from polyview.runs.weights import keep_fixed, read_fixed
from polyview.training import banner, microbatch
from polyview.training.learner import Learner
from polyview.training.prefetch import prefetch
from polyview.training.step import TrainState, begin_with, create_state, make_step


class Trainer(Learner):
    """Everything a config describes, built and checked; nothing is compiled yet.

    trusted: what an untrusted config may call (`polyview.config.trust`); None is any.
    """

    def __init__(self, config, trusted: frozenset[str] | None = None):
        check_config(config)
        self.config, self.trusted = config, trusted
        self.absent = []  # see `trace`
        self.laid_over = self.shapes = None
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
        with fits_together("optimizer"):
            self.optimizer = build(config.optimizer, trusted, where="optimizer")(
                steps=self.steps, batch_size=config.batch_size
            )
        self.objective = build(config.objective, trusted, where="objective")
        self.evaluations = build_evaluations(specs_of(config), trusted)
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
        self.initial = jax.jit(create, out_shardings=shardings)
        self.step = jax.jit(
            make_step(
                self.abstract.graph,
                self.objective,
                transformation,
                decay,
                looks,
                self.logged,
                self.slices,
                self.parts,
            ),
            in_shardings=(*shardings, rows, whole, whole),
            out_shardings=(shardings[0], whole),
            donate_argnums=0,
        )

    def logged(self, step):
        """As in `Learner`, for an array too: the compiled step asks what to inspect."""
        return (step % self.config.log_every == 0) | (step == 1) | (step == self.steps)

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
        present = {name: mask.any(0) for name, mask in batch["present"].items()}
        self.absent = [name for name, some in present.items() if not some.all()]
        processes = jax.process_count()
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (x.shape[0] * processes, *x.shape[1:]),
                jax.dtypes.canonicalize_dtype(x.dtype),
            ),
            batch,
        )
        number = jax.ShapeDtypeStruct((), np.int32)
        with fits_together("model, views and objective"):
            jax.eval_shape(self.step, self.shape, self.fixed, shapes, number, self.seed)
        return shapes

    @property
    def samples(self) -> int:
        """Views that a step takes."""
        views = self.shapes["views"].values()
        return sum(self.config.batch_size * v.shape[1] for v in views)

    def check(self, workdir: Path) -> None:
        """Trace a step; read the donors of a run that is yet to begin."""
        self.shapes = self.trace()
        if not saved_steps(workdir / "checkpoints"):
            self.read_donors()

    def read_donors(self) -> None:
        """Read what the config begins with. Raises InputError where that cannot be."""
        parts = self.shape.params, self.shape.statistics, self.fixed
        if entries := entries_of(self.config):
            # A donor may call what this config, the user's own, calls itself.
            own = tuple(str(name) for _, name in targets(self.config))
            module = merge_module(*self.abstract)
            self.laid_over = lay_over(entries, module, parts, own)

    def create(self, workdir: Path) -> TrainState:
        """The state before the first step, donors laid over; keep the fixed weights."""
        state, fixed = self.initial(self.seed)
        source, referenced = f"seed {self.config.seed}", []
        if (laid := self.laid_over) is not None:
            made = state.params, state.statistics, fixed
            params, statistics, fixed = laid.over(made)
            state = begin_with(state, params, statistics)
            source, referenced = f"{laid}", laid.referenced
        self.fixed = fixed
        self.fixed_record = keep_fixed(workdir, fixed, referenced, source)
        return state

    def template(self) -> TrainState:
        """The shapes of the state."""
        return self.shape

    def restored(
        self, workdir: Path, saved: TrainState, folder: Path, step: int
    ) -> TrainState:
        """The state of a checkpoint; the fixed weights are those that it names."""
        self.fixed_record = fixed_record(folder) or []
        # A config that is not trusted, as in a replay, does not say what is read.
        entries = entries_of(self.config) if self.trusted is None else []
        files = [Path(e.donor) for e in entries if Path(e.donor).is_file()]
        self.fixed = read_fixed(workdir, self.fixed_record, self.fixed, files)
        return saved

    def inputs(self, start: int) -> Iterator:
        """Batches on the devices, some steps ahead."""
        return prefetch(self.batches(start), self.mesh)

    def take(self, state: TrainState, inputs) -> tuple[TrainState, dict]:
        """Take a step with a batch."""
        _, number, batch = inputs
        return self.step(state, self.fixed, batch, number, self.seed)

    def values(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics and the learning rate."""
        rate = float(self.optimizer.schedule(step - 1))
        return metrics | {"learning_rate": rate}

    def model(self, state: TrainState, step: int) -> Model:
        """The model as it stands, without its average."""
        parts = Parts(self.abstract.graph, state.params, state.statistics, self.fixed)
        return Model(parts, devices.replicated(self.mesh))

    def banner(self, state: TrainState, start: int) -> dict[str, str]:
        """What is about to run, in the units that people confuse."""
        return banner.lines(self, state, start)

    def told(self, inputs) -> str:
        """The rows of a batch."""
        return f"rows {np.asarray(inputs[2]['index']).tolist()}"


def looks(features: dict) -> dict:
    """The health of what each tower returned, as metrics."""
    return {
        f"{name}/{measure}": value
        for name, of in features.items()
        for measure, value in health.health(of.z).items()
    }
