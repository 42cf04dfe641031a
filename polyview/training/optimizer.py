"""Optimisers LARS, SGD and AdamW, with linear warm-up and cosine decay.

The trainer passes `steps` and `batch_size`; the config sets the other arguments.
`learning_rate` is a scaling rule: batch size -> peak learning rate. `minimum` is the
last rate, a fraction of the peak. For `layer_decay` see `training/layer_decay.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from polyview.errors import OutOfRange, check_range
from polyview.training.layer_decay import by_layer

ScalingRule = Callable[[int], float]


class Optimizer(NamedTuple):
    """An optax transformation, and its schedule (step -> learning rate) for logs."""

    transformation: optax.GradientTransformation
    schedule: optax.Schedule


def constant(batch_size: int, *, base: float) -> float:
    """Return `base`, the peak learning rate at any batch size."""
    check_range(0.0, base=base)
    return base


def linear(batch_size: int, *, base: float, per: int = 256) -> float:
    """Return the peak learning rate `base * batch_size / per` (Goyal et al. 2017).

    batch_size counts unique samples, not views.
    """
    check_range(0.0, base=base)
    check_range(1, per=per)
    return base * batch_size / per


def square_root(batch_size: int, *, base: float, per: int = 256) -> float:
    """Return the peak rate `base * sqrt(batch_size / per)` (Krizhevsky 2014)."""
    check_range(0.0, base=base)
    check_range(1, per=per)
    return base * (batch_size / per) ** 0.5


def warm_up_cosine(
    peak: float, steps: int, warm_up: float, minimum: float = 0.0
) -> optax.Schedule:
    """Rise linearly to `peak` in `warm_up * steps`, then fall by half a cosine to
    `minimum * peak` (Loshchilov and Hutter 2017)."""
    check_range(0.0, 1.0, warm_up=warm_up, minimum=minimum)
    rise = round(warm_up * steps)
    if rise >= steps:
        raise OutOfRange(
            f"warm_up={warm_up}: all {steps} steps would rise; leave some to fall"
        )
    first, last = 0.0 if rise else peak, minimum * peak
    return optax.warmup_cosine_decay_schedule(first, peak, rise, steps, last)


def decayed(params: Any) -> Any:
    """Mask for weight decay and layer adaptation: all but vectors (biases, scales)."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def lars(
    *,
    steps: int,
    batch_size: int,
    learning_rate: ScalingRule,
    weight_decay: float,
    warm_up: float,
    minimum: float = 0.0,
    layer_decay: float | None = None,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
) -> Optimizer:
    """LARS (You et al. 2017), with the exclusions of SimCLR (Chen et al. 2020)."""
    schedule = warm_up_cosine(learning_rate(batch_size), steps, warm_up, minimum)
    check_range(0.0, weight_decay=weight_decay)
    check_range(0.0, 1.0, momentum=momentum)
    transformation = optax.lars(
        schedule,
        weight_decay=weight_decay,
        weight_decay_mask=decayed,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=decayed,
        momentum=momentum,
    )
    return Optimizer(by_layer(transformation, layer_decay), schedule)


def sgd(
    *,
    steps: int,
    batch_size: int,
    learning_rate: ScalingRule,
    weight_decay: float,
    warm_up: float,
    minimum: float = 0.0,
    layer_decay: float | None = None,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> Optimizer:
    """SGD with L2 decay and momentum, optionally Nesterov's (Sutskever et al. 2013)."""
    schedule = warm_up_cosine(learning_rate(batch_size), steps, warm_up, minimum)
    check_range(0.0, weight_decay=weight_decay)
    check_range(0.0, 1.0, momentum=momentum)
    transformation = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decayed),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
    return Optimizer(by_layer(transformation, layer_decay), schedule)


def adamw(
    *,
    steps: int,
    batch_size: int,
    learning_rate: ScalingRule,
    weight_decay: float,
    warm_up: float,
    minimum: float = 0.0,
    layer_decay: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    clip: float | None = None,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019); clip: the largest norm of all gradients."""
    schedule = warm_up_cosine(learning_rate(batch_size), steps, warm_up, minimum)
    check_range(0.0, weight_decay=weight_decay, epsilon=epsilon, clip=clip)
    transformation = optax.adamw(
        schedule, b1, b2, epsilon, weight_decay=weight_decay, mask=decayed
    )
    if clip is not None:
        limit = optax.clip_by_global_norm(clip)
        transformation = optax.chain(limit, transformation)
    return Optimizer(by_layer(transformation, layer_decay), schedule)
