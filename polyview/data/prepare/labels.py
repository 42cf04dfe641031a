"""The splits and targets of image files, from their folders or from a CSV file."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np

from polyview.data.sources.folder import class_of, wrapper
from polyview.data.sources.protocol import class_task
from polyview.errors import InputError, nearest

# The usual names of splits, in any case.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
KINDS = ("class", "multi-label", "regression")
_PATHS = ("path", "file", "filename", "file_name", "image", "id")


class Labelled(NamedTuple):
    """Files with their splits and targets.

    Attributes:
      splits: {split: files}; the split "" stands for none given.
      values: {file: {target: value}}, of the splits with labels.
      targets: {target: task}; see `polyview.data.sources.protocol.Source`.
      rule: where the targets come from, in words.
    """

    splits: dict[str, list[str]]
    values: dict[str, dict[str, Any]]
    targets: dict[str, dict[str, Any]]
    rule: str


def split_of(name: str) -> str | None:
    """Return the split that a folder's or a column's name means, or None."""
    return next((s for s, names in SPLITS.items() if name.lower() in names), None)


def from_folders(files: Sequence[str], rule: str | None, root: Path) -> Labelled:
    """Take splits and classes from folders.

    If all images lie in folders named as splits, these are the splits. A split whose
    images are all loose has no labels.

    Args:
      files: paths below `root`.
      rule: as in `polyview.data.sources.folder.class_of`; None is "top".
      root: the folder, for messages.

    Raises:
      InputError: two folders are one split, splits lie beside other folders, loose
        images beside class folders, or train lacks a class of another split.
    """
    outside = _outside(files)
    splits, depth = _splits(files, len(outside), rule, root / outside)
    values: dict[str, dict[str, Any]] = {}
    for split, own in splits.items():
        classes = {file: class_of(file[depth[file] :], rule or "top") for file in own}
        loose = [file for file, name in classes.items() if name is None]
        if loose and len(loose) < len(own):
            where = f" of {split}" if split else ""
            raise InputError(
                f"{root} holds {len(loose)} images beside the class folders{where} "
                f"('{loose[0]}'); move them into a class, or give --labels none or "
                "--labels FILE.csv"
            )
        if not loose:
            values |= {file: {"label": name} for file, name in classes.items()}
    _check_classes(splits, values, root)
    targets = {"label": _number(values, "label")} if values else {}
    of = f" below {outside}" if outside else ""
    return Labelled(splits, values, targets, f"{rule or 'top'} folders{of}")


def _outside(files: Sequence[str]) -> str:
    """Return the wrapping folders of all files, down to the folders of splits."""
    inside = ""
    for name in PurePosixPath(wrapper(files)).parts:
        if split_of(name):
            break
        inside += f"{name}/"
    return inside


def _splits(
    files: Sequence[str], start: int, rule: str | None, folder: Path
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return {split: files}, and the offset of each path below its split's folder."""
    tops = {file: file[start:].partition("/")[0] for file in files}
    loose = any("/" not in file[start:] for file in files)
    names = sorted(set(tops.values()))
    meant = {name: split for name in names if (split := split_of(name))}
    if loose or len(meant) < len(names):
        several = len(set(meant.values())) > 1 and "train" in meant.values()
        if several and rule != "top":
            others = [name for name in names if name not in meant]
            raise InputError(
                f"{folder} holds the splits {', '.join(meant)} beside "
                f"{', '.join(others[:3])}; move the latter away, or give --labels top "
                "to read all folders as classes"
            )
        inner = {
            f[start:].split("/")[1] if f.count("/", start) > 1 else "" for f in files
        }
        if rule is None and len(inner) > 1 and all(map(split_of, inner)):
            raise InputError(
                f"{folder} has splits inside of its classes "
                f"({', '.join(sorted(inner))}); put the classes inside of the splits, "
                "or give --labels FILE.csv"
            )
        return {"": list(files)}, dict.fromkeys(files, start)
    splits: dict[str, list[str]] = {}
    for split in SPLITS:
        folders = [name for name in names if meant[name] == split]
        if len(folders) > 1:
            raise InputError(
                f"{folder}: {' and '.join(folders)} are both {split}; merge or rename "
                "one of them"
            )
        if folders:
            splits[split] = [file for file in files if tops[file] == folders[0]]
    if "train" not in splits and rule == "top":
        return {"": list(files)}, dict.fromkeys(files, start)
    if "train" not in splits:
        raise InputError(
            f"{folder} has {' and '.join(names)}, but no train; rename a folder, or "
            "give --labels top to read them as classes"
        )
    return splits, {file: start + len(tops[file]) + 1 for file in files}


def from_table(path: Path, files: Iterable[str]) -> Labelled:
    """Take targets and, from a column `split`, splits from a CSV file with a header.

    Commas, semicolons or tabs separate its cells. The first column has the paths below
    the folder, whose endings may be left out. Each other column is a target: `NAME` or
    `NAME:KIND`, of a class (the default), of several classes joined by `|`
    ("multi-label"; `|` alone for none), or a number ("regression"). A split may be
    without values. Files that are not in the table are left out.

    Raises InputError with the line for anything else.
    """
    columns, rows = _read(path)
    names: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    for file in sorted(files):
        name = normalize("NFC", file)  # macOS decomposes accents
        names.setdefault(name, []).append(file)
        stems.setdefault(name.rpartition(".")[0], []).append(file)
    splits: dict[str, list[str]] = {}
    raw: dict[str, dict[str, str]] = {}
    for line, row in rows:
        name = row[0].strip().replace("\\", "/").removeprefix("./")
        found = names.get(name) or stems.get(name, [])
        if len(found) != 1:
            several = (
                f"{' and '.join(map(ascii, found[:2]))} have this name; rename one"
            )
            why = several if found else "there is no such image"
            raise InputError(f"{path}, line {line}: {name!r}: {why}")
        if found[0] in raw:
            raise InputError(f"{path}, line {line}: {name!r} is listed twice")
        cells = dict(zip(columns, (cell.strip() for cell in row[1:]), strict=True))
        split = cells.pop("split", "")
        if split and not split_of(split):
            raise InputError(
                f"{path}, line {line}: split {split!r}{nearest(split, SPLITS)}"
            )
        splits.setdefault(split_of(split) or "", []).append(found[0])
        raw[found[0]] = cells
    if "" in splits and len(splits) > 1:
        raise InputError(f"{path}: {splits[''][0]} has no split, others have one")
    if "" not in splits and "train" not in splits:
        raise InputError(f"{path} has no row of the split train")
    splits = {name: splits[name] for name in ("", *SPLITS) if name in splits}
    kinds = {name: kind for name, kind in columns.items() if name != "split"}
    values = _labelled(path, splits, raw)
    targets = {}
    for name, kind in kinds.items():
        if kind == "class":
            _check_classes(splits, values, path, name)
        if kind == "regression":
            _to_numbers(path, values, name)
            targets[name] = {"kind": kind}
        elif kind == "multi-label":
            targets[name] = _number_many(values, name)
        else:
            targets[name] = _number(values, name)
    return Labelled(splits, values, targets if values else {}, f"the table {path.name}")


def _read(path: Path) -> tuple[dict[str, str], list[tuple[int, list[str]]]]:
    """Return {column: kind} after the first column, and the rows with their lines.

    Accents are composed (NFC) in all cells.
    """
    # Imported late: pyarrow, which it loads, takes half a second.
    from polyview.data.sources.table import separator

    try:
        mark = separator(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=mark)
            header = [cell.strip() for cell in _composed(next(reader, []))]
            rows = [(reader.line_num, _composed(row)) for row in reader if row]
    except (OSError, csv.Error) as error:
        raise InputError(f"--labels {path} cannot be read: {error}") from None
    if not header or header[0].lower() not in _PATHS or len(header) < 2:
        raise InputError(
            f"{path} must begin with a header such as path,label (or with ; or tabs); "
            f"its first line is {mark.join(header)!r:.60}"
        )
    columns = {}
    for cell in header[1:]:
        name, _, kind = cell.partition(":")
        name = "split" if name.lower() == "split" else name
        if kind and kind not in KINDS:
            raise InputError(f"{path}: column {cell!r}{nearest(kind, KINDS)}")
        if not name or name in columns or name in ("image", "file"):
            raise InputError(
                f"{path}: column {cell!r} needs a name of its own, not image or file"
            )
        columns[name] = kind or "class"
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(row)} cells, the header has {len(header)}"
            )
    return columns, rows


def _composed(row: Sequence[str]) -> list[str]:
    return [normalize("NFC", cell) for cell in row]


def _labelled(
    path: Path, splits: Mapping[str, list[str]], raw: Mapping[str, dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """Return the values of the splits that have any; InputError if some are missing."""
    values: dict[str, dict[str, Any]] = {}
    for files in splits.values():
        given = [file for file in files if any(raw[file].values())]
        for file in files if given else []:
            absent = [name for name, value in raw[file].items() if not value]
            if absent:
                raise InputError(
                    f"{path}: {file} has no {absent[0]}, others of its split have one; "
                    "fill it in, or leave the row out"
                )
            values[file] = dict(raw[file])
    return values


def _number(values: Mapping[str, dict[str, Any]], target: str) -> dict[str, Any]:
    """Replace names by their numbers, in place; return the target's task."""
    names = _sorted({value[target] for value in values.values()})
    numbers = {name: number for number, name in enumerate(names)}
    for value in values.values():
        value[target] = numbers[value[target]]
    return class_task(names)


def _number_many(values: Mapping[str, dict[str, Any]], target: str) -> dict[str, Any]:
    """As `_number`, for several names joined by `|`."""
    sets = {file: value[target].split("|") for file, value in values.items()}
    names = _sorted({n.strip() for own in sets.values() for n in own if n.strip()})
    for file, own in sets.items():
        stripped = {name.strip() for name in own}
        values[file][target] = np.array([name in stripped for name in names], np.uint8)
    return class_task(names) | {"kind": "multi-label"}


def _to_numbers(path: Path, values: Mapping[str, dict[str, Any]], target: str) -> None:
    for file, value in values.items():
        try:
            value[target] = float(value[target])
            if not math.isfinite(value[target]):
                raise ValueError
        except ValueError:
            raise InputError(
                f"{path}: {target} of {file} is not a finite number such as 1.5"
            ) from None


def _sorted(names: Iterable[str]) -> list[str]:
    """Sort names; whole numbers by their value."""
    return sorted(names, key=lambda n: (0, int(n), n) if n.isdecimal() else (1, 0, n))


def _check_classes(
    splits: Mapping[str, list[str]],
    values: Mapping[str, dict[str, Any]],
    root: Path,
    target: str = "label",
) -> None:
    """Raise InputError if a split has a class that a labelled train lacks."""
    classes = {
        split: {values[file][target] for file in files if file in values}
        for split, files in splits.items()
    }
    for split, own in classes.items():
        if more := sorted(own - classes.get("train", own)):
            if classes["train"]:
                raise InputError(
                    f"{root}: {split} has the class {more[0]!r}, train has not; "
                    "correct its name, or give --labels none"
                )
