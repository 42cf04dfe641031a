"""A module as plain dicts of arrays, and as what evaluations are given.

The only file that splits and merges modules. Outside of a traced function a model is
its structure and three dicts, by the type of their variables:

    params      trained: `nnx.Param`
    statistics  written while training runs forward, as BatchNorm's: all other variables
    fixed       never written: `polyview.nn.fixed.Fixed`
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from polyview.devices import gather, splits_weights
from polyview.errors import nearest
from polyview.nn.fixed import Fixed


class Parts(NamedTuple):
    """What `split_module` makes of a module; the dicts are plain and nested."""

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
    """Return the module that `split_module` took apart.

    Where the mesh in scope splits weights, each is gathered where a layer reads it.
    """
    # Without the copy, BatchNorm would write into arrays of an outer trace.
    module = nnx.merge(graph, params, statistics, fixed or {}, copy=True)
    if splits_weights():
        for _, part in nnx.iter_graph(module):
            if isinstance(part, nnx.Variable):
                part.set_metadata(on_get_value=_gathered)
    return module


def _gathered(variable: nnx.Variable, value: Any) -> Any:
    """A weight as a layer reads it, one row of a table as it is."""
    of = variable.get_raw_value()
    whole = isinstance(value, jax.Array) and value.shape == of.shape
    return gather(value) if whole else value


def abstract_module(make_module: Callable[..., nnx.Module]) -> Parts:
    """Return what `split_module` would, shapes in place of arrays."""
    return split_module(nnx.eval_shape(lambda: make_module(rngs=nnx.Rngs(0))))


def initialise_module(
    make_module: Callable[..., nnx.Module], seed: jax.Array
) -> nnx.Module:
    """Return the module of a seed, before any step."""
    # 0 for the parameters, 1 for the noise of the steps: no key serves twice.
    return make_module(rngs=nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 0)))


class Model:
    """A module with its weights, as evaluations are given it.

    `model(batch) -> {name: Features}`, without noise and by running statistics. Its
    functions are compiled once for all models of one structure; what they return lies
    on `sharding`.
    """

    def __init__(self, parts: Parts, sharding: Any):
        self._parts, self._sharding = parts, sharding

    def __call__(self, batch: Mapping) -> dict[str, Any]:
        """The features of a batch."""
        return self._compiled(_features)(*self._parts[1:], batch)

    def taps(self, batch: Mapping, paths: Sequence[str]) -> dict[str, Any]:
        """What modules return for a batch, by path, as "towers.image.encoder".

        A module that is called several times gives its last value. Raises ValueError
        for a path at which there is none, or that is not called.
        """
        return self._compiled(_taps, tuple(paths))(*self._parts[1:], batch)

    def call(self, method: str, *arguments) -> Any:
        """What `module.METHOD(*arguments)` returns, as a sampler or a policy does.

        Raises ValueError for a name that is not public: it may come from a config.
        """
        if not method.isidentifier() or method.startswith("_"):
            raise ValueError(f"{method!r} is no public method of a model")
        return self._compiled(_method, method)(*self._parts[1:], *arguments)

    def _compiled(self, use: Callable, *static) -> Callable:
        return _compiled(self._parts.graph, self._sharding, use, *static)


@functools.lru_cache(maxsize=24)
def _compiled(graph: nnx.GraphDef, sharding: Any, use: Callable, *static) -> Callable:
    """`use(module, *static, *arguments)`, given the parts of the module."""

    def call(params, statistics, fixed, *arguments):
        module = merge_module(graph, params, statistics, fixed)
        return use(module, *static, *arguments)

    return jax.jit(call, out_shardings=sharding)


def _features(module: nnx.Module, batch: Mapping) -> dict[str, Any]:
    return module(batch, key=None, train=False)


def _method(module: nnx.Module, name: str, *arguments) -> Any:
    return getattr(module, name)(*arguments)


def _taps(module: nnx.Module, paths: tuple[str, ...], batch: Mapping) -> dict[str, Any]:
    parts = {".".join(map(str, path)): part for path, part in nnx.iter_modules(module)}
    found: dict[str, Any] = {}
    for path in paths:
        if path not in parts:
            raise ValueError(
                f"the model has no module at {path!r}{nearest(path, parts)}"
            )
        _tap(parts[path], path, found)
    module(batch, key=None, train=False)
    if silent := [path for path in paths if path not in found]:
        raise ValueError(f"the module at {silent[0]!r} is not called")
    return found


def _tap(module: nnx.Module, path: str, found: dict[str, Any]) -> None:
    """Let a module, a copy of its own, put what it returns into `found`."""
    kind = type(module)

    class Tapped(kind):
        def __call__(self, *arguments, **options):
            found[path] = kind.__call__(self, *arguments, **options)
            return found[path]

    object.__setattr__(module, "__class__", Tapped)
