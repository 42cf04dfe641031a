"""Scores of reliability match their definitions, also where float32 saturates."""

import numpy as np
import pytest
import scipy.special
from sklearn.neighbors import NearestNeighbors

from polyview.errors import InputError
from polyview.evaluation import confidence, selective
from polyview.evaluation.confidence import Mahalanobis

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(30, 5)).astype(np.float32) * 3
OF_LOGITS = (
    confidence.maximum_softmax,
    confidence.log_maximum_softmax,
    confidence.negative_entropy,
    confidence.negative_energy,
    confidence.margin,
)


def test_scores_of_logits_match_their_definitions():
    for row, logits in enumerate(LOGITS.astype(np.float64)):
        p = np.exp(logits) / np.exp(logits).sum()
        first, second = sorted(p, reverse=True)[:2]
        expected = [
            first,
            np.log(first),
            sum(one * np.log(one) for one in p),
            np.log(np.exp(logits).sum()),
            first - second,
        ]
        found = [score(LOGITS)[row] for score in OF_LOGITS]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    hot = confidence.negative_energy(LOGITS, temperature=2.5)
    logits = LOGITS.astype(np.float64)
    np.testing.assert_allclose(
        hot, 2.5 * np.log(np.exp(logits / 2.5).sum(axis=1)), rtol=1e-12
    )


@pytest.mark.parametrize("score", OF_LOGITS)
def test_a_surer_row_scores_higher(score):
    lead = np.linspace(0, 30, 31)
    logits = np.stack([lead, np.zeros(31), -np.ones(31)], axis=1)
    assert (np.diff(score(logits)) > 0).all()


def test_huge_logits_stay_finite():
    huge = np.array([[3e38, 1.0, -3e38], [-3e38, -3e38, -3e38], [1e5, 1e5, 0]])
    found = confidence.negative_energy(huge)
    np.testing.assert_allclose(found, scipy.special.logsumexp(huge, axis=1))
    np.testing.assert_allclose(found[2], 1e5 + np.log(2), rtol=1e-15)
    for score in OF_LOGITS:
        assert np.isfinite(score(huge)).all()


def test_confident_rows_do_not_tie_as_in_float32():
    lead = RNG.permutation(np.linspace(1, 300, 200)).astype(np.float32)
    logits = np.stack([lead, np.zeros_like(lead)], axis=1)
    right = lead > 150
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    saturated = (exponent / exponent.sum(axis=1, keepdims=True)).max(axis=1)
    assert len(np.unique(saturated)) < 20
    assert selective.auroc(saturated[right], saturated[~right]) < 0.6
    for score in (confidence.log_maximum_softmax, confidence.negative_entropy):
        scores = score(logits)
        assert selective.auroc(scores[right], scores[~right]) == 1
    # The probability itself ties where it is 1 in float64, and ties count one half.
    scores = confidence.maximum_softmax(logits)
    ties = (scores[~right] == 1).mean()
    assert selective.auroc(scores[right], scores[~right]) == 1 - ties / 2


def test_draws_are_averaged_as_probabilities():
    draws = RNG.normal(size=(4, 6, 3)) * 4
    p = np.exp(draws) / np.exp(draws).sum(axis=2, keepdims=True)
    log = confidence.mean_log_probabilities(draws)
    np.testing.assert_allclose(log, np.log(p.mean(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(confidence.maximum_softmax(log), p.mean(0).max(axis=1))
    # One draw changes nothing; members that disagree are less sure than each.
    for score in OF_LOGITS:
        if score is not confidence.negative_energy:
            alone = confidence.mean_log_probabilities(LOGITS[None])
            np.testing.assert_allclose(score(alone), score(LOGITS), rtol=1e-9)
    torn = confidence.mean_log_probabilities([[[900.0, 0.0]], [[0.0, 900.0]]])
    np.testing.assert_allclose(torn, np.log([[0.5, 0.5]]))
    np.testing.assert_allclose(confidence.negative_energy(log), 0, atol=1e-12)


def test_kth_neighbour_matches_scikit_learn():
    train, query = RNG.normal(size=(60, 4)) * 5, RNG.normal(size=(9, 4))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, query)]
    for k in (1, 7, 60):
        distance, _ = NearestNeighbors(n_neighbors=k).fit(unit[0]).kneighbors(unit[1])
        found = confidence.kth_neighbour(train, query, k)
        np.testing.assert_allclose(found, -distance[:, -1], atol=1e-5)
    scaled = confidence.kth_neighbour(train * 7, query * 0.2, 7)
    np.testing.assert_allclose(
        scaled, confidence.kth_neighbour(train, query, 7), atol=1e-5
    )
    itself = confidence.kth_neighbour(train, train, 1)
    np.testing.assert_allclose(itself, 0, atol=1e-3)
    zeros = confidence.kth_neighbour(train, np.zeros((1, 4)), 3)
    np.testing.assert_allclose(zeros, -np.sqrt(2))
    assert confidence.kth_neighbour(train, query[:0]).shape == (0,)


def clusters(rows: int = 90, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, rows)
    mixing = rng.normal(size=(width, width))
    features = rng.normal(size=(rows, width)) @ mixing + 3 * labels[:, None]
    return features, labels


def test_mahalanobis_matches_an_explicit_inverse():
    features, labels = clusters()
    query = np.random.default_rng(6).normal(size=(8, 4)) * 6
    means = [features[labels == c].mean(axis=0) for c in range(3)]
    centred = np.stack([f - means[c] for f, c in zip(features, labels, strict=True)])
    inverse = np.linalg.inv(centred.T @ centred / len(features))
    expected = [-min((q - m) @ inverse @ (q - m) for m in means) for q in query]
    found = Mahalanobis.fit(features, labels, 3).score(query)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_mahalanobis_does_not_depend_on_units_or_rotation():
    features, labels = clusters()
    query = np.random.default_rng(6).normal(size=(8, 4)) * 6
    before = Mahalanobis.fit(features, labels, 3).score(query)
    turn = np.random.default_rng(7).normal(size=(4, 4))
    after = Mahalanobis.fit(features @ turn + 50, labels, 3).score(query @ turn + 50)
    np.testing.assert_allclose(after, before, rtol=1e-4)  # the small term
    far = Mahalanobis.fit(features + 1e6, labels, 3).score(query + 1e6)
    np.testing.assert_allclose(far, before, rtol=1e-6)
    at_means = Mahalanobis.fit(features, labels, 3)
    np.testing.assert_allclose(at_means.score(at_means.means), 0, atol=1e-9)


def test_mahalanobis_leaves_out_classes_without_rows():
    features, labels = clusters()
    some = labels != 1
    fitted = Mahalanobis.fit(features[some], labels[some], 3)
    again = Mahalanobis.fit(features[some], labels[some] // 2, 2)
    assert fitted.means.shape == (2, 4)
    np.testing.assert_array_equal(fitted.means, again.means)
    np.testing.assert_array_equal(fitted.factor, again.factor)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_directions_without_variance_count_most(scale):
    features, labels = clusters(rows=40)
    dead = np.concatenate([features, np.zeros((40, 60))], axis=1) * scale
    fitted = Mahalanobis.fit(dead.astype(np.float32), labels, 3)
    known = Mahalanobis.fit(features, labels, 3).score(features)
    np.testing.assert_allclose(fitted.score(dead), known, rtol=1e-3, atol=1e-3)
    woken = dead.copy()
    woken[:, 30] += scale
    assert fitted.score(woken).max() < 1e3 * fitted.score(dead).min()


def test_bad_input_is_refused():
    for bad in (np.nan, np.inf, -np.inf):
        logits = LOGITS.copy()
        logits[3, 1] = bad
        for score in OF_LOGITS:
            with pytest.raises(InputError, match="1 of 30 rows are not finite"):
                score(logits)
        with pytest.raises(InputError, match="not finite"):
            confidence.mean_log_probabilities(logits[None])
    for wrong in (LOGITS[0], LOGITS[:, :1], LOGITS[None]):
        for score in OF_LOGITS:
            with pytest.raises(InputError, match=r"\[n, classes\]"):
                score(wrong)
    for wrong in (LOGITS, LOGITS[None, :, :1], LOGITS[None][:0]):
        with pytest.raises(InputError, match="draws"):
            confidence.mean_log_probabilities(wrong)
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(InputError, match="temperature"):
            confidence.negative_energy(LOGITS, temperature)

    features, labels = clusters()
    holed = features.copy()
    holed[2, 0] = np.nan
    for k in (0, 91):
        with pytest.raises(InputError, match=f"k={k}: there are 90"):
            confidence.kth_neighbour(features, features, k)
    fitted = Mahalanobis.fit(features, labels, 3)
    for score in (lambda q: confidence.kth_neighbour(features, q, 1), fitted.score):
        with pytest.raises(InputError, match=r"query .*expected \[rows, 4\]"):
            score(features[:, :3])
        with pytest.raises(InputError, match="query: 1 of 90 .*row 2"):
            score(holed)
    with pytest.raises(InputError, match="train: 1 of 90 .*row 2"):
        Mahalanobis.fit(holed, labels, 3)
    with pytest.raises(InputError, match="from 0 to 2 for 2 classes"):
        Mahalanobis.fit(features, labels, 2)
    for wrong in (labels - 1, labels.astype(float)):
        with pytest.raises(InputError, match="expected integers from 0"):
            Mahalanobis.fit(features, wrong, 3)
    with pytest.raises(InputError, match="one label for each row"):
        Mahalanobis.fit(features, labels[:-1], 3)
    with pytest.raises(InputError, match="one label for each row"):
        Mahalanobis.fit(features[:0], labels[:0], 3)
    with pytest.raises(InputError, match="all equal"):
        Mahalanobis.fit(np.full((6, 3), 0.1) + np.arange(6)[:, None] % 2, [0, 1] * 3, 2)
