"""Encoded images of any usual format, and values of any type, as uint8.

Pixels are RGB in stored order: the EXIF orientation is ignored, as in the usual
ImageNet pipelines, so that results are comparable.
"""

import contextlib
import io
import re
import struct
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from polyview.data.sources.protocol import CorruptRecord

MAX_PIXELS = 64_000_000  # refused before decoding: a small file can expand to gigabytes
# Detected by content. No PostScript: Pillow would run an interpreter on it.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

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
    known: bool = True  # to Pillow, unlike TIFFs of several floats a pixel


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
    tags = _tiff_tags(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            wide = re.match(rb"P[56]\s+\d+\s+\d+\s+(\d+)", data[:64])
            deep = image.mode[0] in "IF" or tags.get("bits", 8) > 8
            deep = deep or (wide is not None and int(wide[1]) > 255)
            # Pillow mixes up the bytes of deep planes.
            known = not (deep and tags.get("planes", 1) > 1)
            shape = image.height, image.width
            return Header("other", *shape, False, False, deep, known)
    except Exception as error:  # Pillow's readers raise exceptions of many types
        if isinstance(error, UnidentifiedImageError) and tags:
            shape = tags["height"], tags["width"]
            return Header("other", *shape, False, False, True, known=False)
        raise CorruptRecord("not an image of a known format") from error


def _tiff_tags(data: bytes) -> dict[str, int]:
    """Return what is stored of a TIFF's first image; {} for other data."""
    try:
        file = io.BytesIO(data)
        head = file.read(16 if data[2:3] == b"+" else 8)  # +: BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        return {
            "width": int(tags[256]),
            "height": int(tags[257]),
            "bits": max(map(int, tags.get(258, (1,)))),
            "channels": int(tags.get(277, 1)),
            "planes": int(tags.get(277, 1)) if tags.get(284) == 2 else 1,
        }
    except Exception:  # of many types, as above
        return {}


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
    return decode_as(data, read_header(data), reduce, range)


def decode_as(
    data: bytes, header: Header, reduce: int, range: Range | None = None
) -> np.ndarray:
    """As `decode`, for a header that was read before."""
    # OpenCV 4 silently fills the missing part of a truncated file with grey, so it gets
    # whole files only. Pillow tells harmless trailing bytes from a missing end.
    image = None
    named = range and (header.whole or header.kind == "other")
    if header.deep and (named or not header.known):
        return _decode_deep(data, header, range)
    if header.plain and header.whole:
        encoded = np.frombuffer(data, np.uint8)
        if reduce > 1:
            image = cv2.imdecode(encoded, _REDUCED[reduce])
            if image is not None:
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
        else:
            image = cv2.imdecode(encoded, _COLOR)
    if image is None:
        image = _decode_with_pillow(data, range)
    return image


def _decode_deep(data: bytes, header: Header, range: Range | None) -> np.ndarray:
    """Scale the values as the file holds them: Pillow would reduce colours to 8 bits.

    An alpha channel is left out.
    """
    tags = _tiff_tags(data)
    channels, planes = tags.get("channels", 1), tags.get("planes", 1)
    values = None
    if planes == 1 and channels in (1, 3, 4):  # OpenCV mixes up others
        with contextlib.suppress(cv2.error):
            values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None and header.known and channels == 1:
        return _decode_with_pillow(data, range)
    stored = channels * header.height * header.width  # of some TIFFs it reads a part
    if values is None or (
        tags and (values.size != stored or 8 * values.itemsize < tags["bits"])
    ):
        raise CorruptRecord(
            f"a TIFF of {channels} x {tags['bits']} bits a pixel"
            f"{' in planes' * (planes > 1)} cannot be decoded; if it is whole, convert "
            "it to 1, 3 or 4 interleaved values of uint8, uint16 or float32"
        )
    pixels = to_bytes(values if values.ndim == 3 else values[..., None], range)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1])  # OpenCV has blue first


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
    wide = values.dtype.kind in "iu" and values.dtype.newbyteorder("=") != np.uint16
    if range is None and wide and most <= 255:
        raise CorruptRecord(
            f"an image of {values.dtype} has values {least} .. {most}: give it as "
            "uint8, or the range that becomes black to white"
        )
    bins = (values.astype(np.float64) - low) * (256 / (high - low))
    return np.clip(bins, 0, 255).astype(np.uint8)
