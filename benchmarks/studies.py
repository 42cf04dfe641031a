"""Studies: tables whose rows are runs, measured one by one, by one process or several.

A study is a JSON of rows. What it lacks is trained and measured, a row at a time, and
written at once, so that a command given again goes on where it stopped. Several
processes with one folder for runs share the rows: one on each core (`taskset -c 0`,
`-c 1`) trains up to 1.5 times as much as one on both.
"""

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from polyview import devices, files, hosts
from polyview.evaluation.base import specs_of
from polyview.runs.evaluating import build_evaluations
from polyview.runs.load import frozen_model
from polyview.training.train import train
from polyview.training.trainer import Trainer

Row = tuple[dict[str, Any], Callable[[], dict[str, Any]]]


def begin(workdir: Path) -> None:
    """Make a folder for runs, and keep their programs in it: seeds share them."""
    workdir.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    hosts.keep_freed_memory()


def measure_missing(
    study: Callable[[list[dict]], Iterable[Row]],
    output: Path,
    workdir: Path,
    summary: Callable[[list[dict]], dict[str, Any]],
) -> list[dict]:
    """Measure the rows that a JSON lacks; write it after each, and return all rows.

    study: yields what a row is about, and a function that measures the rest of it, from
    the rows so far: a list that grows meanwhile. It leaves out what depends on rows
    that are missing, and is asked again until nothing is. summary: what the JSON says
    beside its rows. A row that another process measures is left to that one.
    """
    rows: list[dict] = []
    while True:
        measured, waiting = False, None
        rows[:] = read(output)
        for about, measure in study(rows):
            key = json.dumps(about, sort_keys=True, default=str).encode()
            name = f"{output.stem}-{hashlib.sha256(key).hexdigest()[:16]}.lock"
            with locked(workdir / name, wait=False) as alone:
                rows[:] = read(output)
                if any(about.items() <= row.items() for row in rows):
                    continue
                if not alone:
                    waiting = workdir / name
                    continue
                started = time.perf_counter()
                found = measure()
                took = {"seconds": time.perf_counter() - started}
                row = {**about, **took, "machine": hosts.machine(), **found}
                with locked(workdir / f"{output.stem}.lock"):
                    rows[:] = [*read(output), row]
                    content = {**summary(rows), "rows": rows}
                    text = json.dumps(content, indent=1) + "\n"
                    files.write_whole(output, text.encode())
            measured = True
            print(json.dumps({**about, **found})[:300], flush=True)
        if not measured and waiting is None:
            return rows
        if not measured and waiting is not None:
            with locked(waiting):  # what it measures may be what the rest depends on
                pass


def read(output: Path) -> list[dict]:
    """Return the rows so far."""
    return json.loads(output.read_text())["rows"] if output.exists() else []


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Yield whether this process alone holds a lock; wait: until it does."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def trained(config: Any, run: Path, kind: Callable[..., Any] = Trainer) -> Path:
    """Return a run's folder; train it, or go on, if it is not finished.

    Its evaluations are left to `evaluated`.
    """
    with locked(run.with_name(f"{run.name}.lock")):
        if not (run / "done").exists():
            with config.unlocked():
                evaluations, config.evaluations = config.evaluations, None
            train(kind(config), run)
            asked = json.dumps(evaluations.to_dict(), default=list)
            files.write_whole(run / "done", asked.encode())
    return run


def own_evaluations(run: Path) -> dict[str, Any]:
    """Return the specs of a trained run's evaluations."""
    return json.loads((run / "done").read_text())


def evaluated(run: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of evaluations, by name; asked: their specs."""
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        model = frozen_model(str(run))
        built = build_evaluations(specs_of({"evaluations": asked}), None, lambda: None)
        return {name: one(model, mesh) for name, one in built.items()}
