"""A queue of keys, and the towers of a model that is compared with its moving average.

Keys of earlier batches are negatives of the next, so their number does not depend on
the batch size (MoCo; He et al. 2020). The queue is a statistic: part of a checkpoint,
written by a step for the rows of all devices, and the same on any number of them.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import InputError, check_range
from polyview.nn.towers import Towers


class Keys(nnx.Variable):
    """The contents of a queue."""


class Queue(nnx.Module):
    """The last `size` keys, `keys: float[size, features]`, the newest first.

    It begins with random directions. Raises OutOfRange for less than one of either.
    """

    def __init__(
        self,
        *,
        size: int,
        features: int,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, size=size, features=features)
        keys = jax.random.normal(rngs.params(), (size, features), param_dtype)
        self.keys = Keys(keys / jnp.linalg.norm(keys, axis=1, keepdims=True))

    def push(self, keys: jax.Array) -> None:
        """Add float[n, features] in place of the n oldest.

        Raises InputError if the queue is shorter, or its keys have other features.
        """
        size, features = self.keys.shape
        if len(keys) > size:
            raise InputError(
                f"a queue of size={size} cannot take the {len(keys)} keys of a step; "
                f"set model.queue.size to {len(keys)} or more"
            )
        if keys.shape[1] != features:
            raise InputError(
                f"a queue of features={features} cannot take keys of {keys.shape[1]}; "
                f"set model.queue.features={keys.shape[1]}, the projector's width"
            )
        keys = jax.lax.stop_gradient(keys).astype(self.keys.dtype)
        self.keys[...] = jnp.concatenate([keys, self.keys[: size - len(keys)]])


class QueueTowers(Towers):
    """Towers with a queue: `queue(rngs=)` makes a `Queue`."""

    def __init__(self, towers: Mapping, *, queue: Callable[..., Queue], rngs: nnx.Rngs):
        super().__init__(towers, rngs=rngs)
        self.queue = queue(rngs=rngs)

    def augmented(self, batch: Mapping, *, key: jax.Array) -> dict[str, Any]:
        """Return the batch after the photometry of each tower, to encode without noise.

        So a moving average encodes noisy views by its own averages, which are those of
        no batch: in evaluation (Cai et al. 2021).
        """
        views = dict(batch["views"])
        for name, tower in self.towers.items():
            noise = jax.random.fold_in(key, zlib.crc32(name.encode()))
            views[name] = tower.augmented(views[name], batch["index"], noise)
        return {**batch, "views": views}
