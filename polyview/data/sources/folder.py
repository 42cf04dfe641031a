"""Image files: a folder of them, or some by their paths."""

import contextlib
import functools
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from PIL import Image

from polyview.data.decode import FORMATS
from polyview.data.sources.protocol import (
    CorruptRecord,
    check_resources,
    class_task,
)
from polyview.errors import InputError, nearest
from polyview.files import fingerprint

# Files with these endings are images, or damaged ones; all others are looked into.
IMAGE_SUFFIXES = frozenset(
    ".apng .bmp .dib .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff"
    " .webp".split()
)
LABELS = ("top", "leaf", "none")  # rules that take a class from a path
MAX_FILE = 2**30  # bytes of an image
# Images that no reader here decodes, so that they are not called "no images".
_OTHER_IMAGES = {
    **dict.fromkeys((".svg", ".svgz", ".eps", ".ai"), "vector graphics: draw as PNG"),
    **dict.fromkeys((".heic", ".heif", ".avif", ".jxl", ".jp2"), "convert to JPEG"),
    **dict.fromkeys(
        (".dcm", ".nii", ".psd", ".exr", ".npy", ".pfm"), "convert to PNG or TIFF"
    ),
}


class Listing(NamedTuple):
    """The images below a folder.

    Attributes:
      files: their paths below the folder, sorted.
      left_out: {ending and reason: how many files}, of all the others.
    """

    files: list[str]
    left_out: dict[str, int]


def list_images(root: Path) -> Listing:
    """List the images below a folder, whatever their names end in.

    Links are followed; a folder is entered once, by its own name if it has one, which
    ends loops. Hidden files and folders, and `__MACOSX`, are left out. Raises
    InputError for a path that is not a folder, and for a name that is not UTF-8.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder of images")
    entered: set[tuple[int, int]] = set()
    files: list[str] = []
    links: list[str] = []
    left_out: Counter[str] = Counter()

    def enter(folder: str) -> None:
        status = (root / folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            left_out["folders linked once more"] += 1
            return
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(root / folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            path = f"{folder}{entry.name}"
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                left_out["hidden files or folders"] += 1
            elif entry.is_symlink() and os.path.isdir(root / path):
                links.append(f"{path}/")  # after all folders that have a name here
            elif not entry.is_symlink() and entry.is_dir():
                enter(f"{path}/")
            elif any("\udc80" <= character <= "\udcff" for character in path):
                raise InputError(f"the name {path!r} in {root} is not UTF-8; rename it")
            elif reason := _no_image(root / path):
                left_out[f"{Path(path).suffix.lower() or 'no ending'} ({reason})"] += 1
            else:
                files.append(path)

    enter("")
    while links:
        enter(links.pop(0))
    return Listing(sorted(files), dict(sorted(left_out.items())))


def _no_image(path: Path) -> str:
    """Return why a file is no image that can be decoded; "" for an image."""
    suffix = path.suffix.lower()
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block
            return "not a regular file"
        if suffix in IMAGE_SUFFIXES:
            return ""
        with Image.open(path, formats=FORMATS):  # reads the header alone
            return ""
    except OSError as error:
        if error.errno:  # None: Pillow knows no such format
            return "a broken link" if path.is_symlink() else f"{error.strerror}"
    except Exception:  # noqa: S110, Pillow's readers raise exceptions of many types
        pass
    return _OTHER_IMAGES.get(suffix, "no image")


def wrapper(files: Sequence[str]) -> str:
    """Return the folders around all others, as in an unpacked archive: "data/", or "".

    A folder that holds images itself is a class and no wrapper.
    """
    inside = ""
    while True:
        tops = {file[len(inside) :].partition("/")[0] for file in files}
        top = f"{inside}{min(tops, default='')}/"
        deeper = all(file.startswith(top) and "/" in file[len(top) :] for file in files)
        if len(tops) != 1 or not deeper:
            return inside
        inside = top


def class_of(file: str, rule: str) -> str | None:
    """Return the class of a path below its split: "top" folder, "leaf" folder or None.

    None stands for no label: a loose file, or the rule "none". Accents are composed
    (NFC), so that a name is one class whatever system wrote it.
    """
    if rule == "none" or "/" not in file:
        return None
    return normalize("NFC", file.split("/")[0 if rule == "top" else -2])


class Folder:
    """Image files: one folder per class, or any without labels.

    Raises InputError for a folder without images, and as `list_images` does.

    Args:
      path: the folder.
      labels: "top" takes the first folder below `path` (or below the one folder that
        holds all others) as the class, "leaf" the folder of the file, "none" nothing.
        By default "top" if all images lie in folders, else "none".

    Attributes:
      files: paths below the folder, in order.
      labels: their classes; None without labels.
      left_out: what else the folder holds; see `Listing`.
      digest: of the names and the ends of the files.
    """

    def __init__(self, path: str | Path, labels: str | None = None):
        self._root = Path(path)
        if labels not in (None, *LABELS):
            raise InputError(f"labels={labels!r}{nearest(str(labels), LABELS)}")
        self.files, self.left_out = list_images(self._root)
        if not self.files:
            raise InputError(f"no image in {path}{told(self.left_out)}")
        self.labels: list[int] | None = None
        self.targets: dict[str, dict[str, Any]] = {}
        below = len(wrapper(self.files))
        classes = [class_of(f[below:], labels or "top") for f in self.files]
        if labels and labels != "none" and None in classes:
            loose = self.files[classes.index(None)]
            raise InputError(
                f"{path} holds images beside its class folders ('{loose}'); move them "
                "into a class, or give labels='none'"
            )
        if None not in classes:
            names = sorted({str(name) for name in classes})
            numbers = {name: number for number, name in enumerate(names)}
            self.labels = [numbers[str(name)] for name in classes]
            self.targets["label"] = class_task(names)

    @property
    def digest(self) -> str:
        """The digest of the names and the ends of the files."""
        return listing_digest(self._root, self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        example: dict[str, Any] = {"image": read_image(self._root / file), "file": file}
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
        return {"image": read_image(Path(self.files[index])), "file": self.files[index]}

    def __repr__(self) -> str:
        return f"Files({self.files[0] if self.files else ''}: {len(self.files)})"


def listed(left_out: dict[str, int], most: int = 8) -> list[str]:
    """Return what was left out as phrases, the most frequent first."""
    ordered = sorted(left_out.items(), key=lambda item: -item[1])
    parts = [f"{count:,} {what}" for what, count in ordered[:most]]
    more = sum(count for _, count in ordered[most:])
    return parts + ([f"{more:,} others"] if more else [])


def told(left_out: dict[str, int]) -> str:
    """Return what was left out, as '; left out: 3 .txt (no image)', or ""."""
    return f"; left out: {', '.join(listed(left_out))}" if left_out else ""


def listing_digest(root: Path, files: Sequence[str]) -> str:
    """Return a digest of the names and `fingerprint`s of files."""
    lines = [f"{file}\0{fingerprint(root / file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def stored(root: Path, name: str) -> Path:
    """Return the path of a file that a table names, below a folder.

    Where it is not there as it is spelt, accents may be composed (NFC) in one place and
    decomposed (NFD, as macOS does) in the other. Raises InputError for a name that
    stands for two files.
    """
    if name.isascii() or os.path.exists(root / name):
        return root / name
    path = root
    for part in Path(name).parts:
        if not os.path.exists(path / part):
            alike = _composed(path).get(normalize("NFC", part), [part])
            if len(alike) > 1:
                raise InputError(
                    f"{path}: {' and '.join(map(ascii, alike))} are both {part}; "
                    "rename one of them"
                )
            part = alike[0]
        path /= part
    return path


@functools.lru_cache(maxsize=64)
def _composed(folder: Path) -> dict[str, list[str]]:
    """Return {name with composed accents: names} of a folder."""
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):  # reading the file will tell
        for name in sorted(os.listdir(folder)):
            names.setdefault(normalize("NFC", name), []).append(name)
    return names


def read_image(path: Path) -> bytes:
    """Read a file.

    Raises CorruptRecord for one that cannot be read as a whole, but InputError where
    memory or open files are short: that says nothing about the file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise CorruptRecord(f"{path} is not a regular file")
        if status.st_size > MAX_FILE:
            raise CorruptRecord(f"{path} has {status.st_size} bytes")
        return path.read_bytes()
    except OSError as error:
        check_resources(error, str(path))
        raise CorruptRecord(f"{path}: {error.strerror}") from None
