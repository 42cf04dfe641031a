"""Benchmarks: each prints a table and writes it, with the machine, to results/."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Row = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


def begin(workdir: Path) -> None:
    """Make a folder for runs, and keep their programs in it: seeds share them."""
    import jax  # here, since some benchmarks start without it

    from polyview import hosts

    workdir.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    hosts.keep_freed_memory()


def measure_missing(
    study: Iterable[Row], rows: list[dict], write: Callable[[], None]
) -> None:
    """Measure what rows lack; add each to them, with its machine, and write.

    study: what a row is about, and a function that measures the rest of it.
    """
    from polyview import hosts  # here, since some benchmarks start without JAX

    for about, measure in study:
        if any(about.items() <= row.items() for row in rows):
            continue
        started = time.perf_counter()
        found = measure()
        seconds = time.perf_counter() - started
        rows.append({**about, **found, "seconds": seconds, "machine": hosts.machine()})
        print(json.dumps({**about, **found})[:300], flush=True)
        write()


def spread(values: list[float]) -> dict:
    """Return the mean, the standard deviation over seeds, and the values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}


def student(values: list[float]) -> list[float | None]:
    """Return the mean and the ends of its 95 % interval, None of fewer than two."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [mean, None, None]
    from scipy import stats  # here, since a peer's Python may lack it

    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return [mean, mean - half, mean + half]
