"""ImageNet 2012 (Russakovsky et al. 2015) from its two tars, without TensorFlow.

`tfds.data_source("imagenet2012")` can read the result: it has the stock builder's name,
version, features and order, in array_record. TFDS sorts by a hash of the file name, and
needs TensorFlow for that as soon as the images exceed its memory. We list the tars
first, then read their members in that order, so the tars should be on a disk with fast
seeks. They are never unpacked, so paths inside them never reach the file system. As in
TFDS, the few training images that are not RGB JPEGs (22 in CMYK, one PNG under another
name) are converted; we recognise them by their content.
"""

import contextlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from polyview.data.decode import decode, read_header
from polyview.data.prepare import records
from polyview.data.sources.protocol import CorruptRecord
from polyview.data.sources.tfds import find_tfds, import_tfds, without_tensorflow_banner
from polyview.errors import InputError

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"
_STOCK = "datasets/imagenet2012"
_SHARD_BYTES = 2**28


class _Member(NamedTuple):
    name: str
    wnid: str
    offset: int  # in the outer tar
    size: int


def prepare(data_dir: Path, manual_dir: Path | None) -> str:
    """Write `data_dir`/imagenet2012/5.1.0 and return a summary.

    Images that cannot be decoded are kept, as in TFDS, and counted; the pipeline
    replaces them when they are read.

    Args:
      data_dir: holds the data sets.
      manual_dir: holds the two tars, from image-net.org.

    Raises:
      InputError: a tar is absent, damaged or not ImageNet's.
    """
    with contextlib.suppress(InputError):
        return f"{find_tfds('imagenet2012', data_dir).data_dir} is there already"
    if manual_dir is None:
        raise InputError(
            f"imagenet2012 requires --manual_dir with {TRAIN} and {VALIDATION}; "
            "download them from https://image-net.org/download-images"
        )
    for name in (TRAIN, VALIDATION):
        if not (manual_dir / name).is_file():
            raise InputError(
                f"no {name} in {manual_dir}; download it from "
                "https://image-net.org/download-images"
            )
    tars = {"train": manual_dir / TRAIN, "validation": manual_dir / VALIDATION}
    try:
        members = {
            "train": _train_members(tars["train"]),
            "validation": _validation_members(tars["validation"]),
        }
    except tarfile.TarError as error:
        raise InputError(
            f"the tars in {manual_dir} are damaged ({error}); download them again"
        ) from None
    for split, found in members.items():
        if not found:
            raise InputError(f"{tars[split]} holds no image")

    notes: Counter[str] = Counter()
    with without_tensorflow_banner():
        builder = _builder(data_dir)
        directory = Path(builder.data_dir)
        with records.whole_folder(directory) as folder:
            splits = [
                _write_split(builder, folder, split, tars[split], found, notes)
                for split, found in members.items()
            ]
            builder.info.set_splits(import_tfds().core.splits.SplitDict(splits))
            with records.writing(folder):
                builder.info.write_to_directory(folder)
    counts = ", ".join(f"{name} {len(found):,}" for name, found in members.items())
    oddities = "; ".join(f"{count} {what}" for what, count in sorted(notes.items()))
    return f"{directory} written: {counts}" + (f" ({oddities})" if oddities else "")


def _builder(data_dir: Path) -> Any:
    """Return a builder with the same description of the data as the stock one."""
    tfds = import_tfds()

    class Builder(  # type: ignore[call-arg]  # mypy does not know the base
        tfds.core.GeneratorBasedBuilder,  # type: ignore[name-defined]  # imported late
        skip_registration=True,
    ):
        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")

        def _info(self) -> Any:
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

        def _split_generators(self, dl_manager: Any) -> Any:
            raise NotImplementedError("`prepare` writes the files")

        def _generate_examples(self) -> Any:
            raise NotImplementedError("`prepare` writes the files")

    return Builder(data_dir=data_dir, file_format="array_record")


def _write_split(
    builder: Any,
    folder: Path,
    split: str,
    tar: Path,
    members: list[_Member],
    notes: Counter[str],
) -> Any:
    """Write the files of a split in TFDS's order and return its SplitInfo."""
    from tensorflow_datasets.core import example_serializer, hashing, naming

    hasher = hashing.Hasher(split)
    members = sorted(members, key=lambda member: hasher.hash_key(member.name))
    features = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    template = naming.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=builder.name,
        split=split,
        filetype_suffix="array_record",
    )
    shards = -(-sum(member.size for member in members) // _SHARD_BYTES)
    bounds = [len(members) * shard // shards for shard in range(shards + 1)]
    size = 0
    progress = tqdm(total=len(members), desc=split, unit=" images", delay=3)
    with tar.open("rb") as file, progress:
        for shard in range(shards):
            path = template.sharded_filepath(shard_index=shard, num_shards=shards)
            with records.writing(folder):
                writer = ArrayRecordWriter(str(path), "group_size:1")
            for member in members[bounds[shard] : bounds[shard + 1]]:
                file.seek(member.offset)
                example = {
                    "image": _as_jpeg(file.read(member.size), notes),
                    "label": member.wnid,
                    "file_name": member.name,
                }
                record = serializer.serialize_example(features.encode_example(example))
                with records.writing(folder):
                    writer.write(record)
                size += len(record)
                progress.update()
            with records.writing(folder):
                writer.close()
    return import_tfds().core.SplitInfo(
        name=split,
        shard_lengths=[b - a for a, b in zip(bounds, bounds[1:], strict=False)],
        num_bytes=size,
        filename_template=template,
    )


def _train_members(path: Path) -> list[_Member]:
    """List the images in the training tar, which holds one tar per class."""
    members = []
    with tarfile.open(path, "r:") as outer:
        for archive in tqdm(outer, desc="listing", unit=" classes", delay=3):
            match = re.fullmatch(r"(n\d{8})\.tar", archive.name)
            if not match or not archive.isfile():
                raise InputError(
                    f"{path} holds '{archive.name}', not n01440764.tar ..."
                )
            with tarfile.open(fileobj=outer.extractfile(archive), mode="r:") as inner:
                members += [
                    _Member(name, match[1], archive.offset_data + offset, size)
                    for name, offset, size in _files(inner)
                ]
    return members


def _validation_members(path: Path) -> list[_Member]:
    """List the images in the validation tar; the numbers in their names give labels."""
    labels = import_tfds().core.tfds_path(f"{_STOCK}/validation_labels.txt")
    wnids = labels.read_text().split()
    members = []
    with tarfile.open(path, "r:") as archive:
        for name, offset, size in _files(archive):
            match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if not match or not 1 <= int(match[1]) <= len(wnids):
                raise InputError(
                    f"{path} holds '{name}', not ILSVRC2012_val_00000001.JPEG ..."
                )
            members.append(_Member(name, wnids[int(match[1]) - 1], offset, size))
    return members


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    for member in archive:
        if member.isreg():
            yield member.name, member.offset_data, member.size


def _as_jpeg(data: bytes, notes: Counter[str]) -> bytes:
    try:
        header = read_header(data)
        if header.kind == "jpeg" and header.plain and header.whole:
            return data
        image = decode(data)
    except CorruptRecord:
        notes["cannot be decoded"] += 1
        return data
    if header.kind == "jpeg" and header.plain:
        return data  # only trailing bytes: harmless
    notes[f"{'CMYK' if header.kind == 'jpeg' else header.kind} made RGB JPEG"] += 1
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
