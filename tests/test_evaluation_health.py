"""Health measures match their formulas and stay finite on degenerate batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyview import devices
from polyview.evaluation import health


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_alignment_is_the_mean_over_pairs_of_views(x64):
    z = np.random.default_rng(0).normal(size=(5, 4, 3))
    expected = np.mean(
        [
            np.sum((unit(z[i, a]) - unit(z[i, c])) ** 2)
            for i in range(5)
            for a in range(4)
            for c in range(4)
            if a != c
        ]
    )
    np.testing.assert_allclose(health.alignment(jnp.asarray(z)), expected, rtol=1e-12)


@pytest.mark.parametrize("rows", [7, 300])  # 300: more than one block
def test_uniformity_is_the_mean_over_pairs_of_rows(x64, rows):
    h = np.random.default_rng(0).normal(size=(rows, 3))
    distance = np.sum((unit(h)[:, None] - unit(h)[None]) ** 2, axis=-1)
    pairs = ~np.eye(rows, dtype=bool)
    expected = np.log(np.mean(np.exp(-2 * distance[pairs])))
    np.testing.assert_allclose(health.uniformity(jnp.asarray(h)), expected, rtol=1e-10)


def test_rankme_of_known_spectra():
    rng = np.random.default_rng(0)
    orthonormal = np.linalg.qr(rng.normal(size=(50, 8)))[0]
    np.testing.assert_allclose(health.rankme(orthonormal), 8, rtol=1e-5)
    rank_one = np.outer(rng.normal(size=50), rng.normal(size=256))
    np.testing.assert_allclose(health.rankme(rank_one), 1, rtol=2e-3)
    np.testing.assert_allclose(health.rankme(np.zeros((5, 3))), 1)


def test_rankme_keeps_small_singular_values_in_float32():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(size, 64)))[0] for size in (500, 64))
    s = np.concatenate([[1.0], np.full(63, 1e-4)])  # together a tenth of the rank
    p = s / s.sum()
    expected = np.exp(-np.sum(p * np.log(p)))
    np.testing.assert_allclose(health.rankme((u * s) @ v.T), expected, rtol=1e-3)


def test_standard_deviation_is_one_when_even_and_zero_when_collapsed():
    h = np.random.default_rng(0).normal(size=(20_000, 5))
    np.testing.assert_allclose(health.standard_deviation(h), np.ones(5), atol=0.02)
    np.testing.assert_allclose(health.standard_deviation(np.ones((9, 5))), 0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 3, 4), (6, 1, 4), (6, 2, 1)])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e30, 1e-30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_health_is_finite_on_degenerate_batches(shape, value, dtype):
    measured = health.health(jnp.full(shape, value, dtype))
    assert all(np.isfinite(x) and x.dtype == jnp.float32 for x in measured.values())


def test_health_is_the_same_on_eight_devices():
    z = np.random.default_rng(0).normal(size=(32, 3, 8)).astype(np.float32)
    mesh = devices.make_mesh()
    spread = jax.jit(health.health)(devices.put(z, mesh))
    alone = health.health(jnp.asarray(z))
    for name, value in alone.items():
        np.testing.assert_allclose(spread[name], value, rtol=1e-5, err_msg=name)
