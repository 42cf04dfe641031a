"""Write a data set: array_record files and the manifest that describes them.

All files are written into a hidden folder beside the destination, which is renamed once
complete. An interrupted write therefore leaves no partial data set.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tqdm import tqdm

from polyview.data.sources.array_record import pack
from polyview.data.sources.manifest import read_manifest
from polyview.errors import InputError
from polyview.files import umask

_SHARD_BYTES = 2**30
# One record per group: each can be read alone. Images are compressed already.
_OPTIONS = "group_size:1,uncompressed"


def prepared(directory: Path) -> bool:
    """Return whether a complete data set exists.

    Raises:
      InputError: the folder holds something else, or a file lacks listed records.
    """
    if not directory.exists():
        return False
    if not (directory / "manifest.json").is_file():
        raise InputError(
            f"{directory} exists but was not written by this command; "
            "remove it or give another --data_dir"
        )
    for name, split in read_manifest(directory)["splits"].items():
        for file in split["files"]:
            found = _count(directory / file["name"])
            if found != file["records"]:
                raise InputError(
                    f"{directory / file['name']} holds {found} records of {name}, not "
                    f"{file['records']}; remove {directory} and prepare again"
                )
    return True


def once(
    directory: Path, prepare: Callable[[Path], None], *, again: bool = False
) -> str:
    """Prepare a data set unless it exists; return a summary.

    again: prepare it in any case. The old data set is there until the new one is whole.
    """
    there = not again and prepared(directory)
    if again and directory.exists():
        _check_replaceable(directory)
        _replace(directory, prepare)
    elif not there:
        prepare(directory)
    counts = ", ".join(
        f"{name} {split['count']:,}"
        for name, split in read_manifest(directory)["splits"].items()
    )
    return f"{directory} {'is there already' if there else 'written'}: {counts}"


def check_same(directory: Path, existing: Any, settings: Mapping[str, Any]) -> None:
    """Raise InputError if an existing data set was prepared with other settings.

    existing: what its manifest says of them, which may be damaged.
    """
    for key, value in settings.items():
        found = existing.get(key) if isinstance(existing, Mapping) else None
        if found != value:
            raise InputError(
                f"{directory} was prepared with {key} {found}, not {value}; give "
                "another --name, or remove it"
            )


def _check_replaceable(directory: Path) -> None:
    """Raise InputError if a folder holds more than a data set: it would be lost."""
    known = {"manifest.json"}
    if (directory / "manifest.json").is_file():
        splits = read_manifest(directory)["splits"].values()
        known |= {file["name"] for split in splits for file in split["files"]}
    names = {p.name for p in directory.iterdir()} if directory.is_dir() else {""}
    if known == {"manifest.json"} or names - known:
        raise InputError(
            f"{directory} is no data set of this command, or holds other files as "
            "well; give another --name or --data_dir"
        )


def _replace(directory: Path, prepare: Callable[[Path], None]) -> None:
    """Prepare a data set anew and put it in place of the old one."""
    with writing(directory):
        scratch = tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)
    try:
        new, old = Path(scratch, directory.name), Path(scratch, "old")
        prepare(new)
        directory.rename(old)
        try:
            new.rename(directory)
        except OSError:
            old.rename(directory)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write(
    directory: Path,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    version: str,
    targets: Mapping[str, Mapping[str, Any]],
    source: str,
    licence: str,
    provenance: Mapping[str, Any] | None = None,
    unlabelled: Sequence[str] = (),
    statistics: Mapping[str, Any] | None = None,
) -> None:
    """Write examples and their manifest into a new directory, atomically.

    Args:
      directory: the data set's folder; it must not exist.
      splits: the examples of each split.
      version: of the data; it changes whenever they do.
      targets: see `polyview.data.sources.protocol.Source`.
      source: the origin of the data, in words or as an address.
      licence: the terms of the data.
      provenance: how they were made: files with their sums, the rule of the split.
      unlabelled: the splits whose examples lack the targets.
      statistics: measures of the data, read when all examples are written.
    """
    with whole_folder(directory) as folder:
        entries = {
            name: _write_split(folder, name, examples)
            for name, examples in splits.items()
        }
        empty = [name for name, entry in entries.items() if not entry["count"]]
        if empty:
            raise InputError(f"no examples for the split {', '.join(empty)}")
        manifest = {
            "name": directory.name,
            "version": version,
            "splits": entries,
            "targets": targets,
            "source": source,
            "licence": licence,
            "provenance": provenance or {},
            "unlabelled": list(unlabelled),
            "statistics": dict(statistics or {}),
        }
        with writing(directory):
            text = json.dumps(manifest, indent=1) + "\n"
            (folder / "manifest.json").write_text(text)


def divide(
    keys: Mapping[str, str], shares: Mapping[str, float]
) -> dict[str, list[str]]:
    """Divide names, given as `{name: key}`, among splits without a random generator.

    Names with one key stay together. Keys are sorted by their SHA-256. Each split in
    turn takes keys until it holds its share of all names; the last takes the rest.
    """
    families: dict[str, list[str]] = {}
    for name, key in keys.items():
        families.setdefault(key, []).append(name)
    splits: dict[str, list[str]] = {split: [] for split in shares}
    for key in sorted(families, key=lambda k: hashlib.sha256(k.encode()).digest()):
        for split, share in shares.items():  # noqa: B007, read after the loop
            if len(splits[split]) < share * len(keys):
                break
        splits[split] += families[key]
    return splits


@contextlib.contextmanager
def whole_folder(directory: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `directory` if the block succeeds."""
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(
            tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)
        )
    try:
        yield folder
        folder.chmod(0o777 & ~umask())  # mkdtemp makes it private
        os.rename(folder, directory)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn a failed write into an InputError that names the parent of `directory`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises the latter
        why = getattr(error, "strerror", None) or str(error).partition(";")[0]
        raise InputError(
            f"cannot write into {directory.parent}: {why}; give another --data_dir"
        ) from error


def _write_split(
    folder: Path, split: str, examples: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    files: list[dict[str, Any]] = []
    writer: Any = None
    size, count = 0, 0

    def finish() -> None:
        path = folder / f"{split}-{len(files):05d}.array_record"
        with writing(folder):
            writer.close()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append({"name": path.name, "sha256": digest, "records": count})

    unit = getattr(examples, "unit", " examples")
    for example in tqdm(examples, desc=split, unit=unit, delay=3):
        if writer is None:
            path = folder / f"{split}-{len(files):05d}.array_record"
            with writing(folder):
                writer, size, count = ArrayRecordWriter(str(path), _OPTIONS), 0, 0
        record = pack(example)
        with writing(folder):
            writer.write(record)
        size, count = size + len(record), count + 1
        if size >= _SHARD_BYTES:
            finish()
            writer = None
    if writer is not None:
        finish()
    return {"count": sum(file["records"] for file in files), "files": files}


def _count(path: Path) -> int:
    try:
        reader = ArrayRecordReader(str(path))
        try:
            return reader.num_records()
        finally:
            reader.close()
    except (OSError, RuntimeError, ValueError):
        return 0
