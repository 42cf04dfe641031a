"""Sums over all activation patterns equal the sums term by term, in any size."""

import functools
import itertools
import math

import numpy as np
import pytest

from polyview.errors import InputError
from polyview.evaluation import activation_patterns
from polyview.evaluation.activation_patterns import Patterns

UNITS = 9
BANDWIDTHS = (1, 1.3, 2.7, 5, 9)
ALL = np.array([*itertools.product([False, True], repeat=UNITS)])
APART = (ALL[:, None] != ALL).sum(axis=-1)  # of all pairs


def kernel(bandwidth: float) -> np.ndarray:
    return np.exp(-(APART**2) / (2 * bandwidth**2))


def rows(rng, count: int = 40, units: int = UNITS) -> np.ndarray:
    """Rows of which some are equal: each is one of a third as many."""
    distinct = rng.random((max(2, count // 3), units)) < 0.4
    distinct[0], distinct[1] = True, False  # so that no unit is constant
    return distinct[np.r_[0, 1, rng.integers(0, len(distinct), count - 2)]]


def fitted(rng, bandwidth: float = 2.7, count: int = 40):
    active, correct = rows(rng, count), rng.random(count) < 0.7
    return active, correct, Patterns.fit(active, correct, bandwidth)


def place(active: np.ndarray) -> np.ndarray:
    """The number of each row in ALL."""
    return active @ (2 ** np.arange(UNITS)[::-1])


def reference(active, correct, bandwidth, normaliser):
    """P, F and R of every pattern in ALL, term by term."""
    near = kernel(bandwidth)
    m = len(active)
    density = near[:, place(active)].sum(axis=1) / (m * normaliser)
    mass = density @ near
    wrong = place(active[~correct])
    return density, mass, (near[:, wrong] / mass[wrong]).sum(axis=1) / m


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
def test_the_normaliser_and_factors_are_sums_over_all_patterns(bandwidth):
    near = kernel(bandwidth)
    normaliser = math.exp(activation_patterns.log_normaliser(UNITS, bandwidth))
    assert normaliser == pytest.approx(near[0].sum(), rel=1e-9)
    factors = np.exp(activation_patterns.log_factors(UNITS, bandwidth))
    assert factors.shape == (UNITS + 1,)
    np.testing.assert_allclose(factors[APART], near @ near, rtol=1e-9)


@pytest.mark.parametrize("form", ["exact", "released"])
@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
def test_density_masses_risk_and_bound_match_their_definitions(rng, bandwidth, form):
    active, correct, patterns = fitted(rng, bandwidth)
    steps = APART[0] / bandwidth if form == "exact" else APART[0] * bandwidth
    normaliser = np.exp(-(steps**2) / 2).sum()
    density, mass, risk = reference(active, correct, bandwidth, normaliser)

    log_masses = patterns.log_masses(form)
    bits = np.unpackbits(patterns.words.view(np.uint8), axis=1, count=UNITS)
    np.testing.assert_allclose(np.exp(log_masses), mass[place(bits)], rtol=1e-9)
    np.testing.assert_allclose(np.exp(patterns.log_risk(ALL, form)), risk, rtol=1e-9)
    bound = risk + math.sqrt(math.log(2 / 0.1) / (2 * len(active))) / density
    log10_bound = patterns.log10_bound(ALL, confidence=0.9, form=form)
    np.testing.assert_allclose(log10_bound, np.log10(bound), rtol=1e-9, atol=1e-9)
    if form == "exact":
        np.testing.assert_allclose(
            np.exp(patterns.log_density(ALL)), density, rtol=1e-9
        )


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
def test_the_density_sums_to_1_and_the_mean_risk_is_the_error_rate(rng, bandwidth):
    _, correct, patterns = fitted(rng, bandwidth)
    density = np.exp(patterns.log_density(ALL))
    assert density.sum() == pytest.approx(1, abs=1e-12)
    mean = density @ np.exp(patterns.log_risk(ALL))
    assert mean == pytest.approx(np.mean(~correct), abs=1e-12)


def test_the_errors_of_patterns_average_to_the_error_of_the_network(rng):
    _, correct, patterns = fitted(rng)
    assert patterns.rows == 40 and patterns.errors == np.sum(~correct)
    share, error = patterns.count / 40, 1 - patterns.correct / patterns.count
    assert share @ error == pytest.approx(np.mean(~correct), abs=1e-12)


def test_the_error_rate_matches_a_loop(rng):
    active, correct, patterns = fitted(rng)
    queries = rng.random((15, UNITS)) < 0.5
    rates = patterns.error_rate(queries)
    for query, rate in zip(queries, rates, strict=True):
        wrong = total = 0.0
        for row, right in zip(active, correct, strict=True):
            near = math.exp(-(int((query != row).sum()) ** 2) / (2 * 2.7**2))
            wrong, total = wrong + near * (not right), total + near
        assert rate == pytest.approx(wrong / total, rel=1e-9)


def test_several_bandwidths_share_one_pass_and_equal_single_ones(rng, monkeypatch):
    active, correct, _ = fitted(rng)
    queries = rng.random((15, UNITS)) < 0.5
    fits = [Patterns.fit(active, correct, bandwidth) for bandwidth in BANDWIDTHS]
    density = np.stack([one.log_density(queries) for one in fits])
    error = np.stack([one.error_rate(queries) for one in fits])
    passes, search = [], activation_patterns.distances
    monkeypatch.setattr(
        activation_patterns,
        "distances",
        lambda some, others: passes.append(len(some)) or search(some, others),
    )
    found = activation_patterns.estimates(fits[0], queries, BANDWIDTHS)
    assert passes == [15]
    np.testing.assert_allclose(found.log_density, density, rtol=1e-12)
    np.testing.assert_allclose(found.error_rate, error, rtol=1e-12)
    for function, expected in (
        (activation_patterns.log_densities, density),
        (activation_patterns.error_rates, error),
    ):
        several = function(fits[0], queries, BANDWIDTHS)
        np.testing.assert_allclose(several, expected, rtol=1e-12)


def test_equal_patterns_are_merged_and_nothing_changes(rng):
    active, correct, patterns = fitted(rng)
    distinct, counts = np.unique(active, axis=0, return_counts=True)
    assert len(patterns.words) == len(distinct) < 20
    assert sorted(patterns.count) == sorted(counts)
    apart = Patterns(
        activation_patterns.packed(active),
        np.ones(40),
        correct.astype(np.float64),
        UNITS,
        2.7,
    )
    queries = rng.random((15, UNITS)) < 0.5
    for name in ("log_density", "error_rate", "log_risk", "log10_bound"):
        merged, single = (getattr(one, name)(queries) for one in (patterns, apart))
        np.testing.assert_allclose(merged, single, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("units", [1, 8, 13, 64, 65, 300])
def test_packed_distances_match_numpy_for_any_block(rng, units, monkeypatch):
    one, other = rng.random((7, units)) < 0.5, rng.random((11, units)) < 0.3
    other[0] = ~one[0]  # all units apart
    expected = (one[:, None] != other).sum(axis=-1)
    words = [activation_patterns.packed(active) for active in (one, other)]
    assert words[0].shape == (7, -(-units // 64)) and words[0].dtype == np.uint64
    np.testing.assert_array_equal(np.bitwise_count(words[0]).sum(1), one.sum(1))
    found = activation_patterns.distances(*words)
    np.testing.assert_array_equal(found, expected)
    monkeypatch.setattr(activation_patterns, "_WORDS", 12)  # ragged blocks
    np.testing.assert_array_equal(activation_patterns.distances(*words), expected)


def test_blocks_and_threads_do_not_change_the_estimates(rng, monkeypatch):
    _, _, patterns = fitted(rng)
    whole = activation_patterns.estimates(patterns, ALL, BANDWIDTHS)
    factors = activation_patterns.log_factors(50, 7)
    monkeypatch.setattr(activation_patterns, "_PAIRS", 100)
    monkeypatch.setattr(activation_patterns, "_TERMS", 200)
    blocked = activation_patterns.estimates(patterns, ALL, BANDWIDTHS)
    np.testing.assert_array_equal(whole.log_density, blocked.log_density)
    np.testing.assert_array_equal(whole.error_rate, blocked.error_rate)
    np.testing.assert_allclose(
        activation_patterns.log_factors(50, 7), factors, rtol=1e-12
    )


def test_all_is_finite_for_4096_units(rng, monkeypatch):
    factors_once = functools.cache(activation_patterns.log_factors)
    monkeypatch.setattr(activation_patterns, "log_factors", factors_once)
    active = rng.random((30, 4096)) < 0.3
    correct = np.arange(30) >= 5
    far = rng.random((3, 4096)) < 0.9
    bandwidths = (1, 8, 64, 512)
    patterns = Patterns.fit(active, correct, bandwidths[0])
    queries = np.r_[active, far]
    found = activation_patterns.estimates(patterns, queries, bandwidths)
    assert np.isfinite(found.log_density).all()
    assert (found.error_rate >= 0).all() and (found.error_rate <= 1).all()
    squares = np.square((queries[:, None] != active).sum(axis=-1))
    for at, bandwidth in enumerate(bandwidths):
        log_near = -squares / (2 * bandwidth**2)
        log_sum = np.logaddexp.reduce(log_near, axis=1)
        normaliser = activation_patterns.log_normaliser(4096, bandwidth)
        expected = log_sum - np.log(30) - normaliser
        np.testing.assert_allclose(found.log_density[at], expected, rtol=1e-12)
        rate = np.exp(log_near[:, :5] - log_sum[:, None]).sum(axis=1)
        np.testing.assert_allclose(found.error_rate[at], rate, rtol=1e-7)
    assert (found.log_density[:, :30].min(1) > found.log_density[:, 30:].max(1)).all()
    for bandwidth in (1, 512):
        patterns = Patterns.fit(active, correct, bandwidth)
        factors = factors_once(4096, bandwidth)
        assert np.isfinite(factors).all() and (np.diff(factors) < 0).all()
        # At d = 0 the product of two kernels is one of 1/sqrt(2) of the width.
        if bandwidth > 1:
            one = activation_patterns.log_normaliser(4096, bandwidth / math.sqrt(2))
            assert factors[0] == pytest.approx(one, rel=1e-12)
        bound = patterns.log10_bound(np.r_[active[:2], far])
        assert np.isfinite(bound).all() and bound.min() > 0
        assert bound[:2].max() < bound[2:].min()


def test_the_bound_ranks_as_the_density_does(rng):
    active = rng.random((60, 300)) < 0.4
    patterns = Patterns.fit(active, np.arange(60) >= 12, 16)
    queries = rng.random((20, 300)) < rng.uniform(0.2, 0.8, (20, 1))
    bound = patterns.log10_bound(queries)
    order = np.argsort(-patterns.log_density(queries))
    np.testing.assert_array_equal(np.argsort(bound), order)
    assert bound.min() > 10


@pytest.mark.parametrize("bandwidth", [1, 20, 300])
def test_the_normaliser_matches_whole_binomials(bandwidth):
    terms = [
        math.log(math.comb(600, i)) - i**2 / (2 * bandwidth**2) for i in range(601)
    ]
    found = activation_patterns.log_normaliser(600, bandwidth)
    assert found == pytest.approx(np.logaddexp.reduce(terms), rel=1e-12)


def test_the_released_normaliser_has_the_inverse_bandwidth():
    exact = activation_patterns.log_normaliser(2048, 4)
    released = activation_patterns.log_normaliser(2048, 4, "released")
    assert exact == pytest.approx(158, abs=0.5)
    assert math.exp(released) == pytest.approx(1.69, abs=0.005)
    one = [activation_patterns.log_normaliser(9, 1, f) for f in ("exact", "released")]
    assert one[0] == one[1]


def test_without_errors_the_rate_is_0_and_says_so(rng):
    patterns = Patterns.fit(rows(rng), np.ones(40, bool), 2)
    assert patterns.errors == 0
    assert (patterns.error_rate(ALL) == 0).all()
    assert (patterns.log_risk(ALL) == -np.inf).all()
    assert np.isfinite(patterns.log10_bound(ALL)).all()


def test_the_share_of_constant_units(rng):
    active = np.array([[0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 1, 1]], bool)
    assert activation_patterns.constant_share(active) == 0.5
    # Half of the units are no reason to stop.
    assert len(Patterns.fit(active, None, 1).words) == 3


@pytest.mark.parametrize("bandwidth", [0, 0.99, 9.01, -3, math.nan, math.inf])
def test_bandwidths_outside_1_to_the_units_are_refused(rng, bandwidth):
    patterns = Patterns.fit(rows(rng), None, 2)
    for call in (
        lambda: Patterns.fit(rows(rng), None, bandwidth),
        lambda: activation_patterns.log_normaliser(UNITS, bandwidth),
        lambda: activation_patterns.log_factors(UNITS, bandwidth),
        lambda: activation_patterns.log_densities(patterns, ALL, [2, bandwidth]),
    ):
        with pytest.raises(InputError, match="between 1 and the number of units, 9"):
            call()


def test_bad_input_is_refused(rng):
    active, correct, patterns = fitted(rng)
    half = Patterns.fit(active, None, 2)
    for words, call in {
        "0 units": lambda: activation_patterns.log_factors(0, 1),
        "40 rows of 0 units": lambda: Patterns.fit(active[:, :0], None, 1),
        "0 rows of 9": lambda: Patterns.fit(active[:0], correct[:0], 1),
        "0 rows of 9 units": lambda: patterns.log_density(ALL[:0]),
        "float32": lambda: patterns.log_density(ALL.astype(np.float32)),
        r"bool\[9\]": lambda: patterns.error_rate(ALL[0]),
        "queries have 8 units, the fitted patterns 9": lambda: patterns.error_rate(
            ALL[:, :8]
        ),
        "queries have 8": lambda: patterns.log_risk(ALL[:, :8]),
        r"bool\[39\]": lambda: Patterns.fit(active, correct[:39], 2),
        r"int64\[40\]": lambda: Patterns.fit(active, correct.astype(np.int64), 2),
        "100 %.*40 rows, always inactive": lambda: Patterns.fit(
            np.zeros_like(active), correct, 2
        ),
        "always active": lambda: Patterns.fit(np.ones_like(active), correct, 2),
        "all 9 units.*over 2 rows; the layer": lambda: Patterns.fit(
            ALL[[5, 5]], None, 2
        ),
        "without `correct`": lambda: half.error_rate(ALL),
        "fitted without": lambda: half.errors,
        "only densities": lambda: half.log10_bound(ALL),
        "confidence=1": lambda: patterns.log10_bound(ALL, confidence=1),
        "confidence=0": lambda: patterns.log10_bound(ALL, confidence=0),
        "form is 'paper'": lambda: patterns.log_masses("paper"),
        "bandwidth no": lambda: activation_patterns.estimates(patterns, ALL, []),
    }.items():
        with pytest.raises(InputError, match=words):
            call()
    assert np.isfinite(half.log_density(ALL)).all()
