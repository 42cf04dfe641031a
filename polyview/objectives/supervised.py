"""Losses of a task: linear probes through the trainer, and what stands beside MI terms.

Each takes what a head says, `outputs: float[b, m, ...]`, of m looks at each sample, and
the sample's target, and returns float[b, m], in float32 or better.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from polyview.errors import InputError


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label].

    logits float[b, m, classes] and labels int[b] give float[b, m]: each view of a
    sample has the sample's label. NaN for a label that is none of the classes.
    """
    logits = _wide(logits)
    labels = jnp.where(labels < 0, logits.shape[-1], labels)  # -1 is not the last
    labels = jnp.broadcast_to(labels[:, None, None], (*logits.shape[:2], 1))
    chosen = jnp.take_along_axis(logits, labels, axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """softplus(logit) - label logit, mean over the labels; labels 0 or 1, [b, l]."""
    logits = _wide(logits)
    labels = _of_outputs(labels, logits)
    return (jax.nn.softplus(logits) - labels * logits).mean(-1)


def squared_error(outputs: jax.Array, values: jax.Array) -> jax.Array:
    """(output - value)^2, mean over the values: float[b, v], or float[b] of one."""
    outputs = _wide(outputs)
    values = _of_outputs(values.reshape(len(values), -1), outputs)
    return jnp.square(outputs - values).mean(-1)


def dice_and_cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean cross-entropy of the pixels + 1 - mean soft Dice of the classes but 0.

    logits float[b, m, h, w, classes], mask int[b, h, w]; NaN where a label is none of
    the classes, as above. Soft Dice of a class is
    (2 sum p y + 1) / (sum p + sum y + 1) over the pixels of a sample (Milletari et al.
    2016, with sums in place of squares; the 1 is for classes that are absent).
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


def _of_outputs(values: jax.Array, outputs: jax.Array) -> jax.Array:
    """values [b, v] as [b, 1, v]; not broadcast where the head has one output."""
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
    """The objective that reads a tower's z as logits of the classes of a target."""

    modality: str = "image"
    target: str = "label"

    def __call__(self, module, target_module, batch, key):
        logits = module(batch, key=key, train=True)[self.modality].z
        labels = batch["targets"][self.target]
        loss = cross_entropy(logits, labels).mean()
        top1 = (logits.argmax(-1) == labels[:, None]).mean(dtype=loss.dtype)
        return loss, {"top1": top1}
