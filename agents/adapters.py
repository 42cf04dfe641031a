"""Action space adapters: how the hidden states of a body become an action.

An adapter (Szot et al. 2024) is a head on hidden states, an embedding that feeds what
was chosen back, and a decoder from all that was chosen to an action:

    length                                      parts of an action, at most
    encode(actions) -> parts, real[n, length]   what an expert's action consists of
    embed(body, part[n, ...], number)           -> [n, width], the input after a part
    loss(body, hidden, actions)                 -> [n], and metrics [n]
    measured(body, hidden, actions, legal)      -> `Measured`, of numbered actions
    choose(body, hidden, chosen, key, legal)    -> the next part, given those before
    decode(chosen)                              -> actions

`hidden: [n, length, width]` is, for each part, the state after those before it. With a
key a part is drawn, without one the likeliest is taken. `legal: bool[n, actions]` or
None restricts numbered actions. Each is made by `adapter(width, rngs=)`.

| adapter | action | parts |
|---|---|---|
| `Regression` | continuous | one, the action itself; squared error |
| `Categorical` | numbered | one |
| `Tokens` | continuous | those of a tokenizer: `Uniform`, or `ResidualVQ` (VQ, RVQ) |
| `Padded` | continuous | those of another one, whose actions have more numbers |
| `Words` | numbered | the words of its name (SemLang), or of arbitrary digits (Lang) |
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from agents.bridges import SCALE
from agents.llm.llama import Body
from agents.tokenizers.text import Step, Strings
from agents.tokenizers.uniform import Range
from polyview.errors import InputError, check_range
from polyview.nn.fixed import freeze
from polyview.rl.ppo import masked_entropy

Part = Any  # int32[n] of tokens, float[n, a] of a regression, or a step of a trie


class Encoded(NamedTuple):
    """Parts of actions [n, length, ...], and bool[n, length]: which an action has."""

    parts: jax.Array
    real: jax.Array


class Measured(NamedTuple):
    """Float[n]: log p(action), the entropy of all, and how many were legal."""

    log_prob: jax.Array
    entropy: jax.Array
    choices: jax.Array


class Adapter(Protocol):
    """See the module."""

    length: int

    def encode(self, actions: jax.Array) -> Encoded: ...

    def embed(self, body: Body, part: jax.Array, number: int) -> jax.Array: ...

    def loss(
        self, body: Body, hidden: jax.Array, actions: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]: ...

    def choose(
        self,
        body: Body,
        hidden: jax.Array,
        chosen: Sequence[Part],
        key: jax.Array | None,
        legal: jax.Array | None,
    ) -> Part: ...

    def token(self, part: Part) -> jax.Array:
        """Return what `embed` takes of a chosen part."""
        ...

    def decode(self, chosen: Sequence[Part]) -> jax.Array: ...


class _Head(nnx.Module):
    """One hidden layer with SiLU; the last layer starts small."""

    def __init__(self, width: int, out: int, hidden: int, **options: Any):
        check_range(1, hidden=hidden, out=out)
        small = jax.nn.initializers.normal(0.01)
        self.up = nnx.Linear(width, hidden, **options)
        self.down = nnx.Linear(hidden, out, kernel_init=small, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.down(jax.nn.silu(self.up(x)))
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))


def _taken(
    scores: jax.Array, key: jax.Array | None, legal: jax.Array | None = None
) -> jax.Array:
    """Return the likeliest column of each row, or a drawn one, int32[n]."""
    if legal is not None:
        scores = jnp.where(legal, scores, -jnp.inf)
    if key is None:
        return scores.argmax(-1).astype(jnp.int32)
    return jax.random.categorical(key, scores).astype(jnp.int32)


class Regression(nnx.Module):
    """Pred of continuous actions: the mean squared error of the scaled action.

    low, high: the range of the data, which is scaled to [-1, 1].
    """

    length = 1

    def __init__(
        self,
        width: int,
        *,
        low: Sequence[float],
        high: Sequence[float],
        hidden: int = 256,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.range = Range(low, high)
        self.head = _Head(width, self.range.size, hidden, **options)
        spread = jax.nn.initializers.normal(SCALE)
        self.back = nnx.Linear(self.range.size, width, kernel_init=spread, **options)

    def encode(self, actions: jax.Array) -> Encoded:
        """Return the scaled actions as the only part."""
        scaled = self.range.scaled(actions)
        return Encoded(scaled[:, None], jnp.ones((len(actions), 1), bool))

    def embed(self, body: Body, part: jax.Array, number: int) -> jax.Array:
        """Return a linear function of the scaled action."""
        return self.back(part)

    def loss(
        self, body: Body, hidden: jax.Array, actions: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the squared error, mean over the dimensions."""
        error = jnp.square(self.head(hidden[:, 0]) - self.range.scaled(actions))
        error = error.mean(-1)
        clipped = self.range.outside(actions).mean(-1)
        return error, {"error": error, "clipped": clipped}

    def choose(
        self,
        body: Body,
        hidden: jax.Array,
        chosen: Sequence[Part],
        key: jax.Array | None,
        legal: jax.Array | None,
    ) -> Part:
        """Return the predicted action; there is nothing to draw."""
        return jnp.clip(self.head(hidden), -1, 1)

    def token(self, part: Part) -> jax.Array:
        """Return the scaled action."""
        return part

    def decode(self, chosen: Sequence[Part]) -> jax.Array:
        """Return the action in its own units."""
        return self.range.restored(chosen[0])


class _Coded(nnx.Module):
    """Parts that are codes, with rows of embedding and head of their own.

    Not overwritten rows of the vocabulary: so a body still reads and writes texts.
    """

    def __init__(
        self,
        width: int,
        places: int,
        codes: int,
        *,
        shared: bool,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        tables = 1 if shared else places
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        small = jax.nn.initializers.normal(0.01)
        self.head = nnx.Linear(width, tables * codes, kernel_init=small, **options)
        shape = (tables, codes, width)
        draw = jax.random.normal(rngs.params(), shape, param_dtype)
        self.table = nnx.Param(SCALE * draw)
        self.codes, self.places, self.shared = codes, places, shared

    def row(self, codes: jax.Array, place: int) -> jax.Array:
        """Return the embeddings of the codes at a place."""
        return self.table[...][0 if self.shared else place][codes]

    def scores(self, hidden: jax.Array, place: int) -> jax.Array:
        """Return the scores of the codes of a place, [n, codes]."""
        found = self.head(hidden)
        found = found.astype(jnp.promote_types(found.dtype, jnp.float32))
        if self.shared:
            return found
        return found.reshape(len(found), self.places, self.codes)[:, place]

    def chosen(self, hidden: jax.Array, place: int, key: jax.Array | None) -> jax.Array:
        """Return a code for each row."""
        return _taken(self.scores(hidden, place), key)

    def cross_entropy(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """Return -log p of codes [n, places] given the states before: [n, places]."""
        found = []
        for place in range(self.places):
            logs = jax.nn.log_softmax(self.scores(hidden[:, place], place))
            own = jnp.take_along_axis(logs, codes[:, place, None], -1)
            found.append(-own[:, 0])
        return jnp.stack(found, 1)


class Categorical(nnx.Module):
    """Pred of numbered actions: a head with a row an action, and cross-entropy."""

    length = 1

    def __init__(
        self,
        width: int,
        *,
        actions: int,
        hidden: int = 256,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, actions=actions)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = _Head(width, actions, hidden, **options)
        draw = jax.random.normal(rngs.params(), (actions, width), param_dtype)
        self.table = nnx.Param(SCALE * draw)
        self.actions = actions

    def encode(self, actions: jax.Array) -> Encoded:
        """Return the number of the action as the only part."""
        real = jnp.ones((len(actions), 1), bool)
        return Encoded(actions.astype(jnp.int32)[:, None], real)

    def embed(self, body: Body, part: jax.Array, number: int) -> jax.Array:
        """Return a learned row of each action."""
        return self.table[...][part]

    def loss(
        self, body: Body, hidden: jax.Array, actions: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return -log p(action)."""
        scores = self.head(hidden[:, 0])
        actions = actions.astype(jnp.int32)
        logs = jax.nn.log_softmax(scores)
        found = jnp.take_along_axis(logs, actions[:, None], -1)[:, 0]
        return -found, {"accuracy": scores.argmax(-1) == actions}

    def measured(
        self,
        body: Body,
        hidden: jax.Array,
        actions: jax.Array,
        legal: jax.Array | None = None,
    ) -> Measured:
        """Return probability and entropy; see the module."""
        scores = self.head(hidden[:, 0])
        legal = jnp.ones(scores.shape, bool) if legal is None else legal
        logs = jax.nn.log_softmax(jnp.where(legal, scores, -jnp.inf))
        own = jnp.take_along_axis(logs, actions.astype(jnp.int32)[:, None], -1)[:, 0]
        return Measured(own, masked_entropy(logs, legal), legal.sum(-1) * 1.0)

    def choose(
        self,
        body: Body,
        hidden: jax.Array,
        chosen: Sequence[Part],
        key: jax.Array | None,
        legal: jax.Array | None,
    ) -> Part:
        """Return the number of an action."""
        return _taken(self.head(hidden), key, legal)

    def token(self, part: Part) -> jax.Array:
        """Return the number."""
        return part

    def decode(self, chosen: Sequence[Part]) -> jax.Array:
        """Return the number."""
        return chosen[0]


class Tokens(nnx.Module):
    """The tokens of a tokenizer, one after another: Uniform, VQ and RVQ.

    Args:
      width: of the body.
      tokenizer: makes `agents.tokenizers.uniform:Uniform` or
        `agents.tokenizers.residual:ResidualVQ`; its weights are fixed, and come from
        the run that trained it: `init = {"adapter.tokenizer": (RUN, "")}`.
      shared: whether all places share one row a code, as in GEA (Szot et al. 2025): a
        code of the second codebook then looks like that of the first.
    """

    def __init__(
        self,
        width: int,
        *,
        tokenizer: Callable[..., Any],
        shared: bool = False,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.tokenizer = tokenizer(rngs=rngs)
        freeze(self.tokenizer)
        self.length, self.size = self.tokenizer.length, self.tokenizer.range.size
        self.coded = _Coded(
            width, self.length, self.tokenizer.codes, shared=shared, **options
        )

    def encode(self, actions: jax.Array) -> Encoded:
        """Return the tokens."""
        tokens = self.tokenizer.tokens(actions)
        return Encoded(tokens, jnp.ones(tokens.shape, bool))

    def embed(self, body: Body, part: jax.Array, number: int) -> jax.Array:
        """Return the row of a token."""
        return self.coded.row(part, number)

    def loss(
        self, body: Body, hidden: jax.Array, actions: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return -sum_m log p(token_m | those before)."""
        tokens = self.tokenizer.tokens(actions)
        losses = self.coded.cross_entropy(hidden, tokens)
        likeliest = [
            self.coded.chosen(hidden[:, place], place, None)
            for place in range(self.length)
        ]
        told = self.tokenizer.actions(jnp.stack(likeliest, 1))
        off = self.tokenizer.scaled(told) - self.tokenizer.scaled(actions)
        metrics = {
            "error": jnp.square(off).mean(-1),  # given the expert's tokens before
            "accuracy": (jnp.stack(likeliest, 1) == tokens).mean(-1),
            "clipped": self.tokenizer.outside(actions).mean(-1),
        }
        return losses.sum(1), metrics

    def choose(
        self,
        body: Body,
        hidden: jax.Array,
        chosen: Sequence[Part],
        key: jax.Array | None,
        legal: jax.Array | None,
    ) -> Part:
        """Return the next token."""
        return self.coded.chosen(hidden, len(chosen), key)

    def token(self, part: Part) -> jax.Array:
        """Return the token."""
        return part

    def decode(self, chosen: Sequence[Part]) -> jax.Array:
        """Return the action of all tokens."""
        return self.tokenizer.actions(jnp.stack(chosen, 1))


class Padded(nnx.Module):
    """Continuous actions of fewer numbers than another adapter's: zeros come after.

    So one tokenizer serves several embodiments (Szot et al. 2025). What was added is
    cut off when an action is decoded; metrics count it.

    Args:
      width: of the body.
      adapter: makes the adapter of the longer actions, `Tokens`.
      size: numbers of an action.

    Raises InputError for more numbers than the other's.
    """

    def __init__(
        self,
        width: int,
        *,
        adapter: Callable[..., Any],
        size: int,
        rngs: nnx.Rngs | None = None,
    ):
        self.inner = adapter(width, rngs=rngs)
        self.length, self.size = self.inner.length, size
        self.added = self.inner.size - size
        if size < 1 or self.added < 0:
            raise InputError(
                f"actions of {size} numbers cannot be padded to {self.inner.size}; "
                "take a tokenizer of longer actions"
            )

    def _padded(self, actions: jax.Array) -> jax.Array:
        return jnp.pad(actions, ((0, 0), (0, self.added)))

    def encode(self, actions: jax.Array) -> Encoded:
        """Return the parts of the padded actions."""
        return self.inner.encode(self._padded(actions))

    def embed(self, body: Body, part: jax.Array, number: int) -> jax.Array:
        """Return the other's embedding."""
        return self.inner.embed(body, part, number)

    def loss(
        self, body: Body, hidden: jax.Array, actions: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the other's loss of the padded actions."""
        return self.inner.loss(body, hidden, self._padded(actions))

    def choose(
        self,
        body: Body,
        hidden: jax.Array,
        chosen: Sequence[Part],
        key: jax.Array | None,
        legal: jax.Array | None,
    ) -> Part:
        """Return the other's choice."""
        return self.inner.choose(body, hidden, chosen, key, legal)

    def token(self, part: Part) -> jax.Array:
        """Return what the other embeds."""
        return self.inner.token(part)

    def decode(self, chosen: Sequence[Part]) -> jax.Array:
        """Return the action without what was added."""
        return self.inner.decode(chosen)[:, : self.size]


class Words(nnx.Module):
    """The words of a numbered action, in the vocabulary of the body: Lang, SemLang.

    Only tokens that lead to an action are possible, in the loss as in acting, so that
    the probabilities of all actions add up to 1. Nothing of this adapter is trained.

    Args:
      width: of the body.
      strings: the tokens of each action, from `agents.parts:words`.
      end: the token that ends a string which begins another one.
      constrained: False takes the softmax over the whole vocabulary in the loss, as
        supervised fine-tuning of a language model does.
    """

    def __init__(
        self,
        width: int,
        *,
        strings: Sequence[Sequence[int]],
        end: int,
        constrained: bool = True,
        rngs: nnx.Rngs | None = None,
    ):
        del width, rngs  # its rows are those of the body
        used = sorted({end, *(token for string in strings for token in string)})
        number = {token: place for place, token in enumerate(used)}
        short = [[number[token] for token in string] for string in strings]
        # Of the vocabulary only these tokens are scored: far fewer products.
        self.used, self.constrained = tuple(used), constrained
        self.strings = Strings(short, number[end])
        self.length, self.actions = self.strings.length, self.strings.count

    def encode(self, actions: jax.Array) -> Encoded:
        """Return the tokens of the actions' strings; not real after a string."""
        trie = self.strings.trie
        rows = jnp.asarray(self.strings.rows)[actions]
        return Encoded(rows.astype(jnp.int32), jnp.asarray(trie.on)[actions])

    def embed(self, body: Body, part: jax.Array, number: int) -> jax.Array:
        """Return the embedding of a token."""
        return body.embed(jnp.asarray(np.array(self.used, np.int32))[part])

    def _scores(self, body: Body, hidden: jax.Array) -> jax.Array:
        return body.logits(hidden, self.used)

    def loss(
        self, body: Body, hidden: jax.Array, actions: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return -log p(action), of the tokens one after another."""
        scores = self._scores(body, hidden)
        actions = actions.astype(jnp.int32)
        found = self.strings.log_prob(scores, actions)
        metrics = {"probability": jnp.exp(found)}
        if not self.constrained:
            tokens, real = self.encode(actions)
            whole = body.logits(hidden)
            own = jnp.take_along_axis(scores, tokens[..., None], -1)[..., 0]
            logs = own - jax.nn.logsumexp(whole, -1)
            found = jnp.where(real, logs, 0).sum(1)
        return -found, metrics

    def measured(
        self,
        body: Body,
        hidden: jax.Array,
        actions: jax.Array,
        legal: jax.Array | None = None,
    ) -> Measured:
        """Return probability and entropy; see the module.

        The entropy is that of the choices along the action's own string. Its mean over
        actions that were drawn is that of the actions; its gradient leaves out that
        other strings would be drawn.
        """
        scores, actions = self._scores(body, hidden), actions.astype(jnp.int32)
        found = self.strings.log_prob(scores, actions, legal)
        entropy = self.strings.entropy(scores, actions, legal)
        count = jnp.full(len(actions), 1.0 * self.actions)
        choices = count if legal is None else legal.sum(-1) * 1.0
        return Measured(found, entropy, choices)

    def choose(
        self,
        body: Body,
        hidden: jax.Array,
        chosen: Sequence[Part],
        key: jax.Array | None,
        legal: jax.Array | None,
    ) -> Part:
        """Return the next step in the trie of the legal strings."""
        scores = self._scores(body, hidden)
        node = chosen[-1].node if chosen else jnp.zeros(len(hidden), jnp.int32)
        if key is None:
            return self.strings.greedy(scores, node, legal)
        return self.strings.sample(scores, node, key, legal)

    def token(self, part: Step) -> jax.Array:
        """Return the token."""
        return part.token

    def decode(self, chosen: Sequence[Step]) -> jax.Array:
        """Return the number of the action."""
        return self.strings.action(chosen[-1].node)
