"""Files that are written whole or not at all, and read only as far as they may go."""

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyview.errors import InputError

LONGEST_JSON = 2**24  # bytes: what describes data, a run or a result is never longer


def read_bounded(path: Path, most: int = LONGEST_JSON) -> bytes:
    """Read a regular file of at most `most` bytes, which may be untrusted.

    Raises OSError, and ValueError for what is no file or too long.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for, for ever
        raise ValueError("it is no file")
    with path.open("rb") as file:
        content = file.read(min(most, about.st_size) + 1)  # room is made for so many
    if len(content) > most:
        raise ValueError(f"it is longer than {most} bytes")
    return content


def read_json(path: Path) -> Any:
    """What a JSON file, maybe untrusted, holds. Raises OSError and ValueError."""
    try:
        return json.loads(read_bounded(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and the folder it lies in; raises InputError where it cannot."""
    with writing_whole(path) as unfinished:
        unfinished.write_bytes(content)


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the name of `path` once all is written.

    What was there before stays until then; what was written in part is removed. Of two
    that write at once one wins. Raises InputError where the disk does not take it.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a device: /dev/null
            raise InputError(f"cannot write {path}: it is there, and no file")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file by a name that nobody knows: no link that lies there is followed.
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
    """Let the new name outlive a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def umask() -> int:
    """What the user takes from the rights of new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_new(path: Path, endings: tuple[str, ...]) -> None:
    """Raise InputError for an output that exists, or whose name ends otherwise."""
    if path.suffix not in endings:
        raise InputError(f"--output {path} must end in {' or '.join(endings)}")
    if path.exists():
        raise InputError(f"{path} is there already; remove it, or name another")


def check_folder(folder: Path) -> None:
    """Raise InputError where no file can be made in a folder, which need not exist.

    Nor through a link: in a run from an untrusted source it could lead anywhere.
    """
    if folder.is_symlink():
        raise InputError(f"cannot write into {folder}: it is a link; remove it")
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise InputError(f"cannot write into {folder}: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"cannot write into {folder}: it is not yours to write to")
