"""What the agent sees: a picture of the receptacle where it stands.

    columns 0 .. 1, 30 .. 31   the receptacles left and right of it, by their colours;
                               the wall where there are none
    rows 0 .. 11               its own colour and pattern, and at the right the hand
    rows 12 .. 31              two rows of three cells, one for each object; a door
                               before them if it is closed

Objects are glyphs of their category, two tones of a colour that is drawn once an
episode. Each time the agent looks, they stand otherwise in their cells, and 10 % of all
pixels are replaced. A scene has its own light on all but the objects.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.rearrange import glyphs
from agents.rearrange.goals import NEW, OBJECTS, ORDERS, POSITIONS, SCENES
from agents.rearrange.words import DOORS, RECEPTACLES

SIZE = 32
_TOP, _LEFT = 12, 2  # of the cells
_HAND_TOP, _HAND_LEFT = 2, 20  # of what is held
_CELL = (10, 9)  # so that a glyph can stand at 3 heights and 2 places beside each other
_NOISE = 26  # pixels of 256, on average
_DARKEST, _BRIGHTEST = 20, 150  # of the colours of objects; surfaces are brighter

_WALL, _PALM = (222, 216, 204), (250, 250, 250)
COLOURS = np.array(
    [
        *((150, 190, 215), (150, 96, 52), (70, 170, 165), (120, 165, 80)),
        *((210, 165, 60), (195, 65, 75), (140, 95, 185), (70, 90, 160)),
    ],
    float,
)  # of the receptacles


def lights() -> np.ndarray:
    """Return the light of each scene, float[32, 3], which multiplies its colours.

    That of scenes for training is near 1; others are redder or bluer.
    """
    near = 0.9 + 0.15 * np.random.default_rng(17722).random((len(SCENES), 3))
    tint = np.where(
        np.arange(len(SCENES))[:, None] % 2, (1.1, 0.85, 0.7), (0.75, 0.9, 1.1)
    )
    return np.where(np.arange(len(SCENES))[:, None] >= NEW, near * tint, near)


def patterns() -> np.ndarray:
    """Return where the second tone of each receptacle's pattern is, bool[8, 32, 32]."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack(
        [
            y % 6 == 5,
            x % 4 == 0,
            (y % 4 == 1) & (x % 4 == 1),
            (y // 2 + x // 2) % 2 == 0,
            (y % 4 == 3) & ((x + 5 * (y // 4)) % 8 < 5),
            (y % 6 == 0) | ((x + 3 * (y // 6 % 2)) % 6 == 0),
            (x + y) % 5 == 0,
            (y % 3 == 0) & (x % 3 != 0),
        ]
    )


def _backgrounds() -> np.ndarray:
    """Return uint32[32, 8, 2, 32, 32]: all but objects and noise, by scene, receptacle,
    and whether it is open. Colours are packed in 24 bits."""
    light = lights()[:, None]
    main = np.clip(COLOURS * light, 0, 255)
    wall = np.clip(_WALL * light, 0, 255)[:, 0]
    image = np.zeros((len(SCENES), len(RECEPTACLES), 2, SIZE, SIZE, 3))
    image[:] = main[:, :, None, None, None]
    image = np.where(patterns()[:, None, :, :, None], 0.72 * image, image)
    bright = np.clip((0.25 * COLOURS + 0.75 * 255) * light, 0, 255)
    image[:, :, 1, _TOP:] = bright[:, :, None, None]
    # A closed door: a frame and a handle.
    door = image[:, :DOORS, 0, _TOP:, _LEFT:-_LEFT]
    dark = 0.35 * main[:, :DOORS, None, None]
    door[:] = dark
    door[:, :, 1:-1, 1:-1] = 0.85 * main[:, :DOORS, None, None]
    door[:, :, 6:14, 22:24] = dark
    for scene in SCENES:
        for receptacle in range(len(RECEPTACLES)):
            place = POSITIONS[scene, receptacle]
            for side, columns in (-1, np.s_[:_LEFT]), (1, np.s_[-_LEFT:]):
                inside = 0 <= place + side < len(RECEPTACLES)
                beside = ORDERS[scene, (place + side) % len(RECEPTACLES)]
                colour = main[scene, beside] if inside else wall[scene]
                image[scene, receptacle, :, :, columns] = colour
    rows = slice(_HAND_TOP - 1, _HAND_TOP + 9)
    image[..., rows, _HAND_LEFT - 1 : _HAND_LEFT + 9, :] = _PALM
    return pack(image)


def pack(image: np.ndarray) -> np.ndarray:
    """Return colours [..., 3] as one number each, uint32[...]."""
    red, green, blue = np.moveaxis(image.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def unpack(packed: Any) -> Any:
    """Return colours uint8[..., 3]."""
    return jnp.stack([packed >> 16, packed >> 8, packed], -1).astype(jnp.uint8)


def _shifted() -> np.ndarray:
    """Return uint8[16, 6, 10, 9]: each glyph in a cell, at each offset."""
    found = np.zeros((len(glyphs.OBJECTS), 6, *_CELL), np.uint8)
    for offset in range(6):
        down, right = divmod(offset, 2)
        found[:, offset, down : down + 8, right : right + 8] = glyphs.OBJECTS
    return found


_BACKGROUNDS, _SHIFTED = _backgrounds(), _shifted()


def colours(key: Any) -> Any:
    """Return the two tones of each object of an episode, packed, uint32[2, 6]."""
    drawn = jax.random.bits(key, (OBJECTS, 3), jnp.uint8).astype(jnp.uint32)
    weights = jnp.array([[1 << 16, 1 << 8, 1]], jnp.uint32)
    bright = _DARKEST + drawn * (_BRIGHTEST - _DARKEST) // 255
    return jnp.stack([(t * weights).sum(1, jnp.uint32) for t in (bright, bright // 3)])


def picture(
    categories: Any,
    visible: Any,
    held: Any,
    scene: Any,
    receptacle: Any,
    is_open: Any,
    key: Any,
    time: Any,
) -> Any:
    """Return uint8[32, 32, 3].

    categories: int[6]. visible, held: bool[6], of the objects. key: decides the colours
    of an episode, and with the time, int32, the rest.
    """
    now = jax.random.fold_in(key, time)
    noise = jax.random.bits(now, (SIZE * SIZE + OBJECTS,), jnp.uint32)
    offsets = noise[SIZE * SIZE :] % 6
    tones = colours(key)

    image = jnp.asarray(_BACKGROUNDS)[scene, receptacle, is_open.astype(jnp.int32)]
    cells = jnp.asarray(_SHIFTED)[categories, offsets] * visible[:, None, None]
    inked = _inked(cells, tones[:, :, None, None])
    inked = inked.reshape(2, 3, *_CELL).transpose(0, 2, 1, 3)
    image = _over(image, inked.reshape(2 * _CELL[0], 3 * _CELL[1]), _TOP, _LEFT)
    item = jnp.argmax(held)
    hand = jnp.asarray(glyphs.OBJECTS)[categories[item]] * held.any()
    inked = _inked(hand, tones[:, item, None, None])
    image = _over(image, inked, _HAND_TOP, _HAND_LEFT)

    noise = noise[: SIZE * SIZE].reshape(SIZE, SIZE)
    return unpack(jnp.where(noise & 255 < _NOISE, noise >> 8, image))


def _inked(glyph: Any, tones: Any) -> Any:
    """Return colours where a glyph is, none of which is black, and 0 elsewhere."""
    colour = jnp.where(glyph == 1, tones[0], tones[1])
    return jnp.where(glyph > 0, colour, 0)


def _over(image: Any, part: Any, top: int, left: int) -> Any:
    """Lay a part over an image, where it is not 0."""
    high, wide = part.shape
    padding = (top, SIZE - top - high), (left, SIZE - left - wide)
    part = jnp.pad(part, padding)
    return jnp.where(part > 0, part, image)
