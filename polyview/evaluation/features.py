"""Features of a split on the host: each row once, in order."""

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from polyview import devices, hosts
from polyview.data import pipeline
from polyview.data.sources.protocol import Source
from polyview.errors import InputError

_PIXELS = 64  # longest side of an image kept for a figure
_QUIET = 3.0  # seconds; shorter work shows no progress


class Extracted(NamedTuple):
    """Features of n rows; row i of every array is `source[index[i]]`.

    h: float32[n, d'], the representation, which probes read; z: float32[n, d], its
    projection; targets: {name: array[n, ...]}; index: int[n]; present: bool[n], False
    where the row lacks this modality (its features are then meaningless).
    """

    h: np.ndarray
    z: np.ndarray
    targets: dict[str, np.ndarray]
    index: np.ndarray  # type: ignore[assignment]  # shadows tuple.index
    present: np.ndarray


class Decoded:
    """The batches of a split, in order; decoded once, however often they are read.

    Batches that take more than `most` bytes together are not kept, but decoded again.
    By default that is an eighth of the machine's memory: the pixels of such a split, as
    float32 features, take half of it, so that no reference which fits into memory needs
    a second decoding. Other arguments are as in `extract`.
    """

    def __init__(
        self,
        source: Source,
        views: Callable,
        *,
        batch_size: int,
        mesh: Mesh,
        seed: int = 0,
        most: int | None = None,
    ):
        self._read = functools.partial(
            pipeline.ordered,
            source,
            views,
            batch_size=batch_size + -batch_size % mesh.size,
            seed=seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self._most = hosts.main_memory() // 8 if most is None else most
        self._kept: list[dict] | None = None

    def __iter__(self) -> Iterator[dict]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[dict] | None = []
        size = 0
        for batch in self._read():
            size += sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
            if kept is not None and size <= self._most:
                kept.append(batch)
            else:
                kept = None
            yield batch
        self._kept = kept


def extract(
    represent: Callable,
    source: Source,
    views: Callable,
    *,
    batch_size: int,
    mesh: Mesh,
    modality: str = "image",
    seed: int = 0,
    name: str = "",
    batches: Iterable[dict] | None = None,
) -> Extracted:
    """Extract the features of every row of `source`, in order.

    `represent(batch) -> {modality: features}` with `features.h` [b, m, d'] and
    `features.z` [b, m, d]; both are averaged over the views of a sample. `batch_size`
    is global and is rounded up to a multiple of the number of devices. `name` labels
    the progress bar. `batches` are those of a `Decoded` with the same arguments, if
    several models read one split. Every process receives all rows. Raises InputError
    for a modality that does not exist, a split without rows, and features that are not
    finite.
    """
    gather = jax.jit(_gather, out_shardings=devices.replicated(mesh))
    if batches is None:
        batches = Decoded(
            source, views, batch_size=batch_size, mesh=mesh, seed=seed, most=0
        )
    batch_size += -batch_size % mesh.size
    parts, ahead, began = [], None, time.perf_counter()
    first = hosts.is_first_process()
    bar = tqdm(
        total=len(source),
        desc=f"features {name}".strip(),
        unit=" rows",
        delay=_QUIET,
        leave=False,
        disable=not (first and sys.stderr.isatty()),
    )
    with bar:
        for batch in batches:
            if modality not in batch["views"]:
                raise InputError(
                    f"modality '{modality}' is not among the views "
                    f"{sorted(batch['views'])}; correct the evaluation's `modality`"
                )
            batch = devices.put(batch, mesh)
            running = gather(
                represent(batch)[modality],
                batch["present"][modality],
                batch["targets"],
                batch["index"],
            )
            # Read one batch late, so that the host decodes the next one meanwhile.
            if ahead is not None:
                parts.append(jax.tree.map(np.asarray, ahead))
            ahead = running
            bar.update(min(batch_size, len(source) - bar.n))
        if ahead is not None:
            parts.append(jax.tree.map(np.asarray, ahead))
    if not parts:
        raise InputError(
            f"the split {name} has no rows; choose another".replace("  ", " ")
        )
    extracted = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    real = extracted.index >= 0  # rows that pad the last batch have index -1
    extracted = jax.tree.map(lambda array: array[real], extracted)
    check_finite(extracted, name)
    seconds = time.perf_counter() - began
    if bar.disable and first and seconds > _QUIET:
        print(
            f"features {name}: {len(source)} rows in {seconds:.0f} s", file=sys.stderr
        )
    return extracted


def _gather(
    features: Any, present: jax.Array, targets: dict, index: jax.Array
) -> Extracted:
    """Average over the views that are present, on every process."""
    weight = present.astype(jnp.float32)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1)

    def mean(x: jax.Array) -> jax.Array:  # where: missing views may hold NaN
        x = jnp.where(present[..., None], x.astype(jnp.float32), 0)
        return jnp.einsum("bm,bmd->bd", weight, x, precision="highest")

    fields: dict[str, Any] = {  # traced arrays, unlike those of the result
        "h": mean(features.h),
        "z": mean(features.z),
        "targets": targets,
        "index": index,
        "present": jnp.any(present, axis=1),
    }
    return Extracted(**fields)


def with_modality(extracted: Extracted, split: str, modality: str) -> Extracted:
    """Return the rows that have the modality. Raises InputError if none has."""
    if not extracted.present.any():
        raise InputError(f"no row of the {split} split has the modality '{modality}'")
    return jax.tree.map(lambda x: x[extracted.present], extracted)


def extracted_splits(
    sources: Mapping[str, Source],
    views: Callable,
    models: Mapping[Any, Callable],
    mesh: Mesh,
    *,
    modality: str,
    batch_size: int,
    seed: int = 0,
) -> Iterator[tuple[Any, dict[str, Extracted]]]:
    """Yield (key, {split: features}) of each model in turn; data are decoded once."""
    options: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh, "seed": seed}
    most = 0 if len(models) == 1 else None
    batches = {
        split: Decoded(source, views, most=most, **options)
        for split, source in sources.items()
    }
    for key, represent in models.items():
        read = {}
        for split, source in sources.items():
            extracted = extract(
                represent,
                source,
                views,
                modality=modality,
                name=split,
                batches=batches[split],
                **options,
            )
            read[split] = with_modality(extracted, split, modality)
        yield key, read


class Flat(NamedTuple):
    """The input itself as features."""

    h: jax.Array
    z: jax.Array


def raw_features(batch: dict[str, Any], modality: str) -> dict[str, Flat]:
    """Return the views of a modality, flattened; those of uint8 are divided by 255."""
    view = batch["views"][modality]
    unit = 255 if view.dtype == jnp.uint8 else 1
    flat = view.reshape(*view.shape[:2], -1).astype(jnp.float32) / unit
    return {modality: Flat(h=flat, z=flat)}


def small_image(
    source: Source, row: int, views: Callable, *, modality: str, seed: int
) -> np.ndarray | None:
    """Return the first view of a row as a small uint8[h, w, c], or None if no image."""
    generated = views(source[int(row)], np.random.default_rng(seed))
    image = generated["views"][modality][0]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        return None
    height, width, channels = image.shape
    shrink = _PIXELS / max(height, width, _PIXELS)
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image.reshape(*image.shape[:2], channels)


def one_device() -> Mesh:
    """Return a mesh of one device of this process, for what is too small to divide."""
    return Mesh(np.asarray(jax.local_devices()[:1]), ("data",))


def unit(x: np.ndarray) -> np.ndarray:
    """Return rows of length one, float64; a row of zeros stays."""
    x = np.asarray(x, np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def check_finite(extracted: Extracted, name: str) -> None:
    """Raise InputError for features that are not finite; name: of the split."""
    for field in ("h", "z"):
        finite = np.isfinite(getattr(extracted, field)).all(axis=1)
        if not finite.all():
            rows = extracted.index[~finite]
            raise InputError(
                f"{name or 'the split'}: {len(rows)} of {len(finite)} rows (first: row "
                f"{rows[0]}) have features {field} that are not finite; the checkpoint "
                "has diverged, or its weights came so: evaluate an earlier step"
            )
