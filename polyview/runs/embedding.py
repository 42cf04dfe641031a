"""Embeddings of a data set or a folder, a row each, in order -> npz or parquet.

The work is done in parts that lie beside the output until it is whole: after an
interruption the same command resumes, and gives the same file.
"""

import io
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from polyview import devices, hosts
from polyview.config.spec import build
from polyview.config.text import text_digest, to_json
from polyview.config.trust import allow_list
from polyview.data.sources.protocol import Source
from polyview.errors import InputError, fits_together
from polyview.evaluation.features import Extracted, extract
from polyview.files import check_new, write_whole, writing_whole
from polyview.runs.encoding import (
    check_modalities,
    source_of,
    viewed_modality,
    viewing,
    views_of,
)
from polyview.runs.load import Loaded, evaluated_model, load
from polyview.runs.weights import under

PART = 4096  # rows; about a minute of a small machine
ENDINGS = (".npz", ".parquet")


def embed(
    run: Path,
    data: str,
    output: Path,
    *,
    step: int | None = None,
    features: str = "h",
    modality: str | Sequence[str] | None = None,
    batch_size: int = 256,
    trust: tuple[str, ...] = (),
    weights: Sequence[Path] = (),
) -> str:
    """Write the embeddings of `data` and return a line that says so.

    data: a folder of images, NAME[:SPLIT], or a key of the run's config that holds a
    source, as `config.evaluations.frozen.test`. modality: one, or several for a column
    each; by default that of the run's evaluation. weights: files of fixed weights that
    the checkpoint names by digest. Raises InputError for a run without a checkpoint,
    without an evaluation or with weights that are not finite, for data that are not
    there or of which no row has a modality, and where parts of another embedding lie
    beside the output.
    """
    check_new(output, ENDINGS)
    mesh = devices.make_mesh()
    whole = devices.replicated(mesh)
    model = load(run, step, whole, trust, weights)
    asked = [modality] if isinstance(modality, str) else list(modality or ())
    asked = list(dict.fromkeys(asked)) or [viewed_modality(model.config)]
    source, field = source_of(data, model.config, trust)
    # A mask has a number a pixel, more than an embedding.
    told = [n for n, task in source.targets.items() if task.get("kind") != "mask"]
    views = views_of(model.config, field, asked[0], trust, targets=told)
    check_modalities(model.config, views, source, asked)
    _check_weights(model, run, asked)
    names = _class_names(source.targets)
    others = _other_classes(names, source, model.config, trust)
    about = {
        "run": run.name,
        "step": model.step,
        "config": text_digest(to_json(model.config)),
        "input": repr(source),
        "rows": len(source),
        "files": text_digest("\n".join(getattr(source, "files", []))),
        "views": repr(views),
        "modality": asked[0] if len(asked) == 1 else asked,
        "classes": names.get("label"),
        "names": names,
        "features": features,
        "batch_size": batch_size,
    }
    folder = _folder_of_parts(output, about)
    represent = evaluated_model(model, whole)
    starts = range(0, len(source), PART)
    paths = [folder / f"{number:06d}.npz" for number in range(len(starts))]
    for number, (start, path) in enumerate(zip(starts, paths, strict=True), 1):
        if hosts.of_first_process(int(_is_whole(path))):
            continue
        with jax.set_mesh(mesh), fits_together(f"{run} and {data}"):
            extracted = {
                name: extract(
                    represent,
                    _Rows(source, start, min(PART, len(source) - start)),
                    views,
                    batch_size=batch_size,
                    mesh=mesh,
                    modality=name,
                    name=f"{number} of {len(paths)}",
                )
                for name in asked
            }
        if hosts.is_first_process():
            write_whole(path, _npz(_arrays(extracted, start, features)))
        hosts.wait_for_all(f"part {number}")
    first = hosts.is_first_process()
    rows, *of_each = (
        hosts.of_first_process(_count(paths, column) if first else 0)
        for column in ("row", *(f"present_{name}" for name in asked if len(asked) > 1))
    )
    if first and rows:
        _join(paths, getattr(source, "files", None), names, about, output)
    if first:
        shutil.rmtree(folder)
    lost = f"cannot be read or lack {' and '.join(map(repr, asked))}"
    if not rows:
        raise InputError(
            f"all {len(source)} rows of {source!r} {lost}; nothing is written"
        )
    counts = [f"{n} with {name}" for n, name in zip(of_each, asked, strict=False)]
    each = f" ({', '.join(counts)})" if counts else ""
    lost = f"; {len(source) - rows} {lost}" if rows < len(source) else ""
    return (
        f"{output}: {rows} of {len(source)} rows{each}, step {model.step}{lost}{others}"
    )


def _check_weights(model: Loaded, run: Path, modalities: Sequence[str]) -> None:
    """Raise InputError if a weight that these features need is not finite."""
    towers = model.config.model.get("towers")
    at = [f"towers.{name}" for name in modalities] if towers else [""]
    for name, array in model.arrays.items():
        if not any(under(name, path) for path in at):
            continue
        if jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            if not np.isfinite(np.asarray(array)).all():
                raise InputError(
                    f"{name} of {run} is not finite at step {model.step}, so no "
                    "feature is; name an earlier checkpoint (--step), or import sound "
                    "weights"
                )


def _class_names(targets: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the classes of each target that has them."""
    return {
        target: list(task["names"])
        for target, task in targets.items()
        if task.get("kind") not in ("mask", "regression") and task.get("names")
    }


def _other_classes(
    names: Mapping[str, list[str]],
    source: Source,
    config: ConfigDict,
    trust: tuple[str, ...],
) -> str:
    """Return what to say if classes here differ from those of the run's data."""
    told = ""
    for target, here in names.items():
        theirs = _of_the_run(target, config, trust)
        if theirs is not None and theirs != here:
            told += (
                f"; {target} counts the {len(here)} classes of {source!r} "
                f"({_some(here)}), not the {len(theirs)} of the run's data "
                f"({_some(theirs)}): compare {target}_name"
            )
    return told


def _of_the_run(
    target: str, config: ConfigDict, trust: tuple[str, ...]
) -> list[str] | None:
    """Return the classes of the run's data; None if they are not there or not named."""
    for key in ("source", "test"):
        spec = config.get(key) if key == "source" else viewing(config).get(key)
        try:
            with fits_together(f"the run's {key}"):
                built = build(spec, allow_list(trust), where=key)
        except (InputError, OSError):  # data of another machine
            continue
        if names := _class_names(getattr(built, "targets", {})).get(target):
            return names
    return None


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _arrays(
    extracted: Mapping[str, Extracted], start: int, features: str
) -> dict[str, np.ndarray]:
    """Return the columns of a part whose first row is `start` of the source.

    Of several modalities, a row is kept if it has any; NaN stands for a missing one.
    """
    whole = next(iter(extracted.values()))
    present = [found.index[found.present] for found in extracted.values()]
    kept = np.intersect1d(np.concatenate(present), whole.index)
    columns = {"row": start + kept}
    for name, found in extracted.items():
        values = getattr(found, features)
        own = np.isin(kept, found.index[found.present])
        embedding = np.full((len(kept), values.shape[1]), np.nan, np.float32)
        embedding[own] = values[found.present]
        several = f"_{name}" if len(extracted) > 1 else ""
        columns[f"embedding{several}"] = embedding
        if several:
            columns[f"present{several}"] = own
    at = np.searchsorted(whole.index, kept)
    return columns | {name: array[at] for name, array in whole.targets.items()}


def _is_whole(path: Path) -> bool:
    """Whether a part was written and can be read: else it is made again."""
    try:
        with np.load(path, allow_pickle=False) as part:
            return bool(dict(part))
    except Exception:  # what a damaged file makes of zipfile, zlib and numpy
        return False


def _count(paths: list[Path], column: str) -> int:
    """How many rows the parts have; for a column of presence, how many are present."""
    total = 0
    for path in paths:
        with np.load(path, allow_pickle=False) as part:
            values = part[column]
        total += len(values) if column == "row" else int(values.sum())
    return total


class _Rows:
    """Some rows of a source, in order."""

    def __init__(self, source: Source, start: int, count: int):
        self._source, self._start, self._count = source, start, count
        self.targets = source.targets

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[self._start + index]

    def __repr__(self) -> str:
        return repr(self._source)


def _folder_of_parts(output: Path, about: dict) -> Path:
    """The folder of the parts, new or of an interrupted run of the same command."""
    folder = output.with_name(f".{output.name}.parts")
    text = json.dumps(about, indent=1)
    if hosts.is_first_process() and not (folder / "about.json").exists():
        write_whole(folder / "about.json", text.encode())
    hosts.wait_for_all("parts")
    if (folder / "about.json").read_bytes() != text.encode():
        raise InputError(
            f"{folder} holds parts of another embedding (another step, input or batch "
            "size); remove it, or name another --output"
        )
    return folder


def _npz(arrays: dict) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _join(
    paths: list[Path],
    files: list[str] | None,
    names: Mapping[str, list[str]],
    about: dict,
    output: Path,
) -> None:
    """Write the parts as one file, with the names of classes beside their numbers."""

    def columns(path: Path) -> dict:
        with np.load(path, allow_pickle=False) as part:
            arrays = dict(part)
        rows = arrays.pop("row")
        ids = rows if files is None else np.array([files[row] for row in rows], str)
        named = {
            f"{target}_name": _named(arrays[target], classes)
            for target, classes in names.items()
        }
        return {"id": ids, **arrays, **named}

    if output.suffix.lower() == ".parquet":
        _write_parquet(map(columns, paths), about, output)
        return
    parts = [columns(path) for path in paths]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    write_whole(output, _npz(joined | {"about": np.array(json.dumps(about))}))


def _named(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the class of each row in words: str[n], "" where it is unknown (-1).

    labels: int[n]; or [n, classes] of 0 or 1, whose names are joined by `|`.
    """
    if labels.ndim == 1:
        return np.array([*classes, ""], str)[labels]
    return np.array(["|".join(compress(classes, row)) for row in labels], str)


def _write_parquet(parts: Iterable[dict], about: dict, output: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    def column(array: np.ndarray) -> Any:
        if array.ndim == 1:
            return pyarrow.array(array)
        flat, width = pyarrow.array(array.ravel()), math.prod(array.shape[1:])
        return pyarrow.FixedSizeListArray.from_arrays(flat, width)

    writer: Any = None
    with writing_whole(output) as unfinished:
        for part in parts:
            arrays = {name: column(array) for name, array in part.items()}
            table = pyarrow.table(arrays).replace_schema_metadata(
                {"about": json.dumps(about)}
            )
            writer = writer or parquet.ParquetWriter(unfinished, table.schema)
            writer.write_table(table)
        writer.close()
