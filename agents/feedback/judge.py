"""Judges: which of a pair's two observations is the better one, and how surely.

    judge = Oracle(flip=0.1)
    ask = judge(pairs)          # all that may be asked, see `agents.feedback.pairs`
    first, second = ask(pair)   # see `agents.feedback.labels`

A judge answers a pair alone and by its settings alone: in whatever order it is asked,
and whichever it was asked before, the answers are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from agents.feedback import prompts
from agents.feedback.prompts import DIGITS, LETTERS, NOTHING, VERSION, Prompt
from agents.feedback.reading import Answers, Language, mean_states
from polyview.errors import InputError, check_range

Pair = Mapping[str, Any]
Ask = Callable[[Pair], tuple[float, float]]

CAPTIONS = ("caption_1", "caption_2")


class Judge(Protocol):
    """What labels pairs; see the module.

    Attributes:
      settings: what answers follow from, beside the model.
      model: the digest of a model, or None.
      prompt: the version of what it is asked, or None.
    """

    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def model(self) -> str | None: ...
    @property
    def prompt(self) -> str | None: ...

    def __call__(self, pairs: Sequence[Pair]) -> Ask: ...


@dataclass(frozen=True)
class Oracle:
    """Knows the true values, and errs as much as it is told to.

    Attributes:
      flip: the share of pairs whose preference it turns.
      bias: what is added to the logit of the observation that is shown first.
      ties: the share of pairs that it calls a tie, beside those of equal value.
      sure: the size of its evidence. With a larger bias it always says "first".
      seed: decides with a pair's number which are turned or called ties.

    Raises OutOfRange for a share outside 0 .. 1, and InputError for a pair without
    values.
    """

    flip: float = 0.0
    bias: float = 0.0
    ties: float = 0.0
    sure: float = 1.0
    seed: int = 0
    model: None = None
    prompt: None = None

    def __post_init__(self) -> None:
        check_range(0.0, 1.0, flip=self.flip, ties=self.ties)
        check_range(-1e6, 1e6, bias=self.bias)
        check_range(0.0, 1e6, sure=self.sure)
        check_range(0, 2**32 - 1, seed=self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """All of it."""
        names = ("flip", "bias", "ties", "sure", "seed")
        return {"kind": "oracle", **{name: getattr(self, name) for name in names}}

    def __call__(self, pairs: Sequence[Pair]) -> Ask:
        """Return what answers for a pair."""
        del pairs
        return self._ask

    def _ask(self, pair: Pair) -> tuple[float, float]:
        one, other = np.asarray(pair["value"], np.float64)
        if not np.isfinite(one - other):
            raise InputError(
                f"pair {pair['pair']} has the values {one} and {other}; an oracle "
                "needs pairs with true values"
            )
        turned, tied = np.random.default_rng((self.seed, pair["pair"])).random(2)
        evidence = self.sure * float(np.sign(one - other))
        evidence *= (turned >= self.flip) * 2 - 1
        evidence *= tied >= self.ties
        return evidence + self.bias, evidence - self.bias


@dataclass(frozen=True)
class Shorter:
    """Prefers the shorter caption, a control."""

    model: None = None
    prompt: None = None

    @property
    def settings(self) -> dict[str, Any]:
        """It has none."""
        return {"kind": "shorter"}

    def __call__(self, pairs: Sequence[Pair]) -> Ask:
        """Return what answers for a pair: letters that the other has more."""
        del pairs

        def ask(pair: Pair) -> tuple[float, float]:
            more = float(len(pair["caption_2"]) - len(pair["caption_1"]))
            return more, more

        return ask


@dataclass(frozen=True)
class _Reading:
    """A judge that a language model is.

    Attributes:
      language: the model.
      about: says which model, for the settings.
    """

    language: Language
    about: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The model's."""
        return dict(self.about)

    @property
    def model(self) -> str:
        """The model's digest."""
        return self.language.digest


@dataclass(frozen=True)
class Asked(_Reading):
    """A language model is asked in both orders which of two captions it prefers.

    Evidence is the gap of the logits of the answers " A" and " B".

    Attributes:
      language, about: see `_Reading`.
      wording: a key of `agents.feedback.prompts.WORDINGS`.
      shuffled: ask for another pair's goal, a control.
      seed: of the goals, if they are shuffled.
    """

    wording: str = "default"
    shuffled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(0, 2**32 - 1, seed=self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """The model's, and the goal."""
        goal = {"goal": "shuffled", "seed": self.seed} if self.shuffled else {}
        return {**self.about, "goal": self.wording, **goal}

    @property
    def prompt(self) -> str:
        """The version of the wording."""
        return f"{self.wording}-{VERSION}"

    def __call__(self, pairs: Sequence[Pair]) -> Ask:
        """Return what answers for a pair. Raises InputError for what cannot be asked"""
        goals = sorted({pair["instruction"] for pair in pairs})
        if self.shuffled and len(goals) < 2:
            raise InputError(f"all pairs have the goal {goals[0]!r}: none to shuffle")

        def both(pair: Pair) -> tuple[Prompt, Prompt]:
            goal, (one, other) = pair["instruction"], (pair[c] for c in CAPTIONS)
            if self.shuffled:
                rng = np.random.default_rng((self.seed, pair["pair"]))
                others = [known for known in goals if known != goal]
                goal = others[int(rng.random() * len(others))]
            return (
                prompts.comparison(self.wording, goal, one, other),
                prompts.comparison(self.wording, goal, other, one),
            )

        asked = (prompt for pair in pairs for prompt in both(pair))
        answers = Answers(self.language, asked, LETTERS)

        def ask(pair: Pair) -> tuple[float, float]:
            gaps = [float(a - b) for a, b in (answers[p] for p in both(pair))]
            return gaps[0], -gaps[1]

        return ask


@dataclass(frozen=True)
class Scalar(_Reading):
    """A language model rates each caption from 0 to 9: the expected digit.

    Evidence is the difference of ratings; there is no order. For the attributes see
    `_Reading`.
    """

    @property
    def prompt(self) -> str:
        """The version of the question."""
        return f"rating-{VERSION}"

    def __call__(self, pairs: Sequence[Pair]) -> Ask:
        """Return what answers for a pair."""

        def question(pair: Pair, name: str) -> Prompt:
            return prompts.rating(pair["instruction"], pair[name])

        asked = (question(pair, name) for pair in pairs for name in CAPTIONS)
        answers = Answers(self.language, asked, DIGITS)

        def rated(pair: Pair, name: str) -> float:
            logits = answers[question(pair, name)].astype(np.float64)
            shares = np.exp(logits - logits.max())
            return float(shares @ np.arange(10) / shares.sum())

        def ask(pair: Pair) -> tuple[float, float]:
            one, other = (rated(pair, name) for name in CAPTIONS)
            return one - other, one - other

        return ask


@dataclass(frozen=True)
class Embedding(_Reading):
    """Prefers the caption whose mean hidden state is more like that of the goal.

        s(caption) = cos(caption, goal) - cos(caption, "N/A")

    For the attributes see `_Reading`.
    """

    @property
    def prompt(self) -> str:
        """The version of what is subtracted."""
        return f"embedding-{VERSION}"

    def __call__(self, pairs: Sequence[Pair]) -> Ask:
        """Return what answers for a pair."""
        names = ("instruction", *CAPTIONS)
        texts = [NOTHING, *(pair[name] for pair in pairs for name in names)]
        states = {
            text: state / np.linalg.norm(state)
            for text, state in mean_states(self.language, texts).items()
        }

        def alike(pair: Pair, name: str) -> float:
            caption, goal = states[pair[name]], states[pair["instruction"]]
            return float(caption @ (goal - states[NOTHING]))

        def ask(pair: Pair) -> tuple[float, float]:
            one, other = (alike(pair, name) for name in CAPTIONS)
            return one - other, one - other

        return ask
