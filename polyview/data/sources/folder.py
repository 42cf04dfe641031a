"""A folder of images."""

import os
import stat
from pathlib import Path
from typing import Any

from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tiff", ".webp"})
MAX_FILE = 2**30  # bytes of an image


class Folder:
    """Image files: one folder per class, or one flat folder without labels.

    The order is that of the sorted paths, whatever the file system says. A symbolic
    link to a file is read; one to a folder is not entered, so that no loop can occur.

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
                f"no image in {path} (looked for {' '.join(sorted(IMAGE_SUFFIXES))})"
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
        try:
            status = (self._root / file).stat()
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                raise CorruptRecord(f"{self._root / file} is not a file")
            if status.st_size > MAX_FILE:
                raise CorruptRecord(f"{self._root / file} has {status.st_size} bytes")
            image = (self._root / file).read_bytes()
        except OSError as error:
            raise CorruptRecord(f"{self._root / file}: {error.strerror}") from None
        example: dict[str, Any] = {"image": image, "file": file}
        if self.labels is not None:
            example["label"] = self.labels[index]
        return example

    def __repr__(self) -> str:
        return f"Folder('{self._root}')"


def _image_files(root: Path) -> list[str]:
    return sorted(
        Path(directory, name).relative_to(root).as_posix()
        for directory, _, names in os.walk(root, followlinks=False)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
