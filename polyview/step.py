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

from polyview.objectives.base import Objective


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
) -> Callable:
    """Return `step(state, batch, number, seed) -> (state, metrics)`, to be jitted.

    number: int32[], the step the batch was drawn for. When anything is not finite, or
    `number` is not the state's own, the old state is returned and `metrics["healthy"]`
    is False: every later call then does the same, until the caller has read the flag.
    inspect: the objective's `features` -> more metrics, computed where
    `inspected(steps done)` and zero elsewhere.
    """

    def step(state: TrainState, batch: dict, number: jax.Array, seed: jax.Array):
        noise = jax.random.fold_in(jax.random.key(seed), 1)
        key = jax.random.fold_in(noise, state.step)

        def loss_of(params: dict):
            module = merge(graph, params, state.statistics)
            target = None if state.target is None else merge(graph, **state.target)
            loss, metrics = objective(module, target, batch, key)
            return loss, (split(module)[2], metrics)

        (loss, (statistics, metrics)), gradients = jax.value_and_grad(
            loss_of, has_aux=True
        )(state.params)
        features = metrics.pop("features", {})
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
        healthy = _all_finite((loss, norm, new)) & (number == state.step)
        new = jax.tree.map(lambda n, o: jnp.where(healthy, n, o), new, state)
        metrics = {"loss": loss, **metrics, "gradient_norm": norm, "healthy": healthy}
        return new, metrics | when(inspected(state.step + 1), inspect, features)

    return step


def make_represent(graph: nnx.GraphDef) -> Callable:
    """Return `represent(params, statistics, batch) -> {name: Features}`: no noise, and
    BatchNorm by its running statistics."""

    def represent(params: dict, statistics: dict, batch: dict):
        return merge(graph, params, statistics)(batch, key=None, train=False)

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
