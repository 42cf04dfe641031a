"""MLPs compute what NumPy does; dropout draws by the key of a row, if it has one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.errors import OutOfRange
from polyview.model import Model, split_module
from polyview.nn.heads import Linear
from polyview.nn.mlp import Mlp, ReluMlp
from polyview.nn.towers import Tower, Towers

SIZE, CHANNELS = 3, 2


def relu_mlp(dropout=0.5, widths=(6, 5), **options):
    options |= {"size": SIZE, "in_channels": CHANNELS, "rngs": nnx.Rngs(0)}
    return ReluMlp(widths=widths, dropout=dropout, **options)


def images(rng, rows=7):
    x = rng.normal(size=(rows, SIZE, SIZE, CHANNELS))
    return jnp.asarray(x, jnp.float32)


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def linear(layer, x):
    kernel, bias = (np.asarray(w[...], np.float64) for w in (layer.kernel, layer.bias))
    return x @ kernel + bias


def test_relu_layers_are_those_of_numpy(rng):
    encoder, x = relu_mlp(), images(rng)
    true = np.asarray(x, np.float64).reshape(len(x), -1)
    for layer in encoder.layers:
        layer.bias[...] = jnp.asarray(rng.normal(size=layer.bias.shape), jnp.float32)
    h, local = encoder(x, train=False)
    for layer in encoder.layers:
        true = np.maximum(linear(layer, true), 0)
    assert encoder.features == 5 and (true == 0).any() and (true > 0).any()
    np.testing.assert_allclose(h, true, atol=1e-5)
    np.testing.assert_array_equal(local, h[:, None])
    with pytest.raises(ValueError, match="4 x 4, but the encoder's size=3"):
        encoder(jnp.zeros((2, 4, 4, CHANNELS)), train=False)
    for wrong in ({"dropout": 1.0}, {"dropout": -0.1}, {"widths": (4, 0)}):
        with pytest.raises(OutOfRange):
            relu_mlp(**wrong)


def test_the_mlp_of_vectors_has_one_layer_with_gelu(rng):
    encoder = Mlp(inputs=4, hidden=6, features=3, rngs=nnx.Rngs(0))
    x = rng.normal(size=(5, 4))
    wide = linear(encoder.hidden, x)
    cubic = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    true = linear(encoder.output, wide * (1 + np.tanh(cubic)) / 2)
    for key in (None, keys(5)):  # it has no dropout
        h, local = encoder(jnp.asarray(x, jnp.float32), train=True, key=key)
        np.testing.assert_allclose(h, true, atol=1e-5)
        np.testing.assert_array_equal(local, h[:, None])


def test_dropout_needs_a_key_and_keeps_the_mean_of_a_layer(rng):
    encoder, rows = relu_mlp(dropout=0.3, widths=(8,)), 4000
    x = jnp.broadcast_to(images(rng, 1), (rows, SIZE, SIZE, CHANNELS))
    plain, _ = encoder(x, train=True)
    np.testing.assert_array_equal(plain, encoder(x, train=False)[0])
    h, _ = encoder(x, train=False, key=keys(rows))
    np.testing.assert_array_equal(h, encoder(x, train=True, key=keys(rows))[0])
    on = np.asarray(plain[0]) > 0
    assert 0 < on.sum() < len(on)
    kept = np.asarray(h)[:, on] > 0
    np.testing.assert_allclose(
        np.asarray(h)[:, on], kept * np.asarray(plain[:, on]) / 0.7, rtol=1e-5
    )
    # Five standard errors of a share over the rows.
    near = 5 * np.sqrt(0.3 * 0.7 / rows)
    np.testing.assert_allclose(kept.mean(0), 0.7, atol=near)
    scaled = np.asarray(h).mean(0)[on] / np.asarray(plain[0])[on]
    np.testing.assert_allclose(scaled, 1, atol=near / 0.7)
    # Units, and layers, are dropped apart.
    pairs = np.corrcoef(kept.T)[np.triu_indices(on.sum(), 1)]
    assert np.abs(pairs).max() < 5 / np.sqrt(rows)


def test_each_layer_drops_units_of_its_own(rng):
    encoder, rows = relu_mlp(dropout=0.5, widths=(4, 4)), 2000
    first, second = encoder.layers
    first.kernel[...], first.bias[...] = jnp.zeros_like(first.kernel[...]), jnp.ones(4)
    second.kernel[...] = jnp.eye(4)
    h, _ = encoder(jnp.zeros((rows, SIZE, SIZE, CHANNELS)), train=False, key=keys(rows))
    assert np.unique(h).tolist() == [0, 4]  # kept twice, or dropped once
    assert np.mean(np.asarray(h) > 0) == pytest.approx(0.25, abs=0.025)


def test_a_row_is_dropped_by_its_own_key_wherever_it_stands(rng):
    encoder, x = relu_mlp(), images(rng)
    own = keys(7)
    h, _ = encoder(x, train=False, key=own)
    order = np.array([3, 0, 6, 5])
    moved, _ = encoder(x[order], train=False, key=own[order])
    np.testing.assert_allclose(moved, h[order], rtol=1e-6)
    other, _ = encoder(x, train=False, key=own.at[2].set(jax.random.key(9)))
    same = (np.asarray(other) == np.asarray(h)).all(axis=1)
    assert same.tolist() == [True, True, False, True, True, True, True]


def towers(dropout=0.5, frozen=False):
    tower = partial(
        Tower,
        encoder=partial(
            ReluMlp, size=SIZE, in_channels=CHANNELS, widths=(6, 5), dropout=dropout
        ),
        projector=partial(Linear, out=4),
        frozen=frozen,
    )
    made = Towers({"image": tower}, rngs=nnx.Rngs(0))
    kernel = made.towers["image"].projector.linear.kernel  # a linear head starts at 0
    kernel[...] = jax.random.normal(jax.random.key(5), kernel.shape)
    return made


def batch_of(x, index):
    return {"views": {"image": x[:, None]}, "index": jnp.asarray(index)}


def test_a_frozen_encoder_has_no_noise_in_training(rng):
    batch, key = batch_of(images(rng), range(7)), jax.random.key(1)
    frozen, free = towers(frozen=True), towers()
    plain = frozen(batch, key=None, train=False)["image"].h
    np.testing.assert_array_equal(frozen(batch, key=key, train=True)["image"].h, plain)
    noisy = free(batch, key=key, train=True)["image"].h
    assert not np.allclose(noisy, free(batch, key=None, train=False)["image"].h)


def test_draws_of_a_model_repeat_by_key_and_row(rng):
    x, index = images(rng), np.array([4, 0, 9, 2, 7, 1, 3])
    batch, key = batch_of(x, index), jax.random.key(1)
    model = Model(split_module(towers()), None)
    drawn = model.drawn(batch, key)["image"]
    again = model.drawn(batch, key)["image"]
    for name in ("z", "h"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(again, name))
    assert not np.allclose(drawn.h, model.drawn(batch, jax.random.key(2))["image"].h)
    assert not np.allclose(drawn.h, model(batch)["image"].h)
    some = np.array([5, 2])
    part = model.drawn(batch_of(x[some], index[some]), key)["image"]
    np.testing.assert_allclose(part.z, np.asarray(drawn.z)[some], atol=1e-6)
    moved = model.drawn(batch_of(x[some], index[some] + 1), key)["image"]
    assert not np.allclose(moved.z, part.z)
    # A frozen encoder has draws in evaluation: its own probe is asked for them.
    assert not np.allclose(
        Model(split_module(towers(frozen=True)), None).drawn(batch, key)["image"].h,
        model(batch)["image"].h,
    )
    still = Model(split_module(towers(dropout=0.0)), None)
    np.testing.assert_array_equal(
        still.drawn(batch, key)["image"].z, still(batch)["image"].z
    )
