"""BatchNorm follows PyTorch's rule, over the whole batch, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.nn.norm import BatchNorm


def test_statistics_match_torch(x64):
    """Two steps with momentum 0.1 and the unbiased variance."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(2, 3, (2, 6, 4, 5))
    norm = BatchNorm(5, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jnp.arange(5.0), jnp.arange(5.0) / 2
    y = norm(jnp.array(first), train=True)
    norm(jnp.array(second), train=True)

    def moments(x, ddof):
        return x.mean((0, 1)), x.var((0, 1), ddof=ddof)

    mean, var = moments(first, 0)
    expected = np.arange(5) * (first - mean) / np.sqrt(var + 1e-5) + np.arange(5) / 2
    np.testing.assert_allclose(y, expected, atol=1e-12)
    (mean1, var1), (mean2, var2) = moments(first, 1), moments(second, 1)
    np.testing.assert_allclose(norm.mean[...], 0.09 * mean1 + 0.1 * mean2, rtol=1e-12)
    np.testing.assert_allclose(
        norm.var[...], 0.81 + 0.09 * var1 + 0.1 * var2, rtol=1e-12
    )

    running = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
    y = norm(jnp.array(first), train=False)
    expected = np.arange(5) * (first - running[0]) / np.sqrt(running[1] + 1e-5)
    np.testing.assert_allclose(y, expected + np.arange(5) / 2, atol=1e-12)
    np.testing.assert_array_equal(norm.mean[...], running[0])


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_rounds_only_the_result(train):
    x = jax.random.normal(jax.random.key(0), (512, 3)) * 0.1 + 5
    x = x.astype(jnp.bfloat16)
    half = BatchNorm(3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    full = BatchNorm(3, rngs=nnx.Rngs(0))
    for norm in (half, full):
        norm(x.astype(norm.dtype), train=True)
    y = half(x, train=train)
    assert y.dtype == jnp.bfloat16
    expected = full(x.astype(jnp.float32), train=train).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(jnp.float32))
    np.testing.assert_array_equal(half.var[...], full.var[...])
    assert half.mean[...].dtype == half.scale[...].dtype == jnp.float32


def test_statistics_are_global_across_devices(x64):
    x = np.random.default_rng(0).normal(size=(16, 3, 4)) + np.arange(16)[:, None, None]
    norm = BatchNorm(4, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, state = nnx.split(norm)

    @jax.jit
    def gradient(state, x):
        def loss(x):
            module = nnx.merge(graph, state, copy=True)
            return (module(x, train=True) ** 3).sum(), nnx.state(module, nnx.BatchStat)

        return jax.grad(loss, has_aux=True)(x)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    one, eight = gradient(state, jnp.array(x)), gradient(state, sharded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, eight)
