"""OpenI chest radiograph reports (Demner-Fushman et al. 2016): 3,955 studies.

The XML files of the Indiana University collection are in the package torchxrayvision.
Its wheel is downloaded and read in place, not installed. The licence (CC BY-NC-ND 4.0)
forbids sharing derived data: do not distribute the data set.

Views of a study: tokens, or None if the report lacks the view, and an image.
- indication, findings, impression: sections of the report;
- mesh: the subject headings. They contain the labels: exclude them from inputs;
- descriptors: five quantised visual descriptors of each image, an unordered set; the
  reports contain no other data of the pixels;
- image: the first radiograph of the report, if --manual_dir holds NLMCXR_png.

No patient has two studies, so a split by study is a split by patient.
"""

import io
import logging
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from polyview.data.prepare import fetch, records
from polyview.data.prepare.text import Vocabulary
from polyview.errors import InputError

PACKAGE, VERSION = "torchxrayvision", "1.5.7"
REPORTS = "NLMCXR_reports.tgz"
SHA256 = "8fb6de7eec73d8c3665067ad4bb003ccd57f971ae316d2642e1627ac7268667a"
PIXELS = "NLMCXR_png"
# "normal" and the most frequent heads of the major subject headings, sorted by number
# of studies. The head of "Lung/hypoinflation" is "Lung".
LABELS = (
    "normal",
    "Lung",
    "Opacity",
    "Cardiomegaly",
    "Pulmonary Atelectasis",
    "Calcinosis",
    "Calcified Granuloma",
    "Thoracic Vertebrae",
    "Cicatrix",
    "Spine",
    "Aorta",
    "Markings",
    "Pleural Effusion",
    "Diaphragm",
    "Atherosclerosis",
)
UNLABELLED = "No Indexing"
SECTIONS = {"INDICATION": 24, "FINDINGS": 64, "IMPRESSION": 32}  # words, ours
MESH_WORDS, DESCRIPTORS = 32, 25  # five per image, five images at most
DESCRIPTOR_KINDS = (
    "CEDD",
    "ColorLayout",
    "EdgeHistogram",
    "FCTH",
    "SemanticContext60",
)
VISUAL = "descriptors"
WORDS, VISUAL_WORDS = 2048, 512  # vocabulary sizes, ours
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # ours; none is published

_log = logging.getLogger(__name__)


def prepare(directory: Path, manual_dir: Path | None = None) -> None:
    """Write train, validation and test: 70, 10 and 20 % of the studies.

    `manual_dir` may hold the wheel or the tgz, and the folder NLMCXR_png. Raises
    InputError if an archive is damaged or the folder lacks a radiograph.
    """
    pixels = manual_dir and manual_dir / PIXELS
    pixels = pixels if pixels and pixels.is_dir() else None
    studies: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {"not indexed": [], "without any view": []}
    for study in _studies(manual_dir):
        if UNLABELLED in study["heads"] or not study["heads"]:
            left_out["not indexed"].append(study["study"])
        elif not (pixels and study["images"]) and not any(
            text for kind, text in study["texts"].items() if kind != "mesh"
        ):
            left_out["without any view"].append(study["study"])
        else:
            studies.append(study)
    for why, names in left_out.items():
        if names:
            _log.warning("%d studies left out, %s: %s", len(names), why, _some(names))
    by_name = {study["study"]: study for study in studies}
    splits = records.divide({name: name for name in by_name}, SHARES)
    train = [by_name[name]["texts"] for name in splits["train"]]
    words = Vocabulary.fit(
        (text for texts in train for kind, text in texts.items() if kind != VISUAL),
        WORDS,
    )
    visual = Vocabulary.fit((texts[VISUAL] for texts in train), VISUAL_WORDS)

    def examples(names: list[str]) -> Iterator[dict[str, Any]]:
        return (_example(by_name[name], words, visual, pixels) for name in names)

    records.write(
        directory,
        {split: examples(names) for split, names in splits.items()},
        version="1.0.1",
        targets={
            "labels": {
                "kind": "multi-label",
                "classes": len(LABELS),
                "names": list(LABELS),
            }
        },
        source=f"OpenI, Indiana University, from {PACKAGE} {VERSION}",
        licence="CC BY-NC-ND 4.0",
        provenance={
            "sha256": {REPORTS: SHA256},
            "split": "studies in the order of the sha256 of their name; 70, 10, 20 %",
            "left_out": {why: len(names) for why, names in left_out.items()},
            "images": bool(pixels),
            "vocabulary": words.words,
            "visual_vocabulary": visual.words,
        },
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _studies(manual_dir: Path | None) -> Iterator[dict[str, Any]]:
    archive = tarfile.open(fileobj=io.BytesIO(_archive(manual_dir)))
    for member in archive.getmembers():
        if member.isfile() and member.name.endswith(".xml"):
            yield _study(fetch.tar_member(archive, member), member.name)


def _archive(manual_dir: Path | None) -> bytes:
    if manual_dir is not None and (manual_dir / REPORTS).is_file():
        path = manual_dir / REPORTS
        return fetch.check(path.read_bytes(), SHA256, str(path))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = fetch.wheel(PACKAGE, VERSION, Path(scratch), manual_dir)
            (content,) = fetch.members(path, [f"{PACKAGE}/data/{REPORTS}"])
        except fetch.Failed as failure:
            raise InputError(str(failure)) from None
    return fetch.check(content, SHA256, f"{REPORTS} of {path.name}")


def _study(xml: bytes, name: str) -> dict[str, Any]:
    """Parse a report. Raises InputError if it is malformed or has no id."""
    try:
        root = ElementTree.fromstring(xml)
        identity = root.find("uId").attrib["id"]  # type: ignore[union-attr]  # caught
    except (ElementTree.ParseError, AttributeError, KeyError) as error:
        raise InputError(f"report {name} cannot be read: {error}") from None
    sections = {
        section.get("Label"): section.text or ""
        for section in root.iter("AbstractText")
    }
    headings = [major.text or "" for major in root.iter("major")]
    texts = {label.lower(): sections.get(label, "") for label in SECTIONS}
    images = list(root.iter("parentImage"))
    texts["mesh"] = " ".join(headings)
    texts[VISUAL] = " ".join(
        f"{kind}{value.text}"
        for image in images
        for kind in DESCRIPTOR_KINDS
        for value in image.iter(kind)
    )
    return {
        "study": identity,
        "texts": texts,
        "heads": {heading.partition("/")[0].strip() for heading in headings} - {""},
        "images": [image.get("id") for image in images],
    }


def _example(
    study: Mapping[str, Any], words: Vocabulary, visual: Vocabulary, pixels: Path | None
) -> dict[str, Any]:
    texts = study["texts"]
    example: dict[str, Any] = {
        label.lower(): words.encode(texts[label.lower()], length)
        for label, length in SECTIONS.items()
    }
    example["mesh"] = words.encode(texts["mesh"], MESH_WORDS)
    example[VISUAL] = visual.encode(texts[VISUAL], DESCRIPTORS)
    if pixels is not None:
        example["image"] = _image(pixels, study)
    example["labels"] = _labels(study["heads"])
    return example | {"study": study["study"]}


def _labels(heads: set[str]) -> np.ndarray:
    return np.array([label in heads for label in LABELS], np.uint8)


def _image(pixels: Path, study: Mapping[str, Any]) -> bytes | None:
    """Read the first radiograph of a study, as stored; None if it has no image."""
    if not study["images"]:
        return None
    path = pixels / f"{study['images'][0]}.png"
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"study {study['study']}: {path} cannot be read ({error.strerror}); "
            f"complete {PIXELS}, or remove it to prepare without images"
        ) from None
