"""Tar files of samples, as `webdataset` writes them: `0001.jpg`, `0001.cls`, ..."""

import glob
import hashlib
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from polyview.data.sources.folder import IMAGE_SUFFIXES
from polyview.data.sources.manifest import MAX_CLASSES, class_targets
from polyview.data.sources.protocol import CorruptRecord, check_resources, parse_split
from polyview.errors import InputError
from polyview.files import fingerprint


class _Member(NamedTuple):
    """Where a file lies in a tar."""

    tar: str
    start: int
    size: int


class Tar:
    """Samples of uncompressed tar files, in order.

    Files of one name up to its first dot are a sample. An image becomes the field
    `image`, `.cls` the class `label`, `.txt` the text `text`, and `.json` a field for
    each of its entries. The tars are scanned once, when this is made; a row is then
    read at its place. If some samples have a class, one without, or with -1, has the
    label -1, for unknown; see `class_targets`.

    Args:
      path: a tar, or a pattern of several such as `shards/train-*.tar`.
      split: see `polyview.data.sources.protocol.parse_split`; all rows are "train".
      names: the names of the classes; by default their numbers.
      labelled: take only the samples that have a class.

    Raises:
      InputError: there is no such tar, it is compressed or damaged, or a class is no
        number.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        names: list[str] | None = None,
        labelled: bool = False,
    ):
        self._description = f"Tar('{path}', '{split}')"
        paths = [str(path)] if Path(path).is_file() else sorted(glob.glob(str(path)))
        if not paths:
            raise InputError(f"no tar {path}; give a file, or a pattern of files")
        samples: dict[str, dict[str, _Member]] = {}
        for tar in paths:
            for key, kind, member in _members(tar):
                if kind in samples.setdefault(key, {}):
                    raise InputError(f"{tar}: the sample {key} has two files .{kind}")
                samples[key][kind] = member
        rows = [sample for sample in samples.values() if sample]
        _, start, stop = parse_split(split, {"train": len(rows)})
        self._rows, self._paths = rows[start:stop], paths
        self.targets: dict[str, dict[str, Any]] = {}
        self._classes = any("cls" in row for row in rows)
        if self._classes:
            labels = [self._class(row["cls"]) if "cls" in row else -1 for row in rows]
            if names is not None and max(labels) >= len(names):
                raise InputError(
                    f"{path} has class {max(labels)}, but {len(names)} names"
                )
            classes = names or [str(number) for number in range(max(labels) + 1)]
            labels = labels[start:stop]
            if labelled:
                known = [label >= 0 for label in labels]
                self._rows = list(itertools.compress(self._rows, known))
                labels = list(itertools.compress(labels, known))
            self.targets = class_targets(labels, classes)
        if labelled and not self.targets:
            raise InputError(f"no sample of {self!r} has a class")

    @property
    def digest(self) -> str:
        """The digest of the files' names and ends, and of the rows taken."""
        about = [(Path(tar).name, fingerprint(Path(tar))) for tar in self._paths]
        text = json.dumps([about, self._rows, self.targets])
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        example: dict[str, Any] = {"label": -1} if self._classes else {}
        for kind, member in self._rows[index].items():
            content = _read(member)
            if f".{kind}" in IMAGE_SUFFIXES:
                example["image"] = content
            elif kind == "cls":
                example["label"] = self._class(member)
            elif kind == "txt":
                example["text"] = content.decode(errors="replace")
            elif kind == "json":
                example |= _fields(content, member)
        return example

    def _class(self, member: _Member) -> int:
        content = _read(member)
        try:
            number = int(content)
            if not -1 <= number < MAX_CLASSES:
                raise ValueError
        except ValueError:
            raise InputError(
                f"{member.tar}: a .cls file holds {content[:20]!r}, not the number of "
                "a class"
            ) from None
        return number

    def __repr__(self) -> str:
        return self._description


def _members(path: str) -> list[tuple[str, str, _Member]]:
    """Return the key, the kind and the place of each file of a tar, in order."""
    found = []
    try:
        with tarfile.open(path, "r:") as tar:  # uncompressed: places are then offsets
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                if member.isreg() and key and kind and not name.startswith("."):
                    place = _Member(path, member.offset_data, member.size)
                    found.append((f"{path}:{folder}/{key}", kind.lower(), place))
            end = tar.offset
        with open(path, "rb") as file:  # tarfile takes a cut header for the end
            file.seek(end)
            if file.read(512).strip(b"\0"):
                raise tarfile.ReadError("it has been cut")
    except (tarfile.TarError, OSError, EOFError) as error:
        check_resources(error, path)
        raise InputError(
            f"{path} cannot be read as a tar: {error}; decompress it if it is a .gz, "
            "or make it again"
        ) from None
    return found


def _read(member: _Member) -> bytes:
    try:
        with open(member.tar, "rb") as file:
            file.seek(member.start)
            content = file.read(member.size)
    except OSError as error:
        check_resources(error, member.tar)
        raise CorruptRecord(f"{member.tar}: {error.strerror}") from None
    if len(content) < member.size:
        raise CorruptRecord(f"{member.tar} has been cut")
    return content


def _fields(content: bytes, member: _Member) -> dict[str, Any]:
    try:
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(f"{member.tar}: a .json file: {error}") from None
    return fields
