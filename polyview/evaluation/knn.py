"""Weighted k-nearest-neighbour classification of features, without training.

The k training rows with the largest cosine similarity s to a test row vote for their
labels with weight exp(s / temperature) (Wu et al. 2018). k = 20 and temperature = 0.07
are the values of Caron et al. 2021. The config fixes both; neither is tuned on the test
set.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polyview.errors import InputError

_SIMILARITIES = 2**24  # the most in memory at once: 64 MiB of float32


class Neighbours(NamedTuple):
    """The k nearest training rows of q queries, nearest first.

    index: int[q, k]; similarity: float32[q, k].
    """

    index: np.ndarray  # type: ignore[assignment]  # shadows tuple.index
    similarity: np.ndarray


@dataclasses.dataclass(frozen=True)
class WeightedKnn:
    """kNN classifier: k neighbours, votes exp(cosine / temperature)."""

    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0:
            raise InputError(
                f"kNN needs k >= 1 and temperature > 0, "
                f"not k={self.k}, temperature={self.temperature}"
            )

    def scores(
        self, train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int
    ) -> np.ndarray:
        """Return the votes for each class, float32[q, classes].

        train is [n, d], labels int[n], test [q, d]. With fewer than k training rows,
        all of them vote.
        """
        near = neighbours(train, test, k=self.k)
        # Scale the largest weight of a row to 1: only votes of one row are compared.
        nearest = near.similarity[:, :1]
        weight = np.exp((near.similarity - nearest) / self.temperature)
        votes = np.zeros((len(test), classes), np.float32)
        rows = np.arange(len(test))[:, None]
        np.add.at(votes, (rows, np.asarray(labels)[near.index]), weight)
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
