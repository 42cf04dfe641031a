"""The config for a folder of one's own takes its numbers from the data."""

import numpy as np
import pytest
from PIL import Image

from polyview import prepare
from polyview.config.file import load_config
from polyview.errors import InputError
from polyview.runs.evaluating import build_evaluations
from polyview.training.dry_run import _remedy
from polyview.training.trainer import Trainer


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path / "data"))


def images(tmp_path, *names, size=(30, 40)):
    rng = np.random.default_rng(0)
    for name in names:
        for number in range(40):
            path = tmp_path / "in" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(50, 200, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(path)


def config(argument="data=mine", **overrides):
    root = __file__.rpartition("/tests/")[0]
    return load_config(f"{root}/configs/polyview_folder.py:{argument}", overrides)


def prepared(*more):
    prepare.main(["folder", "--input", "in", "--name", "mine", *more])


def test_numbers_come_from_the_manifest(tmp_path):
    images(tmp_path, "a", "b")
    prepared()
    made = config()
    assert made.batch_size == 4 and made.epochs == 200  # 8 samples at two views
    assert made.views.augment.size == 32
    tower = made.model.towers.image
    assert all(0.4 < mean < 0.6 for mean in tower.mean)
    assert all(0.1 < deviation < 0.3 for deviation in tower.std)
    trainer = Trainer(config(batch_size="8"))
    trainer.check(tmp_path / "run")
    assert trainer.evaluations["frozen"].test.targets["label"]["names"] == ["a", "b"]
    sized = config("data=mine,size=128,views=8,encoder=resnet50,batch=growing")
    assert sized.batch_size == 8 and sized.views.augment.size == 128
    assert "stem" not in sized.model.towers.image.encoder
    # What a dry run says where this needs more memory than the machine has.
    assert _remedy(sized) == (
        "try --config.batch_size=2, --config.views.m=4, "
        "--config.model.towers.image.encoder.remat=blocks"
    )


@pytest.mark.parametrize(
    ("folders", "label", "test"),
    [
        (("train/a", "train/b", "val/a"), "label", "val"),
        (("train/a", "train/b", "val/a", "test"), "label", "val"),
        (("train/a", "train/b", "test"), "label", "train[90%:]"),
        (("",), None, "test"),
        (("train", "test/a", "test/b"), None, "test"),
    ],
)
def test_it_evaluates_where_there_are_labels(tmp_path, folders, label, test):
    images(tmp_path, *folders)
    prepared()
    made = config()
    frozen = made.evaluations.frozen
    assert (frozen.label, frozen.test.split) == (label, test)
    assert tuple(made.views.targets) == ((label,) if label else ())
    (evaluation,) = build_evaluations(made.evaluations.to_dict(), None).values()
    assert len(evaluation.test) and evaluation.label == label


def test_a_table_may_name_the_class(tmp_path):
    images(tmp_path, "")
    lines = [f"{number}.png,{number / 3},{'xy'[number % 2]}" for number in range(40)]
    text = "file,age:regression,kind\n" + "\n".join(lines)
    (tmp_path / "t.csv").write_text(text + "\n")
    prepared("--labels", "t.csv")
    made = config()
    assert made.evaluations.frozen.label == "kind"
    assert tuple(made.views.targets) == ("kind",)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "give data=NAME"),
        ("data=mime", "did you mean 'mine'"),
        ("data=mine,encoder=resnet19", "did you mean 'resnet18'"),
    ],
)
def test_what_is_missing_is_said_with_the_command(tmp_path, argument, message):
    images(tmp_path, "")
    prepared()
    with pytest.raises(InputError, match=message):
        config(argument)


def test_the_range_of_the_data_belongs_to_the_run(tmp_path):
    for number in range(40):
        path = tmp_path / "in" / f"{'ab'[number % 2]}" / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40), 15.0 * number, np.float32)).save(path)
    prepared("--range", "0", "600")
    made = config("data=mine,objective=supcon_labels")
    assert tuple(made.views.augment.range) == (0, 600)
    assert tuple(made.evaluations.frozen.views.augment.range) == (0, 600)
    assert made.objective.labels == "label"
