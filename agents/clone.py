"""Behaviour cloning: the loss of an expert's actions."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from polyview.errors import InputError
from polyview.objectives.base import Batch


@dataclass(frozen=True)
class Cloning:
    """The mean over present steps of the adapter's loss of the expert's action.

    The module is `agents.policy:Policy`, the views are `agents.data:Context`. The loss
    of an action of several tokens is -sum_m log p(token_m | those before).
    """

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        if "action" not in batch["targets"]:
            raise InputError(
                "cloning needs the expert's actions; set views to agents.data:Context"
            )
        if not hasattr(module, "loss"):
            raise InputError("cloning takes a batch whole; set microbatch to None")
        losses, metrics, present = module.loss(batch, key, train=True)
        count = jnp.maximum(present.sum(), 1)

        def mean(values: jax.Array) -> jax.Array:
            return jnp.where(present, values, 0).sum() / count

        return mean(losses), {name: mean(value) for name, value in metrics.items()}
