"""Learned positions of a ViT, resized for images of another size."""

import math

import numpy as np

A = -0.75  # PyTorch's; Keys (1981) derives -0.5


def resized(positions: np.ndarray, tokens: int, leading: int) -> np.ndarray:
    """Resize positions [1, leading + s * s, width] to float64[1, tokens, width].

    The first `leading` positions, as that of a class token, belong to no place in the
    image and are kept. The others are a square grid, which `bicubic` resizes. Raises
    ValueError if either number of places is not a square.
    """
    old = _side(positions.shape[1] - leading)
    new = _side(tokens - leading)
    first, grid = np.split(positions.astype(np.float64)[0], [leading])
    grid = bicubic(grid.reshape(old, old, -1), new, new)
    return np.concatenate([first, grid.reshape(new * new, -1)])[None]


def bicubic(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a grid [h, w, d] to float64[height, width, d] by cubic convolution.

    y[i, j] = sum_a sum_b W(u_i - a) W(v_j - b) x[a, b],
    u_i = (i + 1/2) h / height - 1/2, v_j likewise; places beyond the edge repeat it.
    With A = -0.75 (Keys 1981, equation 4, leaves A free),

        W(t) = (A + 2) |t|^3 - (A + 3) |t|^2 + 1      for |t| <= 1
               A (|t|^3 - 5 |t|^2 + 8 |t| - 4)        for 1 < |t| < 2

    These are the values of PyTorch's interpolate(mode="bicubic", align_corners=False,
    antialias=False).
    """
    rows, columns = (
        _weights(old, new)
        for old, new in zip(grid.shape, (height, width), strict=False)
    )
    return np.einsum("ia,jb,abd->ijd", rows, columns, grid.astype(np.float64))


def _weights(old: int, new: int) -> np.ndarray:
    """Return the weight of each old place in each new one: float64[new, old]."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(centre)[:, None] + np.arange(-1, 3)
    distance = np.abs(centre[:, None] - taps)
    near = ((A + 2) * distance - (A + 3)) * distance**2 + 1
    far = A * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.zeros((new, old))
    places = np.clip(taps, 0, old - 1).astype(int)
    rows = np.arange(new)[:, None]
    np.add.at(weights, (rows, places), np.where(distance <= 1, near, far))
    return weights


def _side(places: int) -> int:
    side = math.isqrt(max(places, 0))
    if not side or side * side != places:
        raise ValueError(f"{places} positions are no square grid")
    return side
