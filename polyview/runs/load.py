"""From the path of a run to its model; the optimiser's state is not read.

run = polyview.load("runs/a")
features = run.encode("photos/")
encoder = run.module.towers["image"].encoder
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from polyview import devices
from polyview.config.spec import build
from polyview.config.trust import allow_list
from polyview.errors import InputError, fits_together, nearest
from polyview.model import (
    Model,
    Parts,
    abstract_module,
    initialise_module,
    merge_module,
    split_module,
)
from polyview.runs import checkpoint, encoding
from polyview.runs.checksum import flatten
from polyview.runs.weights import read_fixed, under

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Loaded:
    """A model from a checkpoint, with the config that trained it.

    Attributes:
      config: the resolved config of the run.
      step: the step of the checkpoint.
      parts: structure and arrays, as `polyview.model.split_module` returns them.
      trust: packages that the config may name beside this project's.
    """

    config: ConfigDict
    step: int
    parts: Parts
    trust: tuple[str, ...] = ()

    @property
    def module(self) -> nnx.Module:
        """The model as an NNX module."""
        return merge_module(*self.parts)

    @property
    def arrays(self) -> dict[str, jax.Array]:
        """All arrays by their path in the module: trained, statistics and fixed."""
        return {n: a for part in self.parts[1:] for n, a in flatten(part).items()}

    def encode(
        self,
        data: Any,
        *,
        features: str = "h",
        modality: str | None = None,
        batch_size: int = 256,
    ) -> np.ndarray:
        """Return the features of every row of `data`, in order: float32[n, d'].

        Rows are decoded, resized, normalised and checked as the run's evaluation does,
        on all devices; several processes must all call this. Where a row has several
        views the mean of their features is taken.

        Args:
          data: a folder of images (sorted by path, as `polyview.Folder(data).files`),
            "NAME:SPLIT" of a prepared data set, "config.KEY" of a source in the run's
            config, one path or a sequence of paths, images (of Pillow, encoded bytes
            or arrays [h, w, c], of any sizes), an array [n, ...] with one axis more
            than a view of the run (so [n, h, w, c] for images), or a source
            (`polyview.data.sources.protocol`) with the fields of the run's data.
          features: "h", the representation, or "z", the projection that losses compare.
          modality: the modality to encode; by default that of the run's evaluation.
          batch_size: rows a step, on all devices together.

        Raises InputError for data of another shape or type than the run's, a file that
        cannot be read, a row without a view of the modality, and a run whose config has
        no evaluation that says how examples are seen.
        """
        return encoding.encode(
            self._everywhere,
            self.config,
            data,
            features=features,
            modality=modality,
            batch_size=batch_size,
            trust=self.trust,
        )

    @cached_property
    def _everywhere(self) -> Model:
        """The model with a copy of its arrays on each device."""
        mesh = devices.make_mesh()
        graph, *arrays = self.parts
        copies = (devices.put_replicated(part, mesh) for part in arrays)
        return Model(Parts(graph, *copies), devices.replicated(mesh))

    def __repr__(self) -> str:
        names = ("trained", "statistics", "fixed")
        parts = zip(names, map(jax.tree.leaves, self.parts[1:]), strict=True)
        counts = [
            f"{sum(leaf.size for leaf in leaves):,} {name}" for name, leaves in parts
        ]
        lines = [
            f"Loaded(step {self.step}; numbers: {', '.join(counts)})",
            f"  model {self.config.model.get('partial', 'of several parts')}",
        ]
        towers = self.config.model.get("towers", {})
        for name, tower in list(towers.items())[:_TOWERS]:
            lines.append(f"  {name}: {tower.encoder.get('partial', 'encoder')}")
        if len(towers) > _TOWERS:
            lines.append(f"  and {len(towers) - _TOWERS} more modalities")
        return "\n".join(lines)


_TOWERS = 8  # in a description


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
        if not {"views", "environment"} & set(checkpoint.read_config(folder)):
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
    params, statistics, fixed = jax.tree.map(
        lambda shape: shape.update(sharding=sharding), parts[1:]
    )
    arrays = read_parts(folder, params, statistics, fixed, weights)
    return Loaded(config, number, Parts(parts.graph, *arrays), trust)


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


def model_at(model: Model, path: str) -> Model:
    """The model of a module within a model, such as "policies.maze".

    Raises InputError for a path without a module.
    """
    whole = merge_module(*model.parts)
    known = {".".join(map(str, at)): part for at, part in nnx.iter_modules(whole)}
    if path not in known:
        raise InputError(f"the model has no part {path}{nearest(path, known)}")
    return Model(split_module(known[path]), model.sharding)


def with_arrays(model: Loaded, arrays: Mapping[str, Any]) -> Loaded:
    """The model with other arrays at some paths, in the types of its own."""

    def filled(part: dict) -> dict:
        leaves = [
            jax.numpy.asarray(arrays.get(name, leaf), leaf.dtype)
            for name, leaf in flatten(part).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(part), leaves)

    parts = map(filled, model.parts[1:])
    return replace(model, parts=Parts(model.parts.graph, *parts))


def model_of(
    config: ConfigDict, trust: tuple[str, ...] | None = ()
) -> Callable[..., nnx.Module]:
    """Return `make_module(rngs=...)` of a checkpoint's config; trust=None trusts any.

    Raises InputError for a model that is not trusted.
    """
    if config.get("model") is None:
        raise InputError("the checkpoint's config has no model")
    trusted = None if trust is None else allow_list(trust)
    return build(config.model, trusted, where="model")


def untrained_model(
    config: ConfigDict,
    sharding: jax.sharding.Sharding,
    trust: tuple[str, ...] | None = (),
) -> Loaded:
    """Return the same model before its first step: the random reference."""
    make_module = model_of(config, trust)
    parts = abstract_module(make_module)

    def create() -> tuple:
        return split_module(initialise_module(make_module, config.seed))[1:]

    arrays = jax.jit(create, out_shardings=sharding)()
    return Loaded(config, 0, Parts(parts.graph, *arrays), trust or ())


def shapes_of(config: ConfigDict, trust: tuple[str, ...] | None = ()) -> Loaded:
    """Return the same model with `jax.ShapeDtypeStruct`s in the place of arrays."""
    return Loaded(config, 0, abstract_module(model_of(config, trust)), trust or ())


def evaluated_model(model: Loaded, sharding: Any) -> Model:
    """Return what evaluations are given; what it returns lies on `sharding`."""
    return Model(model.parts, sharding)


def frozen_model(run: str) -> Model:
    """Return the newest model of a run, for evaluations that combine runs."""
    whole = devices.replicated(devices.make_mesh())
    return evaluated_model(load(run, None, whole), whole)
