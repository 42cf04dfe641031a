"""Accuracies and what they are read beside equal their definitions."""

import math
import statistics

import numpy as np
import pytest

from polyview.errors import InputError
from polyview.evaluation.classification import (
    accuracy_table,
    errors_of,
    few_rows,
    over_draws,
    top_accuracy,
)


def test_accuracy_is_read_beside_balance_majority_and_error(rng):
    labels = np.array([0] * 9 + [2] * 3 + [5] * 2)  # 1, 3 and 4 have no row
    scores = rng.normal(size=(14, 7))
    rows = range(14)
    right = [max(range(7), key=lambda c: scores[i, c]) == labels[i] for i in rows]
    recalls = [
        statistics.mean(float(right[i]) for i in rows if labels[i] == c)
        for c in (0, 2, 5)
    ]
    found = top_accuracy(scores, labels)
    p = sum(right) / 14
    assert found["top1"] == pytest.approx(p)
    assert found["balanced_accuracy"] == pytest.approx(statistics.mean(recalls))
    assert found["majority_class"] == pytest.approx(9 / 14)
    assert found["standard_error"] == pytest.approx(math.sqrt(p * (1 - p) / 14))
    constant = top_accuracy(np.eye(7)[[0] * 14], labels)
    assert constant["top1"] == constant["majority_class"]
    assert constant["balanced_accuracy"] == pytest.approx(1 / 3)
    assert "top5" not in top_accuracy(scores[:, :5], labels % 5)


def test_few_rows_are_so_many_of_each_class_and_nested():
    labels = np.array([3, 1] * 4 + [3] * 20)
    few, more = (few_rows(labels, count, seed=(0, 1)) for count in (2, 4))
    assert labels[few].tolist() == [1, 1, 3, 3] and len(set(more)) == 8
    assert set(few) < set(more)
    assert {*few_rows(labels, 2, seed=(0, 2))} != {*few}
    with pytest.raises(InputError, match="5 rows a class: class 1 has only 4 in train"):
        few_rows(labels, 5, seed=(0, 1))


def test_the_error_over_draws_has_that_of_the_rows_too():
    scores = [{"top1": p, "standard_error": e} for p, e in ((0.2, 0.1), (0.4, 0.3))]
    found = over_draws(scores)
    spread = statistics.stdev([0.2, 0.4]) / math.sqrt(2)
    assert found["top1"] == pytest.approx(0.3) and found["draws"] == [0.2, 0.4]
    assert found["standard_error_of_draws"] == pytest.approx(spread)
    assert found["standard_error"] == pytest.approx(math.hypot(spread, 0.2))
    assert over_draws(scores[:1])["standard_error"] is None


def test_errors_and_tables_read_results_of_earlier_versions():
    old, one = {"top1": 0.5}, {"top1": 0.5, "standard_error": None}
    new = {"top1": 0.5, "standard_error": 0.1, "balanced_accuracy": 0.25}
    measured = {"old %": old, "one draw %": one, "new %": new}
    errors = errors_of(measured, {"test": {"rows": 25}})
    assert errors == pytest.approx({"old %": 10, "new %": 10})
    assert errors_of(measured, {}) == {"new %": 10}
    _, body = accuracy_table({"a": measured})
    assert body == [["a: new", "50.00 ± 10.00", "–", "25.00", "–"]]
