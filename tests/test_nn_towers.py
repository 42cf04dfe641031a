"""A row's features depend only on its pixels, its index and the key."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.nn.heads import Identity, Projector
from polyview.nn.photometry import Photometry
from polyview.nn.resnet import resnet_tiny
from polyview.nn.towers import Tower, Towers


def model(names=("left",), dtype=jnp.float32, param_dtype=jnp.float32, **options):
    types = {"dtype": dtype, "param_dtype": param_dtype}
    tower = partial(
        Tower,
        encoder=partial(resnet_tiny, width=8, **types),
        projector=partial(Projector, hidden=(16,), out=4, **types),
        photometry=Photometry(),
        mean=[0.5],
        std=0.25,
        **options,
    )
    return Towers(dict.fromkeys(names, tower), rngs=nnx.Rngs(0))


@partial(jax.jit, static_argnames=("graph", "train"))
def run(graph, state, batch, key, train):
    return nnx.merge(graph, state, copy=True)(batch, key=key, train=train)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (2, 8, 3, 28, 28, 1), dtype=np.uint8)
    index = np.array([3, 1, 41, 5, 9, 26, 535, 8])
    return {"views": {"left": views[0], "right": views[1]}, "index": index}


def loss(graph, params, rest, batch, key):
    module = nnx.merge(graph, params, rest, copy=True)
    features = module(batch, key=key, train=True)
    value = sum((f.z**3).mean() for f in features.values())
    return value, (nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param))), features)


def split(module):
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def test_features_keep_the_order_of_rows_and_views(batch):
    module = model(("left", "right"), local=True)
    features = run(*nnx.split(module), batch, jax.random.key(0), train=True)
    assert set(features) == {"left", "right"}
    left = features["left"]
    d = module.towers["left"].encoder.features
    assert left.z.shape == (8, 3, 4) and left.h.shape == (8, 3, d)
    assert left.local.shape[:2] == (8, 3) and left.local.shape[3] == d
    without = run(*nnx.split(model()), batch, None, train=False)
    assert without["left"].local is None

    # Rows and views keep their places.
    one = {
        "views": {name: view[5:6, 2:] for name, view in batch["views"].items()},
        "index": batch["index"][5:6],
    }
    whole = run(*nnx.split(module), batch, None, train=False)["right"]
    alone = run(*nnx.split(module), one, None, train=False)["right"]
    np.testing.assert_allclose(alone.h[0, 0], whole.h[5, 2], atol=1e-5)
    np.testing.assert_allclose(
        whole.h, whole.local.astype(jnp.float32).mean(2), atol=1e-5
    )


def test_evaluation_adds_no_noise_and_keeps_the_state(batch):
    module = model()
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(module)))
    first = module(batch, key=None, train=False)
    again = module(batch, key=jax.random.key(7), train=False)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    after = nnx.to_pure_dict(nnx.state(module))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_pixels_are_scaled_and_normalised_exactly_once(batch):
    """uint8 is divided by 255; floats are used unchanged."""
    module = model()
    scaled = {
        "views": {
            name: v.astype(np.float32) / 255 for name, v in batch["views"].items()
        },
        "index": batch["index"],
    }
    for key, train in ((None, False), (jax.random.key(0), True)):
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=1e-4),
            run(*nnx.split(module), batch, key, train),
            run(*nnx.split(module), scaled, key, train),
        )

    class Echo(nnx.Module):
        features = 2

        def __init__(self, *, rngs):
            pass

        def __call__(self, x, *, train, key=None):
            return x, x[:, None]

    tower = Tower(
        encoder=Echo, projector=Identity, mean=(1.0, 2.0), std=(2, 4), rngs=nnx.Rngs(0)
    )
    views = np.array([[[3.0, 10.0], [1.0, -2.0]]], np.float32)
    features = tower(views, index=jnp.arange(1), key=None, train=False)
    np.testing.assert_allclose(features.z, [[[1, 2], [0, -1]]])


def test_noise_depends_on_row_index_key_and_tower(batch):
    """The encoder here returns pixels, as BatchNorm would mix the rows."""

    class Echo(nnx.Module):
        features = 28 * 28

        def __init__(self, *, rngs):
            pass

        def __call__(self, x, *, train, key=None):
            return x.reshape(len(x), -1), x[:, None, :, 0, 0]

    tower = partial(
        Tower, encoder=Echo, projector=Identity, photometry=Photometry(), mean=0, std=1
    )
    module = Towers({"left": tower, "right": tower}, rngs=nnx.Rngs(0))
    same = {"left": batch["views"]["left"], "right": batch["views"]["left"]}
    batch = {"views": same, "index": batch["index"]}
    whole = module(batch, key=jax.random.key(0), train=True)
    order = np.array([6, 0, 3])
    some = jax.tree.map(lambda leaf: leaf[order], batch)
    part = module(some, key=jax.random.key(0), train=True)
    np.testing.assert_allclose(part["left"].z, whole["left"].z[order], atol=1e-6)
    assert not np.allclose(whole["left"].z, whole["right"].z)
    other = module(batch, key=jax.random.key(1), train=True)
    assert not np.allclose(whole["left"].z, other["left"].z)
    renumbered = batch | {"index": batch["index"] + 1}
    other = module(renumbered, key=jax.random.key(0), train=True)
    assert not np.allclose(whole["left"].z, other["left"].z)


def test_eight_devices_give_the_same_step(x64, batch):
    """Values, gradients and statistics in float64; statistics keep their dtype."""
    graph, params, rest = split(model(dtype=jnp.float64, param_dtype=jnp.float64))
    step = jax.jit(jax.value_and_grad(partial(loss, graph), has_aux=True))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    one = step(params, rest, batch, jax.random.key(0))
    eight = step(params, rest, jax.device_put(batch, rows), jax.random.key(0))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9), one, eight)
    (_, (statistics, features)), gradients = eight
    assert features["left"].z.sharding.is_equivalent_to(rows, 3)
    types = partial(jax.tree.map, lambda leaf: leaf.dtype)
    assert types(statistics) == types(rest)
    assert types(gradients) == types(params)


def test_bfloat16_computes_close_to_float32(batch):
    """Parameters, statistics and features stay float32."""
    results = []
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, params, rest = split(model(dtype=dtype))
        step = jax.jit(jax.value_and_grad(partial(loss, graph), has_aux=True))
        (_, (statistics, features)), gradients = step(
            params, rest, batch, jax.random.key(0)
        )
        tree = (statistics, features, gradients, params)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
        results.append(features["left"].h)
    difference = results[0] - results[1]
    assert 0 < jnp.linalg.norm(difference) < 0.02 * jnp.linalg.norm(results[0])
