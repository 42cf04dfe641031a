"""Any folder of images, with class folders or flat.

If there is a `train` subfolder, the subfolders train, val and test become the splits of
those names. Otherwise a test split is held out of each class: the files are sorted by
the SHA-256 of their relative path and the first fraction is taken. This rule needs no
seed, and most files keep their split when others are added.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from polyview.data.augment import decode, read_header
from polyview.data.prepare import records
from polyview.data.sources.folder import Folder
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError

SPLITS = ("train", "val", "test")


def prepare(directory: Path, images: Path, test_fraction: float) -> None:
    """Write image (the file's bytes), file and, with class folders, label.

    Unreadable images are left out and counted.

    Args:
      directory: the data set's folder, which must not exist.
      images: the folder of images.
      test_fraction: share of each class, 0 .. 1 exclusive; unused with split folders.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"--test_fraction {test_fraction} must lie between 0 and 1")
    unreadable: list[str] = []
    rows: Mapping[str, Sequence[int]]
    if (images / "train").is_dir():
        present = [name for name in SPLITS if (images / name).is_dir()]
        folders = {name: Folder(images / name) for name in present}
        rule = "the folder's own"
        rows = {name: range(len(folder)) for name, folder in folders.items()}
    else:
        folder = Folder(images)
        folders = {"train": folder, "test": folder}
        rule = f"{test_fraction:g} of each class for test, first by sha256 of the path"
        rows = _hold_out(folder, test_fraction)
    targets = folders["train"].targets
    for name, folder in folders.items():
        if not rows[name]:
            raise InputError(
                f"{images} has too few images for --test_fraction {test_fraction:g}: "
                f"the split {name} would be empty"
            )
        if folder.targets != targets:
            raise InputError(
                f"{images / name} must have the class folders of {images / 'train'}"
            )
    records.write(
        directory,
        {
            name: _readable(folder, rows[name], unreadable)
            for name, folder in folders.items()
        },
        version="1.0.0",
        targets=targets,
        source=f"the folder {images.name}",
        licence="not stated",
        provenance={"split": rule, "unreadable": unreadable},
    )
    if unreadable:
        print(
            f"left out {len(unreadable)} unreadable images, listed in "
            f"{directory / 'manifest.json'} (the first: {unreadable[0]})"
        )


def _hold_out(folder: Folder, fraction: float) -> dict[str, list[int]]:
    by_class: dict[int, list[tuple[str, int]]] = defaultdict(list)
    labels = folder.labels or [0] * len(folder)
    for row, (file, label) in enumerate(zip(folder.files, labels, strict=True)):
        by_class[label].append((hashlib.sha256(file.encode()).hexdigest(), row))
    test: set[int] = set()
    for rows in by_class.values():
        test.update(row for _, row in sorted(rows)[: round(fraction * len(rows))])
    return {
        "train": [row for row in range(len(folder)) if row not in test],
        "test": sorted(test),
    }


def _readable(
    folder: Folder, rows: Sequence[int], unreadable: list[str]
) -> Iterator[dict]:
    for row in rows:
        try:
            example = folder[row]
            header = read_header(example["image"])
            if not (header.plain and header.whole):
                decode(example["image"])  # the header does not prove it readable
        except CorruptRecord as error:
            unreadable.append(f"{folder.files[row]}: {error}")
            continue
        yield example
