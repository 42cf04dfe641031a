"""Actors without a language model: one that sees the moment, and one that remembers.

Both see each observation through an encoder, made by `encoder(width, rngs=)`, that maps
[n, ...] to [n, width] or to tokens [n, tokens, width], as a bridge of `agents.bridges`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import InputError, check_range
from polyview.rl.acting import Acted
from polyview.rl.critic import Critic
from polyview.rl.environment import LEGAL
from polyview.rl.ppo import Judged, masked_entropy


class Dense(nnx.Module):
    """A layer with tanh for observations of numbers, [n, size]."""

    def __init__(
        self,
        width: int,
        *,
        size: int,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.layer = nnx.Linear(
            size,
            width,
            kernel_init=nnx.initializers.orthogonal(2**0.5),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.layer(x))


class _Actor(nnx.Module):
    """Encoders, a layer, and heads of actions and values; see `Reactive`."""

    episodes: int | None = None  # any number

    def __init__(
        self,
        *,
        encoders: Mapping[str, Callable[..., Any]],
        actions: int,
        width: int = 64,
        critic: Mapping[str, Any] | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        check_range(1, actions=actions, width=width)
        if not encoders:
            raise InputError("an actor needs an encoder of an observation")
        made = {name: make(width, rngs=rngs) for name, make in encoders.items()}
        self.encoders: Any = nnx.Dict(made)
        small = nnx.initializers.orthogonal(0.01)
        self.head = nnx.Linear(width, actions, kernel_init=small, **options)
        self.critic = Critic(width, **(critic or {}), **options)
        self.actions, self.width = actions, width
        wide = nnx.initializers.orthogonal(2**0.5)
        self.trunk = nnx.Linear(self._sizes(), width, kernel_init=wide, **options)

    def _seen(self, views: Mapping[str, jax.Array]) -> jax.Array:
        """Return all encodings of observations [n, ...] side by side, [n, d]."""
        found = []
        for name, encoder in self.encoders.items():
            if name not in views:
                raise InputError(
                    f"the environment shows {', '.join(views)}, and the model reads "
                    f"{name!r}"
                )
            found.append(encoder(views[name]).reshape(len(views[name]), -1))
        return jnp.concatenate(found, -1)

    def _sizes(self) -> int:
        """The width of `_seen`."""
        counts = [getattr(one, "count", 1) for one in self.encoders.values()]
        return sum(counts) * self.width

    def _logs(
        self, hidden: jax.Array, views: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Return log probabilities and which actions are legal, [..., actions]."""
        scores = self.head(hidden)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        legal = views.get(LEGAL, jnp.ones(scores.shape, bool))
        return jax.nn.log_softmax(jnp.where(legal, scores, -jnp.inf)), legal

    def _acted(
        self, hidden: jax.Array, views: Mapping[str, jax.Array], key: jax.Array | None
    ) -> Acted:
        logs, _ = self._logs(hidden, views)
        if key is None:
            action = logs.argmax(-1).astype(jnp.int32)
        else:
            action = jax.random.categorical(key, logs).astype(jnp.int32)
        log_prob = jnp.take_along_axis(logs, action[:, None], -1)[:, 0]
        return Acted(action, log_prob, self.critic(hidden))

    def _judged(self, hidden: jax.Array, play: Mapping[str, Any]) -> Judged:
        logs, legal = self._logs(hidden, play["views"])
        own = jnp.take_along_axis(logs, play["actions"][..., None], -1)[..., 0]
        entropy = masked_entropy(logs, legal)
        return Judged(own, entropy, self.critic(hidden), legal.sum(-1) * 1.0)

    def prepare(self, play: dict[str, Any]) -> dict[str, Any]:
        """Return the play as it is."""
        return play

    def judge(self, play: Mapping[str, Any]) -> Judged:
        """Return what the actor says of all steps; see `polyview.rl.acting:Actor`."""
        raise NotImplementedError

    def loss(
        self, batch: Mapping[str, Any], key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Return -log p of an expert's actions [b, m], metrics, which are present.

        batch: spans of episodes; a view of one look stands for all steps of its span.
        """
        actions = batch["targets"]["action"]
        b, m = actions.shape
        present = jnp.ones((b, m), bool)
        for name in self.encoders:
            present &= batch["present"][name]
        views = {
            name: jnp.broadcast_to(x, (b, m, *x.shape[2:]))
            for name, x in batch["views"].items()
        }
        begun = jnp.cumsum(present, 1, dtype=jnp.int32)
        play = {"views": views, "first": (begun == 1) & present, "real": present}
        judged = self.judge(play | {"actions": actions})
        found = {"probability": jnp.exp(judged.log_prob)}
        return -judged.log_prob, found, present


class Reactive(_Actor):
    """Actions from what is seen now: encoders, one more layer with tanh, heads.

    Args:
      encoders: {observation: makes its encoder}.
      actions: their number.
      width: of all layers.
      critic: options of `polyview.rl.critic:Critic`.
    """

    memory = 0

    def recall(self, past: Mapping[str, Any], views: Mapping[str, Any]) -> tuple:
        """Return nothing."""
        return ()

    def act(
        self,
        memory: Any,
        views: Mapping[str, jax.Array],
        first: jax.Array,
        key: jax.Array | None,
    ) -> tuple[Any, Acted]:
        """Return actions for what is seen; see `polyview.rl.acting:Actor`."""
        hidden = jnp.tanh(self.trunk(self._seen(views)))
        return (), self._acted(hidden, views, key)

    def judge(self, play: Mapping[str, Any]) -> Judged:
        """Return what the actor says of all steps."""
        hidden = jnp.tanh(self.trunk(_each(self._seen, play)))
        return self._judged(hidden, play)


class Recurrent(_Actor):
    """Actions from what an episode has shown: encoders, a layer, a GRU, heads.

    (Cho et al. 2014.) Arguments are those of `Reactive`.
    """

    memory = None

    def __init__(
        self,
        *,
        width: int = 128,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **parts: Any,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(width=width, **parts, **options)
        self.cell = nnx.GRUCell(width, width, **options)

    def recall(self, past: Mapping[str, Any], views: Mapping[str, Any]) -> jax.Array:
        """Return the state of the GRU after the steps that are real, [n, width]."""
        n = len(past["real"])
        zero = jnp.zeros((n, self.width), self.head.kernel[...].dtype)
        if not past["real"].shape[1]:
            return zero
        return self._passed(past)[0]

    def act(
        self,
        memory: jax.Array,
        views: Mapping[str, jax.Array],
        first: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Acted]:
        """Return the next memory and actions; see `polyview.rl.acting:Actor`."""
        x = jnp.tanh(self.trunk(self._seen(views)))
        memory, hidden = self.cell(jnp.where(first[:, None], 0, memory), x)
        return memory, self._acted(hidden, views, key)

    def judge(self, play: Mapping[str, Any]) -> Judged:
        """Return what the actor says of all steps."""
        return self._judged(self._passed(play)[1], play)

    def _passed(self, play: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Return the last state of the GRU, and those of all steps [n, t, width]."""
        x = jnp.tanh(self.trunk(_each(self._seen, play)))

        def step(memory: jax.Array, now: tuple) -> tuple[jax.Array, jax.Array]:
            own, first, real = now
            begun = jnp.where(first[:, None], 0, memory)
            after, hidden = self.cell(begun, own)
            return jnp.where(real[:, None], after, memory), hidden

        given = x, play["first"], play["real"]
        given = jax.tree.map(lambda part: jnp.moveaxis(part, 1, 0), given)
        last, hidden = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), given)
        return last, jnp.moveaxis(hidden, 0, 1)


def _each(seen: Callable[[dict], jax.Array], play: Mapping[str, Any]) -> jax.Array:
    """Return `seen` of the views of all steps, [n, t, d]."""
    shape = play["first"].shape
    flat = {
        name: x.reshape(shape[0] * shape[1], *x.shape[2:])
        for name, x in play["views"].items()
    }
    return seen(flat).reshape(*shape, -1)
