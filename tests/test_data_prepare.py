"""Prepared data sets read back correctly and are written whole or not at all; bad input
is a one-line error."""

import gzip
import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import hashing

from polyview import prepare
from polyview.data.decode import decode
from polyview.data.prepare import cifar10, fashion_mnist, imagenet2012, records
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.protocol import CorruptRecord
from polyview.data.sources.tfds import Tfds
from polyview.errors import InputError


@pytest.fixture(autouse=True)
def no_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def run(*arguments):
    prepare.main([str(argument) for argument in arguments])


def jpeg(size=(8, 6), mode="RGB", kind="JPEG", colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def labels(source):
    return [int(source[i]["label"]) for i in range(len(source))]


def test_digits_are_stratified_and_prepared_only_once(tmp_path, capsys):
    run("digits", "--data_dir", tmp_path)
    train, test = (
        ArrayRecord("digits", split, tmp_path) for split in ("train", "test")
    )
    assert (len(train), len(test)) == (1437, 360)
    assert train.targets["label"]["classes"] == 10
    shares = np.bincount(labels(test)) / np.bincount(labels(train) + labels(test))
    assert abs(shares - 0.2).max() < 0.005
    image = train[0]["image"]
    assert image.shape == (8, 8, 1) and image.dtype == np.uint8 and image.max() == 255
    distinct = {
        source[i]["image"].tobytes()
        for source in (train, test)
        for i in range(len(source))
    }
    assert len(distinct) > 1790  # no image is in both

    before = (tmp_path / "digits" / "train-00000.array_record").stat().st_mtime_ns
    run("digits", "--data_dir", tmp_path)
    assert "is there already: train 1,437, test 360" in capsys.readouterr().out
    after = (tmp_path / "digits" / "train-00000.array_record").stat().st_mtime_ns
    assert before == after


def test_the_manifest_records_checksums_and_provenance(tmp_path):
    run("digits", "--data_dir", tmp_path)
    manifest = json.loads((tmp_path / "digits" / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for file in split["files"]:
            content = (tmp_path / "digits" / file["name"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert manifest["licence"] and manifest["source"] and manifest["version"]


def test_interrupted_writing_leaves_no_files(tmp_path):
    def examples():
        yield {"label": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write(
            tmp_path / "set",
            {"train": examples()},
            version="1",
            targets={},
            source="",
            licence="",
        )
    assert list(tmp_path.iterdir()) == []


def test_preparing_again_detects_damaged_and_foreign_folders(tmp_path):
    run("digits", "--data_dir", tmp_path)
    path = tmp_path / "digits" / "test-00000.array_record"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="360; remove"):
        run("digits", "--data_dir", tmp_path)
    (tmp_path / "fashion_mnist").mkdir()
    with pytest.raises(InputError, match="not written by this command"):
        run("fashion_mnist", "--data_dir", tmp_path)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


@pytest.fixture
def tiny_fashion(tmp_path, monkeypatch):
    """The four files with 5 + 3 images; their checksums replace the real ones."""
    folder = tmp_path / "fashion"
    folder.mkdir()
    sums = {}
    for prefix, count in (("train", 5), ("t10k", 3)):
        images = np.arange(count * 784).reshape(count, 28, 28).astype(np.uint8)
        for kind, array in (
            ("images-idx3", images),
            ("labels-idx1", np.arange(count, dtype=np.uint8)),
        ):
            name = f"{prefix}-{kind}-ubyte"
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            sums[name] = hashlib.sha256(idx(array)).hexdigest()
    monkeypatch.setattr(fashion_mnist, "SHA256", sums)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", folder)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Make apt and the authors' server unavailable."""

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(fashion_mnist.shutil, "which", lambda _: None)
    monkeypatch.setattr(fashion_mnist.urllib.request, "urlopen", refuse)


def test_fashion_mnist_is_read_from_the_installed_package(tmp_path, tiny_fashion):
    run("fashion_mnist", "--data_dir", tmp_path)
    train = ArrayRecord("fashion_mnist", "train", tmp_path)
    assert labels(train) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(
        train[2]["image"][..., 0],
        np.arange(2 * 784, 3 * 784).reshape(28, 28).astype(np.uint8),
    )
    assert labels(ArrayRecord("fashion_mnist", "test", tmp_path)) == [0, 1, 2]


def test_fashion_mnist_with_a_wrong_checksum_is_refused(
    tmp_path, tiny_fashion, no_network
):
    path = tiny_fashion / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.array([0, 1, 9], np.uint8))))
    with pytest.raises(InputError, match="not the original.*apt-get install"):
        run("fashion_mnist", "--data_dir", tmp_path)
    assert not (tmp_path / "fashion_mnist").exists()


def test_cifar10_is_read_from_its_original_archive(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 10, (12, 3073), np.uint8)
    with tarfile.open(tmp_path / cifar10.ARCHIVE, "w:gz") as archive:
        for number, name in enumerate([*cifar10.FILES["train"], "test_batch.bin"]):
            add(archive, f"cifar/{name}", rows[2 * number : 2 * number + 2].tobytes())
    digest = hashlib.sha256((tmp_path / cifar10.ARCHIVE).read_bytes()).hexdigest()
    arguments = ("cifar10", "--data_dir", tmp_path, "--manual_dir", tmp_path)
    with pytest.raises(InputError, match="not the original"):
        run(*arguments)
    monkeypatch.setattr(cifar10, "SHA256", digest)
    run(*arguments)
    train = ArrayRecord("cifar10", "train", tmp_path)
    assert labels(train) == rows[:10, 0].tolist()
    red, green, blue = rows[3, 1:].reshape(3, 32, 32)
    np.testing.assert_array_equal(train[3]["image"], np.stack([red, green, blue], -1))


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            add(archive, name, content)
    return buffer.getvalue()


def test_prepared_imagenet2012_is_readable_by_stock_tfds(tmp_path, capsys):
    manual, data = tmp_path / "manual", tmp_path / "data"
    manual.mkdir()
    plain = jpeg(colour="blue")
    cut = jpeg(size=(64, 64))[:400]
    classes = {
        "n01440764.tar": tar(
            {
                "n01440764_1.JPEG": plain,
                "n01440764_2.JPEG": jpeg(mode="CMYK"),
                "n01440764_3.JPEG": cut,
                "../../n01440764_4.JPEG": plain,  # harmless: nothing is unpacked
            }
        ),
        "n01443537.tar": tar({"n01443537_9.JPEG": jpeg(kind="PNG")}),
    }
    (manual / imagenet2012.TRAIN).write_bytes(tar(classes))
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (3, 1, 2)]
    (manual / imagenet2012.VALIDATION).write_bytes(tar({n: plain for n in names}))

    run("imagenet2012", "--data_dir", data, "--manual_dir", manual)
    summary = capsys.readouterr().out
    for note in ("train 5", "validation 3", "1 CMYK", "1 png", "1 cannot be decoded"):
        assert note in summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "manual"]

    stock = tfds.data_source(
        "imagenet2012",
        split="validation",
        data_dir=data,
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    # In TFDS's order: by the hash of the name.
    hasher = hashing.Hasher("validation")
    order = [hasher.hash_key(example["file_name"].decode()) for example in stock]
    assert order == sorted(order)
    by_name = {example["file_name"]: example["label"] for example in stock}
    truth = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    wnids = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    for number, wnid in enumerate(truth.read_text().split()[:3], start=1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG".encode()
        assert wnids[by_name[name]] == wnid

    # Pickled, as a worker process receives it.
    train = pickle.loads(pickle.dumps(Tfds("imagenet2012", "train", data)))
    assert train.targets["label"]["classes"] == 1000
    found = {train[i]["file_name"]: train[i] for i in range(len(train))}
    assert found[b"n01440764_1.JPEG"]["image"] == plain
    assert found[b"n01443537_9.JPEG"]["label"] == wnids.index("n01443537")
    for name in (b"n01440764_2.JPEG", b"n01443537_9.JPEG"):
        image = found[name]["image"]
        assert image[:2] == b"\xff\xd8"
        assert np.abs(decode(image).astype(int) - (255, 0, 0)).max() < 8
    with pytest.raises(CorruptRecord):
        decode(found[b"n01440764_3.JPEG"]["image"])

    run("imagenet2012", "--data_dir", data)
    assert "is there already" in capsys.readouterr().out


CLASSES = tar({"n01440764.tar": tar({"n01440764_1.JPEG": b"x"})})


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (None, None, "no ILSVRC2012_img_train.tar"),
        (tar({"cats.tar": b""}), b"", "'cats.tar', not n01440764.tar"),
        (CLASSES, tar({"1.JPEG": b""}), "'1.JPEG', not ILSVRC2012_val"),
        (b"no tar at all" * 100, b"", "damaged"),
        (CLASSES, tar({}), "holds no image"),
    ],
)
def test_tars_that_are_not_imagenet_are_an_input_error(
    tmp_path, train, validation, message
):
    if train is not None:
        (tmp_path / imagenet2012.TRAIN).write_bytes(train)
        (tmp_path / imagenet2012.VALIDATION).write_bytes(validation)
    with pytest.raises(InputError, match=message):
        run("imagenet2012", "--data_dir", tmp_path / "d", "--manual_dir", tmp_path)
    with pytest.raises(InputError, match="prepare imagenet2012"):
        Tfds("imagenet2012", data_dir=tmp_path / "d")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_set"], "no data set 'no_such_set'"),
        (["imagenet2012"], "requires --manual_dir"),
        (["folder"], "--input DIR and --name NAME"),
        (["folder", "--input", "/no/such", "--name", "x"], "/no/such is not a folder"),
        (["digits", "--data_dir", "/proc/nowhere"], "cannot write"),
    ],
)
def test_bad_prepare_arguments_are_a_one_line_error(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)


def test_a_prepare_error_exits_with_status_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "polyview.prepare", "imagenet2012"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: imagenet2012 requires --manual_dir")
    assert done.stderr.count("\n") == 1
