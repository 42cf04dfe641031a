"""Features of a split: each row once, in order, on the host, ready for the probes."""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from polyview import devices, hosts
from polyview.data import pipeline
from polyview.errors import InputError

_QUIET = 3.0  # seconds; shorter work shows no progress


class Extracted(NamedTuple):
    """Row i of every array is `source[index[i]]`.

    h: float32[n, d'] representation, what the probes read; z: float32[n, d] projected;
    targets: {name: array[n, ...]}; index: int[n]; present: bool[n], false where the row
    lacks this modality (its features then mean nothing).
    """

    h: np.ndarray
    z: np.ndarray
    targets: dict[str, np.ndarray]
    index: np.ndarray
    present: np.ndarray


def extract(
    represent: Callable,
    source,
    views: Callable,
    *,
    batch_size: int,
    mesh: Mesh,
    modality: str = "image",
    seed: int = 0,
    name: str = "",
) -> Extracted:
    """Run every row of `source` through `represent`, in order.

    `represent(batch) -> {modality: features}` with `features.h` [b, m, d'] and
    `features.z` [b, m, d]; where a sample has several views their mean is taken.
    `batch_size` is global and is rounded up to a multiple of the number of devices.
    `name` labels the progress bar. Every process receives all rows. Raises InputError
    for a modality that does not exist and for features that are not finite.
    """
    batch_size += -batch_size % mesh.size
    gather = jax.jit(_gather, out_shardings=devices.replicated(mesh))
    batches = pipeline.ordered(
        source,
        views,
        batch_size=batch_size,
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
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
                    f"{sorted(batch['views'])}; correct `modality` of the evaluation"
                )
            batch = devices.put(batch, mesh)
            running = gather(
                represent(batch)[modality],
                batch["present"][modality],
                batch["targets"],
                batch["index"],
            )
            # The host reads one batch behind, so that it decodes the next meanwhile.
            if ahead is not None:
                parts.append(jax.tree.map(np.asarray, ahead))
            ahead = running
            bar.update(min(batch_size, len(source) - bar.n))
        if ahead is not None:
            parts.append(jax.tree.map(np.asarray, ahead))
    if not parts:
        raise InputError(
            f"the split {name} has no rows; name another".replace("  ", " ")
        )
    extracted = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    real = extracted.index >= 0  # the last batch is padded with rows of index -1
    extracted = jax.tree.map(lambda array: array[real], extracted)
    _check_finite(extracted, name)
    seconds = time.perf_counter() - began
    if bar.disable and first and seconds > _QUIET:
        print(
            f"features {name}: {len(source)} rows in {seconds:.0f} s", file=sys.stderr
        )
    return extracted


def _gather(features, present, targets, index) -> Extracted:
    """Mean over the views that are present, on every process."""
    weight = present.astype(jnp.float32)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1)

    def mean(x):  # where, since what stands in an absent view may be anything
        x = jnp.where(present[..., None], x.astype(jnp.float32), 0)
        return jnp.einsum("bm,bmd->bd", weight, x, precision="highest")

    return Extracted(
        h=mean(features.h),
        z=mean(features.z),
        targets=targets,
        index=index,
        present=jnp.any(present, axis=1),
    )


def _check_finite(extracted: Extracted, name: str) -> None:
    for field in ("h", "z"):
        finite = np.isfinite(getattr(extracted, field)).all(axis=1)
        if not finite.all():
            rows = extracted.index[~finite]
            raise InputError(
                f"{name or 'the split'}: {len(rows)} of {len(finite)} rows (first: row "
                f"{rows[0]}) have features {field} that are not finite; the checkpoint "
                "has diverged: evaluate an earlier step, or lower the learning rate"
            )
