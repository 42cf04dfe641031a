"""Generated and observed views have the same form; missing views are masked."""

import io

import numpy as np
import pytest
from PIL import Image

from polyview.data import multi_crop
from polyview.data.augment import RandomResizedCrop, ResizeCenterCrop
from polyview.data.multi_crop import MultiCrop
from polyview.data.observed import Observed
from polyview.data.sources.protocol import CorruptRecord
from polyview.data.views import Generated
from polyview.errors import InputError, OutOfRange


def test_generated_views_are_all_present_and_targets_pass_through(rng):
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    views = Generated(3, RandomResizedCrop(4), targets=("label", "group"))
    result = views({"image": image, "label": 7, "group": 2}, rng)
    assert result["views"]["image"].shape == (3, 4, 4, 1)
    assert result["present"]["image"].tolist() == [True] * 3
    assert {name: int(value) for name, value in result["targets"].items()} == {
        "label": 7,
        "group": 2,
    }


CROPS = {
    "image": RandomResizedCrop(8, scale=(0.4, 1.0)),
    "local": RandomResizedCrop(4, scale=(0.05, 0.4)),
}


def test_crops_of_several_sizes_come_from_one_decoding(monkeypatch):
    """In the order of the names, whatever order the config has."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    decoded = []

    def counted(data, **options):
        decoded.append(data)
        return pixels

    monkeypatch.setattr(multi_crop, "decode", counted)
    views = MultiCrop(m={"local": 3, "image": 2}, augments=CROPS)
    example = {"image": buffer.getvalue(), "label": 4}
    result = views(example, np.random.default_rng(5))
    assert len(decoded) == 1
    rng = np.random.default_rng(5)
    for name, m in (("image", 2), ("local", 3)):
        expected = CROPS[name](pixels, rng, m)
        np.testing.assert_array_equal(result["views"][name], expected)
        assert result["present"][name].tolist() == [True] * m
    assert result["targets"]["label"] == 4


def test_deep_images_of_several_crops_are_scaled_once():
    grey = np.full((6, 6), 300, np.uint16)
    views = MultiCrop(
        {"image": 1}, {"image": CROPS["image"]}, targets=(), range=(0, 600)
    )
    made = views({"image": grey[..., None]}, np.random.default_rng(0))
    assert (made["views"]["image"] == 128).all()
    deep = RandomResizedCrop(4, range=(0, 600))
    with pytest.raises(InputError, match="give `range` to the views instead"):
        MultiCrop({"image": 1}, {"image": deep})


def test_crops_without_a_number_or_an_augmentation_are_refused():
    with pytest.raises(
        InputError, match=r"\['image'\] and views.augments \['image', 'l"
    ):
        MultiCrop({"image": 1}, CROPS)
    with pytest.raises(OutOfRange, match="local=0"):
        MultiCrop({"image": 1, "local": 0}, CROPS)


def test_a_field_missing_from_an_example_is_named(rng):
    with pytest.raises(InputError, match="no field 'label', only image"):
        Generated(1, ResizeCenterCrop(4))({"image": np.zeros((4, 4, 1), "u1")}, rng)


def test_observed_views_collect_modalities_and_mask_missing_views(rng):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (255, 0, 0)).save(buffer, "PNG")
    views = Observed(
        fields={"image": ("a", "b", "c"), "text": ("title", "report")},
        shapes={"image": (4, 4, 3), "text": (5,)},
        dtypes={"text": "int32"},
        augments={"image": ResizeCenterCrop(4)},
        targets=("label",),
    )
    example = {
        "a": buffer.getvalue(),
        "c": np.full((8, 8, 3), 9, np.uint8),
        "title": None,
        "report": np.arange(5),
        "label": 1,
    }
    result = views(example, rng)
    assert result["present"]["image"].tolist() == [True, False, True]
    assert result["present"]["text"].tolist() == [False, True]
    image, text = result["views"]["image"], result["views"]["text"]
    assert image.shape == (3, 4, 4, 3) and image.dtype == np.uint8
    assert (image[0] == (255, 0, 0)).all() and (image[2] == 9).all()
    assert not image[1].any()
    assert text.dtype == np.int32 and text.tolist() == [[0] * 5, [0, 1, 2, 3, 4]]
    assert result["targets"]["label"] == 1


def test_an_observed_view_of_the_wrong_shape_is_named(rng):
    views = Observed(fields={"image": ("a",)}, shapes={"image": (4, 4, 3)})
    with pytest.raises(InputError, match=r"field 'a' has shape \(8, 8, 3\)"):
        views({"a": np.zeros((8, 8, 3), np.uint8)}, rng)


def test_an_observed_view_of_the_wrong_dtype_is_named(rng):
    views = Observed(fields={"image": ("a",)}, shapes={"image": (2,)})
    with pytest.raises(InputError, match="'a' has type float32, but .* are uint8"):
        views({"a": np.zeros(2, np.float32)}, rng)


def test_an_observed_view_that_is_not_finite_is_named(rng):
    options = {"fields": {"scan": ("a",)}, "shapes": {"scan": (2,)}}
    views = Observed(**options, dtypes={"scan": "float16"})
    for value in (np.nan, 1e6):  # too large for its type
        with pytest.raises(InputError, match="'a' is not finite as float16"):
            views({"a": np.float32([0, value])}, rng)
    with pytest.raises(InputError, match="views.fields: scan is a string"):
        Observed(**options | {"fields": {"scan": "a"}})


def test_an_example_without_views_is_an_error_or_skipped_as_configured(rng):
    options = {"fields": {"text": ("a", "b")}, "shapes": {"text": (2,)}}
    with pytest.raises(InputError, match="none of the views a, b; remove it"):
        Observed(**options)({"a": None}, rng)
    with pytest.raises(CorruptRecord, match="none of the views a, b"):
        Observed(**options, empty="skip")({"a": None}, rng)
    with pytest.raises(InputError, match="views.empty is 'never'"):
        Observed(**options, empty="never")
