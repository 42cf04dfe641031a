"""Each loss matches its formula, and the losses relate as the theory says."""

from functools import partial
from itertools import permutations
from math import exp, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyview.objectives import contrastive, negatives
from polyview.objectives.positives import l2_normalize

LOSSES = {
    "geometric": contrastive.geometric,
    "arithmetic": contrastive.arithmetic,
    "arithmetic listing": partial(contrastive.arithmetic, variant="listing"),
    "sufficient_statistics": contrastive.sufficient_statistics,
    "sufficient_statistics plain": partial(
        contrastive.sufficient_statistics, renormalize=False
    ),
    "multi_crop": contrastive.multi_crop,
    "supcon": contrastive.supcon,
    "mv_infonce": contrastive.mv_infonce,
    "mv_dhel": contrastive.mv_dhel,
}
LOSSES = {
    name: jax.jit(loss, static_argnames="temperature") for name, loss in LOSSES.items()
}


def noisy_views(b, m, d=4, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(b, 1, d)) + noise * rng.normal(size=(b, m, d))


def loops(name, z, temperature):
    """The formulas, one term at a time: one loss per anchor or per sample."""
    b, m, _ = z.shape
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)

    def e(u, v):
        return exp(u @ v / temperature)

    def rest(i, a):
        mean = sum(z[i, g] for g in range(m) if g != a) / (m - 1)
        return mean if "plain" in name else mean / np.linalg.norm(mean)

    def others(i, a, views):
        return sum(e(z[i, a], z[j, g]) for j in range(b) for g in views if j != i)

    def of_anchor(i, a):
        positives = [c for c in range(m) if c != a]
        ratios = []
        for c in positives:
            p = e(z[i, a], z[i, c])
            if name == "multi_crop":
                ratios.append(p / (p + others(i, a, [a, c])))
            elif name == "supcon":
                own = sum(e(z[i, a], z[i, g]) for g in positives)
                ratios.append(p / (own + others(i, a, range(m))))
            else:
                ratios.append(p / (p + others(i, a, range(m))))
        if name == "arithmetic":
            return -log(sum(ratios) / (m - 1))
        if name == "arithmetic listing":
            return log(sum(1 / r for r in ratios) / b)
        if "sufficient" in name:
            p = e(z[i, a], rest(i, a))
            n = sum(
                e(z[i, a], rest(j, g)) for j in range(b) for g in range(m) if j != i
            )
            return -log(p / (p + n))
        return -sum(log(r) for r in ratios) / (m - 1)

    def of_sample(i):
        pairs = {(a, c): e(z[i, a], z[i, c]) for a, c in permutations(range(m), 2)}
        if name == "mv_infonce":
            everything = sum(
                e(z[i, a], z[j, g])
                for a in range(m)
                for j in range(b)
                for g in range(m)
                if (j, g) != (i, a)
            )
            return -log(sum(pairs.values()) / everything)
        within = np.prod([others(i, a, [a]) for a in range(m)])
        return -log(sum(p for (a, c), p in pairs.items() if a < c) / within)

    if name.startswith("mv_"):
        return np.array([of_sample(i) for i in range(b)])
    return np.array([[of_anchor(i, a) for a in range(m)] for i in range(b)])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("m", [2, 4])
def test_each_loss_matches_its_formula(name, m, x64):
    z = noisy_views(b=5, m=m)
    losses = LOSSES[name](z, temperature=0.3)
    assert losses.dtype == jnp.float64
    np.testing.assert_allclose(losses, loops(name, z, 0.3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name, x64):
    z = noisy_views(b=3, m=3)

    def mean(z):
        return LOSSES[name](z, temperature=0.3).mean()

    steps = 1e-5 * np.eye(z.size).reshape(z.size, *z.shape)
    slopes = (jax.vmap(mean)(z + steps) - jax.vmap(mean)(z - steps)) / 2e-5
    np.testing.assert_allclose(jax.grad(mean)(z).ravel(), slopes, rtol=1e-6, atol=1e-9)


def test_losses_coincide_for_two_views(x64):
    z = noisy_views(b=6, m=2)
    simclr = contrastive.nt_xent(z, temperature=0.3)
    same = set(LOSSES) - {"arithmetic listing", "mv_infonce", "mv_dhel"}
    for name in same:
        losses = LOSSES[name](z, temperature=0.3)
        np.testing.assert_allclose(losses, simclr, rtol=0, atol=1e-12)
    listing = LOSSES["arithmetic listing"](z, temperature=0.3)
    np.testing.assert_allclose(listing, simclr - log(6), rtol=0, atol=1e-12)


def test_losses_have_the_proven_order(x64):
    z = noisy_views(b=32, m=4, d=16)
    arithmetic, geometric, supcon = (
        loss(z, temperature=0.1)
        for loss in (contrastive.arithmetic, contrastive.geometric, contrastive.supcon)
    )
    assert (arithmetic <= geometric + 1e-12).all()  # Jensen, for each anchor
    assert (supcon > geometric).all()  # a larger denominator


def test_collapsed_embeddings_give_the_log_of_the_denominator(x64):
    b, m = 5, 4
    z = np.ones((b, m, 4))
    for name in ("geometric", "arithmetic", "sufficient_statistics"):
        losses = LOSSES[name](z, temperature=0.3)
        np.testing.assert_allclose(losses, log(b * m - m + 1), rtol=1e-14)
    pairwise = contrastive.multi_crop(z, temperature=0.3)
    np.testing.assert_allclose(pairwise, log(2 * b - 1), rtol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_samples_and_views_does_not_matter(name, x64):
    z = noisy_views(b=5, m=4)
    samples, views = [3, 0, 4, 1, 2], [2, 0, 3, 1]
    losses = LOSSES[name](z, temperature=0.3)
    moved = LOSSES[name](z[samples][:, views], temperature=0.3)
    expected = losses[jnp.array(samples)]
    if expected.ndim == 2:
        expected = expected[:, jnp.array(views)]
    np.testing.assert_allclose(moved, expected, rtol=1e-12)


def test_multi_crop_has_no_more_variance_than_one_pair(x64):
    batches = jnp.stack([noisy_views(b=8, m=5, seed=s) for s in range(200)])
    crops = jax.vmap(lambda z: contrastive.multi_crop(z, temperature=0.5).mean())(
        batches
    )
    pairs = jax.vmap(lambda z: contrastive.nt_xent(z[:, :2], temperature=0.5).mean())(
        batches
    )
    assert crops.var() < pairs.var()
    assert abs(crops.mean() - pairs.mean()) < 4 * pairs.std() / 200**0.5


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_embeddings_give_float32_losses(name):
    z = jnp.asarray(noisy_views(b=8, m=3, d=16), jnp.bfloat16)
    losses = LOSSES[name](z, temperature=0.1)
    exact = LOSSES[name](z.astype(jnp.float32), temperature=0.1)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_zero_embedding_has_a_finite_gradient(name):
    z = noisy_views(b=3, m=3).astype(np.float32)
    z[0] = 0
    gradient = jax.grad(lambda z: LOSSES[name](z, temperature=0.1).mean())(z)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_long_embeddings_without_normalisation_do_not_overflow(name):
    loss = LOSSES[name].__wrapped__
    z = 10 * noisy_views(b=4, m=3).astype(np.float32)  # scores of thousands
    losses = jax.jit(partial(loss, temperature=0.1, normalize=False))(z)
    assert jnp.isfinite(losses).all()


def test_calls_outside_of_a_program_compile_once():
    z = noisy_views(b=4, m=3).astype(np.float32)
    negatives._by_view.clear_cache()
    for _ in range(3):
        contrastive.multi_crop(z, temperature=0.1)
    assert negatives._by_view._cache_size() == 1


def test_l2_normalize_is_exact_for_small_and_large_vectors():
    x = jnp.array([[3e-5, 4e-5], [3e10, 4e10]])
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8]] * 2, rtol=1e-6)


@pytest.mark.parametrize("name", [*LOSSES, "nt_xent"])
def test_one_sample_or_one_view_is_an_error(name):
    loss = LOSSES.get(name, contrastive.nt_xent)
    for shape in [(1, 2, 4), (4, 1, 4)]:
        with pytest.raises(ValueError, match="views"):
            loss(jnp.ones(shape), temperature=0.1)


def test_two_view_loss_refuses_three_views():
    with pytest.raises(ValueError, match="m = 2 views, not 3"):
        contrastive.nt_xent(jnp.ones((4, 3, 2)), temperature=0.1)


def test_arithmetic_refuses_an_unknown_variant():
    with pytest.raises(ValueError, match="theorem"):
        contrastive.arithmetic(jnp.ones((4, 3, 2)), temperature=0.1, variant="median")
