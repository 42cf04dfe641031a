"""Colour jitter, greyscale, blur and solarisation, on the device (Chen et al. 2020).

Every view draws its own parameters, chances and order from its row's key. The
definitions are torchvision's, for floats in [0, 1]: with g(x) the luma of a pixel,

    brightness  clip(f x)                      contrast  clip(f x + (1 - f) mean g(x))
    saturation  clip(f x + (1 - f) g(x))       hue       HSV rotation by a fraction

All but the hue are one blend, clip(keep x + grey g(x) + mean mean(g(x))). So a random
order needs no branches: three blends before the hue and three after it, with those not
drawn the identity (1, 0, 0). Every view does the same work and no operation mixes
views, so each device works on its own rows, and the code is vectorised on CPU, GPU and
TPU. Branches would save work only on a CPU. Memory traffic costs more time than
arithmetic, so views are processed in chunks that fit in a cache.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polyview.errors import InputError, check_range

# Floats of a chunk of views. On a CPU with 32 MB of cache 2**18 is a little faster and
# 2**24 a third slower (`benchmarks/photometry.py`). Accelerators (not yet measured)
# need larger kernels, and 8 MB fit their caches too.
CHUNK = 2**21


class Draw(NamedTuple):
    """The noise of one view, or of many with leading axes."""

    priority: jax.Array  # [4]: brightness, contrast, saturation, hue; lowest runs first
    factor: jax.Array  # [3]: brightness, contrast, saturation; 1 where not applied
    turn: jax.Array  # of the hue, fraction of a circle; 0 where not applied
    grey: jax.Array  # bool
    sigma: jax.Array  # of the blur, in pixels; 0 where not applied
    solarise: jax.Array  # bool


@dataclass(frozen=True)
class Photometry:
    """SimCLR's colour augmentation of views in [0, 1] (Chen et al. 2020, appendix A).

    `strength` scales the jitter: factors are in [1 - v, 1 + v] (and above 0), and the
    hue turns by at most `hue` of a circle. The blur's kernel is a tenth of the height,
    made odd, its `sigma` uniform. Solarisation, off by default, comes last (Grill et
    al. 2020). Images have 3 channels, or 1: hue, saturation and grey then do nothing.
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

    def __post_init__(self) -> None:
        chances = {n: v for n, v in vars(self).items() if n.endswith("_chance")}
        check_range(0.0, strength=self.strength)
        check_range(0.0, 1.0, **chances)

    def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Augment images[b, m, h, w, c], uint8 or floats in [0, 1], by keys[b]: floats.

        View a of row i is a function of images[i, a], keys[i] and a alone. Under a mesh
        (`jax.set_mesh`, Auto axes) the rows are sharded over all of its axes. Raises
        InputError for other than 1 or 3 channels, and for images too narrow to blur.
        """
        channels = images.shape[-1]
        if channels not in (1, 3):
            raise InputError(
                f"photometry takes images of 1 or 3 channels, not {channels}; set "
                "photometry to None for these images"
            )
        height, width = images.shape[2:4]
        if self.blur_chance > 0 and width <= height // 20:
            raise InputError(
                f"photometry cannot blur images of {height} x {width}, narrower than "
                "its kernel; set photometry.blur_chance to 0"
            )
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.size <= 1:
            return self._rows(images, keys)
        rows = jax.P(mesh.axis_names)
        return jax.shard_map(self._rows, in_specs=rows, out_specs=rows)(images, keys)

    def _rows(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Augment the rows of one device, a chunk of views at a time."""
        b, m, *shape = images.shape

        def of_row(key: jax.Array) -> Draw:
            of_view = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(m))
            return jax.vmap(self.draw)(of_view)

        most = min(b * m, max(1, CHUNK // math.prod(shape)))
        size = max(n for n in range(1, most + 1) if b * m % n == 0)
        views = (images, jax.vmap(of_row)(keys))
        chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[2:]), views)
        done = jax.lax.map(lambda chunk: self._apply(*chunk), chunks)
        return done.reshape(b, m, *shape)

    def draw(self, key: jax.Array) -> Draw:
        """Draw the noise of one view."""
        uniform = jax.random.uniform(key, (13,))
        spread = jnp.array([self.brightness, self.contrast, self.saturation])
        spread = self.strength * spread
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

    def _apply(self, images: jax.Array, draw: Draw) -> jax.Array:
        """Apply the noise `draw[b]` to images `[b, h, w, c]`."""
        *shape, channels = images.shape
        # As a matrix: XLA (CPU) makes a layout of a longer transpose, and copies later.
        x = images.reshape(-1, channels).T.reshape(channels, *shape)
        if x.dtype == jnp.uint8:
            x = x.astype(float) / 255
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.jitter_chance > 0:
            x = jitter(x, draw.priority, draw.factor, draw.turn)
        if self.blur_chance > 0:
            x = blur(x, draw.sigma, radius=x.shape[-2] // 20)
        # Grey belongs before the blur. Both are linear and neither clips: they commute.
        if self.grey_chance > 0:
            x = jnp.where(_pixels(draw.grey), luma(x), x)
        if self.solarise_chance > 0:
            x = jnp.where(_pixels(draw.solarise) & (x >= 0.5), 1 - x, x)
        return jnp.moveaxis(x, 0, -1)


# The operations work on planes x[c, b, h, w], with parameters per row. Neighbouring
# pixels of a channel are neighbours in memory, as vector units need.


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
    # The weights of each operation, [4, 3, b]; the hue has the identity.
    keep = jnp.stack([brightness, contrast, saturation, one])
    grey = jnp.stack([zero, zero, 1 - saturation, zero])
    mean = jnp.stack([zero, 1 - contrast, zero, zero])
    weights = jnp.stack([keep, grey, mean], 1)
    # Images of one channel have two of the four operations.
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
    """Apply successive blends with `weights[step, 3, b]`."""

    def blend(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
        keep, grey, mean = weight
        y = luma(x)
        level = y.mean((-2, -1), keepdims=True)
        y = _pixels(keep) * x + _pixels(grey) * y + _pixels(mean) * level
        return jnp.clip(y, 0, 1), None

    # A loop: otherwise XLA computes all blends again for each mean.
    return jax.lax.scan(blend, x, weights)[0]


def rotate_hue(x: jax.Array, turn: jax.Array) -> jax.Array:
    """Turn the hue of `x[3, b, h, w]` by `turn[b]` of a circle.

    Value and chroma do not change, so the way to HSV and back reduces to
    channel n = value - chroma clip(2 - |6 k - 2|, 0, 1), k = (n / 6 + hue) mod 1, for
    n = 5, 3, 1.
    """
    red, green, blue = x[:1], x[1:2], x[2:]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1 / (6 * jnp.where(chroma > 0, chroma, 1))
    of_green, of_blue = 1 / 3 + (blue - red) * scale, 2 / 3 + (red - green) * scale
    hue = jnp.where(value == green, of_green, of_blue)
    hue = jnp.where(value == red, (green - blue) * scale, hue)
    k = hue + _pixels(turn) + jnp.array([5, 3, 1])[:, None, None, None] / 6
    k -= jnp.floor(k)
    return value - chroma * jnp.clip(2 - abs(6 * k - 2), 0, 1)


def blur(x: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Blur `x[c, b, h, w]` with a Gaussian of `sigma[b]` pixels, edges reflected.

    The kernel has 2 radius + 1 pixels; sigma = 0 is the identity.
    """
    offset = jnp.arange(radius + 1.0)[:, None]
    # Below a hundredth of a pixel the kernel is exactly (.., 0, 1, 0, ..).
    kernel = jnp.exp(-0.5 * (offset / jnp.maximum(sigma, 0.01)[None]) ** 2)
    kernel /= kernel[:1] + 2 * kernel[1:].sum(0, keepdims=True)

    def channel(padded: jax.Array) -> jax.Array:
        x = _convolve(padded, kernel, axis=1)
        return _convolve(_reflect(x, radius, axis=2), kernel, axis=2)

    # A loop: otherwise XLA computes the sums again for each use.
    return jax.lax.map(channel, _reflect(x, radius, axis=2))


def _reflect(x: jax.Array, radius: int, axis: int) -> jax.Array:
    """Extend an axis of `x` by `radius` pixels at both ends, mirrored at its edges.

    With one concatenation: `jnp.pad` makes two, which XLA (CPU) computes one by one.
    """

    def mirrored(start: int) -> jax.Array:
        part = jax.lax.slice_in_dim(x, start, start + radius, axis=axis)
        return jnp.flip(part, axis)

    last = x.shape[axis] - 1
    return jnp.concatenate([mirrored(1), x, mirrored(last - radius)], axis)


def _convolve(padded: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
    """Convolve `padded[b, ...]` along an axis, without its padding, by half kernels.

    `kernel[radius + 1, b]` is half a symmetric kernel a row. Uses shifted sums: with
    [h, h] and [w, w] matrix products the blur took 3.6 times as long (CPU, 224 px).
    """
    radius = len(kernel) - 1
    size = padded.shape[axis] - 2 * radius

    def shifted(by: int) -> jax.Array:
        start = radius + by
        return jax.lax.slice_in_dim(padded, start, start + size, axis=axis)

    weight = kernel[:, :, None, None]
    y = weight[0] * shifted(0)
    for k in range(1, radius + 1):
        y += weight[k] * (shifted(-k) + shifted(k))
    return y


def _pixels(a: jax.Array) -> jax.Array:
    """Shape one number a row, `a[b]`, to broadcast against planes `[c, b, h, w]`."""
    return a[None, :, None, None]
