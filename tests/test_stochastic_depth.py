"""Rows skip branches at random, by their own keys, in training alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_microbatch import mesh_of

from polyview import devices
from polyview.errors import OutOfRange
from polyview.model import abstract_module, merge_module
from polyview.nn.heads import Identity
from polyview.nn.resnet import Basic, Bottleneck
from polyview.nn.stochastic_depth import factors
from polyview.nn.towers import Tower, Towers
from polyview.nn.vit import ViT
from polyview.training import microbatch

DEEP = partial(ViT, width=8, depth=3, heads=1, patch=4, image=8, drop_path=0.6)
IMAGE = np.zeros((1, 8, 8, 3), np.float32)


def keys_of(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def test_rates_rise_linearly_and_every_draw_is_its_own():
    draw = jax.jit(factors, static_argnums=(0, 2))
    drawn = np.stack(draw(0.6, keys_of(20_000), (4, 2)))
    assert drawn.shape == (4, 2, 20_000)
    for i, rate in enumerate((0.0, 0.2, 0.4, 0.6)):
        kept = drawn[i] > 0
        np.testing.assert_allclose(drawn[i][kept], 1 / (1 - rate), rtol=1e-6)
        np.testing.assert_allclose(kept.mean(1), 1 - rate, atol=0.015)
    # Of blocks and of branches; the first block keeps all.
    together = np.corrcoef(drawn[1:].reshape(6, -1))
    np.testing.assert_allclose(together, np.eye(6), atol=0.03)
    assert draw(0.5, keys_of(3), (1,))[0].tolist() == [1, 1, 1]


def drawn_weights(make) -> tuple:
    """A module's structure and random weights, without compiling its initialisers."""
    random = np.random.default_rng(0)
    graph, *shapes = abstract_module(make)

    def draw(shape):
        return random.normal(size=shape.shape, scale=0.5).astype(shape.dtype)

    return graph, jax.tree.map(draw, shapes)


def test_a_vit_multiplies_each_branch_of_each_row(rng):
    """Against the sum of its branches, each times its draw, row by row."""
    graph, arrays = drawn_weights(DEEP)
    x, keys = rng.random((3, 8, 8, 3), np.float32), keys_of(3)
    drawn = np.asarray(factors(0.6, keys, (3, 2)))
    assert (drawn == 0).any() and (drawn > 1).any()

    def encode(arrays, train):
        return merge_module(graph, *arrays)(x, train=train, key=keys)[0]

    @jax.jit
    def expected(arrays, patches, drawn):
        vit = merge_module(graph, *arrays)
        y = jnp.concatenate([vit.cls[0], vit.embed(patches)]) + vit.position[0]
        for block, (of_attention, of_mlp) in zip(vit.blocks, drawn, strict=True):
            query, key, value = jnp.split(block.qkv(block.norm1(y)), 3, -1)
            weights = jax.nn.softmax(query @ key.T / 8**0.5)
            y = y + of_attention * block.out(weights @ value)
            hidden = jax.nn.gelu(block.up(block.norm2(y)), approximate=False)
            y = y + of_mlp * block.down(hidden)
        return vit.norm(y)[0]

    patches = x.reshape(3, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(3, 4, 48)
    found = jax.jit(encode, static_argnums=1)(arrays, True)
    for row in range(3):
        y = expected(arrays, patches[row], drawn[..., row])
        np.testing.assert_allclose(found[row], y, atol=2e-5)
    draws = [
        "random_bits" in str(jax.make_jaxpr(partial(encode, train=train))(arrays))
        for train in (True, False)
    ]
    assert draws == [True, False], "evaluation draws nothing"


def test_a_rate_without_keys_or_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"drop_path=0.6 draws noise: pass key\[n\]"):
        nnx.eval_shape(lambda: DEEP(rngs=nnx.Rngs(0))(IMAGE, train=True))
    with pytest.raises(OutOfRange, match="drop_path=1.0"):
        nnx.eval_shape(lambda: DEEP(drop_path=1.0, rngs=nnx.Rngs(0)))


def test_a_row_of_a_resnet_without_its_branch_is_its_shortcut(rng):
    x = rng.random((2, 4, 4, 8), np.float32)
    for make in (partial(Basic, 8, 8, 1), partial(Bottleneck, 8, 2, 1)):
        graph, arrays = drawn_weights(make)

        @jax.jit
        def outputs(arrays, x, graph=graph):
            block = merge_module(graph, *arrays)
            return block(x, train=True), block(x, jnp.array([0.0, 1.0]), train=True)

        whole, skipped = outputs(arrays, x)
        np.testing.assert_array_equal(skipped[0], x[0])
        np.testing.assert_allclose(skipped[1], whole[1], atol=1e-6)
        assert not np.allclose(whole[0], x[0], atol=1e-3)


class Draws(nnx.Module):
    """An encoder whose features are the noise of its keys."""

    features = 1

    def __init__(self, *, rngs):
        pass

    def __call__(self, x, *, train, key=None):
        h = jax.vmap(jax.random.uniform)(key)[:, None]
        return h, h[:, None]


def test_a_view_has_a_key_of_its_own_by_row_index():
    """In a slice of the batch too, where rows have other places."""
    tower = Towers(
        {"x": partial(Tower, encoder=Draws, projector=Identity)}, rngs=nnx.Rngs(0)
    )
    batch = {"views": {"x": jnp.zeros((4, 3, 2))}, "index": jnp.array([7, 1, 30, 2])}

    def drawn(seed, slices=1):
        encode = microbatch.in_slices(tower, slices) if slices > 1 else tower
        return np.asarray(encode(batch, key=jax.random.key(seed), train=True)["x"].h)

    assert len(np.unique([drawn(0), drawn(1)])) == 2 * 4 * 3
    np.testing.assert_array_equal(drawn(0, slices=2), drawn(0))


def test_a_gradient_is_the_same_on_every_mesh_and_rematerialised(x64, rng):
    """Eight devices, by blocks, against the difference quotient of one device."""
    types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    vit = partial(DEEP, width=4, depth=2, **types)
    graph, arrays = drawn_weights(partial(Tower, encoder=vit, projector=Identity))
    rematerialised = partial(vit, remat="blocks")
    tower = partial(Tower, encoder=rematerialised, projector=Identity)
    batch = rng.random((8, 1, 8, 8, 3)), rng.permutation(8)

    def loss(params, batch, graph):
        module = merge_module(graph, params, *arrays[1:])
        views, index = batch
        key = jax.random.key(0)
        return (module(views, index=index, key=key, train=True).h ** 3).sum()

    mesh = mesh_of(8, 1)
    with jax.set_mesh(mesh):
        rows = devices.put(batch, mesh)
        step = jax.jit(jax.value_and_grad(loss), static_argnums=2)
        value, gradient = step(arrays[0], rows, abstract_module(tower).graph)
    alone = jax.jit(loss, static_argnums=2)
    np.testing.assert_allclose(value, alone(arrays[0], batch, graph), rtol=1e-9)
    way = jax.tree.map(lambda x: rng.normal(size=x.shape), arrays[0])
    ahead, behind = (
        alone(jax.tree.map(lambda x, to: x + e * to, arrays[0], way), batch, graph)  # noqa: B023
        for e in (1e-5, -1e-5)
    )
    slope = jax.tree.map(lambda g, to: (g * to).sum(), gradient, way)
    slope = sum(jax.tree.leaves(slope))
    np.testing.assert_allclose((ahead - behind) / 2e-5, slope, rtol=1e-6)
