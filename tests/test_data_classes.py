"""Some classes of a source, wrong labels, and images made foreign."""

import numpy as np
import pytest

from polyview.data.sources.classes import NoisyLabels, SomeClasses
from polyview.data.sources.foreign import Inverted, Noise, WithChannels
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord, class_task
from polyview.errors import InputError, OutOfRange

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def source(rng):
    images = rng.integers(0, 256, (40, 3, 5, 1)).astype(np.uint8)
    labels = rng.integers(0, 4, 40)
    labels[7] = -1  # of no class
    return InMemory({"image": images, "label": labels}, {"label": class_task(NAMES)})


class Broken(InMemory):
    """Row 3 cannot be read."""

    def __getitem__(self, index):
        if index == 3:
            raise CorruptRecord("broken")
        return super().__getitem__(index)


def test_classes_are_kept_and_renumbered(source):
    some = SomeClasses(source, [3, 1])
    true = [source[i]["label"] for i in range(40)]
    rows = [i for i, label in enumerate(true) if label in (3, 1)]
    assert len(some) == len(rows)
    assert some.targets["label"] == class_task(["dog", "bee"])
    read = [some[i] for i in range(len(some))]
    assert [one["label"] for one in read] == [[3, 1].index(true[i]) for i in rows]
    for row, one in zip(rows, some.__getitems__(range(len(some))), strict=True):
        np.testing.assert_array_equal(one["image"], source[row]["image"])
    with pytest.raises(IndexError):
        some[len(some)]


def test_rows_that_cannot_be_read_are_left_out(source):
    columns = {key: [source[i][key] for i in range(40)] for key in ("image", "label")}
    columns["label"][3] = 0
    broken = Broken(columns, source.targets)
    kept = [i for i, label in enumerate(columns["label"]) if label == 0 and i != 3]
    assert len(SomeClasses(broken, [0])) == len(kept)


@pytest.mark.parametrize(
    ("keep", "message"),
    [([], "at least one"), ([1, 1], "different"), ([4], "classes 0 .. 3")],
)
def test_classes_that_do_not_exist_are_refused(source, keep, message):
    with pytest.raises(InputError, match=message):
        SomeClasses(source, keep)
    with pytest.raises(InputError, match="no target 'labels'.*'label'"):
        SomeClasses(source, [0], label="labels")


def test_a_share_of_labels_is_wrong_and_always_the_same_ones():
    labels = np.arange(8000) % 4
    source = InMemory({"label": labels}, {"label": class_task(NAMES)})
    noisy = NoisyLabels(source, 0.2, seed=1)
    found = np.array([one["label"] for one in noisy.__getitems__(range(8000))])
    wrong = found != labels
    assert abs(wrong.mean() - 0.2) < 0.015
    shifts = np.bincount((found - labels)[wrong] % 4, minlength=4) / wrong.sum()
    assert shifts[0] == 0 and abs(shifts[1:] - 1 / 3).max() < 0.04
    assert [noisy[i]["label"] for i in (5, 9, 77)] == found[[5, 9, 77]].tolist()
    other = NoisyLabels(source, 0.2, seed=2)
    assert any(other[i]["label"] != found[i] for i in range(100))
    assert (NoisyLabels(source, 0.0)[3]["label"], noisy.targets) == (3, source.targets)
    with pytest.raises(OutOfRange):
        NoisyLabels(source, 1.5)


def test_an_unknown_label_stays_unknown(source):
    assert NoisyLabels(source, 1.0)[7]["label"] == -1


def test_foreign_images(source):
    inverted, noise = Inverted(source), Noise(source, seed=3)
    np.testing.assert_array_equal(inverted[4]["image"], 255 - source[4]["image"])
    assert inverted.targets == noise.targets == {}
    assert list(inverted[0]) == ["image"] and len(noise) == 40
    pixels = np.concatenate([noise[i]["image"].ravel() for i in range(40)])
    assert abs(pixels.mean() - 127.5) < 12 and pixels.dtype == np.uint8
    np.testing.assert_array_equal(noise[4]["image"], noise[4]["image"])
    assert (noise[4]["image"] != noise[5]["image"]).any()


def test_channels_are_changed(source):
    colour = WithChannels(source, 3)
    assert colour[0]["image"].shape == (3, 5, 3)
    assert (colour[0]["image"] == source[0]["image"]).all()
    assert colour[0]["label"] == source[0]["label"]
    red = InMemory({"image": np.array([[[[255, 0, 0, 9]]]], np.uint8)})
    assert WithChannels(red, 1)[0]["image"].tolist() == [[[76]]]  # .299 of 255
    flat = InMemory({"image": np.full((1, 2, 2), 7, np.uint8)})
    assert WithChannels(flat, 3)[0]["image"].shape == (2, 2, 3)
    with pytest.raises(InputError, match="channels=2"):
        WithChannels(source, 2)


@pytest.mark.parametrize(
    "made",
    [
        lambda s: SomeClasses(s, [0, 1]),
        lambda s: NoisyLabels(s, 0.5),
        lambda s: Inverted(s),
        lambda s: Noise(s),
        lambda s: WithChannels(s, 1),
    ],
)
def test_a_digest_follows_the_source(source, made):
    assert made(source).digest == ""  # as the source has none
    source.digest = "a"
    first = made(source).digest
    source.digest = "b"
    assert first and made(source).digest != first
