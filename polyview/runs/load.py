"""From the path of a run to its model: what probes, exports, fine-tunes begin with.

    from polyview.restore import load
    run = load("runs/a")
    h, _ = run.module.towers["image"].encoder(images, train=False)

Only the model is read; nothing of the optimiser.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from polyview.config.spec import build
from polyview.config.trust import allow_list
from polyview.errors import InputError, fits_together
from polyview.model import (
    abstract_module,
    initialise_module,
    make_represent,
    merge_module,
    split_module,
)
from polyview.runs import checkpoint
from polyview.training.step import TrainState

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model out of a checkpoint, with the config it was trained by."""

    config: ConfigDict
    step: int
    graph: nnx.GraphDef
    params: dict
    statistics: dict

    @property
    def module(self) -> nnx.Module:
        """The model as an NNX module."""
        return merge_module(self.graph, self.params, self.statistics)


def load(
    run: str | Path,
    at: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    trust: tuple[str, ...] = (),
) -> Loaded:
    """Return the model of a run's newest undamaged checkpoint, or of step `at`.

    Only parameters and statistics are read, onto `sharding` (one device by default).
    The checkpoint's config may call what each `trusted.txt` lists and the packages of
    `trust`, nothing else. Raises InputError when there is no such checkpoint.
    """

    def read_run(folder: Path, number: int) -> Loaded:
        if "views" not in checkpoint.read_config(folder):
            raise InputError(
                f"{run} is no run of polyview.main, but of a command that plays and "
                "evaluates by itself; for fine-tuned agents see sgi.report"
            )
        return read_model(folder, number, sharding, trust)

    return newest_checkpoint(run, at, read_run)


def newest_checkpoint(
    run: str | Path, at: int | None, read: Callable[[Path, int], Loaded]
) -> Loaded:
    """Return what `read(folder, step)` makes of a run's newest undamaged checkpoint, or
    of step `at`. Raises InputError when there is no such checkpoint."""
    folder = Path(run) / "checkpoints"
    steps = checkpoint.saved_steps(folder)
    if at is not None and at not in steps:
        raise InputError(f"{run} has no checkpoint of step {at}; it has {steps}")
    for number in [at] if at is not None else reversed(steps):
        try:
            with fits_together(f"what {folder / str(number)} holds"):
                return read(folder / str(number), number)
        except checkpoint.Damaged as damage:
            if at is not None:
                raise InputError(f"checkpoint {folder / str(at)}: {damage}") from damage
            log.warning("checkpoint %s skipped: %s", folder / str(number), damage)
    raise InputError(f"{run} has no checkpoint to load (looked in {folder})")


def read_model(
    folder: Path,
    number: int,
    sharding: jax.sharding.Sharding | None = None,
    trust: tuple[str, ...] = (),
) -> Loaded:
    """Return the model in one checkpoint's folder, as `load` does."""
    config = checkpoint.read_config(folder)
    graph, params, statistics = abstract_module(model_of(config, trust))
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        {"params": params, "statistics": statistics},
    )
    state = checkpoint.read_state(folder, template)
    return Loaded(config, number, graph, state["params"], state["statistics"])


def donate(run: str | Path, template: TrainState, sharding) -> TrainState:
    """Return the template with a run's encoders in the place of their shapes.

    Arrays go by their names, whether they are trained here or frozen; they are read
    onto `sharding`, then laid out as the template says. Raises InputError when the run
    has no checkpoint or another encoder.
    """
    found = load(run, sharding=sharding)
    parts = {"params": found.params, "statistics": found.statistics}
    donor = {
        name.partition(".")[2]: array
        for name, array in checkpoint.flatten(parts).items()
    }

    def overlay(tree):
        whole = taken(
            tree, donor, lambda name: ".encoder." in name, f"encoder of {run}"
        )
        return jax.tree.map(
            lambda x, leaf: x if x is leaf else jax.device_put(x, leaf.sharding),
            whole,
            tree,
        )

    return dataclasses.replace(
        template,
        params=overlay(template.params),
        statistics=overlay(template.statistics),
    )


def encoder_of(model: Loaded, modality: str) -> dict[str, jax.Array]:
    """The arrays of one encoder, trained, frozen or statistics, by name.

    Raises InputError for a modality that the model does not have.
    """
    parts = {"params": model.params, "statistics": model.statistics}
    prefix = f"towers.{modality}.encoder."
    names = {n.partition(".")[2]: a for n, a in checkpoint.flatten(parts).items()}
    found = {n.removeprefix(prefix): a for n, a in names.items() if prefix in n}
    if not found:
        there = sorted(model.config.model.get("towers", {}))
        raise InputError(
            f"the model has no modality '{modality}', only {', '.join(there)}; "
            "name one: --modality"
        )
    return found


def with_encoder(model: Loaded, modality: str, arrays: dict, what: str) -> Loaded:
    """The model with these arrays, by name, as one of its encoders.

    Raises InputError where one is absent or has another shape; `what` as in `taken`.
    """
    prefix = f"towers.{modality}.encoder."
    donor = {prefix + name: array for name, array in arrays.items()}

    def fill(tree):
        return taken(tree, donor, lambda name: name.startswith(prefix), what)

    return model._replace(params=fill(model.params), statistics=fill(model.statistics))


def taken(
    tree: dict, donor: dict[str, Any], wanted: Callable[[str], bool], what: str
) -> dict:
    """Return the tree with a donor's arrays in the place of the leaves that are wanted.

    donor: by name, as of `checkpoint.flatten`. Types are the tree's. Raises InputError
    for an array that is absent in the donor or has another shape; `what` says in the
    message whose arrays these are.
    """

    def replaced(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if not wanted(name):
            return leaf
        other = donor.get(name)
        if other is None or other.shape != leaf.shape:
            there = "absent" if other is None else other.shape
            raise InputError(
                f"the {what} does not fit this config: {name} is {there} there, "
                f"{leaf.shape} here"
            )
        return other.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(replaced, tree)


def model_of(config, trust: tuple[str, ...] | None = ()) -> Callable[..., nnx.Module]:
    """Return `make_module(rngs=...)` of a checkpoint's config; trust=None trusts any.

    Raises InputError for a model that is not trusted, or out of range.
    """
    if config.get("model") is None:
        raise InputError("the checkpoint's config has no model")
    trusted = None if trust is None else allow_list(trust)
    return build(config.model, trusted, where="model")


def untrained_model(
    config, sharding: jax.sharding.Sharding, trust: tuple[str, ...] | None = ()
) -> Loaded:
    """Return the same model before its first step: the random reference."""
    make_module = model_of(config, trust)
    graph, *_ = abstract_module(make_module)

    def create():
        return split_module(initialise_module(make_module, config.seed))[1:]

    params, statistics = jax.jit(create, out_shardings=sharding)()
    return Loaded(config, 0, graph, params, statistics)


def shapes_of(config, trust: tuple[str, ...] | None = ()) -> Loaded:
    """Return the same model with `jax.ShapeDtypeStruct`s in the place of arrays."""
    return Loaded(config, 0, *abstract_module(model_of(config, trust)))


def representer(model: Loaded, sharding: Any) -> Callable[[dict], dict]:
    """Return `represent(batch) -> {modality: Features}`, with outputs on `sharding`."""
    return functools.partial(
        _compiled(model.graph, sharding), model.params, model.statistics
    )


@functools.lru_cache(maxsize=8)
def _compiled(graph: nnx.GraphDef, sharding: Any) -> Callable:
    """One program for all checkpoints of a model."""
    return jax.jit(make_represent(graph), out_shardings=sharding)
