"""Features of images that no label taught: what an encoder has to beat.

Each is a function `represent(batch) -> {modality: features}`, as evaluations call it,
of views[b, m, h, w, c], uint8 or floats in 0 .. 1:

- pooled: means of 2 x 2 pixels.
- hog: histograms of oriented gradients (Dalal & Triggs 2005): 8 x 8 cells, 8
  orientations without sign; 512 numbers for an image of any size.
- patch_words (Coates et al. 2011): whitened patches of 6 x 6 pixels; how much closer
  than the average each of 64 k-means centres is, by 6 x 6 regions; 2,304 numbers.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from polyview.data.sources.protocol import CorruptRecord, Source
from polyview.errors import InputError
from polyview.evaluation.features import Flat

_DARK = 0.05  # a gradient, in 0 .. 1, below which a cell of `hog` counts as empty
_FLAT = 10 / 255**2  # added to the variance of a patch (Coates et al. 2011)
_WHITE = 0.1  # added to the variances of whitening (Coates et al. 2011)
_ROWS = 2_000  # images that patches are taken from
_PATCHES = 25  # of each image


def references(
    train: Source, views: Callable, *, modality: str = "image", seed: int = 0
) -> dict[str, Callable]:
    """Return {"pooled", "hog", "patch_words": represent}; {} for views without images.

    The words are learnt on images of train as the views show them, without labels.
    """
    images = _some_images(train, views, modality, seed)
    if images is None:
        return {}
    words = learn_words(images, seed=seed)
    return {
        "pooled": jax.jit(partial(pooled, modality=modality)),
        "hog": jax.jit(partial(hog, modality=modality)),
        "patch_words": jax.jit(partial(patch_words, words=words, modality=modality)),
    }


def pooled(batch: Mapping[str, Any], *, modality: str = "image") -> dict[str, Flat]:
    """Return means of 2 x 2 pixels; an odd last row or column stands alone."""

    def means(images: jax.Array) -> jax.Array:
        height, width = (-(-side // 2) for side in images.shape[1:3])
        return _over_grid(images, _regions, height, width)

    return _each(batch, modality, means)


def hog(
    batch: Mapping[str, Any],
    *,
    cells: int = 8,
    orientations: int = 8,
    modality: str = "image",
) -> dict[str, Flat]:
    """Return histograms of oriented gradients, `cells`^2 * `orientations` an image.

    Gradients are central differences; of several channels the steepest counts. An angle
    in 0 .. 180 degrees votes with its gradient's size for the two nearest orientations,
    in the cells with the nearest middles, linearly. A cell's histogram is divided by
    the length of those of the 3 x 3 cells around it.
    """

    def histograms(images: jax.Array) -> jax.Array:
        around = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        down = around[:, 2:, 1:-1] - around[:, :-2, 1:-1]
        right = around[:, 1:-1, 2:] - around[:, 1:-1, :-2]
        size = jnp.sqrt(jnp.square(down) + jnp.square(right))
        steepest = jnp.argmax(size, axis=-1, keepdims=True)
        down, right, size = (
            jnp.take_along_axis(x, steepest, axis=-1) for x in (down, right, size)
        )
        place = jnp.arctan2(down, right) / jnp.pi * orientations
        bins = jnp.arange(orientations, dtype=place.dtype).reshape(1, 1, 1, -1)
        apart = jnp.mod(place - bins, orientations)
        apart = jnp.minimum(apart, orientations - apart)
        votes = size * jnp.maximum(1 - apart, 0)
        each = _over_grid(votes, _tents, cells, cells)
        energy = jnp.sum(jnp.square(each), axis=-1)
        energy = jnp.pad(energy, ((0, 0), (1, 1), (1, 1)))
        near = sum(
            energy[:, row : row + cells, column : column + cells]
            for row in range(3)
            for column in range(3)
        )
        return each / jnp.sqrt(near + _DARK**2)[..., None]

    return _each(batch, modality, histograms)


class Words(NamedTuple):
    """Whitening and centres of patches: float32[d], [d, d] and [k, d]; d = size^2 c."""

    mean: np.ndarray
    whitening: np.ndarray
    centres: np.ndarray
    size: int


def learn_words(
    images: np.ndarray, *, number: int = 64, size: int = 6, seed: int = 0
) -> Words:
    """Return k-means centres of whitened patches of images[n, h, w, c].

    images: uint8, or floats in 0 .. 1. Deterministic. Raises InputError for images
    smaller than a patch, and for fewer patches than centres.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    count, height, width, _ = images.shape
    if min(height, width) < size:
        raise InputError(
            f"patch words of {size} x {size} pixels need larger images than {height} x "
            f"{width}; leave out --references"
        )
    rng = np.random.default_rng(seed)
    rows = np.arange(count).repeat(_PATCHES)
    top = rng.integers(height - size + 1, size=len(rows))
    left = rng.integers(width - size + 1, size=len(rows))
    within = np.arange(size)
    patches = images[
        rows[:, None, None],
        (top[:, None] + within)[:, :, None],
        (left[:, None] + within)[:, None, :],
    ]
    unit = 255 if images.dtype == np.uint8 else 1
    x = np.asarray(_levelled(patches.reshape(len(rows), -1).astype(np.float32) / unit))
    if len(x) < number:
        raise InputError(
            f"{len(x)} patches of {count} images are too few for {number} words; leave "
            "out --references, or name more data"
        )
    mean = x.mean(axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(np.cov(x, rowvar=False, dtype=np.float64))
    whitening = (axes / np.sqrt(np.maximum(values, 0) + _WHITE)) @ axes.T
    white = ((x - mean) @ whitening).astype(np.float32)
    clusters = MiniBatchKMeans(
        number, random_state=seed, n_init=1, batch_size=4096, max_iter=30
    )
    with threadpool_limits(1):  # threads add in another order each time
        centres = clusters.fit(white).cluster_centers_
    mean, whitening, centres = (
        part.astype(np.float32) for part in (mean, whitening, centres)
    )
    return Words(mean, whitening, centres, size)


def patch_words(
    batch: Mapping[str, Any],
    *,
    words: Words,
    regions: int = 6,
    modality: str = "image",
) -> dict[str, Flat]:
    """Return max(0, mean distance - distance) to each centre, means by regions.

    The mean is over the centres, a patch's own. `regions`^2 * k numbers an image.
    """

    def activations(images: jax.Array) -> jax.Array:
        size = words.size
        height, width = (side - size + 1 for side in images.shape[1:3])
        patches = jnp.concatenate(
            [
                images[:, row : row + height, column : column + width]
                for row in range(size)
                for column in range(size)
            ],
            axis=-1,
        )  # pixels by rows, channels last, as in `learn_words`
        exact = partial(jnp.matmul, precision="highest")
        x = _levelled(patches) - jnp.asarray(words.mean).reshape(1, 1, 1, -1)
        x = exact(x, jnp.asarray(words.whitening))
        centres = jnp.asarray(words.centres)
        squared = (
            jnp.sum(jnp.square(x), axis=-1, keepdims=True)
            - 2 * exact(x, centres.T)
            + jnp.sum(jnp.square(centres), axis=-1).reshape(1, 1, 1, -1)
        )
        distance = jnp.sqrt(jnp.maximum(squared, 0))
        nearer = jnp.mean(distance, axis=-1, keepdims=True) - distance
        return _over_grid(jnp.maximum(nearer, 0), _regions, regions, regions)

    return _each(batch, modality, activations)


def _levelled(patches: Any) -> Any:
    """Return patches[..., d] without their mean brightness and contrast."""
    apart = patches - patches.mean(axis=-1, keepdims=True)
    return apart / (patches.var(axis=-1, keepdims=True) + _FLAT) ** 0.5


def _each(
    batch: Mapping[str, Any], modality: str, describe: Callable
) -> dict[str, Flat]:
    """Return `describe(images[n, h, w, c])`, flattened, of each view of a batch.

    Views are described one column after another, which bounds the memory.
    """
    views = batch["views"][modality]
    unit = 255 if views.dtype == jnp.uint8 else 1
    each = [
        describe(views[:, column].astype(jnp.float32) / unit)
        for column in range(views.shape[1])
    ]
    flat = jnp.stack([rearrange(x, "b ... -> b (...)") for x in each], axis=1)
    return {modality: Flat(h=flat, z=flat)}


def _over_grid(maps: jax.Array, weigh: Callable, rows: int, columns: int) -> jax.Array:
    """Return weighted means over cells, [n, h, w, k] -> [n, rows, columns, k].

    weigh: `_regions` or `_tents`. Raises InputError for a map smaller than the grid.
    """
    height, width = maps.shape[1:3]
    if height < rows or width < columns:
        raise InputError(
            f"a map of {height} x {width} has no {rows} x {columns} cells; give larger "
            "images, or leave out --references"
        )
    down, across = weigh(height, rows), weigh(width, columns)
    return jnp.einsum("rh,nhwk,cw->nrck", down, maps, across, precision="highest")


def _regions(length: int, cells: int) -> np.ndarray:
    """Return weights float32[cells, length] of parts that differ by at most one."""
    own = np.arange(length) * cells // length
    inside = (own == np.arange(cells)[:, None]).astype(np.float32)
    return inside / inside.sum(axis=1, keepdims=True)


def _tents(length: int, cells: int) -> np.ndarray:
    """Return weights float32[cells, length] that fall from the middle of a cell to the
    middles of its neighbours."""
    place = (np.arange(length) + 0.5) / length * cells - 0.5
    apart = np.abs(place - np.arange(cells)[:, None])
    weight = np.maximum(1 - apart, 0).astype(np.float32)
    return weight / weight.sum(axis=1, keepdims=True)


def _some_images(
    source: Source, views: Callable, modality: str, seed: int
) -> np.ndarray | None:
    """Return first views of some rows of a source, or None if they are no images."""
    images = []
    rng = np.random.default_rng(seed)
    for row in rng.permutation(len(source))[:_ROWS]:
        try:
            view = views(source[int(row)], rng)["views"][modality][0]
        except CorruptRecord:
            continue
        if view.ndim != 3 or view.dtype.kind not in "uf":
            return None
        images.append(view)
    return np.stack(images) if images else None
