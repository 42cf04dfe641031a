"""What a tokenizer of actions loses, on episodes that it has not seen."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from agents.tokenizers.residual import fit, perplexity
from agents.tokenizers.training import continuous
from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import InputError, check_range
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.selective import bootstrap

Call = Callable[[str, np.ndarray], Any]

_ROWS = 4096  # actions of a call of the model


@dataclass(frozen=True)
class Tokens:
    """Error of actions after their tokens, and how many codes are used.

    The error is the mean of (a - a')^2 over dimensions and actions, both clipped and
    scaled to [-1, 1], with an interval (95 %) over episodes. Numbers outside the range
    are counted. Of each codebook, perplexity is the exponential of the codes' entropy,
    and `used` the share of codes that occur. With `train` the same is measured of
    residual k-means of these actions, with as many codebooks and codes: what a network
    adds is the difference.

    Attributes:
      test: episodes of a split that the tokenizer was not trained on.
      codes: of the tokenizer.
      train: episodes to fit k-means to; None leaves it out.
      field: of the actions.
      resamples, seed: of the bootstrap; the seed is also that of k-means.
    """

    test: Source
    codes: int
    train: Source | None = None
    field: str = "actions"
    resamples: int = 1000
    seed: int = 0
    spec: Mapping | None = None  # what a config calls its parts; set by `described`

    def __post_init__(self) -> None:
        check_range(1, codes=self.codes)
        check_range(2, resamples=self.resamples)
        check_range(0, seed=self.seed)

    def described(self, spec: Mapping) -> "Tokens":
        """Return a copy whose protocol names its sources by their spec."""
        return dataclasses.replace(self, spec=spec)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Measure a tokenizer."""
        del mesh  # small: every device measures all
        actions, lengths = _read(self.test, self.field)
        found, squares = self.measured(actions, lengths, model.call)
        numbers: dict[str, Any] = {
            "protocol": {
                "test": {
                    "source": in_words(self.spec, "test", self.test),
                    "episodes": len(lengths),
                    "actions": len(actions),
                },
                "codes": self.codes,
                "seed": self.seed,
            },
            **found,
        }
        if self.train is not None:
            known, _ = _read(self.train, self.field)
            own = in_words(self.spec, "train", self.train)
            numbers["protocol"]["k_means"] = {"source": own, "actions": len(known)}
            books = len(found["perplexity"])
            means = self.k_means(np.asarray(model.call("scaled", known)), books)
            scaled = np.asarray(model.call("scaled", actions))
            numbers["k_means"], _ = self.measured(scaled, lengths, means)
            del numbers["k_means"]["clipped"]
        numbers["machine"] = hosts.machine()
        return Result(
            numbers,
            {"squares": squares},
            summary=self.summary(numbers),
            columns=self.columns(numbers),
        )

    def k_means(self, scaled: np.ndarray, codebooks: int) -> Call:
        """Return calls of `ResidualMeans` of scaled actions, whose range is [-1, 1]."""
        size = scaled.shape[1]
        ends = {"low": [-1.0] * size, "high": [1.0] * size}
        means = fit(scaled, codebooks, self.codes, self.seed, **ends)
        return lambda method, rows: getattr(means, method)(jnp.asarray(rows))

    def measured(
        self, actions: np.ndarray, lengths: Sequence[int], call: Call
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return the numbers, and the squared errors float64[n, a] of all actions.

        lengths: of the episodes. call: (a tokenizer's method, rows) -> array.
        """
        tokens, squares, outside = [], [], []
        for start in range(0, len(actions), _ROWS):
            rows = actions[start : start + _ROWS]
            own = np.asarray(call("tokens", rows))
            drawn = call("scaled", np.asarray(call("actions", own)))
            errors = np.asarray(call("scaled", rows)) - np.asarray(drawn)
            tokens.append(own)
            squares.append(np.square(errors.astype(np.float64)))
            outside.append(np.asarray(call("outside", rows)))
        codes, square = np.concatenate(tokens), np.concatenate(squares)
        if codes.min() < 0 or codes.max() >= self.codes:
            raise InputError(
                f"the tokenizer has the tokens {codes.min()} .. {codes.max()}, and the "
                f"evaluation codes={self.codes}; set codes to that of the model"
            )
        counts = np.stack([np.bincount(c, minlength=self.codes) for c in codes.T])
        ends = np.cumsum(lengths)[:-1]
        sums = [[own.sum(), own.size] for own in np.split(square, ends)]
        error = bootstrap(_ratio, [np.array(sums)], self.resamples, self.seed)
        numbers = {
            "error": error.value,
            "error_interval": [error.low, error.high],
            "error_of_dimensions": square.mean(0).tolist(),
            "perplexity": np.asarray(
                perplexity(jnp.asarray(counts, jnp.float32)), np.float64
            ).tolist(),
            "used": (counts > 0).mean(1).tolist(),
            "clipped": float(np.concatenate(outside).mean()),
        }
        return numbers, square

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The error, that of k-means, and the perplexities."""
        text = f"error {numbers['error']:.2e}"
        if "k_means" in numbers:
            text += f" (k-means {numbers['k_means']['error']:.2e})"
        words = " / ".join(f"{value:.0f}" for value in numbers["perplexity"])
        text += f", perplexity {words} of {numbers['protocol']['codes']}"
        return f"{text}, clipped {100 * numbers['clipped']:.2f} %"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The error times 1,000, and the lowest perplexity in % of the codes."""
        share = min(numbers["perplexity"]) / numbers["protocol"]["codes"]
        return {"error x 1000": 1000 * numbers["error"], "perplexity %": 100 * share}


def _read(source: Source, field: str) -> tuple[np.ndarray, list[int]]:
    """Return all actions float32[n, a], and how many each episode has.

    Raises InputError for different numbers a row.
    """
    episodes = [continuous(source[number], field) for number in range(len(source))]
    sizes = {one.shape[1] for one in episodes}
    if len(sizes) > 1:
        raise InputError(
            f"{source!r} has actions of {sorted(sizes)} numbers; take one world's"
        )
    return np.concatenate(episodes), [len(one) for one in episodes]


def _ratio(sums: np.ndarray) -> float:
    return float(sums[:, 0].sum() / sums[:, 1].sum())
