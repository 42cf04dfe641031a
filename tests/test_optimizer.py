"""The optimisers follow their papers, on the parameters they should."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from polyview.training import optimizer


def rate(base):
    return functools.partial(optimizer.constant, base=base)


def test_scaling_rules_at_four_times_the_reference_batch():
    assert optimizer.constant(1024, base=0.3) == pytest.approx(0.3)
    assert optimizer.linear(1024, base=0.3) == pytest.approx(1.2)
    assert optimizer.square_root(1024, base=0.3) == pytest.approx(0.6)


def test_schedule_rises_linearly_and_falls_as_a_cosine():
    schedule = optimizer.warm_up_cosine(2.0, 100, 0.1)
    rates = [float(schedule(s)) for s in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(rates, [0, 1, 2, 1, 0], atol=1e-6)
    assert float(optimizer.warm_up_cosine(2.0, 100, 0.0)(0)) == pytest.approx(2.0)


def test_lars_follows_its_equations():
    """You et al. 2017 in the form of SimCLR, written in numpy."""
    made, schedule = optimizer.lars(
        steps=5,
        batch_size=256,
        learning_rate=rate(0.5),
        weight_decay=1e-2,
        warm_up=0.4,
        momentum=0.9,
        trust_coefficient=1e-3,
    )
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)}
    velocity = {name: np.zeros_like(p) for name, p in params.items()}
    ours = {name: jnp.asarray(p) for name, p in params.items()}
    state = made.init(ours)
    for number in range(5):
        gradients = {name: random.normal(size=p.shape) for name, p in params.items()}
        updates, state = made.update(
            {name: jnp.asarray(g) for name, g in gradients.items()}, state, ours
        )
        ours = {name: p + updates[name] for name, p in ours.items()}
        for name, p in params.items():
            update = gradients[name]
            if name == "kernel":
                update = update + 1e-2 * p
                update *= 1e-3 * np.linalg.norm(p) / np.linalg.norm(update)
            velocity[name] = 0.9 * velocity[name] + float(schedule(number)) * update
            params[name] = p - velocity[name]
    for name, p in params.items():
        np.testing.assert_allclose(ours[name], p, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_vectors_have_no_weight_decay(name):
    made, _ = getattr(optimizer, name)(
        steps=5,
        batch_size=1,
        learning_rate=rate(1.0),
        weight_decay=0.1,
        warm_up=0.0,
    )
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zeros = {"kernel": jnp.zeros((2, 2)), "scale": jnp.zeros(2)}
    updates, _ = made.update(zeros, made.init(params), params)
    assert jnp.all(updates["kernel"] < 0)
    assert jnp.all(updates["scale"] == 0)
