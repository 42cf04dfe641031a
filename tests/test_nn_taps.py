"""Activations and outputs of modules are what the module computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.model import Model, split_module
from polyview.nn.taps import activations, outputs


class Block(nnx.Module):
    """Two ReLUs around a product, the second rematerialised; then a smooth layer."""

    def __init__(self, rngs):
        self.up, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.down = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        hidden = jax.nn.relu(self.norm(self.up(x)))
        return jax.checkpoint(lambda y: jax.nn.relu(self.down(y)))(hidden)


class Net(nnx.Module):
    """What a model is called with: a batch, a key and train."""

    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs), Block(rngs)])
        self.last = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, batch, *, key, train):
        x = batch
        for block in self.blocks:
            x = block(x)
        return {"z": jax.nn.silu(self.last(jax.nn.relu(x)))}


@pytest.fixture
def net():
    return Net(nnx.Rngs(0))


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)


def by_hand(net, x):
    """Return every activation, computed with NumPy."""
    found, x = [], np.asarray(x, np.float64)
    for block in net.blocks:
        x = x @ np.asarray(block.up.kernel[...]) + np.asarray(block.up.bias[...])
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        found.append(x := np.maximum(x, 0))
        x = x @ np.asarray(block.down.kernel[...]) + np.asarray(block.down.bias[...])
        found.append(x := np.maximum(x, 0))
    return [*found, x]


PATHS = [
    *("blocks.0:relu.0", "blocks.0:relu.1", "blocks.1:relu.0", "blocks.1:relu.1"),
    ":relu",
]


def test_activations_are_found_in_order_and_read_by_path(net, x):
    model = Model(split_module(net), None)
    found = model.activations(x)
    assert [one.path for one in found] == [*PATHS, ":sigmoid"]
    assert [one.kind for one in found] == ["relu"] * 5 + ["sigmoid"]
    assert [one.shape for one in found[:2]] == [(5, 4), (5, 3)]
    read = model.taps(x, [*PATHS, "blocks.1", "last"])
    for path, true in zip(PATHS, by_hand(net, x), strict=True):
        np.testing.assert_allclose(read[path], true, atol=1e-5)
    np.testing.assert_array_equal(read["blocks.1"], read["blocks.1:relu.1"])
    plain = model.taps(x, ["last"])["last"]
    np.testing.assert_allclose(
        model.taps(x, [":sigmoid"])[":sigmoid"], plain, rtol=1e-6
    )
    np.testing.assert_allclose(read["last"], plain, rtol=1e-6)
    np.testing.assert_allclose(jax.nn.silu(plain), model(x)["z"], rtol=1e-6)


def test_what_is_not_there_is_named(net, x):
    run = lambda: net(x, key=None, train=False)  # noqa: E731
    with pytest.raises(ValueError, match="no activation at 'blocks.0:relu'.*relu."):
        outputs(net, run, ["blocks.0:relu"])
    with pytest.raises(ValueError, match="no module at 'block.0'.*blocks.0"):
        outputs(net, run, ["block.0"])
    with pytest.raises(ValueError, match="'last' is not called"):
        outputs(net, lambda: net.blocks[0](x), ["last", "blocks.0:relu.0"])


def test_gelu_is_told_apart(x):
    class Smooth(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            x = nnx.gelu(self.linear(x), approximate=False)
            return nnx.gelu(x) + jnp.maximum(x, 0)  # by hand: not found

    module = Smooth()
    found = activations(module, lambda: module(x))
    assert [one.kind for one in found] == ["gelu", "tanh"]
    paths = [":gelu", ":tanh", "linear"]
    read = outputs(module, lambda: module(x), paths)
    assert (np.sign(read[":gelu"]) == np.sign(read["linear"])).all()
    hidden = np.asarray(nnx.gelu(read["linear"], approximate=False))
    assert (np.sign(read[":tanh"]) == np.sign(hidden)).all()
