"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, ten classes.

Read from the original's binary archive (the other archive is a pickle), which is found
in `--manual_dir` or downloaded (170 MB) and checked against the sum that TFDS records.
A record is a label byte and three planes of 32x32 bytes: red, green, blue.
"""

import hashlib
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polyview.data.prepare import fetch, records
from polyview.errors import InputError

ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FILES = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def prepare(directory: Path, manual_dir: Path | None) -> None:
    """Write train (50,000) and test (10,000): image uint8[32, 32, 3], label int.

    Raises:
      InputError: the archive is not in `manual_dir` and cannot be downloaded, or it is
        not the original.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if manual_dir is not None and (manual_dir / ARCHIVE).is_file():
            path = manual_dir / ARCHIVE
        else:
            path = _download(Path(scratch) / ARCHIVE)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != SHA256:
            raise InputError(f"{path.name} is not the original (sha256 {digest})")
        with tarfile.open(path, "r:gz") as archive:
            contents = {
                Path(member.name).name: fetch.tar_member(archive, member)
                for member in archive
                if member.isfile()
            }
    records.write(
        directory,
        {
            split: _examples(b"".join(contents[name] for name in names))
            for split, names in FILES.items()
        },
        version="1.0.0",
        targets={"label": {"kind": "class", "classes": 10, "names": CLASSES}},
        source=f"CIFAR-10 (Krizhevsky 2009), {URL}",
        licence="not stated by its authors",
        provenance={"archive": ARCHIVE, "sha256": SHA256},
    )


def _download(path: Path) -> Path:
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer, path.open("wb") as file:
            while part := answer.read(2**20):
                file.write(part)
    except OSError as error:
        raise InputError(
            f"could not download {URL} ({error}); download it elsewhere and pass its "
            "folder as --manual_dir"
        ) from None
    return path


def _examples(content: bytes) -> Iterator[dict]:
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for image, label in zip(images, rows[:, 0].tolist(), strict=True):
        yield {"image": image, "label": label}
