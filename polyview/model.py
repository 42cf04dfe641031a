"""A module as plain dicts of arrays, and the `Model` that evaluations call.

Only this file splits and merges modules. Outside of a traced function a model is its
structure and three dicts, by the type of their variables:

    params      trained: `nnx.Param`
    statistics  written by forward passes in training, as BatchNorm's: all others
    fixed       never written: `polyview.nn.fixed.Fixed`
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from polyview.devices import gather, splits_weights
from polyview.nn.fixed import Fixed
from polyview.nn.taps import Activation, activations, outputs


class Parts(NamedTuple):
    """A module split by `split_module`; the dicts are plain and nested."""

    graph: nnx.GraphDef
    params: dict
    statistics: dict
    fixed: dict


def split_module(module: nnx.Module) -> Parts:
    """Return a module's structure, and its arrays as plain dicts."""
    graph, *states = nnx.split(module, nnx.Param, Fixed, ...)
    params, fixed, statistics = map(nnx.to_pure_dict, states)
    return Parts(graph, params, statistics, fixed)


def merge_module(
    graph: nnx.GraphDef, params: dict, statistics: dict, fixed: dict | None = None
) -> nnx.Module:
    """Return the module that `split_module` split.

    If the mesh in scope splits weights, each is gathered when a layer reads it.
    """
    # Without the copy, BatchNorm would write into arrays of an outer trace.
    module = nnx.merge(graph, params, statistics, fixed or {}, copy=True)
    if splits_weights():
        for _, part in nnx.iter_graph(module):
            if isinstance(part, nnx.Variable):
                part.set_metadata(on_get_value=_gathered)
    return module


def _gathered(variable: nnx.Variable, value: Any) -> Any:
    """Gather a weight that a layer reads whole; leave a row of a table as it is."""
    raw = variable.get_raw_value()
    whole = isinstance(value, jax.Array) and value.shape == raw.shape
    return gather(value) if whole else value


def abstract_module(make_module: Callable[..., nnx.Module]) -> Parts:
    """Return `split_module` of the module, with shapes instead of arrays."""
    return split_module(nnx.eval_shape(lambda: make_module(rngs=nnx.Rngs(0))))


def initialise_module(
    make_module: Callable[..., nnx.Module], seed: jax.Array
) -> nnx.Module:
    """Return the module initialised from a seed."""
    # Key 0 is for the parameters, 1 for the noise of the steps.
    return make_module(rngs=nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 0)))


class Model:
    """A module with its weights, for evaluation.

    `model(batch) -> {name: Features}` has no noise and uses running statistics. It is
    compiled once for all models of one structure; outputs have `sharding`.
    """

    def __init__(self, parts: Parts, sharding: Any):
        self.parts, self.sharding = parts, sharding

    def __call__(self, batch: Mapping) -> dict[str, Any]:
        """Return the features of a batch by modality."""
        return self._compiled(_features)(*self.parts[1:], batch)

    def drawn(self, batch: Mapping, key: jax.Array) -> dict[str, Any]:
        """Return the features of one pass with the noise of the model's dropout.

        Running statistics are used, and there is no photometry. Without dropout every
        key gives the features of `model(batch)`.
        """
        return self._compiled(_drawn)(*self.parts[1:], batch, key)

    def taps(self, batch: Mapping, paths: Sequence[str]) -> dict[str, Any]:
        """Return outputs of modules and activations by path: see `polyview.nn.taps`.

        Raises ValueError if there is nothing at a path, or if it is not called.
        """
        return self._compiled(_taps, tuple(paths))(*self.parts[1:], batch)

    def activations(self, batch: Mapping) -> list[Activation]:
        """Return the activations that a batch passes, in order; `taps` reads them."""
        module = merge_module(*self.parts)
        return activations(module, lambda: _features(module, batch))

    def call(self, method: str, *arguments: Any) -> Any:
        """Return `module.METHOD(*arguments)`, for example of a sampler or a policy.

        Raises ValueError if the name, which a config may give, is not public.
        """
        if not method.isidentifier() or method.startswith("_"):
            raise ValueError(f"{method!r} is not a public method of a model")
        return self._compiled(_method, method)(*self.parts[1:], *arguments)

    def _compiled(self, use: Callable, *static: Any) -> Callable:
        return _compiled(self.parts.graph, self.sharding, use, *static)


@functools.lru_cache(maxsize=24)
def _compiled(graph: nnx.GraphDef, sharding: Any, use: Callable, *static: Any) -> Any:
    """Compile `use(module, *static, *arguments)`, given the parts of the module."""

    def call(params: dict, statistics: dict, fixed: dict, *arguments: Any) -> Any:
        module = merge_module(graph, params, statistics, fixed)
        return use(module, *static, *arguments)

    return jax.jit(call, out_shardings=sharding)


def _features(module: nnx.Module, batch: Mapping) -> dict[str, Any]:
    return module(batch, key=None, train=False)


def _drawn(module: nnx.Module, batch: Mapping, key: jax.Array) -> dict[str, Any]:
    return module(batch, key=key, train=False)


def _method(module: nnx.Module, name: str, *arguments: Any) -> Any:
    return getattr(module, name)(*arguments)


def _taps(module: nnx.Module, paths: tuple[str, ...], batch: Mapping) -> dict[str, Any]:
    return outputs(module, lambda: _features(module, batch), paths)
