"""Screens of an episode as an animated GIF."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from polyview import files

_COLOURS = 256  # of a GIF's palette


def write(path: Path, screens: Iterable[np.ndarray], milliseconds: int) -> None:
    """Write screens uint8[h, w, 3] as a looping GIF.

    Each screen is shown for `milliseconds` and has a palette of its own, so no colour
    changes where there are at most 256; else the nearest 256 are taken.
    """
    first, *rest = map(_indexed, screens)
    with files.writing_whole(path) as unfinished:
        first.save(
            unfinished,
            "GIF",
            save_all=True,
            append_images=rest,
            duration=milliseconds,
            loop=0,
        )


def _indexed(screen: np.ndarray) -> Image.Image:
    packed = screen.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors, index = np.unique(packed, return_inverse=True)
    if len(colors) > _COLOURS:
        return Image.fromarray(screen).quantize(_COLOURS, dither=Image.Dither.NONE)
    image = Image.fromarray(index.reshape(packed.shape).astype(np.uint8), "P")
    palette = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1)
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image
