"""What a contrastive loss says about mutual information, and when it does not.

The views of a sample share one factor. The one-vs-rest mutual information
I(x_a; X_{!=a}) is what one view tells about all the others; at m = 2 it is the ordinary
mutual information of two views (Shidani et al. 2024).

The estimators at the end of the file (`jensen_shannon`, `info_nce`, `donsker_varadhan`,
`nwj`) are those of Deep InfoMax. They take the critic's scores float[a, c, p, q], of
position q of anchor a with position p of candidate c, and two masks that broadcast
against them: `positive` marks the pairs that belong together (a = c), `negative` those
that do not. What neither marks is left out: a missing view, padding, a second sample of
the same study. The mean is over the positions of a pair first, then over pairs; each
returns an `Estimate`, zeros where there is no positive or no negative pair.
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


def mutual_information_bound(loss, b: int, m: int):
    """log(b*m - m + 1) - loss, in nats: the one-vs-rest bound of a poly-view loss.

    The constant is the log of the number of terms in the denominator (Shidani et al.
    2024). It belongs to the geometric, arithmetic (theorem form) and sufficient
    statistics losses; `variant="listing"` bounds nothing. The m views of one negative
    sample depend on each other, so this is not a strict bound: at small b and large m
    it can exceed the mutual information; `strict_bound` cannot. As b grows, the
    geometric loss is held below the mutual information of one pair of views.
    """
    return log(b * m - m + 1) - loss


def pairwise_bound(loss, b: int, m: int):
    """log(2b - 1) - loss, in nats: the bound of `multi_crop` on I(x_a; x_b)."""
    return log(2 * b - 1) - loss


def strict_bound(
    z,
    *,
    temperature: float,
    aggregation: Literal["geometric", "arithmetic", "sufficient_statistics"],
    candidates: Literal["same_view", "view_averaged"] = "same_view",
    normalize: bool = True,
    renormalize: bool = True,
) -> jax.Array:
    """Per-anchor estimates, float[b, m], whose mean is a strict lower bound, in nats.

    One candidate a sample, so the constant is log b, which no estimate exceeds:
    log b + log [exp s+ / (exp s+ + sum_{j != i} n[j])], aggregated over positives as in
    the loss of that name. For "same_view", n[j] is exp s of the candidate whose view
    index is the positive's; for "view_averaged", the mean of exp s over the m views of
    j. It is an estimator to report, not a loss to train; the keywords are the loss's.
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


def gaussian_information(m: int, deviation: float, factor_deviation: float = 1.0):
    """One-vs-rest mutual information, in nats, of m noisy readings of one Gaussian.

    With c ~ N(0, s0^2) and x_a ~ N(c, s^2):
    I(x_a; X_{!=a}) = 1/2 log [(1 + s0^2/s^2) (1 - s0^2/(s^2 + m s0^2))].
    """
    signal, noise = factor_deviation**2, deviation**2
    return log((1 + signal / noise) * (1 - signal / (noise + m * signal))) / 2


class Estimate(NamedTuple):
    """loss: float[], minimised; bound: float[], what it says of the information."""

    loss: jax.Array
    bound: jax.Array


def jensen_shannon(scores, positive, negative) -> Estimate:
    """mean softplus(s) of negatives + mean softplus(-s) of positives - 2 log 2.

    From Hjelm et al. 2019. The bound, -loss, is on twice the Jensen-Shannon divergence
    between pairs that belong together and pairs that do not: at most 2 log 2, and no
    mutual information in nats.
    """
    loss = _mean(jax.nn.softplus(scores), negative) - log(2)
    loss += _mean(jax.nn.softplus(-scores), positive) - log(2)
    return _estimate(loss, -loss, positive, negative)


def nwj(scores, positive, negative) -> Estimate:
    """mean exp(s - 1) of negatives - mean s of positives; -loss bounds in nats.

    From Nguyen, Wainwright, Jordan 2010; "KL" among the f-divergences of Deep InfoMax.
    """
    safe = jnp.where(negative, scores, 0)
    loss = _mean(jnp.exp(safe - 1), negative) - _mean(scores, positive)
    return _estimate(loss, -loss, positive, negative)


def donsker_varadhan(scores, positive, negative) -> Estimate:
    """log mean exp(s) over all negatives - mean s of positives; -loss bounds in nats.

    From Donsker & Varadhan 1983, as in MINE (Belghazi et al. 2018). All positions of
    all negative pairs count alike in the logarithm.
    """
    mask = jnp.broadcast_to(negative, scores.shape)
    count = jnp.maximum(mask.sum(), 1).astype(scores.dtype)
    loss = _log_sum_exp(scores, mask, None) - jnp.log(count) - _mean(scores, positive)
    return _estimate(loss, -loss, positive, negative)


def info_nce(scores, positive, negative) -> Estimate:
    """-log exp s / (exp s + sum over the negatives of (a, q) of exp s), of positives.

    The negatives of position q of anchor a are all positions of all its negative
    candidates; other positions of its own candidate are neither (Hjelm et al. 2019,
    with -inf where their code has -10). The bound in nats adds the log of the number of
    terms of the denominator (van den Oord et al. 2018).
    """
    mask = jnp.broadcast_to(negative, scores.shape)
    others = _log_sum_exp(scores, mask, (1, 2))
    losses = jnp.logaddexp(scores, others) - scores
    terms = jnp.log1p(mask.sum((1, 2), keepdims=True).astype(scores.dtype))
    positive = positive & mask.any((1, 2), keepdims=True)
    return _estimate(
        _mean(losses, positive), _mean(terms - losses, positive), positive, negative
    )


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the positions of each pair, then over the pairs that have one."""
    mask = jnp.broadcast_to(mask, values.shape)
    count = mask.sum((2, 3))
    pairs = jnp.where(mask, values, 0).sum((2, 3)) / jnp.maximum(count, 1)
    return pairs.sum() / jnp.maximum((count > 0).sum(), 1)


def _log_sum_exp(scores, mask, axes) -> jax.Array:
    """Over what the mask marks, -inf where it marks nothing; its gradient is finite."""
    some = mask.any(axes, keepdims=axes is not None)
    kept = jnp.where(some, jnp.where(mask, scores, -jnp.inf), 0)
    return jnp.where(some, logsumexp(kept, axes, keepdims=axes is not None), -jnp.inf)


def _estimate(loss, bound, positive, negative) -> Estimate:
    there = jnp.any(positive) & jnp.any(negative)
    return Estimate(jnp.where(there, loss, 0), jnp.where(there, bound, 0))
