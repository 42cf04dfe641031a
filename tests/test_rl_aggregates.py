"""Aggregates and intervals follow the published definitions."""

import itertools
import math

import numpy as np
import pytest

from polyview.rl import aggregates
from polyview.rl.aggregates import AGGREGATES, success_interval


def drawn(runs, games, seed=0):
    """Skewed scores, some above 1 and some below 0."""
    rng = np.random.default_rng(seed)
    return rng.lognormal(-1.0, 1.5, (runs, games)) - 0.2


@pytest.mark.parametrize("runs, games", [(1, 1), (1, 3), (3, 1), (5, 7), (10, 26)])
def test_aggregates_match_their_definitions(runs, games):
    values = drawn(runs, games)
    of_games = [sum(values[:, g]) / runs for g in range(games)]
    flat = sorted(values.ravel().tolist())
    middle = flat[int(0.25 * len(flat)) : len(flat) - int(0.25 * len(flat))]
    half = sorted(of_games)
    expected = {
        "IQM": sum(middle) / len(middle),
        "median": (half[(games - 1) // 2] + half[games // 2]) / 2,
        "mean": sum(of_games) / games,
        "optimality gap": sum(max(1 - value, 0) for value in flat) / len(flat),
    }
    for name, aggregate in AGGREGATES.items():
        assert aggregate(values) == pytest.approx(expected[name], abs=1e-12)
        stacked = aggregate(np.stack([values, values + 1]))
        assert stacked[1] == pytest.approx(aggregate(values + 1)), "leading axes"


def test_intervals_match_the_enumeration_of_all_resamples():
    """3 runs of 2 games have 3^6 equally likely resamples; all are enumerated."""
    values = np.array([[0.1, 2.0], [0.5, 1.0], [1.3, 0.0]])
    runs, games = values.shape
    every = np.array(list(itertools.product(range(runs), repeat=runs * games)))
    all_resamples = values[every.reshape(-1, runs, games), np.arange(games)]
    for name, aggregate in AGGREGATES.items():
        exact = np.sort(aggregate(all_resamples))
        ends = aggregates.interval(values, aggregate, repetitions=40_000, level=0.8)
        for end, share in zip(ends, (0.1, 0.9), strict=True):
            place = np.interp(share, [0, 1], [0, len(exact) - 1])
            low, high = exact[int(place) - 8], exact[int(place) + 8]
            assert low - 1e-9 <= end <= high + 1e-9, name
    # If all games shared their resampled runs, these values would cancel exactly.
    low, high = aggregates.interval(values * [2, 1.2], aggregates.mean)
    assert high - low > 0.3


def test_intervals_have_their_nominal_coverage():
    """About 90 % of the 90 % intervals for a normal mean contain the true mean."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        values = rng.normal(size=(20, 3))
        low, high = aggregates.interval(
            values, aggregates.mean, level=0.9, repetitions=300, seed=seed
        )
        held += low <= 0 <= high
    assert 0.84 <= held / 300 <= 0.94


def test_intervals_are_repeatable_and_need_two_runs():
    values = drawn(4, 5)
    first, again = (
        aggregates.interval(values, aggregates.median, seed=3) for _ in range(2)
    )
    assert first == again != aggregates.interval(values, aggregates.median, seed=4)
    assert first[0] <= aggregates.median(values) <= first[1]
    assert aggregates.interval(values[:1], aggregates.median) is None


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    values, thresholds = drawn(4, 3), [-0.3, 0.0, 0.5, 100.0]
    both = np.stack([values, values + 1])
    found = aggregates.profile(both, thresholds)
    assert found.shape == (2, 4) and found[0, 0] == 1 and found[0, -1] == 0
    for which, scores in enumerate(both):
        for place, threshold in enumerate(thresholds):
            above = [x > threshold for run in scores for x in run]
            assert found[which, place] == pytest.approx(sum(above) / 12)


def test_the_area_below_a_profile_is_the_mean():
    """The profile is a step function; its area is exact between sorted scores."""
    values = abs(drawn(5, 7))
    steps = np.sort(np.append(values.ravel(), 0))
    area = np.diff(steps) @ aggregates.profile(values, steps)[:-1]
    assert area == pytest.approx(aggregates.mean(values))


def test_a_score_at_the_threshold_is_not_above_it():
    values = np.array([[1.0, 1.0], [2.0, 0.0]])
    assert aggregates.profile(values, [0, 1, 2]).tolist() == [0.75, 0.25, 0.0]


@pytest.mark.parametrize("ours, theirs", [(1, 1), (3, 2), (2, 5)])
def test_probability_of_improvement_counts_all_pairs(ours, theirs):
    x, y = drawn(ours, 3).round(1), drawn(theirs, 3, seed=1).round(1)
    x[0, 0] = y[0, 0]  # a tie
    won = [
        1.0 if x[i, task] > y[j, task] else 0.5 if x[i, task] == y[j, task] else 0.0
        for task in range(3)
        for i in range(ours)
        for j in range(theirs)
    ]
    found = aggregates.probability_of_improvement(np.stack([x, x + 99]), y)
    assert found == pytest.approx([np.mean(won), 1.0])
    assert aggregates.probability_of_improvement(y, x) == pytest.approx(1 - found[0])
    with pytest.raises(ValueError, match="3 tasks against 2"):
        aggregates.probability_of_improvement(x, y[:, :2])


def test_probability_of_improvement_of_normal_scores():
    """For unit normals d apart, P(X > Y) = Phi(d / sqrt 2)."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.8, 1, (400, 9)), rng.normal(0, 1, (400, 9))
    expected = (1 + math.erf(0.8 / 2)) / 2
    found = aggregates.probability_of_improvement(x, y)
    assert found == pytest.approx(expected, abs=0.015)
    assert aggregates.probability_of_improvement(x, x) == 0.5


def test_improvement_intervals_match_the_enumeration_of_all_resamples():
    """2 and 3 runs of 2 games have 2^4 3^6 equally likely pairs of resamples."""
    x = np.array([[0.2, 1.0], [0.9, 0.1]])
    y = np.array([[0.1, 0.5], [0.5, 0.3], [1.0, 0.0]])

    def resamples(scores):
        runs, games = scores.shape
        every = np.array(list(itertools.product(range(runs), repeat=runs * games)))
        return scores[every.reshape(-1, runs, games), np.arange(games)]

    pairs = resamples(x)[:, None], resamples(y)[None]
    exact = np.sort(aggregates.probability_of_improvement(*pairs).ravel())
    ends = aggregates.improvement_interval(x, y, repetitions=20_000, level=0.8)
    for end, share in zip(ends, (0.1, 0.9), strict=True):
        low, high = np.quantile(exact, [share - 0.01, share + 0.01])
        assert low - 1e-9 <= end <= high + 1e-9
    assert aggregates.improvement_interval(x[:1], y) is None
    assert aggregates.improvement_interval(x, y[:1]) is None


@pytest.mark.filterwarnings("default")  # warnings of its imports are not ours
def test_aggregates_match_rliable():
    """Compared with rliable if installed: `pip install '.[peer]'`."""
    library = pytest.importorskip("rliable.library")
    from rliable import metrics

    theirs = {
        "IQM": metrics.aggregate_iqm,
        "median": metrics.aggregate_median,
        "mean": metrics.aggregate_mean,
        "optimality gap": metrics.aggregate_optimality_gap,
    }
    np.random.seed(0)  # rliable uses the global generator
    for runs, games in (2, 3), (5, 7), (10, 26):
        values = drawn(runs, games, seed=runs)
        points, intervals = library.get_interval_estimates(
            {"us": values},
            lambda x: np.array([theirs[name](x) for name in AGGREGATES]),
            reps=4000,
        )
        for place, aggregate in enumerate(AGGREGATES.values()):
            assert aggregate(values) == pytest.approx(points["us"][place], abs=1e-12)
            ours = aggregates.interval(values, aggregate, repetitions=20_000)
            low, high = intervals["us"][:, place]
            np.testing.assert_allclose(ours, (low, high), atol=0.06 * (high - low))


@pytest.mark.parametrize("successes, trials", [(0, 10), (3, 10), (10, 10), (70, 400)])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_success_interval_ends_solve_the_wilson_equation(successes, trials, level):
    """The rate is z standard deviations of p away from each end p."""
    low, high = success_interval(successes, trials, level)
    rate = successes / trials
    assert 0 <= low <= rate <= high <= 1
    assert (low == 0) == (successes == 0) and (high == 1) == (successes == trials)
    for p in {low, high} - {0, 1}:
        z = abs(rate - p) / math.sqrt(p * (1 - p) / trials)
        assert math.erf(z / math.sqrt(2)) == pytest.approx(level)


def test_success_interval_matches_scipy():
    stats = pytest.importorskip("scipy.stats")
    for successes, trials in (0, 1), (1, 1), (7, 50), (1999, 2000):
        theirs = stats.binomtest(successes, trials).proportion_ci(0.9, "wilson")
        ours = success_interval(successes, trials, 0.9)
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("successes, trials", [(1, 0), (-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="successes of"):
        success_interval(successes, trials)


def test_an_impossible_level_is_refused():
    with pytest.raises(ValueError, match="level=1.0"):
        success_interval(1, 2, 1.0)
