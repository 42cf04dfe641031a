"""Distributional Q-learning matches slow loops."""

import numpy as np
import pytest
from scipy.special import softmax

from polyview.rl import distributional

pytestmark = pytest.mark.usefixtures("x64")
SUPPORT = np.linspace(-10, 10, 51)


def slow_project(probabilities, rewards, discounts):
    """Share each atom's mass between the two atoms next to its return."""
    result = np.zeros_like(probabilities)
    for i, row in enumerate(probabilities):
        for mass, atom in zip(row, SUPPORT, strict=True):
            value = min(max(rewards[i] + discounts[i] * atom, -10), 10)
            place = (value + 10) / 0.4
            below = min(int(np.floor(place + 1e-12)), 50)
            share = place - below
            result[i, below] += mass * (1 - share)
            if share > 1e-12:
                result[i, below + 1] += mass * share
    return result


def test_projection_matches_loops(rng):
    probabilities = softmax(rng.normal(size=(40, 51)), axis=-1)
    rewards = rng.normal(size=40) * 8  # many returns leave the support
    discounts = np.where(rng.random(40) < 0.3, 0, 0.99)
    # Two returns on atoms, one beyond the support.
    rewards[:3], discounts[:3] = [0.0, 0.4, 25.0], [1.0, 1.0, 0.99]
    result = distributional.project(probabilities, rewards, discounts, SUPPORT)
    expected = slow_project(probabilities, rewards, discounts)
    np.testing.assert_allclose(result, expected, atol=1e-12)
    np.testing.assert_allclose(result.sum(-1), 1)
    np.testing.assert_allclose(result[0], probabilities[0], atol=1e-12)


def test_double_target_uses_the_online_choice_of_action(rng):
    online, target = rng.normal(size=(2, 20, 6, 51))
    rewards, discounts = rng.normal(size=20), np.full(20, 0.99)
    best = [max(range(6), key=lambda a: softmax(row[a]) @ SUPPORT) for row in online]
    chosen = np.stack([softmax(target[i, a]) for i, a in enumerate(best)])
    result = distributional.double_target(online, target, rewards, discounts, SUPPORT)
    np.testing.assert_allclose(
        result, slow_project(chosen, rewards, discounts), atol=1e-12
    )
    assert len(set(best)) > 1


def test_loss_and_divergence_match_their_formulas(rng):
    predicted, target = softmax(rng.normal(size=(2, 9, 51)), axis=-1)
    target[0, 3:] = 0  # a target may be zero where a prediction is not
    target[0] /= target[0].sum()
    loss, divergence = distributional.loss_and_divergence(np.log(predicted), target)
    for i in range(9):
        cross = -sum(
            p * np.log(q) for p, q in zip(target[i], predicted[i], strict=True)
        )
        assert loss[i] == pytest.approx(cross)
        kept = np.maximum(target[i], 1e-6)
        expected = sum(kept * np.log(kept / predicted[i]))
        assert divergence[i] == pytest.approx(expected)
    _, none = distributional.loss_and_divergence(np.log(predicted), predicted)
    np.testing.assert_allclose(none, 1e-6, rtol=1e-6)


def test_expected_returns_are_the_distributions_means(rng):
    logits = rng.normal(size=(4, 3, 51))
    result = distributional.expected(logits, SUPPORT)
    for i, a in np.ndindex(4, 3):
        assert result[i, a] == pytest.approx(softmax(logits[i, a]) @ SUPPORT)


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
@pytest.mark.parametrize("rest", [(), (6,), (6, 2)])
def test_at_indexes_the_first_axis_that_index_lacks(rng, shape, rest):
    x, index = rng.normal(size=(*shape, 4, *rest)), rng.integers(0, 4, shape)
    result = distributional.at(x, index)
    assert result.shape == (*shape, *rest)
    for place in np.ndindex(shape):
        np.testing.assert_array_equal(result[place], x[place][index[place]])
