"""Views of glyphs: drawn anew at a random place, size and slant, with stray lines.

Clean glyphs are too easy: a linear map of their pixels tells characters apart that it
has never seen. In these views no pixel has a fixed meaning.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from polyview.data.decode import decode, to_bytes
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import TINY, check_range


@dataclass(frozen=True)
class Glyph:
    """Scale, turn, shear and shift a glyph on an empty view; add lines and noise.

    Call it as `glyph(image, rng, m)` with an encoded image or an array [h, w] or [h, w,
    1], light ink on black. With scale (1, 1) and zeros elsewhere a view is the whole
    upright glyph; see `Upright`.

    Attributes:
      size: side of a view in pixels.
      scale: smallest and largest side of the image, as a fraction of the view's.
      rotation: largest turn to either side, in degrees.
      shear: largest shift to either side of the top against the middle, as a fraction
        of half the height.
      shift: largest shift to either side along each axis, as a fraction of the view.
      lines: stray straight lines, a stroke wide.
      noise: standard deviation of each pixel, as a fraction of black to white.
    """

    size: int = 40
    scale: tuple[float, float] = (0.6, 0.95)
    rotation: float = 15.0
    shear: float = 0.2
    shift: float = 0.1
    lines: int = 2
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_range(1, size=self.size)
        check_range(TINY, scale=self.scale)
        check_range(0.0, 180.0, rotation=self.rotation)
        check_range(0.0, 1.0, shear=self.shear, shift=self.shift, noise=self.noise)
        check_range(0, lines=self.lines)

    def __call__(
        self, image: np.ndarray | bytes, rng: np.random.Generator, m: int
    ) -> np.ndarray:
        """Return uint8[m, size, size, 1]."""
        glyph = _grey(image)
        # Drawn at twice the size, then reduced by the mean over areas: smooth strokes.
        side = 2 * self.size
        if max(glyph.shape) > side:
            ratio = side / max(glyph.shape)
            glyph = cv2.resize(glyph, None, fx=ratio, fy=ratio, interpolation=_MEAN)
        uniform = rng.random((m, 5))
        ends = rng.random((m, self.lines, 5))
        views = np.empty((m, self.size, self.size), np.uint8)
        for view, numbers, lines in zip(views, uniform, ends, strict=True):
            canvas = cv2.warpAffine(glyph, self.place(glyph, numbers), (side, side))
            for *points, width in lines:
                first, last = np.rint(np.reshape(points, (2, 2)) * side).astype(int)
                thickness = 2 + int(2 * width)  # as the strokes of usual fonts
                cv2.line(canvas, first, last, 255, thickness, cv2.LINE_AA)
            cv2.resize(canvas, view.shape, dst=view, interpolation=_MEAN)
        if self.noise:
            noise = rng.standard_normal(views.shape, np.float32) * (255 * self.noise)
            views = np.clip(np.rint(views + noise), 0, 255).astype(np.uint8)
        return views[..., None]

    def place(self, glyph: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Return float64[2, 3], the map from a glyph to a view of twice the size.

        uniform: five numbers in 0 .. 1: scale, turn, shear, shift along x and along y.
        """
        low, high = self.scale
        scale = 2 * self.size / max(glyph.shape) * (low + (high - low) * uniform[0])
        turn, shear, *shift = 2 * uniform[1:] - 1  # -1 .. 1
        angle = np.deg2rad(self.rotation * turn)
        rotation = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = scale * np.array(rotation) @ [[1, self.shear * shear], [0, 1]]
        # OpenCV's coordinates are those of the centres of pixels.
        middle = (np.array(glyph.shape[::-1]) - 1) / 2
        target = self.size - 0.5 + 2 * self.size * self.shift * np.array(shift)
        return np.column_stack([matrix, target - matrix @ middle])


@dataclass(frozen=True)
class Upright:
    """Show the whole glyph, upright and clean; all m views are equal.

    A box in shares of the image is the same in shares of the view, if it is square.
    """

    size: int = 40

    def __post_init__(self) -> None:
        check_range(1, size=self.size)

    def __call__(
        self, image: np.ndarray | bytes, rng: np.random.Generator, m: int
    ) -> np.ndarray:
        """Return uint8[m, size, size, 1]."""
        clean = Glyph(self.size, (1.0, 1.0), 0.0, 0.0, 0.0, 0, 0.0)
        return np.repeat(clean(image, rng, 1), m, axis=0)


_MEAN = cv2.INTER_AREA


def _grey(image: np.ndarray | bytes) -> np.ndarray:
    """Return uint8[h, w]. Raises CorruptRecord for an array of another shape."""
    if isinstance(image, bytes):
        return cv2.cvtColor(decode(image), cv2.COLOR_RGB2GRAY)
    shape = np.shape(image)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)) or 0 in shape:
        raise CorruptRecord(f"a glyph is [h, w] or [h, w, 1], not {list(shape)}")
    return to_bytes(np.asarray(image).reshape(shape[:2]))
