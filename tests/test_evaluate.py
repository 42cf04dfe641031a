"""The evaluate command leaves numbers and figures, the same ones each time."""

import json

import pytest

from polyview import train
from polyview.errors import InputError
from polyview.evaluate import evaluate

FIGURES = {"map", "neighbours", "sweep", "confusion"}


def numbers(run):
    """What each JSON file says, the clock apart."""
    files = (run / "eval").glob("*.json")
    found = {file.stem: json.loads(file.read_text()) for file in files}
    return {name: said | {"time": None} for name, said in found.items()}


def test_numbers_and_figures_are_written_and_are_the_same_again(
    digits, tmp_path, capsys
):
    config = digits("views=2")
    config.evaluation.probe.update(learning_rates=(0.1, 1.0), steps=50)
    train.run(config, tmp_path)
    evaluate(tmp_path, None, True, ())
    names = {"4", "pixels", "random"}
    pictures = {file.name for file in (tmp_path / "eval").glob("*.png")}
    assert pictures == {f"{name}-{what}.png" for name in names for what in FIGURES}
    assert not list((tmp_path / "eval").glob(".*")), "nothing is left unfinished"
    first = numbers(tmp_path)
    assert first.keys() == names
    assert first["pixels"]["knn"]["top1"] > 0.9
    evaluate(tmp_path, 4, False, ())
    assert numbers(tmp_path) == first
    assert capsys.readouterr().out.count("4.json: linear probe ") == 2


def test_a_classifier_says_its_accuracy_and_has_no_references(digits, tmp_path, capsys):
    config = digits("views=2")
    config.model.towers.image.projector = {
        "partial": "polyview.nn.heads:Linear",
        "out": 10,
    }
    config.objective = {"target": "polyview.objectives.supervised:Classification"}
    config.evaluation = {
        "target": "polyview.evaluation.accuracy:Accuracy",
        "test": config.evaluation.test,
        "views": config.evaluation.views,
    }
    train.run(config, tmp_path)
    evaluate(tmp_path, None, False, ())
    top1 = numbers(tmp_path)["4"]["classifier"]["top1"]
    assert f"4.json: top-1 {100 * top1:.2f} %\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="leave out --references"):
        evaluate(tmp_path, None, True, ())


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        evaluate(tmp_path, None, False, ())
