"""Two classifiers of classes by their attributes, fitted on frozen features.

See `polyview.evaluation.attributes` for the equations.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from polyview.errors import TINY, InputError, check_range
from polyview.evaluation import ridge
from polyview.evaluation.features import unit


class RidgeFit(NamedTuple):
    """a(f) = f W + w; weight float64[d, a], bias and centre float64[a].

    centre: the mean vector of the seen classes.
    """

    weight: np.ndarray
    bias: np.ndarray
    centre: np.ndarray

    def attributes(self, x: np.ndarray) -> np.ndarray:
        """Return the attributes of rows, float[n, d] -> float64[n, a]."""
        return x @ self.weight + self.bias

    def scores(self, x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Return the cosine with the vector of each class, both apart from the centre.

        x: float[n, d]; vectors: float[c, a] -> float64[n, c].
        """
        predicted = self.attributes(x) - self.centre
        return unit(predicted) @ unit(vectors - self.centre).T


def fit_ridge(
    x: np.ndarray, place: np.ndarray, vectors: np.ndarray, strengths: Iterable[float]
) -> Iterator[RidgeFit]:
    """Fit x[n, d] to the rows `place` int[n] of the seen classes' vectors[c, a].

    Once with each strength; see `polyview.evaluation.ridge`.
    """
    centre = vectors.mean(axis=0)
    # The predictions at 0 and at each axis are w and w + W.
    corners = np.concatenate([np.zeros((1, x.shape[1])), np.eye(x.shape[1])])
    for at in ridge.predictions(x, vectors[place], corners, strengths):
        yield RidgeFit(weight=at[1:] - at[0], bias=at[0], centre=centre)


class SoftmaxFit(NamedTuple):
    """weight W[d, k], mapping G[a, k], and the mean of the seen classes' vectors."""

    weight: np.ndarray
    mapping: np.ndarray
    centre: np.ndarray

    def scores(self, x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Return -|f W - (a_c - mean a) G|^2 + |f W|^2 of each class, float[n, c]."""
        rows, classes = x @ self.weight, (vectors - self.centre) @ self.mapping
        return 2 * rows @ classes.T - np.square(classes).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class SoftmaxHead:
    """p(c | f) = softmax over seen c of -|f W - (a_c - mean a) G|^2.

    Minimises mean_i -log p(y_i | f_i) + decay / 2 (|W|^2 + |G|^2) by L-BFGS on all rows
    at once, from W = 0 and a random G of the seed. Deterministic.

    Attributes:
      width: dimensions of the space where rows and classes meet.
      decays: weight decays to choose from.
      iterations: at most so many.
      rows: at most so many rows of train, drawn at random.
    """

    width: int = 64
    decays: Sequence[float] = (1e-3, 1e-2, 3e-2, 1e-1)
    iterations: int = 50
    rows: int = 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "decays", ascending("decays", self.decays))
        check_range(1, width=self.width, iterations=self.iterations, rows=self.rows)

    def fit(
        self,
        x: np.ndarray,
        place: np.ndarray,
        vectors: np.ndarray,
        decay: float,
        seed: int,
    ) -> SoftmaxFit:
        """Fit x[n, d] to the rows `place` int[n] of the seen classes' vectors[c, a]."""
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(x))[: self.rows]
        centre = vectors.mean(axis=0)
        dimensions, attributes = x.shape[1], vectors.shape[1]
        start = rng.normal(size=(attributes, self.width)) / math.sqrt(self.width)
        shapes = (dimensions, self.width), (attributes, self.width)
        cut = dimensions * self.width
        data = (
            jnp.asarray(x[rows], jnp.float32),
            jnp.asarray(place[rows], jnp.int32),
            jnp.asarray(vectors - centre, jnp.float32),
        )

        def parts(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return flat[:cut].reshape(shapes[0]), flat[cut:].reshape(shapes[1])

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = tuple(part.astype(np.float32) for part in parts(flat))
            value, gradient = _loss_and_gradient(weights, *data, np.float32(decay))
            flat = np.concatenate([np.asarray(g).ravel() for g in gradient])
            return float(value), flat.astype(np.float64)

        found = scipy.optimize.minimize(
            loss,
            np.concatenate([np.zeros(cut), start.ravel()]),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": self.iterations},
        )
        return SoftmaxFit(*parts(found.x), centre)


@jax.jit
@jax.value_and_grad
def _loss_and_gradient(
    weights: tuple[jax.Array, jax.Array],
    x: jax.Array,
    place: jax.Array,
    vectors: jax.Array,
    decay: jax.Array,
) -> jax.Array:
    weight, mapping = weights
    exact = partial(jnp.matmul, precision="highest")
    rows, classes = exact(x, weight), exact(vectors, mapping)
    lengths = jnp.sum(jnp.square(classes), axis=1)
    own = 2 * jnp.sum(rows * classes[place], axis=1) - lengths[place]
    every = jax.nn.logsumexp(2 * exact(rows, classes.T) - lengths[None], axis=1)
    penalty = jnp.sum(jnp.square(weight)) + jnp.sum(jnp.square(mapping))
    return jnp.mean(every - own) + decay / 2 * penalty


def ascending(name: str, values: Sequence[float]) -> tuple[float, ...]:
    values = tuple(values)  # JSON configs have lists
    numbers: dict[str, Any] = {name: values}
    check_range(TINY, **numbers)
    if not values or list(values) != sorted(set(values)):
        raise InputError(
            f"evaluation: {name} are {values}; give one or more, ascending"
        )
    return values
