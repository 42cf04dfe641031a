"""Bounds on mutual information hold where its true value is known."""

from math import log

import jax.numpy as jnp
import numpy as np
import pytest

from polyview.objectives import bounds, contrastive


def readings(b, m, deviation, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(b, 1)) + deviation * rng.normal(size=(b, m))


def good_critic(x, height=20.0, width=0.63, features=512):
    """Embeddings z with z(x).z(y) close to height * exp(-(x - y)^2 / (2 width^2)).

    Random Fourier features need no training and, like a good critic, peak at x = y.
    """
    rng = np.random.default_rng(1)
    frequencies = rng.normal(size=features) / width
    phases = rng.uniform(0, 2 * np.pi, features)
    waves = np.cos(x[..., None] * frequencies + phases)
    return jnp.asarray(np.sqrt(2 * height / features) * waves)


@pytest.mark.parametrize("m", [2, 3, 10])
@pytest.mark.parametrize("deviation", [0.1, 0.5, 2.0])
def test_gaussian_information_matches_the_covariances(m, deviation):
    covariance = 0.7**2 + deviation**2 * np.eye(m)

    def entropy(block):
        return np.linalg.slogdet(block)[1] / 2

    expected = entropy(covariance[:1, :1]) + entropy(covariance[1:, 1:])
    expected -= entropy(covariance)
    actual = bounds.gaussian_information(m, deviation, factor_deviation=0.7)
    assert actual == pytest.approx(expected, abs=1e-10)


def test_strict_bounds_match_their_formulas(x64):
    b, m = 4, 3
    z = np.random.default_rng(0).normal(size=(b, m, 2))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    scores = np.exp(np.einsum("imd,jnd->imjn", z, z) / 0.5)
    for candidates in ("same_view", "view_averaged"):
        ratios = np.zeros((b, m, m - 1))
        for i, a in np.ndindex(b, m):
            for k, c in enumerate(c for c in range(m) if c != a):
                views = [c] if candidates == "same_view" else range(m)
                others = [j for j in range(b) if j != i]
                mass = sum(np.mean([scores[i, a, j, g] for g in views]) for j in others)
                ratios[i, a, k] = scores[i, a, i, c] / (scores[i, a, i, c] + mass)
        expected = {
            "geometric": log(b) + np.log(ratios).mean(-1),
            "arithmetic": log(b) + np.log(ratios.mean(-1)),
        }
        for aggregation, want in expected.items():
            got = bounds.strict_bound(
                z, temperature=0.5, aggregation=aggregation, candidates=candidates
            )
            np.testing.assert_allclose(got, want, rtol=1e-12)
    rest = (z.sum(1, keepdims=True) - z) / (m - 1)
    rest /= np.linalg.norm(rest, axis=-1, keepdims=True)
    own = np.exp(np.einsum("imd,jmd->imj", z, rest) / 0.5)
    want = np.log(b * np.einsum("imi->im", own) / own.sum(-1))
    got = bounds.strict_bound(z, temperature=0.5, aggregation="sufficient_statistics")
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    "aggregation", ["geometric", "arithmetic", "sufficient_statistics"]
)
def test_strict_bounds_hold_where_the_usual_bound_fails(aggregation):
    b, m, deviation = 4, 10, 0.1
    truth = bounds.gaussian_information(m, deviation)
    plain = {"temperature": 1.0, "normalize": False}
    if aggregation == "sufficient_statistics":
        plain["renormalize"] = False
    usual, strict = [], []
    for seed in range(40):
        z = good_critic(readings(b, m, deviation, seed))
        loss = getattr(contrastive, aggregation)(z, **plain).mean()
        usual.append(bounds.mutual_information_bound(loss, b, m))
        for candidates in ("same_view", "view_averaged"):
            estimates = bounds.strict_bound(
                z, aggregation=aggregation, candidates=candidates, **plain
            )
            assert (estimates < log(b) + 1e-4).all()
            strict.append(estimates.mean())
    assert np.mean(usual) > truth > log(b) > max(strict)


@pytest.mark.parametrize("candidates", ["same_view", "view_averaged"])
def test_strict_bounds_stay_below_the_truth_in_large_batches(candidates):
    z = good_critic(readings(256, 8, deviation=0.3))
    estimates = {
        aggregation: bounds.strict_bound(
            z,
            temperature=1.0,
            aggregation=aggregation,
            candidates=candidates,
            normalize=False,
            renormalize=False,
        ).mean()
        for aggregation in ("geometric", "arithmetic", "sufficient_statistics")
    }
    assert estimates["geometric"] < bounds.gaussian_information(2, 0.3)
    assert max(estimates.values()) < bounds.gaussian_information(8, 0.3)
