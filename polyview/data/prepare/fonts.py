"""Han characters drawn with the fonts of Debian packages.

A font is read from its package, or from a font file, in the user's folder; what is not
there is downloaded by apt-get without root. Nothing is installed. Not every font has a
drawing of each character it lists, so drawings are judged by their pixels alone.
"""

import hashlib
import io
import itertools
import logging
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont
from tqdm import tqdm

from polyview.data.prepare import fetch
from polyview.errors import InputError

SIZE = 64  # pixels a side of a drawing, which is the em
_NOWHERE = "\U0010ffff"  # never a character: fonts draw their box for missing ones
_SAMPLE = 256  # characters whose ink tells where a font's em lies

_DAMAGED = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Font:
    """A font file of a Debian package.

    Attributes:
      package: the package's name.
      file: the file's name, without folders. Of a collection the first face is used.
      sha256: its first digits, of the file that our results are from.
      licence: of the font.
    """

    package: str
    file: str
    sha256: str
    licence: str


_ARPHIC, _IPA = "Arphic Public License", "IPA Font License 1.0"
FONTS = {
    "ukai": Font("fonts-arphic-ukai", "ukai.ttc", "cfc758e69386", _ARPHIC),
    "uming": Font("fonts-arphic-uming", "uming.ttc", "fe952e556172", _ARPHIC),
    "zenhei": Font(
        "fonts-wqy-zenhei",
        "wqy-zenhei.ttc",
        "79c18ebe7b81",
        "GPL-2 with font embedding exception, M+ FONTS License",
    ),
    "microhei": Font(
        "fonts-wqy-microhei",
        "wqy-microhei.ttc",
        "2420e8078af7",
        "Apache-2.0 or GPL-3+ with font exception",
    ),
    "ipagothic": Font("fonts-ipafont-gothic", "ipag.ttf", "503af4a8b84d", _IPA),
    "ipamincho": Font("fonts-ipafont-mincho", "ipam.ttf", "ab923870b9ea", _IPA),
    "vlgothic": Font(
        "fonts-vlgothic",
        "VL-Gothic-Regular.ttf",
        "cccbbd1a2285",
        "M+ FONTS License, Sazanami Font License, BSD-3-Clause",
    ),
    "babelstone": Font(
        "fonts-babelstone-han",
        "BabelStoneHan.ttf",
        "a2027ca36069",
        "Arphic Public License; symbols CC-BY-SA-3.0 or CC-BY-SA-4.0",
    ),
    "hanazono": Font(
        "fonts-hanazono",
        "HanaMinA.ttf",
        "7ca875594144",
        "Hanazono Font License or OFL-1.1",
    ),
    "maruberi": Font(
        "fonts-motoya-l-maruberi", "MTLmr3m.ttf", "91b9a5c85d29", "Apache-2.0"
    ),
    "kiloji": Font("fonts-kiloji", "kiloji.ttf", "f75142c667d7", "BSD-3-Clause"),
    "seto": Font("fonts-seto", "setofont.ttf", "af5446835747", "OFL-1.1"),
}


def find(
    names: Sequence[str], manual_dir: Path | None
) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
    """Return the files of fonts by name, and for each where it comes from.

    Raises:
      InputError: a font is not in `manual_dir` and cannot be downloaded, or a package
        is damaged or lacks it.
    """
    files: dict[str, bytes] = {}
    origins: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            paths = _paths(names, manual_dir, Path(scratch))
            for name, path in paths.items():
                files[name] = _read(path, FONTS[name].file, Path(scratch) / name)
        except fetch.Failed as failure:
            raise InputError(str(failure)) from None
    for name, path in paths.items():
        font, digest = FONTS[name], hashlib.sha256(files[name]).hexdigest()
        if not digest.startswith(font.sha256):
            _log.warning(
                "%s of %s is not the file that our results are from (sha256 %s...)",
                *(font.file, path.name, digest[:12]),
            )
        origins[name] = {
            "package": font.package,
            "found in": path.name,  # the name of a package has its version
            "sha256": digest,
            "licence": font.licence,
        }
    return files, origins


def draw(
    files: Mapping[str, bytes], characters: Sequence[str]
) -> tuple[dict[str, dict[str, bytes]], dict[str, Any]]:
    """Draw characters with every font; keep those that each font really draws.

    Left out are characters of which a font's drawing is empty, its box for missing
    characters, or its drawing of another one of them, and those that two fonts draw
    with the same pixels.

    Args:
      files: a font file by the name of the font.
      characters: of one code point.

    Returns:
      `{character: {font: PNG of SIZE x SIZE, grey, ink 255}}` in the order given, and
      why the others were left out: characters a font, in the order of the fonts, of
      those that the fonts before it draw; and those with the same pixels.

    Raises:
      InputError: a file is no font, no character is left, or two fonts draw all
        characters with the same pixels.
    """
    left, lacking = list(characters), {}
    drawings: dict[str, dict[str, bytes]] = {}
    for name, file in tqdm(files.items(), desc="fonts", unit=" fonts", delay=3):
        drawn = _draw(name, file, left)
        lacking[name] = len(left) - len(drawn)
        if left and not drawn:
            raise InputError(
                f"font {name}: {FONTS[name].file} draws none of {len(left):,} Han "
                f"characters; get its package {FONTS[name].package} again"
            )
        left, drawings[name] = list(drawn), drawn
    equal: set[str] = set()
    for first, second in itertools.combinations(drawings, 2):
        same = {c for c in left if drawings[first][c] == drawings[second][c]}
        if same and len(same) == len(left):
            raise InputError(
                f"the fonts {first} and {second} draw all {len(left):,} characters "
                "with the same pixels; one is a copy of the other: get both again"
            )
        equal |= same
    kept = {
        character: {name: drawn[character] for name, drawn in drawings.items()}
        for character in left
        if character not in equal
    }
    return kept, {"not drawn by": lacking, "equal in two fonts": sorted(equal)}


def ink_box(pixels: np.ndarray) -> np.ndarray:
    """Return int64[4]: the left, top, right and bottom edge of a drawing's ink."""
    rows, columns = (np.flatnonzero(pixels.max(axis) >= 64) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _draw(name: str, file: bytes, characters: Sequence[str]) -> dict[str, bytes]:
    """Return the PNG of each character that a font draws, and draws like no other."""
    try:
        # Not by Raqm, which not every Pillow has.
        basic = ImageFont.Layout.BASIC
        font = ImageFont.truetype(io.BytesIO(file), SIZE, layout_engine=basic)
        origin = _origin(font, characters[:: max(1, len(characters) // _SAMPLE)])
        missing = _pixels(font, _NOWHERE, origin, SIZE)
        users: dict[bytes, list[str]] = {}
        for character in characters:
            drawing = _pixels(font, character, origin, SIZE)
            if drawing.max() >= 64 and not np.array_equal(drawing, missing):
                png = cv2.imencode(".png", drawing)[1].tobytes()
                users.setdefault(png, []).append(character)
    except (OSError, ValueError) as error:  # FreeType's are OSErrors
        raise InputError(
            f"font {name}: {FONTS[name].file} cannot be drawn with ({error}); get its "
            f"package {FONTS[name].package} again"
        ) from None
    alone = {of[0]: png for png, of in users.items() if len(of) == 1}
    return {c: alone[c] for c in characters if c in alone}


def _origin(font: FreeTypeFont, sample: Sequence[str]) -> tuple[int, int]:
    """Return where the baseline starts if usual ink has its middle in a drawing's.

    What fonts say of the em's place relative to the baseline is not what they draw.
    """
    start = (SIZE // 2, SIZE + SIZE // 2)
    wide = [_pixels(font, character, start, 2 * SIZE) for character in sample]
    missing = _pixels(font, _NOWHERE, start, 2 * SIZE)
    boxes = [
        ink_box(drawing)
        for drawing in wide
        if drawing.max() >= 64 and not np.array_equal(drawing, missing)
    ]
    if not boxes:
        return start
    left, top, right, bottom = np.median(boxes, axis=0)
    x, y = start[0] - (left + right) / 2, start[1] - (top + bottom) / 2
    return round(x + SIZE / 2), round(y + SIZE / 2)


def _pixels(
    font: FreeTypeFont, character: str, origin: tuple[int, int], side: int
) -> np.ndarray:
    """Draw a character on uint8[side, side]."""
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text(origin, character, 255, font, anchor="ls")
    return np.asarray(image)


def _paths(
    names: Sequence[str], manual_dir: Path | None, scratch: Path
) -> dict[str, Path]:
    """Return the font file or package of each font. Raises fetch.Failed."""

    def places(name: str, folder: Path) -> Iterator[Path]:
        # A package's name tells its version, so it goes first, the newest first.
        yield from sorted(folder.rglob(f"{FONTS[name].package}_*.deb"), reverse=True)
        yield from sorted(folder.rglob(FONTS[name].file))

    found = {
        name: path
        for name in names
        if manual_dir is not None
        for path in itertools.islice(places(name, manual_dir), 1)
    }
    if absent := [name for name in names if name not in found]:
        packages = [FONTS[name].package for name in absent]
        try:
            fetch.debian(packages, scratch)
            found |= {name: next(places(name, scratch)) for name in absent}
        except (fetch.Failed, StopIteration) as failure:
            why = str(failure) or "apt-get did not download every package"
            raise fetch.Failed(
                f"the fonts {', '.join(absent)} are not available: {why}. Run `apt-get "
                f"download {' '.join(packages)}` in a folder with a network, and pass "
                "the folder as --manual_dir"
            ) from None
    return {name: found[name] for name in names}


def _read(path: Path, file: str, scratch: Path) -> bytes:
    """Return a font file, or that of a package. Raises fetch.Failed."""
    if path.suffix != ".deb":
        return path.read_bytes()
    for name, content in _ar_members(path):
        if not name.startswith("data.tar"):
            continue
        if name.endswith(".zst"):  # tarfile reads it from Python 3.14 on
            fetch.run(["dpkg-deb", "-x", str(path), str(scratch)], path.parent)
            for unpacked in scratch.rglob(file):
                return unpacked.read_bytes()
            break
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                size = 0
                for member in tar:
                    size += member.size
                    if size > fetch.MAX_MEMBERS:
                        raise fetch.Failed(
                            f"{path} would expand to more than {fetch.MAX_MEMBERS:,} "
                            "bytes; download it again"
                        )
                    if member.isfile() and Path(member.name).name == file:
                        return fetch.tar_member(tar, member)
        except _DAMAGED as error:
            raise fetch.Failed(
                f"{path} is damaged ({error}); download it again"
            ) from None
    raise fetch.Failed(f"{path} has no {file}; download the package again")


def _ar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of an `ar` archive, as a Debian package is one."""
    content, position = path.read_bytes(), 8
    if content[:8] != b"!<arch>\n":
        raise fetch.Failed(f"{path} is no Debian package; download it again")
    while position + 60 <= len(content):
        header = content[position : position + 60]
        name, size = header[:16].decode("ascii", "replace"), header[48:58]
        if not size.strip().isdigit():
            raise fetch.Failed(f"{path} is damaged (a size); download it again")
        end = position + 60 + int(size)
        yield name.strip().rstrip("/"), content[position + 60 : end]
        position = end + end % 2  # members begin at even places
