"""Image files: a folder of them, or some by their paths."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tiff", ".webp"})
MAX_FILE = 2**30  # bytes of an image


class Folder:
    """Image files: one folder per class, or one flat folder without labels.

    Files are sorted by path. A symbolic link to a file is followed, one to a folder is
    not, so that no loop can occur. Raises InputError for a folder without images.

    Attributes:
      files: their paths below the folder, in order.
      labels: their classes; None in a flat folder.
    """

    def __init__(self, path: str | Path):
        self._root = Path(path)
        if not self._root.is_dir():
            raise InputError(f"{path} is not a folder of images")
        self.files = _image_files(self._root)
        for file in self.files:
            if not file.isprintable() and "\udc80" <= max(file):
                raise InputError(f"the name {file!r} in {path} is not UTF-8; rename it")
        if not self.files:
            raise InputError(
                f"no image in {path} (searched for {' '.join(sorted(IMAGE_SUFFIXES))})"
            )
        self.labels: list[int] | None = None
        self.targets: dict[str, dict[str, Any]] = {}
        loose = [file for file in self.files if "/" not in file]
        if not loose:
            folders = [file.partition("/")[0] for file in self.files]
            classes = sorted(set(folders))
            numbers = {name: number for number, name in enumerate(classes)}
            self.labels = [numbers[folder] for folder in folders]
            self.targets["label"] = {
                "kind": "class",
                "classes": len(classes),
                "names": classes,
            }
        elif len(loose) < len(self.files):
            raise InputError(
                f"{path} holds images both beside and inside its class folders "
                f"('{loose[0]}'); move the loose ones into a class"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        example: dict[str, Any] = {"image": _read(self._root / file), "file": file}
        if self.labels is not None:
            example["label"] = self.labels[index]
        return example

    def __repr__(self) -> str:
        return f"Folder('{self._root}')"


class Files:
    """Image files by their paths, in the given order, without labels.

    Attributes:
      files: the paths, as strings.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self.files = [str(path) for path in paths]
        self.targets: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": _read(Path(self.files[index])), "file": self.files[index]}

    def __repr__(self) -> str:
        return f"Files({self.files[0] if self.files else ''}: {len(self.files)})"


def _read(path: Path) -> bytes:
    """Read a file. Raises CorruptRecord for one that cannot be read as a whole."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise CorruptRecord(f"{path} is not a regular file")
        if status.st_size > MAX_FILE:
            raise CorruptRecord(f"{path} has {status.st_size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise CorruptRecord(f"{path}: {error.strerror}") from None


def _image_files(root: Path) -> list[str]:
    return sorted(
        Path(directory, name).relative_to(root).as_posix()
        for directory, _, names in os.walk(root, followlinks=False)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
