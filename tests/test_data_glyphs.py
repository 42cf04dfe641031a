"""Glyphs are drawn anew within the ranges given; fonts become views, or rows."""

import pickle
from collections import Counter

import cv2
import numpy as np
import pytest

from polyview.config.trust import allow_list, import_target
from polyview.data import pipeline
from polyview.data.drawn import Drawn
from polyview.data.glyphs import Glyph, Upright
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord
from polyview.data.sources.unstacked import Unstacked
from polyview.data.views import Generated
from polyview.errors import InputError, OutOfRange

STILL = {"scale": (1.0, 1.0), "rotation": 0.0, "shear": 0.0, "shift": 0.0}
CLEAN = STILL | {"lines": 0, "noise": 0.0}


def block(left, top, right, bottom, side=64):
    """A black image with one white block; edges in shares of a side."""
    image = np.zeros((side, side), np.uint8)
    edges = [round(side * share) for share in (left, top, right, bottom)]
    image[edges[1] : edges[3], edges[0] : edges[2]] = 255
    return image


def middle(view):
    """The centre of the ink, (x, y) in shares of a side."""
    weights = view[..., 0] / view.sum(dtype=float)
    centres = (np.arange(len(view)) + 0.5) / len(view)
    return np.array([weights.sum(0) @ centres, weights.sum(1) @ centres])


@pytest.mark.parametrize("side", [20, 64, 200])  # smaller and larger than the view
def test_an_upright_view_keeps_every_place_of_the_image(rng, side):
    box = (0.25, 0.5, 0.75, 0.95)
    views = Upright(40)(block(*box, side), rng, 2)
    assert views.shape == (2, 40, 40, 1) and views.dtype == np.uint8
    np.testing.assert_array_equal(views[0], views[1])
    expected = block(*box, 40)[..., None]
    inside = cv2.erode(expected, np.ones((3, 3)))[..., None] > 0
    outside = cv2.dilate(expected, np.ones((5, 5)))[..., None] == 0
    assert views[0][inside].min() > 250 and views[0][outside].max() < 5
    np.testing.assert_allclose(middle(views[0]), (0.5, 0.725), atol=0.006)
    np.testing.assert_array_equal(Glyph(40, **CLEAN)(block(*box, side), rng, 2), views)


def test_an_encoded_glyph_is_the_same_as_its_pixels(rng):
    image = rng.integers(0, 256, (64, 64), np.uint8)
    png = cv2.imencode(".png", image)[1].tobytes()
    expected = Upright(40)(image, rng, 1)
    np.testing.assert_array_equal(Upright(40)(png, rng, 1), expected)
    np.testing.assert_array_equal(Upright(40)(image[..., None], rng, 1), expected)


def test_scale_is_the_side_of_the_image_in_shares_of_the_view(rng):
    full = np.full((64, 64), 255, np.uint8)
    glyph = Glyph(40, **CLEAN | {"scale": (0.4, 0.8)})
    sides = np.sqrt(glyph(full, rng, 200).mean((1, 2, 3)) / 255)
    assert 0.39 < sides.min() < 0.42 and 0.78 < sides.max() < 0.81
    assert abs(np.median(sides) - 0.6) < 0.04  # uniform


def test_shifts_move_the_middle_and_reach_both_ends(rng):
    dot = block(0.45, 0.45, 0.55, 0.55)
    views = Glyph(40, **CLEAN | {"shift": 0.2})(dot, rng, 300)
    moved = np.stack([middle(view) for view in views]) - 0.5
    assert np.abs(moved).max() < 0.21
    assert (moved.min(0) < -0.17).all() and (moved.max(0) > 0.17).all()
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.2


def test_turns_and_shears_are_within_their_range(rng):
    """A turn moves what is above the middle to the side, a shear moves only that."""
    above, right = block(0.4, 0.0, 0.6, 0.2), block(0.8, 0.4, 1.0, 0.6)

    def angles(ranges, image, axis):
        views = Glyph(80, **CLEAN | {"scale": (0.6, 0.6)} | ranges)(image, rng, 200)
        moved = np.stack([middle(view) for view in views]) - 0.5
        return np.rad2deg(np.arctan2(moved[:, axis], np.abs(moved[:, 1 - axis])))

    for image, axis in ((above, 0), (right, 1)):
        turned = angles({"rotation": 30.0}, image, axis)
        assert -31 < turned.min() < -26 and 26 < turned.max() < 31
    slanted = np.tan(np.deg2rad(angles({"shear": 0.5}, above, 0)))
    assert -0.52 < slanted.min() < -0.45 and 0.45 < slanted.max() < 0.52
    assert np.abs(angles({"shear": 0.5}, right, 1)).max() < 0.5


def test_lines_and_noise_are_added_to_what_is_drawn(rng):
    blank = np.zeros((64, 64), np.uint8)
    assert not Glyph(40, **CLEAN)(blank, rng, 5).any()
    ink = [
        (Glyph(40, **CLEAN | {"lines": n})(blank, rng, 100) > 127).mean()
        for n in (1, 2)
    ]
    assert 0.005 < ink[0] < 0.06 and 1.6 * ink[0] < ink[1] < 2.2 * ink[0]
    grey = np.full((64, 64), 128, np.uint8)
    noisy = Glyph(40, **CLEAN | {"noise": 0.1})(grey, rng, 200)[:, 5:-5, 5:-5]
    assert abs(noisy.std() - 25.5) < 0.5 and abs(noisy.mean() - 128) < 0.5


def test_views_are_a_function_of_the_generator_and_differ():
    image = block(0.2, 0.3, 0.7, 0.9)
    one, two, other = (
        Glyph(40)(image, np.random.default_rng(seed), 3) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert (one[0] != one[1]).any() and (one != other).any()


@pytest.mark.parametrize("shape", [(8, 8, 3), (8,), (0, 8), (8, 8, 1, 1)])
def test_what_is_no_glyph_counts_as_corrupt(rng, shape):
    with pytest.raises(CorruptRecord, match=r"\[h, w\] or \[h, w, 1\]"):
        Glyph(40)(np.zeros(shape, np.uint8), rng, 1)


@pytest.mark.parametrize(
    "ranges",
    [
        {"size": 0},
        {"scale": (0.0, 1.0)},
        {"rotation": -1.0},
        {"shear": 2.0},
        {"shift": -0.1},
        {"lines": 1.5},
        {"noise": "x"},
    ],
)
def test_a_number_out_of_range_is_refused(ranges):
    with pytest.raises(OutOfRange, match=next(iter(ranges))):
        Glyph(**ranges)


def same(image, rng, m):
    """No augmentation; the images of these tests are one pixel."""
    assert m == 1
    return np.full((1, 1, 1, 1), image, np.uint8)


FONTS = ("a", "b", "c")


def test_views_are_drawn_without_replacement_from_fields_that_are_there(rng):
    example = {"a": 1, "b": None, "c": 3, "d": 4, "other": 5, "label": 7}
    views = Drawn(2, same, ("a", "b", "c", "d", "e"))
    drawn = [views(example, rng) for _ in range(300)]
    pairs = Counter(tuple(one["views"]["image"].ravel().tolist()) for one in drawn)
    assert {frozenset(pair) for pair in pairs} == {
        frozenset(pair) for pair in ((1, 3), (1, 4), (3, 4))
    }
    assert len(pairs) == 6 and min(pairs.values()) > 25  # 50 each
    assert drawn[0]["present"]["image"].tolist() == [True, True]
    assert int(drawn[0]["targets"]["label"]) == 7


def test_an_image_is_drawn_again_only_after_all_have_been(rng):
    example = {"a": 1, "b": 2, "c": 3}
    views = Drawn(5, same, FONTS, targets=(), name="glyph")
    for _ in range(20):
        drawn = views(example, rng)["views"]["glyph"].ravel().tolist()
        assert sorted(drawn[:3]) == [1, 2, 3] and drawn[3:] == drawn[:2]


class Lazy:
    """A sequence that records which of its images are read."""

    def __init__(self, values):
        self.values, self.read = values, []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        self.read.append(index)
        return self.values[index]


def test_of_a_sequence_the_first_is_always_drawn_and_few_are_read(rng):
    views, others = Drawn(3, same, targets=()), Counter()
    for _ in range(300):
        images = Lazy(list(range(5)))
        drawn = views({"images": images}, rng)["views"]["image"].ravel().tolist()
        assert images.read == drawn and drawn[0] == 0 and len(set(drawn)) == 3
        others.update(drawn[1:])
    assert set(others) == {1, 2, 3, 4} and min(others.values()) > 100  # 150 each
    alone = views({"images": [9]}, rng)["views"]["image"].ravel().tolist()
    assert alone == [9, 9, 9]


def test_an_example_without_images_and_wrong_fields_are_refused(rng):
    with pytest.raises(InputError, match="none of the views a, b"):
        Drawn(1, same, ("a", "b"))({"a": None, "label": 0}, rng)
    with pytest.raises(InputError, match="none of the views images"):
        Drawn(1, same)({"images": [], "label": 0}, rng)
    with pytest.raises(InputError, match="no field 'images', only a"):
        Drawn(1, same)({"a": 1}, rng)
    with pytest.raises(InputError, match="write a list"):
        Drawn(1, same, "a")
    with pytest.raises(OutOfRange, match="m=0"):
        Drawn(0, same)


class Counted(InMemory):
    """Two fonts of three characters; counts what is read in one call."""

    digest = "1"

    def __init__(self, a=(10, 20, 30)):
        columns = {"a": a, "b": (11, 21, 31), "label": (0, 1, 2)}
        task = {"kind": "class", "classes": 3}
        super().__init__(columns, {"label": task})
        self.read = []

    def __getitems__(self, indices):
        self.read.append(list(indices))
        return [self[index] for index in indices]


def test_each_view_of_an_example_becomes_a_row():
    rows = Unstacked(Counted(), ["a", "b"])
    assert len(rows) == 6
    found = [rows[index] for index in range(6)]
    assert [row["image"] for row in found] == [10, 11, 20, 21, 30, 31]
    assert [row["view"] for row in found] == [0, 1, 0, 1, 0, 1]
    assert found[3] == {"label": 1, "image": 21, "view": 1}
    assert rows.targets["label"] == {"kind": "class", "classes": 3}
    assert rows.targets["view"]["names"] == ["a", "b"]
    with pytest.raises(IndexError):
        rows[6]
    some = Unstacked(Counted(), ["b"], name="glyph")
    assert some[2] == {"a": 30, "label": 2, "glyph": 31, "view": 0}
    assert "Counted" not in repr(some) and "InMemory(a, b, label: 3), b" in repr(some)


def test_rows_of_one_example_are_read_once_and_may_be_shared_by_processes():
    source = Counted()
    rows = Unstacked(source, ["a", "b"])
    wanted = [4, 0, 5, 1, 4]
    assert rows.__getitems__(wanted) == [rows[index] for index in wanted]
    assert source.read == [[2, 0]]
    slow = Unstacked(InMemory({"a": (1, 2), "b": (3, 4)}), ["a", "b"])
    assert [row["image"] for row in slow.__getitems__([3, 0])] == [4, 1]
    assert pickle.loads(pickle.dumps(slow))[3] == slow[3]


def test_the_digest_of_rows_changes_with_what_they_are():
    def digest(*arguments):
        return Unstacked(*arguments).digest

    changed = Counted()
    changed.digest = "2"
    digests = {
        digest(Counted(), ["a", "b"]),
        digest(Counted(), ["b", "a"]),
        digest(Counted(), ["a", "b"], "glyph"),
        digest(changed, ["a", "b"]),
    }
    assert len(digests) == 4
    assert digest(InMemory({"a": (1,)}), ["a"]) == ""


def test_a_missing_view_is_a_corrupt_row_and_an_unknown_one_an_error():
    rows = Unstacked(Counted(a=(10, None, 30)), ["a", "b"])
    with pytest.raises(CorruptRecord, match="no view 'a'"):
        rows[2]
    batches = list(pipeline.ordered(rows, Generated(1, same), batch_size=6))
    assert batches[0]["index"].tolist() == [0, 1, -1, 3, 4, 5]
    with pytest.raises(InputError, match="no field 'c', only a, b, label"):
        Unstacked(Counted(), ["a", "c"])[1]
    for fields in ("a", [], ["a", "a"]):
        with pytest.raises(InputError, match="list of different fields"):
            Unstacked(Counted(), fields)


def test_a_checkpoint_may_name_them():
    for name in ("drawn:Drawn", "glyphs:Glyph", "glyphs:Upright"):
        import_target(f"polyview.data.{name}", allow_list(), "views")
    import_target("polyview.data.sources.unstacked:Unstacked", allow_list(), "source")
