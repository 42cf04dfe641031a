"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from polyview.errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and the folder it lies in; raises InputError where it cannot."""
    with writing_whole(path) as unfinished:
        unfinished.write_bytes(content)


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name of `path` once all is written.

    What was there before stays until then; what was written in part is removed. Raises
    InputError where the disk does not take it.
    """
    if path.exists() and not path.is_file():  # a folder, or a device: /dev/null, say
        raise InputError(f"cannot write {path}: it is there, and no file")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def check_folder(folder: Path) -> None:
    """Raise InputError where no file can be made in a folder, which need not exist."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise InputError(f"cannot write into {folder}: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"cannot write into {folder}: it is not yours to write to")
