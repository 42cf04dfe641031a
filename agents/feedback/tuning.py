"""Fine-tune a language model on texts of a world, and measure what it forgets.

views    text     int32[1, length]: prompt and answer, -1 after them
targets  places   int64[room]: of the answer's tokens in the text, -1 after them
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from agents.llm.language import LanguageModel
from agents.llm.llama import Body
from agents.llm.tokenizer import Tokenizer
from polyview import files
from polyview.data.sources.protocol import Source
from polyview.data.views import Example, take
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result
from polyview.objectives.base import Batch

_PADDING = -1
_MOST = 2**24  # bytes of a plain text
_ROWS = 4  # texts side by side: each has scores of a whole vocabulary at each token
_WORDS = 20  # of a paragraph that counts


@dataclass(frozen=True)
class Answered:
    """A question and its answer as tokens; see the module.

    Attributes:
      text: the tokenizer.
      length: room for both, in tokens, and room: for the answer alone; longer ones are
        an InputError.
      end: the token that ends an answer, which is learnt too; None: nothing ends it.
    """

    text: Tokenizer
    length: int
    room: int
    end: int | None = None

    def __post_init__(self) -> None:
        check_range(2, length=self.length)
        check_range(1, self.length - 1, room=self.room)
        check_range(0, end=self.end)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        prompt = self.text.encode(take(example, "prompt"))
        answer = self.text.encode(take(example, "answer"))
        if self.end is not None:
            answer = [*answer, self.end]
        if not prompt or not answer:
            raise InputError("a question or an answer has no tokens")
        tokens = np.array([*prompt, *answer], np.int32)
        for what, size, most in (
            ("length", len(tokens), self.length),
            ("room", len(answer), self.room),
        ):
            if size > most:
                raise InputError(
                    f"{take(example, 'prompt')!r:.80} has an answer of {len(answer)} "
                    f"tokens, together {len(tokens)}, and views.{what} is {most}; give "
                    "more"
                )
        places = np.arange(len(prompt), len(tokens))
        return {
            "views": {"text": _padded(tokens, self.length)[None].astype(np.int32)},
            "present": {"text": np.ones(1, bool)},
            "targets": {"places": _padded(places, self.room).astype(np.int64)},
        }


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """Return values int[n] with -1 after them, int[length]."""
    return np.pad(values, (0, length - len(values)), constant_values=_PADDING)


def answer_log_prob(
    body: Body,
    text: jax.Array,
    places: jax.Array,
    *,
    train: bool = False,
    key: jax.Array | None = None,
) -> jax.Array:
    """Return log p of the tokens of answers given all before, [b, room]; 0 at padding.

    text: int32[b, t]; places: int[b, room], of tokens but the first; both padded with
    -1. Scores of the vocabulary are computed there alone.
    """
    real = text >= 0
    hidden, _ = body(body.embed(jnp.where(real, text, 0)), real, train=train, key=key)
    at = jnp.maximum(places, 1).astype(jnp.int32)
    before = jnp.take_along_axis(hidden, at[..., None] - 1, 1)
    logs = jax.nn.log_softmax(body.logits(before))
    token = jnp.maximum(jnp.take_along_axis(text, at, 1), 0)
    found = jnp.take_along_axis(logs, token[..., None], -1)[..., 0]
    return jnp.where(places >= 0, found, 0)


@dataclass(frozen=True)
class AnswerLoss:
    """The mean of -log p over the tokens of all answers of a batch."""

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Return the loss and metrics; module: with a body, such as `Tuned`."""
        if "places" not in batch["targets"] or not hasattr(module, "body"):
            raise InputError(
                "the loss of answers needs views of agents.feedback.tuning:Answered, a "
                "model with a body, and microbatch=None"
            )
        text, places = batch["views"]["text"][:, 0], batch["targets"]["places"]
        logs = answer_log_prob(module.body, text, places, train=True, key=key)
        loss = -logs.sum() / jnp.maximum((places >= 0).sum(), 1)
        return loss, {"perplexity": jnp.exp(loss)}


class Tuned(LanguageModel):
    """A language model that also tells what it was without its adapters."""

    def now(self, text: jax.Array, places: jax.Array) -> jax.Array:
        """Return `answer_log_prob` of the body."""
        return answer_log_prob(self.body, text, places)

    def before(self, text: jax.Array, places: jax.Array) -> jax.Array:
        """Return `answer_log_prob` of the body without adapters."""
        adapters, self.body.lora = self.body.lora, nnx.Dict()
        found = answer_log_prob(self.body, text, places)
        self.body.lora = adapters
        return found


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of plain text and of held-out answers, with adapters and without.

    Without adapters a body is what it was before it was tuned: how much more perplexing
    plain text has become is what it forgot. Perplexity is exp of the mean of -log p
    over all tokens but the first of each paragraph, or of an answer.

    Attributes:
      plain: a file of text, or a folder of .md files; see `paragraphs`.
      text: the tokenizer.
      most: paragraphs, the first ones.
      length: tokens of a paragraph; the rest of a longer one is left out.
      source, views: of questions and answers, as in training, but of another split.
      answers: how many of these are measured, evenly spread.
    """

    plain: str
    text: Tokenizer
    source: Source
    views: Answered
    most: int = 64
    length: int = 96
    answers: int = 64

    def __post_init__(self) -> None:
        check_range(1, most=self.most, answers=self.answers)
        check_range(2, length=self.length)
        paragraphs(Path(self.plain))

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Measure a `Tuned` model."""
        del mesh  # a few texts; every device reads all
        every = paragraphs(Path(self.plain))[: self.most]
        plain = [self._whole(self.text.encode(text)) for text in every]
        told = self._questions()
        numbers: dict[str, Any] = {
            "protocol": {
                "plain": Path(self.plain).name,
                "sha256": hashlib.sha256("\n\n".join(every).encode()).hexdigest(),
                "paragraphs": len(plain),
                "answers": len(told),
                "answers_digest": getattr(self.source, "digest", ""),
            }
        }
        for name, method in (("before", "before"), ("after", "now")):
            numbers[name] = {
                "plain": _perplexity(model, method, plain),
                "answers": _perplexity(model, method, told),
            }
        forgotten = numbers["after"]["plain"] / numbers["before"]["plain"]
        numbers["forgotten"] = forgotten
        return Result(
            numbers,
            summary=self.summary(numbers),
            columns={
                "plain perplexity": numbers["after"]["plain"],
                "answer perplexity": numbers["after"]["answers"],
                "forgotten": forgotten,
            },
        )

    def _whole(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return a text of which every token but the first counts, and where."""
        kept = np.array(tokens[: self.length], np.int32)
        places = np.arange(1, len(kept), dtype=np.int64)
        return _padded(kept, self.length), _padded(places, self.length - 1)

    def _questions(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return questions with answers, and the places of these."""
        rows = np.linspace(0, len(self.source) - 1, min(self.answers, len(self.source)))
        found = []
        for row in rows.astype(int):
            seen = self.views(self.source[int(row)], np.random.default_rng(0))
            found.append((seen["views"]["text"][0], seen["targets"]["places"]))
        return found

    @staticmethod
    def summary(numbers: Any) -> str:
        """Both perplexities, before and after."""
        before, after = numbers["before"], numbers["after"]
        return (
            f"perplexity of plain text {before['plain']:.4g} -> {after['plain']:.4g}, "
            f"of answers {before['answers']:.4g} -> {after['answers']:.4g}"
        )


def _perplexity(
    model: Any, method: str, rows: Sequence[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Return exp of the mean of -log p over all places of all rows."""
    total, count = 0.0, 0
    for at in range(0, len(rows), _ROWS):
        # A whole batch, in which a row that is repeated does not count.
        some = [rows[min(at + row, len(rows) - 1)] for row in range(_ROWS)]
        text, places = (np.stack(part) for part in zip(*some, strict=True))
        places[len(rows) - at :] = _PADDING
        found = np.asarray(model.call(method, text, places), np.float64)
        total, count = total + found.sum(), count + int((places >= 0).sum())
    return float(np.exp(-total / count))


def paragraphs(path: Path) -> list[str]:
    """Return the paragraphs of a text, or of all .md files of a folder by name.

    Paragraphs stand between empty lines. Those of less than 20 words, code and tables
    are left out. Raises InputError if there is none, and for what is no text.
    """
    if path.is_dir():
        texts = sorted(path.glob("*.md"))
    else:
        texts = [path]
    found = []
    for text in texts:
        if not text.is_file():
            raise InputError(
                f"{text} is no plain text; give a file, or a folder of .md"
            )
        try:
            read = files.read_bounded(text, _MOST).decode()
        except UnicodeDecodeError:
            raise InputError(f"{text} is no text in UTF-8") from None
        prose = re.sub(r"^```.*?^```", "", read, flags=re.MULTILINE | re.DOTALL)
        for block in re.split(r"\n\s*\n", prose):
            if block.lstrip().startswith(("|", "#", "    ", "{", ":::")):
                continue
            words = block.split()
            if len(words) >= _WORDS:
                found.append(" ".join(words))
    if not found:
        raise InputError(f"{path} has no paragraph of {_WORDS} words; give plain text")
    return found
