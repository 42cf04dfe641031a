"""Classes of parts in no two splits, which matching templates finds and pixels not."""

import hashlib
import pickle
from itertools import product

import numpy as np
import pytest

from polyview.data.parts import CLASSES, COLOURS, PARTS, SHAPES, SPLITS, Parts, draw
from polyview.errors import InputError, OutOfRange

SHIFTS = list(product((-2, -1, 0, 1, 2), repeat=2))


def images(source):
    return np.stack([source[i]["image"] for i in range(len(source))])


def test_unseen_classes_are_new_pairs_of_parts_that_training_has():
    assert len(PARTS) == len(set(PARTS)) == 20
    names = Parts("test", 1).targets["label"]["names"]
    assert len(set(names)) == 60 == len({frozenset(pair) for pair in CLASSES.tolist()})
    uses = {}
    for split, (classes, _) in SPLITS.items():
        uses[split] = dict.fromkeys(PARTS, 0)
        for label in classes:
            first, second = names[label].split(", ")
            assert first.split()[0] != second.split()[0]  # the colour
            assert first.split()[1] != second.split()[1]  # the shape
            uses[split][first] += 1
            uses[split][second] += 1
    assert min(uses["train"].values()) >= 3
    assert min(uses["test"].values()) >= 1 and max(uses["test"].values()) <= 3
    train, validation, test = (set(SPLITS[s][0]) for s in list(SPLITS)[:3])
    assert (len(train), len(validation), len(test)) == (32, 8, 20)
    assert train | validation | test == set(range(60))
    assert set(SPLITS["seen_test"][0]) == train


def test_each_row_has_the_label_and_the_attributes_of_its_class():
    for split, (classes, _) in SPLITS.items():
        source = Parts(split, 70)
        task = source.targets["attributes"]
        assert task == {"kind": "multi-label", "classes": 20, "names": list(PARTS)}
        assert source.targets["label"]["classes"] == 60
        labels = [source[i]["label"] for i in range(70)]
        assert labels == [classes[i % len(classes)] for i in range(70)]
        assert source.labels.tolist() == labels
        for i in range(70):
            example = source[i]
            on = np.flatnonzero(example["attributes"])
            named = [task["names"][k] for k in on]
            assert ", ".join(named) == source.targets["label"]["names"][labels[i]]
            assert example["attributes"].dtype == np.uint8
            assert example["image"].shape == (32, 32, 3)
            assert example["image"].dtype == np.uint8
    with pytest.raises(IndexError):
        source[70]


def test_a_row_depends_on_split_seed_and_number_alone():
    long = images(Parts("train", 600))
    np.testing.assert_array_equal(images(Parts("train", 10)), long[:10])
    later = draw(CLASSES[np.arange(510, 520) % 32], 0, 0, 510)
    np.testing.assert_array_equal(later, long[510:520])
    others = [long[:32], images(Parts("seen_test", 32)), images(Parts("train", 32, 1))]
    for a, b in (0, 1), (0, 2), (1, 2):
        assert not (others[a] == others[b]).all(axis=(1, 2, 3)).any()
    assert len(np.unique(long.reshape(600, -1), axis=0)) == 600


def test_images_are_the_same_on_every_machine():
    digest = hashlib.sha256(images(Parts("test", 16, seed=5)).tobytes()).hexdigest()
    assert digest[:16] == "d60d31852567e336"


def shown(shape, radius):
    """A shape on the torus, around the pixel (0, 0), by loops: bool[32, 32]."""
    mask = np.zeros((32, 32), bool)
    for i, j in product(range(-16, 16), repeat=2):
        y, x = abs(i) / radius, abs(j) / radius
        mask[i, j] = {
            "ring": 0.3 < x * x + y * y < 1,
            "post": x < 0.45 and y < 1.05,
            "beam": y < 0.45 and x < 1.05,
            "cross": min(x, y) < 0.3 and max(x, y) < 1,
        }[shape]
    return mask


def test_matching_templates_of_parts_finds_the_unseen_classes():
    """The labels are true, and no part is hidden or cut at the edges of the torus."""
    source = Parts("test", 200)
    pixels = images(source) / 255
    scores = np.zeros((200, len(PARTS)))
    for (s, shape), radius in product(enumerate(SHAPES), (5.2, 5.8, 6.4)):
        template = shown(shape, radius)
        around = sum(np.roll(template, shift, axis=(0, 1)) for shift in SHIFTS) > 0
        weight = template / template.sum() - (around & ~template) / 60
        for c, colour in enumerate(COLOURS.values()):
            near = abs(pixels - 0.95 * np.array(colour)).max(axis=-1) < 0.15
            spectrum = np.fft.fft2(near) * np.conj(np.fft.fft2(weight))
            found = np.fft.ifft2(spectrum).real.max(axis=(1, 2))
            place = s * len(COLOURS) + c
            scores[:, place] = np.maximum(scores[:, place], found)
    classes = np.array(SPLITS["test"][0])
    guess = classes[scores[:, CLASSES[classes]].sum(-1).argmax(1)]
    assert (guess == source.labels).mean() > 0.98
    true = np.take_along_axis(scores, CLASSES[source.labels], axis=1)
    assert (true > 0.4).mean() > 0.98


def test_every_pixel_is_as_likely_to_show_a_part():
    """So no fixed weights of pixels, whose sum is zero, see parts."""
    source = Parts("train", 6400)
    away = abs(images(source) / 255 - 0.5).max(axis=-1) > 0.1
    coverage = away.mean(axis=0)
    error = np.sqrt(coverage.mean() * (1 - coverage.mean()) / len(source))
    assert 0.2 < coverage.mean() < 0.4
    assert coverage.std() < 1.2 * error


def test_pixels_and_colours_do_not_name_unseen_classes():
    """Ridge regression from pixels, pooled over 2 x 2, stays near chance (.05)."""

    def pooled(source):
        x = images(source).reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)) / 255
        return x.reshape(len(x), -1)

    train, test = Parts("train", 4000), Parts("test", 1000)
    x, y = pooled(train), np.zeros((4000, len(PARTS)))
    np.put_along_axis(y, CLASSES[train.labels], 1, axis=1)
    mean = x.mean(axis=0)
    x, y = x - mean, y - y.mean(axis=0)
    accuracy = {}
    classes = np.array(SPLITS["test"][0])
    for strength in 10, 100, 1000:
        weights = np.linalg.solve(x.T @ x + strength * np.eye(768), x.T @ y)
        scores = ((pooled(test) - mean) @ weights)[:, CLASSES[classes]].sum(-1)
        accuracy[strength] = (classes[scores.argmax(1)] == test.labels).mean()
    assert max(accuracy.values()) < 0.17, accuracy


def test_the_digest_changes_with_the_images():
    made = [
        Parts("train", 8),
        Parts("train", 9),
        Parts("train", 8, 1),
        Parts("seen_test", 8),
    ]
    assert len({source.digest for source in made}) == 4
    copied = pickle.loads(pickle.dumps(made[0]))
    assert copied.digest == made[0].digest == Parts("train", 8).digest
    assert repr(made[1]) == "Parts('train': 9)"


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="no split 'tests' of parts.*'test'"):
        Parts("tests")
    with pytest.raises(OutOfRange, match="size=0"):
        Parts("test", 0)
    with pytest.raises(OutOfRange, match="seed=-1"):
        Parts("test", 1, seed=-1)
