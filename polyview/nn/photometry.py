"""Colour jitter, greyscale, blur and solarisation, on the device (Chen et al. 2020).

Every view draws its own parameters, chances and order from its row's key. The
definitions are torchvision's, for floats in [0, 1]: with g(x) the luma of a pixel,

    brightness  clip(f x)                      contrast  clip(f x + (1 - f) mean g(x))
    saturation  clip(f x + (1 - f) g(x))       hue       HSV rotation by a fraction

All but the hue are one blend, clip(keep x + grey g(x) + mean mean(g(x))), so a random
order of the four needs no branches: three blends before the hue and three after it, of
which those that are not due are the identity (1, 0, 0). Whatever a view draws, it does
the same work: no operation mixes rows or branches on them, so that the batch stays
sharded over devices, and the same code is vectorised on CPU, GPU and TPU. Branches
would skip work on a CPU alone.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polyview.errors import InputError


class Draw(NamedTuple):
    """The noise of one view, or with leading axes of many."""

    priority: jax.Array  # [4]: brightness, contrast, saturation, hue; lowest runs first
    factor: jax.Array  # [3]: brightness, contrast, saturation; 1 where not applied
    turn: jax.Array  # of the hue, as a fraction of a circle; 0 where not applied
    grey: jax.Array  # bool
    sigma: jax.Array  # of the blur, in pixels; 0 where not applied
    solarise: jax.Array  # bool


@dataclass(frozen=True)
class Photometry:
    """SimCLR's colour augmentation of views in [0, 1] (Chen et al. 2020, appendix A).

    `strength` multiplies the jitter, whose factors lie in [1 - v, 1 + v] (and above 0)
    and whose hue turns by at most `hue` of a circle. The blur's kernel is a tenth of
    the height, made odd, and its `sigma` is uniform. Solarisation, off by default,
    comes last (Grill et al. 2020). Images have 3 channels or 1, where hue, saturation
    and grey would change nothing and cost nothing.
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
        """`images[b, m, h, w, c], keys[b]` give the same shape.

        View a of row i is a function of images[i, a], keys[i] and a alone.
        """
        m, channels = images.shape[1], images.shape[-1]
        if channels not in (1, 3):
            raise InputError(
                f"photometry takes images of 1 or 3 channels, these have {channels}; "
                "set photometry to None for them"
            )

        # One view slot at a time: intermediate arrays are m times smaller.
        def slot(a_and_x):
            a, x = a_and_x
            draw = jax.vmap(lambda key: self.draw(jax.random.fold_in(key, a)))(keys)
            return self._apply(x, draw)

        planes = jnp.transpose(images, (1, 4, 0, 2, 3))
        return jnp.transpose(
            jax.lax.map(slot, (jnp.arange(m), planes)), (2, 0, 3, 4, 1)
        )

    def draw(self, key: jax.Array) -> Draw:
        """The noise of one view."""
        uniform = jax.random.uniform(key, (13,))
        spread = self.strength * jnp.array(
            [self.brightness, self.contrast, self.saturation]
        )
        low, high = jnp.maximum(1 - spread, 0), 1 + spread
        jittered = uniform[7] < self.jitter_chance
        factor = low + (high - low) * uniform[4:7]
        turn = self.strength * self.hue * (2 * uniform[8] - 1)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * uniform[9]
        return Draw(
            priority=uniform[:4],
            factor=jnp.where(jittered, factor, 1.0),
            turn=jnp.where(jittered, turn, 0.0),
            grey=uniform[10] < self.grey_chance,
            sigma=jnp.where(uniform[11] < self.blur_chance, sigma, 0.0),
            solarise=uniform[12] < self.solarise_chance,
        )

    def _apply(self, x: jax.Array, draw: Draw) -> jax.Array:
        """The noise `draw[b]` on planes `x[c, b, h, w]`."""
        if self.jitter_chance > 0:
            x = jitter(x, draw.priority, draw.factor, draw.turn)
        if self.grey_chance > 0:
            x = jnp.where(_pixels(draw.grey), luma(x), x)
        if self.blur_chance > 0:
            x = blur(x, draw.sigma, radius=x.shape[-2] // 20)
        if self.solarise_chance > 0:
            x = jnp.where(_pixels(draw.solarise) & (x >= 0.5), 1 - x, x)
        return x


# The operations work on planes x[c, b, h, w] (neighbouring pixels of a channel are
# neighbours in memory, as vector units want it) with parameters per row.


def luma(x: jax.Array) -> jax.Array:
    """The grey value of each pixel, `[c, b, h, w] -> [1, b, h, w]` (ITU-R 601)."""
    if len(x) == 1:
        return x
    return 0.2989 * x[:1] + 0.587 * x[1:2] + 0.114 * x[2:]


def jitter(
    x: jax.Array, priority: jax.Array, factor: jax.Array, turn: jax.Array
) -> jax.Array:
    """The colour operations on `x[c, b, h, w]`, each row in its own order.

    `priority[b, 4]`, `factor[b, 3]` and `turn[b]` as in `Draw`.
    """
    brightness, contrast, saturation = factor.T
    one, zero = jnp.ones_like(turn), jnp.zeros_like(turn)
    # The weights (keep, grey, mean) of each operation; the hue's are the identity.
    weights = jnp.stack(
        [
            jnp.stack([brightness, zero, zero]),
            jnp.stack([contrast, zero, 1 - contrast]),
            jnp.stack([saturation, 1 - saturation, zero]),
            jnp.stack([one, zero, zero]),
        ]
    )
    # One channel knows two of the four operations.
    order = jnp.argsort(priority.T[: 4 if len(x) == 3 else 2], axis=0)
    weights = jnp.take_along_axis(weights, order[:, None], axis=0)
    if len(x) == 1:
        return _blends(x, weights)
    step, hue_at = jnp.arange(4)[:, None], jnp.argmax(order == 3, axis=0)[None]
    identity = jnp.stack([one, zero, zero])[None]
    before = jnp.where((step < hue_at)[:, None], weights, identity)
    after = jnp.where((step > hue_at)[:, None], weights, identity)
    return _blends(rotate_hue(_blends(x, before[:3]), turn), after[1:])


def _blends(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Successive blends with `weights[step, 3, b]`."""

    def blend(x, weight):
        keep, grey, mean = weight
        y = luma(x)
        level = y.mean((-2, -1), keepdims=True)
        y = _pixels(keep) * x + _pixels(grey) * y + _pixels(mean) * level
        return jnp.clip(y, 0, 1), None

    # A loop, because XLA would otherwise compute all blends again for each mean.
    return jax.lax.scan(blend, x, weights)[0]


def rotate_hue(x: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns the hue of `x[3, b, h, w]` by `turn[b]` of a circle.

    Value and chroma stay, so the way to HSV and back reduces to
    channel n = value - chroma clip(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6, for
    n = 5, 3, 1.
    """
    red, green, blue = x
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1 / jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        value == red,
        (green - blue) * scale,
        jnp.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    sextant += 6 * turn[:, None, None]
    channels = []
    for n in (5, 3, 1):
        k = sextant + n
        k -= 6 * jnp.floor(k / 6)
        channels.append(value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
    return jnp.stack(channels)


def blur(x: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Gaussian blur of `x[c, b, h, w]` by `sigma[b]` pixels, edges reflected.

    The kernel has 2 radius + 1 pixels; sigma = 0 is the identity.
    """
    offset = jnp.arange(radius + 1.0)[:, None]
    # Below a hundredth of a pixel the kernel is exactly (.., 0, 1, 0, ..).
    kernel = jnp.exp(-0.5 * (offset / jnp.maximum(sigma, 0.01)[None]) ** 2)
    kernel /= kernel[:1] + 2 * kernel[1:].sum(0, keepdims=True)
    for axis in (-2, -1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (radius, radius)
        x = _convolve(jnp.pad(x, pad, mode="reflect"), kernel, axis)
    return x


def _convolve(padded: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
    """Symmetric convolution along an axis by half a `kernel[radius + 1, b]` a row.

    Shifted sums: a convolution with a kernel a row is a grouped one, slow everywhere.
    """
    radius = len(kernel) - 1

    def channel(x):
        size = x.shape[axis] - 2 * radius
        shifted = [
            jax.lax.slice_in_dim(x, start, start + size, axis=axis)
            for start in range(2 * radius + 1)
        ]
        weight = kernel[:, :, None, None]
        y = weight[0] * shifted[radius]
        for k in range(1, radius + 1):
            y += weight[k] * (shifted[radius - k] + shifted[radius + k])
        return y

    # A loop, because XLA would otherwise compute the padding again in every shift.
    return jax.lax.map(channel, padded)


def _pixels(a: jax.Array) -> jax.Array:
    """One number a row, `a[b]`, against planes `[c, b, h, w]`."""
    return a[None, :, None, None]
