"""Agents that learn while they play: what a step does on the device, for all seeds.

At step t an agent has chosen action t on the frame it sees. The emulator takes it; what
came of it goes into the buffer, the network is updated, and action t + 1 is chosen: one
program. The mathematics is that of one agent; arrays of `State` and all arguments have
a leading axis of seeds. Everything random is a function of (seed, t).
"""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from polyview.config.spec import build
from polyview.errors import fits_together
from polyview.model import abstract_module, merge_module
from polyview.rl import replay
from polyview.rl.replay import Buffer
from polyview.training.step import TrainState, create_state, make_step
from sgi import agent
from sgi.atari import SIZE

_HURRY = {"xla_backend_optimization_level": 0}
_PLAY = 2  # the noise of play, by its use; 0 and 1 are those of `polyview.model`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """An agent: `frame` uint8[h, w] is what it sees, `action` int32[] what it has
    chosen to do."""

    train: TrainState
    buffer: Buffer
    frame: jax.Array
    action: jax.Array


class Programs:
    """What the agents of a config do, compiled when they are first used.

    create(seeds) -> the networks of seeds, before any step
    begin(networks, frames, actions) -> agents that see and have chosen these
    store(agents, frames, rewards, dones, actions) -> what came of their actions is kept
    learn(agents, frames, rewards, dones, seeds) -> the same, with updates and actions
        of their own; and metrics, "healthy" among them: where it is False, the agents
        are those from before

    The first argument of all but `create` is donated. Raises InputError where the parts
    of the config do not fit together.
    """

    def __init__(self, config, trusted: frozenset[str] | None = None):
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

        def create(seed):
            return create_state(make_module, parts[0], seed, parts[1])[0]

        def compiled(function, in_axes=0):
            return jax.jit(jax.vmap(function, in_axes), donate_argnums=0)

        # Runs once: to compile it well takes minutes on a CPU.
        self.create = jax.jit(jax.vmap(create), compiler_options=_HURRY)
        self.begin = compiled(self._begin)
        self.store = compiled(_store)
        self.learn = jax.jit(self._learn_all, donate_argnums=0)
        with fits_together("model, objective and replay"):
            self._trace()

    def random_actions(self, seeds: jax.Array) -> np.ndarray:
        """uint8[seeds, random_steps + 1]: uniform, the actions before the updates."""
        times = jnp.arange(self._config.random_steps + 1)

        def draw(seed, time):
            count = self._config.model.actions
            return jax.random.randint(_key(seed, time), (), 0, count)

        draw = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))
        return np.asarray(jax.jit(draw)(seeds, times), np.uint8)

    def _begin(self, network: TrainState, frame, action) -> State:
        empty = replay.create(self._config.steps, SIZE)
        return State(network, empty, frame, action.astype(jnp.int32))

    def _learn_all(self, state: State, frame, reward, done, seed) -> tuple[State, dict]:
        new, values = jax.vmap(self._learn)(state, frame, reward, done, seed)
        healthy = values.pop("healthy").all()

        def kept(after, before):
            return jax.tree.map(lambda a, b: jnp.where(healthy, a, b), after, before)

        # What lies behind the end of a buffer is written again: frames may stay.
        seen = replace(
            new.buffer,
            size=kept(new.buffer.size, state.buffer.size),
            priority=kept(new.buffer.priority, state.buffer.priority),
        )
        return State(
            train=kept(new.train, state.train),
            buffer=seen,
            frame=kept(new.frame, state.frame),
            action=kept(new.action, state.action),
        ), values | {"healthy": healthy}

    def _learn(self, state: State, frame, reward, done, seed) -> tuple[State, dict]:
        state = _store(state, frame, reward, done, state.action)
        draws, noise, chance = jax.random.split(_key(seed, state.buffer.size), 3)
        sample = self._sampler(state.buffer.size)

        def update(carry, key):
            network, seen = carry
            batch = sample(seen, key)
            network, values = self._take(network, {}, batch, network.step, seed)
            priority = values.pop("priority")
            seen = replay.update_priorities(seen, batch["index"], priority)
            return (network, seen), values

        keys = jax.random.split(draws, self._config.updates_per_step)
        carry, values = jax.lax.scan(update, (state.train, state.buffer), keys)
        network, seen = carry
        module = merge_module(self.graph, network.params, network.statistics)
        stack = jnp.moveaxis(replay.current_stack(seen, frame), 0, -1)[None]
        (action,) = agent.act(module, stack, noise=noise, epsilon=0.0, key=chance)
        healthy = values.pop("healthy").all()
        values = {name: value.mean() for name, value in values.items()}
        state = replace(state, train=network, buffer=seen, action=action)
        return state, values | {"healthy": healthy}

    def _sampler(self, size):
        """`sample(buffer, key)` of a buffer of that size: beta grows with it."""
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
        """Trace a step on shapes; see that the first update has what to sample."""
        config = self._config
        reach = {"jumps": self._objective.jumps, "n_step": config.n_step}
        lacking = 1 - replay.sampleable(config.random_steps + 1, **reach)
        if lacking > 0:
            raise ValueError(
                f"random_steps={config.random_steps}: at the first update there is no "
                f"step with n_step and jumps behind it; give "
                f"{config.random_steps + lacking} or more"
            )

        def of(dtype, *shape):
            return jax.ShapeDtypeStruct((config.seeds, *shape), dtype)

        seeds, frame = of(np.uint32), of(np.uint8, SIZE, SIZE)
        network = jax.eval_shape(self.create, seeds)
        state = jax.eval_shape(self.begin, network, frame, of(np.uint8))
        outcome = frame, of(np.float32), of(bool)
        jax.eval_shape(self.learn, state, *outcome, seeds)


def _store(state: State, frame, reward, done, action) -> State:
    seen = replay.append(state.buffer, state.frame, state.action, reward, done)
    action = action.astype(jnp.int32)
    return replace(state, buffer=seen, frame=frame, action=action)


def _key(seed, time) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PLAY), time)
