"""A probe through the trainer reads another run's encoder and never changes it."""

import json

import jax
import numpy as np
import pytest

from polyview import checkpoint, restore, train
from polyview.errors import InputError


def probe_config(digits, donor):
    config = digits("views=2", steps=60, batch_size=64, log_every=60)
    config.views.m = 1
    config.init_from = str(donor)
    tower = config.model.towers.image
    tower.frozen = True
    tower.projector = {"partial": "polyview.nn.heads:Linear", "out": 10}
    config.objective = {"target": "polyview.objectives.supervised:Classification"}
    config.optimizer.learning_rate.base = 1.0
    config.evaluate_every = 60
    config.evaluation = {
        "target": "polyview.evaluation.accuracy:Accuracy",
        "test": dict(config.source) | {"split": "test"},
        "views": config.evaluation.views,
    }
    return config


def encoder_of(run):
    loaded = restore.load(run)
    arrays = checkpoint.flatten(
        {"params": loaded.params, "statistics": loaded.statistics}
    )
    return {
        name.partition(".")[2]: np.asarray(array)
        for name, array in arrays.items()
        if ".encoder." in name
    }


def test_a_probe_keeps_the_encoder_and_learns_the_classes(digits, tmp_path):
    train.run(digits("views=2"), tmp_path / "donor")
    # What a kill before the first checkpoint leaves: it must not pass for a start.
    (tmp_path / "probe" / "checkpoints").mkdir(parents=True)
    train.run(probe_config(digits, tmp_path / "donor"), tmp_path / "probe")
    before, after = encoder_of(tmp_path / "donor"), encoder_of(tmp_path / "probe")
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    trained = checkpoint.flatten(restore.load(tmp_path / "probe").params)
    assert set(trained) == {
        "towers.image.projector.linear.kernel",
        "towers.image.projector.linear.bias",
    }
    result = json.loads((tmp_path / "probe" / "eval" / "60.json").read_text())
    assert result["protocol"]["test"]["rows"] == 360
    assert result["classifier"]["top1"] > 0.2  # chance is 0.1


def test_another_encoder_is_refused_by_name(digits, tmp_path):
    train.run(digits("views=2"), tmp_path / "donor")
    config = probe_config(digits, tmp_path / "donor")
    config.model.towers.image.encoder.width = 8
    with pytest.raises(InputError, match="does not fit this config"):
        train.run(config, tmp_path / "probe")


def test_three_lines_give_the_encoder(digits, tmp_path):
    train.run(digits("views=2"), tmp_path / "run")
    run = restore.load(tmp_path / "run")
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    h, _ = run.module.towers["image"].encoder(images, train=False)
    assert h.shape == (3, run.module.towers["image"].encoder.features)
