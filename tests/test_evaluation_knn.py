"""Weighted kNN matches its definition for any block size."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from polyview.errors import InputError
from polyview.evaluation import knn

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 90)
TRAIN = (RNG.normal(size=(90, 5)) + LABELS[:, None]).astype(np.float32)
TEST = RNG.normal(loc=1, size=(41, 5)).astype(np.float32)


def test_votes_match_the_definition():
    votes = knn.WeightedKnn(k=7, temperature=0.1).scores(TRAIN, LABELS, TEST, 3)["knn"]
    for row, votes_of_row in zip(TEST, votes, strict=True):
        cosine = [
            float(row @ other) / (np.linalg.norm(row) * np.linalg.norm(other))
            for other in TRAIN
        ]
        expected = np.zeros(3)
        nearest = sorted(range(90), key=lambda i: -cosine[i])[:7]
        for i in nearest:
            expected[LABELS[i]] += np.exp((cosine[i] - cosine[nearest[0]]) / 0.1)
        np.testing.assert_allclose(votes_of_row, expected, rtol=1e-4)


def test_predictions_match_scikit_learn():
    reference = KNeighborsClassifier(
        7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(TRAIN, LABELS)
    votes = knn.WeightedKnn(k=7, temperature=0.1).scores(TRAIN, LABELS, TEST, 3)["knn"]
    np.testing.assert_array_equal(votes.argmax(axis=1), reference.predict(TEST))


def test_blocks_do_not_change_the_neighbours(monkeypatch):
    whole = knn.neighbours(TRAIN, TEST, k=4)
    monkeypatch.setattr(knn, "_SIMILARITIES", 90 * 6)  # 41 queries: blocks of 6, ragged
    blocked = knn.neighbours(TRAIN, TEST, k=4)
    np.testing.assert_array_equal(whole.index, blocked.index)


def test_fewer_rows_than_k_all_vote():
    votes = knn.WeightedKnn(k=20).scores(TRAIN[:5], LABELS[:5], TEST, 3)["knn"]
    assert np.isfinite(votes).all()
    assert knn.neighbours(TRAIN[:5], TEST, k=20).index.shape == (41, 5)


def test_several_k_share_one_search_and_equal_separate_runs(monkeypatch):
    alone = {
        f"knn@{k}": knn.WeightedKnn(k=k).scores(TRAIN, LABELS, TEST, 3)["knn"]
        for k in (1, 7, 20)
    }
    searched, search = [], knn.neighbours
    monkeypatch.setattr(
        knn, "neighbours", lambda *a, k: searched.append(k) or search(*a, k=k)
    )
    together = knn.WeightedKnn(k=[1, 7, 20]).scores(TRAIN, LABELS, TEST, 3)
    assert searched == [20] and together.keys() == alone.keys()
    for name, votes in alone.items():
        np.testing.assert_array_equal(together[name], votes)
    most = knn.WeightedKnn(k=(1, 7, 20)).scores(TRAIN, LABELS, TEST, 3, most=7)
    assert [*most] == ["knn@1", "knn@7"]


def test_invalid_values_are_refused():
    with pytest.raises(InputError, match="k=0"):
        knn.WeightedKnn(k=0)
    for k in ((), (5, 5), (1, 0), 2.5):
        with pytest.raises(InputError):
            knn.WeightedKnn(k=k)
    with pytest.raises(ValueError, match="per_class"):
        knn.WeightedKnn(per_class=(1, 0))
