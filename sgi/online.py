"""Agents that learn while they play: one step on the device, for all seeds.

At step t an agent has chosen action t for its current frame. The emulator takes it.
Then one program stores the outcome in the buffer, updates the network and chooses
action t + 1. The code is written for one agent; arrays of `State` and all arguments
have a leading axis of seeds. All randomness is a function of (seed, t).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from polyview import devices
from polyview.config.spec import build
from polyview.errors import fits_together
from polyview.model import abstract_module, merge_module
from polyview.rl import replay
from polyview.rl.replay import Buffer
from polyview.training.step import TrainState, create_state, make_step
from sgi import agent
from sgi.atari import SIZE
from sgi.network import Network

_PLAY = 2  # keys the noise of play; `polyview.model` uses 0 and 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """An agent: `frame` uint8[h, w] is its observation, `action` int32[] its choice."""

    train: TrainState
    buffer: Buffer
    frame: jax.Array
    action: jax.Array


class Programs:
    """The programs of a config's agents, compiled on first use.

    create(seeds) -> the initial networks of the seeds
    begin(networks, frames, actions) -> agents with these observations and choices
    store(agents, frames, rewards, dones, actions) -> agents after these outcomes, with
        `actions` as their next choices
    learn(agents, frames, rewards, dones, seeds) -> the same, but updated and with their
        own choices; and metrics. If "healthy" is False, an update of some agent failed:
        they are as before, but keep all updates before it. The same call again skips
        those and repeats the failed one

    The first argument of all but `create` is donated. Raises InputError if the parts of
    the config do not fit together.
    """

    def __init__(self, config: ConfigDict, trusted: frozenset[str] | None = None):
        self._config = config
        with fits_together("optimizer"):
            optimizer = build(config.optimizer, trusted, where="optimizer")(
                steps=config.steps, batch_size=config.batch_size
            )
        self._objective = build(config.objective, trusted, where="objective")
        make_module = build(config.model, trusted, where="model")
        with fits_together("model"):
            self.graph, *_ = abstract_module(make_module)
        parts = optimizer.transformation, config.target_decay
        self._take = make_step(self.graph, self._objective, *parts)

        def create(seed: jax.Array) -> TrainState:
            return create_state(make_module, parts[0], seed, parts[1])[0]

        def compiled(function: Callable[..., State], in_axes: int = 0) -> Callable:
            return jax.jit(jax.vmap(function, in_axes), donate_argnums=0)

        self.create = jax.jit(
            jax.vmap(create), compiler_options=devices.quickly_compiled()
        )
        self.begin = compiled(self._begin)
        self.store = compiled(_store)
        self.learn = jax.jit(self._learn_all, donate_argnums=0)
        with fits_together("model, objective and replay"):
            self._trace()

    def random_actions(self, seeds: jax.Array) -> np.ndarray:
        """Return uniform actions before the updates, uint8[seeds, random_steps + 1]."""
        times = jnp.arange(self._config.random_steps + 1)

        def draw(seed: jax.Array, time: jax.Array) -> jax.Array:
            count = self._config.model.actions
            return jax.random.randint(_key(seed, time), (), 0, count)

        draw = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))
        return np.asarray(jax.jit(draw)(seeds, times), np.uint8)

    def _begin(self, network: TrainState, frame: jax.Array, action: jax.Array) -> State:
        empty = replay.create(self._config.steps, SIZE)
        return State(network, empty, frame, action.astype(jnp.int32))

    def _learn_all(
        self,
        state: State,
        frame: jax.Array,
        reward: jax.Array,
        done: jax.Array,
        seed: jax.Array,
    ) -> tuple[State, dict]:
        new, values = for_each_seed(self._learn, state, frame, reward, done, seed)
        healthy = values.pop("healthy").all()

        def if_healthy(after: jax.Array, before: jax.Array) -> jax.Array:
            return jnp.where(healthy, after, before)

        # Networks and most of a buffer are not copied: failed updates change neither,
        # and the outcome beyond `size` is overwritten.
        buffer = replace(
            new.buffer, size=if_healthy(new.buffer.size, state.buffer.size)
        )
        return State(
            train=new.train,
            buffer=buffer,
            frame=if_healthy(new.frame, state.frame),
            action=if_healthy(new.action, state.action),
        ), values | {"healthy": healthy}

    def _learn(
        self,
        state: State,
        frame: jax.Array,
        reward: jax.Array,
        done: jax.Array,
        seed: jax.Array,
    ) -> tuple[State, dict]:
        count = self._config.updates_per_step
        before = count * (state.buffer.size - self._config.random_steps)
        state = _store(state, frame, reward, done, state.action)
        draws, noise, chance = jax.random.split(_key(seed, state.buffer.size), 3)
        sample = self._sampler(state.buffer.size)

        def update(
            carry: tuple[TrainState, Buffer], draw: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[TrainState, Buffer], dict[str, jax.Array]]:
            (network, buffer), (key, number) = carry, draw
            batch = sample(buffer, key)
            earlier = network.step > number  # done by a call in which another failed
            network, values = self._take(network, {}, batch, number, seed)
            updated = replay.update_priorities(
                buffer, batch["index"], values.pop("priority")
            )
            taken = values["healthy"]
            priority = jnp.where(taken, updated.priority, buffer.priority)
            buffer = replace(buffer, priority=priority)
            return (network, buffer), values | {"healthy": taken | earlier}

        keyed = jax.random.split(draws, count), before + jnp.arange(count)
        carry, values = jax.lax.scan(update, (state.train, state.buffer), keyed)
        network, buffer = carry
        parts = self.graph, network.params, network.statistics
        module = cast(Network, merge_module(*parts))
        stack = jnp.moveaxis(replay.current_stack(buffer, frame), 0, -1)[None]
        (action,) = agent.act(module, stack, noise=noise, epsilon=0.0, key=chance)
        healthy = values.pop("healthy").all()
        values = {name: value.mean() for name, value in values.items()}
        state = replace(state, train=network, buffer=buffer, action=action)
        return state, values | {"healthy": healthy}

    def _sampler(self, size: jax.Array) -> Callable[..., dict]:
        """Return `sample(buffer, key)` for a buffer's size; beta grows with it."""
        config = self._config
        start = config.random_steps
        first, last = config.priority.beta
        return functools.partial(
            replay.sample,
            batch_size=config.batch_size,
            alpha=config.priority.alpha,
            beta=first + (last - first) * (size - start) / (config.steps - start),
            jumps=self._objective.jumps,
            n_step=config.n_step,
            discount=config.discount,
        )

    def _trace(self) -> None:
        """Trace a step on shapes; check that the first update has steps to sample."""
        config = self._config
        reach = {"jumps": self._objective.jumps, "n_step": config.n_step}
        lacking = 1 - replay.sampleable(config.random_steps + 1, **reach)
        if lacking > 0:
            raise ValueError(
                f"random_steps={config.random_steps}: at the first update, no step has "
                f"n_step and jumps steps after it; give "
                f"{config.random_steps + lacking} or more"
            )

        def shaped(dtype: DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((config.seeds, *shape), dtype)

        seeds, frame = shaped(np.uint32), shaped(np.uint8, SIZE, SIZE)
        network = jax.eval_shape(self.create, seeds)
        state = jax.eval_shape(self.begin, network, frame, shaped(np.uint8))
        outcome = frame, shaped(np.float32), shaped(bool)
        jax.eval_shape(self.learn, state, *outcome, seeds)


def for_each_seed(function: Callable, *arguments: Any) -> Any:
    """Apply a function of one agent to each row of the arguments.

    A CPU takes one agent after another: several networks at once make each convolution
    a grouped one, which there takes many times the sum of the plain ones. A single
    agent needs no loop, which would copy its network.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function)(*arguments)
    if len(jax.tree.leaves(arguments)[0]) == 1:
        only = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: x[None], function(*only))
    return jax.lax.map(lambda one: function(*one), arguments)


def _store(
    state: State,
    frame: jax.Array,
    reward: jax.Array,
    done: jax.Array,
    action: jax.Array,
) -> State:
    buffer = replay.append(state.buffer, state.frame, state.action, reward, done)
    action = action.astype(jnp.int32)
    return replace(state, buffer=buffer, frame=frame, action=action)


def _key(seed: jax.Array, time: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PLAY), time)
