"""Losses of a task, for linear probes in the trainer and for tasks beside MI terms.

Each takes a head's `outputs: float[b, m, ...]` on m views of each of b samples, and the
sample's target. It returns float[b, m], in float32 or better, to average by `.mean()`
(over the views that count, if some are missing).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from polyview.errors import InputError
from polyview.objectives.base import Batch, Module


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], for each view: float[b, m].

    logits: float[b, m, classes]. labels: int[b], one for all views of a sample. A label
    outside 0 .. classes - 1 gives NaN.
    """
    logits = _wide(logits)
    # Beyond the last class, where take_along_axis gives NaN; -1 would be the last.
    labels = jnp.where(labels < 0, logits.shape[-1], labels)
    labels = jnp.broadcast_to(labels[:, None, None], (*logits.shape[:2], 1))
    chosen = jnp.take_along_axis(logits, labels, axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """softplus(logit) - label logit, averaged over the labels: float[b, m].

    logits: float[b, m, l]. labels: [b, l] of 0 or 1. Raises InputError for another l.
    """
    logits = _wide(logits)
    labels = _of_outputs(labels, logits)
    return (jax.nn.softplus(logits) - labels * logits).mean(-1)


def squared_error(outputs: jax.Array, values: jax.Array) -> jax.Array:
    """(output - value)^2, averaged over the values: float[b, m].

    outputs: float[b, m, v]. values: float[b, v], or float[b] for v = 1. Raises
    InputError for another v.
    """
    outputs = _wide(outputs)
    values = _of_outputs(values.reshape(len(values), -1), outputs)
    return jnp.square(outputs - values).mean(-1)


def dice_and_cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean cross-entropy of pixels + 1 - mean soft Dice of classes but 0: float[b, m].

    logits: float[b, m, h, w, classes]. mask: int[b, h, w], the class of each pixel; the
    loss is NaN if one is outside 0 .. classes - 1. Soft Dice of a class is
    (2 sum p y + 1) / (sum p + sum y + 1) over the pixels of a sample (Milletari et al.
    2016, with sums instead of squares; the 1 is for classes that are absent).
    """
    logits = _wide(logits)
    true = jax.nn.one_hot(mask, logits.shape[-1], dtype=logits.dtype)[:, None]
    log_likelihoods = jax.nn.log_softmax(logits)
    entropy = -(log_likelihoods * true).sum(-1).mean((2, 3))
    guess = jnp.exp(log_likelihoods)
    overlap, sizes = (guess * true).sum((2, 3)), (guess + true).sum((2, 3))
    dice = (2 * overlap + 1) / (sizes + 1)
    known = ((mask >= 0) & (mask < logits.shape[-1])).all((1, 2))[:, None]
    return jnp.where(known, entropy + 1 - dice[..., 1:].mean(-1), jnp.nan)


def mean_of_present(losses: jax.Array, present: jax.Array) -> jax.Array:
    """The mean of losses over `present`, a mask of their shape; 0 if there is none."""
    return jnp.where(present, losses, 0).sum() / jnp.maximum(present.sum(), 1)


def target_of(batch: Batch, name: str, where: str) -> jax.Array:
    """The target of that name. Raises InputError for a batch without it.

    where: the config key that names it.
    """
    if name not in (targets := batch["targets"]):
        raise InputError(
            f"{where} is {name!r}, but the batch has the targets {sorted(targets)}; "
            "name one, or add it to views.targets"
        )
    return targets[name]


def _of_outputs(values: jax.Array, outputs: jax.Array) -> jax.Array:
    """values [b, v] as [b, 1, v]. Raises InputError instead of broadcasting over v."""
    if values.shape[-1] != outputs.shape[-1]:
        raise InputError(
            f"the head has {outputs.shape[-1]} outputs, the target "
            f"{values.shape[-1]}; set `out` of the head"
        )
    return values[:, None].astype(outputs.dtype)


def _wide(outputs: jax.Array) -> jax.Array:
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


@dataclass(frozen=True)
class Classification:
    """Objective: cross-entropy of a tower's z, as logits of the classes of `target`."""

    modality: str = "image"
    target: str = "label"

    @property
    def outputs(self) -> dict[str, str]:
        """{target: where its logits are among the features}."""
        return {self.target: self.modality}

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = module(batch, key=key, train=True)[self.modality].z
        labels = batch["targets"][self.target]
        loss = cross_entropy(logits, labels).mean()
        top1 = (logits.argmax(-1) == labels[:, None]).mean(dtype=loss.dtype)
        return loss, {"top1": top1}


@dataclass(frozen=True)
class Attributes:
    """Objective: attributes that a head predicts from h, such as those of a class.

    The mean over present views of `loss(outputs[b, m, a], target[b, a]) -> [b, m]`. The
    model returns the outputs under the target's name. Raises InputError for a batch
    without the target and a model without the head.

    Attributes:
      loss: `binary_cross_entropy` for attributes of 0 or 1 (kind "multi-label"), or
        `squared_error` for others (kind "regression").
      target: the name of the attributes.
      modality: the views they are predicted from.
    """

    loss: Callable[..., jax.Array] = binary_cross_entropy
    target: str = "attributes"
    modality: str = "image"

    @property
    def outputs(self) -> dict[str, str]:
        """{target: where its predictions are among the features}."""
        return {self.target: self.target}

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        attributes = target_of(batch, self.target, "objective.target")
        features = module(batch, key=key, train=True)
        if self.target not in features:
            raise InputError(
                f"the model predicts no {self.target!r}; set model.heads.{self.target}"
            )
        present = batch["present"][self.modality]
        outputs = jnp.where(present[..., None], features[self.target].z, 0)
        loss = mean_of_present(self.loss(outputs, attributes), present)
        own = {name: features[name] for name in (self.modality, self.target)}
        return loss, {"loss": loss, "features": own}
