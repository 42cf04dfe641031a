"""One training step: a pure function of the state, fixed weights and a batch.

The key of step t is `fold_in(fold_in(key(seed), 1), t)`. A state therefore carries no
key, and a resumed run draws the same noise.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from polyview.model import initialise_module, merge_module, split_module
from polyview.objectives.base import Module, Objective
from polyview.training import microbatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a run carries from one step to the next.

    step: int32[], updates done. params, statistics: dicts of arrays. optimizer: optax's
    state. target: {"params", "statistics"}, an exponential moving average of both, or
    None. Fixed weights are not part of it; a step takes them as an argument.
    """

    step: jax.Array
    params: dict
    statistics: dict
    optimizer: optax.OptState
    target: dict | None


def create_state(
    make_module: Callable[..., nnx.Module],
    optimizer: optax.GradientTransformation,
    seed: jax.Array,
    target_decay: float | None = None,
) -> tuple[TrainState, dict]:
    """Return the first state and the fixed weights; for `jit` or `eval_shape`."""
    _, params, statistics, fixed = split_module(initialise_module(make_module, seed))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=statistics,
        optimizer=optimizer.init(params),
        target=_averaged(params, statistics) if target_decay is not None else None,
    )
    return state, fixed


def begin_with(state: TrainState, params: dict, statistics: dict) -> TrainState:
    """Return a state before its first step with other weights, also in its average."""
    target = state.target
    if target is not None:
        target = jax.tree.map(jnp.copy, _averaged(params, statistics))
    return dataclasses.replace(
        state, params=params, statistics=statistics, target=target
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
    """Return `step(state, fixed, batch, number, seed) -> (state, metrics)`, for `jit`.

    fixed: the weights that no step changes; do not donate them. number: int32[], the
    step for which the batch was drawn. If the loss, a gradient or a statistic is not
    finite, or `number` differs from the state's step, the old state is returned and
    `metrics["healthy"]` is False. Every later step is then rejected too, so the caller
    may read the flag late. If only the updated parameters are not finite (a learning
    rate near the largest float), the flag is False but the new state is returned.
    inspect: the objective's `features` -> more metrics, computed if
    `inspected(steps done)`, else zero. slices, parts: see `microbatch`.
    """

    def step(
        state: TrainState,
        fixed: dict,
        batch: dict,
        number: jax.Array,
        seed: jax.Array,
    ) -> tuple[TrainState, dict]:
        noise = jax.random.fold_in(jax.random.key(seed), 1)
        key = jax.random.fold_in(noise, state.step)

        def loss_of(
            params: dict, statistics: dict, batch: dict
        ) -> tuple[jax.Array, tuple[dict, dict, dict]]:
            module = merge_module(graph, params, statistics, fixed)
            target = None
            if state.target is not None:
                average = merge_module(graph, **state.target, fixed=fixed)
                target = sliced(average, slices)
            loss, metrics = objective(sliced(module, slices), target, batch, key)
            features: Any = metrics.pop("features", {})
            statistics = split_module(module).statistics
            return loss, (statistics, {**metrics, "loss": loss}, features)

        gradient_of = jax.grad(loss_of, has_aux=True)
        gradient_of = microbatch.mean_of_parts(gradient_of, parts)
        gradients, (statistics, metrics, features) = gradient_of(
            state.params, state.statistics, batch
        )
        norm = optax.tree.norm(gradients)
        healthy = _all_finite((metrics["loss"], norm, statistics))
        healthy &= number == state.step

        def updated(state: TrainState) -> tuple[TrainState, jax.Array]:
            updates, optimizer_state = optimizer.update(
                gradients, state.optimizer, state.params
            )
            params = optax.apply_updates(state.params, updates)
            target = state.target
            if target is not None:
                target = optax.incremental_update(
                    _averaged(params, statistics),
                    target,
                    1 - target_decay,  # type: ignore[operator]  # set with a target
                )
            step = state.step + 1
            new = TrainState(step, params, statistics, optimizer_state, target)
            return new, _all_finite(params)

        # A branch updates its donated arrays in place. To choose between all new and
        # all old arrays would need both: several times the traffic with memory.
        new, finite = jax.lax.cond(
            healthy, updated, lambda old: (old, jnp.bool_(True)), state
        )
        healthy &= finite
        metrics |= {"gradient_norm": norm, "healthy": healthy}
        return new, metrics | when(inspected(state.step + 1), inspect, features)

    return step


def sliced(module: nnx.Module, slices: int) -> Module:
    """Return the module as a function that encodes a batch slice by slice."""
    if slices == 1:
        return module
    separate = split_module(module)

    def encode(batch: dict, *, key: jax.Array | None, train: bool) -> Mapping:
        copy = merge_module(*separate)
        features = copy(batch, key=key, train=train)
        after = split_module(copy).statistics
        microbatch.refuse_written(separate.statistics, after)
        return features

    return microbatch.in_slices(encode, slices)


def when(condition: jax.Array, function: Callable, argument: Any) -> Any:
    """Return `function(argument)`, computed only if the condition holds, or zeros."""
    shapes = jax.eval_shape(function, argument)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.cond(condition, function, lambda _: zeros, argument)


def _averaged(params: dict, statistics: dict) -> dict:
    return {"params": params, "statistics": statistics}


def _all_finite(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats], bool))
