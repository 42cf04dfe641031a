"""The manifest of a prepared data set, which may be untrusted."""

import re
from pathlib import Path
from typing import Any

from polyview.errors import InputError
from polyview.files import read_json

MAX_CLASSES = 2**20


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a prepared data set. Raises InputError if malformed."""
    path = directory / "manifest.json"
    try:
        manifest = read_json(path)
        for split in manifest["splits"].values():
            counts = [split["count"], *(file["records"] for file in split["files"])]
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError("a count is not a whole number, 0 or more")
            if counts[0] != sum(counts[1:]):
                raise ValueError("a split's count is not the sum over its files")
            for file in split["files"]:
                if not re.fullmatch(r"\w[\w.-]*", file["name"]):
                    raise ValueError(f"{file['name']!r} is not a plain file name")
        for name, task in manifest["targets"].items():
            _check_task(task, f"target {name!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a manifest ({error}); remove {directory} and prepare again"
        ) from None
    return manifest


def _check_task(task: Any, what: str) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError for a bad task."""
    kind, classes, names = task["kind"], task.get("classes"), task.get("names")
    if type(kind) is not str:
        raise ValueError(f"{what} has kind {kind!r}, not a string")
    if classes is not None or kind == "class":
        if type(classes) is not int or not 1 <= classes <= MAX_CLASSES:
            raise ValueError(f"{what} has {classes!r} classes")
    if names is not None or kind == "multi-label":
        texts = type(names) is list and all(type(name) is str for name in names)
        if not texts or len(names) != (classes or len(names)):
            raise ValueError(f"{what} needs one name per class")
    if kind == "mask":
        labels = [label for region in task["regions"].values() for label in region]
        if not all(type(label) is int and 0 <= label < 256 for label in labels):
            raise ValueError(f"{what} has a region with a label outside 0 .. 255")
