"""Embeddings hold each row once, in order, on any devices, also after interruption."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_weights import written

from polyview import devices
from polyview.config import parts
from polyview.config.text import from_json, to_json
from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.memory import InMemory
from polyview.errors import InputError
from polyview.evaluation.base import specs_of
from polyview.evaluation.features import extract
from polyview.files import check_new
from polyview.runs import embedding
from polyview.runs.embedding import embed
from polyview.runs.encoding import viewing
from polyview.runs.load import evaluated_model, load, with_arrays


@pytest.fixture
def run(digits, tmp_path):
    """A run of random weights."""
    return written(digits("views=2"), tmp_path / "run")


def content(path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_embeddings_match_the_evaluation_in_order(run, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "PART", 150)  # 360 rows: 150 + 150 + 60
    report = embed(run, "digits:test", tmp_path / "x.npz", batch_size=64)
    assert "360 of 360 rows, step 4" in report
    saved = content(tmp_path / "x.npz")
    whole = devices.replicated(mesh := devices.make_mesh())
    model = load(run, None, whole)
    from polyview.config.spec import build

    source = ArrayRecord("digits", "test")
    with jax.set_mesh(mesh):
        expected = extract(
            evaluated_model(model, whole),
            source,
            build(viewing(model.config).views),
            batch_size=64,
            mesh=mesh,
        )
    np.testing.assert_array_equal(saved["id"], np.arange(360))
    np.testing.assert_array_equal(saved["label"], expected.targets["label"])
    np.testing.assert_allclose(saved["embedding"], expected.h, rtol=1e-5, atol=1e-6)
    about = json.loads(str(saved["about"]))
    assert about["step"] == 4 and about["input"] == "ArrayRecord('digits', 'test')"
    embed(run, "digits:test", tmp_path / "z.npz", batch_size=64, features="z")
    z = content(tmp_path / "z.npz")["embedding"]
    np.testing.assert_allclose(z, expected.z, rtol=1e-4, atol=1e-5)


def test_a_resumed_embedding_gives_the_same_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "PART", 100)
    embed(run, "digits:test", tmp_path / "reference.npz", batch_size=64)
    calls = []

    def until_the_third(*arguments, **options):
        calls.append(options["name"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return extract(*arguments, **options)

    monkeypatch.setattr(embedding, "extract", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        embed(run, "digits:test", tmp_path / "x.npz", batch_size=64)
    assert not (tmp_path / "x.npz").exists()
    with pytest.raises(InputError, match="parts of another embedding"):
        embed(run, "digits:train", tmp_path / "x.npz", batch_size=64)
    embed(run, "digits:test", tmp_path / "x.npz", batch_size=64)
    assert calls == [f"{i} of 4" for i in (1, 2, 3, 3, 4)]
    reference, again = (tmp_path / f"{name}.npz" for name in ("reference", "x"))
    assert reference.read_bytes() == again.read_bytes()
    assert not list(tmp_path.glob(".x*"))


def test_a_folder_is_embedded_by_name_without_unreadable_files(
    digits, of_photos, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "PART", 4)
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "acdbefgxyz":
        pixels = rng.integers(0, 255, (12, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "e.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="do not fit together .*photos"):
        embed(run, str(folder), tmp_path / "grey.npz")  # images with three channels
    run = written(of_photos(digits("views=2"), folder), tmp_path / "colour")
    report = embed(run, str(folder), tmp_path / "x.npz", batch_size=8)
    assert "9 of 10 rows" in report and "1 cannot be read" in report
    saved = content(tmp_path / "x.npz")
    assert saved["id"].tolist() == [f"{name}.png" for name in "abcdfgxyz"]
    assert "label" not in saved
    embed(run, str(folder), tmp_path / "x.parquet", batch_size=8)
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "x.parquet")
    assert table["id"].to_pylist() == saved["id"].tolist()
    np.testing.assert_array_equal(table["embedding"].to_pylist(), saved["embedding"])
    assert json.loads(table.schema.metadata[b"about"])["step"] == 4


def test_invalid_inputs_and_outputs_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="must end in .npz or .parquet"):
        check_new(tmp_path / "x.csv", embedding.ENDINGS)
    (tmp_path / "x.npz").touch()
    with pytest.raises(InputError, match="already exists"):
        check_new(tmp_path / "x.npz", embedding.ENDINGS)
    with pytest.raises(InputError, match="nothing is not a folder, and no data"):
        embed(run, "nothing", tmp_path / "y.npz")
    for name, why in {
        "config.sorce": "no source at 'config.sorce', only config.evaluations.frozen.t",
        "config.steps": "no source at 'config.steps'",
        "config.views": "config.views is a Generated, not a source",
    }.items():
        with pytest.raises(InputError, match=why):
            embed(run, name, tmp_path / "y.npz")


def test_a_source_of_the_config_is_embedded_by_its_key(run, tmp_path):
    for name in ("digits:test", "config.evaluations.frozen.test"):
        embed(run, name, tmp_path / f"{name}.npz", batch_size=64)
    named, keyed = (content(path) for path in sorted(tmp_path.glob("*.npz")))
    assert named.keys() == keyed.keys()
    for column in ("id", "embedding", "label", "label_name"):
        np.testing.assert_array_equal(named[column], keyed[column])


NAMES = ["cat", "dog", "emu"]


def scenes(name="", split=""):
    """Six photographs, some with a caption; the fourth has neither, none has sound."""
    random = np.random.default_rng(0)
    photos = list(random.integers(0, 256, (6, 9, 8, 1)).astype(np.uint8))
    captions = list(random.integers(1, 9, (6, 4)).astype(np.int32))
    photos[1] = photos[3] = captions[0] = captions[3] = captions[4] = None
    kinds = {"species": {"kind": "class", "classes": 3, "names": NAMES}}
    kinds["tags"] = {"kind": "multi-label", "names": ["big", "wild"]}
    kinds["owner"] = {"kind": "class of some rows", "names": ["ann", "bob"]}
    kinds["shape"] = {"kind": "mask", "classes": 2}
    columns = {"photo": photos, "caption": captions, "sound": [None] * 6}
    columns |= {"species": np.arange(6) % 3, "tags": np.eye(6, 2, dtype=np.uint8)}
    columns["owner"] = [-1, 0, -1, 0, 1, 0]
    return InMemory(columns | {"shape": np.zeros((6, 9, 8), np.uint8)}, targets=kinds)


@pytest.fixture
def scenery(digits, tmp_path):
    """A run on two modalities of `scenes`, and one that no row has."""
    crop = {"target": "polyview.data.augment:ResizeCenterCrop", "size": 8}
    views = parts.observed(
        fields={"image": ("photo",), "text": ("caption",), "french": ("sound",)},
        shapes={"image": (8, 8, 1), "text": (4,), "french": (4,)},
        dtypes={"text": "int32", "french": "int32"},
        augments={"image": crop},
        targets=("species",),
        empty="skip",
    )
    plain = digits("views=2").to_dict()
    text = {"partial": "polyview.nn.text:TokenSet", "vocabulary": 9, "width": 4}
    text = parts.tower(text | {"features": 8}, out=4)
    image = plain["model"]["towers"]["image"]
    plain["model"]["towers"] = {"image": image, "text": text, "french": text}
    plain["source"], plain["views"] = {"target": "test_embed:scenes"}, views
    plain["evaluations"] = {"frozen": {"views": views, "test": plain["source"]}}
    return written(from_json(to_json(plain)), tmp_path / "scenery")


def test_several_modalities_have_a_column_and_a_presence_each(
    scenery, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "PART", 4)
    own = {"trust": ("test_embed",), "batch_size": 8}
    both = {"modality": ["image", "text"], **own}
    report = embed(scenery, "config.source", tmp_path / "x.npz", **both)
    assert "5 of 6 rows (4 with image, 3 with text)" in report
    saved = content(tmp_path / "x.npz")
    assert saved["id"].tolist() == [0, 1, 2, 4, 5]
    assert saved["present_image"].tolist() == [True, False, True, True, True]
    assert saved["present_text"].tolist() == [False, True, True, False, True]
    assert saved["species_name"].tolist() == ["cat", "dog", "emu", "dog", "emu"]
    assert saved["tags"].shape == (5, 2) and "shape" not in saved
    assert saved["tags_name"].tolist() == ["big", "wild", "", "", ""]
    assert saved["owner_name"].tolist() == ["", "ann", "", "bob", "ann"]
    names = {"species": NAMES, "tags": ["big", "wild"], "owner": ["ann", "bob"]}
    assert json.loads(str(saved["about"]))["names"] == names
    for name, missing in (("image", "text"), ("text", "image")):
        single = f"{name}.npz"
        embed(scenery, "config.source", tmp_path / single, modality=name, **own)
        alone = content(tmp_path / single)
        there = saved[f"present_{name}"]
        assert alone["id"].tolist() == saved["id"][there].tolist()
        found = saved[f"embedding_{name}"]
        np.testing.assert_allclose(found[there], alone["embedding"], rtol=1e-5)
        assert np.isnan(found[~there]).all() and f"embedding_{missing}" not in alone
    embed(scenery, "config.source", tmp_path / "x.parquet", **both)
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "x.parquet")
    assert set(table.column_names) == saved.keys() - {"about"}
    for column in table.column_names:
        np.testing.assert_array_equal(table[column].to_pylist(), saved[column].tolist())


def test_a_modality_that_nothing_has_is_refused_before_any_work(
    scenery, tmp_path, monkeypatch
):
    monkeypatch.setattr(embedding, "extract", None)
    for name, why in {
        "spanish": "no modality 'spanish' for .*, only french, image, text",
        "french": "no row of .* has a view of 'french'; rows have: image, text",
    }.items():
        with pytest.raises(InputError, match=why):
            embed(
                scenery,
                "config.source",
                tmp_path / "x.npz",
                modality=["image", name],
                trust=("test_embed",),
            )
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    both = {"modality": ["image", "text"], "trust": ("test_embed",)}
    with pytest.raises(InputError, match="no modality 'text' for Folder.*, only image"):
        embed(scenery, str(tmp_path), tmp_path / "x.npz", **both)


def test_tokens_outside_the_vocabulary_are_refused(scenery, tmp_path):
    """They would all have the features of its last token."""
    run = load(scenery, trust=("test_embed",))
    for token in (9, -1):
        tokens = np.array([[1, 2, 3, 4], [5, token, 7, 8]], np.int32)
        with pytest.raises(InputError, match=f"token {token} of 'text' .* 0 .. 8"):
            run.encode(InMemory({"caption": tokens}), modality="text")


def test_weights_that_are_not_finite_are_named(run, tmp_path, monkeypatch):
    name = "towers.image.encoder.conv.kernel"

    def broken(*arguments):
        model = load(*arguments)
        return with_arrays(model, {name: model.arrays[name] * np.inf})

    monkeypatch.setattr(embedding, "load", broken)
    with pytest.raises(InputError, match=f"{name} of .* is not finite at st") as caught:
        embed(run, "digits:test", tmp_path / "x.npz")
    assert "learning rate" not in str(caught.value)


def test_classes_keep_their_names_and_differences_are_told(digits, of_photos, tmp_path):
    """Class 1 of a folder may be another than class 1 of the run's data."""
    for place, classes in (("all", ("bird", "cat", "dog")), ("two", ("cat", "dog"))):
        for number, name in enumerate(classes):
            (tmp_path / place / name).mkdir(parents=True)
            image = Image.new("RGB", (8, 8), (80 * number, 0, 0))
            image.save(tmp_path / place / name / "x.png")
    run = written(of_photos(digits("views=2"), tmp_path / "all"), tmp_path / "run")
    report = embed(run, str(tmp_path / "two"), tmp_path / "x.npz", batch_size=8)
    why = (
        f"; label counts the 2 classes of Folder('{tmp_path}/two') (cat, dog), not the "
        "3 of the run's data (bird, cat, dog): compare label_name"
    )
    assert report.endswith(why)
    saved = content(tmp_path / "x.npz")
    assert saved["label"].tolist() == [0, 1]
    assert saved["label_name"].tolist() == ["cat", "dog"]
    assert json.loads(str(saved["about"]))["classes"] == ["cat", "dog"]
    report = embed(run, str(tmp_path / "all"), tmp_path / "y.npz", batch_size=8)
    assert report.endswith("step 4")


def test_a_modality_missing_in_all_rows_is_refused(digits, run, tmp_path, monkeypatch):
    empty = embedding.extract

    def without(*arguments, **options):
        extracted = empty(*arguments, **options)
        return extracted._replace(present=np.zeros_like(extracted.present))

    monkeypatch.setattr(embedding, "extract", without)
    with pytest.raises(InputError, match="all 360 rows .* lack 'image'; nothing"):
        embed(run, "digits:test", tmp_path / "x.npz")
    assert not list(tmp_path.glob("*x.npz*"))


def test_views_come_from_the_first_evaluation_that_has_them(digits):
    config = digits("views=2")
    (spec,) = specs_of(config).values()
    with config.unlocked():
        config.evaluation = None
        config.evaluations = {"score": {"target": "a:b"}, "frozen": spec}
    assert viewing(config).views == spec.views
    config.evaluations.frozen = None
    with pytest.raises(InputError, match="no evaluation that says"):
        viewing(config)


@pytest.mark.slow
def test_10001_images_match_on_1_and_8_devices_and_after_a_kill(run, tmp_path, command):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (10_001, 8, 8, 1), np.uint8)
    records.write(
        tmp_path / "many",
        {"test": ({"image": image} for image in images)},
        version="1",
        targets={},
        source="noise",
        licence="none",
    )
    words = ["embed", "--run", run, "--input", "many", "--batch_size", 64]

    def made(name, devices, wait=True):
        settings = {"polyview_data": tmp_path, "devices": devices, "wait": wait}
        return command(*words, "--output", tmp_path / name, **settings)

    for count in (1, 8):
        done = made(f"{count}.npz", count)
        assert done.returncode == 0, done.output
    killed = made("killed.npz", 8, wait=False)
    while not list(tmp_path.glob(".killed.npz.parts/*.npz")):
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "killed.npz").exists()
    assert made("killed.npz", 8).returncode == 0
    one, eight = (content(tmp_path / f"{count}.npz") for count in (1, 8))
    np.testing.assert_array_equal(one["id"], np.arange(10_001))
    np.testing.assert_array_equal(one["id"], eight["id"])
    np.testing.assert_allclose(one["embedding"], eight["embedding"], atol=1e-5)
    whole = (tmp_path / "8.npz").read_bytes()
    assert (tmp_path / "killed.npz").read_bytes() == whole
