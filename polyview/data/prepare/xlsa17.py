"""Splits of seen and unseen classes by Xian et al. (2019), for cub, awa2 and sun.

xlsa17.zip has a folder for each data set: res101.mat with the path and the label of
each image, att_splits.mat with the attributes of the classes and the numbers of the
images of each split. All numbers count from 1. The order of the classes is its own, in
CUB not that of the data set, so classes are known by their names.

The published files differ. In those of 2018, train_loc and val_loc, which are meant to
choose settings, divide *all* images of seen classes: who trains on train_loc trains on
images of test_seen_loc. Those of 2019 lack both, and later ones divide trainval_loc.
Version 2 of the split has other images. So only the classes of val_loc are used here,
those of valclasses1.txt, and the manifest names the version.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from polyview.data.prepare import records
from polyview.data.sources.folder import read_image
from polyview.data.sources.protocol import CorruptRecord, class_task
from polyview.errors import InputError

URL = "http://datasets.d2.mpi-inf.mpg.de/xian/xlsa17.zip"
LOCATIONS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")
TUNING = ("train_loc", "val_loc")
# The sha256 of the numbers of the images in version 1, by `_digest`.
VERSION_1 = {
    "AWA2": "e0d711e619362d23",
    "CUB": "9f58936bf2998e15",
    "SUN": "1a6e0530d8cb4814",
}
RULE = (
    "train and validation: trainval_loc, of the other classes and of those of "
    "valclasses1.txt; test: test_unseen_loc; seen_test and validation_seen_test: "
    "test_seen_loc, of the classes of train and of validation"
)


class Benchmark(NamedTuple):
    """What xlsa17 says of a data set.

    Attributes:
      files: the path of each image, below the folder of images.
      labels: int64[n], from 0.
      classes: names, in the order of the labels.
      attributes: float32[classes, a], as published, not scaled.
      splits: {split: numbers of images, from 0}.
      version: which of the published files these are, in words.
    """

    files: list[str]
    labels: np.ndarray
    classes: list[str]
    attributes: np.ndarray
    splits: dict[str, np.ndarray]
    version: str


def prepare(
    directory: Path,
    folder: Path,
    images: Path,
    attributes: Mapping[str, Any],
    source: str,
) -> None:
    """Write train, validation, test, seen_test and validation_seen_test.

    A record has image (the file's bytes), file str, label int over all classes and
    attributes float32[a], the vector of the class as published. A split that would have
    no image is left out.

    Args:
      directory: the data set's folder, which must not exist.
      folder: that of the data set in xlsa17.
      images: the folder of images.
      attributes: their "names" and, if they have some, "slots".
      source: the data set, in words.

    Raises InputError as `read` does, and for missing images or other attributes.
    """
    data = read(folder)
    if len(attributes["names"]) != data.attributes.shape[1]:
        raise InputError(
            f"{folder} has {data.attributes.shape[1]} attributes of a class, but the "
            f"data set names {len(attributes['names'])}; one of them is another version"
        )
    used = np.concatenate(list(data.splits.values()))
    lacking = [data.files[i] for i in used if not (images / data.files[i]).is_file()]
    if lacking:
        raise InputError(
            f"{len(lacking)} of {len(used)} images are not in {images} (the first: "
            f"{lacking[0]}); unpack all of them"
        )
    records.write(
        directory,
        {name: _examples(data, own, images) for name, own in data.splits.items()},
        version="1.0.0",
        targets={
            "label": class_task(data.classes),
            "attributes": {"kind": "regression", **attributes},
        },
        source=f"{source}; splits and attributes of xlsa17, {URL}",
        licence="the terms of the images, which your copy names",
        provenance={
            "xlsa17": data.version,
            "split": RULE,
            "images in no split": len(data.files) - len(used),
        },
    )
    print(f"{directory.name}: xlsa17 of {data.version}")


def _examples(data: Benchmark, own: np.ndarray, images: Path) -> Iterator[dict]:
    for number in own.tolist():
        file, label = data.files[number], int(data.labels[number])
        try:
            image = read_image(images / file)
        except CorruptRecord as error:
            raise InputError(f"{error}; unpack the images again") from None
        yield {
            "image": image,
            "file": file,
            "label": label,
            "attributes": data.attributes[label],
        }


def find(manual_dir: Path | None, name: str, *places: str) -> Path:
    """Return the first of some places below the user's folder that exists.

    Raises InputError, with where to get the files, if there is none.
    """
    if manual_dir is None:
        raise InputError(
            f"{name} requires --manual_dir, the folder of your copy of the data set, "
            f"and of xlsa17 from {URL}"
        )
    found = [manual_dir / place for place in places if (manual_dir / place).exists()]
    if not found:
        raise InputError(
            f"no {' or '.join(places)} in {manual_dir}; unpack the data set there, and "
            f"xlsa17 from {URL}"
        )
    return found[0]


def lines(path: Path) -> list[str]:
    """Return the lines of a text that are not empty. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def numbered(path: Path) -> list[str]:
    """Return the names of a table of a number and a name a line, counted from 1."""
    rows = [line.split(maxsplit=1) for line in lines(path)]
    if not rows or any(row[0] != str(i) for i, row in enumerate(rows, 1)):
        raise InputError(f"{path} must have a number and a name a line, from 1 on")
    if short := [row[0] for row in rows if len(row) < 2]:
        raise InputError(f"{path}, line {short[0]}: a number without a name")
    return [row[1] for row in rows]


def read(folder: Path) -> Benchmark:
    """Read a data set of xlsa17.

    Raises InputError for files that are absent, damaged or HDF5, values out of range,
    a class that is seen and unseen, images in two splits, and files that cannot be of
    one version: labels that are not those of the paths, lists of classes or tuning
    images that are not those of the split.
    """
    path = folder / "att_splits.mat"
    split = load(path, (*LOCATIONS, *TUNING, "allclasses_names", "original_att"))
    images = load(folder / "res101.mat", ("labels", "image_files"))
    for content, file, names in (
        (split, "att_splits.mat", (*LOCATIONS, "allclasses_names", "original_att")),
        (images, "res101.mat", ("labels", "image_files")),
    ):
        if lacking := [name for name in names if name not in content]:
            raise InputError(
                f"{folder / file} has no {', '.join(lacking)}; take that of xlsa17"
            )
    classes = texts(path, split["allclasses_names"])
    files, folders = _paths(folder, texts(folder / "res101.mat", images["image_files"]))
    labels = _from_zero(folder / "res101.mat", "labels", images, len(classes))
    if len(labels) != len(files):
        raise _mixed(folder, f"{len(labels)} labels for {len(files)} images")
    for file, name, label in zip(files, folders, labels.tolist(), strict=True):
        if name != classes[label]:
            raise _mixed(
                folder, f"{file} has the label {label + 1}, which is {classes[label]}"
            )
    places = {
        name: _from_zero(path, name, split, len(files))
        for name in (*LOCATIONS, *TUNING)
        if name in split
    }
    attributes = np.asarray(split["original_att"], np.float32).T
    if attributes.shape[:1] != (len(classes),) or not np.isfinite(attributes).all():
        raise InputError(
            f"{path}: original_att must be finite, with a column for each of the "
            f"{len(classes)} classes; it is {split['original_att'].shape}"
        )
    of = {name: {classes[i] for i in labels[own]} for name, own in places.items()}
    _check_split(folder, places, of)
    held, tuning = _validation(folder, places, of)
    held_out = np.array([name in held for name in classes])[labels]
    trainval, seen, unseen = (places[name] for name in LOCATIONS)
    splits = {
        "train": trainval[~held_out[trainval]],
        "validation": trainval[held_out[trainval]],
        "test": unseen,
        "seen_test": seen[~held_out[seen]],
        "validation_seen_test": seen[held_out[seen]],
    }
    digest = _digest(places)
    known = digest == VERSION_1.get(folder.name)
    version = f"{'' if known else 'another split than '}version 1 ({digest}), {tuning}"
    splits = {name: own for name, own in splits.items() if len(own)}
    return Benchmark(files, labels, classes, attributes, splits, version)


def _check_split(
    folder: Path, places: Mapping[str, np.ndarray], of: Mapping[str, set[str]]
) -> None:
    """Raise InputError unless the splits are disjoint, and unseen classes unseen."""
    numbers = np.concatenate([places[name] for name in LOCATIONS])
    if len(set(numbers.tolist())) < len(numbers):
        raise _mixed(folder, f"an image is in two of {', '.join(LOCATIONS)}")
    if leaked := of["trainval_loc"] & of["test_unseen_loc"]:
        raise InputError(
            f"{folder}: {_some(leaked)} is seen and unseen; take the files of xlsa17"
        )
    if new := of["test_seen_loc"] - of["trainval_loc"]:
        raise _mixed(folder, f"{_some(new)} is in test_seen_loc, not in trainval_loc")
    for file, name in (
        ("trainvalclasses.txt", "trainval_loc"),
        ("testclasses.txt", "test_unseen_loc"),
    ):
        listed = folder / file
        if listed.exists() and (other := of[name] ^ set(lines(listed))):
            raise _mixed(folder, f"{file} differs from {name} in {_some(other)}")


def _validation(
    folder: Path, places: Mapping[str, np.ndarray], of: Mapping[str, set[str]]
) -> tuple[set[str], str]:
    """Return the classes to choose settings on, and what train_loc and val_loc are."""
    listed = folder / "valclasses1.txt"
    held = set(lines(listed)) if listed.exists() else of.get("val_loc")
    if held is None:
        raise InputError(
            f"{folder} has neither val_loc (in att_splits.mat) nor valclasses1.txt, so "
            "no classes to choose settings on; unpack xlsa17.zip whole"
        )
    if not held < of["trainval_loc"]:
        raise _mixed(folder, f"{_some(held - of['trainval_loc'])} is no seen class")
    if not of.keys() & set(TUNING):
        return held, "without train_loc and val_loc"
    if not of.keys() >= set(TUNING):
        raise _mixed(folder, "att_splits.mat has one of train_loc and val_loc")
    if other := held ^ of["val_loc"]:
        raise _mixed(folder, f"val_loc differs from valclasses1.txt in {_some(other)}")
    tuning, trainval, seen = (
        {number for name in names for number in places[name].tolist()}
        for names in (TUNING, LOCATIONS[:1], LOCATIONS[:2])
    )
    if tuning == trainval:
        return held, "train_loc and val_loc divide trainval_loc"
    if tuning == seen:
        return held, "train_loc and val_loc divide trainval_loc and test_seen_loc"
    raise _mixed(folder, "train_loc and val_loc do not divide the seen images")


def _mixed(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder} mixes files of different versions ({why}); take all of one "
        "xlsa17.zip"
    )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _digest(places: Mapping[str, np.ndarray]) -> str:
    """Return a digest of the images of the split, in any order within a part."""
    parts = (np.sort(places[name] + 1).astype("<i4").tobytes() for name in LOCATIONS)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _paths(folder: Path, files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return paths below the folder of images, and the class that each names.

    The paths are those on the authors' machine: .../images/a/abbey/x.jpg is an abbey,
    .../JPEGImages/ox/ox_10001.jpg an ox.
    """
    below, classes = [], []
    for file in files:
        parts = PurePosixPath(file).parts
        roots = [i for i, part in enumerate(parts) if part in ("images", "JPEGImages")]
        inside = parts[roots[-1] + 1 :] if roots else ()
        if len(inside) < 2 or ".." in inside:
            raise InputError(
                f"{folder / 'res101.mat'}: {file!r} is no .../images/CLASS/NAME.jpg"
            )
        below.append("/".join(inside))
        classes.append("_".join(inside[len(inside[0]) == 1 : -1]))
    return below, classes


def _from_zero(
    path: Path, name: str, content: Mapping[str, np.ndarray], count: int
) -> np.ndarray:
    """Return numbers 1 .. count as int64, from 0. Raises InputError for others."""
    values = np.ravel(content[name])
    if values.dtype.kind not in "iuf" or not len(values):
        raise InputError(f"{path}: {name} holds no numbers; take that of xlsa17")
    low, high = values.min(), values.max()
    if (values != np.floor(values)).any() or not 1 <= low <= high <= count:
        hint = "it counts from 0" if low == 0 else "it belongs to another version"
        raise InputError(
            f"{path}: {name} has {low:g} .. {high:g}, not whole numbers 1 .. {count}: "
            f"{hint}; take all files of one xlsa17.zip"
        )
    return values.astype(np.int64) - 1


def load(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read some variables of a MATLAB file, those that it has.

    Raises InputError if it is absent or damaged, or is HDF5 (as `save -v7.3` writes)
    and h5py, which reads it, is not installed.
    """
    if not path.is_file():
        raise InputError(f"no {path}; unpack the archive that has it")
    try:
        with path.open("rb") as file:
            start = file.read(520)
        if b"\x89HDF" in (start[:4], start[512:516]):
            return _load_hdf5(path, names)
        content = scipy.io.loadmat(path, variable_names=list(names))
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise any error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read ({reason}); unpack it again") from None
    return {name: content[name] for name in names if name in content}


def _load_hdf5(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise InputError(
            f"{path} is HDF5, MATLAB's format 7.3; save it again with "
            "save(..., '-v7'), or install h5py"
        ) from None
    content = {}
    with h5py.File(path) as file:
        for name in filter(file.__contains__, names):
            values = file[name][()].T  # MATLAB writes columns first
            if values.dtype.kind == "O":  # a cell of texts, as references
                cell = [file[text][()].ravel() for text in values.ravel()]
                values = np.array(["".join(map(chr, text)) for text in cell], object)
            content[name] = values
    return content


def texts(path: Path, cell: np.ndarray) -> list[str]:
    """Return a cell of MATLAB as strings. Raises InputError if it is none."""
    found = [np.ravel(np.asarray(text)) for text in np.ravel(cell)]
    if any(len(text) != 1 or not isinstance(text[0], str) for text in found):
        raise InputError(f"{path}: a list of names or paths holds something else")
    return [str(text[0]) for text in found]
