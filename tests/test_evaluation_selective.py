"""Measures of reliability match their definitions, whatever the units or the ties."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from polyview.errors import InputError
from polyview.evaluation import selective

GRID = np.array([-np.inf, -1.5, 0.0, 0.5, 2.0, np.inf])


def tied(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, infinite ones among them, and answers."""
    rng = np.random.default_rng(seed)
    return rng.choice(GRID, rows), rng.random(rows) < 0.7


def every_order(scores: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
    """The answers by descending score, in every order within ties."""
    orders = itertools.permutations(range(len(scores)))
    return [
        right[list(order)]
        for order in orders
        if (np.diff(scores[list(order)]) <= 0).all()
    ]


def fine(scores: np.ndarray) -> np.ndarray:
    """Finite scores without infinite differences, as `every_order` needs them."""
    return np.clip(scores, -9, 9)


def measures(scores: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
    sides = scores[right], scores[~right]
    return [
        np.asarray(selective.auroc(*sides)),
        np.asarray(selective.fpr_at(*sides)),
        *selective.risk_coverage(scores, right),
        np.asarray(selective.aurc(scores, right)),
        np.asarray(selective.aucea(scores, right)),
        selective.accuracy_after_discarding(scores, right, (0, 0.1, 0.5, 0.9)),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_auroc_counts_pairs_and_half_of_the_ties(seed):
    scores, right = tied(seed, 60)
    pairs = list(itertools.product(scores[right], scores[~right]))
    wins = sum((a > b) + (a == b) / 2 for a, b in pairs)
    found = selective.auroc(scores[right], scores[~right])
    assert found == pytest.approx(wins / len(pairs), abs=1e-12)
    assert found == pytest.approx(roc_auc_score(right, fine(scores)), abs=1e-12)


def test_auroc_of_perfect_reversed_and_constant_scores():
    low, high = np.arange(5.0), np.arange(5.0, 9.0)
    assert selective.auroc(high, low) == 1
    assert selective.auroc(low, high) == 0
    assert selective.auroc(np.ones(7), np.ones(3)) == 0.5


def test_auroc_of_many_rows_does_not_overflow():
    rows = 2**17  # 2^34 pairs
    assert selective.auroc(np.ones(rows, np.float32), np.zeros(rows)) == 1


@pytest.mark.parametrize("recall", [0.05, 0.29, 0.5, 0.95, 1.0])
def test_fpr_is_at_the_largest_threshold_with_the_recall(recall):
    for seed, rows in enumerate((7, 40, 100, 143)):
        scores, right = tied(seed, rows)
        positive, negative = scores[right], scores[~right]
        enough = [t for t in GRID if np.mean(positive >= t) >= recall]
        expected = np.mean(negative >= max(enough))
        assert selective.fpr_at(positive, negative, recall) == expected


def test_fpr_counts_rows_exactly():
    positive = np.arange(100.0)
    negative = np.array([92.5, 93.5])  # recall 0.07 accepts 7 rows, from 93 on
    assert 0.07 * 100 > 7
    assert selective.fpr_at(positive, negative, 0.07) == 0.5


def test_risk_coverage_has_one_point_for_each_distinct_score():
    scores = np.array([3.0, 1.0, 1.0, 2.0, 1.0])
    right = np.array([True, False, True, False, False])
    coverage, risk = selective.risk_coverage(scores, right)
    np.testing.assert_allclose(coverage, [0.2, 0.4, 1.0])
    np.testing.assert_allclose(risk, [0, 1 / 2, 3 / 5])


@pytest.mark.parametrize("seed", range(4))
def test_areas_are_means_over_every_order_of_tied_rows(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.choice([1.0, 2.0, np.inf], 7), rng.random(7) < 0.6
    orders = every_order(fine(scores), right)
    accuracies = [
        [np.mean(order[:k]) for k in range(1, 8)] for order in orders if len(order)
    ]
    assert selective.aucea(scores, right) == pytest.approx(np.mean(accuracies))
    assert selective.aurc(scores, right) == pytest.approx(1 - np.mean(accuracies))
    # Of 7 rows, 0, 1, 3 and 6 are discarded, and one always stays.
    kept = selective.accuracy_after_discarding(scores, right, (0, 1 / 7, 0.5, 0.99))
    expected = np.mean(accuracies, axis=0)[[6, 5, 3, 0]]
    np.testing.assert_allclose(kept, expected, atol=1e-12)


def test_areas_in_closed_form():
    rows, wrong = 200, 40
    right = np.arange(rows) >= wrong
    tied_scores = np.zeros(rows)
    assert selective.aurc(tied_scores, right) == pytest.approx(wrong / rows)
    best = sum((k - 160) / k for k in range(161, 201)) / rows
    assert selective.aurc(right.astype(float), right) == pytest.approx(best)
    assert selective.aucea(right, right) == pytest.approx(1 - best)


def test_discarded_rows_are_counted_exactly():
    right = np.arange(100) >= 29  # the 29 lowest scores are wrong
    scores = np.arange(100.0)
    assert selective.accuracy_after_discarding(scores, right, [0.29])[0] == 1
    assert selective.accuracy_after_discarding(scores, right, [0.28])[0] < 1
    assert selective.accuracy_after_discarding(scores, right, [1 - 1e-12])[0] == 1


@pytest.mark.parametrize("change", ["order", "cubed", "ranks", "saturated"])
def test_measures_depend_on_the_order_of_scores_alone(change):
    rng = np.random.default_rng(3)
    scores, right = rng.normal(size=300).round(1), rng.random(300) < 0.8
    before = measures(scores, right)
    if change == "order":
        order = rng.permutation(300)
        after = measures(scores[order], right[order])
        # Not by the order of rows within ties, either.
        wrong_first = np.argsort(right, kind="stable")
        last = measures(scores[wrong_first], right[wrong_first])
        for a, b in zip(before, last, strict=True):
            np.testing.assert_array_equal(a, b)
    elif change == "cubed":
        after = measures(1e6 * scores**3 - 5, right)
    elif change == "ranks":
        after = measures(np.unique(scores, return_inverse=True)[1], right)
    else:  # a map that sends the ends to infinity
        ends = np.where(scores == scores.max(), np.inf, scores)
        after = measures(np.where(scores == scores.min(), -np.inf, ends), right)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bootstrap_agrees_with_the_spread_over_samples():
    rng = np.random.default_rng(0)
    truth = 0.7602  # P(a > b), a ~ N(1, 1), b ~ N(0, 1): Phi(1 / sqrt(2))
    intervals = [
        selective.bootstrap(
            selective.auroc, [rng.normal(1, size=40), rng.normal(size=60)], 100, seed
        )
        for seed in range(80)
    ]
    covered = np.mean([one.low <= truth <= one.high for one in intervals])
    assert 0.85 <= covered <= 1
    spread = np.std([one.value for one in intervals])
    errors = np.mean([one.standard_error for one in intervals])
    assert 0.75 < errors / spread < 1.33


def test_bootstrap_repeats_and_keeps_sides_and_columns():
    sides = [np.zeros(5), np.ones((3, 2))]
    seen = []

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        seen.append((a.shape, b.shape, set(a.ravel()), set(b.ravel())))
        return 0.0

    found = selective.bootstrap(statistic, sides, 9)
    assert found == (0, 0, 0, 0, 0)
    assert seen == 10 * [((5,), (3, 2), {0.0}, {1.0})]

    scores, right = tied(0, 50)
    rows = np.column_stack([fine(scores), right])
    together = []

    def paired(x: np.ndarray) -> float:
        together.append({tuple(row) for row in x} <= {tuple(row) for row in rows})
        return selective.aurc(x[:, 0], x[:, 1])

    one, again = (selective.bootstrap(paired, [rows], 30, seed=7) for _ in range(2))
    assert one == again and all(together)
    assert one.value == selective.aurc(scores, right)
    assert one.low < one.high
    assert one != selective.bootstrap(paired, [rows], 30, seed=8)


def test_bootstrap_leaves_out_and_counts_undefined_resamples():
    rows = np.column_stack([np.arange(5.0), [1, 0, 1, 1, 1]])

    def of_errors(x: np.ndarray) -> float:
        right = x[:, 1] == 1
        return selective.auroc(x[right, 0], x[~right, 0])

    found = selective.bootstrap(of_errors, [rows], 400, seed=1)
    # A resample without the only error: (4/5)^5 = .33.
    assert 90 < found.undefined < 175
    assert np.isfinite(found).all()
    with pytest.raises(InputError, match="defined for 0 of 5"):
        selective.bootstrap(
            lambda x: float("nan") if len(set(x)) < 99 else 1.0, [np.arange(99.0)], 5
        )
    with pytest.raises(InputError, match="no wrong rows"):
        selective.bootstrap(
            lambda a, b: selective.auroc(a, b[b > 9], ("right", "wrong")),
            [np.ones(3), np.ones(3)],
        )


def test_bad_input_is_refused():
    good, right = np.arange(4.0), np.array([True, False, True, True])
    holed = np.array([1.0, np.nan, 3.0, 4.0])
    for measure in (selective.auroc, selective.fpr_at):
        with pytest.raises(InputError, match="right against wrong.* no wrong rows"):
            measure(good, [], names=("right", "wrong"))
        with pytest.raises(InputError, match="no reliable rows"):
            measure([], good)
        with pytest.raises(
            InputError, match=r"1 of 4 .*unreliable rows are NaN.*row 1"
        ):
            measure(good, holed)
        with pytest.raises(InputError, match=r"shape \(2, 2\)"):
            measure(good, good.reshape(2, 2))
    for recall in (0, 1.1, float("nan")):
        with pytest.raises(InputError, match="recall"):
            selective.fpr_at(good, good, recall)
    for measure in (selective.risk_coverage, selective.aurc, selective.aucea):
        with pytest.raises(InputError, match="NaN"):
            measure(holed, right)
        with pytest.raises(InputError, match="one row or more"):
            measure([], [])
        with pytest.raises(InputError, match="expected 4 values"):
            measure(good, right[:3])
        with pytest.raises(InputError, match="0 or 1"):
            measure(good, np.array([3, 1, 0, 2]))
    for shares in ([1.0], [-0.1], [float("nan")], 0.5):
        with pytest.raises(InputError, match="shares"):
            selective.accuracy_after_discarding(good, right, shares)
    for arrays in ([], [np.zeros(0)], 3 * [np.float64(1)]):
        with pytest.raises(InputError, match="one row or more"):
            selective.bootstrap(np.mean, arrays)
