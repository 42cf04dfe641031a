"""Data sets prepared by TFDS, read without TensorFlow."""

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
    """A data set already prepared by TFDS as array_record, read without TensorFlow.

    Images stay encoded. Each `ClassLabel` becomes a target.

    Args:
      name: `cifar10`, or `name/config`; the newest version found is read.
      split: see `parse_split`.
      data_dir: TFDS's data directory; by default our own, then `$TFDS_DATA_DIR`, then
        `~/tensorflow_datasets`.
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
                f"{builder.data_dir} has no random access ({first_line(error)}); "
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


def import_tfds() -> Any:
    """Import TFDS only when it is needed: importing takes a second."""
    import tensorflow_datasets

    return tensorflow_datasets


@contextlib.contextmanager
def without_tensorflow_banner() -> Iterator[None]:
    """Suppress the long notice of TFDS that TensorFlow, not needed here, is absent."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def find_tfds(name: str, data_dir: str | Path | None) -> Any:
    """Return the TFDS builder of a prepared data set. Raises InputError if absent."""
    roots = _tfds_roots(data_dir)
    newest = tfds_folder(name, data_dir)
    if newest is not None:
        with (
            fits_together(f"the metadata in {newest}"),
            without_tensorflow_banner(),
            _features_of_tfds_alone(),
        ):
            builder = import_tfds().builder_from_directory(newest)
            if builder.info.features is None:  # none may be loaded later
                raise ValueError("it describes no features")
            return builder
    flag = f" --data_dir {data_dir}" if data_dir else ""
    raise InputError(
        f"no prepared TFDS data set '{name}' in {', '.join(map(str, roots))}; "
        f"run: python -m polyview.prepare {name}{flag}"
    )


def tfds_folder(name: str, data_dir: str | Path | None = None) -> Path | None:
    """Return a data set's folder of the newest version, or None; needs no TFDS."""
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
    """Restrict a data set's description to TFDS's own features.

    TFDS imports any module that a description names, and descriptions are untrusted.
    The check is at the import, since such a name can be spelt in several ways.
    """
    features = import_tfds().features.FeatureConnector
    original = features.__dict__["cls_from_name"]

    def from_name(name: str) -> type:
        if not str(name).startswith("tensorflow_datasets."):
            raise InputError(f"the data set names {name!r}, a feature outside TFDS")
        return original.__func__(features, name)

    features.cls_from_name = staticmethod(from_name)
    try:
        yield
    finally:
        features.cls_from_name = original


def _version_key(directory: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", directory.name))
