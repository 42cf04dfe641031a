"""Cross-entropy against a label: linear probes through the trainer, and baselines."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], in float32 or better.

    logits float[b, m, classes] and labels int[b] give float[b, m]: each view of a
    sample has the sample's label.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    labels = jnp.broadcast_to(labels[:, None, None], (*logits.shape[:2], 1))
    chosen = jnp.take_along_axis(logits, labels, axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


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
