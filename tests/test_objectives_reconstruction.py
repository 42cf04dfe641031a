"""Autoencoders match their formulas; noise depends on the row alone."""

from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyview.errors import InputError, OutOfRange
from polyview.nn.towers import Features
from polyview.objectives.reconstruction import (
    AAE,
    VAE,
    Autoencoder,
    adversarial,
    divergence,
    noise_like,
    reversed_gradient,
)

B, M, D = 4, 2, 3
SHAPE = (2, 3, 1)
KEY = jax.random.key(5)


class Linear:
    """A model whose decoder and discriminator are one product each."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __call__(self, batch, *, key, train):
        h, v = self.arrays["h"], self.arrays["v"]
        return {
            "image": Features(z=h, h=h, local=None),
            "log_variance": Features(z=v, h=h, local=None),
        }

    def normalised(self, batch):
        return batch["views"]["image"]

    def decode(self, h, *, train):
        return (h @ self.arrays["decoder"]).reshape(*h.shape[:2], *SHAPE)

    def discriminate(self, h, *, train):
        return h @ self.arrays["discriminator"]


@pytest.fixture
def arrays(rng):
    return {
        "h": rng.normal(size=(B, M, D)),
        "v": rng.normal(size=(B, M, D)),
        "decoder": rng.normal(size=(D, 6)),
        "discriminator": rng.normal(size=D),
    }


@pytest.fixture
def batch(rng):
    present = np.ones((B, M), bool)
    present[1, 1] = present[3] = False
    return {
        "views": {"image": rng.normal(size=(B, M, *SHAPE))},
        "present": {"image": present},
        "index": np.array([7, 2, 30, 11]),
    }


def run(objective, arrays, batch):
    """Loss, metrics and gradients; what missing views hold is NaN."""
    missing = ~batch["present"]["image"][..., None]
    given = {n: np.where(missing, np.nan, arrays[n]) for n in "hv"}

    @jax.jit
    def compiled(arrays, batch):
        def loss_of(arrays):
            loss, metrics = objective(Linear(arrays), None, batch, KEY)
            assert set(metrics.pop("features")) == {"image"}
            return loss, metrics

        return jax.value_and_grad(loss_of, has_aux=True)(arrays)

    (loss, metrics), gradients = compiled({**arrays, **given}, batch)
    assert loss == metrics.pop("loss")
    return loss, metrics, gradients


def decoded(arrays, batch, h):
    """The error of h, and its gradients by h and the decoder, view by view."""
    present = batch["present"]["image"]
    error, of_h, of_decoder = 0.0, np.zeros((B, M, D)), np.zeros((D, 6))
    for i, a in zip(*present.nonzero(), strict=True):
        x = batch["views"]["image"][i, a].ravel()
        left = h[i, a] @ arrays["decoder"] - x
        error += np.mean(left**2) / present.sum()
        slope = 2 * left / 6 / present.sum()
        of_h[i, a] = arrays["decoder"] @ slope
        of_decoder += np.outer(h[i, a], slope)
    return error, of_h, of_decoder


def check(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-14)


def test_autoencoder_matches_its_formula(arrays, batch, x64):
    loss, metrics, gradients = run(Autoencoder(), arrays, batch)
    error, of_h, of_decoder = decoded(arrays, batch, arrays["h"])
    check(loss, error)
    check(gradients["h"], of_h)  # zero for missing views
    check(gradients["decoder"], of_decoder)


def test_vae_is_the_evidence_bound(arrays, batch, x64):
    """loss D / (2 deviation^2) is the negative bound in nats, up to a constant."""
    deviation, numbers = 0.7, 6
    loss, metrics, gradients = run(VAE(deviation), arrays, batch)
    h, v, present = arrays["h"], arrays["v"], batch["present"]["image"]
    noise = np.array(
        noise_like(jnp.asarray(h), jax.random.split(KEY)[1], batch["index"])
    )
    drawn = h + np.exp(v / 2) * noise
    log_likelihood, nats = 0.0, 0.0
    for i, a in zip(*present.nonzero(), strict=True):
        image = drawn[i, a] @ arrays["decoder"]
        for x, y in zip(batch["views"]["image"][i, a].ravel(), image, strict=True):
            log_likelihood -= (x - y) ** 2 / (2 * deviation**2) + log(deviation)
        for mean, own in zip(h[i, a], v[i, a], strict=True):
            nats += (np.exp(own) + mean**2 - 1 - own) / 2
    bound = (log_likelihood - nats) / present.sum()
    scale = 2 * deviation**2 / numbers
    check(loss, scale * (-bound - numbers * log(deviation)))
    check(metrics["kl"], nats / present.sum())
    error, of_drawn, of_decoder = decoded(arrays, batch, drawn)
    check(metrics["reconstruction"], error)
    check(gradients["decoder"], of_decoder)
    share = scale * present[..., None] / present.sum()
    check(gradients["h"], of_drawn + share * h)
    of_v = of_drawn * noise * np.exp(v / 2) / 2 + share * (np.exp(v) - 1) / 2
    check(gradients["v"], of_v)


def test_divergence_is_the_integral(x64):
    """Simpson's rule on q log(q / p) over 12 deviations of q."""
    rng = np.random.default_rng(1)
    mean, v = rng.normal(size=(2, 3, 1, 4))
    expected = np.zeros((3, 1))
    for place in np.ndindex(mean.shape):
        sigma = np.exp(v[place] / 2)
        x = np.linspace(mean[place] - 12 * sigma, mean[place] + 12 * sigma, 4001)
        log_q = -(((x - mean[place]) / sigma) ** 2) / 2 - np.log(sigma)
        y = np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q + x**2 / 2)
        simpson = y[0] + y[-1] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum()
        expected[place[:2]] += simpson * (x[1] - x[0]) / 3
    np.testing.assert_allclose(divergence(mean, v), expected, rtol=1e-9)
    assert divergence(jnp.zeros((1, 1, 4)), jnp.zeros((1, 1, 4))) == 0


def test_noise_is_that_of_the_row_and_normal():
    index, order = jnp.arange(3000) + 3, jnp.array([5, 0, 3])
    h = jnp.zeros((3000, 2, 3))
    noise = noise_like(h, KEY, index)
    np.testing.assert_array_equal(noise_like(h[order], KEY, index[order]), noise[order])
    assert abs(noise.mean(0)).max() < 0.06 and abs(noise.var(0) - 1).max() < 0.1
    correlations = np.corrcoef(noise.reshape(3000, 6).T) - np.eye(6)
    assert abs(correlations).max() < 0.06
    other = noise_like(h[order], jax.random.key(6), index[order])
    assert abs(other - noise[order]).min() > 0


def test_the_encoder_climbs_what_the_discriminator_descends(arrays, batch, x64):
    weight = 0.3
    loss, metrics, gradients = run(AAE(weight), arrays, batch)
    h, d = arrays["h"], arrays["discriminator"]
    present = batch["present"]["image"]
    prior = np.array(
        noise_like(jnp.asarray(h), jax.random.split(KEY)[1], batch["index"])
    )
    error, of_h, of_decoder = decoded(arrays, batch, h)
    own, of_d, by_h = 0.0, np.zeros(D), np.zeros_like(h)
    for i, a in zip(*present.nonzero(), strict=True):
        drawn, encoded = prior[i, a] @ d, h[i, a] @ d
        own += (np.log1p(np.exp(-drawn)) + np.log1p(np.exp(encoded))) / 2
        of_d -= prior[i, a] / (1 + np.exp(drawn)) / 2
        of_d += h[i, a] / (1 + np.exp(-encoded)) / 2
        by_h[i, a] = d / (1 + np.exp(-encoded)) / 2
    own, of_d, by_h = (part / present.sum() for part in (own, of_d, by_h))
    check(metrics["discriminator"], own)
    check(loss, error + own)
    check(gradients["discriminator"], of_d)  # descends
    check(gradients["h"], of_h - weight * by_h)  # climbs
    check(gradients["decoder"], of_decoder)


def test_a_reversed_gradient_changes_nothing_else():
    x = jnp.array([1.0, -2.0])
    value, gradient = jax.value_and_grad(
        lambda x: (reversed_gradient(x, 0.5) ** 2).sum()
    )(x)
    assert value == 5
    np.testing.assert_allclose(gradient, -0.5 * 2 * x)
    np.testing.assert_allclose(adversarial(jnp.zeros(1), jnp.zeros(1)), log(2))


def test_what_does_not_fit_is_an_error(arrays, batch):
    def refused(objective, message, module=None, **changed):
        with pytest.raises(InputError, match=message):
            module = module or Linear({**arrays, **changed})
            jax.eval_shape(lambda: objective(module, None, batch, KEY)[0])

    def slices(batch, *, key, train):  # what a microbatch makes of a model
        return {}

    refused(Autoencoder(), "microbatch=None", module=slices)
    refused(VAE(log_variance="v"), "model.heads.v with out=3")
    refused(VAE(), "has 2 outputs, but h has 3", v=arrays["v"][..., :2])
    batch["views"]["image"] = batch["views"]["image"][..., :1, :]
    refused(Autoencoder(), r"images of \(2, 3, 1\), the views are \(2, 1, 1\)")
    for wrong, message in (
        (lambda: VAE(0.0), "more than 0"),
        (lambda: AAE(-1.0), "-1"),
    ):
        with pytest.raises(OutOfRange, match=message):
            wrong()
