"""The optimisers follow their papers, on the parameters they should."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyview.errors import InputError, OutOfRange
from polyview.model import abstract_module
from polyview.nn.heads import Projector
from polyview.nn.resnet import Basic, ResNet
from polyview.nn.text import TextTransformer
from polyview.nn.towers import Tower, Towers
from polyview.nn.vit import ViT
from polyview.training import optimizer
from polyview.training.layer_decay import layer_rates


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


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_the_rate_falls_to_its_minimum(name):
    options = {"learning_rate": rate(2.0), "weight_decay": 0.0, "warm_up": 0.1}
    make = functools.partial(
        getattr(optimizer, name), steps=100, batch_size=1, **options
    )
    rates = [float(make(minimum=0.1).schedule(s)) for s in (0, 5, 10, 55, 100)]
    # Half a cosine from the peak to its tenth: half-way, their mean.
    np.testing.assert_allclose(rates, [0, 1, 2, 1.1, 0.2], rtol=1e-6)
    with pytest.raises(OutOfRange, match="minimum=1.5"):
        make(minimum=1.5)


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


def encoders(*, rngs):
    """A ViT of 3 blocks, a ResNet of 2 and a text transformer of 1, with heads."""
    image = functools.partial(ViT, width=4, depth=3, heads=1, patch=2, image=4)
    small = {"widths": (2, 4), "block": Basic, "stem": "small"}
    report = functools.partial(
        TextTransformer, vocabulary=5, length=2, width=4, depth=1, heads=1, features=3
    )
    towers = {
        "image": image,
        "scan": functools.partial(ResNet, stages=(1, 1), **small),
        "report": report,
    }
    head = functools.partial(Projector, hidden=(2,), out=2)
    return Towers(
        {
            name: functools.partial(Tower, encoder=encoder, projector=head)
            for name, encoder in towers.items()
        },
        rngs=rngs,
    )


LAYERS = {  # the beginning of a path: n - i
    "image.encoder.embed.": 4,
    "image.encoder.cls": 4,
    "image.encoder.position": 4,
    "image.encoder.blocks.0.": 3,
    "image.encoder.blocks.1.": 2,
    "image.encoder.blocks.2.": 1,
    "image.encoder.norm.": 0,
    "image.projector.": 0,
    "scan.encoder.conv.": 3,
    "scan.encoder.norm.": 3,
    "scan.encoder.blocks.0.": 2,
    "scan.encoder.blocks.1.": 1,
    "scan.projector.": 0,
    "report.encoder.embed.": 2,
    "report.encoder.position": 2,
    "report.encoder.blocks.0.": 1,
    "report.encoder.norm.": 0,
    "report.encoder.output.": 0,
    "report.projector.": 0,
}


def test_each_layer_learns_at_its_rate():
    """Every parameter against a table by path: r^(n - i) of Bao et al. 2022."""
    params = abstract_module(encoders).params
    met = set()
    for path, factor in jax.tree.leaves_with_path(layer_rates(params["towers"], 0.5)):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        (start,) = [s for s in LAYERS if name.startswith(s)]
        met.add(start)
        assert factor == 0.5 ** LAYERS[start], name
    assert met == set(LAYERS)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_layer_decay_scales_the_steps_of_every_optimiser(name, rng):
    """Three steps with weight decay and momentum, as the rates' ratios."""
    params = {"blocks": {i: {"kernel": rng.normal(size=(2, 2))} for i in range(2)}}
    params |= {"embed": rng.normal(size=(2, 2)), "head": rng.normal(size=2)}
    params = jax.tree.map(jnp.asarray, params)
    gradients = jax.tree.map(jnp.cos, params)
    options = {"learning_rate": rate(0.1), "weight_decay": 0.1, "warm_up": 0.0}
    make = functools.partial(getattr(optimizer, name), steps=9, batch_size=1, **options)
    plain, scaled = (make(layer_decay=r).transformation for r in (None, 0.5))
    states = plain.init(params), scaled.init(params)
    for _ in range(3):
        expected, one = plain.update(gradients, states[0], params)
        updates, two = scaled.update(gradients, states[1], params)
        states = one, two
        ratios = jax.tree.map(lambda a, b: a / b, updates, expected)
        for where, factor in (("embed", 0.125), ("head", 1.0)):
            np.testing.assert_allclose(ratios[where], factor, rtol=1e-5)
        for i, factor in enumerate((0.25, 0.5)):
            np.testing.assert_allclose(ratios["blocks"][i]["kernel"], factor, rtol=1e-5)


def test_layer_decay_without_layers_is_refused():
    make = functools.partial(
        optimizer.sgd,
        steps=9,
        batch_size=1,
        learning_rate=rate(0.1),
        weight_decay=0.0,
        warm_up=0.0,
    )
    with pytest.raises(InputError, match="layer_decay: no trained encoder has a list"):
        make(layer_decay=0.9).transformation.init({"linear": jnp.ones(2)})
    with pytest.raises(OutOfRange, match="layer_decay=0.0: it must be more than 0"):
        make(layer_decay=0.0)


def test_a_warm_up_of_all_steps_is_refused_in_our_words():
    for warm_up, steps in ((1.0, 100), (0.9, 2)):
        with pytest.raises(OutOfRange, match="leave some to fall"):
            optimizer.warm_up_cosine(1.0, steps, warm_up)
