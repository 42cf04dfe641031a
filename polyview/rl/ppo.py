"""Proximal policy optimisation (Schulman et al. 2017): advantages, and the loss.

    A_i = d_i + g l (1 - over_{i+1}) A_{i+1}
    d_i = r_{i+1} + g V(s_{i+1}) (1 - terminated_{i+1}) - V(s_i)

(Schulman et al. 2016.) The last state of an episode is shown (`polyview.rl.environment`
), so an episode that was cut off counts the value of where it was cut off.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from polyview.errors import TINY, InputError, check_range

ValueLoss = Literal["squared", "clipped", "larger", "huber"]


class Judged(NamedTuple):
    """What a policy says of actions that were taken.

    Attributes:
      log_prob: float[b, t], of the actions.
      entropy: float[b, t], of all actions, in nats.
      value: float[b, t], normalised (`polyview.rl.critic`).
      choices: float[b, t], the number of actions that were legal.
    """

    log_prob: jax.Array
    entropy: jax.Array
    value: jax.Array
    choices: jax.Array


def advantages(
    rewards: jax.Array,
    values: jax.Array,
    terminated: jax.Array,
    over: jax.Array,
    discount: float,
    trace: float,
) -> jax.Array:
    """Return A of the module's equation, float[t, n].

    rewards: float[t, n], r_{i+1}. values: float[t + 1, n]. terminated, over: bool[t, n]
    of s_{i+1}. discount, trace: g and l. Where s_i is over, A_i means nothing.
    """
    following = discount * values[1:] * (1 - terminated)
    errors = rewards + following - values[:-1]

    def back(after: jax.Array, now: tuple) -> tuple[jax.Array, jax.Array]:
        error, end = now
        found = error + discount * trace * (1 - end) * after
        return found, found

    zeros = jnp.zeros_like(errors[0])
    return jax.lax.scan(back, zeros, (errors, over * 1.0), reverse=True)[1]


def policy_loss(ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """Return -min(r A, clip(r, 1 - clip, 1 + clip) A), elementwise."""
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_loss(
    value: jax.Array, old: jax.Array, target: jax.Array, kind: ValueLoss, clip: float
) -> jax.Array:
    """Return a loss of values, elementwise; old: the value when the action was taken.

    squared   (V - R)^2 / 2
    clipped   the same of V if |V - old| < clip, else of old +- clip, which has no
              gradient (the code of LLaRP, Szot et al. 2024)
    larger    the larger of these two, with old +- clip of any V (the code of PPO)
    huber     |V - R| - 1/2 beyond 1, else as squared
    """
    near = old + jnp.clip(value - old, -clip, clip)
    error = value - target
    if kind == "squared":
        return 0.5 * jnp.square(error)
    if kind == "clipped":
        kept = jnp.where(jnp.abs(value - old) < clip, value, near)
        return 0.5 * jnp.square(kept - target)
    if kind == "larger":
        return 0.5 * jnp.maximum(jnp.square(error), jnp.square(near - target))
    size = jnp.abs(error)
    return jnp.where(size < 1, 0.5 * jnp.square(error), size - 0.5)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean where a mask is True, 0 if it nowhere is.

    What is masked has no gradient, also if it is not finite.
    """
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def masked_entropy(logs: jax.Array, legal: jax.Array) -> jax.Array:
    """Return -sum p log p over the last axis, of what is legal."""
    sound = jnp.where(legal, logs, 0)  # 0 log 0 is 0, and has no gradient
    return -jnp.where(legal, jnp.exp(sound) * sound, 0).sum(-1)


@dataclass(frozen=True)
class PPO:
    """The loss of rows of play, as an objective of the engine.

        mean of policy loss + value_weight value loss - entropy_weight entropy

    over the steps that were really taken. The module has `judge`
    (`polyview.rl.acting:Actor`); the batch holds `play`, what it takes, and float[b, t]
    `advantages`, `returns` and `values`, both normalised, `log_prob`, and bool[b, t]
    `taken`; t are the last steps of the play.

    Attributes:
      clip: of the ratio of probabilities.
      value_weight, entropy_weight: of the terms.
      value_loss: see the function.
      value_clip: of values, if `value_loss` clips.
      relative_entropy: divide entropies by that of all legal actions alike, so that one
        weight serves all action spaces (Szot et al. 2025); where one action is legal,
        there is none.
      standardise: advantages of a batch to mean 0 and deviation 1.
    """

    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    value_loss: ValueLoss = "squared"
    value_clip: float = 0.2
    relative_entropy: bool = False
    standardise: bool = True

    def __post_init__(self) -> None:
        check_range(TINY, math.inf, clip=self.clip, value_clip=self.value_clip)
        check_range(
            0.0, value_weight=self.value_weight, entropy_weight=self.entropy_weight
        )
        if self.value_loss not in get_args(ValueLoss):
            raise InputError(
                f"objective.value_loss={self.value_loss!r}; give one of "
                f"{', '.join(get_args(ValueLoss))}"
            )

    def __call__(
        self, module: Any, target_module: Any, batch: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        taken = batch["taken"]
        t = taken.shape[1]

        def sound(values: jax.Array) -> jax.Array:
            """Zero what was not taken, which may be anything, and has no gradient."""
            return jnp.where(taken, values, 0)

        names = ("advantages", "returns", "values", "log_prob")
        advantage, returns, old, acted = (sound(batch[name]) for name in names)
        spoken = module.judge(batch["play"])
        judged = Judged(*(sound(part[:, -t:]) for part in spoken))
        if self.standardise:
            mean = masked_mean(advantage, taken)
            spread = jnp.sqrt(masked_mean(jnp.square(advantage - mean), taken))
            advantage = (advantage - mean) / (spread + 1e-8)
        change = judged.log_prob - acted
        ratio = jnp.exp(change)
        entropy = judged.entropy
        if self.relative_entropy:
            most = jnp.log(jnp.maximum(judged.choices, 2))
            entropy = jnp.where(judged.choices > 1, entropy / most, 0)
        parts = {
            "policy_loss": policy_loss(ratio, advantage, self.clip),
            "value_loss": value_loss(
                judged.value, old, returns, self.value_loss, self.value_clip
            ),
            "entropy": entropy,
            "clipped": jnp.abs(ratio - 1) > self.clip,
            "divergence": ratio - 1 - change,  # of the policies (Schulman 2020)
        }
        metrics = {name: masked_mean(part, taken) for name, part in parts.items()}
        metrics["farthest_ratio"] = jnp.max(jnp.abs(ratio - 1))
        loss = metrics["policy_loss"] + self.value_weight * metrics["value_loss"]
        return loss - self.entropy_weight * metrics["entropy"], metrics
