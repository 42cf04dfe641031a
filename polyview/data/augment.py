"""Geometric augmentation on the host: decode an image once, cut m views from it.

Colour and blur run on the accelerator (`nn/photometry`). This module does the steps
that need the full-size image, so that only `uint8[m, size, size, c]` is transferred.
Resizing is bicubic without antialiasing, as in SimCLR (Chen et al. 2020). A crop that
shrinks twofold or more would alias, so it is resized by the mean over areas.

Pixels are RGB in stored order: the EXIF orientation is ignored, as in the usual
ImageNet pipelines, so that results are comparable.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import TINY, check_range

MAX_PIXELS = 64_000_000  # refused before decoding: a small file can expand to gigabytes
# Detected by content. No PostScript: Pillow would run an interpreter on it.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# Parallelism is over examples; OpenCV's own threads would compete with it.
cv2.setNumThreads(1)

_COLOR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION,
    4: cv2.IMREAD_REDUCED_COLOR_4 | cv2.IMREAD_IGNORE_ORIENTATION,
    8: cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION,
}


class Header(NamedTuple):
    """Properties of an encoded image, known before it is decoded."""

    kind: str  # "jpeg", "png" or "other"
    height: int
    width: int
    plain: bool  # a grey or RGB JPEG or a PNG without alpha: safe for OpenCV
    whole: bool  # neither truncated nor followed by trailing bytes
    deep: bool = False  # more than 8 bits a value


def read_header(data: bytes) -> Header:
    """Read an image's kind and size from its content, never from a file name.

    Raises:
      CorruptRecord: the data are no image, or one of more than `MAX_PIXELS`.
    """
    try:
        if data[:2] == b"\xff\xd8":
            header = _jpeg_header(data)
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            header = _png_header(data)
        else:
            header = _other_header(data)
    except (struct.error, IndexError) as error:
        raise CorruptRecord(f"truncated image header: {error}") from None
    if header.height < 1 or header.width < 1:
        raise CorruptRecord(f"empty image: {header.width}x{header.height} pixels")
    if header.height * header.width > MAX_PIXELS:
        raise CorruptRecord(
            f"image of {header.width}x{header.height} pixels; the limit is {MAX_PIXELS}"
        )
    return header


def _jpeg_header(data: bytes) -> Header:
    position = 2
    while True:
        if data[position] != 0xFF:
            raise CorruptRecord("JPEG segment without a marker")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        # Start of frame: C0..CF except the tables C4 (Huffman) and CC, and reserved C8.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, height, width, components = struct.unpack_from(
                ">BHHB", data, position + 4
            )
            plain = precision == 8 and components < 4
            return Header("jpeg", height, width, plain, data.endswith(b"\xff\xd9"))
        if marker in (0xD9, 0xDA):
            raise CorruptRecord("JPEG without a frame header")
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]


def _png_header(data: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    transparent = colour in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]
    whole = data[-8:-4] == b"IEND"
    return Header("png", height, width, not transparent, whole, bits > 8)


def _other_header(data: bytes) -> Header:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            deep = image.mode[0] in "IF"
            return Header("other", image.height, image.width, False, False, deep)
    except Exception as error:  # Pillow's readers raise exceptions of many types
        raise CorruptRecord("not an image of a known format") from error


Range = tuple[float, float]


def decode(data: bytes, *, reduce: int = 1, range: Range | None = None) -> np.ndarray:
    """Decode an image to RGB.

    Grey becomes three equal channels, transparency becomes white. Of more than 8 bits,
    values are scaled as by `to_bytes`.

    Args:
      data: an image in one of `FORMATS`, detected by content.
      reduce: 1, 2, 4 or 8: decode a JPEG at 1/reduce of its size. The inverse transform
        of each block is then smaller, which saves most of the time.
      range: the values that become 0 and 255, for images of more than 8 bits.

    Returns:
      uint8[h, w, 3].

    Raises:
      CorruptRecord: the data are no image, truncated, of more than `MAX_PIXELS`, or
        have values that need another `range`.
    """
    return _decode(data, read_header(data), reduce, range)


def _decode(
    data: bytes, header: Header, reduce: int, range: Range | None = None
) -> np.ndarray:
    # OpenCV 4 silently fills the missing part of a truncated file with grey, so it gets
    # whole files only. Pillow tells harmless trailing bytes from a missing end.
    image = None
    if header.plain and header.whole:
        encoded = np.frombuffer(data, np.uint8)
        if reduce > 1:
            image = cv2.imdecode(encoded, _REDUCED[reduce])
            if image is not None:
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
        elif header.deep and range:
            image = cv2.imdecode(encoded, _COLOR | cv2.IMREAD_ANYDEPTH)
            image = None if image is None else to_bytes(image, range)
        else:
            image = cv2.imdecode(encoded, _COLOR)
    if image is None:
        image = _decode_with_pillow(data, range)
    return image


def _decode_with_pillow(data: bytes, range: Range | None) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            if image.mode[0] in "IF":  # Pillow would clip rather than scale
                grey = to_bytes(np.asarray(image), range)
                return np.repeat(grey[..., None], 3, axis=2)
            if image.has_transparency_data:
                layer = image.convert("RGBA")
                white = Image.new("RGBA", layer.size, "white")
                return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except CorruptRecord:
        raise
    except Exception as error:  # Pillow's readers raise exceptions of many types
        raise CorruptRecord(f"image cannot be decoded: {error}") from None


def to_bytes(values: np.ndarray, range: Range | None = None) -> np.ndarray:
    """Scale values to uint8 of the same shape, in 256 bins of equal width.

    range: the lowest value of the first bin and the highest of the last; what lies
    outside becomes 0 or 255. None: 0 .. 1 for floats, 0 .. 65535 for integers of more
    than 8 bits and 0 .. 1 for bool, and nothing may lie outside. uint8 stays as it is.
    Raises CorruptRecord for a value that is outside or not finite, or no number, and
    without `range` for wide integers that could as well be bytes.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "biuf":
        raise CorruptRecord(f"an image of {values.dtype} holds no numbers")
    low, high = range or ((0, 65535) if values.dtype.kind in "iu" else (0, 1))
    least, most = values.min(), values.max()
    if not (np.isfinite(least) and np.isfinite(most)):
        raise CorruptRecord("an image has values that are not finite")
    if range is None and not low <= least <= most <= high:
        raise CorruptRecord(
            f"an image of {values.dtype} has values {least:g} .. {most:g}, outside "
            f"{low} .. {high}; give the range that becomes black to white (`range` of "
            "the views, --range of prepare folder)"
        )
    if range is None and values.dtype.kind in "iu" and values.dtype != np.uint16:
        if most <= 255:
            raise CorruptRecord(
                f"an image of {values.dtype} has values {least} .. {most}: give it as "
                "uint8, or the range that becomes black to white"
            )
    bins = (values.astype(np.float64) - low) * (256 / (high - low))
    return np.clip(bins, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut m random crops, resize each to a square and flip or turn some of them.

    The area is uniform in `scale` (a fraction of the image) and the aspect ratio
    log-uniform in `ratio`. If none of ten drawn boxes fits, the largest central box of
    an allowed ratio is used (Szegedy et al. 2015, in torchvision's form). Call it as
    `crop(image, rng, m)` with an encoded image or `uint8[h, w, c]`. A JPEG so large
    that every crop shrinks is decoded at a half, a quarter or an eighth of its size,
    as long as no crop need then be enlarged.

    Attributes:
      size: side of a view in pixels.
      scale: smallest and largest area of a crop.
      ratio: smallest and largest width / height.
      flip: probability of a horizontal flip.
      vertical_flip: probability of a vertical flip, for images without an up.
      quarter_turns: probability of a turn by 90, 180 or 270 degrees, all as likely. At
        3/4 no direction is preferred.
      range: the values that become black and white, for images of more than 8 bits;
        see `to_bytes`.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    quarter_turns: float = 0.0
    range: Range | None = None

    def __post_init__(self) -> None:
        check_range(1, size=self.size)
        check_range(TINY, 1.0, scale=self.scale)
        check_range(TINY, ratio=self.ratio)
        check_range(0.0, 1.0, flip=self.flip, vertical_flip=self.vertical_flip)
        check_range(0.0, 1.0, quarter_turns=self.quarter_turns)

    def __call__(
        self, image: np.ndarray | bytes, rng: np.random.Generator, m: int
    ) -> np.ndarray:
        """Return uint8[m, size, size, c]."""
        if isinstance(image, bytes):
            header = read_header(image)
            boxes, flips = self.draw(header.height, header.width, rng, m)
            reduce = 1
            if header.kind == "jpeg":
                reduce = _reduction(int(boxes[:, 2:].min()), self.size)
            pixels = _decode(image, header, reduce, self.range)
            if reduce > 1:
                boxes = _scale_boxes(boxes, header, pixels)
        else:
            pixels = _checked(image, self.range)
            boxes, flips = self.draw(pixels.shape[0], pixels.shape[1], rng, m)
        views = np.empty((m, self.size, self.size, pixels.shape[2]), np.uint8)
        for view, box, flipped in zip(
            views, boxes.tolist(), flips.tolist(), strict=True
        ):
            _resize(pixels, box, view)
            if flipped:
                cv2.flip(view, 1, dst=view)
        if self.vertical_flip or self.quarter_turns:
            upside_down, turns = self.draw_orientations(rng, m)
            views[upside_down] = views[upside_down, ::-1]
            for view, turn in zip(views, turns.tolist(), strict=True):
                view[:] = np.rot90(view, turn)
        return views

    def draw(
        self, height: int, width: int, rng: np.random.Generator, m: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw m boxes, int[m, 4] as (top, left, height, width), and flips, bool[m]."""
        # One draw for all: ten areas, ten ratios, a position and a flip.
        uniform = rng.random((m, 23))
        low, high = self.scale
        area = (low + (high - low) * uniform[:, :10]) * (height * width)
        low, high = np.log(self.ratio)
        ratio = np.exp(low + (high - low) * uniform[:, 10:20])
        heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
        rows, first = np.arange(m), fits.argmax(axis=1)
        boxes = np.empty((m, 4), np.int64)
        boxes[:, 2] = heights[rows, first]
        boxes[:, 3] = widths[rows, first]
        room = (height, width) - boxes[:, 2:] + 1
        boxes[:, :2] = room * uniform[:, 20:22]
        failed = ~fits[rows, first]
        if failed.any():
            boxes[failed] = self._central_box(height, width)
        return boxes, uniform[:, 22] < self.flip

    def draw_orientations(
        self, rng: np.random.Generator, m: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw m vertical flips, bool[m], and quarter turns anticlockwise, int[m]."""
        uniform = rng.random((m, 3))
        turned = uniform[:, 1] < self.quarter_turns
        turns = 1 + (3 * uniform[:, 2]).astype(np.int64)
        return uniform[:, 0] < self.vertical_flip, turned * turns

    def _central_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        ratio = np.clip(width / height, *self.ratio)
        box_height = min(height, round(width / ratio))
        box_width = min(width, round(height * ratio))
        top, left = (height - box_height) // 2, (width - box_width) // 2
        return top, left, box_height, box_width


@dataclass(frozen=True)
class ResizeCenterCrop:
    """Resize the central square: the view used for evaluation.

    The square's side is `fraction` of the shorter side (.875 for ImageNet, Chen et al.
    2020). Nothing is random: all m views are equal. `range` is as in
    `RandomResizedCrop`.
    """

    size: int
    fraction: float = 0.875
    range: Range | None = None

    def __post_init__(self) -> None:
        check_range(1, size=self.size)
        check_range(TINY, 1.0, fraction=self.fraction)

    def __call__(
        self, image: np.ndarray | bytes, rng: np.random.Generator, m: int
    ) -> np.ndarray:
        """Return uint8[m, size, size, c]."""
        if isinstance(image, bytes):
            header = read_header(image)
            side = self._side(header.height, header.width)
            reduce = _reduction(side, self.size) if header.kind == "jpeg" else 1
            pixels = _decode(image, header, reduce, self.range)
        else:
            pixels = _checked(image, self.range)
        height, width, channels = pixels.shape
        side = self._side(height, width)
        view = np.empty((self.size, self.size, channels), np.uint8)
        _resize(pixels, ((height - side) // 2, (width - side) // 2, side, side), view)
        return np.repeat(view[None], m, axis=0)

    def _side(self, height: int, width: int) -> int:
        return max(1, round(self.fraction * min(height, width)))


def _checked(image: Any, range: Range | None = None) -> np.ndarray:
    """Return an image [h, w] or [h, w, c] as uint8[h, w, c]; see `to_bytes`.

    Raises CorruptRecord for anything else.
    """
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise CorruptRecord(f"an image is an array or encoded bytes, not {kind}")
    if image.ndim not in (2, 3) or not image.size:
        raise CorruptRecord(f"an image is [h, w] or [h, w, c], not {list(image.shape)}")
    return np.ascontiguousarray(
        to_bytes(image if image.ndim == 3 else image[..., None], range)
    )


def _reduction(smallest_side: int, size: int) -> int:
    return next((r for r in (8, 4, 2) if smallest_side >= r * size), 1)


def _scale_boxes(boxes: np.ndarray, header: Header, pixels: np.ndarray) -> np.ndarray:
    factors = np.divide(pixels.shape[:2], (header.height, header.width))
    corners = np.rint(boxes[:, :2] * factors).astype(np.int64)
    sides = np.maximum(np.rint(boxes[:, 2:] * factors).astype(np.int64), 1)
    return np.concatenate([corners, np.minimum(sides, pixels.shape[:2] - corners)], 1)


def _resize(pixels: np.ndarray, box: Sequence[int], view: np.ndarray) -> None:
    """Resize the box (top, left, height, width) of `pixels` into `view`."""
    top, left, height, width = box
    size = view.shape[0]
    part = pixels[top : top + height, left : left + width]
    shrinks = height >= 2 * size and width >= 2 * size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    cv2.resize(part, (size, size), dst=view, interpolation=interpolation)
