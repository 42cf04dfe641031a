"""A policy: bridges from observations to tokens, a body, and an adapter to actions.

    instruction | observation, action | observation, action | ...

One sequence of embeddings; the state after a step's observation, and after each part of
its action, gives the next part.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from agents.adapters import Adapter
from agents.data import TEXT
from agents.llm.cache import Cache
from agents.llm.llama import Body
from polyview.errors import InputError, check_range


class Policy(nnx.Module):
    """Actions from instructions and what was observed, `span` steps at most.

    With `span=1` a step sees the instruction and its own observation. Batches may have
    more steps then: each is asked alone, and they share the work on the instruction.

    Args:
      body: makes `agents.llm.llama:Body`.
      bridges: {observation: makes a bridge of `agents.bridges`}.
      adapter: makes an adapter of `agents.adapters`.
      span: steps that the policy sees.
    """

    def __init__(
        self,
        *,
        body: Callable[..., Body],
        bridges: Mapping[str, Callable[..., Any]],
        adapter: Callable[..., Adapter],
        span: int = 1,
        rngs: nnx.Rngs,
    ):
        check_range(1, span=span)
        if not bridges:
            raise InputError("a policy needs a bridge from an observation")
        self.body = body(rngs=rngs)
        width = self.body.width
        made = {name: bridge(width, rngs=rngs) for name, bridge in bridges.items()}
        self.bridges: Any = nnx.Dict(made)
        self.adapter: Any = adapter(width, rngs=rngs)
        self.span = span

    def loss(
        self, batch: Mapping[str, Any], key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Return the loss [b, m] of each step, metrics [b, m], and which are present.

        batch: of `agents.data:Context`.
        """
        views, actions = batch["views"], batch["targets"]["action"]
        b, m = actions.shape[:2]
        present = self._present(batch["present"], b, m)
        hidden = self._hidden(views, actions, present, key, train)
        flat = rearrange(actions, "b m ... -> (b m) ...")
        hidden = rearrange(hidden, "b m l d -> (b m) l d")
        losses, metrics = self.adapter.loss(self.body, hidden, flat)
        shaped = {name: value.reshape(b, m) for name, value in metrics.items()}
        return losses.reshape(b, m), shaped, present

    def read(self, text: jax.Array) -> Cache:
        """Return the cache of instructions int32[n, length], with room for a window."""
        length = text.shape[1] + self.span * self._of_step()
        self._check_context(length)
        cache = self.body.empty_cache(len(text), length)
        if not text.shape[1]:
            return cache
        told, real = self._told(text)
        found = self.body(told, real, cache)[1]
        assert found is not None  # a cache was given
        return found

    def act(
        self,
        cache: Cache,
        views: Mapping[str, jax.Array],
        present: jax.Array,
        actions: jax.Array,
        key: jax.Array | None,
        legal: jax.Array | None = None,
    ) -> jax.Array:
        """Return an action for the last step of each window.

        cache: of `read`. views: {observation: [n, span, ...]}; present: bool[n, span];
        actions: [n, span, ...], those of the steps before; the last is not read. A key
        draws, None takes the likeliest parts.
        """
        n, m = present.shape
        if m != self.span:
            raise InputError(
                f"the policy sees {self.span} steps, and is shown {m}: set span of the "
                "evaluation's views to model.span"
            )
        x, real = self._steps(views, actions, present)
        # The observation of the last step, but not its action.
        observed = x.shape[1] - self._of_action()
        x, real = x[:, :observed], real[:, :observed]
        hidden, running = self.body(x, real, cache)
        chosen: list[Any] = []
        hidden = hidden[:, -1]
        for number in range(self.adapter.length):
            own = None if key is None else jax.random.fold_in(key, number)
            part = self.adapter.choose(self.body, hidden, chosen, own, legal)
            chosen.append(part)
            if number + 1 < self.adapter.length:
                token = self.adapter.token(part)
                x = self.adapter.embed(self.body, token, number)[:, None]
                hidden, running = self.body(x, jnp.ones((n, 1), bool), running)
                hidden = hidden[:, 0]
        return self.adapter.decode(chosen)

    def _hidden(
        self,
        views: Mapping[str, jax.Array],
        actions: jax.Array,
        present: jax.Array,
        key: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """Return the states before each part of each action, [b, m, length, width]."""
        b, m = present.shape
        if self.span > 1 and m != self.span:
            raise InputError(
                f"the policy sees {self.span} steps, and the views have {m}: set "
                "views.span to model.span"
            )
        x, real = self._steps(views, actions, present)
        layout: dict[str, Any] = {}
        text = views.get(TEXT)
        words = 0
        if text is not None:
            told, of_text = self._told(text[:, 0])
            words = told.shape[1]
            x = jnp.concatenate([told, x], 1)
            real = jnp.concatenate([of_text, real], 1)
        if self.span == 1:
            each = self._of_step()
            step = np.concatenate([np.full(words, -1), np.repeat(np.arange(m), each)])
            same = (step[None] == -1) | (step[None] == step[:, None])
            before = np.tril(np.ones((len(step),) * 2, bool))
            layout["seen"] = jnp.asarray(same & before)[None]
            told_to = real[:, :words].sum(1, keepdims=True)
            of_steps = rearrange(real[:, words:], "b (m s) -> b m s", m=m)
            inside = jnp.cumsum(of_steps, 2, dtype=jnp.int32).reshape(b, -1) - 1
            first = jnp.cumsum(real[:, :words], 1, dtype=jnp.int32) - 1
            position = jnp.concatenate([first, told_to + inside], 1)
            layout["position"] = jnp.maximum(position, 0).astype(jnp.int32)
        self._check_context(words + self.span * self._of_step())
        hidden, _ = self.body(x, real, train=train, key=key, **layout)
        steps = rearrange(hidden[:, words:], "b (m s) d -> b m s d", m=m)
        first_part = self._of_step() - self._of_action() - 1
        return steps[:, :, first_part : first_part + self.adapter.length]

    def _steps(
        self, views: Mapping[str, jax.Array], actions: jax.Array, present: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the embeddings of all steps [b, m * tokens, width], and if real."""
        b, m = present.shape
        parts, real = [], []
        for name, bridge in self.bridges.items():
            if name not in views:
                raise InputError(f"the views have no {name!r}, which a bridge reads")
            seen = bridge(rearrange(views[name], "b m ... -> (b m) ..."))
            parts.append(rearrange(seen, "(b m) s d -> b m s d", m=m))
            real.append(jnp.broadcast_to(present[..., None], parts[-1].shape[:3]))
        taken = self._of_action()
        if taken:
            flat = rearrange(actions, "b m ... -> (b m) ...")
            encoded, on = self.adapter.encode(flat)
            each = [
                self.adapter.embed(self.body, encoded[:, number], number)
                for number in range(taken)
            ]
            parts.append(rearrange(jnp.stack(each, 1), "(b m) s d -> b m s d", m=m))
            # The last part only tells later steps what was done.
            real.append(on[:, :taken].reshape(b, m, taken) & present[..., None])
        x = jnp.concatenate([part.astype(self.body.dtype) for part in parts], 2)
        whole = jnp.concatenate(real, 2)
        return rearrange(x, "b m s d -> b (m s) d"), whole.reshape(b, -1)

    def _told(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        real = text >= 0
        return self.body.embed(jnp.where(real, text, 0)), real

    def _check_context(self, length: int) -> None:
        if length > self.body.context:
            raise InputError(
                f"an instruction and {self.span} steps are {length} tokens, and the "
                f"body's context is {self.body.context}; lower span or length"
            )

    def _of_action(self) -> int:
        """Parts of an action that are read: all, if later steps see them."""
        return self.adapter.length - (self.span == 1)

    def _of_step(self) -> int:
        """Tokens of a step."""
        observed = sum(bridge.count for bridge in self.bridges.values())
        return observed + self._of_action()

    def _present(self, present: Mapping[str, jax.Array], b: int, m: int) -> jax.Array:
        found = jnp.ones((b, m), bool)
        for name in self.bridges:
            found &= present[name]
        return found
