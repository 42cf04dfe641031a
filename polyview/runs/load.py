"""From the path of a run to its model: what probes, exports, fine-tunes begin with.

    from polyview.runs.load import load
    run = load("runs/a")
    h, _ = run.module.towers["image"].encoder(images, train=False)

Only the model is read; nothing of the optimiser.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from polyview.config.spec import build
from polyview.config.trust import allow_list
from polyview.errors import InputError, fits_together
from polyview.model import (
    Model,
    Parts,
    abstract_module,
    initialise_module,
    merge_module,
    split_module,
)
from polyview.runs import checkpoint
from polyview.runs.checksum import flatten
from polyview.runs.weights import read_fixed, under

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model out of a checkpoint, with the config it was trained by."""

    config: ConfigDict
    step: int
    parts: Parts

    @property
    def module(self) -> nnx.Module:
        """The model as an NNX module."""
        return merge_module(*self.parts)

    @property
    def arrays(self) -> dict[str, jax.Array]:
        """All arrays by their path in the module: trained, statistics and fixed."""
        return {n: a for part in self.parts[1:] for n, a in flatten(part).items()}


def load(
    run: str | Path,
    at: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    trust: tuple[str, ...] = (),
    weights: Sequence[Path] = (),
) -> Loaded:
    """Return the model of a run's newest undamaged checkpoint, or of step `at`.

    Only the model is read, onto `sharding` (one device by default). The checkpoint's
    config may call what each `trusted.txt` lists and the packages of `trust`, nothing
    else. weights: files of fixed weights, where the run names them by digest alone.
    Raises InputError when there is no such checkpoint.
    """

    def read_run(folder: Path, number: int) -> Loaded:
        if "views" not in checkpoint.read_config(folder):
            raise InputError(
                f"{run} is no run of polyview.main, but of a command that plays and "
                "evaluates by itself; use the commands of its package"
            )
        return read_model(folder, number, sharding, trust, weights)

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
    weights: Sequence[Path] = (),
) -> Loaded:
    """Return the model in one checkpoint's folder, as `load` does."""
    config = checkpoint.read_config(folder)
    parts = abstract_module(model_of(config, trust))
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(lambda shape: shape.update(sharding=sharding), parts[1:])
    return Loaded(
        config, number, Parts(parts.graph, *read_parts(folder, *template, weights))
    )


def read_parts(
    folder: Path,
    params: dict,
    statistics: dict,
    fixed: dict,
    weights: Sequence[Path] = (),
    within: str | None = None,
) -> tuple[dict, dict, dict]:
    """The arrays of a model in a checkpoint's folder, given their shapes.

    within: the key of the state below which they lie. In checkpoints of version 0.1
    fixed weights lie among the statistics.
    """
    record = checkpoint.fixed_record(folder)
    template = {"params": params, "statistics": statistics}
    old = record is None and bool(jax.tree.leaves(fixed))
    if old:
        template["statistics"] = _united(statistics, fixed)
    state = template if within is None else {within: template}
    state = checkpoint.read_state(folder, state)
    state = state if within is None else state[within]
    if old:
        return state["params"], *_parted(state["statistics"], statistics, fixed)
    fixed = read_fixed(folder.parents[1], record, fixed, weights)
    return state["params"], state["statistics"], fixed


def _united(one: dict, other: dict) -> dict:
    """Two nested dicts, that share no leaf, as one."""
    both = dict(one)
    for key, value in other.items():
        both[key] = _united(one[key], value) if key in one else value
    return both


def _parted(both: dict, *like: dict) -> list[dict]:
    """The inverse of `_united`."""

    def part(tree: Any, shape: Any) -> Any:
        if not isinstance(shape, dict):
            return tree
        return {key: part(tree[key], value) for key, value in shape.items()}

    return [part(both, shape) for shape in like]


def encoder_of(model: Loaded, modality: str) -> dict[str, jax.Array]:
    """The arrays of one encoder, trained, fixed or statistics, by name.

    Raises InputError for a modality that the model does not have.
    """
    path = f"towers.{modality}.encoder"
    found = {
        name.removeprefix(f"{path}."): array
        for name, array in model.arrays.items()
        if under(name, path)
    }
    if not found:
        there = sorted(model.config.model.get("towers", {}))
        raise InputError(
            f"the model has no modality '{modality}', only {', '.join(there)}; "
            "name one: --modality"
        )
    return found


def with_arrays(model: Loaded, arrays: Mapping[str, Any]) -> Loaded:
    """The model with other arrays at some paths, in the types of its own."""

    def filled(part: dict) -> dict:
        leaves = [
            jax.numpy.asarray(arrays.get(name, leaf), leaf.dtype)
            for name, leaf in flatten(part).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(part), leaves)

    parts = map(filled, model.parts[1:])
    return model._replace(parts=Parts(model.parts.graph, *parts))


def model_of(config, trust: tuple[str, ...] | None = ()) -> Callable[..., nnx.Module]:
    """Return `make_module(rngs=...)` of a checkpoint's config; trust=None trusts any.

    Raises InputError for a model that is not trusted.
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
    parts = abstract_module(make_module)

    def create():
        return split_module(initialise_module(make_module, config.seed))[1:]

    arrays = jax.jit(create, out_shardings=sharding)()
    return Loaded(config, 0, Parts(parts.graph, *arrays))


def shapes_of(config, trust: tuple[str, ...] | None = ()) -> Loaded:
    """Return the same model with `jax.ShapeDtypeStruct`s in the place of arrays."""
    return Loaded(config, 0, abstract_module(model_of(config, trust)))


def evaluated_model(model: Loaded, sharding: Any) -> Model:
    """Return what evaluations are given; what it returns lies on `sharding`."""
    return Model(model.parts, sharding)
