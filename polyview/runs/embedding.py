"""Embeddings of a data set or a folder, a row each, in order -> npz or parquet.

The work is done in parts that lie beside the output until it is whole: after an
interruption the same command resumes, and gives the same file.
"""

import io
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from polyview import devices, hosts
from polyview.config.text import text_digest, to_json
from polyview.data.sources.protocol import Source
from polyview.errors import InputError, fits_together
from polyview.evaluation.features import Extracted, extract
from polyview.files import check_new, write_whole, writing_whole
from polyview.runs.encoding import source_of, viewed_modality, views_of
from polyview.runs.load import evaluated_model, load

PART = 4096  # rows; about a minute of a small machine
ENDINGS = (".npz", ".parquet")


def embed(
    run: Path,
    data: str,
    output: Path,
    *,
    step: int | None = None,
    features: str = "h",
    modality: str | None = None,
    batch_size: int = 256,
    trust: tuple[str, ...] = (),
    weights: Sequence[Path] = (),
) -> str:
    """Write the embeddings of `data` and return a line that says so.

    data: a folder of images, or NAME[:SPLIT]. weights: files of fixed weights that the
    checkpoint names by digest. Raises InputError for a run without a checkpoint or
    without an evaluation, for data that are not there or of which no row has the
    modality, and where parts of another embedding lie beside the output.
    """
    check_new(output, ENDINGS)
    source = source_of(data)
    mesh = devices.make_mesh()
    whole = devices.replicated(mesh)
    model = load(run, step, whole, trust, weights)
    views = views_of(model.config, source.targets, trust)
    modality = modality or viewed_modality(model.config)
    about = {
        "run": run.name,
        "step": model.step,
        "config": text_digest(to_json(model.config)),
        "input": repr(source),
        "rows": len(source),
        "files": text_digest("\n".join(getattr(source, "files", []))),
        "views": repr(views),
        "modality": modality,
        "classes": source.targets.get("label", {}).get("names"),
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
            extracted = extract(
                represent,
                _Rows(source, start, min(PART, len(source) - start)),
                views,
                batch_size=batch_size,
                mesh=mesh,
                modality=modality,
                name=f"{number} of {len(paths)}",
            )
        if hosts.is_first_process():
            write_whole(path, _npz(_arrays(extracted, start, features)))
        hosts.wait_for_all(f"part {number}")
    first = hosts.is_first_process()
    rows = hosts.of_first_process(sum(map(_rows_of, paths)) if first else 0)
    lost = f"cannot be read or lack '{modality}'"
    if first and rows:
        _join(paths, getattr(source, "files", None), about, output)
    if first:
        shutil.rmtree(folder)
    if not rows:
        raise InputError(
            f"all {len(source)} rows of {source!r} {lost}; nothing is written"
        )
    lost = f"; {len(source) - rows} {lost}" if rows < len(source) else ""
    return f"{output}: {rows} of {len(source)} rows, step {model.step}{lost}"


def _arrays(extracted: Extracted, start: int, features: str) -> dict[str, np.ndarray]:
    """The columns of a part whose first row is `start` of the source."""
    present = extracted.present
    targets = {name: array[present] for name, array in extracted.targets.items()}
    embedding = getattr(extracted, features)[present].astype(np.float32)
    return {
        "row": start + extracted.index[present],
        "embedding": embedding,
        **targets,
    }


def _is_whole(path: Path) -> bool:
    """Whether a part was written and can be read: else it is made again."""
    try:
        with np.load(path, allow_pickle=False) as part:
            return bool(dict(part))
    except Exception:  # what a damaged file makes of zipfile, zlib and numpy
        return False


def _rows_of(path: Path) -> int:
    """How many rows a part has."""
    with np.load(path, allow_pickle=False) as part:
        return len(part["row"])


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
    paths: list[Path], files: list[str] | None, about: dict, output: Path
) -> None:
    """Write the parts as one file."""

    def columns(path: Path) -> dict:
        with np.load(path, allow_pickle=False) as part:
            arrays = dict(part)
        rows = arrays.pop("row")
        ids = rows if files is None else np.array([files[row] for row in rows], str)
        return {"id": ids, **arrays}

    if output.suffix == ".parquet":
        _write_parquet(map(columns, paths), about, output)
        return
    parts = [columns(path) for path in paths]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    write_whole(output, _npz(joined | {"about": np.array(json.dumps(about))}))


def _write_parquet(parts: Iterable[dict], about: dict, output: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    writer: Any = None
    with writing_whole(output) as unfinished:
        for part in parts:
            width = part["embedding"].shape[1]
            flat = pyarrow.array(part["embedding"].ravel())
            part["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, width)
            table = pyarrow.table(part).replace_schema_metadata(
                {"about": json.dumps(about)}
            )
            writer = writer or parquet.ParquetWriter(unfinished, table.schema)
            writer.write_table(table)
        writer.close()
