"""Closed-form TRE is that of gradient descent; its ratio is 1 by chance, 0 at best."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polyview import devices
from polyview.data.observed import Observed
from polyview.data.sources.memory import InMemory
from polyview.errors import InputError
from polyview.evaluation.compositionality import (
    Compositionality,
    class_means,
    composition,
    tre,
    tre_ratios,
)
from polyview.nn.towers import Features

LEFT, RIGHT, WIDTH = 6, 5, 24


def pairs():
    """Every pair of a left and a right part as a 0/1 vector, float[30, 11]."""
    return np.stack(
        [
            np.concatenate([np.eye(LEFT)[i], np.eye(RIGHT)[j]])
            for i in range(LEFT)
            for j in range(RIGHT)
        ]
    )


def split(vectors):
    """Seen and unseen classes such that each part is in several seen ones."""
    unseen = np.arange(len(vectors)) % 4 == 0
    return np.flatnonzero(~unseen), np.flatnonzero(unseen)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_closed_form_is_the_minimum_that_rmsprop_finds(rng, x64):
    vectors = pairs()
    x = unit(rng.normal(size=(len(vectors), WIDTH)))
    optimizer = optax.rmsprop(optax.cosine_decay_schedule(0.01, 400))
    eta = jnp.zeros((vectors.shape[1], WIDTH))

    def loss(eta):
        return jnp.mean(jnp.sum(jnp.square(x - vectors @ eta), axis=1))

    def step(carry, _):
        eta, state = carry
        updates, state = optimizer.update(jax.grad(loss)(eta), state)
        return (optax.apply_updates(eta, updates), state), None

    (eta, _), _ = jax.lax.scan(step, (eta, optimizer.init(eta)), length=400)
    closed = tre(x, vectors)
    assert 0.1 < closed
    assert closed == pytest.approx(float(loss(eta)), abs=1e-4)
    # Of unseen classes, too, though single eta are not determined.
    seen, unseen = split(vectors)
    fitted = composition(x[seen], vectors[seen])
    slow = np.linalg.lstsq(vectors[seen], x[seen], rcond=None)[0]
    expected = [np.sum((x[c] - vectors[c] @ slow) ** 2) for c in unseen]
    assert tre(x[unseen], vectors[unseen], fitted) == pytest.approx(np.mean(expected))


def test_the_ratio_is_zero_for_composed_and_one_for_random_features(rng):
    vectors = pairs()
    seen, unseen = split(vectors)

    def ratios(x, permutations):
        found, others = tre_ratios(
            (x[seen], vectors[seen]),
            {"new": (x[unseen], vectors[unseen])},
            permutations=permutations,
            seed=0,
        )
        return found, others["new"]

    for one in ratios(vectors @ rng.normal(size=(vectors.shape[1], WIDTH)), 5):
        assert one.ratio < 1e-4 and one.control.mean() > 0.1
    many = [ratios(unit(rng.normal(size=(30, 200))), 40) for _ in range(8)]
    for place in (0, 1):
        drawn = [both[place].ratio for both in many]
        assert np.mean(drawn) == pytest.approx(1, abs=0.02)
    resampled = many[0][1].resampled(200, seed=1)
    assert len(resampled) == 200 and resampled.min() < 1 < resampled.max()


def test_the_control_permutes_vectors_within_each_split_and_fits_anew(rng):
    vectors = pairs()
    seen, unseen = split(vectors)
    x = unit(vectors @ rng.normal(size=(11, WIDTH)) + rng.normal(size=(30, WIDTH)))
    found, others = tre_ratios(
        (x[seen], vectors[seen]),
        {"new": (x[unseen], vectors[unseen])},
        permutations=3,
        seed=7,
    )
    again = np.random.default_rng(7)
    slow = {"seen": np.zeros(len(seen)), "new": np.zeros(len(unseen))}
    for _ in range(3):
        one, other = again.permutation(len(seen)), again.permutation(len(unseen))
        # Class one[i] gets the vector of class i.
        shuffled = np.empty_like(vectors)
        shuffled[seen[one]], shuffled[unseen[other]] = vectors[seen], vectors[unseen]
        eta = np.linalg.lstsq(shuffled[seen], x[seen], rcond=None)[0]
        slow["seen"] += np.square(x[seen] - shuffled[seen] @ eta).sum(1) / 3
        slow["new"] += np.square(x[unseen] - shuffled[unseen] @ eta).sum(1) / 3
    np.testing.assert_allclose(found.control, slow["seen"], atol=1e-12)
    np.testing.assert_allclose(others["new"].control, slow["new"], atol=1e-12)


def data(rng, classes, features, rows=6):
    """Rows of classes with noise; `features[c]` is what the encoder sees of class c."""
    labels = np.repeat(classes, rows)
    images = features[labels] + 0.05 * rng.normal(size=(len(labels), WIDTH))
    vectors = pairs().astype(np.uint8)
    targets = {
        "label": {
            "kind": "class",
            "classes": 30,
            "names": [f"c{i}" for i in range(30)],
        },
        "attributes": {"kind": "multi-label", "names": [f"a{i}" for i in range(11)]},
    }
    columns = {"image": images.astype(np.float32), "label": labels}
    return InMemory(columns | {"attributes": vectors[labels]}, targets)


VIEWS = Observed(
    fields={"image": ("image",)},
    shapes={"image": (WIDTH,)},
    dtypes={"image": "float32"},
    targets=("label", "attributes"),
)


def represent(batch):
    x = batch["views"]["image"]
    return {"image": Features(z=x, h=x, local=None)}


def run(evaluation):
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        return evaluation(jax.jit(represent), mesh)


def test_an_evaluation_measures_class_means_of_standardised_features(rng):
    vectors = pairs()
    seen, unseen = split(vectors)
    composed = vectors @ rng.normal(size=(11, WIDTH)) + 3
    train, test = data(rng, seen, composed), data(rng, unseen, composed)
    evaluation = Compositionality(train, {"all": test}, VIEWS, batch_size=64)
    result = run(evaluation)
    x, y = (np.stack([row["image"] for row in source]) for source in (train, test))
    shift, scale = x.mean(0), x.std(0)
    means = [
        unit((part - shift)[:].reshape(-1, 6, WIDTH).mean(1) / scale) for part in (x, y)
    ]
    eta = np.linalg.lstsq(vectors[seen], means[0], rcond=None)[0]
    expected = np.square(means[1] - vectors[unseen] @ eta).sum(1).mean()
    new, old = result["splits"]["all"], result["splits"]["seen classes"]
    assert new["tre"] == pytest.approx(expected, rel=1e-4)
    assert new["ratio"] == pytest.approx(new["tre"] / new["control"])
    assert 0 < new["low"] <= new["ratio"] <= new["high"] < 0.3
    assert old["classes"] == len(seen) and new["classes"] == len(unseen)
    assert result.columns.keys() == {"TRE ratio, all", "TRE ratio, seen classes"}
    assert "permuted" in result["protocol"]["tre"]["definition"]
    assert "24 dimensions" in result.summary
    head, body = evaluation.comparison_table({"run": result})
    assert len(body) == 2 and len(body[0]) == len(head) and body[0][-1] == "24"
    # On principal components the means are those of fewer dimensions.
    few = run(Compositionality(train, {"all": test}, VIEWS, dimensions=4))
    assert few["dimensions"] == 4 and few["splits"]["all"]["tre"] != new["tre"]
    with pytest.raises(InputError, match="dimensions is 99, but the features have 24"):
        run(Compositionality(train, {"all": test}, VIEWS, dimensions=99))


def test_what_has_no_ratio_is_left_out_with_its_reason(rng):
    vectors = pairs()
    seen, unseen = split(vectors)
    equal = np.zeros((30, WIDTH))
    sources = data(rng, seen, equal), {"all": data(rng, unseen, equal)}
    for source in (sources[0], sources[1]["all"]):
        source._columns["image"] = np.zeros_like(source._columns["image"])
    result = run(Compositionality(*sources, VIEWS))
    assert result["splits"] == {} and result.columns == {}
    assert "features of all classes are equal" in result.summary
    few = [0, 6]  # two classes with four independent attributes
    result = run(
        Compositionality(
            data(rng, few, rng.normal(size=(30, WIDTH))),
            {"all": data(rng, [1, 5], vectors @ rng.normal(size=(11, WIDTH)))},
            VIEWS,
        )
    )
    assert "2 independent attributes compose 2 classes" in result.summary
    assert result.columns.keys() == {"TRE ratio, all"}


def test_a_class_mean_is_a_loop_over_its_rows(rng):
    features, labels = rng.normal(size=(20, 3)), rng.integers(4, size=20) * 2
    slow = []
    for label in sorted(set(labels)):
        total = sum(f for f, own in zip(features, labels, strict=True) if own == label)
        slow.append(total / np.linalg.norm(total))
    np.testing.assert_allclose(class_means(features, labels), slow)
