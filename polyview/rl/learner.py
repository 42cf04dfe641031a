"""The learner of policies by PPO, in rows of environments on the device or the host.

A step of the run plays `rollout` steps in `rows` environments, then takes `passes` x
`minibatches` steps of the engine on parts of the rows. The config, by key:

    environment   spec of an `ArrayEnvironment`, or partial spec of `Rows`, which gets
                  count, seed and first, the number of its first row
    rows, rollout, passes, minibatches, discount, trace
    model, objective, optimizer, init, evaluations   as of any run
    shaping       spec of a `polyview.rl.acting:Shaping` of rewards; may be absent
    beside        {"source", "views", "batch_size"} of data; may be absent. Each step of
                  the engine then also gets a batch of them, as `beside`

A run is a function of its config. A checkpoint holds the network, the environments
(arrays, or what `Rows.saved` gives) and what policies with a memory saw of the episodes
that go on. Memories themselves are not saved: each step begins by recalling them.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from polyview import devices
from polyview.config.schema import RANGES, check_config
from polyview.config.spec import build
from polyview.config.trust import targets
from polyview.data import pipeline
from polyview.data.sources.protocol import identity
from polyview.errors import HUGE, InputError, fits_together
from polyview.evaluation.base import specs_of
from polyview.model import Model, Parts, abstract_module, merge_module, split_module
from polyview.rl import acting
from polyview.rl.acting import Acted, Actor, Here, Past, Played, Shown, Tally
from polyview.rl.environment import Rows, Step
from polyview.rl.ppo import advantages, masked_mean
from polyview.runs.checkpoint import saved_steps
from polyview.runs.evaluating import build_evaluations
from polyview.runs.init import LaidOver, begun, entries_of, fixed_again, lay_over
from polyview.training.learner import Learner
from polyview.training.prefetch import prefetch
from polyview.training.step import TrainState, begin_with, create_state, make_step

REQUIRED = (
    "seed",
    "steps",
    "rows",
    "rollout",
    "passes",
    "minibatches",
    "discount",
    "trace",
    "log_every",
    "environment",
    "model",
    "objective",
    "optimizer",
)
LIMITS = RANGES | {
    "rows": (1, HUGE),
    "rollout": (1, HUGE),
    "passes": (1, 1000),
    "minibatches": (1, HUGE),
    "discount": (0.0, 1.0),
    "trace": (0.0, 1.0),
}
_PLAY, _WORLD, _ORDER = 9, 10, 11  # purposes of random streams, beside other files'
_RECENT = 0.9  # of the episodes that a step reports, how many the next one still does


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The state of a run: the network, the environments, and what they show.

    here: of environments on the device; None of rows on the host, which keep their own.
    shaped: what the shaping of rewards carries; None without one.
    """

    train: TrainState
    here: Any
    shown: Shown
    past: Past
    tally: Tally
    shaped: Any = None


class PolicyLearner(Learner):
    """A config's policy and its environments; see the module."""

    acts = True
    shown, unit = ("success",), "environment steps"

    def __init__(self, config: ConfigDict, trusted: frozenset[str] | None = None):
        check_config(config, REQUIRED, LIMITS)
        others = {"epochs": None, "target_decay": None, "microbatch": None}
        for key, none in (others | {"accumulate": 1}).items():
            if config.get(key, none) not in (none, None):
                raise InputError(f"config key {key!r} has no meaning here: remove it")
        self.config, self.trusted = config, trusted
        self.steps, self.rows = config.steps, config.rows
        self.samples = config.rows * config.rollout
        self.updates = config.passes * config.minibatches
        self.mesh = devices.make_mesh(**config.get("mesh", {}))
        if config.rows % config.minibatches:
            raise InputError(
                f"minibatches={config.minibatches} does not divide rows={config.rows}"
            )
        part = config.rows // config.minibatches
        if config.rows % self.mesh.size or part % self.mesh.size:
            raise InputError(
                f"rows={config.rows} in {config.minibatches} minibatches cannot be "
                f"split over {self.mesh.size} devices; give a multiple"
            )
        self.host: Rows | None = None
        with fits_together("environment"):
            self.environment: Any = build(
                config.environment, trusted, where="environment"
            )
            if not hasattr(self.environment, "observe"):
                self.host = self._hosted()
        self.world = self.host or self.environment
        if (data := getattr(self.environment, "data", None)) is not None:
            self.data = {"environment": data}
        self.beside = self._data()
        groups = getattr(self.world, "groups", 1)
        if part % (groups * self.mesh.size):
            raise InputError(
                f"a minibatch of {part} rows cannot be shared by {groups} environments "
                f"on {self.mesh.size} devices; give a multiple"
            )
        self._before: dict[str, np.ndarray] | None = None
        # On the device a step that is not healthy changes nothing: read that late.
        self.acts = self.host is not None
        optimizer = build(config.optimizer, trusted, where="optimizer")(
            steps=self.steps * self.updates, batch_size=part
        )
        self.schedule = optimizer.schedule
        self.objective = build(config.objective, trusted, where="objective")
        self.shaping = self._shaping()
        self.evaluations = build_evaluations(specs_of(config), trusted)
        make_module = build(config.model, trusted, where="model")
        with fits_together("model"):
            self.abstract = abstract_module(make_module)
        self.actor: Any = merge_module(*self.abstract)
        self._check_actor()
        self.context = self._context()
        self.take_step = make_step(
            self.abstract.graph, self.objective, optimizer.transformation
        )
        self.seed = devices.put_replicated(np.uint32(config.seed), self.mesh)
        self.laid_over: LaidOver | None = None
        create = functools.partial(create_state, make_module, optimizer.transformation)
        self._compile(create)

    def _hosted(self) -> Rows:
        """Make this process's rows, numbered among those of all processes."""
        processes = jax.process_count()
        if self.config.rows % processes:
            raise InputError(f"rows={self.config.rows} for {processes} processes")
        count = self.config.rows // processes
        return self.environment(
            count=count, seed=self.config.seed, first=count * jax.process_index()
        )

    def _data(self) -> dict[str, Any] | None:
        """Return what `polyview.data.pipeline:batches` takes of data beside the play.

        Sets `data`, by which a resumed run is known to read the same.
        """
        if (given := self.config.get("beside")) is None:
            return None
        if given.batch_size < 1 or given.batch_size % self.mesh.size:
            raise InputError(
                f"beside.batch_size={given.batch_size} cannot be split over "
                f"{self.mesh.size} devices; give a multiple"
            )
        source, views = (
            build(given[key], self.trusted, where=f"beside.{key}")
            for key in ("source", "views")
        )
        self.data = {**self.data, "beside": identity(source)}
        return {"source": source, "views": views, "batch_size": given.batch_size}

    def _shaping(self) -> acting.Shaping | None:
        shaping = build(self.config.get("shaping"), self.trusted, where="shaping")
        own = getattr(shaping, "discount", self.config.discount)
        if own != self.config.discount:
            raise InputError(
                f"shaping.discount={own}, and discount={self.config.discount}: give "
                "both alike, or the best policy may become another"
            )
        return shaping

    def _check_actor(self) -> None:
        wanted = ("act", "judge", "recall", "prepare", "critic")
        for name in wanted:
            if getattr(self.actor, name, None) is None:
                raise InputError(
                    "the model is no actor (polyview.rl.acting:Actor): it has no "
                    f"{name}"
                )
        if self.actor.actions != self.world.actions:
            raise InputError(
                f"the model has {self.actor.actions} actions, and the environment "
                f"{self.world.actions}: give the model as many"
            )

    def _context(self) -> int:
        """Return how many steps before those of play the policy must be shown."""
        memory, limit = self.actor.memory, self.world.limit
        if memory is not None and 0 < memory < limit:
            raise InputError(
                f"episodes have up to {limit} steps and a last state, and the model "
                f"sees {memory + 1}: give model.span={limit + 1}, or 1"
            )
        return 0 if memory == 0 else limit

    def _compile(self, create: Any) -> None:
        whole, rows = devices.replicated(self.mesh), devices.rows(self.mesh)
        shapes = jax.eval_shape(create, self.seed)
        of_network = devices.of_state(shapes, self.mesh)
        self.network, self.fixed = jax.tree.map(
            lambda shape, sharding: shape.update(sharding=sharding), shapes, of_network
        )
        self.initial = jax.jit(
            create,
            out_shardings=of_network,
            compiler_options=devices.quickly_compiled(),
        )
        # Shardings stand where their arrays do.
        part: Any = rows
        on_rows = Tally(part, part, cast(Any, whole))
        state = State(of_network[0], part, part, part, on_rows, part)
        self.begin = jax.jit(self._begin, out_shardings=rows)
        self.started = jax.jit(self._started, out_shardings=(rows, on_rows))
        self.update = jax.jit(
            self._update,
            in_shardings=(state, of_network[1], whole, whole, rows),
            out_shardings=(state, whole),
        )
        # With rows on the host; arguments come as the others leave them.
        self.recall = jax.jit(self._recall)
        self.keys = jax.jit(self._keys, out_shardings=whole)
        self.act = jax.jit(
            self._act,
            in_shardings=(None, None, None, rows, rows, whole),
            out_shardings=(None, rows),  # a memory need not begin with the rows
            donate_argnums=2,
        )
        self.stack = jax.jit(
            lambda parts: jax.tree.map(lambda *x: jnp.stack(x), *parts),
            out_shardings=NamedSharding(self.mesh, PartitionSpec(None, devices.AXES)),
        )
        self.learn = jax.jit(
            self._learn, out_shardings=(of_network[0], rows, rows, whole)
        )
        self.count = jax.jit(self._counted, out_shardings=on_rows)
        self.report = jax.jit(self._told, out_shardings=(state, whole))

    # What follows is traced.

    def _module(self, train: TrainState, fixed: dict) -> Actor:
        parts = self.abstract.graph, train.params, train.statistics, fixed
        found: Any = merge_module(*parts)
        return found

    def _key(self, seed: jax.Array, purpose: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed), purpose)

    def _begin(self, seed: jax.Array) -> tuple[Here, Step]:
        rows = jnp.arange(self.rows, dtype=jnp.int32)
        return acting.begin(self.environment, self._key(seed, _WORLD), rows)

    def _started(self, first: Step) -> tuple[tuple[Shown, Past, Any], Tally]:
        """Return what a run shows, and carries, before its first step: all begin."""
        shown = acting.shown_of(first, ~(first.terminated | first.truncated))
        zero = jnp.zeros(self.rows, jnp.float32)
        tally = Tally(zero, zero.astype(jnp.int32), jnp.zeros(4, jnp.float32))
        shaped = None
        if self.shaping is not None:
            shaped = self.shaping.begin(shown, self.world.limit)
        return (shown, acting.no_past(shown, self.context), shaped), tally

    def _update(
        self,
        state: State,
        fixed: dict,
        number: jax.Array,
        seed: jax.Array,
        beside: tuple[Any, ...],
    ) -> tuple[State, dict]:
        """Play on the device, and learn."""
        key = jax.random.fold_in(self._key(seed, _PLAY), number)
        rows = jnp.arange(self.rows, dtype=jnp.int32)
        here, shown, tally, played, last = acting.play(
            self._module(state.train, fixed),
            state.past,
            state.shown,
            state.tally,
            state.here,
            functools.partial(
                acting.step, self.environment, self._key(seed, _WORLD), rows
            ),
            key,
            self.config.rollout,
        )
        following = self._following(state.shaped, shown)
        train, past, shaped, metrics = self._learn(
            state.train,
            fixed,
            state.past,
            played,
            last,
            number,
            seed,
            following,
            beside,
        )
        new = State(train, here, shown, past, tally, shaped)
        healthy = metrics["healthy"]
        kept = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, state)
        return self._told(kept, metrics)

    def _told(self, state: State, metrics: dict) -> tuple[State, dict]:
        """Add the episodes that ended of late to the metrics, and forget a part."""
        episodes, successes, scores, steps = state.tally.done
        count = jnp.maximum(episodes, 1e-6)
        metrics |= {
            "episodes": episodes,
            "success": successes / count,
            "score": scores / count,
            "length": steps / count,
        }
        kept = jnp.where(metrics["healthy"], _RECENT, 1)
        tally = state.tally._replace(done=kept * state.tally.done)
        return dataclasses.replace(state, tally=tally), metrics

    def _counted(self, tally: Tally, came: Step, over: jax.Array) -> Tally:
        """Count steps [t, n]; over: bool[t, n], where they begin an episode."""

        def one(tally: Tally, now: tuple) -> tuple[Tally, None]:
            return acting.counted(tally, *now), None

        return jax.lax.scan(one, tally, (came._replace(observation=None), over))[0]

    def _recall(self, train: TrainState, fixed: dict, past: Past, shown: Shown) -> Any:
        actor = self._module(train, fixed)
        return actor.recall(acting.rows_of(past, shown), shown.views)

    def _keys(self, number: jax.Array, seed: jax.Array) -> list[jax.Array]:
        """Return the keys of a step's actions, and of those that are not taken."""
        key = jax.random.fold_in(self._key(seed, _PLAY), number)
        return [jax.random.fold_in(key, t) for t in range(self.config.rollout + 1)]

    def _act(
        self,
        train: TrainState,
        fixed: dict,
        memory: Any,
        views: Any,
        first: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, Acted]:
        return self._module(train, fixed).act(memory, views, first, key)

    def _learn(
        self,
        train: TrainState,
        fixed: dict,
        past: Past,
        played: Played,
        last: jax.Array,
        number: jax.Array,
        seed: jax.Array,
        following: tuple[Any, Mapping[str, Any]] | None,
        beside: tuple[Any, ...],
    ) -> tuple[TrainState, Past, Any, dict]:
        """Take `updates` steps of the engine on what was played.

        following: with shaping, what it carries, and the views that came last.
        beside: a batch of the data beside the play for each step, or none.
        """
        config = self.config
        module = self._module(train, fixed)
        reward, shaped = played.reward, None
        told: dict[str, jax.Array] = {}
        if self.shaping is not None and following is not None:
            carry, views = following
            reward, shaped, told = self.shaping(module, carry, played, views)
        normalised = jnp.concatenate([played.acted.value, last[None]])
        # Rows first, as critics of several environments tell them by their rows.
        values = module.critic.restored(normalised.T).T
        gained = advantages(
            reward,
            values,
            played.terminated,
            played.over,
            config.discount,
            config.trace,
        )
        play = acting.play_of(past, played.shown, played.acted.action)
        taken = ~played.shown.over.T
        if module.episodes is not None:
            episode = acting.episode_numbers(play)[:, self.context :]
            taken &= episode < module.episodes
        returns = (gained + values[:-1]).T
        explained = _explained(returns, values[:-1].T, taken)
        module.critic.adapt(returns, taken)
        _, params, statistics, _ = split_module(module)  # type: ignore[arg-type]
        train = TrainState(train.step, params, statistics, train.optimizer, None)
        batch = {
            "play": module.prepare(play),
            "taken": taken,
            "advantages": gained.T,
            "returns": module.critic.normalised(returns),
            "values": module.critic.normalised(values[:-1].T),
            "log_prob": played.acted.log_prob.T,
        }
        key = jax.random.fold_in(self._key(seed, _ORDER), number)
        orders = [
            self._order(jax.random.fold_in(key, one)) for one in range(config.passes)
        ]
        parts = jnp.concatenate(orders).reshape(self.updates, -1)
        data = jax.tree.map(lambda *x: jnp.stack(x), *beside) if beside else None

        def step(train: TrainState, given: tuple) -> tuple[TrainState, dict]:
            own, count, of_data = given
            chosen: dict[str, Any] = jax.tree.map(lambda x: x[own], batch)
            if of_data is not None:
                chosen["beside"] = of_data
            return self.take_step(train, fixed, chosen, count, seed)

        counts = number * self.updates + jnp.arange(self.updates, dtype=jnp.int32)
        train, metrics = jax.lax.scan(step, train, (parts, counts, data))
        first_ratio = metrics.pop("farthest_ratio")[0]
        healthy = metrics.pop("healthy").all()
        found = {name: value.mean() for name, value in metrics.items()}
        found |= {
            "healthy": healthy,
            # The policy that is judged first is the one that acted: this is rounding.
            "first_ratio": first_ratio,
            "explained": explained,
            "learnt": taken.mean(),
            "reward": masked_mean(played.reward.T, taken),
            **told,
        }
        return train, acting.last_steps(play, self.context), shaped, found

    def _order(self, key: jax.Array) -> jax.Array:
        """Return all rows in an order of their own, int32[n].

        Environments that take turns (`polyview.rl.joined`) still do so.
        """
        groups = getattr(self.world, "groups", 1)
        if groups == 1:
            return jax.random.permutation(key, self.rows)
        within = [
            groups * jax.random.permutation(own, self.rows // groups) + number
            for number, own in enumerate(jax.random.split(key, groups))
        ]
        return jnp.stack(within, 1).reshape(-1)

    def _following(self, shaped: Any, shown: Shown) -> tuple | None:
        """Return what `_learn` needs for shaping; None without."""
        return None if self.shaping is None else (shaped, shown.views)

    # What follows is of the host.

    def check(self, workdir: Path) -> None:
        """Trace an update; for a new run, read the donors of its weights."""
        with fits_together("model, environment and objective"):
            self._trace()
        if not saved_steps(workdir / "checkpoints"):
            parts = self.network.params, self.network.statistics, self.fixed
            if entries := entries_of(self.config):
                # The user's own config is trusted: donors may call what it calls.
                own = tuple(str(name) for _, name in targets(self.config))
                self.laid_over = lay_over(entries, self.actor, parts, own)

    def _trace(self) -> None:
        shapes = self.template()
        shapes.pop("rows", None)
        if not self.context:
            shapes["past"] = jax.eval_shape(
                functools.partial(acting.no_past, count=0), shapes["shown"]
            )
        state, config = _state(shapes), self.config
        number = jax.ShapeDtypeStruct((), np.int32)
        beside = self._shapes_beside()
        if self.host is None:
            jax.eval_shape(self._update, state, self.fixed, number, self.seed, beside)
            return
        given = state.train, self.fixed
        memory = jax.eval_shape(self._recall, *given, state.past, state.shown)
        key = jax.eval_shape(self._keys, number, number)[0]
        views, first = state.shown.views, state.shown.first
        _, acted = jax.eval_shape(self._act, *given, memory, views, first, key)
        if self.shaping is not None or beside:
            shown, flag, reward = state.shown, state.shown.first, state.tally.score
            own = Played(shown, acted, reward, flag, flag, flag)
            played = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((config.rollout, *x.shape), x.dtype), own
            )
            following = self._following(state.shaped, shown)
            last = state.past, played, acted.value
            told = number, self.seed, following, beside
            jax.eval_shape(self._learn, *given, *last, *told)

    def create(self, workdir: Path) -> State:
        """Begin all episodes; lay donors' weights over the network's."""
        train, fixed = self.initial(self.seed)
        made = train.params, train.statistics, fixed
        parts, self.fixed_record = begun(
            self.laid_over, made, workdir, self.config.seed
        )
        self.fixed = parts[-1]
        if self.laid_over is not None:
            train = begin_with(train, *parts[:2])
        here: Any = None
        if self.host is None:
            here, first = self.begin(self.seed)
        else:
            first = Step(*devices.put(tuple(self.host.begin()), self.mesh))
        (shown, past, shaped), tally = self.started(first)
        return State(train, here, shown, past, tally, shaped)

    def template(self) -> dict:
        """Return the shapes of what `saved` returns."""
        whole, rows = devices.replicated(self.mesh), devices.rows(self.mesh)
        if self.host is None:
            here, first = jax.eval_shape(self._begin, self.seed)
        else:
            here, first = None, self._shapes()
        (shown, past, shaped), tally = jax.eval_shape(self._started, first)

        def on(tree: Any, sharding: Any) -> Any:
            return jax.tree.map(lambda shape: shape.update(sharding=sharding), tree)

        found = {
            **vars(self.network),
            "here": on(here, rows),
            "shown": on(shown, rows),
            "past": on(past, rows) if self.context else None,
            "tally": Tally(
                on(tally.score, rows), on(tally.steps, rows), on(tally.done, whole)
            ),
        }
        if self.shaping is not None:
            found["shaped"] = on(shaped, rows)
        if self.host is not None:
            self.host.begin()
            saved = self.host.saved()
            found["rows"] = {
                name: jax.ShapeDtypeStruct(
                    (self.rows, *x.shape[1:]), x.dtype, sharding=rows
                )
                for name, x in saved.items()
            }
        return found

    def _shapes(self) -> Step:
        assert self.host is not None
        views = {
            name: jax.ShapeDtypeStruct((self.rows, *shape), dtype)
            for name, (shape, dtype) in self.host.shapes.items()
        }
        flag = jax.ShapeDtypeStruct((self.rows,), np.bool_)
        reward = jax.ShapeDtypeStruct((self.rows,), np.float32)
        return Step(views, reward, flag, flag, flag)

    def saved(self, state: State) -> dict:
        """Return what a checkpoint holds."""
        # The network's parts stand where those of any run do, for `load` and `init`.
        found = {
            **vars(state.train),
            "here": state.here,
            "shown": state.shown,
            "past": state.past if self.context else None,  # nothing cannot be saved
            "tally": state.tally,
        }
        if self.shaping is not None:
            found["shaped"] = state.shaped
        if self.host is not None:
            rows = self.host.saved() if self._before is None else self._before
            found["rows"] = devices.put(rows, self.mesh)
        return found

    def restored(self, workdir: Path, saved: dict, folder: Path, step: int) -> State:
        """Return the state of a checkpoint; play rows on the host up to there."""
        known = self.fixed, self.config, self.trusted is None
        self.fixed, self.fixed_record = fixed_again(workdir, folder, *known)
        rows = saved.pop("rows", None)
        if self.host is not None:
            self.host.restore({name: _local(x) for name, x in rows.items()})
        if not self.context:
            saved["past"] = acting.no_past(saved["shown"], 0)
        return _state(saved)

    def inputs(self, start: int) -> Iterator[tuple[jax.Array, tuple[Any, ...]]]:
        """Generate the numbers of steps, and batches of the data beside the play."""
        data = prefetch(self._batches(start * self.updates), self.mesh, self.updates)
        with contextlib.closing(data):
            for step in range(start, self.steps):
                number = devices.put_replicated(np.int32(step), self.mesh)
                count = 0 if self.beside is None else self.updates
                yield number, tuple(next(data)[2] for _ in range(count))

    def _batches(self, start: int, steps: int | None = None) -> Iterator:
        """Generate this process's batches of the data beside; none without."""
        if self.beside is None:
            return iter(())
        return pipeline.batches(
            **self.beside,
            seed=self.config.seed,
            start=start,
            steps=self.steps * self.updates if steps is None else steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _shapes_beside(self) -> tuple[Any, ...]:
        """Return the shapes of what `inputs` gives beside the number of a step."""
        shapes = [
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    (x.shape[0] * jax.process_count(), *x.shape[1:]),
                    jax.dtypes.canonicalize_dtype(x.dtype),
                ),
                batch,
            )
            for _, batch in self._batches(0, steps=1)
        ]
        return tuple(shapes * self.updates)

    def take(self, state: State, inputs: tuple) -> tuple[State, dict]:
        """Play, and learn from it."""
        number, beside = inputs
        if self.host is None:
            return self.update(state, self.fixed, number, self.seed, beside)
        before = self.host.saved()
        # To act does not need the optimiser: its arrays would pass by at each step.
        given = dataclasses.replace(state.train, optimizer=None), self.fixed
        memory = self.recall(*given, state.past, state.shown)
        shown = jax.tree.map(_local, state.shown)
        seen, decided, gone = [], [], []
        for time, key in enumerate(self.keys(number, self.seed)):
            memory, acted = self._decide(given, memory, shown, key)
            if time == self.config.rollout:
                break
            step = self.host.step(_local(acted.action))
            seen.append(shown)
            decided.append(acted)
            gone.append(step)
            shown = acting.shown_of(step, shown.over)
        begun, came = self._put_steps((_stacked(seen), _stacked(gone)))
        tally = self.count(state.tally, came, begun.over)
        over = came.terminated | came.truncated
        ends = came.terminated, over, came.success
        shown = devices.put(shown, self.mesh)
        train, past, shaped, metrics = self.learn(
            state.train,
            self.fixed,
            state.past,
            Played(begun, self.stack(decided), came.reward, *ends),
            acted.value,
            number,
            self.seed,
            self._following(state.shaped, shown),
            beside,
        )
        if not bool(jax.device_get(metrics["healthy"])):
            self._before = before  # the run ends; it is dumped as it was
            return state, metrics
        return self.report(State(train, None, shown, past, tally, shaped), metrics)

    def _put_steps(self, steps: Any) -> Any:
        """Turn this host's [t, n / hosts, ...] into global arrays [t, n, ...]."""
        sharding = NamedSharding(self.mesh, PartitionSpec(None, devices.AXES))
        put = functools.partial(jax.make_array_from_process_local_data, sharding)
        return jax.tree.map(put, steps)

    def _decide(
        self, given: tuple, memory: Any, shown: Shown, key: jax.Array
    ) -> tuple[Any, Acted]:
        """Act on what rows on the host show."""
        seen = shown.views, shown.first
        if jax.process_count() > 1:
            return self.act(*given, memory, *devices.put(seen, self.mesh), key)
        # A program puts its arguments on the devices all at once, many times faster
        # than `device_put`.
        with jax.transfer_guard_host_to_device("allow"):
            return self.act(*given, memory, *seen, key)

    def values(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics, the learning rate, and steps of the environments."""
        rate = float(self.schedule(step * self.updates - 1))
        done = float(step * self.samples)
        return metrics | {"learning_rate": rate, "environment_steps": done}

    def model(self, state: State, step: int) -> Model:
        """Return the policy."""
        train = state.train
        parts = Parts(self.abstract.graph, train.params, train.statistics, self.fixed)
        return Model(parts, devices.replicated(self.mesh))

    def banner(self, state: State, start: int) -> dict[str, str]:
        """Return the length of the run, and the sizes of its steps."""
        config = self.config
        count = sum(x.size for x in jax.tree.leaves(state.train.params))
        return {
            "steps": f"{self.steps:,}, from {start:,}",
            "play": f"{self.steps * self.samples:,} steps of the environments: "
            f"{config.rollout} in each of {config.rows} rows a step",
            "learning": f"{config.passes} passes of {config.minibatches} minibatches, "
            f"{count:,} trained numbers",
        }

    def close(self) -> None:
        """End the processes of environments."""
        if self.host is not None:
            self.host.close()


def _state(saved: Mapping[str, Any]) -> State:
    """Return the state of what `saved` returned."""
    names = [field.name for field in fields(TrainState)]
    train = TrainState(**{name: saved[name] for name in names})
    own = {name: part for name, part in saved.items() if name not in names}
    return State(train=train, **own)


def _explained(returns: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return 1 - var(returns - values) / var(returns)."""

    def variance(x: jax.Array) -> jax.Array:
        return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)

    spread = variance(returns)
    left = variance(returns - values) / jnp.maximum(spread, 1e-12)
    return jnp.where(spread > 1e-12, 1 - left, 0)


def _stacked(parts: list) -> Any:
    """Return trees of numpy arrays as one, along a new first axis."""
    return jax.tree.map(lambda *x: np.stack(x), *parts)


def _local(array: Any) -> np.ndarray:
    """Return this process's rows of an array."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards: Mapping[int, Any] = {
        (shard.index[0].start or 0) if shard.index else 0: shard.data
        for shard in array.addressable_shards
    }
    parts = jax.device_get([shards[start] for start in sorted(shards)])
    return np.concatenate(parts)
