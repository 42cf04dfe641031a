"""The losses of SGI as functions of arrays (Schwarzer et al. 2021).

Axes: b samples, k steps ahead, d features, a actions, n atoms of a return. In two
places the official code (mila-iqia/SGI) differs from its evident intent; `windows` and
`noisy_goals` have both forms, by name. For distributional Q-learning see
`polyview.rl.distributional`.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from polyview.rl.distributional import at, expected


class Masks(NamedTuple):
    """Weights of the terms of a window; steps past an episode's end have weight 0."""

    predicted: jax.Array  # float[b, K]: the latent k = 1..K steps ahead
    inverse: jax.Array  # float[b, K]: the action between steps k and k + 1
    reward: jax.Array  # float[b]: the goal's reward of the first step
    bootstrap: jax.Array  # float[b]: the return of the state after it


def windows(
    terminal: jax.Array,
    *,
    jumps: int,
    window_terminals: Literal["correct", "upstream"] = "correct",
    discount: float = 0.99,
) -> Masks:
    """Return masks; `terminal[b, jumps + 1 or more]` is whether step t+k ended it.

    "correct": the state k steps ahead counts if none of the steps 0..k-1 was the last,
    an action if neither its step nor an earlier one was.
    "upstream", as the official code in pre-training: terminals are read one step late
    and one too many. State k requires no end at steps 1..k+1 (absent steps count as
    none), and an end at step 0 is missed; no action is masked; the reward is discounted
    once too often. In fine-tuning the official code reads them one too many, not late.
    Only masks change, not the frames of a window; see `sgi.replay.Window`.
    """
    if terminal.shape[1] <= jumps:
        raise ValueError(f"terminal{terminal.shape} needs {jumps + 1} steps or more")
    if window_terminals == "correct":
        alive = _none_so_far(terminal[:, : max(jumps, 1)])
        return Masks(alive[:, :jumps], alive[:, :jumps], alive[:, 0], alive[:, 0])
    if window_terminals != "upstream":
        raise ValueError(
            'window_terminals must be "correct" or "upstream", not '
            f"{window_terminals!r}"
        )
    late = jnp.pad(terminal[:, 1:], ((0, 0), (0, 2)))
    alive = _none_so_far(late)
    predicted = alive[:, 1 : jumps + 1]
    inverse = jnp.ones_like(predicted)
    return Masks(predicted, inverse, discount * alive[:, 0], alive[:, 1])


def _none_so_far(happened: jax.Array) -> jax.Array:
    """Return 1.0 up to the first True of each row `[b, k]`, exclusive, then 0.0."""
    return (jnp.cumsum(happened, 1) == 0).astype(float)


def l2_normalize(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-3) along the last axis; its gradient is finite at zero."""
    squared = jnp.sum(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-6))


def self_prediction(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """|l2(predicted) - l2(target)|^2 of `[..., d]`: 2 - 2 cos of their angle.

    The loss of SPR (Schwarzer et al. 2020), `[...]`; zero is perfect, 2 is chance.
    """
    difference = l2_normalize(predicted) - l2_normalize(target)
    return jnp.sum(difference**2, -1)


def mean_cosine(z: jax.Array) -> jax.Array:
    """Mean cosine between different rows of `z[b, d]`; near 1 the rows have collapsed.

    Takes time linear in b: the sum over all pairs is the square of the sum of rows.
    """
    unit = l2_normalize(z)
    own = jnp.sum(unit**2)
    b = len(z)
    return (jnp.sum(unit.sum(0) ** 2) - own) / max(b * (b - 1), 1)


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """-log softmax(logits)[class] of `logits[..., a]` and `classes: int[...]`.

    With the inverse model's logits and the actions taken, this is inverse dynamics.
    """
    return -at(jax.nn.log_softmax(logits), classes)


def behaviour_cloning(
    logits: jax.Array, actions: jax.Array, support: jax.Array
) -> jax.Array:
    """Cross-entropy to `actions[b]`, with expected returns as logits of a policy.

    `logits[b, a, n]` are over the returns `support[n]`.
    """
    return cross_entropy(expected(logits, support), actions)


def noisy_goals(
    latents: jax.Array,
    keys: jax.Array,
    *,
    noise: float = 0.5,
    goal_noise_scale: Literal["upstream", "unit"] = "upstream",
) -> jax.Array:
    """l2(alpha e + (1 - alpha) z), z a row of `latents[b, d]`, e a random direction.

    alpha is uniform in [0, noise]; alpha and e are drawn from the row's key `keys[b]`.
    "unit" scales z to the length of e, 1. "upstream" does not: latents with thousands
    of entries in [0, 1] are far longer than 1, so the noise is much weaker than alpha.
    """
    if goal_noise_scale not in ("upstream", "unit"):
        raise ValueError(
            f'goal_noise_scale must be "upstream" or "unit", not {goal_noise_scale!r}'
        )
    if goal_noise_scale == "unit":
        latents = l2_normalize(latents)

    def of_row(latent: jax.Array, key: jax.Array) -> jax.Array:
        mix, direction = jax.random.split(key)
        alpha = noise * jax.random.uniform(mix, (), latent.dtype)
        normal = jax.random.normal(direction, latent.shape, latent.dtype)
        return l2_normalize(alpha * l2_normalize(normal) + (1 - alpha) * latent)

    return jax.vmap(of_row)(latents, keys)


def permuted_goals(
    goals: jax.Array, keys: jax.Array, *, chance: float = 0.2
) -> jax.Array:
    """`goals[b, d]`, each with a `chance` replaced by any row's, its own included."""
    b = len(goals)

    def source(own: jax.Array, key: jax.Array) -> jax.Array:
        row_key, chance_key = jax.random.split(key)
        drawn = jax.random.randint(row_key, (), 0, b)
        return jnp.where(jax.random.uniform(chance_key) < chance, drawn, own)

    return goals[jax.vmap(source)(jnp.arange(b), keys)]


def goal_distance(u: jax.Array, v: jax.Array, *, scale: float = 5.0) -> jax.Array:
    """1 - exp(-scale |l2(u) - l2(v)|^2) of `[..., d]`: from 0 to almost 1."""
    return 1 - jnp.exp(-scale * self_prediction(u, v))


def goal_reward(
    before: jax.Array,
    after: jax.Array,
    goal: jax.Array,
    *,
    distance_scale: float = 5.0,
    reward_scale: float = 10.0,
) -> jax.Array:
    """Approach to the goal: reward_scale (d(before, goal) - d(after, goal)).

    Latents are `[..., d]`. Over a path the rewards add up to that of its two ends.
    """
    d_before = goal_distance(before, goal, scale=distance_scale)
    d_after = goal_distance(after, goal, scale=distance_scale)
    return reward_scale * (d_before - d_after)
