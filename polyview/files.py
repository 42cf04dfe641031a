"""Atomic writes, and reads of limited size."""

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyview.errors import InputError

LONGEST_JSON = 2**24  # bytes; no description of data, run or result is longer


def read_bounded(path: Path, most: int = LONGEST_JSON) -> bytes:
    """Read a regular file, maybe untrusted, of at most `most` bytes.

    Raises OSError, and ValueError if it is not a regular file or is too long.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # reading a pipe could block for ever
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(min(most, about.st_size) + 1)  # `read` allocates this much
    if len(content) > most:
        raise ValueError(f"it is longer than {most} bytes")
    return content


def read_json(path: Path) -> Any:
    """Parse a JSON file, maybe untrusted. Raises OSError and ValueError."""
    try:
        return json.loads(read_bounded(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def fingerprint(path: Path) -> str:
    """Return a digest of a file's size, beginning and end (64 KiB each)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(2**16)
        file.seek(max(0, size - 2**16))
        ends += file.read(2**16)
    return hashlib.sha256(ends + str(size).encode()).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, creating its folder; raises InputError if it cannot."""
    with writing_whole(path) as unfinished:
        unfinished.write_bytes(content)


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it is renamed to `path` once all is written.

    An existing file stays until then; an incomplete file is removed. Of two concurrent
    writers one wins. Raises InputError if the disk refuses the write.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a device: /dev/null
            raise InputError(f"cannot write {path}: it exists and is not a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file with an unpredictable name, so that no planted link is followed.
        handle, name = tempfile.mkstemp(".unfinished", f".{path.name}.", path.parent)
        unfinished = Path(name)
        try:
            os.fchmod(handle, 0o666 & ~umask())
            yield unfinished
            os.fsync(handle)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        _flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def umask() -> int:
    """Return the permissions that the user withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_new(path: Path, endings: tuple[str, ...]) -> None:
    """Raise InputError if an output exists or has none of the given endings.

    Endings count in any case.
    """
    if path.suffix.lower() not in endings:
        raise InputError(f"--output {path} must end in {' or '.join(endings)}")
    if path.exists():
        raise InputError(f"{path} already exists; remove it, or name another")


def check_folder(folder: Path) -> None:
    """Raise InputError if no file can be created in a folder, which need not exist.

    A link is refused: in an untrusted run it could lead anywhere.
    """
    if folder.is_symlink():
        raise InputError(f"cannot write into {folder}: it is a link; remove it")
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"cannot write into {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise InputError(f"cannot write into {folder}: you have no permission")
