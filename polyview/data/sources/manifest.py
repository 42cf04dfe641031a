"""The manifest of a prepared data set, which may be untrusted."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyview.data.sources.protocol import class_task
from polyview.errors import InputError
from polyview.files import read_json

MAX_CLASSES = 2**20
PARTLY = "class of some rows"  # the kind of a target that is -1 in the others


def class_targets(labels: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Return the targets of rows with these labels, of which -1 stands for no class.

    If some have none, the task is `PARTLY` and gives no number of classes: the pipeline
    then lets -1 pass, which `supcon` with labels takes for unknown, and what needs a
    class of every row refuses the kind. If none has a class, there is no target.
    """
    task, lacking = class_task(names), sum(label < 0 for label in labels)
    if lacking:
        task = {"kind": PARTLY, "names": task["names"]}
    return {"label": task} if lacking < len(labels) else {}


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
