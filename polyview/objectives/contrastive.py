"""Contrastive losses of m views a sample, over the global batch, in float32 or more."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log
from numbers import Real
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from polyview.errors import TINY, check_range
from polyview.objectives.base import Batch, Module
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
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
) -> jax.Array:
    """Geometric poly-view loss: mean of -log ratios of positives (Shidani et al. 2024).

    L[i, a] = -1/(m-1) sum_{c != a} log [ e(z[i, a], z[i, c])
              / (e(z[i, a], z[i, c]) + sum_{j != i} sum_g e(z[i, a], z[j, g])) ]

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of each of b >= 2 samples.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.
      present: bool[b, m]. A missing view is neither anchor, positive nor negative; its
        loss and gradient are 0, and so is the loss of a sample's only view.

    Returns float[b, m], one loss an anchor. Its mean is `.mean()` if all views are
    present, else `.sum() / polyview.anchors(present).sum()`. Raises ValueError for
    b < 2, m < 2, temperature <= 0, or if `negatives` does.
    """
    z = embeddings(z, normalize, present)
    negatives = _bounded(negatives, temperature, normalize)
    log_ratios, pairs = _log_ratios(z, temperature, negatives, present)
    return -jnp.where(pairs, log_ratios, 0).sum(-1) / jnp.maximum(pairs.sum(-1), 1)


def arithmetic(
    z: jax.Array,
    *,
    temperature: float,
    variant: Literal["theorem", "listing"] = "theorem",
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
) -> jax.Array:
    """Arithmetic poly-view loss: -log of the mean over positives of l.

    "theorem": L[i, a] = -log(1/(m-1) sum_{c != a} l[i, a, c])   (Shidani et al. 2024)
    "listing": L[i, a] = log(1/b sum_{c != a} 1 / l[i, a, c])
    l[i, a, c] = e(z[i, a], z[i, c])
                 / (e(z[i, a], z[i, c]) + sum_{j != i} sum_g e(z[i, a], z[j, g]))

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of each of b >= 2 samples.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      variant: "listing" follows public transcriptions of the paper's pseudo-code. It
        weights the hardest positive most, where "theorem" weights the easiest; it
        bounds no mutual information and raises ValueError with `present`.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.
      present: bool[b, m]. A missing view is neither anchor, positive nor negative; its
        loss and gradient are 0, and so is the loss of a sample's only view.

    Returns float[b, m], one loss an anchor. Its mean is `.mean()` if all views are
    present, else `.sum() / polyview.anchors(present).sum()`. Raises ValueError for
    b < 2, m < 2, temperature <= 0, or if `negatives` does.
    """
    z = embeddings(z, normalize, present)
    negatives = _bounded(negatives, temperature, normalize)
    log_ratios, pairs = _log_ratios(z, temperature, negatives, present)
    if variant == "theorem":
        # Without positives the log of 0 would give NaN: keep all, drop the loss below.
        valid = pairs.any(-1)
        log_ratios = jnp.where(pairs | ~valid[..., None], log_ratios, -jnp.inf)
        losses = jnp.log(jnp.maximum(pairs.sum(-1), 1)) - logsumexp(log_ratios, -1)
        return jnp.where(valid, losses, 0)
    if variant == "listing" and present is None:
        return logsumexp(-log_ratios, axis=-1) - log(len(z))
    raise ValueError(f'variant={variant!r}: "theorem", or "listing" without present')


def sufficient_statistics(
    z: jax.Array,
    *,
    temperature: float,
    renormalize: bool = True,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
) -> jax.Array:
    """Sufficient-statistics loss: one positive, the mean t (Shidani et al. 2024).

    L[i, a] = -log [ e(z[i, a], t[i, a])
              / (e(z[i, a], t[i, a]) + sum_{j != i} sum_g e(z[i, a], t[j, g])) ]

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of each of b >= 2 samples.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      renormalize: l2-normalise t[i, a] too, the mean of the sample's other views.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.
      present: bool[b, m]. A missing view is neither anchor, positive nor negative; its
        loss and gradient are 0, and so is the loss of a sample's only view. t averages
        present views; t[j, g] counts if view g of sample j and another are present.

    Returns float[b, m], one loss an anchor. Its mean is `.mean()` if all views are
    present, else `.sum() / polyview.anchors(present).sum()`. Raises ValueError for
    b < 2, m < 2, temperature <= 0, or if `negatives` does.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize, present)
    negatives = _bounded(negatives, temperature, normalize)
    rest = mean_of_others(z, present)
    rest = l2_normalize(rest) if renormalize else rest
    positives = jnp.einsum("bmd,bmd->bm", z, rest) / temperature
    valid = None if present is None else anchors(present)
    others = of_present(negatives, valid)(z, rest, temperature=temperature)
    losses = jnp.logaddexp(positives, others) - positives
    return losses if valid is None else jnp.where(valid, losses, 0)


def multi_crop(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
) -> jax.Array:
    """Multi-crop loss, float[b, m]: NT-Xent of each pair alone (Shidani et al. 2024).

    L[i, a] = -1/(m-1) sum_{c != a} log [ e(z[i, a], z[i, c]) / (e(z[i, a], z[i, c])
              + sum_{j != i} sum_{g in {a, c}} e(z[i, a], z[j, g])) ]

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of b >= 2 samples, none missing.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.

    Average by `.mean()`. Raises ValueError for b < 2, m < 2, temperature <= 0.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize)
    positives = positive_scores(z, temperature)
    largest = _largest(temperature, normalize)
    by_view = log_negatives_by_view(
        z, z, temperature=temperature, largest=largest, negatives=negatives
    )
    own_view = jnp.diagonal(by_view, axis1=1, axis2=2)[..., None]
    others = jnp.logaddexp(own_view, off_diagonal(by_view))
    return (jnp.logaddexp(positives, others) - positives).mean(-1)


def nt_xent(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
) -> jax.Array:
    """SimCLR's NT-Xent, `geometric` at m = 2: float[b, 2] (Chen et al. 2020).

    L[i, a] = -log [ e(z[i, a], z[i, c])
              / (e(z[i, a], z[i, c]) + sum_{j != i} sum_g e(z[i, a], z[j, g])) ], c != a

    Args:
      z: float[b, m, d], the embeddings of m = 2 views of b >= 2 samples, none missing.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.

    Average by `.mean()`. Raises ValueError for b < 2, m != 2, temperature <= 0.
    """
    if z.shape[1] != 2:
        raise ValueError(f"nt_xent takes m = 2 views, not {z.shape[1]}")
    options: dict = {"normalize": normalize, "negatives": negatives}
    return geometric(z, temperature=temperature, **options)


def supcon(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
) -> jax.Array:
    """SupCon's L_out of each anchor, float[b, m], each sample a class of its own.

    L[i, a] = -1/(m-1) sum_{c != a} log [ e(z[i, a], z[i, c])
              / sum_{(j, g) != (i, a)} e(z[i, a], z[j, g]) ]
    Unlike in `geometric`, the denominator holds all positives (Khosla et al. 2020).

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of b >= 2 samples, none missing.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.

    Average by `.mean()`. Raises ValueError for b < 2, m < 2, temperature <= 0.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize)
    negatives = _bounded(negatives, temperature, normalize)
    positives = positive_scores(z, temperature)
    others = negatives(z, temperature=temperature)
    denominators = jnp.logaddexp(logsumexp(positives, axis=-1), others)
    return denominators - positives.mean(-1)


def mv_infonce(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
) -> jax.Array:
    """MV-InfoNCE, float[b]: all pairs of a sample in one ratio (Koromilas et al. 2025).

    L[i] = -log [ sum_{a != c} e(z[i, a], z[i, c])
                  / sum_a sum_{(j, g) != (i, a)} e(z[i, a], z[j, g]) ]

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of b >= 2 samples, none missing.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.

    Average by `.mean()`. Raises ValueError for b < 2, m < 2, temperature <= 0.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize)
    negatives = _bounded(negatives, temperature, normalize)
    positives = positive_scores(z, temperature)
    others = negatives(z, temperature=temperature)
    denominators = jnp.logaddexp(logsumexp(positives, axis=-1), others)
    return logsumexp(denominators, axis=-1) - logsumexp(positives, axis=(1, 2))


def mv_dhel(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
) -> jax.Array:
    """MV-DHEL, float[b]: pairs over within-view denominators (Koromilas et al. 2025).

    L[i] = -log [ sum_{a < c} e(z[i, a], z[i, c])
                  / prod_a sum_{j != i} e(z[i, a], z[j, a]) ]

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of b >= 2 samples, none missing.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.

    Average by `.mean()`. Raises ValueError for b < 2, m < 2, temperature <= 0.
    """
    check_range(TINY, temperature=temperature)
    z = embeddings(z, normalize)
    negatives = _bounded(negatives, temperature, normalize)
    own_view = jax.lax.map(
        lambda view: negatives(view[:, None], temperature=temperature)[:, 0],
        jnp.moveaxis(z, 1, 0),
    )
    # The scores have each unordered pair twice, hence the log 2.
    pairs = logsumexp(positive_scores(z, temperature), axis=(1, 2)) - log(2)
    return own_view.sum(0) - pairs


@dataclass(frozen=True)
class Contrastive:
    """Objective: the mean of one of the losses above on the views of one modality.

    `loss` takes z alone, as `partial(geometric, temperature=0.1)`. `bound(loss, b, m)`
    becomes the metric `mi_bound`: `pairwise_bound` for `multi_crop`, None for a loss
    without a bound. A batch with a missing view has the loss NaN.
    """

    loss: Callable[[jax.Array], jax.Array]
    modality: str = "image"
    bound: Callable[..., jax.Array] | None = mutual_information_bound

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        features = module(batch, key=key, train=True)
        z = features[self.modality].z
        # Missing views would count as positives; the trainer stops at a NaN.
        whole = jnp.all(batch["present"][self.modality])
        loss = jnp.where(whole, self.loss(z).mean(), jnp.nan)
        metrics = {"loss": loss, "features": features}
        if self.bound is not None:
            metrics["mi_bound"] = self.bound(loss, *z.shape[:2])
        return loss, metrics

    @staticmethod
    def negatives(b: int, m: int) -> int:
        """Views of other samples an anchor is compared with; fewer in some losses."""
        return (b - 1) * m


def _bounded(negatives: Negatives, temperature: float, normalize: bool) -> Negatives:
    """Tell `negatives` how large the scores of normalised embeddings are."""
    largest = _largest(temperature, normalize)
    return negatives if largest is None else partial(negatives, largest=largest)


def _largest(temperature: float, normalize: bool) -> float | None:
    known = normalize and isinstance(temperature, Real) and temperature > 0
    return 1 / temperature if known else None


def _log_ratios(
    z: jax.Array, temperature: float, negatives: Negatives, present: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """log l[i, a, c] for c != a, and whether both views are present: [b, m, m - 1]."""
    check_range(TINY, temperature=temperature)
    positives = positive_scores(z, temperature)
    others = of_present(negatives, present)(z, temperature=temperature)[..., None]
    log_ratios = positives - jnp.logaddexp(positives, others)
    mask = jnp.ones(z.shape[:2], bool) if present is None else present
    return log_ratios, off_diagonal(mask[:, :, None] & mask[:, None, :])
