"""The linear probe finds the optimum; a sweep equals separate fits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from polyview.errors import InputError
from polyview.evaluation.probe import LinearProbe, held_out, logits

PAIRS = [(0.03, 1e-2), (0.3, 0.0), (0.1, 1e-3)]


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return images.astype(np.float32), labels


def test_probe_reaches_the_optimum_of_its_objective(digits):
    h, labels = digits
    probe = LinearProbe(steps=1000)
    fitted = probe.fit(h, labels, 10, [(0.1, 1e-2)], seed=0)
    # Another solver of the same objective; C = 1 / (rows * decay).
    x = (h - fitted.shift) / fitted.scale
    exact = LogisticRegression(C=1 / (len(h) * 1e-2), max_iter=1000, tol=1e-6)
    exact.fit(x, labels)
    np.testing.assert_allclose(fitted.weight[0], exact.coef_.T, atol=0.02)
    agreement = np.mean(logits(fitted, h).argmax(axis=1) == exact.predict(x))
    assert agreement > 0.995


def test_a_sweep_equals_separate_fits(digits):
    h, labels = digits
    probe = LinearProbe(steps=50)
    together = probe.fit(h, labels, 10, PAIRS, seed=3)
    for number, pair in enumerate(PAIRS):
        alone = probe.fit(h, labels, 10, [pair], seed=3)
        np.testing.assert_allclose(
            together.weight[number], alone.weight[0], rtol=1e-4, atol=1e-5
        )


def test_result_depends_only_on_the_seed(digits):
    h, labels = digits
    probe = LinearProbe(steps=20)
    first, again, other = (
        probe.fit(h, labels, 10, PAIRS, seed=seed).weight for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_constant_and_badly_scaled_features_are_harmless(digits):
    h, labels = digits
    probe = LinearProbe(steps=200)
    scales = np.logspace(-1, 1, h.shape[1], dtype=np.float32)
    padded = np.concatenate([h * scales, np.full((len(h), 3), 7, np.float32)], axis=1)
    plain = probe.sweep(h, labels, 10, validation=0.2, seed=0)
    scaled = probe.sweep(padded, labels, 10, validation=0.2, seed=0)
    assert abs(plain.accuracy.max() - scaled.accuracy.max()) < 0.02


def test_held_out_rows_are_a_fraction_of_every_class():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    held = held_out(labels, 0.1, seed=0)
    assert np.bincount(labels[held]).tolist() == [10, 5, 1]
    assert not np.array_equal(held, held_out(labels, 0.1, seed=1))
    with pytest.raises(InputError, match="leaves one part empty"):
        held_out(labels[:3], 0.1, seed=0)


@pytest.mark.parametrize(("classes", "rows"), [(100, 4), (10, 5), (30, 1)])
def test_small_classes_share_the_held_out_rows(classes, rows):
    labels = np.repeat(np.arange(classes), rows)
    held = held_out(labels, 0.1, seed=0)
    assert held.sum() == classes * rows // 10
    assert np.bincount(labels[held]).max() == 1
    sizes = np.repeat([0, 1, 2], [4, 2, 1])  # shares .4, .2 and .1: the largest gets it
    assert sizes[held_out(sizes, 0.1, seed=3)].tolist() == [0]


def test_a_best_pair_at_the_grid_edge_is_reported(digits):
    h, labels = digits
    too_small = LinearProbe(learning_rates=(1e-6, 1e-5), weight_decays=(0.0,), steps=50)
    sweep = too_small.sweep(h, labels, 10, validation=0.2, seed=0)
    assert sweep.border == ("learning_rate",)
    # The largest rate diverges because rate * decay exceeds two.
    wide = LinearProbe(learning_rates=(1e-6, 0.1, 1e4), weight_decays=(0.1,), steps=50)
    sweep = wide.sweep(h, labels, 10, validation=0.2, seed=0)
    assert (sweep.border, sweep.learning_rate) == ((), 0.1)


def test_a_grid_not_in_rising_order_is_refused():
    with pytest.raises(InputError, match="learning_rates"):
        LinearProbe(learning_rates=(0.1, 0.01))
