"""The losses of SGI match loops written from their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from sgi import losses

pytestmark = pytest.mark.usefixtures("x64")
SUPPORT = np.linspace(-10, 10, 51)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-3)


def test_self_prediction_is_two_minus_two_cosines(rng):
    a, b = rng.normal(size=(2, 7, 5, 16))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(losses.self_prediction(a, b), 2 - 2 * cosine, rtol=1e-10)
    tiny = np.full(4, 1e-5)  # shorter than 1e-3: divided by 1e-3, not by its length
    np.testing.assert_allclose(losses.l2_normalize(tiny), tiny / 1e-3)
    gradient = jax.grad(lambda x: losses.self_prediction(x, jnp.ones(4)))(jnp.zeros(4))
    assert np.isfinite(gradient).all()


def test_mean_cosine_is_over_pairs_of_different_rows(rng):
    z = rng.normal(size=(6, 4)) + 1
    pairs = [unit(z[i]) @ unit(z[j]) for i in range(6) for j in range(6) if i != j]
    assert losses.mean_cosine(z) == pytest.approx(np.mean(pairs))
    assert losses.mean_cosine(np.ones((5, 3))) == pytest.approx(1)


def test_inverse_dynamics_and_cloning_are_cross_entropies(rng):
    logits, actions = rng.normal(size=(4, 3, 6)), rng.integers(0, 6, (4, 3))
    result = losses.cross_entropy(logits, actions)
    for i, k in np.ndindex(4, 3):
        expected = -np.log(softmax(logits[i, k])[actions[i, k]])
        assert result[i, k] == pytest.approx(expected)
    returns = rng.normal(size=(4, 6, 51))
    result = losses.behaviour_cloning(returns, actions[:, 0], SUPPORT)
    for i in range(4):
        values = np.array([softmax(returns[i, a]) @ SUPPORT for a in range(6)])
        expected = -np.log(softmax(values)[actions[i, 0]])
        assert result[i] == pytest.approx(expected)


def test_goal_rewards_sum_to_the_reward_of_the_whole_path(rng):
    path, goal = rng.random((8, 5, 30)), rng.random((5, 30))
    steps = [losses.goal_reward(path[k], path[k + 1], goal) for k in range(7)]
    whole = losses.goal_reward(path[0], path[7], goal)
    np.testing.assert_allclose(sum(steps), whole, rtol=1e-9)
    for i in range(5):
        near, far = (((unit(x[i]) - unit(goal[i])) ** 2).sum() for x in path[[7, 0]])
        expected = 10 * ((1 - np.exp(-5 * far)) - (1 - np.exp(-5 * near)))
        assert whole[i] == pytest.approx(expected)
    assert losses.goal_distance(goal, 3 * goal) == pytest.approx(0)


def slow_windows(terminal, jumps, form):
    """The masks of one window, step by step."""
    predicted, inverse = [], []
    for k in range(1, jumps + 1):
        if form == "correct":
            steps = range(k)
        else:
            steps = range(1, k + 2)
        predicted.append(not any(t in terminal for t in steps))
        inverse.append(form == "upstream" or not any(t in terminal for t in range(k)))
    if form == "correct":
        return predicted, inverse, 0 not in terminal, 0 not in terminal
    none = not {1, 2} & terminal
    return predicted, inverse, 0.99 * (1 not in terminal), none


@pytest.mark.parametrize("form", ["correct", "upstream"])
@pytest.mark.parametrize("jumps", [1, 5])
def test_masks_match_loops(rng, form, jumps):
    terminal = rng.random((200, jumps + 2)) < 0.15
    terminal[: jumps + 2] = np.eye(jumps + 2, dtype=bool)  # one end at each step
    masks = losses.windows(terminal, jumps=jumps, window_terminals=form, discount=0.99)
    for i, row in enumerate(terminal):
        ends = {int(t) for t in np.flatnonzero(row)}
        expected = slow_windows(ends, jumps, form)
        for mask, by_hand in zip(masks, expected, strict=True):
            np.testing.assert_allclose(mask[i], np.array(by_hand, float))


def test_upstream_masks_miss_a_first_end_and_see_one_step_too_far():
    start, after = np.zeros((2, 1, 6), bool)
    start[0, 0], after[0, 3] = True, True
    mask = {
        form: lambda t, form=form: losses.windows(t, jumps=5, window_terminals=form)
        for form in ("correct", "upstream")
    }
    np.testing.assert_array_equal(mask["correct"](start).predicted, np.zeros((1, 5)))
    np.testing.assert_array_equal(mask["upstream"](start).predicted, np.ones((1, 5)))
    np.testing.assert_array_equal(mask["correct"](after).predicted[0], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(mask["upstream"](after).predicted[0], [1, 0, 0, 0, 0])


@pytest.mark.parametrize("form", ["upstream", "unit"])
def test_goal_noise_mixes_in_a_uniform_share_of_a_direction(form):
    b, d, length = 400, 4096, 40.0
    rng = np.random.default_rng(1)
    latents = length * unit(rng.normal(size=(b, d)))
    keys = jax.random.split(jax.random.key(0), b)
    goals = np.asarray(losses.noisy_goals(latents, keys, goal_noise_scale=form))
    np.testing.assert_allclose(np.linalg.norm(goals, axis=-1), 1)
    # The direction is nearly orthogonal to it: tan = alpha / ((1 - alpha) kept).
    along = (goals * latents).sum(-1) / length
    tangent = np.sqrt(1 - along**2) / along
    kept = length if form == "upstream" else 1
    alpha = kept * tangent / (1 + kept * tangent)
    assert 0 < alpha.min() and alpha.max() < 0.51
    np.testing.assert_allclose(
        np.quantile(alpha, [0.25, 0.5, 0.75]), [1 / 8, 1 / 4, 3 / 8], atol=0.04
    )
    # A latent that keeps its length is turned by only a few degrees.
    degrees = np.degrees(np.arccos(along))
    assert degrees.max() < 2 if form == "upstream" else degrees.max() > 35


def test_noise_depends_on_the_row_key():
    latents = np.random.default_rng(0).random((6, 32))
    keys = jax.random.split(jax.random.key(3), 6)
    goals = losses.noisy_goals(latents, keys)
    again = losses.noisy_goals(latents[::-1], keys[::-1])
    np.testing.assert_array_equal(goals, again[::-1])


def test_a_fifth_of_the_goals_is_replaced_from_the_batch():
    b = 4000
    keys = jax.random.split(jax.random.key(0), b)
    goals = np.arange(b, dtype=float)[:, None]
    source = np.asarray(losses.permuted_goals(goals, keys))[:, 0].astype(int)
    replaced = source != np.arange(b)
    assert replaced.mean() == pytest.approx(0.2, abs=0.02)
    tenths = np.bincount(source[replaced] * 10 // b, minlength=10)
    expected = replaced.sum() / 10
    assert ((tenths - expected) ** 2 / expected).sum() < 27.9  # chi-square, 1 in 1000
    kept = losses.permuted_goals(goals, keys, chance=0.0)
    np.testing.assert_array_equal(kept, goals)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.windows(np.zeros((2, 5)), jumps=5), "terminal"),
        (
            lambda: losses.windows(np.zeros((2, 6)), jumps=5, window_terminals="old"),
            "window_terminals",
        ),
        (
            lambda: losses.noisy_goals(np.zeros((2, 6)), None, goal_noise_scale="raw"),
            "goal_noise_scale",
        ),
    ],
)
def test_unknown_options_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
