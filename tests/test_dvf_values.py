"""Values, behaviour from values, rewards, chains and queries, against slow loops."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from dvf import control, tabular
from dvf.evaluation import queries
from dvf.futures import Futures
from dvf.rewards import Column, Discs, rewarded, spread
from dvf.transitions import Transitions
from dvf.value import Direct, FromFutures, later_states, returns, value
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError, OutOfRange

TWO = np.array([[0.9, 0.1], [0.3, 0.7]])


class Rows(list):
    """A source of examples in memory."""

    targets: dict = {}


def chance(rng, n):
    """Transitions of n states, some of which never happen."""
    P = rng.random((n, n)) * (rng.random((n, n)) < 0.6) + 0.2 * np.eye(n)
    return P / P.sum(1, keepdims=True)


def exact(P, reward, discount):
    """sum_k g^k P^k r, term by term, until g^k is nothing."""
    total, term = np.zeros(reward.shape), np.array(reward, float)
    for _ in range(int(np.ceil(np.log(1e-18) / np.log(discount)))):
        term = discount * P @ term
        total += term
    return total


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "weighted"])
def test_value_and_its_error_against_loops(rng, equal):
    n, count, k, g = 3, 7, 2, 0.8
    rewards = rng.standard_normal((n, count, k))
    weights = np.full((n, count), 1 / count) if equal else rng.random((n, count))
    weights /= weights.sum(1, keepdims=True)
    found = value(rewards.astype(np.float32), weights.astype(np.float32), g)
    assert found.mean.dtype == found.standard_error.dtype == np.float64
    for row in range(n):
        for one in range(k):
            terms = [weights[row, i] * rewards[row, i, one] for i in range(count)]
            mean = sum(terms)
            error = 0.0
            for i in range(count):
                error += weights[row, i] ** 2 * (rewards[row, i, one] - mean) ** 2
            if equal:
                deviation = np.std(rewards[row, :, one])
                np.testing.assert_allclose(error**0.5, deviation / count**0.5)
            np.testing.assert_allclose(found.mean[row, one], 4 * mean, atol=1e-6)
            np.testing.assert_allclose(
                found.standard_error[row, one], 4 * error**0.5, atol=1e-6
            )


@pytest.mark.parametrize("weighted", [False, True])
def test_the_true_value_is_within_two_errors_in_95_percent(rng, weighted):
    """4,000 sets of 256 futures, skewed rewards; weighted: drawn from another law."""
    sets, count, g = 4000, 256, 0.9
    P = np.array([0.5, 0.3, 0.2])
    reward = np.array([0.0, 1.0, 4.0])
    drawn_from = np.array([0.3, 0.3, 0.4]) if weighted else P
    states = rng.choice(3, (sets, count), p=drawn_from)
    weights = (P / drawn_from)[states]
    weights = weights / weights.sum(1, keepdims=True)
    found = value(reward[states][..., None], weights, g)
    away = abs(found.mean - 9 * P @ reward) / found.standard_error
    # 95.4 % of a normal law are within 2; 4,000 draws tell it to 0.7 %, twice over.
    assert abs((away < 2).mean() - 0.954) < 0.012
    assert abs((away < 1).mean() - 0.683) < 0.03


@pytest.mark.parametrize(
    ("rewards", "weights"),
    [
        ((2, 0, 1), (2, 0)),
        ((2, 3), (2, 3)),
        ((2, 3, 1), (2, 4)),
        ((2, 3, 1), (3, 2)),
    ],
)
def test_a_value_needs_futures_that_fit(rewards, weights):
    with pytest.raises(InputError, match=r"a value needs rewards\[n, count, k\]"):
        value(np.zeros(rewards), np.zeros(weights), 0.9)


@pytest.mark.parametrize("g", [-0.1, 1.0, 1.5, float("nan")])
def test_a_discount_of_one_or_more_is_refused(g):
    for refused in (
        lambda: value(np.zeros((1, 1, 1)), np.ones((1, 1)), g),
        lambda: tabular.occupancy(TWO, g),
        lambda: control.advantages(np.zeros(2), np.zeros(2), g),
        lambda: FromFutures(g),
    ):
        with pytest.raises(OutOfRange, match="discount"):
            refused()


def test_returns_against_a_loop(rng):
    rewards = rng.standard_normal((2, 3, 11, 4))
    found = returns(rewards.astype(np.float32), 0.9)
    assert found.shape == (2, 3, 4) and found.dtype == np.float64
    for place in np.ndindex(2, 3, 4):
        row = rewards[place[0], place[1], :, place[2]]
        total = sum(0.9 ** (step + 1) * row[step] for step in range(11))
        np.testing.assert_allclose(found[place], total, rtol=1e-5)
    # A constant reward of 1 for ever is worth g / (1 - g), the constant of `value`.
    np.testing.assert_allclose(returns(np.ones((400, 1)), 0.9), 9, rtol=1e-12)
    one = value(np.ones((1, 5, 1)), np.full((1, 5), 0.2), 0.9)
    np.testing.assert_allclose([one.mean, one.standard_error], [[[9]], [[0]]])


@pytest.mark.parametrize("g", [0.5, 0.9, 0.97])
def test_values_of_exact_occupancies_are_sums_of_all_steps(rng, g):
    """V = g / (1 - g) E_rho r = sum_k g^k P^k r, and V = g P (r + V), to 1e-12."""
    for P in (TWO, chance(rng, 6), tabular.grid(3)):
        n = len(P)
        rho = tabular.occupancy(P, g)
        reward = rng.standard_normal((n, 2))
        futures = np.broadcast_to(reward, (n, n, 2))
        found = value(futures, rho, g).mean
        size = abs(found).max()
        np.testing.assert_allclose(found, exact(P, reward, g), atol=1e-12 * size)
        np.testing.assert_allclose(found, g * P @ (reward + found), atol=1e-12 * size)
        # Q of a first action that leads to state 0: one step, then the same law.
        first = np.tile(np.eye(n)[0], (n, 1))
        then = (1 - g) * first + g * first @ rho
        of_action = value(futures, then, g).mean
        np.testing.assert_allclose(
            of_action, g * (reward + found)[:1].repeat(n, 0), atol=1e-12 * size
        )


def drawn_by(seed):
    """A model whose futures are numbers told by the query, and what it was asked."""
    asked = []

    def call(method, states, offset, policy, action, candidates, key, index):
        assert method == "sample" and candidates is None
        asked.append(index)
        told = states[:, :1] + 10 * policy[:, None] + 100 * action[:, :1]
        futures = told[:, None] + 0.001 * index[..., None]
        return Futures(futures, np.full(index.shape, 1 / index.shape[1]))

    return SimpleNamespace(call=call), asked


def test_values_from_futures_keep_their_rows_and_pad_the_last():
    """10 queries, 4 at a time: a value belongs to its own state, policy and action."""
    model, asked = drawn_by(0)
    states = np.arange(10.0)[:, None]
    policy, action = np.arange(10) % 3, np.arange(10.0)[:, None] % 2
    told = FromFutures(0.5, samples=3, rows=4)(
        model, states, policy, action, Column([0])
    )
    assert [index.shape for index in asked] == [(4, 3)] * 3
    assert len(np.unique(asked)) == 36  # random numbers of their own
    expected = [
        i + 10 * (i % 3) + 100 * (i % 2) + 0.001 * np.mean([3 * i, 3 * i + 2])
        for i in range(10)
    ]
    np.testing.assert_allclose(told.mean[:, 0], expected)
    np.testing.assert_allclose(
        told.standard_error[:, 0], 0.001 * np.std([0, 1, 2]) / 3**0.5
    )
    # Other rows at a time: the same random numbers, so the same values.
    again = FromFutures(0.5, samples=3, rows=128)(
        model, states, policy, action, Column([0])
    )
    np.testing.assert_array_equal(again.mean, told.mean)
    # In common: the numbers 0, 1 and 2 for each query, also of the next rows.
    alike = FromFutures(0.5, samples=3, rows=4, common=True)(
        model, states, policy, action, Column([0])
    )
    expected = told.mean[:, 0] - 0.003 * np.arange(10)
    np.testing.assert_allclose(alike.mean[:, 0], expected)


def test_direct_values_must_be_of_the_rewards_asked_for():
    model = SimpleNamespace(call=lambda method, *given: np.ones((2, 3)))
    told = Direct()(model, np.zeros((2, 1)), None, None, Column([0, 0, 0]))
    assert told.mean.dtype == np.float64 and told.standard_error is None
    with pytest.raises(InputError, match="values of 3 rewards, not of 1"):
        Direct()(model, np.zeros((2, 1)), None, None, Column([0]))


def test_later_states_follow_the_law_of_the_data():
    """Of long walks: the stationary law; the same in each call."""
    source = tabular.Walks(TWO, [[0.0], [1.0]], episodes=60, steps=200)
    found = later_states(source, 0.8, count=4000, seed=1)
    assert found.shape == (4000, 1) and found.dtype == np.float32
    # Stationary (3/4, 1/4); 60 walks that start anywhere are hardly off.
    assert abs(found.mean() - 0.25) < 0.04
    np.testing.assert_array_equal(found, later_states(source, 0.8, 4000, seed=1))
    short = Rows([{"states": np.zeros((1, 2), np.float32)}])
    with pytest.raises(InputError, match="record longer episodes"):
        later_states(short, 0.8, count=1)


# ----------------------------------------------------------------- control


def slow_advantages(rewards, values, g, ahead):
    t = len(rewards)
    found = []
    for i in range(t - 1):
        h = min(ahead, t - 1 - i)
        gained = g**h * values[i + h] - values[i]
        for j in range(1, h + 1):
            gained += g**j * rewards[i + j]
        found.append(gained)
    return found


@pytest.mark.parametrize("ahead", [1, 2, 7, 1000])
@pytest.mark.parametrize("g", [0.0, 0.5, 0.97])
@pytest.mark.parametrize("t", [2, 3, 40])
def test_advantages_against_a_loop(rng, ahead, g, t):
    """Up to and beyond the end of the episode."""
    rewards, values = rng.standard_normal((2, t))
    found = control.advantages(rewards, values, g, ahead)
    expected = slow_advantages(rewards, values, g, ahead)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("g", [0.9, 0.97])
def test_advantages_of_a_long_episode_are_as_exact_as_of_a_short_one(rng, g):
    """1,500 steps on, g^i is below what a float64 tells apart."""
    rewards, values = rng.standard_normal((2, 1500))
    found = control.advantages(rewards, values, g, 5)
    np.testing.assert_allclose(found, slow_advantages(rewards, values, g, 5), atol=1e-9)


def test_advantages_of_exact_values_vanish_on_average(rng):
    """E A = 0 for the policy itself, whatever is ahead: Bellman's equation."""
    reward = np.array([0.0, 1.0])
    values = exact(TWO, reward, 0.8)
    walks = tabular.walk(TWO, np.zeros(4000, int), 6, rng)
    for ahead in (1, 4):
        gained = np.array(
            [control.advantages(reward[w], values[w], 0.8, ahead) for w in walks]
        )
        error = gained.std(0) / len(walks) ** 0.5
        assert (abs(gained.mean(0)) < 4 * error).all()
        assert gained.std() > 0.1


@pytest.mark.parametrize(
    ("rewards", "values"), [((1,), (1,)), ((3,), (4,)), ((3, 1), (3, 1)), ((0,), (0,))]
)
def test_advantages_need_two_states(rewards, values):
    with pytest.raises(InputError, match="one of each for each of two states or more"):
        control.advantages(np.zeros(rewards), np.zeros(values), 0.9)


def test_the_best_policy_is_never_worse_than_any(rng):
    """Policy improvement over 4 policies of a chain, with exact values of 3 rewards."""
    n, g, better = 6, 0.9, 0
    for _ in range(20):
        chains = np.stack([chance(rng, n) for _ in range(4)])
        reward = rng.standard_normal((n, 3))
        values = np.stack([exact(P, reward, g) for P in chains], 1)
        chosen = control.best_policy(values)
        assert chosen.shape == (n, 3)
        for k in range(3):
            followed = chains[chosen[:, k], np.arange(n)]
            own = exact(followed, reward[:, k], g)
            best = values[..., k].max(1)
            assert (own >= best - 1e-10).all()
            better += (own > best + 1e-6).sum()
    assert better > 100
    for wrong in (np.zeros((3, 4)), np.zeros((3, 0, 1))):
        with pytest.raises(InputError, match="policies, k"):
            control.best_policy(wrong)


def test_the_exploration_bonus_against_a_loop(rng):
    states, futures = rng.standard_normal((2, 3)), rng.standard_normal((2, 5, 3))
    weights = rng.random((2, 5))
    weights /= weights.sum(1, keepdims=True)
    std = np.array([0.5, 1.0, 2.0])
    found = control.exploration_bonus(states, futures, weights, std)
    for row in range(2):
        away = [
            sum(((f[d] - states[row, d]) / std[d]) ** 2 for d in range(3)) ** 0.5
            for f in futures[row]
        ]
        mean = sum(w * a for w, a in zip(weights[row], away, strict=True))
        error = sum(
            w**2 * (a - mean) ** 2 for w, a in zip(weights[row], away, strict=True)
        )
        np.testing.assert_allclose(found.mean[row], [mean])
        np.testing.assert_allclose(found.standard_error[row], [error**0.5])


# ----------------------------------------------------------------- rewards


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("shape", [(4,), (50, 4), (5, 10, 4), (2, 5, 5, 4)])
def test_discs_against_loops(rng, array, shape):
    states = rng.uniform(-1, 1, shape).astype(np.float32)
    centres = [(0.0, 0.25), (-0.5, 0.5), (0.5, -0.75)]
    discs = Discs(centres, radius=0.7)
    found = np.asarray(discs(array(states)))
    assert found.shape == (*shape[:-1], 3) == (*shape[:-1], len(discs.names))
    for place in np.ndindex(*shape[:-1]):
        x, y = states[place][:2]
        for k, (a, b) in enumerate(centres):
            inside = (x - a) ** 2 + (y - b) ** 2 < 0.49
            assert found[(*place, k)] == float(inside)
    if len(shape) > 1:
        assert 0 < np.mean(found) < 1
    np.testing.assert_array_equal(Column([3, 0])(array(states)), states[..., [3, 0]])


def test_discs_that_are_none_are_refused():
    for centres in ([], [[0.0, 1.0], [1.0]]):
        with pytest.raises(InputError, match="centres"):
            Discs(centres)
    with pytest.raises(OutOfRange, match="radius"):
        Discs([[0.0]], radius=0.0)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("reward", [Discs([[0.0, 0.0]]), Column([1])])
def test_a_reward_of_more_numbers_than_a_state_has_is_refused(array, reward):
    """Else one number is broadcast to two, or JAX reads another column."""
    with pytest.raises(InputError):
        reward(array(np.zeros((3, 1), np.float32)))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda s: s[..., 0], r"\(3, 2\) to \(3,\); it must return \[3, k\]"),
        (lambda s: s[:2], r"\(3, 2\) to \(2, 2\)"),
        (lambda s: s[None], r"\(3, 2\) to \(1, 3, 2\)"),
        (lambda s: s.T, r"\(3, 2\) to \(2, 3\)"),
        (lambda s: np.where(s == 3, np.nan, s), r"state \[2. 3.\] is not finite"),
        (lambda s: np.where(s == 4, np.inf, s), r"state \[4. 5.\] is not finite"),
    ],
)
def test_a_reward_of_another_shape_or_not_finite_is_refused(reward, message):
    states = np.arange(6.0).reshape(3, 2)
    with pytest.raises(InputError, match=message):
        rewarded(reward, states)
    assert rewarded(lambda s: s > 2, states).dtype == np.float64


def test_places_are_spread_without_one_twice():
    places = np.arange(14.0).reshape(7, 2)
    for count in (1, 4, 7, 10, 21):
        found = spread(places, count, seed=3)
        assert found.shape == (count, 2)
        counts = [(found == place).all(1).sum() for place in places]
        assert sum(counts) == count and max(counts) - min(counts) <= 1
        np.testing.assert_array_equal(found, spread(places, count, seed=3))
    firsts = {tuple(spread(places, 1, seed)[0]) for seed in range(60)}
    assert len(firsts) == 7
    with pytest.raises(OutOfRange, match="count"):
        spread(places, 0, 0)


# ------------------------------------------------------------- transitions


def episode(t=12, last_action=False):
    """Action i is (i, 100 + i), its advantage (i - 5) / 2, and state i is (i, -i)."""
    n = t if last_action else t - 1
    times = np.arange(float(t), dtype=np.float32)
    return {
        "states": np.stack([times, -times], 1),
        "actions": np.stack([times[:n], 100 + times[:n]], 1),
        "gained": (times[:n] - 5) / 2,
    }


def stream(seed=0):
    return np.random.default_rng(seed)


def test_transitions_of_one_stream_are_the_same_and_belong_together():
    views = Transitions(5000, advantages="gained", scale=0.8, most=9.0)
    for last_action, most in ((False, 10), (True, 11)):
        found = views(episode(last_action=last_action), stream())
        again = views(episode(last_action=last_action), stream())
        time = found["views"]["state"][:, 0]
        np.testing.assert_array_equal(found["views"]["state"][:, 1], -time)
        np.testing.assert_array_equal(found["views"]["action"][:, 0], time)
        np.testing.assert_array_equal(found["views"]["action"][:, 1], 100 + time)
        weights = [min(np.exp((i - 5) / 2 / 0.8), 9.0) for i in time]
        np.testing.assert_allclose(found["targets"]["weight"], weights, rtol=1e-5)
        assert (found["targets"]["weight"] == 9).any()
        assert time.min() == 0 and time.max() == most
        counts, n = np.bincount(time.astype(int)), most + 1
        chi = ((counts - 5000 / n) ** 2).sum() / (5000 / n)
        assert chi < n - 1 + 4 * (2 * (n - 1)) ** 0.5
        for part in ("views", "targets"):
            for name, rows in found[part].items():
                assert rows.dtype == np.float32
                np.testing.assert_array_equal(rows, again[part][name])
        assert all(mask.all() for mask in found["present"].values())
        assert found["present"].keys() == found["views"].keys()
    other = views(episode(), stream(1))["views"]["state"]
    assert (other != views(episode(), stream())["views"]["state"]).any()
    plain = Transitions(3)(episode(), stream())
    np.testing.assert_array_equal(plain["targets"]["weight"], [1, 1, 1])
    huge = episode() | {"gained": np.array([-1e30, 1e30] * 5 + [0], np.float32)}
    weights = Transitions(50, advantages="gained")(huge, stream())["targets"]["weight"]
    assert set(weights.round(4).tolist()) == {0, 1, 20}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"actions": np.zeros((13, 2))}, InputError, "13 actions and 12 states"),
        ({"actions": np.zeros((10, 2))}, InputError, "10 actions and 12 states"),
        ({"states": [[0.0]], "actions": np.zeros((0, 2))}, InputError, "0 actions"),
        ({"gained": np.zeros(12)}, InputError, "'gained' has shape"),
        ({"gained": np.zeros((11, 1))}, InputError, "one advantage an action"),
        ({"gained": np.full(11, np.nan)}, CorruptRecord, "'gained' is not finite"),
        ({"states": np.full((12, 2), np.inf)}, CorruptRecord, "'states' is not fin"),
        ({"actions": np.full((11, 2), np.nan)}, CorruptRecord, "'actions' is not fi"),
    ],
)
def test_transitions_that_do_not_fit_are_refused(changed, error, message):
    with pytest.raises(error, match=message):
        Transitions(2, advantages="gained")(episode() | changed, stream())


def test_transitions_need_their_fields_and_ranges():
    with pytest.raises(InputError, match="no field 'worth'"):
        Transitions(2, advantages="worth")(episode(), stream())
    for wrong in ({"m": 0}, {"m": 1, "scale": 0.0}, {"m": 1, "most": 0.0}):
        with pytest.raises(OutOfRange, match=list(wrong)[-1]):
            Transitions(**wrong)


# ------------------------------------------------------------------ chains


@pytest.mark.parametrize("g", [0.0, 0.6, 0.97])
def test_the_occupancy_against_its_sum(rng, g):
    for P in (TWO, chance(rng, 5)):
        found, power = np.zeros(P.shape), np.eye(len(P))
        for k in range(1, 1500):
            power = power @ P
            found += (1 - g) * g ** (k - 1) * power
        np.testing.assert_allclose(tabular.occupancy(P, g), found, atol=1e-12)
        np.testing.assert_allclose(tabular.occupancy(P, g).sum(1), 1, atol=1e-12)


def test_the_grid_moves_to_neighbours_and_stays_at_borders():
    P = tabular.grid(4)
    for a in range(16):
        for b in range(16):
            away = abs(a // 4 - b // 4) + abs(a % 4 - b % 4)
            borders = (a // 4 in (0, 3)) + (a % 4 in (0, 3))
            assert P[a, b] == (0.25 if away == 1 else 0.25 * borders * (a == b))
    np.testing.assert_array_equal(P.sum(1), 1)
    np.testing.assert_array_equal(tabular.grid(1), [[1.0]])


def test_walks_follow_their_transitions(rng):
    """Chi-square of each row; what has no probability never happens."""
    P = chance(rng, 5)
    starts = rng.integers(5, size=3000)
    passed = tabular.walk(P, starts, 20, rng)
    assert passed.shape == (3000, 21)
    np.testing.assert_array_equal(passed[:, 0], starts)
    steps = np.zeros((5, 5))
    np.add.at(steps, (passed[:, :-1], passed[:, 1:]), 1)
    for row, law in zip(steps, P, strict=True):
        assert (row[law == 0] == 0).all()
        real = law > 0
        expected = row.sum() * law[real]
        chi, free = ((row[real] - expected) ** 2 / expected).sum(), real.sum() - 1
        assert chi < free + 4.5 * (2 * max(free, 1)) ** 0.5


def test_walks_are_a_source_that_its_seed_decides():
    source = tabular.Walks(TWO, [[-1.0], [1.0]], episodes=9, steps=30, seed=4)
    assert len(source) == 9 and source[8]["states"].shape == (31, 1)
    assert source[0]["states"].dtype == np.float32
    assert set(np.unique(source[0]["states"])) <= {-1.0, 1.0}
    same = tabular.Walks(TWO, [[-1.0], [1.0]], episodes=9, steps=30, seed=4)
    np.testing.assert_array_equal(source[3]["states"], same[3]["states"])
    other = tabular.Walks(TWO, [[-1.0], [1.0]], episodes=9, steps=30, seed=5)
    assert source.digest == same.digest != other.digest
    grid = tabular.grid_walks(3, episodes=4, steps=50)
    looks = np.concatenate([grid[i]["states"] for i in range(4)])
    assert set(map(tuple, looks)) <= {(r, c) for r in range(3) for c in range(3)}
    assert abs(np.diff(grid[0]["states"], axis=0)).sum(1).max() == 1


@pytest.mark.parametrize(
    ("P", "places", "message"),
    [
        ([[0.5, 0.4], [0.5, 0.5]], [[0.0], [1.0]], "not made of probabilities"),
        ([[1.5, -0.5], [0.5, 0.5]], [[0.0], [1.0]], "not made of probabilities"),
        ([[np.nan, 0.5], [0.5, 0.5]], [[0.0], [1.0]], "not made of probabilities"),
        (TWO, [[0.0]], "for n states"),
        (TWO, [0.0, 1.0], "for n states"),
        (TWO[:1], [[0.0]], "for n states"),
    ],
)
def test_what_is_no_chain_is_refused(P, places, message):
    with pytest.raises(InputError, match=message):
        tabular.Walks(P, places, episodes=2, steps=3)


# ----------------------------------------------------------------- queries


def asked(starts=(0, 1), policies=2, rollouts=3, t=4, action=False, seed=0):
    """Rows of truth; the state of a start is (start, 0), futures are random."""
    rng = np.random.default_rng(seed)
    rows = Rows()
    for start in starts:
        for policy in range(policies):
            row = {
                "state": np.array([start, 0], np.float32),
                "policy": policy,
                "start": start,
                "futures": rng.standard_normal((rollouts, t, 2)).astype(np.float32),
            }
            rows.append(row | ({"action": np.ones(2, np.float32)} if action else {}))
    return rows


def test_queries_stand_together_by_start():
    """Whatever the order of starts; the rows of a start keep theirs."""
    rows = asked(starts=(3, 0, 7))
    mixed = Rows([rows[i] for i in (4, 0, 2, 5, 3, 1)])
    found = queries.read(mixed)
    assert found.starts == 3 and found.action is None
    np.testing.assert_array_equal(found.state[:, 0], [0, 0, 3, 3, 7, 7])
    np.testing.assert_array_equal(found.policy, [0, 1, 0, 1, 0, 1])
    for row, of in enumerate((2, 3, 0, 1, 4, 5)):
        np.testing.assert_array_equal(found.futures[row], rows[of]["futures"])
    by_start = found.by_start(found.futures[:, 0, 0])
    assert by_start.shape == (3, 2, 2)
    np.testing.assert_array_equal(by_start[1, 0], rows[0]["futures"][0, 0])
    assert queries.read(asked(action=True)).action.shape == (4, 2)


def test_rows_that_are_no_queries_are_refused():
    for rows in (Rows(), Rows([{"states": np.zeros((3, 2)), "policy": 0}])):
        with pytest.raises(InputError, match="a split of roll-outs"):
            queries.read(rows)
    with pytest.raises(InputError, match="from 1 to 2 rows"):
        queries.read(Rows(asked()[:3]))


def test_the_truth_of_queries_against_loops():
    found = queries.read(asked(rollouts=5))
    true = queries.truth(found, Column([0, 1]), 0.7)
    assert true.mean.shape == true.standard_error.shape == (4, 2)
    for row in range(4):
        for k in range(2):
            each = [
                sum(0.7 ** (j + 1) * float(s[k]) for j, s in enumerate(one))
                for one in found.futures[row]
            ]
            mean = sum(each) / 5
            variance = sum((x - mean) ** 2 for x in each) / 4
            np.testing.assert_allclose(true.mean[row, k], mean, rtol=1e-6)
            error = (variance / 5) ** 0.5
            np.testing.assert_allclose(true.standard_error[row, k], error, rtol=1e-6)
    one = queries.truth(queries.read(asked(rollouts=1)), Column([0]), 0.7)
    assert np.isfinite(one.mean).all() and np.isnan(one.standard_error).all()
