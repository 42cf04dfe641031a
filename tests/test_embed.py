"""Embeddings hold each row once, in order, on any devices, also after interruption."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from polyview import devices
from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError
from polyview.evaluation.base import specs_of
from polyview.evaluation.features import extract
from polyview.files import check_new
from polyview.runs import embedding
from polyview.runs.embedding import embed
from polyview.runs.encoding import viewing
from polyview.runs.load import evaluated_model, load
from polyview.training.train import train
from polyview.training.trainer import Trainer


@pytest.fixture
def run(digits, tmp_path):
    train(Trainer(digits("views=2")), tmp_path / "run")
    return tmp_path / "run"


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
    train(Trainer(of_photos(digits("views=2"), folder)), run := tmp_path / "colour")
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
    with pytest.raises(InputError, match="modality 'text' is not among"):
        embed(run, "digits:test", tmp_path / "y.npz", modality="text")


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
