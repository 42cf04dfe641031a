"""What the models of the future are trained on: losses over pairs of an episode.

A pair that ends beyond its episode is missing, and counts nowhere.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dvf.futures import pairs
from dvf.rewards import Reward
from polyview.errors import TINY, InputError, check_range
from polyview.objectives.base import Batch
from polyview.objectives.pairs import clip
from polyview.objectives.supervised import mean_of_present


@dataclass(frozen=True)
class Denoising:
    """Denoising or flow matching of later states: a `dvf.occupancy:DiffusionOccupancy`.

    | target - prediction(noisy s[t + k]; time, s[t], k, policy) |^2 / d, averaged over
    the pairs that are present (Mazoure et al. 2023).
    """

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        rows = pairs(batch, module.condition)
        losses = module.losses(rows, key)
        return mean_of_present(losses, rows.present), {"present": rows.present.mean()}


@dataclass(frozen=True)
class Contrast:
    """InfoNCE between states and those that come later: `ContrastiveOccupancy`.

    Each pair of the batch is told from its pairings with the later states of all other
    pairs, and with their states now, as CLIP does (`polyview.objectives.pairs:clip`).
    At its best the product of encodings is log p(s' | s) / p(s'), up to a number.
    """

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        rows = pairs(batch, module.condition)
        now, later = module.encodings(rows)
        matched = clip(now, later, 1.0, present=rows.present, normalize=False)
        metrics = {
            "present": rows.present.mean(),
            "found": mean_of_present(matched.found, rows.present),
        }
        return mean_of_present(matched.losses, rows.present), metrics


@dataclass(frozen=True)
class TemporalDifference:
    """TD(0) of values for rewards that are known in training: `dvf.value:Values`.

        target = g (r(s[t + 1]) + V'(s[t + 1])),   loss = (V(s[t]) - target)^2

    averaged over pairs and rewards, V' being the moving average of V (`target_decay`).
    Views must have a discount of 0, for pairs one step apart. No state ends an episode
    for good. Raises InputError without a moving average, and for another number of
    values than rewards.
    """

    reward: Reward
    discount: float

    def __post_init__(self) -> None:
        check_range(0.0, 1 - TINY, discount=self.discount)

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        if target_module is None:
            raise InputError("temporal differences need a moving average: target_decay")
        rows = pairs(batch, module.condition)
        told, rewards = module.of(rows.state, rows.policy), self.reward(rows.later)
        if told.shape != rewards.shape:
            raise InputError(
                f"the model tells {told.shape[1]} values and there are "
                f"{len(self.reward.names)} rewards; set model.rewards"
            )
        after = target_module.of(rows.later, rows.policy)
        errors = jnp.square(told - self.discount * (rewards + after)).mean(-1)
        one_step = rows.present & (rows.offset == 1)
        return mean_of_present(errors, one_step), {"present": one_step.mean()}
