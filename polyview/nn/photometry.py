"""Colour jitter, greyscale, blur and solarisation, on the device (Chen et al. 2020).

Every view draws its own parameters, chances and order from its row's key. The
definitions are torchvision's, for floats in [0, 1]: with g(x) the luma of a pixel,

    brightness  clip(f x)                      contrast  clip(f x + (1 - f) mean g(x))
    saturation  clip(f x + (1 - f) g(x))       hue       HSV rotation by a fraction

The first three are one blend, clip(keep x + grey g(x) + mean mean(g(x))), so a random
order of the four operations needs no branches: three blends before the hue and three
after it, where those that are not due are the identity (1, 0, 0). All arrays have the
same shape for every view, no operation mixes rows, and so the batch stays sharded and
the code is the same on CPU, GPU and TPU.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Draw(NamedTuple):
    """The noise of one view (or of many, with leading axes)."""

    priority: jax.Array  # [4], of brightness, contrast, saturation, hue: lowest first
    factor: jax.Array  # [3]: of brightness, contrast, saturation; 1 where not applied
    hue: jax.Array  # rotation in turns; 0 where not applied
    grey: jax.Array  # bool
    sigma: jax.Array  # of the blur in pixels; 0 where not applied
    solarise: jax.Array  # bool


@dataclass(frozen=True)
class Photometry:
    """SimCLR's colour augmentation of `images[b, m, h, w, c]` in [0, 1].

    `strength` multiplies the jitter; `*_chance` are probabilities. Jitter draws factors
    in [1 - v, 1 + v] (at least 0) and hue in [-hue, hue] turns. The blur has a kernel
    of h // 10 pixels (made odd) and sigma in `sigma`. Solarisation comes last (Grill
    et al. 2020). One channel: hue, saturation and grey change nothing and cost nothing.
    """

    strength: float = 1.0
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    jitter_chance: float = 0.8
    grey_chance: float = 0.2
    blur_chance: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise_chance: float = 0.0

    def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """`keys[b]`: row i's result is a function of its images and keys[i] only."""
        draw = self.draw(keys, images.shape[1])
        # Channel planes: pixels are then contiguous, which is what vector units want.
        x = jnp.moveaxis(images, -1, 0)
        x = jitter(x, draw.priority, draw.factor, draw.hue)
        if len(x) == 3:
            x = jnp.where(_pixels(draw.grey), luma(x), x)
        if self.blur_chance > 0:
            x = blur(x, draw.sigma, radius=images.shape[-3] // 20)
        if self.solarise_chance > 0:
            x = jnp.where(_pixels(draw.solarise) & (x >= 0.5), 1 - x, x)
        return jnp.moveaxis(x, 0, -1)

    def draw(self, keys: jax.Array, m: int) -> Draw:
        """The noise of each view: `keys[b]` -> leaves of shape [b, m, ...]."""
        one = jax.vmap(lambda key, a: self._draw(jax.random.fold_in(key, a)), (None, 0))
        return jax.vmap(one, (0, None))(keys, jnp.arange(m))

    def _draw(self, key: jax.Array) -> Draw:
        uniform = jax.random.uniform(key, (13,))
        spread = self.strength * jnp.array(
            [self.brightness, self.contrast, self.saturation]
        )
        low, high = jnp.maximum(1 - spread, 0), 1 + spread
        jittered = uniform[7] < self.jitter_chance
        factor = low + (high - low) * uniform[4:7]
        hue = self.strength * self.hue * (2 * uniform[8] - 1)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * uniform[9]
        return Draw(
            priority=uniform[:4],
            factor=jnp.where(jittered, factor, 1.0),
            hue=jnp.where(jittered, hue, 0.0),
            grey=uniform[10] < self.grey_chance,
            sigma=jnp.where(uniform[11] < self.blur_chance, sigma, 0.0),
            solarise=uniform[12] < self.solarise_chance,
        )


def luma(x: jax.Array) -> jax.Array:
    """Brightness of each pixel: `x[c, b, m, h, w] -> [1, b, m, h, w]`."""
    if len(x) == 1:
        return x
    return 0.2989 * x[:1] + 0.587 * x[1:2] + 0.114 * x[2:]


def jitter(
    x: jax.Array, priority: jax.Array, factor: jax.Array, hue: jax.Array
) -> jax.Array:
    """The four colour operations on `x[c, b, m, h, w]`, each view in its own order.

    `priority[b, m, 4]`, `factor[b, m, 3]` and `hue[b, m]` as in `Draw`.
    """
    brightness, contrast, saturation = jnp.moveaxis(factor, -1, 0)
    one, zero = jnp.ones_like(hue), jnp.zeros_like(hue)
    keep = jnp.stack([brightness, contrast, saturation, one])
    grey = jnp.stack([zero, zero, 1 - saturation, zero])
    mean = jnp.stack([zero, 1 - contrast, zero, zero])
    # One channel has two operations, three have four.
    order = jnp.argsort(jnp.moveaxis(priority, -1, 0)[: 2 if len(x) == 1 else 4], 0)
    keep, grey, mean = (
        jnp.take_along_axis(weight, order, 0) for weight in (keep, grey, mean)
    )
    if len(x) == 1:
        return _blend(_blend(x, keep[0], grey[0], mean[0]), keep[1], grey[1], mean[1])
    turn = jnp.argmax(order == 3, 0)
    for step in (0, 1, 2):
        due = step < turn
        x = _blend(
            x,
            jnp.where(due, keep[step], 1),
            jnp.where(due, grey[step], 0),
            jnp.where(due, mean[step], 0),
        )
    x = rotate_hue(x, hue)
    for step in (1, 2, 3):
        due = step > turn
        x = _blend(
            x,
            jnp.where(due, keep[step], 1),
            jnp.where(due, grey[step], 0),
            jnp.where(due, mean[step], 0),
        )
    return x


def rotate_hue(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates the HSV hue of `x[3, b, m, h, w]` by `turns[b, m]`.

    Value and chroma stay, so the round trip through HSV reduces to the hue:
    channel n is value - chroma clip(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6, for
    n = 5, 3, 1.
    """
    red, green, blue = x
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1 / jnp.where(chroma > 0, chroma, 1)
    hue = jnp.where(
        value == red,
        (green - blue) * scale,
        jnp.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    hue += 6 * turns[:, :, None, None]
    channels = []
    for n in (5, 3, 1):
        k = hue + n
        k -= 6 * jnp.floor(k / 6)
        channels.append(value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
    return jnp.stack(channels)


def blur(x: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Separable Gaussian of `2 radius + 1` pixels, edges reflected; sigma 0: identity.

    `x[c, b, m, h, w]`, `sigma[b, m]` in pixels.
    """
    offset = jnp.arange(radius + 1.0).reshape(-1, 1, 1)
    # Below a thousandth of a pixel the kernel is exactly (.., 0, 1, 0, ..).
    kernel = jnp.exp(-0.5 * (offset / jnp.maximum(sigma, 1e-3)[None]) ** 2)
    kernel /= kernel[:1] + 2 * kernel[1:].sum(0, keepdims=True)
    for axis in (-2, -1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (radius, radius)
        padded = jnp.pad(x, pad, mode="reflect")
        size = x.shape[axis]
        # Shifted sums: a per-view kernel as a convolution would be a grouped one,
        # which is slow everywhere.
        shift = [
            jax.lax.slice_in_dim(padded, start, start + size, axis=x.ndim + axis)
            for start in range(2 * radius + 1)
        ]
        x = _pixels(kernel[0]) * x
        for k in range(1, radius + 1):
            x += _pixels(kernel[k]) * (shift[radius - k] + shift[radius + k])
    return x


def _blend(x, keep, grey, mean) -> jax.Array:
    y = luma(x)
    level = y.mean((-2, -1), keepdims=True)
    y = _pixels(keep) * x + _pixels(grey) * y + _pixels(mean) * level
    # Unless it is written out, XLA computes it again in every later mean.
    return jax.lax.optimization_barrier(jnp.clip(y, 0, 1))


def _pixels(a: jax.Array) -> jax.Array:
    """One number a view, `a[b, m]`, against planes `[c, b, m, h, w]`."""
    return a[None, :, :, None, None]
