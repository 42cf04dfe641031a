"""A language model reads prompts: scores of possible answers, or a mean state.

Nothing is generated. Each distinct prompt is read once, and what all prompts of a
wording begin with only once for all.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from agents.feedback.prompts import Prompt
from agents.llm import prepared, running
from agents.llm.llama import Body
from agents.llm.running import Speaker
from polyview import devices
from polyview.errors import InputError, check_range
from polyview.model import Parts
from polyview.runs.checksum import flatten
from polyview.runs.load import untrained_model
from polyview.runs.workdir import read_config

_READER = "agents.feedback.reading:Reader"
_BUCKET = 16  # prompts are padded to a multiple of so many tokens
_ROWS = 16  # prompts side by side


class Reader(nnx.Module):
    """A body that reads texts and writes nothing.

    Args:
      body: makes the body.
    """

    def __init__(self, *, body: Callable[..., Body], rngs: nnx.Rngs):
        self.body = body(rngs=rngs)

    def begin(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return keys and values [layers, 1, s, kv_heads, head] of int32[s]."""
        body, s = self.body, len(tokens)
        cache = body.empty_cache(1, s)
        real = jnp.ones((1, s), bool)
        _, read = body(body.embed(tokens[None]), real, cache)
        assert read is not None
        return read.k, read.v

    def answers(
        self,
        beginning: tuple[jax.Array, jax.Array],
        tokens: jax.Array,
        real: jax.Array,
        choices: jax.Array,
    ) -> jax.Array:
        """Return the logits of tokens that may come next, [b, n].

        beginning: of all rows, from `begin`; tokens: int32[b, t], real: bool[b, t],
        with padding on the right; choices: int32[n].
        """
        (b, t), s = tokens.shape, beginning[0].shape[2]
        before = tuple(
            jnp.broadcast_to(part, (len(part), b, *part.shape[2:]))
            for part in beginning
        )
        causal = jnp.tril(jnp.ones((t, s + t), bool), s)[None]
        position = jnp.maximum(s + jnp.cumsum(real, 1, dtype=jnp.int32) - 1, 0)
        hidden, _ = self.body(
            self.body.embed(tokens),
            real,
            before=(before[0], before[1]),
            position=position,
            seen=causal,
        )
        last = jnp.maximum(real.sum(1) - 1, 0)[:, None, None]
        hidden = jnp.take_along_axis(hidden, last, 1)[:, 0]
        return self.body.logits(hidden, choices)  # type: ignore[arg-type]

    def means(self, tokens: jax.Array, real: jax.Array) -> jax.Array:
        """Return the mean hidden state of each text, [b, width], float32."""
        hidden, _ = self.body(self.body.embed(tokens), real)
        kept = jnp.where(real[..., None], hidden.astype(jnp.float32), 0)
        return kept.sum(1) / jnp.maximum(real.sum(1), 1)[:, None]


@dataclass(frozen=True)
class Language:
    """A language model that can be asked.

    Attributes:
      model: a `Reader` on the devices.
      digest: sha256 of its weights.
      tokenizer: of its texts.
      context: the most tokens of a prompt.
    """

    model: Any
    digest: str
    tokenizer: Any
    context: int

    def only_token(self, text: str) -> int:
        """Return the token of a possible answer. Raises InputError unless it is one."""
        tokens = self.tokenizer.encode(text)
        if len(tokens) != 1:
            raise InputError(
                f"the answer {text!r} is {len(tokens)} tokens of this model, and must "
                "be one: take another model"
            )
        return tokens[0]


class Answers:
    """What a model says to prompts: {prompt: float32[n], logits of n choices}.

    Prompts are read in batches, when one of them is asked for. Which share a batch
    follows from the order of `prompts` alone, so that answers are the same to the last
    bit whichever are asked for.

    Args:
      language: the model.
      prompts: all that may be asked for, of one wording; equal ones are read once.
      choices: possible answers, each one token.
    """

    def __init__(
        self, language: Language, prompts: Iterable[Prompt], choices: Sequence[str]
    ):
        self._language = language
        encode = language.tokenizer.encode
        tokens = [language.only_token(choice) for choice in choices]
        self._choices = np.array(tokens, np.int32)
        self._known: dict[str, np.ndarray] = {}
        self._batch: dict[str, list[tuple[str, list[int]]]] = {}
        self._beginning: Any = None
        self._shared: list[int] = []
        open_: dict[int, list[tuple[str, list[int]]]] = {}
        wording = ""
        for prompt in prompts:
            if not self._batch:
                wording, self._shared = prompt.shared, encode(prompt.shared)
            if prompt.shared != wording:
                raise ValueError("prompts of one wording begin with the same text")
            key = self._key(prompt)
            if key in self._batch:
                continue
            rest = encode(prompt.own)
            if len(self._shared) + len(rest) > language.context:
                raise InputError(
                    f"{prompt.own.strip()!r:.80} makes a prompt of "
                    f"{len(self._shared) + len(rest)} tokens, and the model's context "
                    f"has {language.context}: shorten captions"
                )
            batch = open_.setdefault(math.ceil(len(rest) / _BUCKET), [])
            batch.append((key, rest))
            self._batch[key] = batch
            if len(batch) == _ROWS:
                del open_[math.ceil(len(rest) / _BUCKET)]

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, prompt: Prompt) -> np.ndarray:
        key = self._key(prompt)
        if key not in self._known:
            self._read(self._batch[key])
        return self._known[key]

    def _key(self, prompt: Prompt) -> str:
        told = f"{self._language.digest}\n{prompt.text}"
        return hashlib.sha256(told.encode()).hexdigest()

    def _read(self, batch: list[tuple[str, list[int]]]) -> None:
        model = self._language.model
        if self._beginning is None:
            shared = np.array(self._shared, np.int32)
            self._beginning = model.call("begin", shared)
        tokens, real = _padded([rest for _, rest in batch])
        found = np.asarray(
            model.call("answers", self._beginning, tokens, real, self._choices)
        )
        for (key, _), row in zip(batch, found, strict=False):  # padding is left out
            self._known[key] = row


def mean_states(language: Language, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Return {text: its mean hidden state, float32[width]}, each read once."""
    rows = [(text, language.tokenizer.encode(text)) for text in dict.fromkeys(texts)]
    rows.sort(key=lambda row: len(row[1]))
    found: dict[str, np.ndarray] = {}
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        if len(some[-1][1]) > language.context:
            raise InputError(
                f"{some[-1][0]!r:.80} has {len(some[-1][1])} tokens, and the model's "
                f"context has {language.context}: shorten it"
            )
        states = language.model.call("means", *_padded([row for _, row in some]))
        found |= dict(zip([t for t, _ in some], np.asarray(states), strict=False))
    return found


def _padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens int32[_ROWS, t] and whether they are real; t is a bucket's."""
    longest = max([1, *map(len, rows)])
    length = math.ceil(longest / _BUCKET) * _BUCKET
    tokens = np.zeros((_ROWS, length), np.int32)
    real = np.zeros((_ROWS, length), bool)
    for row, own in enumerate(rows):
        tokens[row, : len(own)], real[row, : len(own)] = own, True
    return tokens, real


def of_model(name: str, layers: int | None = None) -> Language:
    """Return a prepared model; layers: the first blocks, None for all.

    Raises InputError for a model that is not prepared.
    """
    speaker = running.of_model(name, layers)
    made = speaker.parts(_READER)
    return _language(speaker, made, prepared.describe(name)["weights"])


def of_shape(name: str, layers: int | None = None, seed: int = 0) -> Language:
    """Return a model of a prepared one's shape with random weights, as a control."""
    check_range(0, 2**32 - 1, seed=seed)
    speaker = running.of_model(name, layers)
    spec = {"partial": _READER, "body": dict(speaker.spec)}
    whole = devices.replicated(devices.make_mesh())
    made = untrained_model(ConfigDict({"model": spec, "seed": seed}), whole, None)
    return _language(speaker, made.parts, _digest(made.parts))


def of_run(run: Path, name: str, trust: tuple[str, ...] = ()) -> Language:
    """Return the body of a run; see `agents.llm.running:of_run` and `check_body`."""
    check_body(run)
    speaker = running.of_run(run, name, trust)
    made = speaker.parts(_READER)
    return _language(speaker, made, _digest(made))


def check_body(run: Path) -> None:
    """Raise InputError unless the config of a run has a body of a language model.

    The config is not trusted: nothing that it names is imported or called.
    """
    config = read_config(run).to_dict()
    model, views = config.get("model"), config.get("views", {})
    spec = model.get("body") if isinstance(model, dict) else None
    if not isinstance(spec, dict) or "layers" not in spec:
        raise InputError(
            f"{run} has no body of a language model; name a run that has one, as of "
            "configs/rewards_tuning.py"
        )
    if not isinstance(views, dict) or not isinstance(views.get("text"), dict | None):
        raise InputError(f"{run} is damaged: its config's views.text is no tokenizer")


def _language(speaker: Speaker, made: Parts, digest: str) -> Language:
    model = running.on_devices(made)
    return Language(model, digest, speaker.tokenizer, speaker.context)


def _digest(made: Parts) -> str:
    """Return the sha256 of all arrays by their names."""
    found = hashlib.sha256()
    for part in made[1:]:
        for name, array in sorted(flatten(part).items()):
            found.update(name.encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
