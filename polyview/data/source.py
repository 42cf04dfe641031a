"""Where examples come from: anything with a length and an index.

A source maps an index to one example, a dict of fields: an image is its encoded
`bytes` (decoded in `augment`, where the size of the crops is known) or `uint8[h, w,
c]`, a label an int, a text a str. `targets` says what can be predicted from an example.
A source reads lazily, may be shared by threads, and can be pickled into workers.

Our own files are array_record: random access by index without a separate shuffle, each
record one msgpack dict. Nothing here unpickles, since data may be a stranger's.
"""

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from polyview.errors import InputError, fits_together, nearest
from polyview.files import read_json

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tiff", ".webp"})
MAX_FILE = 2**30  # bytes of an image
MAX_CLASSES = 2**20
_ARRAY = 1  # msgpack extension code of a numpy array


class CorruptRecord(ValueError):
    """A record that cannot be decoded; the pipeline reads another in its place."""


class Source(Protocol):
    """A sequence of examples.

    `targets` maps a field to its task, such as `{"kind": "class", "classes": 10,
    "names": [...]}` where names are optional; it is empty for unlabelled data. A source
    that reads many examples at once for less may also have `__getitems__(indices) ->
    list`, as in PyTorch and array_record; it raises `CorruptRecord` if any of them is.
    """

    targets: dict[str, dict[str, Any]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def check_targets(source: Source, batch: Mapping[str, Any]) -> None:
    """Raise InputError for a target of the batch that is no class of the source.

    A loss would take -1 for the last class, and make NaN of one that is too large.
    """
    for name, values in batch["targets"].items():
        task = source.targets.get(name, {})
        classes = 2 if task.get("kind") == "multi-label" else task.get("classes")
        if classes is None:
            continue
        wrong = ((values < 0) | (values >= classes)).reshape(len(values), -1)
        if wrong.any():
            row = int(wrong.any(1).argmax())
            value = values.reshape(len(values), -1)[row, wrong[row].argmax()]
            raise InputError(
                f"{source!r}: row {batch['index'][row]} has {name} {value}, outside 0 "
                f".. {classes - 1}; correct the data, or leave it out of views.targets"
            )


def check_numbers(targets: Mapping[str, np.ndarray]) -> None:
    """Raise CorruptRecord for a target that is no number."""
    for name, value in targets.items():
        if value.dtype.kind not in "biuf":
            raise CorruptRecord(f"target '{name}' is no number, but {value!r:.40}")


def default_data_dir() -> Path:
    """Return `$POLYVIEW_DATA`, or `data` in the current directory."""
    return Path(os.environ.get("POLYVIEW_DATA") or "data")


def pack(example: Mapping[str, Any]) -> bytes:
    """Write one example as a record: msgpack, with arrays as (dtype, shape, bytes)."""
    return msgpack.packb(dict(example), default=_pack_value)


def unpack(record: bytes) -> dict[str, Any]:
    """Read one example from a record; raises `CorruptRecord` for anything else."""
    try:
        example = msgpack.unpackb(record, ext_hook=_unpack_array)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptRecord(f"not a msgpack record: {error}") from None
    if not isinstance(example, dict):
        raise CorruptRecord(f"a record holds a dict, not a {type(example).__name__}")
    return example


def _pack_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise ValueError("an array of objects cannot be written without pickle")
        fields = (value.dtype.str, value.shape, value.tobytes())
        return msgpack.ExtType(_ARRAY, msgpack.packb(fields))
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"a record cannot hold a {type(value).__name__}")


def _unpack_array(code: int, data: bytes) -> np.ndarray:
    if code != _ARRAY:
        raise ValueError(f"unknown extension code {code}")
    dtype, shape, values = msgpack.unpackb(data)
    return np.frombuffer(values, np.dtype(dtype)).reshape(shape)


def parse_split(split: str, counts: Mapping[str, int]) -> tuple[str, int, int]:
    """Turn `train[:90%]` into a split's name and its range of indices.

    Args:
      split: `name`, or `name[start:stop]` where either bound is a count, a percentage
        (rounded to the nearest example) or absent.
      counts: the number of examples of each split.

    Raises:
      InputError: the split is unknown, does not parse or holds no example.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if not match:
        raise InputError(
            f"split '{split}' is not of the form train, train[:90%] or train[100:5000]"
        )
    name, first, last = match.groups()
    if name not in counts:
        raise InputError(f"no split '{name}' here; there are: {', '.join(counts)}")
    count = counts[name]

    def position(bound: str) -> int:
        if not bound.endswith("%"):
            return int(bound)
        if int(bound[:-1]) > 100:
            raise InputError(f"split '{split}' asks for more than 100%")
        return round(int(bound[:-1]) * count / 100)

    start = position(first or "0")
    stop = min(position(last or "100%"), count)
    if start >= stop:
        raise InputError(f"split '{split}' is empty: '{name}' has {count} examples")
    return name, start, stop


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a prepared data set, checked as far as it is relied on."""
    path = directory / "manifest.json"
    try:
        manifest = read_json(path)
        for split in manifest["splits"].values():
            counts = [split["count"], *(file["records"] for file in split["files"])]
            if not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError("a count is not a number of records")
            if counts[0] != sum(counts[1:]):
                raise ValueError("the counts of its files do not add up")
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


def _check_task(task: dict[str, Any], what: str) -> None:
    """Raise ValueError, or what a dict of another form raises, for a target that cannot
    be measured."""
    kind, classes, names = task["kind"], task.get("classes"), task.get("names")
    if type(kind) is not str:
        raise ValueError(f"{what} is of kind {kind!r}")
    if classes is not None or kind == "class":
        if type(classes) is not int or not 1 <= classes <= MAX_CLASSES:
            raise ValueError(f"{what} has {classes!r} classes")
    if names is not None or kind == "multi-label":
        texts = type(names) is list and all(type(name) is str for name in names)
        if not texts or len(names) != (classes or len(names)):
            raise ValueError(f"{what} does not name each of its classes")
    if kind == "mask":
        of = [number for region in task["regions"].values() for number in region]
        if not all(type(number) is int and 0 <= number < 256 for number in of):
            raise ValueError(f"{what} has a region of what is no class")


class ArrayRecord:
    """A data set written by `python -m polyview.prepare`.

    Args:
      name: the data set, a folder of `data_dir`.
      split: see `parse_split`.
      data_dir: by default `$POLYVIEW_DATA`, else `./data`.
    """

    def __init__(
        self, name: str, split: str = "train", data_dir: str | Path | None = None
    ):
        directory = Path(data_dir or default_data_dir()) / name
        if not (directory / "manifest.json").is_file():
            flag = f" --data_dir {data_dir}" if data_dir else ""
            there = [m.parent.name for m in directory.parent.glob("*/manifest.json")]
            raise InputError(
                f"no data set '{name}' in {directory.parent.absolute()}; run: python "
                f"-m polyview.prepare {name}{flag}{nearest(name, there)}"
            )
        manifest = read_manifest(directory)
        counts = {name: entry["count"] for name, entry in manifest["splits"].items()}
        split_name, self._start, self._stop = parse_split(split, counts)
        files = [file["name"] for file in manifest["splits"][split_name]["files"]]
        try:
            self._records = ArrayRecordDataSource([str(directory / f) for f in files])
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{directory} is damaged ({_first_line(error)}); "
                "remove it and prepare again"
            ) from None
        if len(self._records) != counts[split_name]:
            raise InputError(
                f"{directory} holds {len(self._records)} {split_name} records, its "
                f"manifest says {counts[split_name]}; remove it and prepare again"
            )
        self.targets: dict[str, dict[str, Any]] = manifest["targets"]
        self._description = f"ArrayRecord('{name}', '{split}')"

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = self._records[self._start + int(index)]
        except (RuntimeError, ValueError) as error:
            raise CorruptRecord(_first_line(error)) from None
        return unpack(record)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        # Asking for many at once costs a fifth of asking one by one.
        try:
            records = self._records.__getitems__([self._start + i for i in indices])
        except (RuntimeError, ValueError) as error:
            raise CorruptRecord(_first_line(error)) from None
        return [unpack(record) for record in records]

    def __repr__(self) -> str:
        return self._description


class Tfds:
    """An already prepared TFDS data set (array_record files), read without TensorFlow.

    Images stay encoded; a `ClassLabel` becomes a target.

    Args:
      name: `cifar10`, or `name/config`; the newest version found is read.
      split: see `parse_split`.
      data_dir: where TFDS prepared; by default our own data directory, then
        `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
    """

    def __init__(
        self, name: str, split: str = "train", data_dir: str | Path | None = None
    ):
        builder = find_tfds(name, data_dir)
        counts = {key: info.num_examples for key, info in builder.info.splits.items()}
        split_name, start, stop = parse_split(split, counts)
        tfds = import_tfds()
        features = builder.info.features
        decoders = {
            field: tfds.decode.SkipDecoding()
            for field, feature in features.items()
            if isinstance(feature, tfds.features.Image)
        }
        try:
            with without_tensorflow_banner():
                self._examples = builder.as_data_source(
                    f"{split_name}[{start}:{stop}]", decoders=decoders
                )
        except NotImplementedError as error:
            raise InputError(
                f"{builder.data_dir} cannot be indexed ({_first_line(error)}); "
                "prepare it with file_format='array_record'"
            ) from None
        self.targets: dict[str, dict[str, Any]] = {
            field: {
                "kind": "class",
                "classes": feature.num_classes,
                "names": feature.names,
            }
            for field, feature in features.items()
            if isinstance(feature, tfds.features.ClassLabel)
        }
        self._description = f"Tfds('{name}', '{split}')"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._examples[int(index)]

    def __repr__(self) -> str:
        return self._description


def import_tfds():
    """Import TFDS where it is needed: it takes a second."""
    import tensorflow_datasets

    return tensorflow_datasets


@contextlib.contextmanager
def without_tensorflow_banner() -> Iterator[None]:
    """Keep TFDS from announcing at length that TensorFlow, not needed, is absent."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def find_tfds(name: str, data_dir: str | Path | None):
    """Return the TFDS builder of a prepared data set; see `Tfds`."""
    roots = _tfds_roots(data_dir)
    newest = tfds_folder(name, data_dir)
    if newest is not None:
        with (
            fits_together(f"what describes {newest}"),
            without_tensorflow_banner(),
            _features_of_tfds_alone(),
        ):
            builder = import_tfds().builder_from_directory(newest)
            if builder.info.features is None:  # nor may they wait
                raise ValueError("it describes no features")
            return builder
    flag = f" --data_dir {data_dir}" if data_dir else ""
    raise InputError(
        f"no prepared TFDS data set '{name}' in {', '.join(map(str, roots))}; "
        f"run: python -m polyview.prepare {name}{flag}"
    )


def tfds_folder(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The folder of a data set's newest version, or None; TFDS is not imported."""
    for root in _tfds_roots(data_dir):
        versions = [path.parent for path in (root / name).glob("*/dataset_info.json")]
        if versions:
            return max(versions, key=_version_key)
    return None


def _tfds_roots(data_dir: str | Path | None) -> list[Path]:
    if data_dir is not None:
        return [Path(data_dir)]
    roots = [default_data_dir()]
    if os.environ.get("TFDS_DATA_DIR"):
        roots.append(Path(os.environ["TFDS_DATA_DIR"]))
    return [*roots, Path.home() / "tensorflow_datasets"]


@contextlib.contextmanager
def _features_of_tfds_alone() -> Iterator[None]:
    """Let a folder's description call no features but TFDS's own.

    TFDS imports whatever module is named there, and data may be a stranger's. It is
    stopped where it imports: there are several ways to spell such a name.
    """
    features = import_tfds().features.FeatureConnector
    original = features.__dict__["cls_from_name"]

    def from_name(name: str):
        if not str(name).startswith("tensorflow_datasets."):
            raise InputError(f"the data set names {name!r}, which is not of TFDS")
        return original.__func__(features, name)

    features.cls_from_name = staticmethod(from_name)
    try:
        yield
    finally:
        features.cls_from_name = original


def _version_key(directory: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", directory.name))


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


class InMemory:
    """Examples held as columns: `{"image": uint8[n, h, w, c], "label": int[n]}`."""

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any] | np.ndarray],
        targets: Mapping[str, dict[str, Any]] | None = None,
    ):
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"columns of one length are needed, not {lengths}")
        self._columns = dict(columns)
        self._length = next(iter(lengths.values()))
        self.targets: dict[str, dict[str, Any]] = dict(targets or {})

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self._columns.items()}

    def __repr__(self) -> str:
        return f"InMemory({', '.join(self._columns)}: {self._length})"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
