"""Images of any format decode correctly; crops follow the published distribution."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from polyview.data import augment
from polyview.data.augment import RandomResizedCrop, ResizeCenterCrop
from polyview.data.decode import decode, read_header, to_bytes
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import OutOfRange


def scene(height=60, width=80):
    """A smooth image, so that codecs and resizing barely change it."""
    y, x = np.mgrid[:height, :width]
    channels = [x * 255 / width, y * 255 / height, 255 - x * 128 / width]
    return np.stack(channels, -1).astype(np.uint8)


def encode(pixels, kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return np.abs(a.astype(int) - b).max()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_every_image_format_decodes_to_rgb(kind):
    options = {"quality": 98} if kind in ("JPEG", "WEBP") else {}
    assert difference(decode(encode(scene(), kind, **options)), scene()) <= 12


def test_exif_orientation_of_a_progressive_jpeg_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    data = encode(scene(), "JPEG", quality=98, progressive=True, exif=exif)
    assert difference(decode(data), scene()) <= 12


def test_cmyk_jpeg_decodes_to_the_right_colours():
    data = encode(scene(), "JPEG", mode="CMYK", quality=98)
    assert not read_header(data).plain
    assert difference(decode(data), scene()) <= 12


def test_grey_palette_16_bit_and_transparent_images_become_rgb():
    grey = scene()[..., :1]
    three = np.repeat(grey, 3, axis=2)
    assert difference(decode(encode(grey[..., 0], "PNG", mode="L")), three) == 0
    assert difference(decode(encode(grey[..., 0], "JPEG", mode="L")), three) <= 6
    buffer = io.BytesIO()
    Image.fromarray(grey[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    assert difference(decode(buffer.getvalue()), three) == 0
    palette = Image.fromarray(three).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=None)
    assert (
        difference(decode(buffer.getvalue()), np.asarray(palette.convert("RGB"))) == 0
    )
    half = np.concatenate([scene(), np.full((60, 80, 1), 128, np.uint8)], axis=2)
    half[0, 0] = (1, 2, 3, 0)
    on_white = decode(encode(half, "PNG", mode="RGBA"))
    assert tuple(on_white[0, 0]) == (255, 255, 255)
    expected = scene()[1:] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(on_white[1:] - expected).max() <= 1


def tiff(values, order="<", planes=False, rgb=True):
    """The bytes of a TIFF of `values` [h, w, c], without compression."""
    height, width, channels = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = 8 * values.dtype.itemsize
    pixels = values.transpose(2, 0, 1) if planes else values
    data = pixels.astype(values.dtype.newbyteorder(order)).tobytes()
    parts = channels if planes else 1
    size = len(data) // parts
    tags = {256: width, 257: height, 258: [bits] * channels, 259: 1}
    tags |= {262: 2 if rgb and channels > 2 else 1, 273: [0] * parts, 277: channels}
    tags |= {278: height, 279: [size] * parts, 284: 2 if planes else 1}
    if more := channels - tags[262] * 2 + 1:
        tags[338] = [0] * more
    tags[339] = [kind] * channels
    start = 8 + 2 + 12 * len(tags) + 4
    for _ in range(2):  # the places of the data are known after the first
        more, entries = b"", b""
        for tag, value in sorted(tags.items()):
            many = value if isinstance(value, list) else [value]
            field = struct.pack(f"{order}{len(many)}I", *many)
            if len(many) > 1:
                place = struct.pack(f"{order}I", start + len(more))
                more, field = more + field, place
            entries += struct.pack(f"{order}HHI", tag, 4, len(many)) + field
        tags[273] = [start + len(more) + part * size for part in range(parts)]
    head = b"II*\0" if order == "<" else b"MM\0*"
    head += struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + more + data


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["f4", "f8", "u2", "i2", "u4"])
def test_deep_tiffs_of_several_channels_are_scaled_by_their_range(
    dtype, channels, order
):
    values = np.random.default_rng(0).random((6, 7, channels))
    values[0, 0] = 1
    values = (values * (1 if dtype[0] == "f" else 32767)).astype(dtype)
    data = tiff(values, order)
    most = 1 if dtype[0] == "f" else 32767
    expected = np.minimum(np.floor(values / most * 256), 255)[..., :3]
    found = decode(data, range=(0, most))
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (6, 7, 3)))
    unscaled = np.floor(values * (256 if dtype[0] == "f" else 256 / 65535))[..., :3]
    assert np.abs(decode(data) - np.minimum(unscaled, 255)).max() <= 1
    dark = tiff((values[..., :1] / 200).astype("u2"), order)
    assert decode(dark).max() == 0  # black in any order of bytes


@pytest.mark.parametrize(
    ("dtype", "channels", "layout"),
    [
        ("f4", 2, {}),
        ("f4", 5, {}),
        ("f2", 3, {}),
        ("u2", 2, {}),
        ("u2", 5, {}),
        ("f4", 3, {"planes": True}),
        ("f4", 2, {"planes": True}),
        ("u2", 3, {"planes": True}),
        ("u2", 3, {"rgb": False}),
    ],
)
def test_a_tiff_of_another_layout_says_what_to_convert(dtype, channels, layout):
    data = tiff(np.ones((6, 7, channels), dtype), **layout)
    for scale in ((0, 1), None):
        with pytest.raises(CorruptRecord, match="convert it to .* interlea") as caught:
            decode(data, range=scale)
        assert "\n" not in str(caught.value)
    for length in range(0, len(data), 29):
        with pytest.raises(CorruptRecord):
            decode(data[:length])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_truncated_anywhere_is_corrupt(kind):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    data = encode(noise, kind)
    for fraction in (0.02, 0.3, 0.7, 0.97):
        with pytest.raises(CorruptRecord):
            decode(data[: int(len(data) * fraction)])


def test_trailing_bytes_are_ignored_and_non_images_are_corrupt():
    data = encode(scene(), "JPEG", quality=98)
    assert difference(decode(data + b"\0trailing"), scene()) <= 12
    for content in (b"", b"\xff\xd8", b"not an image at all", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(CorruptRecord):
            decode(content)


def test_a_decompression_bomb_is_refused_before_decoding(monkeypatch):
    def chunk(kind, content):
        body = kind + content
        return (
            struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
        )

    side = 8_001
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    png = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    jpeg = bytearray(encode(scene(), "JPEG"))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    gif = encode(scene(), "GIF", mode="P")
    gif = gif[:6] + struct.pack("<HH", 65_000, 65_000) + gif[10:]

    def decoded(*_):
        raise AssertionError("the pixels were decoded")

    monkeypatch.setattr("polyview.data.decode.cv2.imdecode", decoded)
    monkeypatch.setattr("polyview.data.decode._decode_with_pillow", decoded)
    for bomb in (png, bytes(jpeg), gif):
        with pytest.raises(CorruptRecord):
            RandomResizedCrop(8)(bomb, np.random.default_rng(0), 1)


def test_crop_area_and_log_ratio_are_uniform_if_every_box_fits():
    crop = RandomResizedCrop(8, scale=(0.08, 0.5))
    boxes, flips = crop.draw(4000, 4000, np.random.default_rng(0), 40_000)
    top, left, height, width = boxes.T
    area = np.sort(height * width / 4000**2)
    ratio = np.sort(np.log(width / height))
    uniform = (np.arange(40_000) + 0.5) / 40_000
    # Kolmogorov-Smirnov distance: its 99.9% quantile is 1.95 / sqrt(n) = .0098.
    assert np.abs((area - 0.08) / 0.42 - uniform).max() < 0.0098
    span = np.log(4 / 3)
    assert np.abs((ratio + span) / (2 * span) - uniform).max() < 0.0098
    place = np.sort(top / (4000 - height + 1))
    assert np.abs(place - uniform).max() < 0.0098
    assert (top + height <= 4000).all() and (left + width <= 4000).all()
    assert abs(flips.mean() - 0.5) < 0.01


def test_crop_distribution_matches_a_loop_with_rejection():
    """Rejection changes the distribution: compare with a loop, on a wide image."""
    height, width, count = 120, 260, 8_000
    crop = RandomResizedCrop(8)
    boxes, _ = crop.draw(height, width, np.random.default_rng(1), count)
    expected = np.array(
        [slow_box(height, width, np.random.default_rng((2, i))) for i in range(count)]
    )
    for column in range(4):
        ours, slow = np.sort(boxes[:, column]), np.sort(expected[:, column])
        grid = np.arange(0, width)
        distance = np.abs(
            np.searchsorted(ours, grid, "right") - np.searchsorted(slow, grid, "right")
        ).max()
        assert distance / count < 1.95 * np.sqrt(2 / count)


def slow_box(height, width, rng):
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("shape", "box"),
    [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))],
)
def test_an_image_too_narrow_for_any_crop_is_centre_cropped(shape, box):
    crop = RandomResizedCrop(8, scale=(0.9, 1.0))
    boxes, _ = crop.draw(*shape, np.random.default_rng(0), 3)
    assert boxes.tolist() == [list(box)] * 3


def test_views_are_the_drawn_boxes_resized_and_flipped():
    image = scene(64, 64)
    crop = RandomResizedCrop(32)
    views = crop(image, np.random.default_rng(5), 16)
    boxes, flips = crop.draw(64, 64, np.random.default_rng(5), 16)
    assert views.shape == (16, 32, 32, 3) and flips.any() and not flips.all()
    for view, (top, left, height, width), flip in zip(views, boxes, flips, strict=True):
        part = image[top : top + height, left : left + width]
        if flip:
            part = part[:, ::-1]
        # The image is linear, so the resized value at the centre of a cell is known.
        x = np.clip(((np.arange(32) + 0.5) * width / 32).astype(int), 0, width - 1)
        y = np.clip(((np.arange(32) + 0.5) * height / 32).astype(int), 0, height - 1)
        assert np.abs(view.astype(int) - part[y][:, x]).max() <= 9


def test_vertical_flips_and_quarter_turns_follow_the_crops():
    """The same crops as without them, then each flipped and turned in a loop."""
    image = scene(40, 60)
    crop = RandomResizedCrop(16, vertical_flip=0.5, quarter_turns=0.75)
    views = crop(image, np.random.default_rng(5), 64)
    rng = np.random.default_rng(5)
    plain = RandomResizedCrop(16)(image, rng, 64)
    flips, turns = crop.draw_orientations(rng, 64)
    assert set(turns) == {0, 1, 2, 3} and set(flips) == {False, True}
    for view, before, flip, turn in zip(views, plain, flips, turns, strict=True):
        rows = list(before)[::-1] if flip else list(before)
        for _ in range(turn):  # anticlockwise: the last column becomes the first row
            rows = [[row[x] for row in rows] for x in range(15, -1, -1)]
        np.testing.assert_array_equal(view, np.array(rows))


def test_orientations_have_their_probabilities():
    crop = RandomResizedCrop(8, vertical_flip=0.3, quarter_turns=0.6)
    flips, turns = crop.draw_orientations(np.random.default_rng(0), 40_000)
    assert abs(flips.mean() - 0.3) < 0.01
    shares = np.bincount(turns, minlength=4) / 40_000
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.2, 0.2], atol=0.01)
    assert abs(np.corrcoef(flips, turns > 0)[0, 1]) < 0.02
    with pytest.raises(OutOfRange, match="quarter_turns=4"):
        RandomResizedCrop(8, quarter_turns=4)


@pytest.mark.parametrize("option", ["vertical_flip", "quarter_turns"])
def test_numbers_are_drawn_for_orientations_only_where_they_are_used(option):
    """Else the views of every earlier run would change."""
    for options, numbers in (({}, 23), ({option: 1e-3}, 26)):
        used, expected = np.random.default_rng(0), np.random.default_rng(0)
        RandomResizedCrop(8, **options)(scene(), used, 2)
        expected.random((2, numbers))
        assert used.random() == expected.random()


def test_a_one_channel_image_keeps_one_channel():
    image = scene(28, 28)[..., :1]
    assert RandomResizedCrop(28)(image, np.random.default_rng(0), 3).shape[-1] == 1
    np.testing.assert_array_equal(
        ResizeCenterCrop(28, fraction=1.0)(image, np.random.default_rng(0), 1)[0], image
    )


def test_reduced_jpeg_decoding_never_makes_a_crop_upsample():
    data = encode(scene(1200, 1600), "JPEG", quality=95)
    decoded = []
    original = augment.decode_as

    def spy(data, header, reduce, range=None):
        decoded.append(reduce)
        return original(data, header, reduce)

    rng = np.random.default_rng
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "decode_as", spy)
        crop = RandomResizedCrop(100, scale=(0.3, 1.0))
        for seed in range(20):
            quick = crop(data, rng(seed), 4)
            boxes, _ = crop.draw(1200, 1600, rng(seed), 4)
            smallest = boxes[:, 2:].min()
            assert smallest >= decoded[-1] * 100
            assert decoded[-1] == 8 or smallest < 2 * decoded[-1] * 100
            assert (
                np.abs(quick.astype(int) - crop(decode(data), rng(seed), 4)).max() < 9
            )
        assert set(decoded) >= {4, 8}
        RandomResizedCrop(600)(data, rng(0), 4)
        assert decoded[-1] == 1


def test_center_crop_takes_the_central_square():
    image = np.zeros((100, 200, 3), np.uint8)
    image[10:90, 60:140] = 255
    views = ResizeCenterCrop(20, fraction=0.8)(image, np.random.default_rng(0), 2)
    assert views.shape == (2, 20, 20, 3) and (views == 255).all()


def test_values_of_any_type_are_scaled_in_equal_bins_or_refused():
    eight = np.arange(256, dtype=np.uint8)
    grid = eight.reshape(16, 16)
    for values in (
        eight / 255,
        eight.astype(np.float32) / 255,
        eight.astype("u2") * 257,
    ):
        np.testing.assert_array_equal(to_bytes(values), eight)
    np.testing.assert_array_equal(to_bytes(np.array([True, False])), [255, 0])
    np.testing.assert_array_equal(
        to_bytes(np.array([-2000.0, -1000, 999, 1001, 9000]), (-1000, 3000)),
        [0, 0, 127, 128, 255],
    )
    wide = eight.astype("i4")
    for wrong in (eight * 1.0, wide, wide - 1, np.array([np.nan, 0.5])):
        with pytest.raises(CorruptRecord, match="range|not finite"):
            to_bytes(wrong)
    crop = ResizeCenterCrop(16, fraction=1.0)
    for image in (grid, grid[..., None], grid / 255, grid.astype("u2") * 257):
        np.testing.assert_array_equal(crop(image, None, 1)[0, ..., 0], grid)
    with pytest.raises(CorruptRecord, match="values 0 .. 255"):
        crop(grid.astype(float), None, 1)
    window = ResizeCenterCrop(16, fraction=1.0, range=(0, 255))
    np.testing.assert_array_equal(window(grid.astype(float), None, 1)[0, ..., 0], grid)
