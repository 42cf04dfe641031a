"""Distributional Q-learning (C51) as functions of arrays.

    Z(s, a)   the return's distribution, softmax(logits) on the atoms of a fixed support
    target    the distribution of r + discount Z(s', a*), projected onto the atoms
    a*        argmax_a E Z(s', a) of the online network (double Q-learning)
    loss      cross-entropy of Z(s, a) to the target

Bellemare et al. 2017, "A Distributional Perspective on Reinforcement Learning"; the
double form is from van Hasselt et al. 2016, "Deep Reinforcement Learning with Double
Q-learning".

Axes: b samples, a actions, n atoms.
"""

import jax
import jax.numpy as jnp


def project(
    probabilities: jax.Array,
    rewards: jax.Array,
    discounts: jax.Array,
    support: jax.Array,
) -> jax.Array:
    """Project the distribution of r + discount Z onto the atoms of Z: `[b, n]` (C51).

    Z has the evenly spaced values `support[n]` with `probabilities[b, n]`. A return
    beyond an end of the support counts as that end. Others are shared between the two
    nearest atoms in inverse proportion to their distance (Bellemare et al. 2017,
    algorithm 1). `discounts[b]` is 0 where the episode ended.
    """
    low, high = support[0], support[-1]
    spacing = (high - low) / (len(support) - 1)
    returns = rewards[:, None] + discounts[:, None] * support[None]
    returns = jnp.clip(returns, low, high)
    distance = abs(returns[:, None, :] - support[None, :, None]) / spacing
    shares = jnp.clip(1 - distance, 0, 1)
    return jnp.einsum("bij,bj->bi", shares, probabilities, precision="highest")


def double_target(
    online: jax.Array,
    target: jax.Array,
    rewards: jax.Array,
    discounts: jax.Array,
    support: jax.Array,
) -> jax.Array:
    """The target of a return's distribution, `[b, n]` (van Hasselt et al. 2016).

    `online[b, a, n]` and `target[b, a, n]` are logits of the next state. `online`
    chooses the action of the highest expected return; `target` gives the distribution
    of its return.
    """
    best = jnp.argmax(expected(online, support), -1)
    return project(at(jax.nn.softmax(target), best), rewards, discounts, support)


def loss_and_divergence(
    log_probabilities: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and Kullback-Leibler divergence from `target[b, n]`, `[b]` each.

    The cross-entropy -sum_n p log q is the loss. The divergence
    sum_n p' (log p' - log q) with p' = max(p, 1e-6), clipped to [1e-6, 1e6], is the
    error of a prediction without the entropy of its target. SGI's official code uses it
    as the priority in replay.
    """
    loss = -jnp.sum(target * log_probabilities, -1)
    target = jnp.maximum(target, 1e-6)
    divergence = jnp.sum(target * (jnp.log(target) - log_probabilities), -1)
    return loss, jnp.clip(divergence, 1e-6, 1e6)


def expected(logits: jax.Array, support: jax.Array) -> jax.Array:
    """Expected returns `[..., a]` for `logits[..., a, n]` on the atoms `support[n]`."""
    return jnp.matmul(jax.nn.softmax(logits), support, precision="highest")


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """take_along_axis on the first axis that `index` lacks.

    `x[..., a, *]` and `index: int[...]` give `x[..., index[...], *]`, for example the
    logits of the actions taken.
    """
    axis = index.ndim
    index = index.reshape(index.shape + (1,) * (x.ndim - axis))
    return jnp.take_along_axis(x, index, axis).squeeze(axis)
