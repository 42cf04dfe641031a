"""The evaluate command writes numbers and figures, the same on each call."""

import json
import shutil
import time

import numpy as np
import pytest

from polyview.data.prepare import records
from polyview.errors import InputError
from polyview.runs import evaluating
from polyview.runs.evaluating import Asked, evaluate, watch
from polyview.training.train import train
from polyview.training.trainer import Trainer

FIGURES = {"map", "neighbours", "sweep", "confusion"}


def numbers(run):
    """The contents of each JSON file, without the time."""
    files = (run / "eval").glob("*.json")
    results = {file.stem: json.loads(file.read_text()) for file in files}
    return {name: result | {"time": None} for name, result in results.items()}


def test_numbers_and_figures_are_written_and_reproducible(digits, tmp_path, capsys):
    config = digits("views=2")
    config.evaluations.frozen.probe.update(learning_rates=(0.1, 1.0), steps=50)
    train(Trainer(config), tmp_path)
    evaluate(tmp_path, None, Asked(references=True))
    names = {"4-frozen", "pixels-frozen", "random-frozen"}
    pictures = {file.name for file in (tmp_path / "eval").glob("*.png")}
    assert pictures == {f"{name}-{figure}.png" for name in names for figure in FIGURES}
    assert not list((tmp_path / "eval").glob(".*")), "temporary files remain"
    first = numbers(tmp_path)
    assert first.keys() == names
    assert first["pixels-frozen"]["knn"]["top1"] > 0.9
    evaluate(tmp_path, 4, Asked())
    assert numbers(tmp_path) == first
    assert capsys.readouterr().out.count("4-frozen.json: linear probe ") == 2


def test_another_data_set_uses_the_same_protocol(
    digits, data_dir, tmp_path, capsys, monkeypatch
):
    config = digits("views=2")
    config.evaluations.frozen.probe.update(learning_rates=(0.1,), steps=20)
    train(Trainer(config), tmp_path / "run")
    shutil.copytree(data_dir, tmp_path / "data")
    (tmp_path / "data" / "digits").rename(tmp_path / "data" / "figures")
    shutil.copytree(data_dir / "digits", tmp_path / "data" / "digits")
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path / "data"))
    evaluate(tmp_path / "run", None, Asked(references=True))
    evaluate(tmp_path / "run", None, Asked(references=True, on="figures"))
    results = numbers(tmp_path / "run")
    own = {name for name in results if "-on-" not in name}
    assert results.keys() == own | {f"{name}-on-figures" for name in own}
    other = results["4-frozen-on-figures"]
    assert other["protocol"]["train"]["source"] == {
        "target": "polyview.data.sources.array_record:ArrayRecord",
        "name": "figures",
        "split": "train",
    }
    for measure in ("knn", "linear_probe", "health"):
        assert other[measure] == results["4-frozen"][measure]
    with pytest.raises(InputError, match="no data set 'absent'"):
        evaluate(tmp_path / "run", None, Asked(on="absent"))
    colour = {"image": np.zeros((9, 9, 3), np.uint8), "label": 1}
    records.write(
        tmp_path / "data" / "colour",
        {"train": [colour] * 30, "test": [colour] * 9},
        version="1",
        targets={"label": {"kind": "class", "classes": 2}},
        source="here",
        licence="none",
    )
    with pytest.raises(InputError, match=r"run and colour\): images have 3 channels"):
        evaluate(tmp_path / "run", None, Asked(on="colour"))
    watch(tmp_path / "run", Asked(on="figures"), pause=0.01)  # nothing is left to do
    assert capsys.readouterr().out.count("4-frozen-on-figures.json: ") == 1


def test_a_classifier_reports_accuracy_and_has_no_references(digits, tmp_path, capsys):
    config = digits("views=2")
    config.model.towers.image.projector = {
        "partial": "polyview.nn.heads:Linear",
        "out": 10,
    }
    config.objective = {"target": "polyview.objectives.supervised:Classification"}
    seen = config.evaluations.frozen.to_dict()
    accuracy = {"target": "polyview.evaluation.accuracy:Accuracy"}
    config.evaluations = {
        "accuracy": accuracy | {name: seen[name] for name in ("test", "views")}
    }
    train(Trainer(config), tmp_path)
    evaluate(tmp_path, None, Asked())
    top1 = numbers(tmp_path)["4-accuracy"]["classifier"]["top1"]
    assert f"4-accuracy.json: top-1 {100 * top1:.2f} %\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="leave out --references"):
        evaluate(tmp_path, None, Asked(references=True))
    with pytest.raises(InputError, match="--on requires an evaluation by kNN"):
        evaluate(tmp_path, None, Asked(on="digits"))


class Recorder:
    """An evaluation with references, that notes whom it measures."""

    def __init__(self):
        self.measured = []

    def raw(self, batch):
        return batch

    def __call__(self, model, mesh):
        self.measured.append(model)
        return f"result {len(self.measured)}"


def test_each_reference_is_ready_before_the_next_is_measured():
    recorder = Recorder()
    results = evaluating._measured(recorder, 7, "trained", "untrained", None)
    assert next(results) == (7, "result 1") and recorder.measured == ["trained"]
    assert next(results) == ("random", "result 2") and len(recorder.measured) == 2
    assert next(results)[0] == "pixels" and next(results, None) is None


def test_data_without_labels_are_refused_with_the_flag_that_helps(
    digits_run, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path / "data"))
    run = shutil.copytree(digits_run(), tmp_path / "run")
    images = [{"image": np.full((8, 8, 1), 9 * i, np.uint8)} for i in range(12)]
    for name in ("digits", "bare"):  # the run's own data, now without labels
        records.write(
            tmp_path / "data" / name,
            {"train": images, "test": images},
            version="1",
            targets={},
            source="here",
            licence="none",
        )
    flag = r'"--config\.evaluations\.frozen\.views\.targets=\(\)"'
    for on in (None, "bare"):
        with pytest.raises(InputError, match=f"have no 'label'.*{flag}"):
            evaluate(run, None, Asked(on=on))
    asked = Asked(on="bare", overrides={"evaluations.frozen.views.targets": "()"})
    evaluate(run, None, asked)
    (result,) = numbers(run).values()
    assert "no labels" in result["note"] and result["columns"].keys() == {"RankMe"}


def test_watch_evaluates_each_checkpoint_once_then_ends(digits, tmp_path, capsys):
    config = digits("views=2", checkpoint_every=1, keep=9)
    config.evaluations.frozen.probe.update(learning_rates=(0.1,), steps=20)
    train(Trainer(config), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2")  # as `keep` does
    state = tmp_path / "checkpoints" / "3" / "state"
    shutil.rmtree(state)
    evaluate(tmp_path, 4, Asked())  # training may have evaluated the last one
    watch(tmp_path, Asked(), pause=0.01)
    results = numbers(tmp_path)
    assert results.keys() == {"1-frozen", "4-frozen"}
    output = capsys.readouterr().out
    assert "checkpoint 3 is damaged; skipped" in output
    assert output.count("1-frozen.json: ") == output.count("4-frozen.json: ") == 1
    watch(tmp_path, Asked(), pause=0.01)
    assert ".json: " not in capsys.readouterr().out, "a checkpoint was evaluated twice"
    evaluate(tmp_path, 1, Asked())
    assert numbers(tmp_path) == results


def test_watch_skips_deleted_checkpoints_and_stops_at_errors(
    digits, tmp_path, monkeypatch, capsys
):
    train(Trainer(digits("views=2", checkpoint_every=1, keep=9)), tmp_path)
    seen = []

    def deleted_while_read(run, step, *_):
        seen.append(step)
        if step == 2:
            shutil.rmtree(run / "checkpoints" / "2")
            raise InputError("the checkpoint is gone")
        if step == 4:
            raise InputError("no 'evaluation'")

    monkeypatch.setattr("polyview.runs.evaluating.evaluate", deleted_while_read)
    with pytest.raises(InputError, match="no 'evaluation'"):
        watch(tmp_path, Asked(), pause=0.01)
    assert seen == [1, 2, 3, 4]
    assert "checkpoint 2 was deleted before it was read" in capsys.readouterr().out


@pytest.mark.slow
def test_watch_during_training_equals_later_evaluations(command, tmp_path):
    options = ["--config.steps=60", "--config.batch_size=8", "--config.keep=9"]
    options += ["--config.checkpoint_every=20", "--config.evaluate_every=0"]
    config = ["--config", "configs/polyview_digits.py:views=2", *options]
    training = command("main", *config, "--workdir", tmp_path, wait=False)
    while not (tmp_path / "config.json").exists():
        assert training.poll() is None
        time.sleep(0.1)
    watching = command("evaluate", "--run", tmp_path, "--watch", "--pause", 0.2)
    assert watching.returncode == 0, watching.output
    output, _ = training.communicate(timeout=60)
    assert training.returncode == 0, output
    results = numbers(tmp_path)
    assert results.keys() == {f"{step}-frozen" for step in (20, 40, 60)}
    assert watching.output.count(".json: ") == 3
    for step in (20, 40, 60):
        again = command("evaluate", "--run", tmp_path, "--step", step)
        assert again.returncode == 0, again.output
    assert numbers(tmp_path) == results


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        evaluate(tmp_path, None, Asked())
