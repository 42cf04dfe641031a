"""Images unlike those of training, and images made like them in their channels."""

from typing import Any

import cv2
import numpy as np

from polyview.data.decode import decode, to_bytes
from polyview.data.sources.digest import derived
from polyview.data.sources.protocol import CorruptRecord, Source
from polyview.errors import InputError, check_range


class Inverted:
    """The images of a source, black for white: 255 - x. Labels are left out.

    Args:
      source: its images are encoded or arrays, as `polyview.data.decode` reads them.
      field: the image of a row.
    """

    def __init__(self, source: Source, field: str = "image"):
        self._source, self._field = source, field
        self.targets: dict[str, dict[str, Any]] = {}

    @property
    def digest(self) -> str:
        """The digest of the rows, made of the source's."""
        return derived(self._source, ["inverted", self._field])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = _pixels(self._source[index][self._field])
        return {self._field: 255 - image}

    def __repr__(self) -> str:
        return f"Inverted({self._source!r})"


class Noise:
    """Images of independent, uniform bytes, of the size of a source's.

    Args:
      like: image i has the shape of this source's.
      seed: image i depends on it and on i alone.
      field: the image of a row.
    """

    def __init__(self, like: Source, seed: int = 0, field: str = "image"):
        check_range(0, 2**63, seed=seed)
        self._like, self._seed, self._field = like, seed, field
        self.targets: dict[str, dict[str, Any]] = {}

    @property
    def digest(self) -> str:
        """The digest of the rows, made of the source's."""
        return derived(self._like, ["noise", self._seed, self._field])

    def __len__(self) -> int:
        return len(self._like)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shape = _pixels(self._like[index][self._field]).shape
        rng = np.random.default_rng((self._seed, int(index)))
        return {self._field: rng.integers(0, 256, shape, np.uint8)}

    def __repr__(self) -> str:
        return f"Noise({self._like!r})"


class WithChannels:
    """The images of a source with another number of channels; other fields stay.

    Colours become grey by OpenCV's weights (ITU-R BT.601), grey becomes three equal
    channels. Alpha is dropped.

    Args:
      source: its images are encoded or arrays.
      channels: 1 or 3.
      field: the image of a row.
    """

    def __init__(self, source: Source, channels: int, field: str = "image"):
        if channels not in (1, 3):
            raise InputError(f"channels={channels}: images have 1 (grey) or 3 (RGB)")
        self._source, self._channels, self._field = source, channels, field
        self.targets: dict[str, dict[str, Any]] = dict(source.targets)

    @property
    def digest(self) -> str:
        """The digest of the rows, made of the source's."""
        return derived(self._source, ["channels", self._channels, self._field])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        image = _pixels(example[self._field])
        if image.ndim == 2:
            image = image[..., None]
        if image.shape[-1] not in (1, 3, 4):
            raise CorruptRecord(
                f"an image of {image.shape[-1]} channels has no colours"
            )
        image = image[..., :3]
        if image.shape[-1] == 3 and self._channels == 1:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        if image.shape[-1] < self._channels:
            image = np.repeat(image, self._channels, axis=-1)
        return example | {self._field: image}

    def __repr__(self) -> str:
        return f"WithChannels({self._source!r}, {self._channels})"


def _pixels(image: np.ndarray | bytes) -> np.ndarray:
    """Return uint8[h, w] or [h, w, c]; an encoded image has three channels."""
    return decode(image) if isinstance(image, bytes) else to_bytes(np.asarray(image))
