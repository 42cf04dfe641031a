"""Linear probe: multinomial logistic regression on frozen features.

With features standardised over the training rows, x = (h - mean) / deviation, it solves

    minimise over W, c:  mean_i -log softmax(x_i W + c)[y_i] + decay / 2 |W|^2

by SGD with momentum and a cosine schedule. Learning rate and weight decay are swept:
all pairs train at once, on the same mini-batches, in one vmapped program. The best pair
on held-out training rows is fitted again on all training rows. The test rows are read
once, by that probe.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polyview.errors import InputError

_MOMENTUM = 0.9
_Probe = tuple[jax.Array, jax.Array]  # weight and bias


class Fitted(NamedTuple):
    """Probes of p hyper-parameter pairs: weight [p, d, c], bias [p, c]; the shift and
    scale [d] that standardise features."""

    weight: np.ndarray
    bias: np.ndarray
    shift: np.ndarray
    scale: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Held-out top-1 accuracy [learning rates, weight decays], and the best pair."""

    accuracy: np.ndarray
    learning_rate: float
    weight_decay: float
    border: tuple[str, ...]  # axes of the grid with the best pair at their end


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A linear probe: its grid of hyper-parameters and the length of a fit.

    `steps` is rounded up to whole epochs; `batch_size` is at most the number of rows.
    """

    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    weight_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2)
    steps: int = 2000
    batch_size: int = 500

    def __post_init__(self) -> None:
        for name in ("learning_rates", "weight_decays"):
            values = tuple(getattr(self, name))  # JSON configs have lists
            object.__setattr__(self, name, values)
            if not values or list(values) != sorted(set(values)) or min(values) < 0:
                raise InputError(
                    f"probe: {name} must be non-negative and ascending, not {values}"
                )
        if self.steps < 1 or self.batch_size < 1:
            raise InputError("probe: steps and batch_size must be at least 1")

    def sweep(
        self,
        h: np.ndarray,
        labels: np.ndarray,
        classes: int,
        *,
        validation: float,
        seed: int,
    ) -> Sweep:
        """Fit all pairs on 1 - `validation` of the rows and score them on the rest.

        h is float[n, d], labels int[n]. Ties go to the larger weight decay, then to the
        smaller learning rate.
        """
        held = held_out(labels, validation, seed)
        pairs = [(lr, wd) for lr in self.learning_rates for wd in self.weight_decays]
        fitted = self.fit(h[~held], labels[~held], classes, pairs, seed=seed)
        accuracy = np.asarray(
            [
                np.mean(logits(fitted, h[held], p).argmax(axis=1) == labels[held])
                for p in range(len(pairs))
            ]
        )
        best = max(range(len(pairs)), key=lambda p: (accuracy[p], pairs[p][1], -p))
        learning_rate, weight_decay = pairs[best]
        return Sweep(
            accuracy=accuracy.reshape(
                len(self.learning_rates), len(self.weight_decays)
            ),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            border=self._border(learning_rate, weight_decay),
        )

    def fit(
        self,
        h: np.ndarray,
        labels: np.ndarray,
        classes: int,
        pairs: list[tuple[float, float]],
        *,
        seed: int,
    ) -> Fitted:
        """Train one probe per (learning rate, weight decay), all on the same batches.

        h is float[n, d], labels int[n]. Deterministic, given the seed.
        """
        shift = h.mean(axis=0, dtype=np.float64).astype(np.float32)
        scale = h.std(axis=0, dtype=np.float64).astype(np.float32)
        scale = np.where(scale > 1e-3 * scale.max(initial=0), scale, np.inf)
        learning_rate, weight_decay = np.asarray(pairs, np.float32).T
        batch_size = min(self.batch_size, len(h))
        weight, bias = _fit(
            (h - shift) / scale,
            np.asarray(labels, np.int32),
            learning_rate,
            weight_decay,
            np.uint32(seed),
            classes=classes,
            epochs=math.ceil(self.steps / (len(h) // batch_size)),
            batch_size=batch_size,
        )
        return Fitted(np.asarray(weight), np.asarray(bias), shift, scale)

    def _border(self, learning_rate: float, weight_decay: float) -> tuple[str, ...]:
        ends = []
        if len(self.learning_rates) > 1 and learning_rate in (
            self.learning_rates[0],
            self.learning_rates[-1],
        ):
            ends.append("learning_rate")
        # A weight decay of zero cannot be lowered.
        last = self.weight_decays[-1]
        first = self.weight_decays[0] or last
        if len(self.weight_decays) > 1 and weight_decay in (first, last):
            ends.append("weight_decay")
        return tuple(ends)


def held_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return a mask bool[n] of held-out rows: a random equal fraction of every class.

    Where classes are so small that each rounds to no row, the rows to hold out are
    shared by largest remainders, in random order of equal ones. Raises InputError if no
    row would be held out, or none left to fit.
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    classes, sizes = np.unique(labels, return_counts=True)
    orders = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    counts = [round(fraction * len(order)) for order in orders]
    if not any(counts):
        counts = _largest_remainders(fraction * sizes, rng)
    for order, count in zip(orders, counts, strict=True):
        held[order[:count]] = True
    if not held.any() or held.all():
        raise InputError(
            f"holding out {fraction:g} of {len(labels)} training rows leaves one part "
            "empty; give more rows, or another `validation` in (0, 1)"
        )
    return held


def _largest_remainders(shares: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Round shares of at most a half, float[c], to 0 or 1 so that their sum is kept."""
    order = rng.permutation(len(shares))
    order = order[np.argsort(-shares[order], kind="stable")]
    counts = np.zeros(len(shares), int)
    counts[order[: round(shares.sum())]] = 1
    return counts.tolist()


def logits(fitted: Fitted, h: np.ndarray, probe: int = 0) -> np.ndarray:
    """Return the logits of one probe, float32[n, c]; h is float[n, d]."""
    x = (h - fitted.shift) / fitted.scale
    # A diverged pair may overflow; it scores as chance.
    with np.errstate(over="ignore", invalid="ignore"):
        return x @ fitted.weight[probe] + fitted.bias[probe]


@partial(jax.jit, static_argnames=("classes", "epochs", "batch_size"))
def _fit(
    x: jax.Array,
    labels: jax.Array,
    learning_rate: jax.Array,
    weight_decay: jax.Array,
    seed: jax.Array,
    *,
    classes: int,
    epochs: int,
    batch_size: int,
) -> _Probe:
    rows, dimensions = x.shape
    steps = rows // batch_size
    key = jax.random.key(seed)

    def loss(
        parameters: _Probe, batch: jax.Array, target: jax.Array, decay: jax.Array
    ) -> jax.Array:
        weight, bias = parameters
        logits = jnp.matmul(batch, weight, precision="highest") + bias[None]
        likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=1)
        return -jnp.mean(likelihood) + decay / 2 * jnp.sum(jnp.square(weight))

    def update(
        parameters: _Probe,
        velocity: _Probe,
        batch: jax.Array,
        target: jax.Array,
        rate: jax.Array,
        decay: jax.Array,
    ) -> tuple[_Probe, _Probe]:
        gradient = jax.grad(loss)(parameters, batch, target, decay)
        velocity = jax.tree.map(lambda v, g: _MOMENTUM * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - rate * v, parameters, velocity), velocity

    def step(
        carry: tuple[_Probe, _Probe], rows_and_time: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[_Probe, _Probe], None]:
        batch_rows, time = rows_and_time
        anneal = (1 + jnp.cos(jnp.pi * time)) / 2
        batch, target = x[batch_rows], labels[batch_rows][:, None]
        each = jax.vmap(update, in_axes=(0, 0, None, None, 0, 0))
        carry = each(*carry, batch, target, learning_rate * anneal, weight_decay)
        return carry, None

    def epoch(
        carry: tuple[_Probe, _Probe], number: jax.Array
    ) -> tuple[tuple[_Probe, _Probe], None]:
        order = jax.random.permutation(jax.random.fold_in(key, number), rows)
        order = order[: steps * batch_size].reshape(steps, batch_size)
        time = (number * steps + jnp.arange(steps)) / (epochs * steps)
        return jax.lax.scan(step, carry, (order, time))[0], None

    probes = len(learning_rate)
    zeros = (
        jnp.zeros((probes, dimensions, classes), x.dtype),
        jnp.zeros((probes, classes), x.dtype),
    )
    (fitted, _), _ = jax.lax.scan(epoch, (zeros, zeros), jnp.arange(epochs))
    return fitted
