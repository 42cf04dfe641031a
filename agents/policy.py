"""A policy: bridges from observations to tokens, a body, and an adapter to actions.

    instruction | observation, action | observation, action | ...

One sequence of embeddings an episode; the state after a step's observation, and after
each part of its action, gives the next part. Imitation (`loss`) and reinforcement
learning (`judge`) pass whole rows of steps; `act` passes one step at a time, with the
keys and values of the steps before in a cache (`polyview.rl.acting:Actor`). All three
give the same probabilities.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from agents.adapters import Adapter
from agents.data import TEXT
from agents.llm import cache as caches
from agents.llm.cache import Cache
from agents.llm.llama import Body
from polyview.errors import InputError, check_range
from polyview.rl.acting import Acted, episode_numbers
from polyview.rl.critic import Critic
from polyview.rl.environment import LEGAL
from polyview.rl.ppo import Judged

_CHUNK = 8  # instructions that are read at once while rows act


class Told(NamedTuple):
    """Keys and values of instructions, one or more a row.

    k, v: [b, texts, layers, length, kv_heads, head]; real: bool[b, texts, length].
    """

    k: jax.Array
    v: jax.Array
    real: jax.Array


class Steps(NamedTuple):
    """Where the steps of rows belong, [b, m].

    group: the steps that see one another, those before; text: the number of the
    instruction that they see; place: of the step in its group; real: bool.
    """

    group: jax.Array
    text: jax.Array
    place: jax.Array
    real: jax.Array


class Policy(nnx.Module):
    """Actions from instructions and what was observed, `span` steps at most.

    With `span=1` a step sees the instruction and its own observation. Batches may have
    more steps then: each is asked alone, and they share the work on the instruction.

    Args:
      body: makes `agents.llm.llama:Body`.
      bridges: {observation: makes a bridge of `agents.bridges`}.
      adapter: makes an adapter of `agents.adapters`.
      span: steps that the policy sees.
      tells: whether later steps see the actions, and not the observations alone.
      critic: options of `polyview.rl.critic:Critic`, of values; None: there are none.
      privileged: {observation: makes a bridge}, what values read beside the state, and
        actions do not: while it is learnt by, and not to act. Without a critic, none.
      episodes: the most that a row has in `judge`: one instruction is kept for each.
    """

    def __init__(
        self,
        *,
        body: Callable[..., Body],
        bridges: Mapping[str, Callable[..., Any]],
        adapter: Callable[..., Adapter],
        span: int = 1,
        tells: bool = True,
        critic: Mapping[str, Any] | None = None,
        privileged: Mapping[str, Callable[..., Any]] | None = None,
        episodes: int = 8,
        rngs: nnx.Rngs,
    ):
        check_range(1, span=span, episodes=episodes)
        privileged = privileged or {}
        if privileged and critic is None:
            raise InputError("privileged is what values read: give model.critic")
        if not bridges:
            raise InputError("a policy needs a bridge from an observation")
        self.body = body(rngs=rngs)
        width = self.body.width
        made = {name: bridge(width, rngs=rngs) for name, bridge in bridges.items()}
        self.bridges: Any = nnx.Dict(made)
        self.adapter: Any = adapter(width, rngs=rngs)
        made = {name: bridge(width, rngs=rngs) for name, bridge in privileged.items()}
        self.privileged: Any = nnx.Dict(made)
        read = width * (1 + len(made))
        self.critic = None if critic is None else Critic(read, **critic, rngs=rngs)
        self.span, self.tells, self.episodes = span, tells and span > 1, episodes
        self.observed = sum(bridge.count for bridge in self.bridges.values())

    @property
    def actions(self) -> int:
        """The number of actions. Raises InputError if they are not numbered."""
        if not hasattr(self.adapter, "actions"):
            raise InputError("only numbered actions are drawn; take pred or semlang")
        return self.adapter.actions

    @property
    def memory(self) -> int:
        """The earlier steps that it sees."""
        return self.span - 1

    # Whole rows.

    def loss(
        self, batch: Mapping[str, Any], key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Return the loss [b, m] of each step, metrics [b, m], and which are present.

        batch: of `agents.data:Context`.
        """
        views, actions = batch["views"], batch["targets"]["action"]
        b, m = actions.shape[:2]
        if self.span > 1 and m != self.span:
            raise InputError(
                f"the policy sees {self.span} steps, and the views have {m}: set "
                "views.span to model.span"
            )
        present = self._present(batch["present"], b, m)
        same = jnp.zeros((b, m), jnp.int32)
        begun = jnp.cumsum(present, 1, dtype=jnp.int32) - 1
        steps = Steps(same, same, jnp.maximum(begun, 0), present)
        told = None if TEXT not in views else self._read(views[TEXT], train, key)
        hidden = self._hidden(views, actions, steps, told, train, key)
        flat = rearrange(actions, "b m ... -> (b m) ...")
        hidden = rearrange(hidden, "b m l d -> (b m) l d")
        losses, metrics = self.adapter.loss(self.body, hidden, flat)
        shaped = {name: value.reshape(b, m) for name, value in metrics.items()}
        return losses.reshape(b, m), shaped, present

    def prepare(self, play: dict[str, Any]) -> dict[str, Any]:
        """Add the instructions, read by a body that learns nothing."""
        if TEXT not in play["views"] or not self.body.fixed:
            return play
        texts, used = self._texts(play)
        length = texts.shape[2]
        flat = rearrange(texts, "b k l -> (b k) l")
        empty = self.body.empty_cache(len(flat), length)
        cache = self._reread(empty, flat, used.reshape(-1))
        return play | {"told": _told(cache, texts)}

    def judge(self, play: Mapping[str, Any]) -> Judged:
        """Return what the policy says of rows of play; see `polyview.rl.acting`."""
        views, actions = play["views"], play["actions"]
        b, m = actions.shape[:2]
        number = jnp.minimum(episode_numbers(play), self.episodes - 1)
        told = play.get("told")
        if told is None and TEXT in views:
            told = self._read(self._texts(play)[0], True, None)
        time = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32)[None], (b, m))
        starts = play["first"] | (jnp.cumsum(play["real"], 1, dtype=jnp.int32) == 1)
        start = jax.lax.cummax(jnp.where(starts & play["real"], time, 0), axis=1)
        steps = Steps(number, number, time - start, play["real"])
        hidden = self._hidden(views, actions, steps, told, True, None)
        flat = rearrange(hidden, "b m l d -> (b m) l d")
        legal = views.get(LEGAL)
        found = self.adapter.measured(
            self.body,
            flat,
            actions.reshape(-1),
            None if legal is None else rearrange(legal, "b m a -> (b m) a"),
        )
        log_prob, entropy, choices = (part.reshape(b, m) for part in found)
        value = self._value(hidden[:, :, 0], views)
        return Judged(log_prob, entropy, value, choices)

    # One step at a time.

    def recall(self, past: Mapping[str, Any], views: Mapping[str, jax.Array]) -> Cache:
        """Return the cache of instructions and of earlier steps.

        past: see `polyview.rl.acting`; not read if the policy sees one step alone.
        views: {observation: [n, ...]} of the next step, for its `text: [n, length]`.
        """
        n = len(next(iter(views.values())))
        text = views.get(TEXT, jnp.zeros((n, 0), jnp.int32))
        self._check_context(text.shape[1])
        room = text.shape[1] + self.span * self._kept() + self.adapter.length
        cache = self.body.empty_cache(n, room)
        if text.shape[1]:
            cache = self._continued(*self._words(text), cache)[1]
        count = past["real"].shape[1] if self.span > 1 else 0
        if not count:
            return cache
        x, real = self._steps(past["views"], past["actions"], past["real"])
        kept = [part[:, :, : self._kept()] for part in (x, real)]
        x, real = (rearrange(part, "b m s ... -> b (m s) ...") for part in kept)
        return self._continued(x, real, cache)[1]

    def act(
        self,
        memory: Cache,
        views: Mapping[str, jax.Array],
        first: jax.Array,
        key: jax.Array | None,
    ) -> tuple[Cache, Acted]:
        """Return actions for what is seen now; see `polyview.rl.acting:Actor`.

        Without a key the likeliest parts are taken. Actions of a regression have no
        probability, and their logarithm is given as 0.
        """
        n = len(first)
        cache = caches.reset(memory, first)
        if TEXT in views:
            cache = self._reread(cache, views[TEXT], first)
        on = jnp.ones((n, 1), bool)
        seen = self._observations({k: v[:, None] for k, v in views.items()})
        x = rearrange(seen, "n 1 s d -> n s d").astype(self.body.dtype)
        whole = jnp.broadcast_to(on, x.shape[:2])
        hidden, running = self._continued(x, whole, cache)
        after = running
        states, legal = [hidden[:, -1]], views.get(LEGAL)
        chosen: list[Any] = []
        for number in range(self.adapter.length):
            own = None if key is None else jax.random.fold_in(key, number)
            part = self.adapter.choose(self.body, states[-1], chosen, own, legal)
            chosen.append(part)
            if number + 1 < self.adapter.length:
                token = self.adapter.token(part)
                x = self.adapter.embed(self.body, token, number)[:, None]
                hidden, running = self._continued(x, on, running)
                states.append(hidden[:, 0])
        action = self.adapter.decode(chosen)
        if self.tells:
            x, real = self._parts(action)
            after = self._continued(x, real, after)[1]
        lengths = after.lengths if self.span > 1 else cache.lengths
        kept = Cache(*(running if not self.tells else after)[:2], lengths)
        log_prob = jnp.zeros(n)
        if self.critic is not None:
            measured = self.adapter.measured(
                self.body, jnp.stack(states, 1), action, legal
            )
            log_prob = measured.log_prob
        value = jnp.zeros(n)
        if {*self.privileged} <= {*views}:  # else it acts, and does not learn
            shown = {name: views[name][:, None] for name in self.privileged}
            value = self._value(states[0][:, None], shown)[:, 0]
        return kept, Acted(action, log_prob, value)

    # Pieces of both.

    def _read(self, text: jax.Array, train: bool, key: jax.Array | None) -> Told:
        """Read instructions int32[b, texts, length]."""
        length = text.shape[2]
        flat = rearrange(text, "b k l -> (b k) l")
        empty = self.body.empty_cache(len(flat), length)
        _, cache = self._continued(*self._words(flat), empty, train=train, key=key)
        return _told(cache, text)

    def _reread(self, cache: Cache, text: jax.Array, rows: jax.Array) -> Cache:
        """Read the instructions [n, length] of some rows bool[n] from the start.

        Some at a time: where few rows begin an episode, few instructions are read.
        """
        n, length = text.shape
        if not length:
            return cache
        chunk = min(_CHUNK, n)
        order = jnp.argsort(~rows, stable=True)
        order = jnp.pad(order, (0, -n % chunk), constant_values=n)
        wanted = rows.sum()

        def going(carry: tuple) -> jax.Array:
            return carry[0] * chunk < wanted

        def some(carry: tuple) -> tuple:
            number, cache = carry
            at = jax.lax.dynamic_slice_in_dim(order, number * chunk, chunk)
            at = jnp.where(number * chunk + jnp.arange(chunk) < wanted, at, n)
            words = self._words(text[jnp.minimum(at, n - 1)])
            empty = self.body.empty_cache(chunk, length)
            _, read = self._continued(*words, empty)
            k = cache.k.at[:, at, :length].set(read.k, mode="drop")
            v = cache.v.at[:, at, :length].set(read.v, mode="drop")
            lengths = cache.lengths.at[at].set(read.lengths, mode="drop")
            return number + 1, Cache(k, v, lengths)

        return jax.lax.while_loop(going, some, (jnp.int32(0), cache))[1]

    def _continued(
        self, x: jax.Array, real: jax.Array, cache: Cache, **options: Any
    ) -> tuple[jax.Array, Cache]:
        hidden, after = self.body(x, real, cache, **options)
        assert after is not None  # a cache was given
        return hidden, after

    def _words(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        real = text >= 0
        return self.body.embed(jnp.where(real, text, 0)), real

    def _texts(self, play: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Return the instruction of each episode of rows [b, k, l], and if there is."""
        number, real = episode_numbers(play), play["real"]
        slots = jnp.arange(self.episodes, dtype=jnp.int32)
        own = (number[:, None] == slots[None, :, None]) & real[:, None]
        at = own.argmax(-1)
        text = play["views"][TEXT]
        return jnp.take_along_axis(text, at[..., None], 1), own.any(-1)

    def _hidden(
        self,
        views: Mapping[str, jax.Array],
        actions: jax.Array,
        steps: Steps,
        told: Told | None,
        train: bool,
        key: jax.Array | None,
    ) -> jax.Array:
        """Return the states before each part of each action, [b, m, length, width]."""
        m = actions.shape[1]
        if self.span == 1:  # each step is asked alone
            alone = jnp.arange(m, dtype=jnp.int32)[None]
            group = jnp.broadcast_to(alone, steps.group.shape)
            steps = steps._replace(group=group, place=jnp.zeros_like(steps.place))
        x, real = self._steps(views, actions, steps.real)
        # The last part of an action only tells later steps what was done.
        of_step = self.observed + self.adapter.length - (not self.tells)
        x, real = x[:, :, :of_step], real[:, :, :of_step]
        # Positions of a step: padding of an action takes none.
        inside = jnp.cumsum(real, 2, dtype=jnp.int32) - 1
        if self.tells:
            sizes = real.sum(2)
            total = jnp.cumsum(sizes, 1, dtype=jnp.int32) - sizes
            begin = jnp.where(steps.place == 0, total, 0)
            offset = total - jax.lax.cummax(begin, axis=1)
        else:
            offset = steps.place * self._kept()
        position = offset[..., None] + inside
        # What a token sees: earlier steps of its group that are kept, and its own.
        same = steps.group[:, :, None] == steps.group[:, None]
        before = np.tril(np.ones((m, m), bool), -1)
        kept = np.arange(of_step) < self._kept()
        own = np.eye(m, dtype=bool)[:, None, :, None]
        inner = np.tril(np.ones((of_step,) * 2, bool))[None, :, None]
        earlier = same & jnp.asarray(before)[None]
        seen = earlier[:, :, None, :, None] & jnp.asarray(kept)[None, None, None, None]
        seen = jnp.broadcast_to(seen, (len(x), m, of_step, m, of_step))
        seen = seen | jnp.asarray(own & inner)[None]
        seen = rearrange(seen, "b m s n r -> b (m s) (n r)")
        layout: dict[str, Any] = {}
        words = 0
        if told is not None:
            words = told.real.shape[2]
            counts = told.real.sum(2)
            position += jnp.take_along_axis(counts, steps.text, 1)[..., None]
            k, v = (
                rearrange(part, "b k n l h d -> n b (k l) h d")
                for part in (told.k, told.v)
            )
            layout["before"] = k, v
            slots = jnp.arange(told.real.shape[1], dtype=jnp.int32)
            of_text = steps.text[..., None] == slots[None, None]
            shown = of_text[..., None] & told.real[:, None]
            shown = rearrange(shown, "b m k l -> b m 1 (k l)")
            shown = jnp.broadcast_to(shown, (*shown.shape[:2], of_step, shown.shape[3]))
            shown = rearrange(shown, "b m s l -> b (m s) l")
            seen = jnp.concatenate([shown, seen], 2)
        self._check_context(words)
        hidden, _ = self.body(
            rearrange(x, "b m s d -> b (m s) d"),
            rearrange(real, "b m s -> b (m s)"),
            position=rearrange(jnp.maximum(position, 0), "b m s -> b (m s)"),
            seen=seen,
            train=train,
            key=key,
            **layout,
        )
        found = rearrange(hidden, "b (m s) d -> b m s d", m=m)
        first = self.observed - 1
        return found[:, :, first : first + self.adapter.length]

    def _steps(
        self, views: Mapping[str, jax.Array], actions: jax.Array, real: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the embeddings of steps [b, m, tokens, width] and their actions."""
        b, m = real.shape
        x = self._observations(views)
        flat = rearrange(actions, "b m ... -> (b m) ...")
        parts, on = self._parts(flat)
        parts = rearrange(parts, "(b m) s d -> b m s d", m=m)
        on = on.reshape(b, m, -1) & real[..., None]
        whole = jnp.broadcast_to(real[..., None], x.shape[:3])
        x = jnp.concatenate([x.astype(self.body.dtype), parts], 2)
        return x, jnp.concatenate([whole, on], 2)

    def _observations(self, views: Mapping[str, jax.Array]) -> jax.Array:
        """Return the tokens of observations [b, m, ...]: [b, m, tokens, width]."""
        found = [self._tokens(views, *item) for item in self.bridges.items()]
        return jnp.concatenate(found, 2)

    def _tokens(
        self, views: Mapping[str, jax.Array], name: str, bridge: Any
    ) -> jax.Array:
        """Return the tokens of one observation [b, m, ...]: [b, m, tokens, width]."""
        if name not in views:
            raise InputError(f"the views have no {name!r}, which a bridge reads")
        m = views[name].shape[1]
        seen = bridge(rearrange(views[name], "b m ... -> (b m) ..."))
        return rearrange(seen, "(b m) s d -> b m s d", m=m)

    def _parts(self, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the embeddings of all parts of actions [n, length, width]."""
        encoded, on = self.adapter.encode(actions)
        each = [
            self.adapter.embed(self.body, encoded[:, number], number)
            for number in range(self.adapter.length)
        ]
        return jnp.stack(each, 1).astype(self.body.dtype), on

    def _kept(self) -> int:
        """Tokens of a step that later ones see."""
        return self.observed + (self.adapter.length if self.tells else 0)

    def _value(self, hidden: jax.Array, views: Mapping[str, jax.Array]) -> jax.Array:
        """Return normalised values [b, m] of states [b, m, width]."""
        if self.critic is None:
            return jnp.zeros(hidden.shape[:-1])
        read = [hidden]
        for name, bridge in self.privileged.items():
            seen = self._tokens(views, name, bridge).mean(2)
            read.append(seen.astype(hidden.dtype))
        return self.critic(jnp.concatenate(read, -1))

    def _check_context(self, words: int) -> None:
        length = words + self.span * self._kept()
        length += 0 if self.tells else self.adapter.length - 1
        if length > self.body.context:
            raise InputError(
                f"an instruction and {self.span} steps are {length} tokens, and the "
                f"body's context is {self.body.context}; lower span or length"
            )

    def _present(self, present: Mapping[str, jax.Array], b: int, m: int) -> jax.Array:
        found = jnp.ones((b, m), bool)
        for name in self.bridges:
            found &= present[name]
        return found


def _told(cache: Cache, texts: jax.Array) -> Told:
    """Return the keys and values of texts int32[b, k, l] that a cache has read."""
    k, v = (
        rearrange(part, "n (b k) l h d -> b k n l h d", b=len(texts))
        for part in (cache.k, cache.v)
    )
    return Told(k, v, texts >= 0)
