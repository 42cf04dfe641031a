"""Files of other libraries' writers are read as these libraries mean them.

tables.tar.gz was written by datasets 5.2.0 and webdataset 1.0.2: images of 4 x 5 pixels
with the value 10 i, label i % 2 of the classes cat and dog, and a caption "number i".
`saved` is a DatasetDict of 6 and 3 rows, `shards` its first 6 rows in two files, hub-*
the same 9 rows as parquet, web-* the first 6 as tars of 4 and 2 samples.
"""

import io
import pickle
import shutil
import tarfile
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from polyview.data import pipeline, views
from polyview.data.augment import ResizeCenterCrop
from polyview.data.decode import decode
from polyview.data.sources import table
from polyview.data.sources.protocol import CorruptRecord, identity
from polyview.data.sources.table import Table
from polyview.data.sources.tar import Tar
from polyview.errors import InputError
from polyview.evaluation.frozen import FrozenFeatures

FIXTURE = Path(__file__).parent / "tables.tar.gz"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    shutil.unpack_archive(FIXTURE, folder, filter="data")
    return folder


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), 10 * number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


SOURCES = {
    "saved": (lambda d: Table(d / "saved", "train"), range(6)),
    "saved test": (lambda d: Table(d / "saved", "test"), range(6, 9)),
    "part of saved": (lambda d: Table(d / "saved", "train[1:50%]"), range(1, 3)),
    "shards": (lambda d: Table(d / "shards"), range(6)),
    "parquet": (lambda d: Table(d / "hub-*.parquet"), range(9)),
    "one parquet": (lambda d: Table(d / "hub-00001.parquet"), range(6, 9)),
    "tars": (lambda d: Tar(d / "web-*.tar", names=["cat", "dog"]), range(6)),
    "part of tars": (lambda d: Tar(str(d / "web-*.tar"), "train[4:]"), range(4, 6)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_files_of_other_writers_are_read(written, name):
    make, numbers = SOURCES[name]
    source = make(written)
    assert len(source) == len(numbers)
    names = source.targets["label"]["names"]
    assert names == (["0", "1"] if name == "part of tars" else ["cat", "dog"])
    source = pickle.loads(pickle.dumps(source))  # as a worker process receives it
    for index, number in reversed(list(enumerate(numbers))):
        example = source[index]
        assert (decode(example["image"]) == 10 * number).all()
        assert example["label"] == number % 2
        assert example["caption"] == f"number {number}"
    with pytest.raises(IndexError):
        source[len(numbers)]


def test_a_batch_reads_each_row_group_once_and_keeps_order(written, monkeypatch):
    monkeypatch.setattr(table, "_KEPT", 1)  # only the group read last is kept
    read = []
    original = parquet.ParquetFile.read_row_group

    def counted(self, number, **options):
        read.append(number)
        return original(self, number, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    source = Table(written / "hub-*.parquet")
    captions = [e["caption"] for e in source.__getitems__([8, 0, 3, 8, 1])]
    assert captions == [f"number {n}" for n in (8, 0, 3, 8, 1)]
    assert len(read) == 3 and len(source._rows._kept) == 1


def test_the_pipeline_reads_a_table(written):
    source = Table(written / "saved")
    crop = views.Generated(1, ResizeCenterCrop(4, 1.0))
    batch = next(pipeline.ordered(source, crop, batch_size=6))
    assert batch["views"]["image"][:, 0, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert batch["targets"]["label"].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_csv_holds_paths_names_and_splits(tmp_path):
    (tmp_path / "deep").mkdir()
    for number in range(4):
        (tmp_path / "deep" / f"{number}.png").write_bytes(png(number))
    lines = [
        f"deep/{n}.png,{'dog' if n % 2 else 'cat'},{'ab'[n // 2]}" for n in (0, 1, 2, 3)
    ]
    (tmp_path / "t.csv").write_text("file,kind,split\n" + "\n".join(lines) + "\n")
    source = Table(tmp_path / "t.csv", "b", image="file", label="kind")
    assert [source[i]["label"] for i in range(2)] == [0, 1]
    assert (decode(source[1]["image"]) == 30).all()
    named = {"image": "file", "label": "kind", "names": ["dog", "cat"]}
    assert Table(tmp_path / "t.csv", "a[:1]", **named)[0]["label"] == 1
    with pytest.raises(InputError, match="no split 'train'.*a, b"):
        Table(tmp_path / "t.csv", image="file", label="kind")
    with pytest.raises(InputError, match="has 'cat'"):
        Table(
            tmp_path / "t.csv", "a", image="file", label="kind", names=["cats", "dog"]
        )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_csv_of_any_spreadsheet_is_read_or_says_what_to_do(
    tmp_path, mark, encoding, ending
):
    (tmp_path / "0.png").write_bytes(png(3))
    text = f'image{mark}label{mark}"a, b; c"\n' + f'0.png{mark}"café, noir"{mark}1\n'
    path = tmp_path / f"t.{ending}"
    path.write_bytes(text.encode(encoding))
    if not encoding.startswith("utf-8"):
        with pytest.raises(InputError, match=f"t.{ending} is not UTF-8; save as UTF-8"):
            Table(path)
        return
    source = Table(path)
    assert source.targets["label"]["names"] == ["café, noir"]
    assert source[0]["a, b; c"] == 1 and (decode(source[0]["image"]) == 30).all()
    path.write_text("image,a;b;c\n0.png,1\n")  # the first row decides
    assert Table(path, label=None)[0]["a;b;c"] == 1


def test_bytes_that_are_not_utf8_are_found_after_a_million_others(tmp_path):
    late = "image,label\n" + "0.png,a\n" * 2**18 + "0.png,é\n"
    (tmp_path / "t.csv").write_bytes(late.encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8; save as UTF-8"):
        Table(tmp_path / "t.csv")


@pytest.mark.parametrize(("disk", "table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_paths_are_found_whatever_composes_their_accents(tmp_path, disk, table):
    (tmp_path / normalize(disk, "é")).mkdir()
    (tmp_path / normalize(disk, "é/ü.png")).write_bytes(png(3))
    text = f"image,label\né/ü.png,ö\né/ö.png,{normalize('NFD', 'ö')}\n"
    (tmp_path / "t.csv").write_text(normalize(table, text.partition(",ö")[0]) + ",ö\n")
    source = Table(tmp_path / "t.csv")
    assert (decode(source[0]["image"]) == 30).all()
    (tmp_path / "u.csv").write_text(text)
    source = Table(tmp_path / "u.csv")
    assert source.targets["label"]["classes"] == 1
    with pytest.raises(CorruptRecord, match="No such file"):
        source[1]


def test_a_path_of_two_files_is_refused_with_both(tmp_path):
    forms = "s\u0323\u0307", "\u1e69"
    for form in forms:
        (tmp_path / f"{form}.png").write_bytes(png(1))
    lines = [*forms, "s\u0307\u0323"]
    (tmp_path / "t.csv").write_text(
        "\n".join(["image,label", *[f"{line}.png,a" for line in lines]])
    )
    source = Table(tmp_path / "t.csv")
    source[0], source[1]  # as they are spelt
    with pytest.raises(InputError, match=r"u0307.png' and '\\u1e69.png' are both"):
        source[2]


UNKNOWN = {
    "numbers": ([0, None, 1, -1, 0, 1], None),
    "floats, as pandas writes numbers": ([0.0, None, 1.0, np.nan, 0.0, 1.0], None),
    "names": (["cat", None, "dog", "", "cat", "dog"], None),
    "numbers of names": ([0, -1, 1, -1, 0, 1], ["cat", "dog"]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_row_without_a_class_has_the_label_minus_one(tmp_path, name):
    labels, names = UNKNOWN[name]
    kept = [[png(n) for n in range(6)], labels]
    path = arrow(tmp_path / "t.parquet", image=kept[0], label=labels)
    check_unknown(lambda split, **more: Table(path, split, names=names, **more))


@pytest.mark.parametrize("absent", [None, b"-1\n"])
def test_a_sample_without_a_class_has_the_label_minus_one(tmp_path, absent):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for number in range(6):
            label = absent if number in (1, 3) else b"%d" % (number in (2, 5))
            for kind, content in (("png", png(number)), ("cls", label)):
                member = tarfile.TarInfo(f"{number}.{kind}")
                member.size = len(content or b"")
                if content is not None:
                    tar.addfile(member, io.BytesIO(content))
    check_unknown(lambda split, **more: Tar(tmp_path / "t.tar", split, **more))


def check_unknown(make):
    """Rows 1 and 3 of six have no class; the others have 0, 1, 0, 1."""
    source = pickle.loads(pickle.dumps(make("train")))
    crop = views.Generated(1, ResizeCenterCrop(4, 1.0))
    batch = next(pipeline.ordered(source, crop, batch_size=6))
    assert batch["targets"]["label"].tolist() == [0, -1, 1, -1, 0, 1]
    assert len(source.targets["label"]["names"]) == 2
    with pytest.raises(InputError, match="labelled=True"):  # kNN needs classes
        FrozenFeatures(source, source, crop)
    known = make("train", labelled=True)
    assert [known[i]["label"] for i in range(len(known))] == [0, 1, 0, 1]
    assert identity(known) != identity(source)
    FrozenFeatures(known, make("train[4:]"), crop)  # all rows of this part have one
    without = make("train[3:4]")
    assert without.targets == {} and without[0]["label"] == -1
    with pytest.raises(InputError, match="has a class"):
        make("train[3:4]", labelled=True)


def test_sources_are_named_by_what_was_asked_and_know_their_rows(written):
    first, second = Table(written / "saved"), Table(written / "saved", "test")
    assert repr(first) == f"Table('{written / 'saved'}', 'train')"
    assert identity(first)["digest"] == identity(Table(written / "saved"))["digest"]
    assert identity(first)["digest"] != identity(second)["digest"]
    tars = Tar(written / "web-*.tar"), Tar(written / "web-*.tar", "train[1:]")
    assert identity(tars[0])["digest"] != identity(tars[1])["digest"]


def test_classes_of_other_names_in_test_than_in_train_are_refused(tmp_path):
    for name, classes in (("train", "abc"), ("test", "bc")):
        rows = [f"{i}.png,{c}" for i, c in enumerate(classes)]
        (tmp_path / f"{name}.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    crop = views.Generated(1, ResizeCenterCrop(4, 1.0))
    sources = [Table(tmp_path / f"{name}.csv") for name in ("train", "test")]
    with pytest.raises(InputError, match="other classes in train"):
        FrozenFeatures(*sources, crop)
    same = Table(tmp_path / "test.csv", names=["a", "b", "c"])
    FrozenFeatures(sources[0], same, crop)


def test_a_tar_that_was_cut_is_refused_wherever_it_was(written, tmp_path):
    content = (written / "web-0.tar").read_bytes()
    for length in (1200, 1024 + 100, 700):
        (tmp_path / "cut.tar").write_bytes(content[:length])
        with pytest.raises((InputError, CorruptRecord)):
            Tar(tmp_path / "cut.tar")[0]


def arrow(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_what_is_no_table_is_refused_in_a_line(tmp_path, written):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 no")
    numbers = arrow(tmp_path / "n.parquet", image=[b"1"], label=[0.5])
    negative = arrow(tmp_path / "m.parquet", image=[b"1"], label=[-2])
    (tmp_path / "zip.tar.gz").write_bytes((FIXTURE).read_bytes())
    with tarfile.open(tmp_path / "words.tar", "w") as tar:
        member = tarfile.TarInfo("a.cls")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"cat"))
    (tmp_path / "empty").mkdir()
    for make, message in (
        (lambda: Table(tmp_path / "no.parquet"), "no table"),
        (lambda: Table(bad), "cannot be read as a table"),
        (lambda: Table(tmp_path / "empty"), "prepare folder"),
        (lambda: Table(written / "saved", "valid"), "no split 'valid'"),
        (lambda: Table(numbers), "holds no classes"),
        (lambda: Table(negative), "must be 0 or more, or -1 for no class"),
        (lambda: Table(written / "saved", image="img"), "did you mean 'image'"),
        (lambda: Tar(tmp_path / "no.tar"), "no tar"),
        (lambda: Tar(tmp_path / "zip.tar.gz"), "decompress"),
        (lambda: Tar(tmp_path / "words.tar"), "not the number of a class"),
        (lambda: Tar(written / "web-*.tar", names=["cat"]), "class 1, but 1 names"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
