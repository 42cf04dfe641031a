"""Data sets that TFDS prepared, read without TensorFlow."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyview.data.sources.protocol import default_data_dir, first_line, parse_split
from polyview.errors import InputError, fits_together


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
                f"{builder.data_dir} cannot be indexed ({first_line(error)}); "
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

    TFDS imports whatever module is named there, and data may come from an untrusted
    source. It is stopped where it imports: there are several ways to spell such a name.
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
