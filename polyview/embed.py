"""Embed a data set or a folder of images: a row for each, in order -> npz or parquet.

    python -m polyview.embed --run runs/a --input fashion_mnist:test --output x.npz
    python -m polyview.embed --run runs/a --input photos/ --output x.parquet

Images are seen as in the evaluation of the run: whole, central views. `id` is a file's
path below the folder or a row's number, `embedding` float32[n, d], `label` is there
where the data have one, and `about` says of which run, step and views it is. Files that
cannot be read have no row. The work is done in parts that lie beside the output until
it is whole: after an interruption the same command goes on, and gives the same file.
"""

import copy
import io
import json
import shutil
from pathlib import Path

from polyview import cli, errors
from polyview.config import parts
from polyview.config.spec import build
from polyview.config.text import text_digest, to_json
from polyview.config.trust import allow_list
from polyview.errors import InputError, fits_together
from polyview.files import write_whole, writing_whole
from polyview.runs.workdir import check_run

PART = 4096  # rows; about a minute of a small machine
FORMATS = (".npz", ".parquet")


def main() -> None:
    """Read the command line and embed; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.embed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", metavar="DIR", required=True, type=Path)
    cli.add_checkpoint(parser)
    parser.add_argument(
        "--input",
        metavar="FOLDER|NAME[:SPLIT]",
        required=True,
        help="images, or a prepared data set (split: test)",
    )
    parser.add_argument(
        "--output", metavar="FILE.npz|FILE.parquet", required=True, type=Path
    )
    parser.add_argument(
        "--features",
        choices=("h", "z"),
        default="h",
        help="the representation (h), or what the loss compares (z)",
    )
    parser.add_argument("--modality", help="where the model has several")
    parser.add_argument("--batch_size", type=int, default=256, help="global")
    cli.add_distributed(parser)
    flags = parser.parse_args()
    check(flags.output, flags.batch_size)
    check_run(flags.run)
    cli.start(flags)
    with fits_together(f"{flags.run} and {flags.input}"):
        said = embed(
            flags.run,
            flags.input,
            flags.output,
            step=flags.step,
            features=flags.features,
            modality=flags.modality,
            batch_size=flags.batch_size,
            trust=tuple(flags.trust),
        )
    print(said)


def check(output: Path, batch_size: int) -> None:
    """Raise InputError for an output that cannot be made, before anything is read."""
    if output.suffix not in FORMATS:
        raise InputError(f"--output {output} must end in {' or '.join(FORMATS)}")
    if output.exists():
        raise InputError(f"{output} is there already; remove it, or name another")
    if batch_size < 1:
        raise InputError(f"--batch_size is {batch_size}, not 1 or more")


def embed(
    run: Path,
    of: str,
    output: Path,
    *,
    step: int | None = None,
    features: str = "h",
    modality: str | None = None,
    batch_size: int = 256,
    trust: tuple[str, ...] = (),
) -> str:
    """Write the embeddings of `of` and return a line that says so.

    Raises InputError for a run without a checkpoint or without an evaluation, for data
    that are not there, and where parts of another embedding lie beside the output.
    """
    import jax
    import numpy as np

    from polyview import devices, hosts
    from polyview.evaluation.features import extract
    from polyview.runs.load import evaluated_model, load

    check(output, batch_size)
    source = source_of(of)
    mesh = devices.make_mesh()
    whole = devices.replicated(mesh)
    model = load(run, step, whole, trust)
    views = views_of(model.config, source, trust)
    modality = modality or model.config.evaluation.get("modality", "image")
    about = {
        "run": run.name,
        "step": model.step,
        "config": text_digest(to_json(model.config)),
        "input": repr(source),
        "rows": len(source),
        "files": text_digest("\n".join(getattr(source, "files", []))),
        "views": repr(views),
        "modality": modality,
        "features": features,
        "batch_size": batch_size,
    }
    parts = _parts_of(output, about)
    represent = evaluated_model(model, whole)
    numbers = range(-(-len(source) // PART))
    for number in numbers:
        path = parts / f"{number:06d}.npz"
        if hosts.of_first_process(int(_is_whole(path))):
            continue
        start = number * PART
        with jax.set_mesh(mesh), fits_together(f"{run} and {of}"):
            found = extract(
                represent,
                _Rows(source, start, min(PART, len(source) - start)),
                views,
                batch_size=batch_size,
                mesh=mesh,
                modality=modality,
                name=f"{number + 1} of {len(numbers)}",
            )
        there = found.present
        arrays = {"row": start + found.index[there]}
        arrays["embedding"] = getattr(found, features)[there].astype(np.float32)
        arrays |= {name: array[there] for name, array in found.targets.items()}
        if hosts.is_first_process():
            write_whole(path, _npz(arrays))
        hosts.wait_for_all(f"part {number}")
    paths = [parts / f"{number:06d}.npz" for number in numbers]
    if hosts.is_first_process():
        count = _join(paths, getattr(source, "files", None), about, output)
        shutil.rmtree(parts)
        lost = len(source) - count
        unread = f"; {lost} cannot be read or lack '{modality}'" if lost else ""
        return f"{output}: {count} of {len(source)} rows, step {model.step}{unread}"
    return ""


def _is_whole(path: Path) -> bool:
    """Whether a part was written and can be read: else it is made again."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as part:
            return bool(dict(part))
    except Exception:  # what a damaged file makes of zipfile, zlib and numpy
        return False


def source_of(of: str):
    """The data that `--input` names. Raises InputError where there are none."""
    from polyview.data.sources.folder import Folder

    if Path(of).is_dir():
        return Folder(of)
    name, _, split = of.partition(":")
    try:
        return build(parts.prepared(name, split or "test"))
    except InputError as error:
        raise InputError(f"--input {of} is no folder, and {error}") from None


def views_of(config, source, trust: tuple[str, ...] = ()):
    """Example -> views, as in a run's evaluation, for a source with labels or without.

    Raises InputError for a config without an evaluation.
    """
    if config.get("evaluation") is None:
        raise InputError("the run's config has no 'evaluation' to see images by")
    spec = copy.deepcopy(config.evaluation.views)
    spec.targets = tuple(t for t in ("label",) if t in source.targets)
    return build(spec, allow_list(trust), where="evaluation.views")


class _Rows:
    """Some rows of a source, in order."""

    def __init__(self, source, start: int, count: int):
        self._source, self._start, self._count = source, start, count
        self.targets = source.targets

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        return self._source[self._start + index]

    def __repr__(self) -> str:
        return repr(self._source)


def _parts_of(output: Path, about: dict) -> Path:
    """The folder of the parts, new or of an interrupted run of the same command."""
    from polyview import hosts

    parts = output.with_name(f".{output.name}.parts")
    text = json.dumps(about, indent=1)
    if hosts.is_first_process() and not (parts / "about.json").exists():
        write_whole(parts / "about.json", text.encode())
    hosts.wait_for_all("parts")
    if (parts / "about.json").read_bytes() != text.encode():
        raise InputError(
            f"{parts} holds parts of another embedding (another step, input or batch "
            "size); remove it, or name another --output"
        )
    return parts


def _npz(arrays: dict) -> bytes:
    import numpy as np

    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def _join(paths: list[Path], files: list[str] | None, about: dict, output: Path) -> int:
    """Write the parts as one file, and return how many rows it has."""
    import numpy as np

    def columns(path: Path) -> dict:
        with np.load(path, allow_pickle=False) as part:
            arrays = dict(part)
        rows = arrays.pop("row")
        ids = rows if files is None else np.array([files[row] for row in rows], str)
        return {"id": ids, **arrays}

    if output.suffix == ".parquet":
        return _write_parquet(map(columns, paths), about, output)
    found = [columns(path) for path in paths]
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    write_whole(output, _npz(joined | {"about": np.array(json.dumps(about))}))
    return len(joined["id"])


def _write_parquet(parts, about: dict, output: Path) -> int:
    import pyarrow
    from pyarrow import parquet

    writer, count = None, 0
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
            count += len(table)
        writer.close()
    return count


if __name__ == "__main__":
    errors.run(main)
