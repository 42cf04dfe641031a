"""Contrastive losses of m views a sample, over the global batch, in float32 or more."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from numbers import Real
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from polyview.errors import InputError
from polyview.objectives.base import Batch, Module
from polyview.objectives.bounds import mutual_information_bound
from polyview.objectives.labels import mean_of_class
from polyview.objectives.negatives import (
    Negatives,
    log_negatives,
    log_negatives_by_view,
    of_present,
)
from polyview.objectives.positives import (
    anchors,
    both_present,
    check_positive,
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
    return -_mean(log_ratios, pairs)


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
    check_positive(temperature=temperature)
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
    present: jax.Array | None = None,
) -> jax.Array:
    """Multi-crop loss, float[b, m]: NT-Xent of each pair alone (Shidani et al. 2024).

    L[i, a] = -1/(m-1) sum_{c != a} log [ e(z[i, a], z[i, c]) / (e(z[i, a], z[i, c])
              + sum_{j != i} sum_{g in {a, c}} e(z[i, a], z[j, g])) ]

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
    check_positive(temperature=temperature)
    z = embeddings(z, normalize, present)
    positives = positive_scores(z, temperature)
    largest = _largest(temperature, normalize)
    options: dict = {"largest": largest, "negatives": negatives, "present": present}
    by_view = log_negatives_by_view(z, z, temperature=temperature, **options)
    own_view = jnp.diagonal(by_view, axis1=1, axis2=2)[..., None]
    others = jnp.logaddexp(own_view, off_diagonal(by_view))
    losses = jnp.logaddexp(positives, others) - positives
    return _mean(losses, both_present(z, present))


def nt_xent(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
) -> jax.Array:
    """SimCLR's NT-Xent, `geometric` at m = 2: float[b, 2] (Chen et al. 2020).

    L[i, a] = -log [ e(z[i, a], z[i, c])
              / (e(z[i, a], z[i, c]) + sum_{j != i} sum_g e(z[i, a], z[j, g])) ], c != a

    Args:
      z: float[b, m, d], the embeddings of m = 2 views of each of b >= 2 samples.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.
      present: bool[b, m]. A missing view is neither anchor, positive nor negative; its
        loss and gradient are 0, and so is the loss of a sample's only view.

    Returns float[b, m], one loss an anchor. Its mean is `.mean()` if all views are
    present, else `.sum() / polyview.anchors(present).sum()`. Raises ValueError for
    b < 2, m != 2, temperature <= 0, or if `negatives` does.
    """
    if z.shape[1] != 2:
        raise ValueError(f"nt_xent takes m = 2 views, not {z.shape[1]}")
    options: dict = {"normalize": normalize, "negatives": negatives}
    return geometric(z, temperature=temperature, present=present, **options)


def supcon(
    z: jax.Array,
    labels: jax.Array | None = None,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
) -> jax.Array:
    """SupCon's L_out, over the views of an anchor's class (Khosla et al. 2020, eq. 2).

    L[i, a] = -1/|P[i, a]| sum_{(k, c) in P[i, a]} log [ e(z[i, a], z[k, c])
              / sum_{(j, g) != (i, a)} e(z[i, a], z[j, g]) ]
    P[i, a] is all other views whose sample has the label of i. Without labels each
    sample is a class; the denominator still holds all positives, unlike `geometric`'s.

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of each of b >= 2 samples.
      labels: int[b]. A sample with a label below 0, an unknown one, is a class of its
        own: only its own views are its positives, and it is a negative of all others.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.
      present: bool[b, m]. A missing view is neither anchor, positive nor negative; its
        loss and gradient are 0, and so is the loss of a class's only view.

    Returns float[b, m], one loss an anchor. Its mean is `.mean()` if all views are
    present, else `.sum() / polyview.anchors(present, labels).sum()`. Raises ValueError
    for b < 2, m < 2, temperature <= 0, labels that are not int[b], or if `negatives`
    does.
    """
    check_positive(temperature=temperature)
    z = embeddings(z, normalize, present)
    negatives = of_present(_bounded(negatives, temperature, normalize), present)
    positives, pairs = positive_scores(z, temperature), both_present(z, present)
    others = negatives(z, temperature=temperature)
    denominators = jnp.logaddexp(_log_sum(positives, pairs), others)
    mask = jnp.ones(z.shape[:2], bool) if present is None else present
    if labels is None:
        aligned = _mean(positives, pairs)
    else:
        aligned = jnp.einsum("bmd,bmd->bm", z, mean_of_class(z, labels, mask))
        aligned /= temperature
    return jnp.where(anchors(mask, labels), denominators - aligned, 0)


def mv_infonce(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
) -> jax.Array:
    """MV-InfoNCE, float[b]: all pairs of a sample in one ratio (Koromilas et al. 2025).

    L[i] = -log [ sum_{a != c} e(z[i, a], z[i, c])
                  / sum_a sum_{(j, g) != (i, a)} e(z[i, a], z[j, g]) ]

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of each of b >= 2 samples.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.
      present: bool[b, m]. A missing view takes part in no pair and has no gradient; the
        loss of a sample with fewer than two views is 0.

    Returns float[b], one loss a sample. Its mean is `.mean()` if all views are present,
    else `.sum() / polyview.anchors(present).any(1).sum()`. Raises ValueError for b < 2,
    m < 2, temperature <= 0, or if `negatives` does.
    """
    check_positive(temperature=temperature)
    z = embeddings(z, normalize, present)
    negatives = of_present(_bounded(negatives, temperature, normalize), present)
    positives, pairs = positive_scores(z, temperature), both_present(z, present)
    others = negatives(z, temperature=temperature)
    denominators = jnp.logaddexp(_log_sum(positives, pairs), others)
    of_sample = _log_sum(denominators, pairs.any(-1))
    losses = of_sample - _log_sum(positives, pairs, axis=(1, 2))
    return jnp.where(pairs.any((1, 2)), losses, 0)


def mv_dhel(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    negatives: Negatives = log_negatives,
    present: jax.Array | None = None,
) -> jax.Array:
    """MV-DHEL, float[b]: pairs over within-view denominators (Koromilas et al. 2025).

    L[i] = -log [ sum_{a < c} e(z[i, a], z[i, c])
                  / prod_a sum_{j != i} e(z[i, a], z[j, a]) ]
    A view that no other sample has adds no factor to the product.

    Args:
      z: float[b, m, d], the embeddings of m >= 2 views of each of b >= 2 samples.
      temperature: e(u, v) = exp(u.v / temperature); positive.
      normalize: l2-normalise z along d first.
      negatives: the sums over j != i; `log_negatives` (see its errors) or a partial.
      present: bool[b, m]. A missing view takes part in no pair and has no gradient; the
        loss of a sample with fewer than two views is 0.

    Returns float[b], one loss a sample. Its mean is `.mean()` if all views are present,
    else `.sum() / polyview.anchors(present).any(1).sum()`. Raises ValueError for b < 2,
    m < 2, temperature <= 0, or if `negatives` does.
    """
    check_positive(temperature=temperature)
    z = embeddings(z, normalize, present)
    negatives = _bounded(negatives, temperature, normalize)

    def of_view(view: tuple) -> jax.Array:
        x, given = jax.tree.map(lambda part: part[:, None], view)
        return of_present(negatives, given)(x, temperature=temperature)[:, 0]

    views = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (z, present))
    own_view = jax.lax.map(of_view, views).T
    if present is not None:
        shared = present & (present.sum(0, keepdims=True) > 1)
        own_view = jnp.where(shared, own_view, 0)
    pairs = both_present(z, present)
    # The scores have each unordered pair twice, hence the log 2.
    positives = _log_sum(positive_scores(z, temperature), pairs, axis=(1, 2)) - log(2)
    return jnp.where(pairs.any((1, 2)), own_view.sum(1) - positives, 0)


@dataclass(frozen=True)
class Contrastive:
    """Objective: the mean of one of the losses above on the views of one modality.

    The views of several, as ("image", "local"), are joined along m.

    `loss` takes z alone, as `partial(geometric, temperature=0.1)`, and the target named
    by `labels`, if one is: `partial(supcon, temperature=0.1)`. `bound(loss, b, m)`
    becomes the metric `mi_bound`: `pairwise_bound` for `multi_crop`, None for a loss
    without a bound. A batch with a missing view has the loss NaN. Raises InputError for
    a batch without that target.
    """

    loss: Callable[..., jax.Array]
    modality: str | Sequence[str] = "image"
    bound: Callable[..., jax.Array] | None = mutual_information_bound
    labels: str | None = None

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        features = module(batch, key=key, train=True)
        z = jnp.concatenate([features[name].z for name in self.modalities], axis=1)
        labels = {}
        if self.labels is not None:
            if self.labels not in (targets := batch["targets"]):
                raise InputError(
                    f"objective.labels is {self.labels!r}, but the batch has the "
                    f"targets {sorted(targets)}; name one, or add it to views.targets"
                )
            labels = {"labels": targets[self.labels]}
        # Missing views would count as positives; the trainer stops at a NaN.
        present = [batch["present"][name] for name in self.modalities]
        whole = jnp.all(jnp.concatenate(present, axis=1))
        loss = jnp.where(whole, self.loss(z, **labels).mean(), jnp.nan)
        metrics = {"loss": loss, "features": features}
        if self.bound is not None:
            metrics["mi_bound"] = self.bound(loss, *z.shape[:2])
        return loss, metrics

    @property
    def modalities(self) -> Sequence[str]:
        """The names of the modalities whose views are compared."""
        return (self.modality,) if isinstance(self.modality, str) else self.modality

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
    check_positive(temperature=temperature)
    positives = positive_scores(z, temperature)
    others = of_present(negatives, present)(z, temperature=temperature)[..., None]
    log_ratios = positives - jnp.logaddexp(positives, others)
    return log_ratios, both_present(z, present)


def _mean(values: jax.Array, pairs: jax.Array) -> jax.Array:
    """The mean over the pairs of each anchor, 0 without one: [b, m, m - 1] -> [b, m]"""
    return jnp.where(pairs, values, 0).sum(-1) / jnp.maximum(pairs.sum(-1), 1)


def _log_sum(scores: jax.Array, pairs: jax.Array, axis: Any = -1) -> jax.Array:
    """The log-sum-exp over pairs, below any score if there are none."""
    return logsumexp(jnp.where(pairs, scores, jnp.finfo(scores.dtype).min), axis=axis)
