"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28x28, ten classes.

The four original files come from Debian's package, installed or downloaded (30.9 MB;
needs no root and leaves nothing on the system), else from the authors' address. They
are unpacked and then checked against the sums below, so the compression does not
matter.
"""

import gzip
import hashlib
import shutil
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from polyview.data.prepare import fetch, records
from polyview.errors import InputError

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f8388776"
    "8d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec29"
    "4ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe0"
    "87ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494"
    "c5af83dab82d92729df917d7dec38c34",
}
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def prepare(directory: Path) -> None:
    """Write train (60,000) and test (10,000): image uint8[28, 28, 1], label int.

    Raises:
      InputError: no way to get the files works; the message lists those tried.
    """
    reasons = []
    ways: list[Callable[[Path], Path]] = [_installed, _debian, _zalando]
    with tempfile.TemporaryDirectory() as scratch:
        for way in ways:
            try:
                files = way(Path(scratch))
                arrays = {name: _read(files, name) for name in SHA256}
                break
            except fetch.Failed as reason:
                reasons.append(str(reason))
        else:
            raise InputError(
                f"Fashion-MNIST is not available: {'; '.join(reasons)}. Run `apt-get "
                f"install {PACKAGE}` with a network, or put the four original files "
                f"into {INSTALLED}"
            )
        records.write(
            directory,
            {split: _examples(arrays, prefix) for split, prefix in _SPLITS.items()},
            version="1.0.0",
            targets={"label": {"kind": "class", "classes": 10, "names": CLASSES}},
            source="Fashion-MNIST, Zalando Research (Xiao et al. 2017)",
            licence="MIT",
            provenance={"way": way.__name__.strip("_"), "sha256": SHA256},
        )


_LONGEST = 16 + 60_000 * 28 * 28  # bytes of any of the files
_SPLITS = {"train": "train", "test": "t10k"}


def _examples(arrays: dict[str, bytes], prefix: str) -> Iterator[dict]:
    pixels = np.frombuffer(arrays[f"{prefix}-images-idx3-ubyte"], np.uint8, offset=16)
    labels = np.frombuffer(arrays[f"{prefix}-labels-idx1-ubyte"], np.uint8, offset=8)
    images = pixels.reshape(-1, 28, 28, 1)
    for image, label in zip(images, labels.tolist(), strict=True):
        yield {"image": image, "label": label}


def _read(folder: Path, name: str) -> bytes:
    path = folder / f"{name}.gz"
    try:
        with gzip.open(path) as file:
            content = file.read(_LONGEST + 1)  # a small file can expand to gigabytes
    except (OSError, EOFError, zlib.error) as error:
        raise fetch.Failed(f"{path}: {error}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise fetch.Failed(f"{path} is not the original (sha256 {digest})")
    return content


def _installed(scratch: Path) -> Path:
    if not INSTALLED.is_dir():
        raise fetch.Failed(f"{PACKAGE} is not installed")
    return INSTALLED


def _debian(scratch: Path) -> Path:
    """Download and unpack the package; apt's lists and cache go to `scratch`."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise fetch.Failed("apt-get is not installed")
    fetch.debian([PACKAGE], scratch)
    try:
        package = next(scratch.glob("*.deb"))
        fetch.run(["dpkg-deb", "-x", str(package), str(scratch / "root")], scratch)
    except StopIteration:
        raise fetch.Failed(f"apt-get did not download {PACKAGE}") from None
    return scratch / "root" / INSTALLED.relative_to("/")


def _zalando(scratch: Path) -> Path:
    """Download from the authors' address; the sums make up for its lack of TLS."""
    for name in SHA256:
        try:
            with urllib.request.urlopen(f"{URL}{name}.gz", timeout=60) as answer:
                (scratch / f"{name}.gz").write_bytes(answer.read())
        except OSError as error:
            raise fetch.Failed(f"{URL}: {error}") from None
    return scratch
