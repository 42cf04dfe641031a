"""Examples are read as written, in a fixed order; damaged files are refused."""

import json
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord, pack, unpack
from polyview.data.sources.folder import Folder
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord, parse_split
from polyview.data.sources.tfds import Tfds
from polyview.errors import InputError


def write(directory, train=10, test=4, **fields):
    def examples(count, offset):
        for i in range(count):
            yield {"image": np.full((2, 3, 1), i, np.uint8), "label": i + offset}

    records.write(
        directory,
        {"train": examples(train, 0), "test": examples(test, 100)},
        version="1.0.0",
        targets={"label": {"kind": "class", "classes": 104}},
        source="here",
        licence="none",
        **fields,
    )


def labels(examples):
    return [examples[i]["label"] for i in range(len(examples))]


def test_record_round_trip_keeps_types_shapes_and_values():
    example = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "volume": np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 3),
        "jpeg": b"\xff\xd8\x00",
        "label": np.int64(7),
        "text": "naïve 视图",
        "absent": None,
        "words": ["a", "b"],
    }
    back = unpack(pack(example))
    assert back.keys() == example.keys()
    for name in ("image", "volume"):
        assert back[name].dtype == example[name].dtype
        np.testing.assert_array_equal(back[name], example[name])
    assert {k: back[k] for k in ("jpeg", "label", "text", "absent", "words")} == {
        "jpeg": b"\xff\xd8\x00",
        "label": 7,
        "text": "naïve 视图",
        "absent": None,
        "words": ["a", "b"],
    }


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc1",
        pack({"label": 1})[:-1],
        pickle.dumps({"label": 1}),
        b"\x93\x01\x02\x03",  # a list
        b"\x81\xa1a\xc7\x01\x05x",  # an unknown extension type
        pack({"x": np.zeros(4)}).replace(b"<f8", b"|O8"),  # object pointers
        pack({"x": np.zeros(4, np.uint8)}).replace(b"\x91\x04", b"\x91\x05"),
    ],
)
def test_an_invalid_record_is_corrupt_and_executes_nothing(record):
    with pytest.raises(CorruptRecord):
        unpack(record)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ("train", 0, 10)),
        ("train[:90%]", ("train", 0, 9)),
        ("train[90%:]", ("train", 9, 10)),
        ("train[:7]", ("train", 0, 7)),
        ("train[3:7]", ("train", 3, 7)),
        ("train[:5000]", ("train", 0, 10)),
        ("train[25%:75%]", ("train", 2, 8)),
        ("test", ("test", 0, 4)),
    ],
)
def test_split_grammar(split, expected):
    assert parse_split(split, {"train": 10, "test": 4}) == expected


@pytest.mark.parametrize(
    "split", ["valid", "train[", "train[5:5]", "train[:101%]", "train[-3:]", "train[3]"]
)
def test_an_invalid_split_is_named(split):
    with pytest.raises(InputError, match=split.split("[")[0]):
        parse_split(split, {"train": 10, "test": 4})


def test_complementary_splits_partition_the_examples(tmp_path):
    write(tmp_path / "set", train=13)
    for cut in ("90%", "33%", "5"):
        first = labels(ArrayRecord("set", f"train[:{cut}]", tmp_path))
        rest = labels(ArrayRecord("set", f"train[{cut}:]", tmp_path))
        assert first + rest == list(range(13))
    assert labels(ArrayRecord("set", "test", tmp_path)) == [100, 101, 102, 103]


def test_array_record_reads_shards_in_threads_and_when_pickled(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_SHARD_BYTES", 200)
    write(tmp_path / "set", train=40)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert len(manifest["splits"]["train"]["files"]) > 3
    examples = ArrayRecord("set", "train[2:]", tmp_path)
    clone = pickle.loads(pickle.dumps(examples))  # as a worker process receives it
    assert labels(clone) == list(range(2, 40))
    many = clone.__getitems__([7, 0, 7, 37])
    assert [example["label"] for example in many] == [9, 2, 9, 39]
    seen = [None] * 8
    threads = [
        threading.Thread(target=lambda k=k: seen.__setitem__(k, labels(examples)))
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [list(range(2, 40))] * 8
    with pytest.raises(IndexError):
        examples[38]


def test_an_unprepared_data_set_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"python -m polyview\.prepare digits"):
        ArrayRecord("digits", data_dir=tmp_path)
    with pytest.raises(InputError, match=r"python -m polyview\.prepare cifar100"):
        Tfds("cifar100", data_dir=tmp_path)


@pytest.mark.parametrize("damage", ["manifest", "count", "path", "gone", "cut"])
def test_a_damaged_data_set_is_an_input_error(tmp_path, damage):
    directory = tmp_path / "set"
    write(directory)
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    file = manifest["splits"]["train"]["files"][0]
    match damage:
        case "manifest":
            path.write_text('{"splits": ')
        case "count":
            file["records"] = manifest["splits"]["train"]["count"] = 11
            path.write_text(json.dumps(manifest))
        case "path":
            file["name"] = "../train-00000.array_record"
            path.write_text(json.dumps(manifest))
        case "gone":
            (directory / file["name"]).unlink()
        case "cut":
            content = (directory / file["name"]).read_bytes()
            (directory / file["name"]).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="prepare again"):
        ArrayRecord("set", data_dir=tmp_path)


MASK = {"kind": "mask", "classes": 2}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"classes": 5}, "'kind'"),
        ({"kind": ["class"], "classes": 5}, "not a string"),
        ({"kind": "class"}, "has None classes"),
        ({"kind": "class", "classes": 10**9}, "has 1000000000 classes"),
        ({"kind": "mask", "classes": True}, "has True classes"),
        ({"kind": "class", "classes": 5, "names": 5}, "one name per class"),
        ({"kind": "class", "classes": 2, "names": ["a"]}, "one name per class"),
        ({"kind": "class", "classes": 1, "names": [{}]}, "one name per class"),
        ({"kind": "multi-label"}, "one name per class"),
        (MASK, "'regions'"),
        (MASK | {"regions": {"all": ["x"]}}, "a label outside 0 .. 255"),
        (MASK | {"regions": {"all": 1}}, "not iterable"),
        (5, "not subscriptable"),
    ],
)
def test_an_invalid_target_in_the_manifest_is_refused(tmp_path, task, message):
    write(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"targets": {"label": task}}))
    with pytest.raises(InputError, match=f"{message}.*prepare again"):
        ArrayRecord("set", data_dir=tmp_path)


def test_flipped_bytes_in_a_file_are_a_corrupt_record(tmp_path):
    write(tmp_path / "set", train=50)
    path = tmp_path / "set" / "train-00000.array_record"
    content = bytearray(path.read_bytes())
    position = content.find(np.full((2, 3, 1), 20, np.uint8).tobytes())
    assert position > 0
    content[position] ^= 0xFF
    path.write_bytes(content)
    examples = ArrayRecord("set", data_dir=tmp_path)
    assert examples[19]["label"] == 19
    with pytest.raises(CorruptRecord):
        examples[20]


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_a_folder_is_sorted_and_labelled_and_ignores_loops(tmp_path):
    for name in ("dog/2.png", "cat/b.jpg", "cat/A.JPEG", "dog/deep/1.webp"):
        image(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "dog" / "loop").symlink_to(tmp_path, target_is_directory=True)
    folder = Folder(tmp_path)
    assert folder.files == ["cat/A.JPEG", "cat/b.jpg", "dog/2.png", "dog/deep/1.webp"]
    assert labels(folder) == [0, 0, 1, 1]
    assert folder.targets["label"]["names"] == ["cat", "dog"]
    assert folder[0]["image"][:2] == b"\xff\xd8"


def test_a_flat_folder_has_no_targets_and_an_empty_one_is_refused(tmp_path):
    image(tmp_path / "flat" / "1.png")
    flat = Folder(tmp_path / "flat")
    assert flat.targets == {} and flat[0].keys() == {"image", "file"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        Folder(tmp_path / "empty")


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="'label': 2"):
        InMemory({"image": np.zeros((3, 2, 2, 1), np.uint8), "label": [0, 1]})
