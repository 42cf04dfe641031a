"""A folder of images becomes the data set that a person would expect, or is refused
with a remedy."""

import io
import json
import os
import zlib
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import cv2
import numpy as np
import pytest
from PIL import Image

from polyview import prepare
from polyview.data.decode import decode
from polyview.data.prepare.folder import _shares
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.folder import Folder, list_images
from polyview.errors import InputError


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path / "data"))


def encoded(seed, kind="PNG", array=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels if array is None else array).save(buffer, kind)
    return buffer.getvalue()


def files(root, tmp_path, *names):
    """Write an image under each name; `cat/#.png*3` stands for three."""
    for name in names:
        name, _, count = name.partition("*")
        for number in range(int(count or 1)):
            path = tmp_path / root / name.replace("#", str(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(zlib.crc32(f"{name} {number}".encode())))


def run(root, *more, name="mine"):
    arguments = ["folder", "--input", root, "--name", name, *more]
    prepare.main([str(argument) for argument in arguments])
    return splits(name)


def splits(name="mine"):
    manifest = json.loads(Path(f"data/{name}/manifest.json").read_text())
    return {split: entry["count"] for split, entry in manifest["splits"].items()}


def rows(split="train", name="mine"):
    source = ArrayRecord(name, split)
    return [source[i] for i in range(len(source))]


def classes(name="mine"):
    return ArrayRecord(name, "train").targets.get("label", {}).get("names")


@pytest.mark.parametrize(
    ("names", "expected", "labels"),
    [
        # A class may be called as a split.
        (["train/#.png*9", "bus/#.png*9", "car/#.png*2"], (18, 2), "bus car train"),
        (["dev/#.png*9", "prod/#.png*11"], (18, 2), "dev prod"),
        # All endings of the formats, in any case, or none.
        (["a/#.tif*9", "b/#.JFIF*9", "c/#.Pgm*2"], (18, 2), "a b c"),
        (["a/#*9", "b/#.image*11"], (18, 2), "a b"),
        # Splits by their usual names.
        (["Train/x/#.png*3", "Train/y/#.png*3", "TEST/x/1.png"], (6, 1), "x y"),
        (["training/x/#.png*3", "testing/x/1.png"], (3, 1), "x"),
        (["train/x/#.png*3", "train/y/1.png", "valid/y/1.png"], (4, 1), "x y"),
        (["train/x/#.png*3", "validation/x/1.png"], (3, 1), "x"),
        (["train/x/#.png*9", "train/y/#.png*11"], (18, 2), "x y"),
        (["all/train/x/#.png*3", "all/test/x/1.png"], (3, 1), "x"),
        # Folders around all others are no class.
        (["set/images/x/#.png*9", "set/images/y/#.png*11"], (18, 2), "x y"),
        (["set/x/#.png*20"], (18, 2), "x"),
        # Few images of each class.
        (["a/#.png*5", "b/#.png*5"], (9, 1), "a b"),
        ([f"{number}/#.png*4" for number in range(10)], (36, 4), "0 1 2 3 4 5 6 7 8 9"),
        (["#.png*20"], (18, 2), None),
        # What is no class.
        (
            ["a/#.png*9", "b/#.png*11", ".git/#.png*3", "__MACOSX/a/1.png"],
            (18, 2),
            "a b",
        ),
        (["a/#.png*9", "b/#.png*11", "b/._1.png"], (18, 2), "a b"),
        # A split without labels.
        (["train/x/#.png*3", "train/y/1.png", "test/#.png*2"], (4, 2), "x y"),
    ],
)
def test_splits_and_classes_are_what_a_person_expects(
    tmp_path, names, expected, labels
):
    files("in", tmp_path, *names)
    found = run("in")
    assert tuple(found.values()) == expected
    assert classes() == (labels and labels.split())
    held_out = "test" in found and ArrayRecord("mine", "test").targets
    if labels and held_out:
        counts = np.bincount([row["label"] for row in rows()])
        assert counts.min() >= 1  # no class is held out as a whole


def test_classes_may_be_links_and_loops_end(tmp_path, capsys):
    files("real", tmp_path, "c1/#.png*12", "c2/#.png*12")
    files("in", tmp_path, "own/#.png*12")
    os.symlink(tmp_path / "real/c1", tmp_path / "in/c1")
    os.symlink(tmp_path / "real/c2", tmp_path / "in/c2")
    os.symlink(tmp_path / "in", tmp_path / "in/own/loop")
    os.symlink(tmp_path / "nowhere", tmp_path / "in/own/gone.png")
    assert run("in") == {"train": 32, "test": 4}
    assert classes() == ["c1", "c2", "own"]
    assert "1 .png (a broken link)" in capsys.readouterr().out


def test_leaf_none_and_top_choose_the_class(tmp_path):
    files("in", tmp_path, "site1/cat/#.png*5", "site2/cat/#.png*5", "site2/dog/#.png*5")
    run("in", name="top")
    run("in", "--labels", "leaf", name="leaf")
    run("in", "--labels", "none", name="none")
    assert classes("top") == ["site1", "site2"]
    assert classes("leaf") == ["cat", "dog"]
    assert classes("none") is None and "label" not in rows(name="none")[0]
    assert Folder("in", labels="leaf").targets["label"]["names"] == ["cat", "dog"]


def test_loose_images_beside_classes_need_a_rule(tmp_path):
    files("in", tmp_path, "cat/#.png*9", "dog/#.png*9", "#.png*2")
    with pytest.raises(InputError, match=r"2 images beside .*--labels none"):
        run("in")
    assert run("in", "--labels", "none") == {"train": 18, "test": 2}
    assert Folder("in").labels is None  # to embed them, no label is needed
    with pytest.raises(InputError, match="labels='none'"):
        Folder("in", labels="top")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/x/1.png", "valid/x/1.png", "val/x/1.png"], "val and valid are both"),
        (["train/x/1.png", "test/x/1.png", "extra/x/1.png"], "beside extra"),
        (["train/x/1.png", "test/X/1.png"], "class 'X', train has not"),
        (["test/x/1.png", "val/x/1.png"], "no train"),
        (["train/x/1.png", "val/x/1.png", "extra/x/1.png"], "beside extra"),
        (["a/train/1.png", "a/test/1.png", "b/train/1.png"], "splits inside of its cl"),
        (["train/x/1.png", "test/x/1.png", "sample.png"], "beside sample.png"),
        (["x/1.png"], "too few images"),
        (["train/x/1.png", "train/2.png", "test/x/1.png"], "beside the class folders"),
    ],
)
def test_an_ambiguous_folder_is_refused_in_a_line(tmp_path, names, message):
    files("in", tmp_path, *names)
    with pytest.raises(InputError, match=message) as caught:
        run("in")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "mine").exists()


def test_what_is_left_out_is_told_by_ending(tmp_path, capsys):
    files("in", tmp_path, "a/#.png*9", "b/#.png*11")
    names = ("a/x.svg", "b/y.svg", "b/z.heic", "b/w.pfm", "notes.txt", "a/README")
    for name in names:
        (tmp_path / "in" / name).write_text("<svg/>")
    (tmp_path / "in" / "b" / "torn.jpg").write_bytes(encoded(0, "JPEG")[:200])
    run("in")
    out = capsys.readouterr().out
    assert "1 .heic (convert to JPEG)" in out and "1 .txt (no image)" in out
    assert "2 .svg (vector graphics: draw as PNG)" in out
    assert "1 .pfm (convert to PNG or TIFF)" in out
    assert "1 unreadable (the first: b/torn.jpg" in out
    assert list_images(tmp_path / "in").left_out["no ending (no image)"] == 1


def test_the_table_shows_classes_sizes_and_pixels(tmp_path, capsys):
    files("in", tmp_path, *[f"class{i:02}/#.png*4" for i in range(12)])
    run("in", "--test_fraction", "0.25")
    out = capsys.readouterr().out
    assert "12 classes: class00 4, class01 4," in out and "class09 4, ..." in out
    assert "class10" not in out and "4x5 .. 4x5, median 4x5" in out
    pixels = np.stack([decode(row["image"]) for row in rows()]) / 255
    manifest = json.loads(Path("data/mine/manifest.json").read_text())
    found = manifest["statistics"]
    np.testing.assert_allclose(found["mean"], pixels.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(found["std"], pixels.std((0, 1, 2)), atol=1e-4)


def test_copies_stay_on_one_side_of_a_split_of_ours(tmp_path):
    for number in range(40):
        content = encoded(number)
        for copy in range(3):
            path = tmp_path / "in" / "ab"[number % 2] / f"{copy}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    run("in", "--test_fraction", "0.3")
    train, test = ({row["image"] for row in rows(split)} for split in ("train", "test"))
    assert not train & test and len(test) >= 12


def test_copies_across_given_splits_are_counted(tmp_path, capsys):
    files("in", tmp_path, "train/x/#.png*9", "train/y/#.png*9", "test/x/#.png*4")
    source = (tmp_path / "in/train/y/3.png").read_bytes()
    (tmp_path / "in/test/x/copy.png").write_bytes(source)
    run("in")
    assert "test 5; 1 are copies of training images" in capsys.readouterr().out


def test_shares_are_by_largest_remainders():
    assert _shares(Counter({str(i): 4 for i in range(100)}), 0.1).total() == 40
    shares = _shares(Counter(dict.fromkeys("abcde", 10) | {"f": 50}), 0.1)
    assert shares["f"] == 5 and shares.total() == 10
    assert _shares(Counter({"a": 3, "b": 3}), 0.01).total() == 1


TABLE = "path,label,age:regression,tags:multi-label\n"


def test_a_table_gives_targets_of_three_kinds(tmp_path):
    files("in", tmp_path, "deep/#.png*10", "#.jpg*10")
    lines = [
        f"{'deep/' * (n < 10)}{n % 10}{'.png' * (n < 5)},{'ba'[n % 2]},{n / 2},"
        f"{'old|' * (n % 3 == 0)}seen\n"
        for n in range(19)
    ]
    (tmp_path / "t.csv").write_text(TABLE + "".join(lines))
    assert run("in", "--labels", "t.csv") == {"train": 17, "test": 2}
    source = ArrayRecord("mine", "train")
    assert source.targets["age"] == {"kind": "regression"}
    assert source.targets["label"]["names"] == ["a", "b"]
    assert source.targets["tags"]["names"] == ["old", "seen"]
    for row in rows():
        number = round(2 * row["age"])
        assert row["label"] == "ab".index("ba"[number % 2])
        assert row["tags"].tolist() == [int(number % 3 == 0), 1]


def test_a_table_gives_splits_and_rows_without_labels(tmp_path):
    files("in", tmp_path, "#.png*6")
    lines = [f"{n}.png,{'ab'[n % 2] if n < 4 else ''}," for n in range(6)]
    text = "".join(
        f"{line}{'train' if n < 4 else 'Test'}\n" for n, line in enumerate(lines)
    )
    (tmp_path / "t.csv").write_text("file,label,split\n" + text)
    assert run("in", "--labels", "t.csv") == {"train": 4, "test": 2}
    assert ArrayRecord("mine", "test").targets == {}
    labels = {row["file"]: row["label"] for row in rows()}
    assert labels == {"0.png": 0, "1.png": 1, "2.png": 0, "3.png": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begin with a header"),
        ("label,path\na,0.png\n", "begin with a header"),
        ("path|label\n0.png|a\n", "begin with a header .*; or tabs"),
        ("path;age:regression\n0.png;1,5\n", "number such as 1.5"),
        ("path,label\n0.png,a\n9.png,b\n", "line 3: '9.png': there is no such image"),
        ("path,label\n0.png,a\n0.png,b\n", "listed twice"),
        ("path,label\n0.png,a,b\n", "3 cells"),
        ("path,label\n0.png,a\n1.png,\n", "has no label"),
        ("path,age:regression\n0.png,old\n", "not a finite number"),
        ("path,age:regression\n0.png,nan\n", "not a finite number"),
        ("path,age:regresion\n0.png,1\n", "did you mean 'regression'"),
        ("path,label,split\n0.png,a,trian\n", "did you mean 'train'"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, text, message):
    files("in", tmp_path, "#.png*4")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        run("in", "--labels", "t.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_of_any_spreadsheet_is_read_or_says_what_to_do(
    tmp_path, mark, encoding
):
    files("in", tmp_path, "#.png*10")
    names = ["café, noir; fort", "thé\tvert"]
    lines = [f'{n}.png{mark}"{names[n % 2]}"' for n in range(10)]
    text = "\r\n".join([f"path{mark}label", *lines])
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    if not encoding.startswith("utf-8"):
        with pytest.raises(InputError, match="t.csv is not UTF-8; save as UTF-8"):
            run("in", "--labels", "t.csv")
        return
    run("in", "--labels", "t.csv")
    assert classes() == names


@pytest.mark.parametrize(("disk", "table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_one_whatever_composes_their_accents(tmp_path, disk, table):
    """macOS writes an accent as a character of its own."""
    files("in", tmp_path, normalize(disk, "é/ü#.png*10"))
    lines = [f"é/ü{n}{'.png' * (n % 2)},ö" for n in range(10)]
    lines[3] = normalize(disk, lines[3])  # a class is one in both forms too
    text = "\n".join(["path,label", *[normalize(table, line) for line in lines]])
    (tmp_path / "t.csv").write_text(text)
    assert run("in", "--labels", "t.csv") == {"train": 9, "test": 1}
    assert classes() == ["ö"]
    files("in", tmp_path, normalize(table, "é/ü1.png"))
    with pytest.raises(InputError, match=r"e\\u0301.* and '\\xe9.* have this name"):
        run("in", "--labels", "t.csv", "--again")


def test_a_class_folder_is_one_in_all_splits(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        files("in", tmp_path, normalize(form, f"{split}/é/#.png*3"))
    run("in")
    assert classes() == ["é"]


def test_a_used_name_is_kept_unless_again_is_given(tmp_path, capsys):
    files("in", tmp_path, "a/#.png*9", "b/#.png*11")
    files("other", tmp_path, "c/#.png*20")
    run("in")
    run("in")
    assert "is there already" in capsys.readouterr().out
    for more in (["--test_fraction", "0.5"], ["--labels", "none"]):
        with pytest.raises(InputError, match=rf"{more[0][2:]} .* -> .*--again"):
            run("in", *more)
    with pytest.raises(InputError, match=r"in -> \S*other"):
        run("other")
    files("in", tmp_path, "a/new.png")
    with pytest.raises(InputError, match="images 20 -> 21"):
        run("in")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="no image is whole"):
        run("bad", "--again")
    assert classes() == ["a", "b"] and splits() == {"train": 18, "test": 2}
    assert run("other", "--again") == {"train": 18, "test": 2}
    assert classes() == ["c"] and os.listdir("data") == ["mine"]


def test_images_of_more_than_8_bits_are_scaled_by_a_named_range(tmp_path):
    grid = np.linspace(-1000, 3000, 1024, dtype=np.float32).reshape(32, 32)
    for number in range(4):
        path = tmp_path / "in" / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        content = encoded(0, "TIFF", grid + number)
        if number % 2:  # of three equal channels
            colours = np.repeat((grid + number)[..., None], 3, axis=2)
            content = cv2.imencode(".tif", colours)[1].tobytes()
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"-1000 \.\. 3000.*--range"):
        run("in")
    run("in", "--range", "-1000", "3003")
    assert len(rows()) == 3
    for row in rows():
        values = np.unique(decode(row["image"]))
        assert len(values) == 256 and values[0] == 0


def test_an_undecodable_name_is_refused_but_any_utf8_is_read(tmp_path):
    names = ["全角\u3000空白/#.png*9", "a\u200db 視/#.png*11"]
    files("in", tmp_path, *names)
    assert run("in") == {"train": 18, "test": 2}
    (tmp_path / "in" / "x").mkdir()
    with open(os.fsencode(tmp_path / "in" / "x") + b"/\xff.png", "wb") as file:
        file.write(encoded(0))
    with pytest.raises(InputError, match="not UTF-8"):
        run("in", name="other")


def test_replacing_never_deletes_what_is_no_data_set(tmp_path):
    files("data/mine", tmp_path, "a/#.png*9", "b/#.png*11")
    for name in ("mine", "other"):  # the input itself, or a folder around it
        with pytest.raises(InputError, match="lie in one another"):
            run("data/mine" if name == "mine" else "data/mine/a", "--again")
    files("in", tmp_path, "a/#.png*9", "b/#.png*11")
    with pytest.raises(InputError, match="is no data set of this command"):
        run("in", "--again")
    run("in", name="more")
    (tmp_path / "data" / "more" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run("in", "--again", name="more")
    assert len(list((tmp_path / "data" / "mine").rglob("*.png"))) == 20


def test_the_name_of_another_data_set_is_refused(tmp_path):
    prepare.main(["digits"])
    files("in", tmp_path, "a/#.png*20")
    with pytest.raises(InputError, match="another data set .sklearn"):
        run("in", name="digits")


def test_any_part_of_a_split_has_all_classes(tmp_path):
    files("in", tmp_path, *[f"{name}/#.png*40" for name in "abcd"])
    run("in")
    labels = [row["label"] for row in rows()]
    assert set(labels[:40]) == set(labels[-40:]) == {0, 1, 2, 3}


def test_a_class_linked_into_another_keeps_its_own_images(tmp_path, capsys):
    files("in", tmp_path, "a/#.png*10", "b/#.png*10")
    os.symlink(tmp_path / "in/b", tmp_path / "in/a/sub")
    os.symlink("self", tmp_path / "in/a/self")
    assert run("in") == {"train": 18, "test": 2} and classes() == ["a", "b"]
    assert "1 folders linked once more" in capsys.readouterr().out


def test_a_damaged_png_is_left_out_of_every_split(tmp_path):
    files("in", tmp_path, "train/a/#.png*5", "train/b/#.png*5", "test/a/#.png*3")
    for path in ("train/a/2.png", "test/a/1.png"):
        content = bytearray((tmp_path / "in" / path).read_bytes())
        content[content.find(b"IDAT") + 9] ^= 1
        (tmp_path / "in" / path).write_bytes(content)
    assert run("in") == {"train": 9, "test": 2}


def test_other_bytes_of_the_same_size_are_another_input(tmp_path):
    files("in", tmp_path, "a/#.png*20")
    run("in")
    path = tmp_path / "in" / "a" / "3.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="files .* -> "):
        run("in")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_range_holds_for_deep_colours_too(kind):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    colours = np.stack([values, values[::-1], values * 0], -1)
    content = cv2.imencode(f".{kind.lower()}", colours[..., ::-1])[1].tobytes()
    pixels = decode(content, range=(0, 4095))
    np.testing.assert_array_equal(pixels[..., 0], values >> 4)
    np.testing.assert_array_equal(pixels[..., 1], values[::-1] >> 4)
    grey = cv2.imencode(".pgm", values)[1].tobytes()
    np.testing.assert_array_equal(decode(grey, range=(0, 4095))[..., 2], values >> 4)
