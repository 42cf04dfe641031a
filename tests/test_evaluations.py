"""A new evaluation is one file; a run can have several; old results are read."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from polyview import evaluate as evaluate_command
from polyview.config.file import evaluations_of
from polyview.config.text import from_json, to_json
from polyview.errors import InputError
from polyview.evaluation.base import Result, viewing_spec
from polyview.nn.towers import Towers
from polyview.reporting.page import html_page
from polyview.reporting.read import read
from polyview.reporting.tables import summary
from polyview.runs import evaluating
from polyview.runs.checkpoint import saved_steps
from polyview.runs.evaluating import Asked, evaluate
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
FILE = '''"""The sparsity of a module output."""

import dataclasses
from typing import Any

import jax
import numpy as np

from polyview import devices
from polyview.config.overrides import parse_arguments
from polyview.data import pipeline
from polyview.evaluation.base import Result


def get_evaluations(argument, run):
    args = parse_arguments(argument, path="towers.image.encoder.conv", rows=16)
    frozen = run["evaluations"]["frozen"]
    spec = {"target": f"{__name__}:Sparsity", "test": frozen["test"]}
    return {"sparsity": spec | {"views": frozen["views"], **args}}


@dataclasses.dataclass(frozen=True)
class Sparsity:
    test: Any
    views: Any
    path: str
    rows: int

    def __call__(self, model, mesh):
        batches = pipeline.ordered(
            self.test, self.views, batch_size=self.rows, process_index=0,
            process_count=1,
        )
        batch = devices.put(next(iter(batches)), mesh)
        tap = np.asarray(model.taps(batch, [self.path])[self.path])
        called = model.call("encoded", batch)
        asked = model(batch)["image"].h
        numbers = {
            "protocol": {"rows": self.rows, "path": self.path},
            "sparsity": float((tap <= 0).mean()),
            "same": bool((np.asarray(called) == np.asarray(asked)).all()),
        }
        return Result(
            numbers,
            {"values": tap.ravel()[:1000]},
            summary=f"{100 * numbers['sparsity']:.1f} % at or below zero",
            columns={"sparsity %": 100 * numbers["sparsity"]},
        )

    @staticmethod
    def figures(numbers, figure_data):
        from polyview import drawing

        figure, axes = drawing.one_axes(2.0)
        axes.hist(figure_data["values"])
        return {"values": figure}
'''


class Encoding(Towers):
    """Towers with a method of their own, like a sampler or a policy."""

    def encoded(self, batch):
        return self(batch, key=None, train=False)["image"].h


def run_command(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
    module.main()


@pytest.fixture(scope="module")
def original(small_digits, data_dir, tmp_path_factory):
    """A finished run that has one more evaluation, `Fails`; copy it."""
    config = small_digits("views=2")
    config.model.partial = "test_evaluations:Encoding"
    config.evaluations.frozen.probe.update(learning_rates=(0.1,), steps=20)
    with config.unlocked():
        config.evaluations.later = {"target": "test_evaluations:Fails"}
    folder = tmp_path_factory.mktemp("evaluations") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(data_dir))
        train(Trainer(config), folder)
    return folder


@pytest.fixture
def trained(original, digits, tmp_path):
    """A copy of the run; its evaluations find their data."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def test_a_new_evaluation_is_one_file(trained, tmp_path, monkeypatch, capsys):
    file = tmp_path / "sparsity_of_layers.py"
    file.write_text(FILE)
    assert len(FILE.splitlines()) < 80
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["--run", tmp_path / "run", "--trust", "test_evaluations"]
    words += ["--evaluation", f"{file}:rows=24"]
    words += ["--config.evaluations.sparsity.rows=32"]
    run_command(monkeypatch, evaluate_command, *words)
    result = json.loads((tmp_path / "run" / "eval" / "4-sparsity.json").read_text())
    assert result["protocol"]["rows"] == 32 and result["same"]
    assert result["evaluation"] == "sparsity_of_layers:Sparsity"
    text = f"{100 * result['sparsity']:.1f} % at or below zero"
    assert f"4-sparsity.json: {text}" in capsys.readouterr().out
    runs = read([tmp_path / "run"])
    assert runs[0].evaluation("sparsity", result) is None, "untrusted code was called"
    table = summary(runs)
    assert "sparsity %" in table and f"{100 * result['sparsity']:.2f}" in table
    assert 'alt="values of run"' in html_page(runs)
    with pytest.raises(InputError, match="--references"):
        run_command(monkeypatch, evaluate_command, *words, "--references")


def test_the_frozen_evaluation_file_reads_any_image_run(trained, tmp_path, monkeypatch):
    file = f"{ROOT}/configs/evaluations/frozen.py:data=digits"
    flags = ["--config.evaluations.frozen.probe.steps=20", "--references"]
    words = ["--run", tmp_path / "run", "--trust", "test_evaluations"]
    words += ["--evaluation", file, *flags]
    run_command(monkeypatch, evaluate_command, *words)
    names = {path.stem for path in (tmp_path / "run" / "eval").glob("*.json")}
    assert names == {"4-frozen", "random-frozen", "pixels-frozen"}
    for bad in (file.replace("frozen.py", "frzen.py"), f"{ROOT}/configs/probe.py"):
        with pytest.raises(InputError, match="frozen.py|get_evaluations"):
            run_command(monkeypatch, evaluate_command, *words[:5], bad)


def test_the_frozen_evaluation_file_sees_data_as_the_run_does():
    augment = {"target": "polyview.data.augment:ResizeCenterCrop", "size": 96}
    views = {"field": "photo", "augment": augment | {"fraction": 0.875}}
    seen = {"test": {"split": "test"}, "views": views, "modality": "photo"}
    run = {"source": {"split": "train"}, "evaluations": {"own": seen}}
    file = f"{ROOT}/configs/evaluations/frozen.py"
    for argument, fraction in (("", 0.875), (":fraction=0.5", 0.5)):
        spec = evaluations_of(f"{file}{argument}", run)["frozen"]
        assert spec["modality"] == spec["views"]["field"] == "photo"
        assert spec["views"]["augment"] == augment | {"fraction": fraction}
    run["evaluations"]["own"] = {"test": {"split": "test"}, "views": {}}
    spec = evaluations_of(file, run)["frozen"]
    assert spec["modality"] == "image" and spec["views"]["augment"]["fraction"] == 1.0


class Fails:
    def __call__(self, model, mesh):
        raise ValueError("it cannot be measured")


def test_each_result_is_written_before_the_next_evaluation(trained):
    with pytest.raises(InputError, match="it cannot be measured"):
        evaluate(trained, None, Asked(trust=("test_evaluations",)))
    assert [path.name for path in (trained / "eval").glob("*.json")] == [
        "4-frozen.json"
    ]


def test_a_config_can_have_several_evaluations(digits, tmp_path):
    config = digits("views=2", evaluate_every=4)
    config.evaluations.frozen.probe.update(learning_rates=(0.1,), steps=20)
    frozen = config.evaluations.frozen
    accuracy = {
        "target": "polyview.evaluation.accuracy:Accuracy",
        "views": frozen.views,
    }
    with config.unlocked():
        config.evaluations.accuracy = accuracy | {"test": frozen.test}
        config.evaluations.twice = frozen.copy_and_resolve_references()
    train(Trainer(config), tmp_path)
    (run,) = read([tmp_path])
    assert [*run.results] == ["accuracy", "frozen", "twice"]
    columns = run.result["columns"]
    assert columns.keys() >= {"classifier %", "kNN %", "twice: kNN %"}
    assert columns["kNN %"] == columns["twice: kNN %"]
    assert html_page([run]).count(f'alt="confusion of {run.name}"') == 2


def test_version_0_1_configs_and_results_are_read(digits, tmp_path):
    config = digits("views=2", evaluate_every=4)
    config.evaluations.frozen.probe.update(learning_rates=(0.1,), steps=20)
    with config.unlocked():
        config.evaluation = config.evaluations.frozen
        del config.evaluations
    assert viewing_spec(config) == config.evaluation
    train(Trainer(config), tmp_path)
    flags = {"evaluation.knn.k": "5"}
    evaluate(tmp_path, None, Asked(references=True, overrides=flags))
    names = {path.stem for path in (tmp_path / "eval").glob("*.json")}
    assert names == {"4", "random", "pixels"}
    new = html_page(read([tmp_path]))
    for path in (tmp_path / "eval").glob("*.json"):  # as version 0.1 wrote them
        result = json.loads(path.read_text())
        assert result["protocol"]["knn"]["k"] == 5
        for key in ("evaluation", "summary", "columns"):
            del result[key]
        path.write_text(json.dumps(result))
    saved = tmp_path / "config.json"
    old = {"polyview.evaluation.frozen:FrozenFeatures", "polyview.data.sources"}
    text = saved.read_text()
    assert old & set(text.replace('"', "\n").splitlines())
    text = text.replace(
        "evaluation.frozen:FrozenFeatures", "evaluation.protocol:Protocol"
    )
    saved.write_text(text)
    again = html_page(read([tmp_path]))
    assert new.count("<img") == again.count("<img") > 4
    assert "raw pixels" in again and "linear probe %" in again


def test_an_evaluation_name_must_suit_a_file_name():
    for name in ("a-b", "on/x", "", "1"):
        with pytest.raises(InputError, match="is not a valid name"):
            viewing_spec({"evaluations": {name: {}}})


def test_an_invalid_or_oversized_picture_is_refused(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "eval" / "4-own.json").write_text('{"evaluation": "mine:Own"}')
    picture = tmp_path / "eval" / "4-own-x.png"
    size = np.array([2**20, 2**20], ">u4").tobytes()
    for content, why in (
        (b"<svg>" * 9, "not a PNG file"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + size, "too large"),
    ):
        picture.write_bytes(content)
        with pytest.raises(InputError, match=why):
            html_page(read([tmp_path]))


def test_an_evaluation_file_cannot_call_untrusted_targets_of_a_run(
    trained, tmp_path, monkeypatch
):
    """The file takes the source of the run, and the run is untrusted."""
    run = trained
    real = evaluating.load(run, trust=("test_evaluations",))
    evil = from_json(to_json(real.config))
    evil.source = {"target": "os:system", "command": f"touch {tmp_path}/called"}
    monkeypatch.setattr(
        evaluating, "load", lambda *_: dataclasses.replace(real, config=evil)
    )
    asked = Asked(f"{ROOT}/configs/evaluations/frozen.py", trust=("test_evaluations",))
    with pytest.raises(InputError, match="'os:system', which is not trusted"):
        evaluate(run, None, asked)
    assert not (tmp_path / "called").exists()


class Returns:
    """An evaluation that returns a given value."""

    def __init__(self, value: str):
        self.value = value

    def __call__(self, model, mesh):
        values = {"infinite": np.inf, "numpy": np.float32(1), "objects": 1.0}
        data = {"x": np.array([None])} if self.value == "objects" else None
        return Result({"found": values[self.value]}, data)


@pytest.mark.parametrize("value", ["infinite", "numpy", "objects"])
def test_an_unwritable_result_is_named_and_loses_no_step(digits, tmp_path, value):
    config = digits("views=2", evaluate_every=4, checkpoint_every=4)
    spec = {"target": "test_evaluations:Returns", "value": value}
    with config.unlocked():
        config.evaluations = {"mine": spec}
    with pytest.raises(InputError, match="4-mine.*(is not JSON|are not numbers)"):
        train(Trainer(config), tmp_path)
    assert saved_steps(tmp_path / "checkpoints") == [4]


def test_an_invalid_evaluation_is_refused_before_training(digits, tmp_path):
    config = digits("views=2", evaluate_every=4)
    for spec in (5, {"partial": "test_evaluations:Returns"}):
        with config.unlocked():
            config.evaluations = {"mine": spec}
        with pytest.raises(InputError, match="evaluations.mine.* not an evaluation"):
            Trainer(config)
    with config.unlocked():
        config.evaluation = {"target": "test_evaluations:Fails"}
    with pytest.raises(InputError, match="both set"):
        Trainer(config)
