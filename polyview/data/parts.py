"""Generated images of two coloured shapes: unseen classes, made of parts that are seen.

A part is one of 4 shapes in one of 5 colours; a class is a pair of parts of different
shape and colour, and its attributes say which. Of the 120 such pairs 60 are classes: 32
to train on, 8 to choose settings on and 20 that are never seen. Each part occurs in
three or more of the 32, so features that keep parts apart recognise unseen pairs.

An image has a cell for each part, for a shape without colour and for a colour without
one of the shapes: a grey one and a disc. Hence neither the colours nor the shapes that
it has give the class, only which go together. Cells, places in them and sizes are
random, and the whole is shifted at random with edges that wrap around. Every pixel is
then as likely to show a part as any other, so that all a linear map of pixels can learn
is their mean.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from polyview.data.sources.protocol import class_task
from polyview.errors import InputError, check_range, nearest

SIDE = 32  # pixels
SHAPES = ("ring", "post", "beam", "cross")
# Red, green and blue of a part, from 0 to 1.
COLOURS = {
    "red": (0.9, 0.15, 0.15),
    "green": (0.15, 0.75, 0.2),
    "blue": (0.2, 0.3, 0.95),
    "yellow": (0.9, 0.85, 0.15),
    "purple": (0.75, 0.2, 0.85),
}
PARTS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
# Of each split: its classes, and its rows if not given.
SPLITS = {
    "train": (range(32), 24_000),
    "validation": (range(32, 40), 1_600),
    "test": (range(40, 60), 4_000),
    "seen_test": (range(32), 3_200),
}
_CELLS, _CELL = 2, 16  # cells along a side, and pixels along a cell
_SLOTS = 4  # two parts, the grey shape and the disc
_RADIUS = 5.0, 6.6  # pixels
_JITTER = 1.5  # pixels from the middle of the cell, up or down
_LIGHT = 0.1  # by which colours are darkened at most
_TINT, _NOISE = 0.03, 0.04  # added to a part's colour and to each value, at most
_DISC = len(SHAPES)
_NUMBERS = 64  # random words for a row, beside its noise: more than are used
_WORDS = _NUMBERS + SIDE * SIDE * 3 // 8
_BLOCK = 512  # rows drawn at a time, so that temporary arrays are small


def class_name(pair: Sequence[int]) -> str:
    """Return the name of a class, such as "red ring, blue cross"."""
    return ", ".join(PARTS[part] for part in pair)


def choose_classes(count: int) -> np.ndarray:
    """Return pairs of parts, int[count, 2], in an order that uses all parts alike.

    The next is a pair whose parts have been used least; ties go by the SHA-256 of its
    name, so that no random generator is needed.
    """
    pairs = [
        (first, second)
        for first, second in combinations(range(len(PARTS)), 2)
        if first // len(COLOURS) != second // len(COLOURS)
        and first % len(COLOURS) != second % len(COLOURS)
    ]
    pairs.sort(key=lambda pair: hashlib.sha256(class_name(pair).encode()).digest())
    used = [0] * len(PARTS)
    chosen = []
    for _ in range(count):
        uses = [sorted((used[a], used[b]), reverse=True) for a, b in pairs]
        pair = pairs.pop(uses.index(min(uses)))
        chosen.append(pair)
        for part in pair:
            used[part] += 1
    return np.array(chosen)


CLASSES = choose_classes(60)  # the parts of each class


class Parts:
    """Images of two parts each, drawn when the source is first built (60 us a row).

    An example has image uint8[32, 32, 3], label int and attributes uint8[20]. Labels
    number all 60 classes; in a split of k classes, row i shows its class i % k.

    Args:
      split: "train", "validation" or "test", whose classes differ, or "seen_test":
        other images of the classes of train, for the generalised task.
      size: rows; by default as in `SPLITS`. A longer split begins with the same rows.
      seed: of the images. The classes are always the same.

    Raises InputError for another split and OutOfRange for a size or seed out of range.

    Attributes:
      labels: int64[n].
    """

    def __init__(self, split: str = "train", size: int | None = None, seed: int = 0):
        if split not in SPLITS:
            raise InputError(f"no split {split!r} of parts{nearest(split, SPLITS)}")
        check_range(1, size=size)
        check_range(0, 2**63, seed=seed)
        classes, rows = SPLITS[split]
        self._split, stream = split, list(SPLITS).index(split)
        numbers = np.arange(rows if size is None else size)
        self.labels = _labels(classes, numbers)
        self._images = _images(classes, len(numbers), seed, stream)
        self._attributes = np.zeros((len(CLASSES), len(PARTS)), np.uint8)
        np.put_along_axis(self._attributes, CLASSES, 1, axis=1)
        self.targets: dict[str, dict[str, Any]] = {
            "label": class_task([class_name(pair) for pair in CLASSES]),
            "attributes": class_task(PARTS) | {"kind": "multi-label"},
        }

    @property
    def digest(self) -> str:
        """The digest of the images."""
        return hashlib.sha256(self._images.data).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        label = int(self.labels[index])
        return {
            "image": self._images[index],
            "label": label,
            "attributes": self._attributes[label],
        }

    def __repr__(self) -> str:
        return f"Parts('{self._split}': {len(self)})"


def _labels(classes: range, numbers: np.ndarray) -> np.ndarray:
    return classes[0] + numbers % len(classes)


@lru_cache(maxsize=2 * len(SPLITS))
def _images(classes: range, rows: int, seed: int, stream: int) -> np.ndarray:
    """Return the images of a split, read-only: a run and its evaluations share them."""
    images = np.empty((rows, SIDE, SIDE, 3), np.uint8)
    labels = _labels(classes, np.arange(rows))
    for start in range(0, rows, _BLOCK):
        block = slice(start, start + _BLOCK)
        images[block] = draw(CLASSES[labels[block]], seed, stream, start)
    images.setflags(write=False)
    return images


def draw(parts: np.ndarray, seed: int, stream: int, start: int = 0) -> np.ndarray:
    """Draw rows start, start + 1, ... as uint8[n, 32, 32, 3], with parts int[n, 2].

    A row depends on its parts, the seed, the stream and its number alone.
    """
    numbers, noise = _random(len(parts), seed, stream, start)
    cells = numbers(_SLOTS).argsort(axis=1, kind="stable")
    cell = np.stack([cells % _CELLS, cells // _CELLS], -1) * _CELL
    shift, jitter = numbers(2)[:, None] * SIDE, _JITTER * (2 * numbers(_SLOTS, 2) - 1)
    middle = (cell + _CELL / 2 + shift + jitter).astype(np.float32)
    radius = _RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * numbers(_SLOTS)
    shapes = np.full((len(parts), _SLOTS), _DISC)
    shapes[:, :2] = parts // len(COLOURS)
    shapes[:, 2] = (numbers(1) * len(SHAPES))[:, 0]

    disc = (numbers(1) * len(COLOURS)).astype(np.int64)
    colours = np.repeat(numbers(1, 1), _SLOTS, axis=1) * np.ones(3, np.float32)
    coloured = np.array([0, 1, 3])  # all but the grey shape
    palette = np.array([*COLOURS.values()], np.float32)
    of_slot = palette[np.concatenate([parts % len(COLOURS), disc], axis=1)]
    of_slot = of_slot * (1 - _LIGHT * numbers(3, 1))
    colours[:, coloured] = of_slot + _TINT * (2 * numbers(3, 3) - 1)

    images = np.full((len(parts), SIDE, SIDE, 3), 0.5, np.float32)
    pixel = np.arange(SIDE, dtype=np.float32) + 0.5
    for slot in range(_SLOTS):
        away = pixel - middle[:, slot, :, None]
        away = (away + SIDE / 2) % SIDE - SIDE / 2  # the edges wrap around
        x, y = np.moveaxis(away / radius[:, slot, None, None], 1, 0)
        for shape in range(_DISC + 1):
            rows = np.flatnonzero(shapes[:, slot] == shape)
            inside = _inside(shape, x[rows][:, None, :], y[rows][:, :, None])
            row, top, left = np.nonzero(inside)
            images[rows[row], top, left] = colours[rows[row], slot]
    images += _NOISE * (noise / np.float32(127.5) - 1)
    return (np.clip(images, 0, 1) * 255).astype(np.uint8)


def _random(count: int, seed: int, stream: int, start: int) -> tuple[Any, np.ndarray]:
    """Return the random numbers of rows: a function, and bytes uint8[n, 32, 32, 3].

    The function takes the shape of a row's next numbers and returns float32 in [0, 1).
    Raw Philox words are the only random stream that NumPy promises never to change.
    """
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64))
    bits.advance(start * _WORDS // 4)  # a step of its counter gives four words
    words = bits.random_raw(count * _WORDS).reshape(count, _WORDS)
    noise = np.ascontiguousarray(words[:, _NUMBERS:]).view(np.uint8)
    uniform = (words[:, :_NUMBERS] >> np.uint64(40)).astype(np.float32) / 2**24
    used = 0

    def numbers(*shape: int) -> np.ndarray:
        nonlocal used
        first, used = used, used + int(np.prod(shape))
        return uniform[:, first:used].reshape(count, *shape)

    return numbers, noise.reshape(count, SIDE, SIDE, 3)


def _inside(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points belong to a shape, of unit size around the origin."""
    across, up = abs(x), abs(y)
    if shape == SHAPES.index("ring"):
        return (0.3 < x**2 + y**2) & (x**2 + y**2 < 1)
    if shape == SHAPES.index("post"):
        return (across < 0.45) & (up < 1.05)
    if shape == SHAPES.index("beam"):
        return (up < 0.45) & (across < 1.05)
    if shape == SHAPES.index("cross"):
        return (np.minimum(across, up) < 0.3) & (np.maximum(across, up) < 1)
    return x**2 + y**2 < 0.7
