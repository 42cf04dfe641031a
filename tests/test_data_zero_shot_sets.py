"""CUB, AwA2 and SUN are read by name from any published xlsa17, and never leak."""

import json
import sys

import numpy as np
import pytest
import scipy.io

from polyview.data.prepare import awa2, cub, sun, xlsa17
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError

# In the order of xlsa17: classes 2 and 5 of CUB's own order are unseen and come last.
CLASSES = {
    "CUB": "001.Albatross 003.Auklet 004.Bunting 006.Cardinal 002.Ani 005.Catbird",
    "AWA2": "antelope grizzly+bear ox mole bat seal",
    "SUN": "abbey athletic_field_outdoor theater_indoor_round moor bog pub_indoor",
}
ROOTS = {
    "CUB": "/BS/Deep_Fragments/work/MSc/CUB_200_2011/CUB_200_2011/images/",
    "AWA2": "/BS/xian/work/data/Animals_with_Attributes2//JPEGImages/",
    "SUN": "/BS/Deep_Fragments/work/MSc/data/SUN/images/",
}
FOLDERS = {
    "athletic_field_outdoor": "a/athletic_field/outdoor",
    "theater_indoor_round": "t/theater/indoor/round",
    "pub_indoor": "p/pub/indoor",
}
IMAGES = {
    "CUB": "CUB_200_2011/images",
    "AWA2": "Animals_with_Attributes2/JPEGImages",
    "SUN": "SUN/images",
}
PREPARE = {"CUB": cub.prepare, "AWA2": awa2.prepare, "SUN": sun.prepare}
A, EACH = 3, 4  # attributes, images of a class
HELD = 1  # the class to choose settings on
PARTS = ("trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc")


def column(texts):
    cell = np.empty((len(texts), 1), object)
    cell[:, 0] = texts
    return cell


class Copy:
    """A user's copy of a data set, in small: `mat` and `texts` may be changed."""

    def __init__(self, root, name, version="2019"):
        self.root, self.name, self.folder = root, name, root / "xlsa17/data" / name
        self.classes = CLASSES[name].split()
        # Images of all classes are mixed, as they are in CUB.
        order = np.random.default_rng(0).permutation(len(self.classes) * EACH)
        self.labels = order // EACH  # from 0
        self.files = [self.file(i) for i in order]
        part = np.where(self.labels >= 4, 2, order % EACH == 0)  # 0 trainval, 1, 2
        places = {key: np.flatnonzero(part == i) for i, key in enumerate(PARTS[:3])}
        if version != "2019":
            seen = part < 2 if version == "2018" else part == 0
            places["train_loc"] = np.flatnonzero(seen & (self.labels != HELD))
            places["val_loc"] = np.flatnonzero(seen & (self.labels == HELD))
        self.places = places
        attributes = np.arange(A * 6).reshape(6, A) * 5.0 - 1
        self.attributes = attributes
        self.mat = {
            "att_splits": {
                "allclasses_names": column(self.classes),
                "att": (attributes / np.linalg.norm(attributes, axis=1)[:, None]).T,
                "original_att": attributes.T,
                **{k: (v + 1)[:, None].astype("u2") for k, v in places.items()},
            },
            "res101": {
                "features": np.zeros((8, len(order))),
                "labels": (self.labels + 1.0)[:, None],
                "image_files": column([ROOTS[name] + file for file in self.files]),
            },
        }
        self.texts = {
            "allclasses": self.classes,
            "trainvalclasses": self.classes[3::-1],
            "testclasses": self.classes[4:],
            "valclasses1": [self.classes[HELD]],
        }

    def file(self, number):
        label = self.classes[number // EACH]
        folder = label
        if self.name == "SUN":
            folder = FOLDERS.get(label, f"{label[0]}/{label}")
        return f"{folder}/{label.split('.')[-1]}_{number}.jpg"

    def write(self):
        for file in self.files:
            path = self.root / IMAGES[self.name] / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.encode())
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.mat.items():
            path = self.folder / f"{name}.mat"
            scipy.io.savemat(path, content, do_compression=True)
        for name, names in self.texts.items():
            (self.folder / f"{name}.txt").write_text("\n".join(names) + "\n")
        if self.name == "CUB":
            names = (
                "has_bill_shape::cone",
                "has_bill_shape::hooked_(all)",
                "size::big",
            )
            rows = [f"{i} {name}\n" for i, name in enumerate(names, 1)]
            (self.root / "attributes.txt").write_text("".join(rows))
        elif self.name == "AWA2":
            text = "    1\tblack\n    2\tnew world\n    3\ttail\n"
            (self.root / "Animals_with_Attributes2/predicates.txt").write_text(text)
        else:
            (self.root / "SUNAttributeDB").mkdir(exist_ok=True)
            scipy.io.savemat(
                self.root / "SUNAttributeDB/attributes.mat",
                {"attributes": column(["sailing/ boating", "driving", "biking"])},
            )
        return self

    def prepare(self):
        self.write()
        PREPARE[self.name](self.root / "data" / self.name.lower(), self.root)
        return json.loads(
            (self.root / "data" / self.name.lower() / "manifest.json").read_text()
        )

    def read(self, split):
        source = ArrayRecord(self.name.lower(), split, self.root / "data")
        return source.targets, [source[i] for i in range(len(source))]


VERSIONS = {
    "2018": "train_loc and val_loc divide trainval_loc and test_seen_loc",
    "2019": "without train_loc and val_loc",
    "2020": "train_loc and val_loc divide trainval_loc",
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_split_has_its_images_with_the_attributes_of_their_class(
    tmp_path, name, version, capsys, monkeypatch
):
    copy = Copy(tmp_path, name, version)
    manifest = copy.prepare()
    held = copy.labels == HELD
    in_part = {key: np.isin(range(len(held)), own) for key, own in copy.places.items()}
    wanted = {
        "train": in_part["trainval_loc"] & ~held,
        "validation": in_part["trainval_loc"] & held,
        "test": in_part["test_unseen_loc"],
        "seen_test": in_part["test_seen_loc"] & ~held,
        "validation_seen_test": in_part["test_seen_loc"] & held,
    }
    assert list(manifest["splits"]) == list(wanted)
    for split, mask in wanted.items():
        targets, examples = copy.read(split)
        assert targets["label"] == {
            "kind": "class",
            "classes": 6,
            "names": copy.classes,
        }
        files = [example["file"] for example in examples]
        assert sorted(files) == sorted(np.array(copy.files)[mask])
        for example in examples:
            assert example["image"] == example["file"].encode()
            folders = example["file"].split("/")[:-1]
            label = copy.classes[example["label"]]
            assert "_".join(folders[name == "SUN" :]) == label
            vector = copy.attributes[copy.classes.index(label)]
            assert example["attributes"].dtype == np.float32
            np.testing.assert_array_equal(example["attributes"], vector)
    assert targets["attributes"]["kind"] == "regression"
    assert len(targets["attributes"]["names"]) == A
    # The version is in the manifest and said, and its own split is known again.
    said = manifest["provenance"]["xlsa17"]
    assert said in capsys.readouterr().out
    assert said.startswith("another split than version 1 (")
    assert said.endswith(VERSIONS[version])
    digest = said.partition("(")[2].partition(")")[0]
    monkeypatch.setitem(xlsa17.VERSION_1, name, digest)
    assert xlsa17.read(copy.folder).version.startswith("version 1 (")
    copy.mat["att_splits"]["trainval_loc"] = copy.mat["att_splits"]["trainval_loc"][:-1]
    copy.mat["att_splits"] = {
        key: copy.mat["att_splits"][key]
        for key in copy.mat["att_splits"].keys() - {"train_loc", "val_loc"}
    }
    assert xlsa17.read(copy.write().folder).version.startswith("another split")


def test_attributes_have_their_published_names_and_groups(tmp_path):
    task = Copy(tmp_path, "CUB").prepare()["targets"]["attributes"]
    assert task["names"][1] == "has_bill_shape::hooked_(all)"
    assert task["slots"] == ["has_bill_shape", "has_bill_shape", "size"]
    task = Copy(tmp_path, "AWA2").prepare()["targets"]["attributes"]
    assert task == {"kind": "regression", "names": ["black", "new world", "tail"]}
    task = Copy(tmp_path, "SUN").prepare()["targets"]["attributes"]
    assert task["names"] == ["sailing/ boating", "driving", "biking"]


def test_without_a_list_the_classes_of_val_loc_are_held_out(tmp_path):
    copy = Copy(tmp_path, "AWA2", "2018")
    del copy.texts["valclasses1"]
    copy.prepare()
    assert {e["label"] for e in copy.read("validation")[1]} == {HELD}


def test_a_split_without_an_image_is_left_out(tmp_path):
    copy = Copy(tmp_path, "AWA2")
    seen = copy.mat["att_splits"]["test_seen_loc"]
    held = copy.labels[seen[:, 0] - 1] == HELD
    copy.mat["att_splits"]["test_seen_loc"] = seen[~held]
    manifest = copy.prepare()
    assert list(manifest["splits"]) == ["train", "validation", "test", "seen_test"]
    assert manifest["provenance"]["images in no split"] == held.sum()


def change(**fields):
    """Change variables of att_splits or res101 by a function, or leave them out."""

    def made(copy):
        for name, function in fields.items():
            own = next(c for c in copy.mat.values() if name in c)
            if function is None:
                del own[name]
            else:
                own[name] = function(own[name])

    return made


def swap(cell):
    return cell[[1, 0, *range(2, len(cell))]]


def with_dots(cell):
    cell = cell.copy()
    cell[0, 0] = "/BS/images/antelope/../../x.jpg"
    return cell


def nan(values):
    return np.where(values == values.max(), np.nan, values)


def listed(name, names):
    return lambda copy: copy.texts.update({name: names})


def no_tuning(copy):
    del copy.texts["valclasses1"]


BAD = {
    "labels from 0": (change(labels=lambda x: x - 1), "labels has 0 .. 5.*from 0"),
    "a label more": (change(labels=lambda x: x + 1), "labels has 2 .. 7.*another"),
    "numbers from 0": (change(trainval_loc=lambda x: x - x.min()), "counts from 0"),
    "numbers too high": (change(test_seen_loc=lambda x: x + 24), "not whole numbers"),
    "no numbers": (change(test_seen_loc=lambda x: x[:0]), "holds no numbers"),
    "other labels": (change(labels=lambda x: x[::-1]), "mixes.*has the label"),
    "other classes": (change(allclasses_names=swap), "mixes.*has the label"),
    "fewer labels": (change(labels=lambda x: x[1:]), "23 labels for 24 images"),
    "an image twice": (
        change(test_seen_loc=lambda x: np.vstack([x[1:], x[1:2]])),
        "in two of",
    ),
    "no original_att": (change(original_att=None), "has no original_att"),
    "fewer classes": (change(original_att=lambda x: x[:, 1:]), r"6 classes.*\(3, 5\)"),
    "nan": (change(original_att=nan), "must be finite"),
    "fewer attributes": (change(original_att=lambda x: x[1:]), "2 attributes.*names 3"),
    "a path upwards": (change(image_files=with_dots), "is no .../images/CLASS"),
    "no names": (
        change(allclasses_names=lambda x: np.eye(2)),
        "att_splits.mat: a list of names.*something else",
    ),
    "a seen class unseen": (
        listed("testclasses", ["antelope", "bat", "seal"]),
        "testclasses.txt differs from test_unseen_loc in antelope",
    ),
    "other seen classes": (
        listed("trainvalclasses", ["ox", "mole", "antelope", "dolphin"]),
        "trainvalclasses.txt differs.*dolphin and 1 more",
    ),
    "unseen to choose by": (listed("valclasses1", ["bat"]), "bat is no seen class"),
    "no classes to choose by": (no_tuning, "neither val_loc.*nor valclasses1.txt"),
}
OLD = {  # with train_loc and val_loc
    "only train_loc": (change(val_loc=None), "one of train_loc and val_loc"),
    "part of both": (change(train_loc=lambda x: x[1:]), "do not divide the seen"),
    "other val_loc": (
        listed("valclasses1", ["ox"]),
        "val_loc differs from valclasses1.txt in grizzly.bear and 1 more",
    ),
}


@pytest.mark.parametrize("case", [*BAD, *OLD])
def test_files_that_are_not_of_one_xlsa17_are_refused_in_a_line(tmp_path, case):
    alter, message = (BAD | OLD)[case]
    copy = Copy(tmp_path, "AWA2", "2018" if case in OLD else "2019")
    alter(copy)
    with pytest.raises(InputError, match=message) as caught:
        copy.prepare()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "data/awa2").exists()


def test_an_unseen_class_among_the_seen_is_a_leak(tmp_path):
    copy = Copy(tmp_path, "AWA2")
    content = copy.mat["att_splits"]
    content["trainval_loc"] = np.vstack(
        [content["trainval_loc"], content["test_unseen_loc"][:1]]
    )
    content["test_unseen_loc"] = content["test_unseen_loc"][1:]
    with pytest.raises(InputError, match="(bat|seal) is seen and unseen"):
        copy.prepare()
    copy = Copy(tmp_path, "AWA2")
    content = copy.mat["att_splits"]
    first = copy.labels[content["trainval_loc"][:, 0] - 1] == 0
    content["trainval_loc"] = content["trainval_loc"][~first]
    with pytest.raises(InputError, match="antelope is in test_seen_loc, not in"):
        copy.prepare()


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("xlsa17/data/AWA2/att_splits.mat", None, "no .*att_splits.mat; unpack"),
        ("xlsa17/data/AWA2/res101.mat", b"MATLAB", "res101.mat cannot be read"),
        ("xlsa17/data/AWA2/valclasses1.txt", b"\xff", "valclasses1.txt cannot be read"),
        ("Animals_with_Attributes2/predicates.txt", None, "no predicates.txt in"),
        ("Animals_with_Attributes2/predicates.txt", b"1 a\n3 b\n", "from 1 on"),
        ("Animals_with_Attributes2/predicates.txt", b"1 a\n2\n3 b", "line 2: a number"),
        ("Animals_with_Attributes2/predicates.txt", b"", "from 1 on"),
        (
            "Animals_with_Attributes2/JPEGImages/ox/ox_9.jpg",
            None,
            r"1 of 24 images are not in .*JPEGImages \(the first: ox/ox_9.jpg\)",
        ),
    ],
)
def test_absent_and_damaged_files_are_named(tmp_path, path, content, message):
    Copy(tmp_path, "AWA2").write()
    (tmp_path / path).unlink()
    if content is not None:
        (tmp_path / path).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        awa2.prepare(tmp_path / "data/awa2", tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_there_are_named(tmp_path):
    for name, place in (
        ("CUB", "CUB_200_2011/images"),
        ("AWA2", "Animals_with_Attributes2"),
        ("SUN", "SUN/images or SUNAttributeDB_Images/images or images"),
    ):
        with pytest.raises(InputError, match=f"{name.lower()} requires --manual_dir"):
            PREPARE[name](tmp_path / "data", None)
        with pytest.raises(InputError, match=f"no {place} in .*xlsa17.zip"):
            PREPARE[name](tmp_path / "data", tmp_path)
    (Copy(tmp_path, "CUB").write().root / "attributes.txt").write_text("1 size\n")
    with pytest.raises(InputError, match="'size' is not GROUP::VALUE"):
        cub.prepare(tmp_path / "data/cub", tmp_path)
    Copy(tmp_path, "SUN").write()
    scipy.io.savemat(tmp_path / "SUNAttributeDB/attributes.mat", {"other": [1.0]})
    with pytest.raises(InputError, match="has no attributes"):
        sun.prepare(tmp_path / "data/sun", tmp_path)


def hdf5(path, content):
    """Write a file as MATLAB's `save -v7.3` does: columns first, texts by reference."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in content.items():
            if values.dtype == object:
                references = []
                for i, text in enumerate(values.ravel()):
                    codes = np.array([[ord(c)] for c in text], np.uint16)
                    references.append(file.create_dataset(f"#/{name}{i}", data=codes))
                kind = h5py.special_dtype(ref=h5py.Reference)
                cell = file.create_dataset(name, (1, len(references)), kind)
                cell[0] = [one.ref for one in references]
            else:
                file[name] = values.T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")


def test_hdf5_is_refused_with_the_remedy_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    path = Copy(tmp_path, "AWA2").write().folder / "att_splits.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(InputError, match=r"HDF5.*save\(..., '-v7'\), or install h5py"):
        awa2.prepare(tmp_path / "data/awa2", tmp_path)


def test_hdf5_is_read_as_the_other_format_with_h5py(tmp_path):
    copy = Copy(tmp_path, "SUN", "2018").write()
    wanted = xlsa17.read(copy.folder)
    for name, content in copy.mat.items():
        hdf5(copy.folder / f"{name}.mat", content)
    found = xlsa17.read(copy.folder)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_equal(one, other)
