"""Weighted k-nearest-neighbour classification of features, without training.

The k training rows with the largest cosine similarity s to a test row vote for their
labels with weight exp(s / temperature) (Wu et al. 2018). k = 20 and temperature = 0.07
are the values of Caron et al. 2021. The config fixes both; neither is tuned on the test
set. Few-shot kNN lets only N random training rows a class vote, anew in each draw, with
k at most N, as in the public evaluation of DINOv2 (Oquab et al. 2024).
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polyview.errors import InputError, check_range

_SIMILARITIES = 2**24  # the most in memory at once: 64 MiB of float32


class Neighbours(NamedTuple):
    """The k nearest training rows of q queries, nearest first.

    index: int[q, k]; similarity: float32[q, k].
    """

    index: np.ndarray  # type: ignore[assignment]  # shadows tuple.index
    similarity: np.ndarray


@dataclasses.dataclass(frozen=True)
class WeightedKnn:
    """kNN classifier: k neighbours, votes exp(cosine / temperature).

    Attributes:
      k: one number, or several; all are reported, none is chosen.
      temperature: of the votes.
      per_class: numbers N of training rows a class, for few-shot kNN.
      draws: how often these are drawn.
    """

    k: int | Sequence[int] = 20
    temperature: float = 0.07
    per_class: Sequence[int] = ()
    draws: int = 5

    def __post_init__(self) -> None:
        for name in ("k", "per_class"):
            value = getattr(self, name)
            if isinstance(value, Sequence):  # JSON configs have lists
                object.__setattr__(self, name, tuple(value))
        check_range(1, per_class=self.per_class, draws=self.draws)
        ks: Sequence = self.k if isinstance(self.k, tuple) else [self.k]
        whole = all(type(k) is int and k >= 1 for k in ks)
        if not ks or not whole or len(set(ks)) < len(ks) or self.temperature <= 0:
            raise InputError(
                f"kNN needs k >= 1, or several without repeats, and temperature > 0, "
                f"not k={self.k}, temperature={self.temperature}"
            )

    def described(self) -> dict[str, Any]:
        """Return the settings for a protocol; few-shot kNN only if it is asked for."""
        settings: dict[str, Any] = {"k": self.k, "temperature": self.temperature}
        if self.per_class:
            settings |= {"per_class": self.per_class, "draws": self.draws}
            settings["few_shot_k"] = "k, but at most the rows of a class"
        return settings

    def scores(
        self,
        train: np.ndarray,
        labels: np.ndarray,
        test: np.ndarray,
        classes: int,
        most: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the votes for each class, {name: float32[q, classes]}.

        The name is "knn"; for several k it is "knn@K" for each K. train is [n, d],
        labels int[n], test [q, d]. Similarities are computed once, for the largest k. A
        k above `most` is `most`. With fewer than k training rows, all of them vote.
        """
        ks = [self.k] if isinstance(self.k, int) else [*self.k]
        ks = ks if most is None else sorted({min(k, most) for k in ks})
        near = neighbours(train, test, k=max(ks))
        return {
            "knn" if isinstance(self.k, int) else f"knn@{k}": self._votes(
                near, labels, classes, k
            )
            for k in ks
        }

    def _votes(
        self, near: Neighbours, labels: np.ndarray, classes: int, k: int
    ) -> np.ndarray:
        similarity, index = near.similarity[:, :k], near.index[:, :k]
        # Scale the largest weight of a row to 1: only votes of one row are compared.
        weight = np.exp((similarity - similarity[:, :1]) / self.temperature)
        votes = np.zeros((len(index), classes), np.float32)
        rows = np.arange(len(index))[:, None]
        np.add.at(votes, (rows, np.asarray(labels)[index]), weight)
        return votes


def neighbours(train: np.ndarray, test: np.ndarray, *, k: int) -> Neighbours:
    """Find the k training rows nearest to each test row in cosine similarity.

    train is [n, d], test [q, d]. The search is exact. Queries are processed in blocks,
    so that memory does not grow with n * q. Ties go to the lower index.
    """
    block = max(1, min(len(test), _SIMILARITIES // len(train)))
    similarity, index = _nearest(
        _unit(train), _unit(test), k=min(k, len(train)), block=block
    )
    return Neighbours(np.asarray(index), np.asarray(similarity))


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


@partial(jax.jit, static_argnames=("k", "block"))
def _nearest(
    train: jax.Array, test: jax.Array, *, k: int, block: int
) -> tuple[jax.Array, jax.Array]:
    def one(query: jax.Array) -> Sequence[jax.Array]:
        return jax.lax.top_k(jnp.matmul(train, query, precision="highest"), k)

    return jax.lax.map(one, test, batch_size=block)
