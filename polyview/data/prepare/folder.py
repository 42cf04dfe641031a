"""Any folder of images: class folders, splits, loose files, or a table of labels.

Without given splits, a part of each class is held out for test: the files are sorted by
the SHA-256 of their bytes. This rule needs no seed, copies of a file stay on one side,
and most files keep their split when others are added.
"""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from polyview.data.decode import decode, read_header
from polyview.data.prepare import records
from polyview.data.prepare.labels import Labelled, from_folders, from_table
from polyview.data.sources.folder import (
    LABELS,
    list_images,
    listed,
    read_image,
)
from polyview.data.sources.folder import told as told_left_out
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError, nearest

_SAMPLE = 1000  # training images whose mean and deviation are measured
_SHOWN = 10  # classes in the table


@dataclass(frozen=True)
class Rules:
    """How a folder is read.

    Attributes:
      labels: "top", "leaf", "none" (see `polyview.data.sources.folder`) or a CSV file.
      test_fraction: share of each class held out if no test split is given.
      range: the values that become black and white, for images of more than 8 bits;
        None: 0 .. 1 for floats, 0 .. 65535 for integers.
    """

    labels: str | None = None
    test_fraction: float = 0.1
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise InputError(
                f"--test_fraction {self.test_fraction} must lie between 0 and 1"
            )
        if self.range and not -math.inf < self.range[0] < self.range[1] < math.inf:
            low, high = self.range
            raise InputError(f"--range {low:g} {high:g}: give two numbers that ascend")
        if self.labels not in (None, *LABELS) and not Path(self.labels).is_file():
            raise InputError(
                f"--labels {self.labels} is neither a CSV file nor one of "
                f"{', '.join(LABELS)}{nearest(self.labels, LABELS)}"
            )


def prepare(
    directory: Path, images: Path, rules: Rules, made: Mapping[str, Any]
) -> None:
    """Write image (the file's bytes), file and, if there are labels, the targets.

    Unreadable images are left out and counted. An image of more than 8 bits becomes a
    PNG of 8 bits if `rules.range` is given.

    Args:
      directory: the data set's folder, which must not exist.
      images: the folder of images.
      rules: how to read it.
      made: what `made_from` returns for them.
    """
    files, left_out = list_images(images)
    if not files:
        raise InputError(f"no image in {images}{told_left_out(left_out)}")
    if rules.labels in (None, *LABELS):
        labelled = from_folders(files, rules.labels, images)
    else:
        labelled = from_table(Path(str(rules.labels)), files)
        listed = sum(map(len, labelled.splits.values()))
        if listed < len(files):
            left_out["images not in the table"] = len(files) - listed
    seen, unreadable = _look(images, labelled, rules.range)
    if not seen:
        first = ": ".join(next(iter(unreadable.items())))
        raise InputError(f"{images}: no image is whole (the first: {first})")
    splits, rule = _divided(labelled, seen, rules.test_fraction, images)
    statistics = _statistics(splits, labelled, seen)
    moments = _Moments(len(splits["train"]), statistics)
    records.write(
        directory,
        {
            name: _examples(
                images,
                own,
                labelled.values,
                rules.range,
                moments if name == "train" else None,
            )
            for name, own in splits.items()
        },
        version="1.0.0",
        targets=labelled.targets,
        unlabelled=[n for n, own in splits.items() if own[0] not in labelled.values],
        source=f"the folder {images.name}",
        licence="not stated",
        provenance={
            "made from": made,
            "split": rule,
            "labels": labelled.rule,
            "left out": left_out,
            "unreadable": [f"{file}: {why}" for file, why in unreadable.items()],
        },
        statistics=statistics,  # complete once the examples are written
    )


def made_from(images: Path, rules: Rules) -> dict[str, Any]:
    """Return what a data set is made from: another input or rule is another data set.

    The files count by their names and bytes.
    """
    if not images.is_dir():
        raise InputError(f"--input {images} is not a folder of images")
    files = list_images(images).files
    made: dict[str, Any] = {"input": str(images.resolve()), "images": len(files)}
    made |= {"files": _content(images, files)} | asdict(rules)
    if rules.labels and rules.labels not in LABELS:
        table = Path(rules.labels)
        made["labels"] = str(table.resolve())
        made["table"] = hashlib.sha256(table.read_bytes()).hexdigest()[:16]
    if rules.range:
        made["range"] = list(rules.range)
    return made


def _content(images: Path, files: Sequence[str]) -> str:
    """Return a digest of the names and bytes of files."""
    whole = hashlib.sha256()
    for file in files:
        with (images / file).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        whole.update(f"{file}\0{digest}\n".encode())
    return whole.hexdigest()[:16]


class _Seen(NamedTuple):
    """What one look at a file says."""

    digest: str
    height: int
    width: int


def _look(
    images: Path, labelled: Labelled, scale: tuple[float, float] | None
) -> tuple[dict[str, _Seen], dict[str, str]]:
    """Return what is known of each file that is an image, and why others are none."""
    seen: dict[str, _Seen] = {}
    unreadable: dict[str, str] = {}
    for file in sorted(file for own in labelled.splits.values() for file in own):
        try:
            content = read_image(images / file)
            header = read_header(content)
            # A whole JPEG decodes; in other formats a flipped bit shows only then.
            if header.kind != "jpeg" or not (header.plain and header.whole):
                decode(content, range=scale)
        except CorruptRecord as error:
            unreadable[file] = str(error)
            continue
        digest = hashlib.sha256(content).hexdigest()
        seen[file] = _Seen(digest, header.height, header.width)
    return seen, unreadable


def _divided(
    labelled: Labelled, seen: Mapping[str, _Seen], fraction: float, images: Path
) -> tuple[dict[str, list[str]], str]:
    """Return {split: readable files}, train first, and the rule in words."""
    # In the order of their bytes, so that any part of a split has all classes.
    given = {
        split: sorted(seen.keys() & files, key=lambda file: (seen[file].digest, file))
        for split, files in labelled.splits.items()
    }
    for split, files in given.items():
        if not files:
            raise InputError(
                f"{images}: no image{f' of {split}' * bool(split)} is whole"
            )
    if "" in given or list(given) == ["train"]:
        (own,) = given.values()
        test = _held_out(own, labelled.values, seen, fraction)
        if not test:
            raise InputError(
                f"{images} has too few images to hold out a test split ({len(own)}); "
                "add some, or give splits of your own (folders train and test)"
            )
        rest = [file for file in own if file not in test]
        rule = f"{fraction:g} of each class for test, first by sha256 of the bytes"
        return {"train": rest, "test": [file for file in own if file in test]}, rule
    return given, "given"


def _held_out(
    files: Sequence[str],
    values: Mapping[str, dict[str, Any]],
    seen: Mapping[str, _Seen],
    fraction: float,
) -> set[str]:
    """Choose the files for test; copies stay together and each class keeps one."""
    classes = {file: values.get(file, {}).get("label", 0) for file in files}
    remaining = Counter(classes.values())
    wanted = _shares(remaining, fraction)
    families: dict[str, list[str]] = {}
    for file in files:
        families.setdefault(seen[file].digest, []).append(file)
    test: set[str] = set()
    for digest in sorted(families):
        family = families[digest]
        own = Counter(classes[file] for file in family)
        if wanted[classes[family[0]]] > 0 and all(
            remaining[c] > n for c, n in own.items()
        ):
            test.update(family)
            remaining -= own
            wanted.subtract(own)
    return test


def _shares(counts: Counter, fraction: float) -> Counter:
    """Divide the test images among classes, by the largest remainders."""
    total = max(1, round(fraction * counts.total()))
    exact = {name: total * count / counts.total() for name, count in counts.items()}
    shares = Counter({name: int(share) for name, share in exact.items()})

    def order(name: Any) -> tuple[float, bytes]:
        tie = hashlib.sha256(str(name).encode()).digest()
        return int(exact[name]) - exact[name], tie

    for name in sorted(counts, key=order)[: total - shares.total()]:
        shares[name] += 1
    return shares


class _Moments:
    """Mean and deviation of pixels, from 0 to 1, over a sample of a split.

    Each image counts the same, whatever its size.
    """

    def __init__(self, images: int, found: dict[str, Any]):
        """images: of the split. found: gets "mean" and "std", of three channels."""
        self._every = -(-images // _SAMPLE)
        self._number, self._sums = 0, np.zeros((2, 3))
        self._found = found

    def add(self, image: bytes) -> None:
        """Count a training image in, if it is one of the sample."""
        if self._number % self._every == 0:
            pixels = decode(image).reshape(-1, 3) / 255
            self._sums += pixels.mean(0), np.square(pixels).mean(0)
            taken = self._number // self._every + 1
            mean, square = self._sums / taken
            std = np.sqrt(np.maximum(square - mean**2, 0))
            self._found["mean"] = mean.round(4).tolist()
            self._found["std"] = std.round(4).tolist()
        self._number += 1


def _examples(
    images: Path,
    files: Sequence[str],
    values: Mapping[str, dict[str, Any]],
    scale: tuple[float, float] | None,
    moments: _Moments | None,
) -> Iterator[dict]:
    for file in files:
        content = read_image(images / file)
        if scale and read_header(content).deep:
            content = _as_png(decode(content, range=scale))
        if moments is not None:
            moments.add(content)
        yield {"image": content, "file": file} | values.get(file, {})


def _as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _statistics(
    splits: Mapping[str, Sequence[str]], labelled: Labelled, seen: Mapping[str, _Seen]
) -> dict[str, Any]:
    """Return the counts of classes, the sizes and the copies across splits."""
    train = {seen[file].digest for file in splits["train"]}
    used = [seen[file] for own in splits.values() for file in own]
    copies = {
        name: sum(seen[file].digest in train for file in own)
        for name, own in splits.items()
        if name != "train"
    }
    counts = {
        name: Counter(
            labelled.values[file][name]
            for own in splits.values()
            for file in own
            if file in labelled.values
        )
        for name, task in labelled.targets.items()
        if task["kind"] == "class"
    }
    return {
        "classes": {
            name: [count[number] for number in range(labelled.targets[name]["classes"])]
            for name, count in counts.items()
        },
        "copies of training images": copies,
        "height": _spread(one.height for one in used),
        "width": _spread(one.width for one in used),
    }


def _spread(lengths: Iterable[int]) -> list[int]:
    """Return the least, the median and the largest."""
    ordered = sorted(lengths)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]


def table(manifest: Mapping[str, Any]) -> str:
    """Return what was read and what was left out, for the reader of a terminal."""
    made, found = manifest["provenance"], manifest["statistics"]
    without = manifest["unlabelled"]
    lines = [("splits", made["split"])]
    for name, split in manifest["splits"].items():
        note = ", no labels" if name in without and manifest["targets"] else ""
        if copies := found["copies of training images"].get(name):
            note += f"; {copies} are copies of training images"
        lines.append(("", f"{name} {split['count']:,}{note}"))
    lines.append(("labels", made["labels"] if manifest["targets"] else "none"))
    for name, task in manifest["targets"].items():
        lines.append(("", f"{name}: {_task(task, found['classes'].get(name))}"))
    (low, _, high), (narrow, _, wide) = found["height"], found["width"]
    middle = f"{found['width'][1]}x{found['height'][1]}"
    lines.append(("sizes", f"{narrow}x{low} .. {wide}x{high}, median {middle}"))
    mean, std = (", ".join(f"{x:.3f}" for x in found[k]) for k in ("mean", "std"))
    lines.append(("pixels", f"mean {mean}; deviation {std}"))
    left_out = listed(made["left out"])
    if unreadable := made["unreadable"]:
        left_out.append(f"{len(unreadable)} unreadable (the first: {unreadable[0]})")
    lines.append(("left out", "; ".join(left_out) or "nothing"))
    return "\n".join(f"  {name:9} {text}" for name, text in lines)


def _task(task: Mapping[str, Any], counts: Sequence[int] | None) -> str:
    if task["kind"] == "regression":
        return "a number"
    names = task["names"]
    shown = [
        name if counts is None else f"{name} {counts[number]:,}"
        for number, name in enumerate(names[:_SHOWN])
    ]
    more = ", ..." if len(names) > _SHOWN else ""
    several = " of which several apply" if task["kind"] == "multi-label" else ""
    if len(names) == 1:
        return f"one class, {shown[0]}: nothing to tell apart"
    return f"{len(names)} classes{several}: {', '.join(shown)}{more}"
