"""Bounds on mutual information, and the estimators that maximise it.

The views of a sample share one factor. I(x_a; X_{!=a}), the one-vs-rest information, is
that of one view about all the others, at m = 2 of two views (Shidani et al. 2024).

The estimators (`jensen_shannon` to `info_nce`) are those of Deep InfoMax. They take a
critic's scores float[a, c, p, q], of position q of anchor a with position p of
candidate c, and two masks that broadcast against them: `positive` for pairs of one
sample (a = c), `negative` for pairs of two. Pairs in neither (missing views, padding,
samples of one study) do not count. Means run over the positions of a pair, then over
pairs. An estimate is 0 without a positive or a negative pair.
"""

from math import log
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from polyview.objectives.negatives import log_negatives_by_view
from polyview.objectives.positives import (
    embeddings,
    l2_normalize,
    mean_of_others,
    off_diagonal,
    positive_scores,
)


def mutual_information_bound(loss: jax.Array, b: int, m: int) -> jax.Array:
    """log(b*m - m + 1) - loss, in nats: the one-vs-rest bound of a poly-view loss.

    `loss` is the mean of the geometric, arithmetic (theorem form) or sufficient
    statistics loss of b samples of m views. The constant is the log of the number of
    terms in the denominator (Shidani et al. 2024). The views of a negative sample
    depend on each other, so the bound is not strict: at small b and large m it can
    exceed the information; `strict_bound` cannot. As b grows, the geometric loss stays
    below the information of one pair of views. `variant="listing"` bounds nothing.
    """
    return log(b * m - m + 1) - loss


def pairwise_bound(loss: jax.Array, b: int, m: int) -> jax.Array:
    """log(2b - 1) - loss, in nats: the bound on I(x_a; x_b) of a `multi_crop` loss."""
    return log(2 * b - 1) - loss


def strict_bound(
    z: jax.Array,
    *,
    temperature: float,
    aggregation: Literal["geometric", "arithmetic", "sufficient_statistics"],
    candidates: Literal["same_view", "view_averaged"] = "same_view",
    normalize: bool = True,
    renormalize: bool = True,
) -> jax.Array:
    """Strict lower bound on one-vs-rest information in nats, per anchor, float[b, m].

    log b + log [exp s+ / (exp s+ + sum_{j != i} n[j])], s(u, v) = u.v / temperature,
    aggregated over positives as in the loss named `aggregation`, of z: float[b, m, d].
    For candidates="same_view", n[j] is exp s of the view of sample j with the index of
    the positive; for "view_averaged", the mean of exp s over the views of j. With one
    candidate a sample, no estimate exceeds log b. Average it by `.mean()`; report it,
    do not train on it. Raises ValueError for b < 2, m < 2, temperature <= 0. The other
    keywords are those of the losses.
    """
    z = embeddings(z, normalize)
    b, m, _ = z.shape
    if aggregation == "sufficient_statistics":
        rest = l2_normalize(mean_of_others(z)) if renormalize else mean_of_others(z)
        scores = jnp.einsum("bmd,bmd->bm", z, rest)[..., None] / temperature
        by_view = log_negatives_by_view(z, rest, temperature=temperature)
        same_view = jnp.diagonal(by_view, axis1=1, axis2=2)[..., None]
    else:
        scores = positive_scores(z, temperature)
        by_view = log_negatives_by_view(z, z, temperature=temperature)
        same_view = off_diagonal(by_view)
    view_averaged = logsumexp(by_view, axis=-1, keepdims=True) - log(m)
    masses = {"same_view": same_view, "view_averaged": view_averaged}[candidates]
    log_ratios = scores - jnp.logaddexp(scores, masses)
    if aggregation == "arithmetic":
        return log(b) + logsumexp(log_ratios, axis=-1) - log(m - 1)
    return log(b) + log_ratios.mean(axis=-1)


def gaussian_information(
    m: int, deviation: float, factor_deviation: float = 1.0
) -> float:
    """One-vs-rest mutual information, in nats, of m noisy readings of one Gaussian.

    With c ~ N(0, s0^2), x_a ~ N(c, s^2), s = `deviation`, s0 = `factor_deviation`:
    I(x_a; X_{!=a}) = 1/2 log [(1 + s0^2/s^2) (1 - s0^2/(s^2 + m s0^2))].
    """
    signal, noise = factor_deviation**2, deviation**2
    return log((1 + signal / noise) * (1 - signal / (noise + m * signal))) / 2


class Estimate(NamedTuple):
    """loss: float[], to minimise; bound: float[], on the mutual information."""

    loss: jax.Array
    bound: jax.Array


def jensen_shannon(
    scores: jax.Array, positive: jax.Array, negative: jax.Array
) -> Estimate:
    """mean softplus(s) of negatives + mean softplus(-s) of positives - 2 log 2.

    From Hjelm et al. 2019. The bound, -loss, is on twice the Jensen-Shannon divergence
    of positive and negative pairs: at most 2 log 2, not mutual information in nats.
    """
    loss = _mean(jax.nn.softplus(scores), negative) - log(2)
    loss += _mean(jax.nn.softplus(-scores), positive) - log(2)
    return _estimate(loss, -loss, positive, negative)


def nwj(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> Estimate:
    """mean exp(s - 1) of negatives - mean s of positives; the bound is -loss, in nats.

    From Nguyen, Wainwright, Jordan 2010; "KL" among the f-divergences of Deep InfoMax.
    """
    safe = jnp.where(negative, scores, 0)
    loss = _mean(jnp.exp(safe - 1), negative) - _mean(scores, positive)
    return _estimate(loss, -loss, positive, negative)


def donsker_varadhan(
    scores: jax.Array, positive: jax.Array, negative: jax.Array
) -> Estimate:
    """log mean exp(s) of negatives - mean s of positives; the bound is -loss, in nats.

    From Donsker & Varadhan 1983, as in MINE (Belghazi et al. 2018). All positions of
    all negative pairs have equal weight in the logarithm.
    """
    mask = jnp.broadcast_to(negative, scores.shape)
    count = jnp.maximum(mask.sum(), 1).astype(scores.dtype)
    loss = _log_sum_exp(scores, mask, None) - jnp.log(count) - _mean(scores, positive)
    return _estimate(loss, -loss, positive, negative)


def info_nce(scores: jax.Array, positive: jax.Array, negative: jax.Array) -> Estimate:
    """Mean over positives of -log [exp s / (exp s + sum over negatives of exp s)].

    The negatives of position q of anchor a are all positions of all its negative
    candidates; other positions of its own candidate are in neither mask (Hjelm et al.
    2019, with -inf where their code has -10). The bound, in nats, is the log of the
    number of terms in the denominator, minus the loss (van den Oord et al. 2018).
    """
    mask = jnp.broadcast_to(negative, scores.shape)
    others = _log_sum_exp(scores, mask, (1, 2))
    losses = jnp.logaddexp(scores, others) - scores
    terms = jnp.log1p(mask.sum((1, 2), keepdims=True).astype(scores.dtype))
    positive = positive & mask.any((1, 2), keepdims=True)
    bound = _mean(terms - losses, positive)
    return _estimate(_mean(losses, positive), bound, positive, negative)


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the masked positions of each pair, then over pairs that have one."""
    mask = jnp.broadcast_to(mask, values.shape)
    count = mask.sum((2, 3))
    pairs = jnp.where(mask, values, 0).sum((2, 3)) / jnp.maximum(count, 1)
    return pairs.sum() / jnp.maximum((count > 0).sum(), 1)


def _log_sum_exp(scores: jax.Array, mask: jax.Array, axes: tuple | None) -> jax.Array:
    """Log-sum-exp of masked scores, -inf for an empty mask; its gradient is finite."""
    some = mask.any(axes, keepdims=axes is not None)
    kept = jnp.where(some, jnp.where(mask, scores, -jnp.inf), 0)
    return jnp.where(some, logsumexp(kept, axes, keepdims=axes is not None), -jnp.inf)


def _estimate(loss: jax.Array, bound: jax.Array, *masks: jax.Array) -> Estimate:
    valid = jnp.any(masks[0]) & jnp.any(masks[1])
    return Estimate(jnp.where(valid, loss, 0), jnp.where(valid, bound, 0))
