"""Geometric augmentation on the host: decode an image once, cut m views from it.

Colour and blur run on the accelerator (`nn/photometry`). This module does the steps
that need the full-size image, so that only `uint8[m, size, size, c]` is transferred.
Resizing is bicubic without antialiasing, as in SimCLR (Chen et al. 2020). A crop that
shrinks twofold or more would alias, so it is resized by the mean over areas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from polyview.data.decode import Header, Range, decode_as, read_header, to_bytes
from polyview.data.decode import decode as decode  # its name in version 0.2
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import TINY, check_range

# Parallelism is over examples; OpenCV's own threads would compete with it.
cv2.setNumThreads(1)


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
      quarter_turns: chance of a turn by 90, 180 or 270 degrees; 3/4 prefers none.
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
            pixels = decode_as(image, header, reduce, self.range)
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
            pixels = decode_as(image, header, reduce, self.range)
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
    image = image if image.ndim == 3 else image[..., None]
    if image.dtype == np.uint8:  # the usual case
        return image
    return to_bytes(image, range)


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
