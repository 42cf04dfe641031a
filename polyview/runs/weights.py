"""Weights in files. Fixed weights are stored by sha256, once per run.

A checkpoint records, for each file of its fixed weights,

    {"sha256", "at": path in the model, "from": path in the file, "source", "kept"}

and, where a model has fewer rows than the file (fewer blocks of a stack), "first":
patterns of the paths in the model of which the first rows are taken.

Weights from a user's file or a pinned package are recorded and stay where they are. All
others, such as a run's encoder or random weights, are written once into
`RUN/fixed/<sha256>.safetensors`, so that a run does not depend on its donor. Files are
found by their digest; a path in a checkpoint is never opened.
"""

import hashlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from polyview import files, hosts
from polyview.data.sources.protocol import default_data_dir
from polyview.devices import whole_on_host
from polyview.errors import InputError
from polyview.runs.checksum import flatten

# The first bytes of torch.save files: a zip archive, or a bare pickle.
_PICKLES = (b"PK\x03\x04", b"\x80")


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, by name; InputError for another file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        with path.open("rb") as file:
            pickled = file.read(4).startswith(_PICKLES)
        advice = (
            ": it looks like a pickle of torch.save, which can run code; if you trust "
            "it, convert it: safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), 'x.safetensors')"
        )
        raise InputError(
            f"{path} is not a safetensors file{advice if pickled else f' ({error})'}"
        ) from error


def keep_fixed(
    workdir: Path, fixed: dict, referenced: Iterable[dict], source: str
) -> list[dict]:
    """Write the fixed weights that have no file of their own; return the record.

    fixed: nested dict of arrays; referenced: entries of weights that stay where they
    are; source: a line on the origin of the others.
    """
    record = sorted(referenced, key=lambda entry: entry["at"])
    ours = {
        name: array
        for name, array in flatten(fixed).items()
        if not any(under(name, entry["at"]) for entry in record)
    }
    if ours:
        content = save(whole_on_host(ours))
        digest = hashlib.sha256(content).hexdigest()
        path = workdir / "fixed" / f"{digest}.safetensors"
        if hosts.is_first_process() and not path.exists():
            files.write_whole(path, content)
        hosts.wait_for_all("fixed weights")
        entry = {"sha256": digest, "at": "", "from": "", "source": source, "kept": True}
        record.append(entry)
    return record


def read_fixed(
    run: Path, record: Any, template: dict, weights: Iterable[Path] = ()
) -> dict[str, Any]:
    """Return the fixed weights that a checkpoint records, in the form of `template`.

    template: nested dict of shapes with shardings; weights: files that the user names.
    Raises InputError for a file that is absent or differs from the record.
    """
    wanted, filled = flatten(template), {}
    if not wanted:
        return template
    if not isinstance(record, list):
        raise InputError(f"{run}: its checkpoint has no record of fixed weights")
    for entry in record:
        arrays = read_file(_located(run, entry, list(weights)))
        for name, leaf in wanted.items():
            if name not in filled and under(name, entry["at"]):
                theirs = moved(name, entry["at"], entry["from"])
                if theirs in arrays:
                    patterns = entry.get("first", [])
                    array = first_rows(arrays[theirs], leaf, name, patterns)
                    filled[name] = placed(array, leaf, name)
    if absent := sorted(wanted.keys() - filled.keys()):
        raise InputError(f"{run}: its fixed weights lack {absent[0]!r}: another model?")
    structure = jax.tree.structure(template)
    return jax.tree.unflatten(structure, [filled[name] for name in wanted])


def first_rows(array: Any, leaf: Any, name: str, patterns: Iterable[str]) -> Any:
    """Return the first rows of a donor's array, as many as the model's leaf has.

    Only where a pattern matches the name; others, and arrays that differ in more than
    the number of rows, are returned as they are.
    """
    wanted = any(fnmatchcase(name, f"{pattern}") for pattern in patterns)
    deeper = array.ndim > 0 and array.shape[1:] == leaf.shape[1:]
    if wanted and leaf.shape and deeper and len(array) > leaf.shape[0]:
        return array[: leaf.shape[0]]
    return array


def placed(array: np.ndarray, leaf: jax.ShapeDtypeStruct, name: str) -> jax.Array:
    """Return a file's array with the type and sharding of a template's leaf."""
    if array.shape != leaf.shape:
        raise InputError(f"{name} is {array.shape} in the file, {leaf.shape} here")
    content = np.asarray(array, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, content.__getitem__)


def _located(run: Path, entry: Mapping, weights: list[Path]) -> Path:
    digest = str(entry.get("sha256"))
    if not (len(digest) == 64 and all(c in "0123456789abcdef" for c in digest)):
        raise InputError(f"{run}: {digest!r:.80} is not a sha256 of fixed weights")
    own = run / "fixed" / f"{digest}.safetensors"
    shelf = default_data_dir() / "weights" / f"{digest}.safetensors"
    for path in filter(Path.is_file, [own, *weights, shelf]):
        actual = file_digest(path)
        if actual == digest:
            return path
        if path in (own, shelf):
            raise InputError(f"{path} is damaged: its sha256 is {actual}")
    source = f"{entry.get('source')}"
    others = "".join(f"; {path} is {file_digest(path)}" for path in weights)
    raise InputError(
        f"{run} needs fixed weights of sha256 {digest} ({source}), which are not found"
        f"{others}; copy the file to {shelf}, or pass it to a command that reads runs: "
        "--weights FILE"
    )


def under(name: str, path: str) -> bool:
    """Whether a dotted name is at a path or below it; "" is the root."""
    return not path or name == path or name.startswith(f"{path}.")


def moved(name: str, path: str, to: str) -> str:
    """Move a dotted name from below `path` to below `to`; "" is the root."""
    return ".".join(filter(None, (to, name[len(path) :].lstrip("."))))
