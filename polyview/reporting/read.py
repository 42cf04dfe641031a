"""Read the run directories that training and evaluation write; files are untrusted."""

import dataclasses
import functools
import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyview import files
from polyview.config.trust import allow_list, import_target
from polyview.errors import InputError, fits_together
from polyview.evaluation.base import result_name, specs_of
from polyview.reporting.html import encoded
from polyview.runs import metrics

REFERENCES = {
    "random": "untrained encoder",
    "pixels": "raw pixels",
    "pooled": "pixels, pooled",
    "hog": "HOG",
    "patch_words": "words of patches",
    "chance": "actions by chance",
}
_MOST_PICTURES, _LARGEST_PICTURE = 20, 2**23  # per evaluation; bytes of each
_LARGEST_ARRAYS = 2**28  # bytes of an evaluation's arrays; ours take a few MB


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run directory.

    Attributes:
      results: {evaluation: {step: result}}. The single evaluation of an older config
        has the name "".
      references: {evaluation: {reference: result}}.
      figure_data: {evaluation: arrays of its last step}.
      transfers: {(evaluation, data set): (step, result)}, the last result of each.
    """

    path: Path
    name: str
    config: dict[str, Any]
    history: list[dict]
    results: dict[str, dict[int, dict]]
    references: dict[str, dict[str, dict]]
    figure_data: dict[str, dict[str, np.ndarray]]
    transfers: dict[tuple[str, str], tuple[int, dict]]

    @property
    def evaluations(self) -> dict[int, dict]:
        """The merged results of all evaluations, by step."""
        merged: dict[int, dict] = {}
        for name, by_step in self.results.items():
            for step, numbers in by_step.items():
                numbers = self.with_columns(name, numbers)
                merged[step] = _united(merged.get(step, {}), numbers, name)
        return dict(sorted(merged.items()))

    @property
    def result(self) -> dict[str, Any]:
        """The merged results of the last evaluated step, or {}."""
        evaluations = self.evaluations
        return evaluations[max(evaluations)] if evaluations else {}

    def last(self, name: str) -> dict:
        """Return the last result of an evaluation."""
        by_step = self.results[name]
        return by_step[max(by_step)]

    def evaluation(self, name: str, numbers: Mapping) -> Any:
        """Return the class that made a result and draws its figures.

        Returns None if the class is not trusted: its name comes from an untrusted file
        of the run.
        """
        target = numbers.get("evaluation")
        if target is None:  # a result of version 0.1
            target = (specs_of(self.config).get(name) or {}).get("target")
        try:
            return import_target(target, allow_list(), str(self.path))
        except InputError:
            return None

    def with_columns(self, name: str, numbers: Mapping) -> dict:
        """Return a result with its columns and their standard errors.

        Results of earlier versions store none, or no standard errors.
        """
        absent = [k for k in ("columns", "standard_errors") if k not in numbers]
        made = self.evaluation(name, numbers) if absent else None
        computed = {
            key: getattr(made, key)(numbers) if hasattr(made, key) else {}
            for key in absent
        }
        return {**numbers, **computed}


def _united(one: dict, other: dict, name: str) -> dict:
    """Merge two results of one step, including their columns and protocols.

    If both have a column, the column of `other` gets its evaluation's name as a prefix.
    """
    both = {**one, **other}
    columns = dict(one.get("columns", {}))
    errors = dict(one.get("standard_errors", {}))
    for column, value in other["columns"].items():
        unique = f"{name}: {column}" if column in columns else column
        columns[unique] = value
        if column in other["standard_errors"]:
            errors[unique] = other["standard_errors"][column]
    both["columns"], both["standard_errors"] = columns, errors
    if "protocol" in one and "protocol" in other:
        both["protocol"] = {**one["protocol"], **other["protocol"]}
    return both


def naming_the_run(tell: Callable[[Sequence[Any]], Any]) -> Callable:
    """Decorate a function of runs: a malformed run raises an InputError naming it."""

    @functools.wraps(tell)
    def told(runs: Sequence[Run]) -> Any:
        try:
            with fits_together(", ".join(str(run.path) for run in runs)):
                return tell(runs)
        except InputError:
            if len(runs) > 1:
                for run in runs:  # find the malformed one
                    told([run])
            raise

    return told


def read(paths: Sequence[Path]) -> list[Run]:
    """Read run directories.

    Raises InputError if a path is not a run, or if a file of a run is damaged.
    """
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    # A file name may hold any bytes; a name in a figure must be text.
    names = [encoded(name).decode() for name in names]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Run:
    if not (path / "config.json").is_file():
        what = "has no config.json" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} is not a run: it {what}; name the --workdir of a training"
        )
    results: dict[str, dict[int, dict]] = {}
    references: dict[str, dict[str, dict]] = {}
    transfers: dict[tuple[str, str], tuple[int, dict]] = {}
    for file in sorted((path / "eval").glob("*.json")):
        # STEP[-EVALUATION][-on-DATA] or REFERENCE[-EVALUATION]
        stem, on, data = file.stem.partition("-on-")
        label, _, evaluation = stem.partition("-")
        if label.isdecimal() and on:
            if int(label) >= transfers.get((evaluation, data), (0,))[0]:
                transfers[evaluation, data] = int(label), _json(file)
        elif label.isdecimal():
            results.setdefault(evaluation, {})[int(label)] = _json(file)
        elif label in REFERENCES and not on:
            references.setdefault(evaluation, {})[label] = _json(file)
    figure_data = {
        evaluation: _arrays(
            path / "eval" / f"{result_name(max(by_step), evaluation)}.npz"
        )
        for evaluation, by_step in results.items()
    }
    return Run(
        path=path,
        name=name,
        config=_json(path / "config.json"),
        history=metrics.read(path / "metrics.jsonl"),
        results=results,
        references=references,
        figure_data=figure_data,
        transfers=transfers,
    )


def drawn_pictures(run: Run, name: str) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield (title, PNG content, width, height) of an evaluation's last pictures.

    Sizes are in pixels. Raises InputError for a file that is not PNG or too large.
    """
    stem = result_name(max(run.results[name]), name)
    for path in sorted((run.path / "eval").glob(f"{stem}-*.png"))[:_MOST_PICTURES]:
        if "-on-" in path.stem:
            continue
        try:
            content = files.read_bounded(path, _LARGEST_PICTURE)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error})") from error
        if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
            raise InputError(f"{path} is not a PNG file")
        width, height = struct.unpack(">II", content[16:24])
        if width * height > 4 * _LARGEST_PICTURE:
            raise InputError(f"{path} is a picture of {width} x {height}: too large")
        yield path.stem.removeprefix(f"{stem}-"), content, width, height


def _json(path: Path) -> dict[str, Any]:
    try:
        content = files.read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); write it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; write it again")
    return content


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        content = io.BytesIO(files.read_bounded(path, _LARGEST_ARRAYS))
        with zipfile.ZipFile(content) as archive:
            _check_sizes(archive)
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # zipfile and numpy raise many types, few documented
        raise InputError(f"{path} is damaged ({error}); evaluate again") from error


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raise ValueError if the arrays exceed `_LARGEST_ARRAYS` or are malformed."""
    versions = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    size = 0
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in versions:
                raise ValueError(f"{member.filename!r} has an unknown format version")
            shape, _, dtype = versions[version](file)
        # An empty array counts too: code may loop over its other sides.
        claimed = math.prod(max(1, side) for side in (*shape, dtype.itemsize))
        size += max(claimed, member.file_size)
    if size > _LARGEST_ARRAYS:
        raise ValueError(f"its arrays take more than {_LARGEST_ARRAYS} bytes")
