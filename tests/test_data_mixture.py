"""A mixture gives each domain its exact share, as a function of seed and step."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from polyview.data import pipeline
from polyview.data.mixture import Mixture, OfDomains, of_domain, shares
from polyview.errors import InputError


class Rows:
    """Rows that say their own number."""

    digest = "rows"

    def __init__(self, count, width=1, classes=3):
        self.count, self.width = count, width
        self.targets = {"label": {"kind": "class", "classes": classes}}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"x": np.full(self.width, index + 1.0), "label": index % 3}


def look(example, rng):
    return {
        "views": {"x": example["x"][None] + rng.random() / 2},
        "present": {"x": np.ones(1, bool)},
        "targets": {"label": np.asarray(example["label"])},
    }


def batches(mixture, views, **options):
    options = {"seed": 3, "batch_size": 10, "steps": 40} | options
    return list(pipeline.batches(mixture, views, **options))


def two():
    return Mixture({"a": Rows(30), "b": Rows(7, width=4)}, {"a": 0.7, "b": 0.2})


VIEWS = {"a": look, "b": look}


def test_shares_are_exact_over_a_period_and_off_by_less_than_one_in_a_step():
    weights = {"a": 5, "b": 2, "c": 1, "d": 0.5, "never": 0}
    order = Mixture({name: Rows(50) for name in weights}, weights).order(16, 0)
    counts = order.counts
    exact = [16 * Fraction(str(w)) / Fraction("8.5") for w in weights.values()]
    assert len(counts) == 17
    assert counts.sum(0).tolist() == [17 * share for share in exact]
    assert (counts.sum(1) == 16).all()
    assert (abs(counts - np.array(exact, float)) < 1).all()
    # Over 1,000 steps, which are no whole number of periods.
    domains = Counter()
    for step in range(1000):
        _, rows = order.rows(step)
        domains.update((rows // 50).tolist())
    for number, share in enumerate(exact):
        assert abs(domains[number] - 1000 * share) < 1, number


def test_each_domain_goes_through_permutations_of_its_own():
    order = two().order(10, 5)
    seen = [order.rows(step) for step in range(200)]
    epochs, rows = (np.concatenate(part) for part in zip(*seen, strict=True))
    for first, size in ((0, 30), (30, 7)):
        own = (rows >= first) & (rows < first + size)
        steps = np.repeat(np.arange(200), 10)[own]
        passed = list(zip(epochs[own].tolist(), rows[own].tolist(), strict=True))
        for epoch in range(max(epochs[own])):
            whole = [row for at, row in passed if at == epoch]
            assert sorted(whole) == list(range(first, first + size)), epoch
        assert (np.diff(epochs[own][np.argsort(steps, kind="stable")]) >= 0).all()
    orders = {tuple(rows[(epochs == e) & (rows < 30)]) for e in range(5)}
    assert len(orders) == 5


def test_a_batch_follows_from_seed_and_step_on_any_hosts():
    whole = batches(two(), OfDomains(VIEWS))
    resumed = batches(two(), OfDomains(VIEWS), start=23)
    halves = [
        batches(two(), OfDomains(VIEWS), start=23, process_index=i, process_count=2)
        for i in (0, 1)
    ]
    for (step, a), (_, b), (_, c), (_, d) in zip(
        whole[23:], resumed, *halves, strict=True
    ):
        joined = {k: np.concatenate([c["views"][k], d["views"][k]]) for k in c["views"]}
        for name, value in a["views"].items():
            np.testing.assert_array_equal(value, b["views"][name], str(step))
            np.testing.assert_array_equal(value, joined[name], str(step))
        # Each host reads some of the larger domain.
        assert c["present"]["a/x"].any() and d["present"]["a/x"].any()
    others = batches(two(), OfDomains(VIEWS), seed=4)
    assert any(
        not np.array_equal(a["index"], b["index"])
        for (_, a), (_, b) in zip(whole, others, strict=True)
    )


def test_views_of_other_domains_are_zeros_that_are_not_present():
    for _, batch in batches(two(), OfDomains(VIEWS)):
        a = batch["targets"]["domain"] == 0
        assert 7 <= a.sum() <= 8
        np.testing.assert_array_equal(batch["present"]["a/x"][:, 0], a)
        np.testing.assert_array_equal(batch["present"]["b/x"][:, 0], ~a)
        assert (batch["views"]["b/x"][a] == 0).all()
        assert (batch["views"]["b/x"][~a] > 0).all()
        own = of_domain(batch, "b")
        assert own.keys() == {"views", "present", "targets"}
        assert own["views"]["x"].shape == (10, 1, 4)
        assert (own["targets"]["label"][a] == 0).all()


def test_a_domain_smaller_than_its_share_is_told(caplog):
    Mixture({"a": Rows(30), "b": Rows(2)}).order(8, 0)
    assert "the domain 'b' has 2 examples, and 4 of each batch" in caplog.text
    batch = batches(Mixture({"a": Rows(30), "b": Rows(2)}), OfDomains(VIEWS))[0][1]
    assert batch["present"]["b/x"].sum() == 5


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0, "b": 0}, "all 0"),
        ({"a": -1, "b": 2}, "the weight of 'a' is -1"),
        ({"a": float("nan"), "b": 1}, "is nan"),
        ({"a": float("inf"), "b": 1}, "is inf"),
        ({"a": 1}, "give each its weight"),
        ({"a": 0.123456789, "b": 1}, "do not come out even"),
    ],
)
def test_weights_that_cannot_be_kept_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        Mixture({"a": Rows(3), "b": Rows(3)}, weights)


def test_other_mixtures_are_refused():
    with pytest.raises(InputError, match="needs a source"):
        Mixture({})
    with pytest.raises(InputError, match="'b' has no examples"):
        Mixture({"a": Rows(3), "b": Rows(0)})
    views = OfDomains({"a": look})
    mixture = two()
    with pytest.raises(InputError, match="the domain 'b', and views of a"):
        views(mixture[31], np.random.default_rng(0))
    assert mixture.digest != Mixture({"a": Rows(30), "b": Rows(7)}).digest
    assert sum(shares({"a": 3, "b": 1}, 6)) == 6
