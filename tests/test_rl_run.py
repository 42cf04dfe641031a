"""Policies that learn by acting, by the configs and commands that users type."""

import json
import sys

import numpy as np
import pytest
from test_agents_weights import gguf_file, put

from agents import demonstrate
from agents import train as command
from polyview.config.file import load_config
from polyview.errors import InputError
from polyview.rl.learner import PolicyLearner
from polyview.runs.evaluating import Asked, evaluate
from polyview.runs.load import load
from polyview.training.train import train
from polyview.training.trainer import Trainer

pytest.importorskip("minigrid")
ROOM = "120"  # letters of an instruction, each of which is a token of the tiny model


@pytest.fixture(scope="module", autouse=True)
def shelf(tmp_path_factory):
    """A data folder with a tiny language model and demonstrations."""
    folder = tmp_path_factory.mktemp("shelf")
    put(gguf_file(tmp_path_factory.mktemp("model") / "tiny.gguf"), "tiny", folder)
    counts = {"episodes": 8, "validation": 1, "test": 1, "seed": 0}
    name = "rearrange:train_validation"
    demonstrate.prepare([name], folder / "shown", pixels=0, noise=0.0, **counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def alone(on_devices):
    """See one device: several share two cores, and wait for each other."""
    on_devices(1)


def playing(argument, **overrides):
    small = {
        "environment.split": "train_validation",
        "environment.length": ROOM,
        "views.length": ROOM,
        "evaluations.splits.views.length": ROOM,
        "evaluations.splits.episodes": "1",
        "evaluations.splits.limit": "3",
        "steps": "2",
        "rollout": "4",
        "minibatches": "1",
        "rows": "8",
    }
    path = f"configs/agents_rearrange.py:model=tiny,layers=1,{argument}"
    if "gru" not in argument:
        small["model.body.context"] = "256"
    return load_config(path, {**small, **overrides})


def test_a_cloned_policy_goes_on_by_playing(tmp_path, capsys):
    cloned = load_config(
        "configs/agents_rearrange_clone.py:model=tiny,layers=1,data=shown",
        {"steps": "1", "batch_size": "8", "views.length": ROOM}
        | {"model.body.context": "256"},
    )
    train(Trainer(cloned), tmp_path / "clone")
    config = playing(f"start={tmp_path / 'clone'}")
    learner = PolicyLearner(config)
    train(learner, tmp_path / "run")
    banner = capsys.readouterr().out
    assert "success 0.000" in banner and "trained numbers" in banner
    begun, after = load(tmp_path / "clone").arrays, load(tmp_path / "run").arrays
    same = [name for name in begun if (begun[name] == after[name]).all()]
    # The body is fixed; bridge and head have learnt from there.
    assert any(name.startswith("body.blocks") for name in same)
    for name in ("adapter.head.down.kernel", "bridges.image.down.kernel"):
        assert 0 < np.abs(begun[name] - after[name]).max() < 0.01
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert told[-1]["environment_steps"] == 2 * 8 * 4
    assert max(line["first_ratio"] for line in told) < 1e-4
    evaluate(tmp_path / "run", None, Asked())
    assert "of 2 episodes" in capsys.readouterr().out


def test_a_level_is_played_by_the_command_on_the_host(tmp_path, monkeypatch, capsys):
    what = ["agents.train", "--workdir", str(tmp_path / "run"), "--config"]
    argument = "level=GoToObj,fast=False,model=tiny,rows=8,thousand=1"
    small = ["--config.rollout=4", "--config.steps=2", "--config.minibatches=1"]
    longer = ["--config.environment.length=64", "--config.views.length=64"]
    argv = [*what, f"configs/agents_babyai.py:{argument}", *small, *longer]
    monkeypatch.setattr(sys, "argv", argv)
    command.main()
    assert "step 2/2" in capsys.readouterr().out
    assert load(tmp_path / "run").config.environment.name == "babyai:GoToObj"
    monkeypatch.setattr(sys, "argv", [*argv, "--config.rows=16"])
    with pytest.raises(InputError, match="rows: 8 -> 16"):
        command.main()


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("body=gpt", "body='gpt'"),
        ("body=gru,adapter=semlang", "needs a body"),
        ("adapter=rvq", "is not pred, lang or semlang"),
    ],
)
def test_policies_that_there_are_not_are_told(argument, text):
    with pytest.raises(InputError, match=text):
        playing(argument)


def test_an_instruction_without_room_is_quoted():
    with pytest.raises(InputError, match="room for 8"):
        PolicyLearner(playing("body=gru", **{"environment.length": "8"}))
