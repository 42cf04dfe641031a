"""Unseen classes are found by their attributes; they choose nothing; leaks stop."""

import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from polyview import devices
from polyview.config.file import evaluations_of
from polyview.data.augment import ResizeCenterCrop
from polyview.data.observed import Observed
from polyview.data.prepare import records
from polyview.data.sources.memory import InMemory
from polyview.data.views import Generated
from polyview.drawing import png
from polyview.errors import InputError
from polyview.evaluation import (
    attribute_fits,
    attribute_scores,
    class_attributes,
    handcrafted,
)
from polyview.evaluation.attribute_fits import SoftmaxHead
from polyview.evaluation.attributes import CLASSIFIERS, AttributeZeroShot
from polyview.evaluation.base import write_result
from polyview.nn.towers import Features
from polyview.runs import evaluating

PARTS, WIDTH = 6, 16  # parts of a slot; dimensions of the features
PAIRS = list(itertools.product(range(PARTS), repeat=2))
VECTORS = np.array([[*np.eye(PARTS)[i], *np.eye(PARTS)[j]] for i, j in PAIRS], np.uint8)
CLASSES = np.arange(len(PAIRS))
UNSEEN, HELD = CLASSES[CLASSES % 5 == 0], CLASSES[CLASSES % 5 == 3]
SEEN = np.setdiff1d(CLASSES, [*UNSEEN, *HELD])
TASKS = {
    "label": {
        "kind": "class",
        "classes": len(PAIRS),
        "names": [f"{i}+{j}" for i, j in PAIRS],
    },
    "attributes": {
        "kind": "multi-label",
        "names": [f"{slot}{i}" for slot in "lr" for i in range(PARTS)],
        "slots": ["left"] * PARTS + ["right"] * PARTS,
    },
}
VIEWS = Observed(
    fields={"image": ("image",)},
    shapes={"image": (WIDTH,)},
    dtypes={"image": "float32"},
    targets=("label", "attributes"),
)
# Each class is the sum of its parts, and something of its own.
MEANS = VECTORS @ np.random.default_rng(1).normal(size=(2 * PARTS, WIDTH))
MEANS = MEANS + 0.7 * np.random.default_rng(2).normal(size=MEANS.shape)


def source(classes, seed=0, rows=5, vectors=VECTORS, tasks=TASKS, **columns):
    """Rows of classes; every third class has a row more."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(classes, [rows + (c % 3 == 0) for c in classes])
    images = MEANS[labels] + 0.8 * rng.normal(size=(len(labels), WIDTH))
    made = {"image": images.astype(np.float32), "label": labels}
    return InMemory(made | {"attributes": vectors[labels]} | columns, tasks)


def made(**changes):
    fields = {
        "train": source(SEEN),
        "validation": source(HELD, 1),
        "unseen": {"old": source(UNSEEN, 2), "new": source(UNSEEN, 3)},
        "seen": {"new": source(SEEN, 4, rows=2)},
        "views": VIEWS,
        "softmax": SoftmaxHead(width=8, decays=(1e-4, 1e-2), iterations=30),
        "batch_size": 64,
    }
    return AttributeZeroShot(**fields | changes)


@jax.jit
def represent(batch):
    x = batch["views"]["image"]
    return {"image": Features(z=x[..., :3], h=x, local=None)}


def run(evaluation):
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        return evaluation(represent, mesh)


@pytest.fixture(scope="module")
def result():
    return run(made())


def rows_of(source):
    columns = source._columns
    return columns["image"].astype(np.float64), columns["label"]


def mean_over_classes(right, labels):
    each = [
        np.mean([r for r, own in zip(right, labels, strict=True) if own == c])
        for c in sorted(set(labels))
    ]
    return np.mean(each), np.std(each, ddof=1) / np.sqrt(len(each))


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_the_ridge_is_that_of_scikit_learn(rng):
    x, vectors, place = (
        rng.normal(size=(40, 7)) + 2,
        rng.normal(size=(5, 3)),
        rng.integers(5, size=40),
    )
    y, centre = vectors[place], vectors.mean(0)
    total = np.square(x - x.mean(0)).sum()
    for strength, fit in zip(
        (1e-3, 0.1),
        attribute_fits.fit_ridge(x, place, vectors, (1e-3, 0.1)),
        strict=True,
    ):
        peer = Ridge(alpha=strength * total).fit(x, y)
        np.testing.assert_allclose(fit.weight, peer.coef_.T, atol=1e-10)
        np.testing.assert_allclose(fit.attributes(x), peer.predict(x), atol=1e-10)
        scores = fit.scores(x[:4], y[:5])
        slow = [
            [cosine(a - centre, b - centre) for b in y[:5]] for a in peer.predict(x[:4])
        ]
        np.testing.assert_allclose(scores, slow, atol=1e-10)


def test_the_softmax_head_minimises_its_loss_and_repeats_itself(rng):
    x = rng.normal(size=(30, 4)).astype(np.float32)
    vectors = rng.normal(size=(5, 6))
    place = rng.integers(5, size=30)
    head = SoftmaxHead(width=3, iterations=500)
    fit = head.fit(x, place, vectors, 1e-2, seed=0)

    def loss(weight, mapping):
        centred, total = vectors - vectors.mean(0), 0.0
        for row, own in zip(x, place, strict=True):
            apart = [
                -np.sum((row @ weight - vector @ mapping) ** 2) for vector in centred
            ]
            total -= apart[own] - np.log(np.exp(apart).sum())
        penalty = np.sum(weight**2) + np.sum(mapping**2)
        return total / len(x) + 1e-2 / 2 * penalty

    least = loss(fit.weight, fit.mapping)
    assert least < 0.9 * np.log(5)
    for part in (0, 1):
        for _ in range(10):
            moved = [fit.weight, fit.mapping]
            moved[part] = moved[part] + 0.05 * rng.normal(size=moved[part].shape)
            assert loss(*moved) > least
    again = head.fit(x, place, vectors, 1e-2, seed=0)
    np.testing.assert_array_equal(fit.weight, again.weight)
    centred = (vectors - fit.centre) @ fit.mapping
    slow = [[-np.sum((r @ fit.weight - c) ** 2) for c in centred] for r in x[:6]]
    scores = fit.scores(x[:6], vectors)
    apart = scores - np.square(x[:6] @ fit.weight).sum(1, keepdims=True)
    np.testing.assert_allclose(apart, slow, atol=1e-5)
    few = SoftmaxHead(width=3, rows=7).fit(x, place, vectors, 1e-2, seed=0)
    assert not np.allclose(few.weight, fit.weight)


def test_class_and_image_averages_are_loops_and_stand_apart(rng):
    labels = np.repeat([2, 5, 9], [1, 3, 16])
    right = rng.random(20) < 0.5
    found = attribute_scores.class_averaged(right, labels)
    mean, error = mean_over_classes(right, labels)
    assert found["class_averaged_top1"] == pytest.approx(mean)
    assert found["standard_error"] == pytest.approx(error)
    assert found["image_averaged_top1"] == pytest.approx(right.mean()) != mean
    one = attribute_scores.class_averaged(right[4:], labels[4:])
    assert one["classes"] == 1 and one["standard_error"] is None


def generalised(rng, rows=40):
    """Scores of rows of both groups, for 7 classes of which 4 are seen."""
    classes = np.array([1, 2, 4, 5, 7, 8, 9])
    seen = np.array([True, False, True, True, False, False, True])
    groups = []
    for group in (False, True):
        labels = rng.choice(classes[seen == group], rows)
        scores = rng.normal(size=(rows, 7)) + 0.8 * seen
        scores += 1.5 * (classes == labels[:, None])
        groups.append((scores, labels))
    return classes, seen, groups


def test_calibrated_stacking_is_a_loop_over_offsets(rng):
    classes, seen, groups = generalised(rng)
    rows = [attribute_scores.stacked(s, y, classes, seen) for s, y in groups]

    def slow(offset):
        accuracies = []
        for scores, labels in groups:
            answers = classes[(scores - offset * seen).argmax(1)]
            accuracies.append(mean_over_classes(answers == labels, labels))
        (u, du), (s, ds) = accuracies
        h = 2 * u * s / (u + s) if u + s else 0
        return u, du, s, ds, h

    for offset in (-1.0, 0.0, 0.7, 3.0):
        u, du, s, ds, h = slow(offset)
        found = attribute_scores.stacked_accuracies(*rows, offset)
        assert [found[k] for k in "usH"] == pytest.approx([u, s, h])
        tiny = 1e-6  # the first order of H in u and in s
        slopes = (
            attribute_scores.harmonic_mean(u + tiny, s) - h,
            attribute_scores.harmonic_mean(u, s + tiny) - h,
        )
        error = np.hypot(slopes[0] * du, slopes[1] * ds) / tiny
        assert found["H_standard_error"] == pytest.approx(error, rel=1e-4)
    best = attribute_scores.best_offset(*rows)
    every = [slow(offset)[-1] for offset in np.linspace(-4, 6, 1001)]
    assert slow(best)[-1] == pytest.approx(max(every)) and max(every) > slow(0)[-1]
    # Of offsets that are as good, the nearest to zero: here .25 and 2.25.
    tied = attribute_scores.Stacked(
        np.array([True, False]), np.array([-1.0, 1.5]), np.array([1, 1])
    )
    other = attribute_scores.Stacked(np.array([True]), np.array([3.0]), np.array([2]))
    assert attribute_scores.best_offset(tied, other) == pytest.approx(0.25)
    offsets, u, s = attribute_scores.offset_curve(*rows)
    assert (u[0], s[-1]) == (0, 0) and np.all(np.diff(u) >= 0)
    for place in range(0, len(offsets), 9):
        found = slow(offsets[place])
        assert (u[place], s[place]) == pytest.approx((found[0], found[2]))


def test_accuracy_of_slots_and_by_seen_classes_are_loops(rng):
    table = class_attributes.ClassTable(UNSEEN, VECTORS[UNSEEN].astype(float))
    table.vectors[1, :PARTS] = 0  # a class with nothing on the left
    labels = rng.choice(UNSEEN, 60)
    predicted = rng.normal(size=(60, 2 * PARTS)) + VECTORS[labels]
    counts = VECTORS[SEEN].sum(0).astype(int)
    counts[2] = 0  # no candidate
    slots = TASKS["attributes"]["slots"]
    found = attribute_scores.slot_accuracies(predicted, labels, table, slots, counts)
    right, own, number = [], [], []
    for row, label in zip(predicted, labels, strict=True):
        left, _ = PAIRS[label]
        if label == UNSEEN[1] or left == 2:
            continue
        candidates = [k for k in range(PARTS) if k != 2]
        right.append(max(candidates, key=lambda k, row=row: row[k]) == left)
        own.append(label)
        number.append(counts[left])
    left = found["left"]
    assert left["class_averaged_top1"] == pytest.approx(
        mean_over_classes(right, own)[0]
    )
    assert left["rows"] == len(right) and left["chance"] == pytest.approx(1 / 5)
    for part in left["by_seen_classes"]:
        inside = [part["from"] <= k <= part["to"] for k in number]
        kept = [
            [x for x, i in zip(xs, inside, strict=True) if i] for xs in (right, own)
        ]
        assert part["rows"] == sum(inside)
        assert part["class_averaged_top1"] == pytest.approx(mean_over_classes(*kept)[0])
    assert sum(part["rows"] for part in left["by_seen_classes"]) == len(right)


def test_shared_parts_of_errors_and_their_chance_are_loops(rng):
    table = class_attributes.ClassTable(UNSEEN, VECTORS[UNSEEN].astype(float))
    labels, answers = rng.choice(UNSEEN, 50), rng.choice(UNSEEN, 50)
    found = attribute_scores.confusions(answers, labels, table)

    def common(a, b):
        return sum(x == y for x, y in zip(PAIRS[a], PAIRS[b], strict=True))

    wrong = [(t, a) for t, a in zip(labels, answers, strict=True) if t != a]
    assert found["errors"] == len(wrong)
    for one in found["shared"]:
        k = one["attributes"]
        share = np.mean([common(t, a) == k for t, a in wrong])
        chance = np.mean(
            [np.mean([common(t, c) == k for c in UNSEEN if c != t]) for t, _ in wrong]
        )
        assert (one["share"], one["chance"]) == pytest.approx((share, chance))
    assert sum(one["share"] for one in found["shared"]) == pytest.approx(1)


def test_an_evaluation_is_a_ridge_chosen_on_validation_classes(result):
    evaluation = made()
    x, y = rows_of(evaluation.train)
    shift, scale, centre = x.mean(0), x.std(0), VECTORS[SEEN].mean(0)

    def accuracy(strength, source, classes):
        z = (x - shift) / scale
        peer = Ridge(alpha=strength * np.square(z).sum()).fit(z, VECTORS[y])
        images, labels = rows_of(source)
        predicted = peer.predict((images - shift) / scale)
        answers = [
            max(classes, key=lambda c, p=p: cosine(p - centre, VECTORS[c] - centre))
            for p in predicted
        ]
        return mean_over_classes(np.equal(answers, labels), labels)

    found = [accuracy(s, evaluation.validation, HELD)[0] for s in evaluation.strengths]
    own = result["ridge"]
    assert own["validation"]["class_averaged_top1"] == pytest.approx(found)
    best = max(
        s for s, a in zip(evaluation.strengths, found, strict=True) if a == max(found)
    )
    assert own["chosen"]["setting"] == best
    for name, source in evaluation.unseen.items():
        mean, error = accuracy(best, source, UNSEEN)
        assert own["unseen"][name]["class_averaged_top1"] == pytest.approx(mean)
        assert own["unseen"][name]["standard_error"] == pytest.approx(error)
    assert own["unseen"]["new"]["chance"] == pytest.approx(1 / len(UNSEEN))
    assert own["unseen"]["new"]["class_averaged_top1"] > 0.5
    assert result["softmax"]["unseen"]["new"]["class_averaged_top1"] > 0.5
    assert result["slots"]["new"]["right"]["class_averaged_top1"] > 0.5
    both = own["generalised"]["new"]
    assert both["H"] > both["without_offset"]["H"] and 0 < both["area"] < 1
    assert both["u"] <= own["unseen"]["new"]["class_averaged_top1"]


def test_a_result_has_columns_errors_a_table_figures_and_its_protocol(result, tmp_path):
    assert {*result.columns} == {
        *("ridge, old %", "ridge, new %", "ridge H, new %"),
        *("softmax, old %", "softmax, new %", "softmax H, new %"),
    }
    assert result.standard_errors.keys() == result.columns.keys()
    value = result["ridge"]["unseen"]["new"]["class_averaged_top1"]
    assert f"ridge, new {100 * value:.2f} %" in result.summary
    head, body = AttributeZeroShot.comparison_table({"run": result})
    assert len(body) == 4 and {len(line) for line in body} == {len(head)}
    assert "class-averaged" in head[1] and "image-averaged" in head[2]
    figures = AttributeZeroShot.figures(result, result.figure_data)
    assert figures.keys() == {"seen_classes", "shared_parts"}
    assert all(png(figure)[:4] == b"\x89PNG" for figure in figures.values())
    path = write_result(tmp_path, "1-zero", result, made())
    assert json.loads(path.read_text())["protocol"]["fitted_on"] == "train"
    assert "cosine" in result["protocol"]["ridge"]["answer"]
    assert result["protocol"]["encoder"].startswith("what it was trained on is not")


def test_nothing_is_chosen_on_the_unseen_classes(result):
    shuffled = source(UNSEEN, 3)
    shuffled._columns["image"] = shuffled._columns["image"][::-1].copy()
    other = run(made(unseen={"old": shuffled, "new": shuffled}))
    for name in CLASSIFIERS:
        a, b = result[name], other[name]
        assert a["chosen"] == b["chosen"] and a["validation"] == b["validation"]
        offsets = [one["generalised"]["new"]["offset"] for one in (a, b)]
        assert offsets[0] == offsets[1]
        assert a["unseen"]["new"] != b["unseen"]["new"]


def test_values_beyond_one_are_scaled_to_unit_length_and_real_ones_have_no_parts():
    rng = np.random.default_rng(5)
    real = rng.uniform(0, 100, VECTORS.shape) * (1 + VECTORS)
    tasks = TASKS | {"attributes": {"kind": "regression"}}
    options = {"vectors": real, "tasks": tasks}
    result = run(
        made(
            train=source(SEEN, **options),
            validation=source(HELD, 1, **options),
            unseen={"new": source(UNSEEN, 3, **options)},
            seen={},
        )
    )
    scaling = result["protocol"]["attributes"]["scaled"]
    assert "divided by its length" in scaling and "not within 0 .. 1" in scaling
    assert "slots" not in result and "confusions" not in result["ridge"]
    assert "not all 0 or 1" in result.summary and "ridge H" not in result.summary


def test_an_attribute_that_all_classes_share_is_noted():
    vectors = np.concatenate([VECTORS, np.ones_like(VECTORS[:, :2])], axis=1)
    options = {"vectors": vectors, "tasks": {"label": TASKS["label"]}}
    options["tasks"] |= {"attributes": {"kind": "multi-label"}}
    result = run(
        made(
            train=source(SEEN, **options),
            validation=source(HELD, **options),
            unseen={"new": source(UNSEEN, **options)},
            seen={},
        )
    )
    assert "2 of 14 attributes are the same for every class" in result.summary
    assert "names no slots" in result.summary


def with_vector(number, vector, classes=UNSEEN, **options):
    """A source in which one class has another vector."""
    vectors = VECTORS.astype(np.float32)
    vectors[number] = vector
    return source(classes, vectors=vectors, **options)


def lone():
    """The class with left part 0 and right part 0 is the only one with left part 0."""
    keep = [c for c in SEEN if PAIRS[c][0] != 0]
    return source(keep)


def several(vectors):
    one = source(UNSEEN)
    one._columns["attributes"] = vectors[: len(one)]
    return one


def wide(classes, extra):
    vectors = np.concatenate([VECTORS, np.zeros((len(VECTORS), extra), np.uint8)], 1)
    return source(classes, vectors=vectors)


SAME = {"label": TASKS["label"], "attributes": {"kind": "class", "classes": 2}}


@pytest.mark.parametrize(
    "change, why",
    [
        (
            {"unseen": {"new": with_vector(0, 0)}},
            r"class '0\+0' of unseen new has attributes none of which is set",
        ),
        (
            {"unseen": {"new": with_vector(0, np.nan)}},
            r"'0\+0' of unseen new has attributes with values that are not finite",
        ),
        (
            {"validation": with_vector(HELD[0], VECTORS[SEEN[0]], HELD)},
            r"classes '0\+1', '0\+3' have one and the same attributes",
        ),
        (
            {"train": lone(), "seen": {}},
            r"class(es)? .*'0\+3'.* of validation needs attributes .*l0",
        ),
        (
            {"unseen": {"new": wide(UNSEEN, 2)}},
            "12 attributes in train, but 14 in unseen",
        ),
        (
            {"train": source([*SEEN, UNSEEN[0]])},
            r"class '0\+0' of unseen old is also in train: a class that training",
        ),
        ({"train": source([*SEEN, HELD[0]])}, "of validation is also in train"),
        (
            {"validation": source([*HELD, UNSEEN[1]])},
            r"class '0\+5' of unseen old is also in validation, which chooses",
        ),
        ({"seen": {"new": source(UNSEEN)}}, "of seen new is not in train"),
        (
            {"learnt_from": [source(SEEN), source(CLASSES)]},
            r"the encoder was trained on classes '0\+0'.* of unseen old: no zero-shot",
        ),
        (
            {"learnt_from": [source([*SEEN, HELD[0]])]},
            "the encoder was trained on class .* of validation: no zero-shot",
        ),
        (
            {"unseen": {"new": several(np.random.default_rng(0).random((99, 12)))}},
            "that differ from row to row",
        ),
        (
            {"seen": {"new": with_vector(SEEN[0], VECTORS[0], SEEN)}},
            "other attributes in seen new than in another split",
        ),
        (
            {"views": Observed(**VIEWS.__dict__ | {"targets": ("label",)})},
            r"views pass on no target 'attributes'; set its views.targets",
        ),
        (
            {"train": source(SEEN, tasks={"label": TASKS["label"]})},
            "train source has no target 'attributes', only label",
        ),
        ({"train": source(SEEN, tasks=SAME)}, "of kind 'class', not 'multi-label'"),
        ({"unseen": {}}, "unseen must name its sources"),
        ({"seen": {"other": source(SEEN)}}, r"seen has \['other'\]"),
        ({"features": "x"}, "features is 'x'"),
        ({"strengths": (1.0, 0.1)}, "strengths are .* ascending"),
    ],
)
def test_bad_input_is_refused_with_what_and_where(change, why):
    with pytest.raises(InputError, match=why):
        run(made(**change))


def test_what_an_encoder_saw_is_said_as_far_as_it_is_known():
    def said(sources):
        return run(made(learnt_from=sources, seen={}))["protocol"]["encoder"]

    assert said([source(SEEN), source(SEEN)]).startswith("trained on none of")
    without = source(SEEN, tasks={"attributes": TASKS["attributes"]})
    unlabelled = source([*SEEN[:-1], -1])  # a row without a class may show any
    for unknown in (None, [source(SEEN), without], [unlabelled]):
        assert "not known" in said(unknown)


def images(rng, size=20, channels=1):
    return rng.integers(0, 256, (12, size, size, channels), np.uint8)


def batch_of(pixels):
    return {"views": {"image": jnp.asarray(pixels)[:, None]}}


def test_pooled_pixels_and_gradients_are_loops(rng):
    pixels = images(rng, size=21)
    found = jax.jit(handcrafted.pooled)(batch_of(pixels))["image"].h
    assert found.shape == (12, 1, 121)
    unit = pixels[..., 0] / 255
    cells = [np.array_split(np.arange(21), 11)] * 2
    # Of an odd side one region has one row: which one is a matter of rounding.
    assert float(found[0, 0, 0]) == pytest.approx(unit[0, :2, :2].mean(), abs=1e-6)
    assert len(cells[0][-1]) == 1
    pixels = images(rng, size=16, channels=3)
    found = np.asarray(jax.jit(handcrafted.hog)(batch_of(pixels))["image"].h)
    assert found.shape == (12, 1, 512)
    unit = np.pad(pixels[0] / 255, ((1, 1), (1, 1), (0, 0)), mode="edge")
    cells = np.zeros((10, 10, 8))  # with a border of empty ones
    weights = [1.75, *[2.0] * 6, 1.75]  # a cell at the edge has fewer neighbours
    for row, column in itertools.product(range(16), repeat=2):
        down = unit[row + 2, column + 1] - unit[row, column + 1]
        right = unit[row + 1, column + 2] - unit[row + 1, column]
        channel = np.argmax(down**2 + right**2)
        angle = np.arctan2(down[channel], right[channel]) % np.pi / np.pi * 8
        size = np.hypot(down[channel], right[channel])
        # The middles of cells are 2 pixels apart: a pixel is a quarter from one.
        for r, across in ((row // 2, 0.75), (row // 2 + (-1) ** (row % 2 + 1), 0.25)):
            for c, along in (
                (column // 2, 0.75),
                (column // 2 + (-1) ** (column % 2 + 1), 0.25),
            ):
                if 0 <= r < 8 and 0 <= c < 8:
                    vote = size * across * along / weights[r] / weights[c]
                    cells[1 + r, 1 + c, int(angle) % 8] += vote * (1 - angle % 1)
                    cells[1 + r, 1 + c, (int(angle) + 1) % 8] += vote * (angle % 1)
    slow = [
        cells[r, c]
        / np.sqrt(np.sum(cells[r - 1 : r + 2, c - 1 : c + 2] ** 2) + 0.05**2)
        for r, c in itertools.product(range(1, 9), repeat=2)
    ]
    np.testing.assert_allclose(found[0, 0], np.ravel(slow), atol=1e-5)


def test_patch_words_are_distances_to_whitened_centres_and_repeat(rng):
    pixels = images(rng)
    words = handcrafted.learn_words(pixels, number=10, seed=3)
    again = handcrafted.learn_words(pixels, number=10, seed=3)
    np.testing.assert_array_equal(words.centres, again.centres)
    describe = functools.partial(handcrafted.patch_words, words=words, regions=5)
    found = jax.jit(describe)(batch_of(pixels))
    found = np.asarray(found["image"].h[0, 0]).reshape(5, 5, 10)
    unit = pixels[0, ..., 0] / 255
    slow = np.zeros((5, 5, 10))
    for row, column in itertools.product(range(15), repeat=2):
        patch = unit[row : row + 6, column : column + 6].ravel()
        patch = (patch - patch.mean()) / np.sqrt(patch.var() + 10 / 255**2)
        white = (patch - words.mean) @ words.whitening
        apart = np.linalg.norm(white - words.centres, axis=1)
        slow[row // 3, column // 3] += np.maximum(apart.mean() - apart, 0) / 9
    np.testing.assert_allclose(found, slow, atol=1e-4)
    with pytest.raises(InputError, match="larger images than 4 x 4"):
        handcrafted.learn_words(images(rng, size=4))


def test_references_are_measured_after_the_untrained_model(rng):
    pixels = InMemory({"image": images(rng)})
    views = Generated(1, ResizeCenterCrop(size=16), targets=())
    found = handcrafted.references(pixels, views)
    assert {*found} == {"pooled", "hog", "patch_words"}
    shapes = {
        k: f(batch_of(images(rng, 16)))["image"].h.shape for k, f in found.items()
    }
    assert shapes == {
        "pooled": (12, 1, 64),
        "hog": (12, 1, 512),
        "patch_words": (12, 1, 2304),
    }
    assert handcrafted.references(source(SEEN), VIEWS) == {}  # no images

    class Recorder:
        raw = staticmethod(lambda batch: batch)
        references = staticmethod(lambda: found)

        def __call__(self, model, mesh):
            return model

    measured = dict(evaluating._measured(Recorder(), 7, "trained", "untrained", None))
    assert [*measured] == [7, "random", "pixels", "pooled", "hog", "patch_words"]
    assert measured["hog"] is found["hog"]
    assert [*dict(evaluating._measured(Recorder(), 7, "trained", None, None))] == [7]


def write_glyphs(folder, boxes):
    """A prepared data set: a character a record, two fonts a field each."""
    rng = np.random.default_rng(0)
    classes = {"train": SEEN, "validation": HELD, "test": UNSEEN}
    tasks = TASKS | ({n: {"kind": n} for n in ("boxes", "parts")} if boxes else {})
    records.write(
        folder,
        {
            split: [
                {
                    **{f: rng.integers(0, 256, (9, 9), np.uint8) for f in ("a", "b")},
                    "label": int(c),
                    "attributes": VECTORS[c],
                    **{n: v for n, v in BOXED.items() if boxes},
                }
                for c in own
            ]
            for split, own in classes.items()
        },
        version="1",
        targets=tasks,
        source="",
        licence="",
    )


BOXED = {"boxes": np.zeros((2, 4), np.float32), "parts": np.array([0, 6])}
FILE = f"{Path(__file__).parent.parent}/configs/evaluations/zero_shot_attributes.py"


def test_the_file_of_evaluations_reads_the_splits_of_the_runs_data(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))
    write_glyphs(tmp_path / "glyphs", boxes=True)
    write_glyphs(tmp_path / "bare", boxes=False)
    stored = {
        "target": "polyview.data.sources.array_record:ArrayRecord",
        "name": "glyphs",
        "split": "train",
    }
    rows = {
        "target": "polyview.data.sources.unstacked:Unstacked",
        "source": stored,
        "fields": ["a"],
    }
    glyph = {"target": "polyview.data.glyphs:Glyph", "size": 8}
    run = {"source": rows, "views": {"augment": glyph}}
    specs = evaluations_of(f"{FILE}:fonts=a,new_fonts=b,dimensions=3", run)
    made = evaluating.build_evaluations(specs)
    assert {*made} == {"zero_shot_attributes", "compositionality", "evidence"}
    zero = made["zero_shot_attributes"]
    assert {*zero.unseen} == {"seen fonts", "new fonts"} and {*zero.seen} == {
        "new fonts"
    }
    assert repr(zero.train).endswith(", a)")
    assert repr(zero.seen["new fonts"]).endswith(", b)")
    lengths = [len(s) for s in (zero.train, zero.validation, zero.unseen["seen fonts"])]
    assert lengths == [len(SEEN), len(HELD), len(UNSEEN)]
    assert made["compositionality"].dimensions == 3
    upright = made["evidence"].upright(
        made["evidence"].test[0], np.random.default_rng(0)
    )
    assert upright["views"]["image"].shape == (1, 8, 8, 1)
    assert {*upright["targets"]} == {"label", "attributes", "boxes", "parts"}
    assert {*evaluations_of(f"{FILE}:data=bare,fonts=a,new_fonts=b", run)} == {
        "zero_shot_attributes",
        "compositionality",
    }
    for argument, source, why in (
        ("", {"target": "x:y"}, "no splits of seen and unseen classes; give data="),
        ("new_fonts=b", stored, "new_fonts=... needs fonts=..."),
    ):
        with pytest.raises(InputError, match=why):
            evaluations_of(f"{FILE}:{argument}", run | {"source": source})
    with pytest.raises(InputError, match="views have no augment"):
        evaluations_of(f"{FILE}:fonts=a", {"source": stored})
