"""What a contrastive loss says about mutual information, and when it does not.

The views of a sample share one factor. The one-vs-rest mutual information
I(x_a; X_{!=a}) is what one view tells about all the others; at m = 2 it is the ordinary
mutual information of two views (Shidani et al. 2024).
"""

from math import log
from typing import Literal

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
