"""Numbered actions as strings of a language model's tokens, of which no other is legal.

The strings form a trie. At each node the softmax is over the tokens that lead to a
legal action alone:

    log p(action) = sum_t log softmax(scores_t over the legal children of node t)[token]

so the probabilities of all legal actions add up to 1. Sampling masks the same scores in
the same place: a filter of samples alone would give the ratios of a policy gradient the
probabilities of another policy (Szot et al. 2024 find such a filter crucial). Where one
string begins another, a token `end` decides that the shorter one is meant; elsewhere a
string ends with its last token, and nothing is asked.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polyview.errors import InputError, check_range
from polyview.rl.ppo import masked_entropy

_PURPOSE = 6  # of a random stream, beside those of other files


class Trie(NamedTuple):
    """Tables of the nodes where a token is chosen; row 0 is the first.

    token: int32[nodes, width], the choices. child: int32[nodes, width], the node that
    each leads to, or `nodes` + action where the string is complete. legal: bool[nodes,
    width], False for padding. reach: bool[nodes, width, actions], which actions are
    still possible after a choice.
    node, choice: int32[actions, length], the path of an action, and on: bool[actions,
    length], where it has one.
    """

    token: np.ndarray
    child: np.ndarray
    legal: np.ndarray
    reach: np.ndarray
    node: np.ndarray
    choice: np.ndarray
    on: np.ndarray


class Step(NamedTuple):
    """What a step of decoding chose: tokens and the nodes they lead to, int32[n]."""

    token: jax.Array
    node: jax.Array


@dataclass(frozen=True)
class Strings:
    """The string of each numbered action, as token ids; the only legal ones.

    `scores` are a language model's logits, float[..., vocabulary]. `legal`, where it
    is given, is bool[n, actions]: the actions that are possible in each row, of which
    there must be one (`check_legal`). Nodes are those of `trie`, and begin with 0.

    Raises InputError without strings, for an empty one, for two actions whose strings
    are the same tokens, and for a string that contains `end`.

    Attributes:
      strings: token ids of each action, in order.
      end: the token that ends a string which begins another one.
    """

    strings: Sequence[Sequence[int]]
    end: int

    def __post_init__(self) -> None:
        strings = tuple(tuple(map(int, string)) for string in self.strings)
        object.__setattr__(self, "strings", strings)  # hashed, as models are
        check_range(0, end=self.end, strings=[t for one in strings for t in one])
        if not strings:
            raise InputError("there is no legal action; give one string or more")
        first: dict[tuple[int, ...], int] = {}
        for action, string in enumerate(strings):
            if not string:
                raise InputError(f"the string of action {action} has no tokens")
            if self.end in string:
                raise InputError(
                    f"the string of action {action} contains the token {self.end} "
                    "that ends a string; write it otherwise"
                )
            if string in first:
                raise InputError(
                    f"actions {first[string]} and {action} have the same tokens "
                    f"{list(string)}; rename one"
                )
            first[string] = action

    @property
    def count(self) -> int:
        """The number of actions."""
        return len(self.strings)

    @property
    def length(self) -> int:
        """The most tokens of an action, with `end` where one must choose it."""
        return self.trie.node.shape[1]

    @functools.cached_property
    def trie(self) -> Trie:
        """The tables."""
        return _tables([tuple(string) for string in self.strings], self.end)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The chosen tokens of each action, int32[actions, length]; then `end`."""
        trie = self.trie
        return np.where(trie.on, trie.token[trie.node, trie.choice], self.end)

    def log_prob(
        self, scores: jax.Array, action: jax.Array, legal: jax.Array | None = None
    ) -> jax.Array:
        """Return log p(action), float[n]; -inf for an action that is not legal.

        scores: float[n, length, v], of each token of the action's row given those
        before it. action: int[n].
        """
        trie = self.trie
        node, choice, on = (
            jnp.asarray(table)[action] for table in (trie.node, trie.choice, trie.on)
        )
        logs = self._log_softmax(scores, node, legal)
        chosen = jnp.take_along_axis(logs, choice[..., None], -1)[..., 0]
        return jnp.where(on, chosen, 0).sum(1)

    def entropy(
        self, scores: jax.Array, action: jax.Array, legal: jax.Array | None = None
    ) -> jax.Array:
        """Return the entropies of the choices along an action's string, their sum [n].

        Arguments are those of `log_prob`. Over drawn actions its mean is the entropy of
        the actions, by the chain rule.
        """
        trie = self.trie
        node, on = (jnp.asarray(table)[action] for table in (trie.node, trie.on))
        logs = self._log_softmax(scores, node, legal)
        each = masked_entropy(logs, jnp.isfinite(logs))
        return jnp.where(on, each, 0).sum(1)

    def choices(
        self, scores: jax.Array, node: jax.Array, legal: jax.Array | None = None
    ) -> jax.Array:
        """Return the log probability of each choice at a node, float[n, width].

        scores: float[n, v]. node: int32[n]. -inf for what is not legal.
        """
        at = jnp.minimum(node, len(self.trie.token) - 1)  # complete ones read any
        return self._log_softmax(scores[:, None], at[:, None], legal)[:, 0]

    def sample(
        self,
        scores: jax.Array,
        node: jax.Array,
        key: jax.Array,
        legal: jax.Array | None = None,
    ) -> Step:
        """Draw the next token of each row; rows that are complete stay, with `end`."""
        logs = self.choices(scores, node, legal)
        return self._taken(node, jax.random.categorical(key, logs))

    def greedy(
        self, scores: jax.Array, node: jax.Array, legal: jax.Array | None = None
    ) -> Step:
        """Take the most probable token of each row, else as `sample`."""
        return self._taken(node, self.choices(scores, node, legal).argmax(-1))

    def complete(self, node: jax.Array) -> jax.Array:
        """Return whether a string is complete, bool[n]."""
        return node >= len(self.trie.token)

    def action(self, node: jax.Array) -> jax.Array:
        """Return the action of complete strings, int32[n]; -1 of others."""
        return jnp.where(self.complete(node), node - len(self.trie.token), -1)

    def check_legal(self, legal: np.ndarray) -> None:
        """Raise InputError if a mask has another shape, or a row without an action.

        For the host: compiled code cannot refuse such a row.
        """
        legal = np.asarray(legal)
        if legal.ndim != 2 or legal.shape[1] != self.count:
            raise InputError(
                f"legal has shape {legal.shape}, and there are {self.count} actions; "
                "give bool[n, actions]"
            )
        if not legal.any(1).all():
            row = int(legal.any(1).argmin())
            raise InputError(f"row {row} has no legal action; give it one or more")

    def _taken(self, node: jax.Array, choice: jax.Array) -> Step:
        trie, done = self.trie, self.complete(node)
        at = jnp.minimum(node, len(trie.token) - 1)
        return Step(
            jnp.where(done, self.end, jnp.asarray(trie.token)[at, choice]),
            jnp.where(done, node, jnp.asarray(trie.child)[at, choice]),
        )

    def _log_softmax(
        self, scores: jax.Array, node: jax.Array, legal: jax.Array | None
    ) -> jax.Array:
        """Return float[n, t, width] of scores[n, t, v] at nodes int32[n, t]."""
        trie = self.trie
        allowed = jnp.asarray(trie.legal)[node]
        if legal is not None:
            reach = jnp.asarray(trie.reach)[node]
            allowed &= (reach & legal[:, None, None, :]).any(-1)
        own = jnp.take_along_axis(scores, jnp.asarray(trie.token)[node], -1)
        own = own.astype(jnp.promote_types(own.dtype, jnp.float32))
        # A row without any choice, in a branch that is not legal, must not be NaN.
        some = allowed.any(-1, keepdims=True)
        logs = jax.nn.log_softmax(own, -1, where=allowed | ~some)
        return jnp.where(allowed, logs, -jnp.inf)


def digit_names(count: int, seed: int = 0) -> tuple[str, ...]:
    """Return arbitrary names of actions, two digits as "5 3", none twice.

    The order of all hundred is drawn by the seed, so more names begin with the same
    ones. Raises OutOfRange for more than there are.
    """
    check_range(1, 100, count=count)
    check_range(0, seed=seed)
    # Raw Philox words are the only random stream that NumPy promises never to change.
    words = np.random.Philox(key=np.array([seed, _PURPOSE], np.uint64)).random_raw(100)
    order = np.argsort(words, kind="stable")[:count]
    return tuple(f"{number // 10} {number % 10}" for number in order.tolist())


def _tables(strings: Sequence[tuple[int, ...]], end: int) -> Trie:
    """Make the tables of a trie, its nodes in the order in which strings pass them."""
    prefixes = dict.fromkeys(
        string[:depth] for string in strings for depth in range(len(string))
    )
    numbers = {prefix: number for number, prefix in enumerate(prefixes)}
    nodes = len(numbers)
    children: list[dict[int, int]] = [{} for _ in range(nodes)]
    paths: list[list[tuple[int, int]]] = []
    for action, string in enumerate(strings):
        path = [(numbers[string[:depth]], one) for depth, one in enumerate(string)]
        if string in numbers:  # it begins another one
            path.append((numbers[string], end))
        for (node, one), (after, _) in zip(path, path[1:], strict=False):
            children[node][one] = after
        children[path[-1][0]][path[-1][1]] = nodes + action
        paths.append(path)
    width, length = max(map(len, children)), max(map(len, paths))
    token = np.full((nodes, width), end, np.int32)
    child = np.zeros((nodes, width), np.int32)
    legal = np.zeros((nodes, width), bool)
    for node, own in enumerate(children):
        token[node, : len(own)] = list(own)
        child[node, : len(own)] = list(own.values())
        legal[node, : len(own)] = True
    reach = np.zeros((nodes, width, len(strings)), bool)
    of_path, choice = np.zeros((2, len(strings), length), np.int32)
    on = np.zeros((len(strings), length), bool)
    for action, path in enumerate(paths):
        for depth, (at, one) in enumerate(path):
            slot = list(children[at]).index(one)
            reach[at, slot, action] = on[action, depth] = True
            of_path[action, depth], choice[action, depth] = at, slot
    return Trie(token, child, legal, reach, of_path, choice, on)
