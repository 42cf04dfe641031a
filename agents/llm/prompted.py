"""A language model is asked for one of a few answers, by their probabilities.

    score(answer) = log p(answer | prompt) - log p(answer | prompt without content)

The second term takes away what a model likes to say whatever it is asked: the "domain
premise" of Holtzman et al. 2021, the "content-free input" of Zhao et al. 2021. Answers
are the strings of a trie (`agents.tokenizers.text`), and p is over them alone. Nothing
is generated.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from agents.llm.llama import Body
from agents.llm.running import Speaker
from agents.tokenizers.text import Strings, Trie
from polyview.errors import InputError
from polyview.model import Model
from polyview.rl.acting import Acted

_BUCKET = 32  # prompts are padded to a multiple of so many tokens
_ROWS = (4, 16)  # prompts side by side, so that few shapes are compiled
_PADDING = -1  # of texts


class Prompted(nnx.Module):
    """The probabilities of answers to prompts.

    Args:
      body: makes the body.
      strings: the tokens of each answer.
      end: the token that ends an answer which begins another one.
    """

    def __init__(
        self,
        *,
        body: Callable[..., Body],
        strings: Sequence[Sequence[int]],
        end: int,
        rngs: nnx.Rngs,
    ):
        self.body = body(rngs=rngs)
        used = sorted({end, *(token for string in strings for token in string)})
        number = {token: place for place, token in enumerate(used)}
        short = [[number[token] for token in string] for string in strings]
        # Of the vocabulary only these tokens are scored: far fewer products.
        self.used, self.strings = tuple(used), Strings(short, number[end])

    def log_prob(self, text: jax.Array) -> jax.Array:
        """Return log p(answer | prompt), float[n, answers]; each row of p sums to 1.

        text: int32[n, t], prompts of one token or more, padded on the right with -1.
        One pass reads a prompt, and after it all nodes of the trie: a node sees the
        prompt and the nodes on its own path.
        """
        trie, (n, t) = self.strings.trie, text.shape
        tree = _tree(trie)
        nodes = len(tree.token)  # but the first, which is the end of the prompt
        if t + nodes > self.body.context:
            raise InputError(
                f"a prompt of {t} tokens and {nodes} of answers are more than the "
                f"body's context of {self.body.context}; shorten it"
            )
        real = text >= 0
        above = np.asarray(self.used, np.int32)[tree.token]
        answers = jnp.broadcast_to(jnp.asarray(above)[None], (n, nodes))
        tokens = jnp.concatenate([jnp.where(real, text, 0), answers], 1)
        count = real.sum(1, dtype=jnp.int32)
        place = jnp.maximum(jnp.cumsum(real, 1, dtype=jnp.int32) - 1, 0)
        deep = count[:, None] + jnp.asarray(tree.depth)[None] - 1
        seen = np.zeros((t + nodes, t + nodes), bool)
        seen[:t, :t], seen[t:, :t] = np.tri(t, dtype=bool), True
        seen[t:, t:] = tree.path
        hidden, _ = self.body(
            self.body.embed(tokens),
            jnp.concatenate([real, jnp.ones((n, nodes), bool)], 1),
            position=jnp.concatenate([place, deep], 1),
            seen=jnp.asarray(seen)[None],
        )
        last = jnp.maximum(count - 1, 0)[:, None, None]
        root = jnp.take_along_axis(hidden, last, 1)
        states = jnp.concatenate([root, hidden[:, t:]], 1)
        scores = self.body.logits(states, self.used)
        each = jnp.tile(jnp.arange(nodes + 1, dtype=jnp.int32), n)
        logs = self.strings.choices(rearrange(scores, "n k v -> (n k) v"), each)
        logs = rearrange(logs, "(n k) w -> n k w", n=n)
        found = logs[:, trie.node, trie.choice]
        return jnp.where(jnp.asarray(trie.on)[None], found, 0).sum(-1)


class _Tree(NamedTuple):
    """The nodes of a trie but the first: the token that leads to each, its depth from
    1 on, and path bool[nodes, nodes], which are on the way to it, itself included."""

    token: np.ndarray
    depth: np.ndarray
    path: np.ndarray


def _tree(trie: Trie) -> _Tree:
    count = len(trie.token)
    token, depth = np.zeros((2, count), np.int32)
    path = np.eye(count, dtype=bool)
    for node, own in enumerate(trie.child):  # parents stand before their children
        for slot, child in enumerate(own):
            if trie.legal[node, slot] and child < count:
                token[child], depth[child] = trie.token[node, slot], depth[node] + 1
                path[child] |= path[node]
    return _Tree(token[1:], depth[1:], path[1:, 1:])


def prompted(speaker: Speaker, answers: Sequence[str]) -> Model:
    """Return `Prompted` on the devices; answers: texts, each after a space.

    Raises InputError for a model without a token that ends a text.
    """
    if speaker.end is None:
        raise InputError("this model has no token that ends a text")
    strings = [speaker.tokenizer.encode(f" {answer}") for answer in answers]
    own = "agents.llm.prompted:Prompted"
    return speaker.module(own, strings=strings, end=speaker.end)


class Asked:
    """What a model answers to prompts; each distinct one is read once.

    As a policy it takes the best answer as a numbered action: `agents.playing:play`
    and evaluations take it in place of a model, with the prompts as instructions.

    Args:
      model: of `Prompted`, on the devices.
      tokenizer: of its prompts.
      blank: the prompt without content; None: scores are log p(answer | prompt).
    """

    def __init__(self, model: Any, tokenizer: Any, blank: str | None = None):
        self._model, self._tokenizer = model, tokenizer
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        self._blank = None if blank is None else self._encoded(blank)

    @property
    def distinct(self) -> int:
        """How many prompts were read."""
        return len(self._known)

    def scores(self, prompts: Sequence[str]) -> np.ndarray:
        """Return the score of each answer, float64[n, answers]."""
        return self._scores([self._encoded(prompt) for prompt in prompts])

    def call(self, method: str, *arguments: Any) -> Any:
        """Do what `agents.playing:play` asks of a policy that sees one step."""
        if method == "recall":  # a prompt says all
            return ()
        if method != "act":
            raise ValueError(f"a model that is asked has no method {method!r}")
        memory, views = arguments[:2]  # nothing is drawn
        rows = [tuple(row[row >= 0].tolist()) for row in np.asarray(views["text"])]
        scores = self._scores(rows)
        best = scores.argmax(-1).astype(np.int32)
        shifted = scores - np.logaddexp.reduce(scores, -1, keepdims=True)
        log_prob = np.take_along_axis(shifted, best[:, None], -1)[:, 0]
        acted: Any = Acted  # of arrays on the host
        return memory, acted(best, log_prob, np.zeros(len(best)))

    def _encoded(self, prompt: str) -> tuple[int, ...]:
        tokens = tuple(self._tokenizer.encode(prompt))
        if not tokens:
            raise InputError("a prompt is empty")
        return tokens

    def _scores(self, prompts: Sequence[tuple[int, ...]]) -> np.ndarray:
        self._read([*prompts, *([self._blank] if self._blank else [])])
        found = np.stack([self._known[prompt] for prompt in prompts])
        return found - self._known[self._blank][None] if self._blank else found

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Read prompts that are not known, those of one length together."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        lengths: dict[int, list[tuple[int, ...]]] = {}
        for prompt in new:
            lengths.setdefault(-(-len(prompt) // _BUCKET) * _BUCKET, []).append(prompt)
        for length, alike in sorted(lengths.items()):
            while alike:
                some, alike = alike[: _ROWS[-1]], alike[_ROWS[-1] :]
                rows = next(rows for rows in _ROWS if len(some) <= rows)
                text = np.full((rows, length), _PADDING, np.int32)
                text[:, 0] = 0  # a padding row must not be empty
                for row, prompt in enumerate(some):
                    text[row, : len(prompt)] = prompt
                found = np.asarray(self._model.call("log_prob", text), np.float64)
                self._known |= dict(zip(some, found, strict=False))
