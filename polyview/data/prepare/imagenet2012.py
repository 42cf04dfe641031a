"""ImageNet 2012 (Russakovsky et al. 2015) out of its two tars, without TensorFlow.

The result is what `tfds.data_source("imagenet2012")` reads: the stock builder's name,
version, features and keys, in array_record. The tars are read member by member and
never unpacked, so no path inside them means anything to the file system. As in TFDS,
the few training images that are not RGB JPEGs (22 in CMYK, one PNG under another name)
become such; here they are known by their content.
"""

import contextlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2

from polyview.data.augment import decode, read_header
from polyview.data.source import (
    CorruptRecord,
    find_tfds,
    import_tfds,
    without_tensorflow_banner,
)
from polyview.errors import InputError

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"
_STOCK = "datasets/imagenet2012"


def prepare(data_dir: Path, manual_dir: Path | None) -> str:
    """Write `data_dir`/imagenet2012/5.1.0; returns a summary.

    Images that cannot be decoded are kept, as TFDS keeps them, and counted: the
    pipeline replaces them when they are read.

    Args:
      data_dir: holds the data sets.
      manual_dir: holds the two tars, from image-net.org.

    Raises:
      InputError: a tar is absent or not as ImageNet's.
    """
    with contextlib.suppress(InputError):
        return f"{find_tfds('imagenet2012', data_dir).data_dir} is there already"
    if manual_dir is None:
        raise InputError(
            f"imagenet2012 needs --manual_dir, the folder of {TRAIN} and {VALIDATION}; "
            "download them from https://image-net.org/download-images"
        )
    for name in (TRAIN, VALIDATION):
        if not (manual_dir / name).is_file():
            raise InputError(
                f"no {name} in {manual_dir}; download it from "
                "https://image-net.org/download-images and give --manual_dir"
            )
    found: Counter[str] = Counter()
    tfds = import_tfds()

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "label": tfds.features.ClassLabel(
                            names_file=tfds.core.tfds_path(f"{_STOCK}/labels.txt")
                        ),
                        "file_name": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://image-net.org/",
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(_train(manual_dir / TRAIN)),
                "validation": self._generate_examples(
                    _validation(manual_dir / VALIDATION, _validation_labels())
                ),
            }

        def _generate_examples(self, members):
            for name, label, data in members:
                image = _as_jpeg(data, found)
                yield name, {"image": image, "label": label, "file_name": name}

    try:
        with without_tensorflow_banner():
            builder = Builder(data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except tarfile.TarError as error:
        raise InputError(
            f"the tars in {manual_dir} are damaged: {error}; download them again"
        ) from None
    counts = ", ".join(
        f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items()
    )
    notes = "; ".join(f"{count} {what}" for what, count in sorted(found.items()))
    return f"wrote {builder.data_dir}: {counts}" + (f" ({notes})" if notes else "")


def _train(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield (file name, wnid, bytes) out of the tar of one tar per class."""
    with tarfile.open(path, "r:") as outer:
        for archive in outer:
            match = re.fullmatch(r"(n\d{8})\.tar", archive.name)
            if not match:
                raise InputError(
                    f"{path} holds '{archive.name}', not n01440764.tar ..."
                )
            with tarfile.open(fileobj=outer.extractfile(archive), mode="r:") as inner:
                for name, data in _files(inner):
                    yield name, match[1], data


def _validation(path: Path, labels: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (file name, wnid, bytes); the labels follow the numbers in the names."""
    with tarfile.open(path, "r:") as archive:
        for name, data in _files(archive):
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if not match or not 1 <= int(match[1]) <= len(labels):
                raise InputError(
                    f"{path} holds '{name}', not ILSVRC2012_val_00000001.JPEG ..."
                )
            yield name, labels[int(match[1]) - 1], data


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        file = archive.extractfile(member) if member.isfile() else None
        if file is not None:
            yield member.name, file.read()


def _validation_labels() -> list[str]:
    path = import_tfds().core.tfds_path(f"{_STOCK}/validation_labels.txt")
    return path.read_text().split()


def _as_jpeg(data: bytes, found: Counter[str]) -> bytes:
    try:
        header = read_header(data)
        if header.kind == "jpeg" and header.plain and header.whole:
            return data
        image = decode(data)
    except CorruptRecord:
        found["cannot be decoded"] += 1
        return data
    if header.kind == "jpeg" and header.plain:
        return data  # bytes after the end of the image: harmless
    found[f"{'CMYK' if header.kind == 'jpeg' else header.kind} made RGB JPEG"] += 1
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
