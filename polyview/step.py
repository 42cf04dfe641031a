"""One training step as a pure function; the only file that splits and merges modules.

Outside this file a model is two plain dicts of arrays, `params` and `statistics`;
inside a step it is an NNX module again. Nothing is hidden: the key of step t is
`fold_in(key(seed), t)`, so a state carries no key, and a resumed run draws the same.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from polyview import microbatch
from polyview.objectives.base import Module, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries from one step to the next.

    step: int32[], updates done. params, statistics: dicts of arrays. optimizer: optax's
    state. target: {"params", "statistics"}, an exponential moving average of both, or
    None.
    """

    step: jax.Array
    params: dict
    statistics: dict
    optimizer: optax.OptState
    target: dict | None


def split(module: nnx.Module) -> tuple[nnx.GraphDef, dict, dict]:
    """Return a module's structure, its parameters and its statistics (plain dicts)."""
    graph, params, statistics = nnx.split(module, nnx.Param, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)


def merge(graph: nnx.GraphDef, params: dict, statistics: dict) -> nnx.Module:
    """Return the module that `split` took apart."""
    # Without the copy, BatchNorm would write into arrays of an outer trace.
    return nnx.merge(graph, params, statistics, copy=True)


def abstract(make_module: Callable[..., nnx.Module]) -> tuple[nnx.GraphDef, dict, dict]:
    """Return what `split` would, shapes in place of arrays: nothing is computed."""
    return split(nnx.eval_shape(lambda: make_module(rngs=nnx.Rngs(0))))


def initialise(make_module: Callable[..., nnx.Module], seed: jax.Array) -> nnx.Module:
    """Return the module of a seed, before any step."""
    # 0 for the parameters, 1 for the noise of the steps: no key serves twice.
    return make_module(rngs=nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 0)))


def create(
    make_module: Callable[..., nnx.Module],
    optimizer: optax.GradientTransformation,
    seed: jax.Array,
    target_decay: float | None = None,
) -> TrainState:
    """Return the state before the first step; jit it, or ask `jax.eval_shape`."""
    _, params, statistics = split(initialise(make_module, seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=statistics,
        optimizer=optimizer.init(params),
        target=_averaged(params, statistics) if target_decay is not None else None,
    )


def make_step(
    graph: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    target_decay: float | None = None,
    inspect: Callable[[dict], dict] = lambda features: {},
    inspected: Callable[[jax.Array], jax.Array] = lambda done: jnp.bool_(False),
    slices: int = 1,
    parts: int = 1,
) -> Callable:
    """Return `step(state, batch, number, seed) -> (state, metrics)`, to be jitted.

    number: int32[], the step the batch was drawn for. When anything is not finite, or
    `number` is not the state's own, the old state is returned and `metrics["healthy"]`
    is False: every later call then does the same, until the caller has read the flag.
    inspect: the objective's `features` -> more metrics, computed where
    `inspected(steps done)` and zero elsewhere. slices, parts: of the batch, one after
    another, as in `microbatch`.
    """

    def step(state: TrainState, batch: dict, number: jax.Array, seed: jax.Array):
        noise = jax.random.fold_in(jax.random.key(seed), 1)
        key = jax.random.fold_in(noise, state.step)

        def loss_of(params: dict, statistics: dict, batch: dict):
            module = merge(graph, **gather(_averaged(params, statistics)))
            target = state.target and merge(graph, **gather(state.target))
            modules = sliced(module, slices), sliced(target, slices)
            loss, metrics = objective(*modules, batch, key)
            features = metrics.pop("features", {})
            return loss, (split(module)[2], {**metrics, "loss": loss}, features)

        gradient_of = microbatch.mean_of_parts(jax.grad(loss_of, has_aux=True), parts)
        gradients, (statistics, metrics, features) = gradient_of(
            state.params, state.statistics, batch
        )
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, updates)
        target = state.target
        if target is not None:
            target = optax.incremental_update(
                _averaged(params, statistics), target, 1 - target_decay
            )
        new = TrainState(state.step + 1, params, statistics, optimizer_state, target)

        norm = optax.tree.norm(gradients)
        healthy = _all_finite((metrics["loss"], norm, new)) & (number == state.step)
        new = jax.tree.map(lambda n, o: jnp.where(healthy, n, o), new, state)
        metrics |= {"gradient_norm": norm, "healthy": healthy}
        return new, metrics | when(inspected(state.step + 1), inspect, features)

    return step


@jax.custom_vjp
def gather(arrays: dict) -> dict:
    """Return sharded arrays whole on every device of the mesh in scope, if any.

    The step gathers weights before it uses them (fully sharded data parallelism;
    Rajbhandari et al. 2020): left alone, the compiler gathers activations instead where
    those of a slice are smaller. Gradients are free to stay sharded.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, PartitionSpec())


gather.defvjp(
    lambda arrays: (gather(arrays), None), lambda _, cotangents: (cotangents,)
)


def sliced(module: nnx.Module | None, slices: int) -> Module | None:
    """Return the module as a function that encodes a batch slice after slice."""
    if module is None or slices == 1:
        return module
    graph, params, statistics = split(module)

    def encode(batch: dict, *, key: jax.Array | None, train: bool):
        copy = merge(graph, params, statistics)
        features = copy(batch, key=key, train=train)
        microbatch.refuse_written(statistics, split(copy)[2])
        return features

    return microbatch.in_slices(encode, slices)


def make_represent(graph: nnx.GraphDef) -> Callable:
    """Return `represent(params, statistics, batch) -> {name: Features}`: no noise, and
    BatchNorm by its running statistics."""

    def represent(params: dict, statistics: dict, batch: dict):
        module = merge(graph, **gather(_averaged(params, statistics)))
        return module(batch, key=None, train=False)

    return represent


def when(condition: jax.Array, function: Callable, argument):
    """Return `function(argument)` where the condition holds, else zeros; only the one
    that is wanted is computed."""
    shapes = jax.eval_shape(function, argument)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.cond(condition, function, lambda _: zeros, argument)


def _averaged(params: dict, statistics: dict) -> dict:
    return {"params": params, "statistics": statistics}


def _all_finite(tree) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))
