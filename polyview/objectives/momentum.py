"""Contrast with keys of a moving average of the model (MoCo; He et al. 2020).

A query is one view of a sample, its key the other view, encoded by the average. The
negatives are keys of earlier batches. Were a key normalised by statistics of its batch,
they would tell it from all negatives: He et al. therefore shuffle rows between devices.
Here the average encodes with its running statistics instead (Cai et al. 2021), which
needs no shuffling, and is the same on any number of devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from polyview.errors import TINY, InputError, check_range
from polyview.objectives.base import Batch
from polyview.objectives.positives import check_positive, l2_normalize


def momentum_contrast(
    queries: jax.Array, keys: jax.Array, queue: jax.Array, *, temperature: float
) -> jax.Array:
    """InfoNCE of each query, its own key against those of a queue (He et al. 2020).

    L[i] = -log [ e(q[i], k[i]) / (e(q[i], k[i]) + sum_j e(q[i], queue[j])) ]

    Args:
      queries, keys: float[b, d]; queue: float[n, d]. All are l2-normalised first.
      temperature: e(u, v) = exp(u.v / temperature); positive.

    Returns float[b]. The scores of the queue take b n numbers.
    """
    check_positive(temperature=temperature)
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    q, k, old = (l2_normalize(x.astype(wide)) for x in (queries, keys, queue))
    own = (q * k).sum(1) / temperature
    # By default accelerators would round float32 to fewer bits.
    scores = jnp.einsum("bd,nd->bn", q, old, precision="highest") / temperature
    return jnp.logaddexp(own, logsumexp(scores, axis=1)) - own


@dataclass(frozen=True)
class MoCo:
    """Objective: the mean of `momentum_contrast` over samples of m = 2 views.

    The first view is the query, the second the key, which then joins the queue. Needs a
    model `polyview.nn.queue:QueueTowers` of one tower, and a `target_decay`. A batch
    with a missing view has the loss NaN. Raises InputError without a queue or an
    average, for another tower and for another m.
    """

    temperature: float
    modality: str = "image"

    def __post_init__(self) -> None:
        check_range(TINY, temperature=self.temperature)

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        if target_module is None or not hasattr(module, "queue"):
            raise InputError(
                "objective: MoCo needs a target_decay, such as 0.999, a model with a "
                "queue (polyview.nn.queue:QueueTowers), and microbatch=None"
            )
        if (towers := sorted(module.towers)) != [self.modality]:
            raise InputError(
                f"MoCo trains one tower, that of objective.modality={self.modality!r}, "
                f"but model.towers has {', '.join(towers)}; keep one, and name it there"
            )
        if (m := batch["views"][self.modality].shape[1]) != 2:
            raise InputError(f"MoCo takes m = 2 views, not {m}; set views.m=2")
        of_query, of_key = jax.random.split(key)
        features = module(self._view(batch, 0), key=of_query, train=True)
        noisy = target_module.augmented(self._view(batch, 1), key=of_key)
        keys = target_module(noisy, key=None, train=False)[self.modality].z[:, 0]
        queries, old = features[self.modality].z[:, 0], module.queue.keys[...]
        module.queue.push(l2_normalize(keys))
        losses = momentum_contrast(queries, keys, old, temperature=self.temperature)
        whole = jnp.all(batch["present"][self.modality])
        loss = jnp.where(whole, losses.mean(), jnp.nan)
        return loss, {"loss": loss, "features": features}

    def _view(self, batch: Batch, view: int) -> Mapping[str, Any]:
        views = batch["views"]
        one = views[self.modality][:, view : view + 1]
        return {**batch, "views": {**views, self.modality: one}}
