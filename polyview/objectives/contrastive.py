"""Contrastive losses for any number of views m of each of b samples.

z[i, a] is the embedding of view a of sample i, s(u, v) = u.v / temperature, and

    N[i, a]    = sum_{j != i} sum_g exp s(z[i, a], z[j, g])
    l[i, a, c] = exp s(z[i, a], z[i, c]) / (exp s(z[i, a], z[i, c]) + N[i, a]),  c != a

Each function takes z: float[b, m, d] and returns one loss an anchor, float[b, m], or,
for `mv_infonce` and `mv_dhel`, one a sample, float[b]; training minimises the mean. All
l2-normalise z unless `normalize=False`, compute in float32 or better, and raise
ValueError for b = 1 or m = 1. The batch b is global, and `negatives` computes log N:
`log_negatives`, or a partial of it, as `partial(log_negatives, exchange="ring")`.

Some take `present: bool[b, m]`. A missing view is neither anchor nor positive nor
negative: its loss is 0, as is that of a view that is alone in its sample, and its
gradient; means over positives and in t are over what is there. Average over
`positives.anchors(present)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from polyview.errors import TINY, check_range
from polyview.objectives.bounds import mutual_information_bound
from polyview.objectives.negatives import (
    Negatives,
    log_negatives,
    log_negatives_by_view,
    of_present,
)
from polyview.objectives.positives import (
    anchors,
    embeddings,
    l2_normalize,
    mean_of_others,
    off_diagonal,
    positive_scores,
)


def geometric(
    z,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
):
    """Mean over positives of -log l: the geometric poly-view loss.

    L[i, a] = -1/(m-1) sum_{c != a} log l[i, a, c]; Shidani et al. 2024.
    """
    z = embeddings(z, normalize, present)
    log_ratios, pairs = _log_ratios(z, temperature, negatives, present)
    return -jnp.where(pairs, log_ratios, 0).sum(-1) / jnp.maximum(pairs.sum(-1), 1)


def arithmetic(
    z,
    *,
    temperature: float,
    variant: Literal["theorem", "listing"] = "theorem",
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
):
    """-log of the mean over positives of l: the arithmetic poly-view loss.

    "theorem": L[i, a] = -log(1/(m-1) sum_{c != a} l[i, a, c]); Shidani et al. 2024.
    "listing": L[i, a] = log(1/b sum_{c != a} 1 / l[i, a, c]), as public transcriptions
    of their pseudo-code have it: it weighs the hardest positive most, where the theorem
    weighs the easiest, and its value bounds no mutual information; it takes no
    `present`.
    """
    z = embeddings(z, normalize, present)
    log_ratios, pairs = _log_ratios(z, temperature, negatives, present)
    if variant == "theorem":
        # A row without positives would be the log of 0: it takes all, and is dropped.
        there = pairs.any(-1)
        log_ratios = jnp.where(pairs | ~there[..., None], log_ratios, -jnp.inf)
        losses = jnp.log(jnp.maximum(pairs.sum(-1), 1)) - logsumexp(log_ratios, -1)
        return jnp.where(there, losses, 0)
    if variant == "listing" and present is None:
        return logsumexp(-log_ratios, axis=-1) - log(len(z))
    raise ValueError(
        f'variant is "theorem", or "listing" without present, not {variant!r}'
    )


def sufficient_statistics(
    z,
    *,
    temperature: float,
    renormalize: bool = True,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
):
    """One positive an anchor: the mean of the sample's other views, t[i, a].

    L[i, a] = -log [ exp s(z[i, a], t[i, a]) / (exp s(z[i, a], t[i, a])
                     + sum_{j != i} sum_g exp s(z[i, a], t[j, g])) ],
    with t l2-normalised again if `renormalize`; Shidani et al. 2024. With `present`,
    t[j, g] counts where view g of sample j is there, and another one.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize, present)
    rest = mean_of_others(z, present)
    if renormalize:
        rest = l2_normalize(rest)
    positives = jnp.einsum("bmd,bmd->bm", z, rest) / temperature
    there = None if present is None else anchors(present)
    negatives = of_present(negatives, there)
    others = negatives(z, rest, temperature=temperature)
    losses = jnp.logaddexp(positives, others) - positives
    return losses if there is None else jnp.where(there, losses, 0)


def multi_crop(
    z,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
):
    """NT-Xent of each pair of views by itself, averaged over pairs.

    L[i, a] = -1/(m-1) sum_{c != a} log [ exp s(z[i, a], z[i, c])
              / (exp s(z[i, a], z[i, c])
                 + sum_{j != i} sum_{g in {a, c}} exp s(z[i, a], z[j, g])) ];
    the baseline of Shidani et al. 2024.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize)
    positives = positive_scores(z, temperature)
    by_view = log_negatives_by_view(z, z, temperature=temperature, negatives=negatives)
    own_view = jnp.diagonal(by_view, axis1=1, axis2=2)[..., None]
    others = jnp.logaddexp(own_view, off_diagonal(by_view))
    return (jnp.logaddexp(positives, others) - positives).mean(-1)


def nt_xent(
    z,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
):
    """SimCLR's loss, the two-view case of `geometric`; Chen et al. 2020.

    Raises ValueError unless m = 2.
    """
    if z.shape[1] != 2:
        raise ValueError(f"nt_xent compares m = 2 views, not {z.shape[1]}")
    options = {"normalize": normalize, "negatives": negatives}
    return geometric(z, temperature=temperature, **options)


def supcon(
    z,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
):
    """Like `geometric`, but an anchor's other positives stay in the denominator.

    L[i, a] = -1/(m-1) sum_{c != a} log [ exp s(z[i, a], z[i, c])
              / (sum_{g != a} exp s(z[i, a], z[i, g]) + N[i, a]) ];
    L_out of Khosla et al. 2020, each sample its own class.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize)
    positives = positive_scores(z, temperature)
    return _log_denominators(z, positives, temperature, negatives) - positives.mean(-1)


def mv_infonce(
    z,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
):
    """MV-InfoNCE, float[b]: all pairs of a sample in one ratio.

    L[i] = -log [ sum_{a != c} exp s(z[i, a], z[i, c])
                  / sum_a sum_{(j, g) != (i, a)} exp s(z[i, a], z[j, g]) ];
    Koromilas et al. 2025.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize)
    positives = positive_scores(z, temperature)
    denominators = _log_denominators(z, positives, temperature, negatives)
    return logsumexp(denominators, axis=-1) - logsumexp(positives, axis=(1, 2))


def mv_dhel(
    z,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
):
    """MV-DHEL, float[b]: all pairs of a sample over within-view denominators.

    L[i] = -log [ sum_{a < c} exp s(z[i, a], z[i, c])
                  / prod_a sum_{j != i} exp s(z[i, a], z[j, a]) ];
    Koromilas et al. 2025.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize)

    def of_view(view):
        return negatives(view[:, None], temperature=temperature)[:, 0]

    own_view = jax.lax.map(of_view, jnp.moveaxis(z, 1, 0))
    # Each unordered pair stands twice among the positives, hence the log 2.
    pairs = logsumexp(positive_scores(z, temperature), axis=(1, 2)) - log(2)
    return own_view.sum(0) - pairs


@dataclass(frozen=True)
class Contrastive:
    """The objective that minimises the mean of one of the losses above.

    `loss` lacks only z: `partial(geometric, temperature=0.1)`. `bound(loss, b, m)`
    turns its mean into the metric `mi_bound`: `pairwise_bound` for `multi_crop`, None
    for a loss that bounds nothing. Every view of the modality must be present: the loss
    of a batch with a missing view is NaN.
    """

    loss: Callable[[jax.Array], jax.Array]
    modality: str = "image"
    bound: Callable | None = mutual_information_bound

    def __call__(self, module, target_module, batch, key):
        features = module(batch, key=key, train=True)
        z = features[self.modality].z
        # Until a loss reads masks, a missing view must not pass for a positive: the
        # trainer stops at a loss that is not finite.
        whole = jnp.all(batch["present"][self.modality])
        loss = jnp.where(whole, self.loss(z).mean(), jnp.nan)
        metrics = {"loss": loss, "features": features}
        if self.bound is not None:
            metrics["mi_bound"] = self.bound(loss, *z.shape[:2])
        return loss, metrics

    @staticmethod
    def negatives(b: int, m: int) -> int:
        """How many views of other samples an anchor is compared with, at most: some
        losses take them by the pair, or one of each sample."""
        return (b - 1) * m


def _log_ratios(z, temperature, negatives, present):
    """log l[i, a, c] for c != a, and which of these pairs are there: [b, m, m - 1]."""
    check_range(TINY, temperature=temperature)
    positives = positive_scores(z, temperature)
    others = of_present(negatives, present)(z, temperature=temperature)[..., None]
    log_ratios = positives - jnp.logaddexp(positives, others)
    there = jnp.ones(z.shape[:2], bool) if present is None else present
    return log_ratios, off_diagonal(there[:, :, None] & there[:, None, :])


def _log_denominators(z, positives, temperature, negatives):
    """Log-sum-exp of an anchor's scores against everything but itself: float[b, m]."""
    others = negatives(z, temperature=temperature)
    return jnp.logaddexp(logsumexp(positives, axis=-1), others)
