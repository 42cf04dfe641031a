"""Emoji packages in the vendors' layouts become records of views and a text; variants
of one concept are never in two splits."""

import colorsys
import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from polyview.data.decode import decode
from polyview.data.prepare import emoji
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError

# Concept -> codepoints of its variants, spelt as in emojibase.
FAMILIES = {
    "healer": ["1F9D1-200D-2695-FE0F", "1F468-200D-2695-FE0F", "1F469-200D-2695-FE0F"],
    "pilot": ["1F9D1-200D-2708-FE0F", "1F468-200D-2708-FE0F"],
    "walker": ["1F6B6", "1F6B6-200D-2640-FE0F-200D-27A1-FE0F", "1F6B6-200D-27A1-FE0F"],
    "head": ["1F9D1", "1F468", "1F469-200D-1F9B0", "1F9D1-200D-1F9B2", "1F471"],
    "household": ["1F46A", "1F468-200D-1F469-200D-1F466", "1F469-200D-1F467"],
    "couple": ["1F491", "1F48F", "1F469-200D-2764-FE0F-200D-1F48B-200D-1F468"],
    "cat": ["1F408", "1F408-200D-2B1B"],
    "heart": ["2764-FE0F", "2764-FE0F-200D-1F525"],
    "crown": ["1F934", "1F478", "1FAC5"],
    "fist": ["1F91B", "1F91C"],
    "clock": ["1F550", "1F55B", "1F567"],
    "arrow": ["2B05-FE0F", "27A1-FE0F"],
    "female": ["2640-FE0F", "2640-FE0F-200D-1F525"],
    "keycap": ["0023-FE0F-20E3", "0023-FE0F-20E3-200D-1F525"],
    **{f"food{i}": [f"1F9{i}", f"1F9{i}-200D-1F525"] for i in range(50, 70)},
}
FAMILY = {c: name for name, members in FAMILIES.items() for c in members}
DRAWN = [*FAMILY, "1F1E6", "1F9B0"]  # the last two are not concepts
SHORT = {c: c.lower().replace("-fe0f", "").removeprefix("00") for c in DRAWN}
COLOUR = {
    c: tuple(round(255 * x) for x in colorsys.hsv_to_rgb(i / len(DRAWN), 1, 0.8))
    for i, c in enumerate(DRAWN)
}
# Each vendor draws a square of its own size, in the colour of the concept.
SIDE = {"noto": 0.5, "twemoji": 0.625, "openmoji": 0.75, "fluent": 0.875}
FLAT, ASIDE, ALIAS = "1F408", "1F491", "1F934"  # special cases of `iconify`


def square(view, codepoint, size, left=0, height=None):
    height = height or size
    inset, part = (1 - SIDE[view]) / 2, SIDE[view]
    return (
        f'<rect x="{left + inset * size}" y="{inset * height}" width="{part * size}" '
        f'height="{part * height}" fill="rgb{COLOUR[codepoint]}"/>'
    )


def iconify(view, codepoints, size):
    """FLAT is half as high as wide, ASIDE is offset, ALIAS is an alias of an alias."""
    icons = {f"n{c}": {"body": square(view, c, size)} for c in codepoints}
    icons[f"n{FLAT}"] = {
        "body": square(view, FLAT, size, height=size // 2),
        "height": size // 2,
    }
    icons[f"n{ASIDE}"] = {"body": square(view, ASIDE, size, left=100), "left": 100}
    names = {SHORT[c]: f"n{c}" for c in codepoints} | {SHORT[ALIAS]: "prince"}
    aliases = {"prince": {"parent": "ruler"}, "ruler": {"parent": f"n{ALIAS}"}}
    # 16 is the default, so it is left out.
    sides = {} if size == 16 else {"width": size, "height": size}
    return {
        "package/icons.json": json.dumps({"icons": icons, "aliases": aliases} | sides),
        "package/chars.json": json.dumps(names),
    }


def openmoji(codepoints):
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    line_art = {f"package/black/svg/{c}.svg": f"{head}</svg>" for c in codepoints}
    return line_art | {
        f"package/color/svg/{c}.svg": f"{head}{square('openmoji', c, 72)}</svg>"
        for c in codepoints
    }


def fluent(codepoints):
    files = {}
    for c in codepoints:
        image = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
        edge = round(256 * (1 - SIDE["fluent"]) / 2)
        image.paste((*COLOUR[c], 255), (edge, edge, 256 - edge, 256 - edge))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True, method=0)
        files[f"package/assets/{c.lower()}.webp"] = buffer.getvalue()
    return files


def emojibase():
    """Label each concept by its family; add a letter and a component."""
    names = list(FAMILIES)
    entries = [
        {
            "hexcode": c,
            "label": name,
            "tags": [name, "drawn"],
            "group": (0, 1, 3)[names.index(name) % 3],
            "subgroup": 2 * names.index(name),
            "skins": [{"hexcode": f"{c}-1F3FB", "label": "pale", "group": 1}],
        }
        for c, name in FAMILY.items()
    ]
    entries += [
        {"hexcode": "1F1E6", "label": "regional indicator A"},
        {"hexcode": "1F9B0", "label": "red hair", "group": 2, "subgroup": 1},
    ]
    groups = dict(enumerate(["smileys", "people", "component", "animals", "flags"]))
    table = {"groups": groups, "subgroups": {i: f"sub{i}" for i in range(100)}}
    return {
        "package/en/data.json": json.dumps(entries),
        "package/meta/groups.json": json.dumps(table),
    }


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """`shelf(fluent={codepoint})` -> the packages; Fluent's lacks the codepoint."""
    folder = tmp_path / "shelf"
    folder.mkdir()

    def make(**lacking):
        def drawn(view):
            return [c for c in DRAWN if c not in lacking.get(view, ())]

        contents = {
            "noto": iconify("noto", drawn("noto"), 16),
            "twemoji": iconify("twemoji", drawn("twemoji"), 36),
            "openmoji": openmoji(drawn("openmoji")),
            "fluent": fluent(drawn("fluent")),
            "names": emojibase(),
        }
        packages = {}
        for part, members in contents.items():
            count = len(FAMILY.keys() & drawn(part)) if part in SIDE else 0
            packages[part] = write(folder, part, members, count)
        monkeypatch.setattr(emoji, "PACKAGES", packages)
        return folder

    return make


def write(folder, part, members, drawings):
    """Write an archive and return its package, with the matching checksum."""
    package = dataclasses.replace(emoji.PACKAGES[part], drawings=drawings)
    with tarfile.open(folder / package.file, "w:gz") as archive:
        # The first name is harmless: nothing is unpacked to disk.
        for name, content in {"../../escaped": b"x", **members}.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.sha256((folder / package.file).read_bytes()).hexdigest()
    return dataclasses.replace(package, sha256=digest)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(emoji.shutil, "which", lambda _: None)


def read(data_dir, splits=("train", "validation", "test")):
    sources = {split: ArrayRecord("emoji", split, data_dir) for split in splits}
    return {
        split: {source[i]["codepoint"]: source[i] for i in range(len(source))}
        for split, source in sources.items()
    }


def by_codepoint(splits):
    found = {c: e for examples in splits.values() for c, e in examples.items()}
    assert len(found) == sum(map(len, splits.values()))  # none is in two splits
    return found


def test_views_are_the_vendors_drawings_on_white(tmp_path, shelf):
    emoji.prepare(tmp_path / "data" / "emoji", shelf())
    found = by_codepoint(read(tmp_path / "data"))
    # No skin tones, no components, no emoji without a group.
    assert set(found) == {SHORT[c] for c in FAMILY}
    for codepoint in FAMILY:
        for view in SIDE:
            image = decode(found[SHORT[codepoint]][view])
            assert image.shape == (64, 64, 3)
            assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
            assert tuple(image[32, 32]) == COLOUR[codepoint]
            ink = (image != 255).any(-1)
            flat = codepoint == FLAT and view in ("noto", "twemoji")
            assert ink[32].mean() == SIDE[view]
            assert ink[:, 32].mean() == SIDE[view] / (2 if flat else 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "shelf"]


def test_a_concept_that_one_vendor_lacks_is_left_out(tmp_path, shelf):
    folder = shelf(fluent={"1F478"}, noto={"1F950"}, openmoji={"1F408-200D-2B1B"})
    emoji.prepare(tmp_path / "emoji", folder)
    lacking = {"1f478", "1f950", "1f408-200d-2b1b"}
    assert set(by_codepoint(read(tmp_path))) == set(SHORT[c] for c in FAMILY) - lacking


def test_every_emoji_family_is_within_one_split(tmp_path, shelf):
    emoji.prepare(tmp_path / "emoji", shelf())
    splits = read(tmp_path)
    for name, members in FAMILIES.items():
        where = {s for s in splits for c in members if SHORT[c] in splits[s]}
        assert len(where) == 1, name
    sizes = {split: len(examples) / len(FAMILY) for split, examples in splits.items()}
    # Approximate, because families are not divided.
    assert sizes == pytest.approx(
        {"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.06
    )


def test_the_family_key_groups_exactly_each_family():
    found = {}
    for codepoint in FAMILY:
        found.setdefault(emoji.family(SHORT[codepoint]), []).append(codepoint)
    assert list(found.values()) == list(FAMILIES.values())


def test_emoji_splits_do_not_depend_on_the_order_of_the_names(
    tmp_path, shelf, monkeypatch
):
    emoji.prepare(tmp_path / "a" / "emoji", shelf())
    entries = json.loads(emojibase()["package/en/data.json"])
    members = emojibase() | {"package/en/data.json": json.dumps(entries[::-1])}
    monkeypatch.setitem(
        emoji.PACKAGES, "names", write(tmp_path / "shelf", "names", members, 0)
    )
    emoji.prepare(tmp_path / "b" / "emoji", tmp_path / "shelf")
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    assert {s: set(a[s]) for s in a} == {s: set(b[s]) for s in b}


def test_vocabulary_is_from_train_and_classes_are_from_all_splits(tmp_path, shelf):
    emoji.prepare(tmp_path / "emoji", shelf())
    manifest = json.loads((tmp_path / "emoji" / "manifest.json").read_text())
    words, splits = manifest["provenance"]["vocabulary"], read(tmp_path)
    groups, subgroups = (manifest["targets"][k] for k in ("group", "subgroup"))
    assert groups["names"] == ["smileys", "people", "animals"]  # 2 and 4 are unused
    assert (groups["classes"], subgroups["classes"]) == (3, len(FAMILIES))
    names = list(FAMILIES)
    for split, examples in splits.items():
        for codepoint, name in FAMILY.items():
            if SHORT[codepoint] not in examples:
                continue
            example = examples[SHORT[codepoint]]
            assert example["name"] == name
            index = names.index(name)
            # Each family is its own subgroup, so most of test's are not in train.
            assert subgroups["names"][example["subgroup"]] == f"sub{2 * index}"
            assert example["group"] == index % 3
            text = example["text"]
            assert text.dtype == np.int32 and text.shape == (24,)
            assert (
                text[:2].tolist() == [words.index(name) + 2 if name in words else 1] * 2
            )
            assert (name in words) == (split == "train")
            assert text[2] == words.index("drawn") + 2 and not text[3:].any()


def test_the_manifest_records_versions_checksums_licences_and_credits(tmp_path, shelf):
    emoji.prepare(tmp_path / "emoji", shelf())
    manifest = json.loads((tmp_path / "emoji" / "manifest.json").read_text())
    for package in emoji.PACKAGES.values():
        entry = manifest["provenance"]["packages"][package.name]
        assert (entry["version"], entry["licence"]) == (
            package.version,
            package.licence,
        )
        content = (tmp_path / "shelf" / package.file).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert package.licence in manifest["licence"]
    for view in ("twemoji", "openmoji"):
        credit = emoji.PACKAGES[view].credit
        assert "BY" in credit and credit in manifest["licence"]
    assert "family" in manifest["provenance"]["split"]


def one_line(message, directory, folder):
    with pytest.raises(InputError, match=message) as caught:
        emoji.prepare(directory, folder)
    assert "\n" not in str(caught.value)
    assert not directory.exists()


def test_a_damaged_emoji_package_is_named(tmp_path, shelf):
    folder = shelf()
    path = folder / emoji.PACKAGES["twemoji"].file
    path.write_bytes(path.read_bytes()[:1000])
    one_line(
        r"twemoji: iconify-json-twemoji-1.2.5.tgz is damaged .*\(1,000 bytes.*remove",
        tmp_path / "emoji",
        folder,
    )


@pytest.mark.parametrize("part", [*SIDE, "names"])
def test_an_emoji_package_without_its_files_is_named(
    tmp_path, shelf, monkeypatch, part
):
    folder = shelf()
    package = write(folder, part, {"package/readme": b"moved"}, len(FAMILY))
    monkeypatch.setitem(emoji.PACKAGES, part, package)
    message = (
        f"{part}: 0 of {len(FAMILY)} drawings" if part in SIDE else "names: .* lacks"
    )
    one_line(message, tmp_path / "emoji", folder)


def test_an_emoji_package_short_of_one_drawing_is_named(tmp_path, shelf, monkeypatch):
    folder = shelf(openmoji={"1F550"})
    whole = dataclasses.replace(emoji.PACKAGES["openmoji"], drawings=len(FAMILY))
    monkeypatch.setitem(emoji.PACKAGES, "openmoji", whole)
    message = f"openmoji: {len(FAMILY) - 1} of {len(FAMILY)} drawings"
    one_line(message, tmp_path / "emoji", folder)


def test_without_npm_the_error_names_the_missing_files(tmp_path, shelf):
    folder = shelf()
    (folder / emoji.PACKAGES["fluent"].file).unlink()
    wanted = r"pass a folder with lobehub-fluent-emoji-3d-1.1.0.tgz as --manual_dir"
    message = f"npm, .* is not installed; install npm .*{wanted}"
    one_line(message, tmp_path / "emoji", folder)


def npm(monkeypatch, folder, code=0, message=""):
    """Fake npm with packages from `folder`; return the list of requested packages."""
    requested = []

    def run(command, cwd, **_):
        assert command[:2] == ["/bin/npm", "pack"]
        for package in emoji.PACKAGES.values():
            if f"{package.name}@{package.version}" in command:
                requested.append(package.name)
                if (folder / package.file).is_file():
                    shutil.copy(folder / package.file, cwd)
        return subprocess.CompletedProcess(command, code, "", message)

    monkeypatch.setattr(emoji.shutil, "which", lambda _: "/bin/npm")
    monkeypatch.setattr(emoji.subprocess, "run", run)
    return requested


def test_npm_downloads_only_missing_packages(tmp_path, shelf, monkeypatch):
    folder = shelf()
    requested = npm(monkeypatch, folder)
    emoji.prepare(tmp_path / "a" / "emoji", None)
    assert requested == [package.name for package in emoji.PACKAGES.values()]
    requested.clear()
    manual = tmp_path / "manual"
    manual.mkdir()
    shutil.copy(folder / emoji.PACKAGES["noto"].file, manual)
    emoji.prepare(tmp_path / "b" / "emoji", manual)
    assert requested == [p.name for part, p in emoji.PACKAGES.items() if part != "noto"]


def test_the_error_of_a_failed_download_quotes_npm(tmp_path, shelf, monkeypatch):
    npm(
        monkeypatch, shelf(), code=1, message="npm error code ETARGET\nnpm error more\n"
    )
    one_line(
        r"cannot download the emoji \(npm error code ETARGET\)", tmp_path / "e", None
    )


def test_a_missing_or_damaged_npm_download_is_an_error(tmp_path, shelf, monkeypatch):
    folder = shelf()
    path = folder / emoji.PACKAGES["openmoji"].file
    path.write_bytes(b"rubbish")
    npm(monkeypatch, folder)
    one_line("openmoji: .*damaged.*run this again", tmp_path / "emoji", None)
    path.unlink()
    one_line(r"\(no openmoji-17.0.0.tgz\)", tmp_path / "emoji", None)
