"""Normalised scores, aggregates and intervals follow the published definitions."""

import itertools

import numpy as np
import pytest

from polyview.errors import InputError
from sgi import scores
from sgi.scores import AGGREGATES, GAMES, human_normalised


def column(name):
    """float[1, 26]: a column of the table, normalised."""
    return np.array([[human_normalised(g, getattr(GAMES[g], name)) for g in GAMES]])


def drawn(runs, games, seed=0):
    """Skewed scores, among them some above 1 and below 0."""
    rng = np.random.default_rng(seed)
    return rng.lognormal(-1.0, 1.5, (runs, games)) - 0.2


@pytest.mark.parametrize(
    "name, median, mean, iqm",
    [
        ("der", 0.161, 0.285, 0.142),
        ("spr", 0.444, 0.621, 0.427),
        ("data", 1.139, 2.199, 1.615),
        ("random", 0.0, 0.0, 0.0),
        ("human", 1.0, 1.0, 1.0),
    ],
)
def test_the_columns_have_their_known_aggregates(name, median, mean, iqm):
    games = column(name)
    assert games.shape == (1, 26)
    found = [AGGREGATES[key](games)[()] for key in ("median", "mean", "IQM")]
    assert [round(float(value), 3) for value in found] == [median, mean, iqm]


def test_a_normalised_score_by_hand():
    assert human_normalised("pong", 0) == pytest.approx(20.7 / 35.3)
    np.testing.assert_allclose(human_normalised("freeway", [14.8, 29.6]), [0.5, 1.0])
    with pytest.raises(InputError, match="did you mean 'ms_pacman'"):
        human_normalised("mspacman", 0.0)


@pytest.mark.parametrize("runs, games", [(1, 1), (1, 3), (3, 1), (5, 7), (10, 26)])
def test_aggregates_by_their_words(runs, games):
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


def test_intervals_are_those_of_all_resamples():
    """Against the whole distribution: 3 runs of 2 games have 3^6 equal resamples."""
    values = np.array([[0.1, 2.0], [0.5, 1.0], [1.3, 0.0]])
    runs, games = values.shape
    every = np.array(list(itertools.product(range(runs), repeat=runs * games)))
    all_resamples = values[every.reshape(-1, runs, games), np.arange(games)]
    for name, aggregate in AGGREGATES.items():
        exact = np.sort(aggregate(all_resamples))
        found = scores.interval(values, aggregate, repetitions=40_000, level=0.8)
        for end, share in zip(found, (0.1, 0.9), strict=True):
            place = np.interp(share, [0, 1], [0, len(exact) - 1])
            low, high = exact[int(place) - 8], exact[int(place) + 8]
            assert low - 1e-9 <= end <= high + 1e-9, name
    # Were the runs drawn alike in all games, these would cancel and leave no interval.
    low, high = scores.interval(values * [2, 1.2], scores.mean)
    assert high - low > 0.3


def test_intervals_cover_as_often_as_they_say():
    """90% intervals of the mean of normal scores hold the true one about so often."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        values = rng.normal(size=(20, 3))
        low, high = scores.interval(
            values, scores.mean, level=0.9, repetitions=300, seed=seed
        )
        held += low <= 0 <= high
    assert 0.84 <= held / 300 <= 0.94


def test_an_interval_is_repeatable_and_one_run_has_none():
    values = drawn(4, 5)
    first, again = (scores.interval(values, scores.median, seed=3) for _ in range(2))
    assert first == again != scores.interval(values, scores.median, seed=4)
    assert first[0] <= scores.median(values) <= first[1]
    assert scores.interval(values[:1], scores.median) is None


@pytest.mark.filterwarnings("default")  # what it imports is not ours to mend
def test_equals_rliable():
    """Against rliable, where it is installed: `pip install '.[peer]'`."""
    library = pytest.importorskip("rliable.library")
    from rliable import metrics

    theirs = {
        "IQM": metrics.aggregate_iqm,
        "median": metrics.aggregate_median,
        "mean": metrics.aggregate_mean,
        "optimality gap": metrics.aggregate_optimality_gap,
    }
    np.random.seed(0)  # it draws from the global generator
    for runs, games in (2, 3), (5, 7), (10, 26):
        values = drawn(runs, games, seed=runs)
        points, intervals = library.get_interval_estimates(
            {"us": values},
            lambda x: np.array([theirs[name](x) for name in AGGREGATES]),
            reps=4000,
        )
        for place, aggregate in enumerate(AGGREGATES.values()):
            assert aggregate(values) == pytest.approx(points["us"][place], abs=1e-12)
            ours = scores.interval(values, aggregate, repetitions=20_000)
            low, high = intervals["us"][:, place]
            np.testing.assert_allclose(ours, (low, high), atol=0.06 * (high - low))
