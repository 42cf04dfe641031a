"""Objectives that read the map of an encoder: Deep InfoMax, and labels of positions.

The images of a batch are its n = b m views. Each has a global vector z[a] and a map
local[c] of p positions; a critic scores s[a, c, p] = critic(z[a], local[c, p]). An
estimator of `polyview.objectives.bounds` tells positive pairs (a, c) from negative:

    positives        pairs (a, c)                                      after
    "own"            a = c                                             DIM
    "other_views"    other views of a's sample                         AMDIM, one scale
    "class"          images of a's class, a itself among them          CMDIM

(Hjelm et al. 2019; Bachman et al. 2019; Sylvain et al. 2020). Negatives are the images
of other samples, in CMDIM those of other classes. An early map may instead, or too,
predict labels or attributes of the image from each position alone (Sylvain et al.).
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from polyview.errors import InputError, check_range, nearest
from polyview.objectives import bounds
from polyview.objectives.base import Batch, Module, Objective
from polyview.objectives.crossmodal import Critic, scaled_dot
from polyview.objectives.labels import classes
from polyview.objectives.supervised import (
    binary_cross_entropy,
    cross_entropy,
    mean_of_present,
    squared_error,
    target_of,
)

_log = logging.getLogger(__name__)

POSITIVES = ("own", "other_views", "class")


def local_global(
    z: jax.Array,
    local: jax.Array,
    *,
    positives: jax.Array,
    negatives: jax.Array,
    real: jax.Array | None = None,
    estimator: Callable[..., bounds.Estimate] = bounds.info_nce,
    critic: Critic = scaled_dot,
) -> bounds.Estimate:
    """Estimate of the information of global vectors about maps, to be minimised.

    Args:
      z: float[n, d], the anchors.
      local: float[n, p, d], the candidates; each position is a pair of its own.
      positives, negatives: bool[n, n], whether image c is one of anchor a; a pair in
        neither does not count.
      real: bool[n, p], positions that are not padding; None where all are.
      estimator: of `polyview.objectives.bounds`. `info_nce` compares each positive with
        all negatives of its anchor, not with its other positives.
      critic: of `polyview.objectives.crossmodal`; its penalty is part of the loss.

    Raises ValueError if z and local differ in d.
    """
    scored = critic(z[:, None], local)
    counted = jnp.ones((1, 1, 1, 1), bool) if real is None else real[None, :, :, None]
    positive, negative = (
        mask[..., None, None] & counted for mask in (positives, negatives)
    )
    loss, bound = estimator(scored.scores, positive, negative)
    if scored.penalty:
        used = jnp.broadcast_to(positive | negative, scored.raw.shape)
        squares = jnp.where(used, jnp.square(scored.raw), 0).sum()
        loss += scored.penalty * squares / jnp.maximum(used.sum(), 1)
    return bounds.Estimate(loss, bound)


def compared(
    positives: str,
    present: jax.Array,
    index: jax.Array,
    labels: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The positive and negative pairs of a batch's images, bool[n, n] each, n = (b m).

    Args:
      positives: one of `POSITIVES`.
      present: bool[b, m]; a missing view is in no pair.
      index: int[b]. Views of rows with one index are never negatives of each other: a
        batch may hold a row twice, instead of one that could not be read.
      labels: int[b], for "class"; one below 0, unknown, is a class of its own.

    Raises ValueError for other `positives`, and for labels that are not int[b].
    """
    if positives not in POSITIVES:
        raise ValueError(f"positives={positives!r}{nearest(positives, POSITIVES)}")
    b, m = present.shape
    itself = jnp.eye(b * m, dtype=bool)
    related = _same(index, m)
    if positives == "own":
        positive = itself
    elif positives == "other_views":
        positive = _same(jnp.arange(b), m) & ~itself
    else:
        if labels is None:
            raise ValueError('positives="class" needs the labels')
        positive = _same(classes(labels, b), m)
        related |= positive
    valid = present.reshape(-1, 1) & present.reshape(1, -1)
    return positive & valid, ~related & valid


def _same(numbers: jax.Array, m: int) -> jax.Array:
    """Whether two images are of rows with one number: int[b] -> bool[b m, b m]."""
    of_image = jnp.repeat(numbers, m)
    return of_image[:, None] == of_image[None]


@dataclass(frozen=True)
class Locality:
    """Objective: `local_global` over the views of one modality.

    The model returns z and `local` of one width. The metrics `positives` and
    `negatives` count images an anchor: one positive in a batch of CMDIM says that no
    class has a second image, so that it was DIM; batches of several images a class
    come from `polyview.data.sources.by_class`. The other views of an anchor's sample
    are no negatives, as they may show the same image.

    Raises InputError for other `positives`, a model without local features, a batch of
    one sample, a batch without the label, and "other_views" of one view.

    Attributes:
      positives: "own" (DIM), "other_views" (AMDIM at one scale) or "class" (CMDIM).
      estimator, critic: as in `local_global`.
      modality: the name of the views.
      label: the target that names a sample's class, for "class".
    """

    positives: str = "own"
    estimator: Callable[..., bounds.Estimate] = bounds.info_nce
    critic: Critic = scaled_dot
    modality: str = "image"
    label: str = "label"

    def __post_init__(self) -> None:
        if self.positives not in POSITIVES:
            raise InputError(
                f"objective.positives is {self.positives!r}"
                f"{nearest(self.positives, POSITIVES)}"
            )

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        features = module(batch, key=key, train=True)[self.modality]
        if features.local is None:
            raise InputError(
                "objective: Locality compares local features, and the model has none; "
                "set model.local_projector"
            )
        present, labels = batch["present"][self.modality], None
        b, m = present.shape
        if b < 2:
            raise InputError("objective: a batch of one sample has no negatives")
        if m < 2 and self.positives == "other_views":
            raise InputError(
                'objective.positives is "other_views", but a sample has one view; '
                "set views.m to 2 or more"
            )
        if self.positives == "class":
            labels = target_of(batch, self.label, "objective.label")
            if m < 2:  # said once, when the step is traced
                _log.warning(
                    "objective: with one view a sample, CMDIM's positives are samples "
                    "that share a class by chance; where none do, it is DIM. Set "
                    "views.m to 2 or more"
                )
        positives, negatives = compared(self.positives, present, batch["index"], labels)
        real = features.real
        estimate = local_global(
            _images(features.z, present),
            _images(features.local, present),
            positives=positives,
            negatives=negatives,
            real=None if real is None else real.reshape(b * m, -1),
            estimator=self.estimator,
            critic=self.critic,
        )
        images = jnp.maximum(present.sum(), 1)
        return estimate.loss, {
            "loss": estimate.loss,
            "bound": estimate.bound,
            "positives": positives.sum() / images,
            "negatives": negatives.sum() / images,
            "features": {self.modality: features},
        }

    @staticmethod
    def negatives(b: int, m: int) -> int:
        """The most views of other samples an anchor is compared with."""
        return (b - 1) * m


def _images(x: jax.Array, present: jax.Array) -> jax.Array:
    """`x[b, m, ...]` as [(b m), ...], zeros where missing, in float32 or better."""
    x = x.reshape(-1, *x.shape[2:])
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def local_labels(
    logits: jax.Array, labels: jax.Array, real: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of the label at each position, averaged over them: float[b, m].

    logits: float[b, m, p, classes]. labels: int[b]; one outside 0 .. classes - 1 gives
    NaN. real: bool[b, m, p], positions that are not padding; None where all are.
    """
    return _over_positions(cross_entropy, logits, labels, real)


def local_attributes(
    logits: jax.Array, attributes: jax.Array, real: jax.Array | None = None
) -> jax.Array:
    """Binary cross-entropy averaged over attributes and positions: float[b, m].

    logits: float[b, m, p, a]. attributes: [b, a] of 0 or 1. real: as in `local_labels`.
    An average, since a sum over many attributes would drown the model's own loss.
    Raises InputError for another a.
    """
    return _over_positions(binary_cross_entropy, logits, attributes, real)


def local_values(
    outputs: jax.Array, values: jax.Array, real: jax.Array | None = None
) -> jax.Array:
    """Squared error averaged over values and positions, as `local_attributes`.

    For attributes that are not 0 or 1: outputs float[b, m, p, v], values float[b, v].
    """
    return _over_positions(squared_error, outputs, values, real)


def _over_positions(
    loss: Callable, outputs: jax.Array, target: jax.Array, real: jax.Array | None
) -> jax.Array:
    """The mean over positions of a loss of `polyview.objectives.supervised`."""
    b, m, p = outputs.shape[:3]
    # Positions are as good as views to the loss: all have the sample's target.
    losses = loss(outputs.reshape(b, m * p, -1), target).reshape(b, m, p)
    if real is None:
        return losses.mean(-1)
    return jnp.where(real, losses, 0).sum(-1) / jnp.maximum(real.sum(-1), 1)


@dataclass(frozen=True)
class WithLocal:
    """Objective: another objective, and losses of each position of an early map.

    loss = loss of the objective + weight * sum of the local losses

    The model encodes the batch once for both. It returns the outputs of positions under
    "local_" + target (the `local_heads` of `polyview.nn.readouts:Readouts`). Raises
    InputError without a local loss, for a batch without a target and a model without
    its local head.

    Attributes:
      objective: the model's objective, or None for the local losses alone.
      local: target -> loss(outputs[b, m, p, ...], target, real=) -> [b, m], from this
        module.
      weight: of the sum of the local losses.
      modality: the views whose map is read.
    """

    objective: Objective | None
    local: Mapping[str, Callable] = field(default_factory=dict)
    weight: float = 1.0
    modality: str = "image"

    def __post_init__(self) -> None:
        check_range(0.0, weight=self.weight)
        if not self.local:
            raise InputError(
                "objective.local is empty: name a target and its loss, or use the "
                "inner objective alone"
            )

    @property
    def outputs(self) -> dict[str, str]:
        """{target: where its predictions are among the features}."""
        inner = getattr(self.objective, "outputs", {})
        return {target: f"local_{target}" for target in self.local} | inner

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        once = _Once(module)
        metrics: dict[str, Any] = {}
        loss = jnp.zeros(())
        if self.objective is not None:
            loss, metrics = self.objective(once, target_module, batch, key)
            metrics = {**metrics, "model": loss}
        features = once.features or once(batch, key=key, train=True)
        own = metrics.get("features", {self.modality: features[self.modality]})
        # Health is that of vectors, and not of the outputs of positions.
        positions = {f"local_{target}" for target in self.local}
        metrics["features"] = {k: v for k, v in own.items() if k not in positions}
        present = batch["present"][self.modality]
        for target, loss_of in self.local.items():
            truth = target_of(batch, target, "a name in objective.local")
            if f"local_{target}" not in features:
                raise InputError(
                    f"the model predicts no {target!r} at each position; set "
                    f"model.local_heads.{target}"
                )
            found = features[f"local_{target}"]
            outputs = jnp.where(present[..., None, None], found.z, 0)
            losses = loss_of(outputs, truth, real=found.real)
            metrics[f"local/{target}"] = mean_of_present(losses, present)
            loss += self.weight * metrics[f"local/{target}"]
        return loss, {**metrics, "loss": loss}

    def negatives(self, b: int, m: int) -> int:
        """Those of the inner objective."""
        count = getattr(self.objective, "negatives", lambda b, m: 0)
        return count(b, m)


class _Once:
    """A module that keeps the features of its pass, for a second reader."""

    def __init__(self, module: Module):
        self._module = module
        self.features: Mapping[str, Any] = {}

    def __call__(
        self, batch: Batch, *, key: jax.Array, train: bool
    ) -> Mapping[str, Any]:
        self.features = self._module(batch, key=key, train=train)
        return self.features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
