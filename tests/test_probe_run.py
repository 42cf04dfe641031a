"""A classifier is trained on another run's encoder; a probe never changes it."""

import contextlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from test_weights import vit, written

from polyview.config.file import load_config
from polyview.config.text import dotted, to_json
from polyview.errors import InputError
from polyview.runs import checkpoint
from polyview.runs.checksum import flatten
from polyview.runs.load import load
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


def classifier(name, donor, **overrides):
    """The config of a probe or fine-tuning of a run, for 60 steps."""
    few = {"steps": 60, "epochs": None, "log_every": 60, "evaluate_every": 60}
    few |= {"optimizer.learning_rate.base": 20.0} | overrides
    text = f"{ROOT}/configs/{name}.py:run={donor},batch_size=64"
    return load_config(text, {key: str(value) for key, value in few.items()})


def encoder_of(run, step=None):
    loaded = load(run, step)
    return {
        name: np.asarray(array)
        for name, array in loaded.arrays.items()
        if ".encoder." in name
    }


def test_a_probe_keeps_the_encoder_and_learns_the_classes(digits, tmp_path):
    train(Trainer(digits("views=2")), tmp_path / "donor")
    # A kill before the first checkpoint leaves this directory; it is not a checkpoint.
    (tmp_path / "probe" / "checkpoints").mkdir(parents=True)
    train(Trainer(classifier("probe", tmp_path / "donor")), tmp_path / "probe")
    before, after = encoder_of(tmp_path / "donor"), encoder_of(tmp_path / "probe")
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    trained = checkpoint.flatten(load(tmp_path / "probe").parts.params)
    assert set(trained) == {
        "towers.image.projector.linear.kernel",
        "towers.image.projector.linear.bias",
    }
    assert top1(tmp_path / "probe") > 0.2  # chance is 0.1


def top1(run):
    result = json.loads((run / "eval" / "60-accuracy.json").read_text())
    assert result["protocol"]["test"]["rows"] == 360
    return result["classifier"]["top1"]


@pytest.mark.slow
def test_a_probe_has_equal_accuracy_on_one_and_eight_devices(command, tmp_path):
    options = ["--config.batch_size=64", "--config.evaluate_every=0"]
    donor = ["--config", "configs/polyview_digits.py", *options, "--config.steps=30"]
    assert command("main", *donor, "--workdir", tmp_path / "donor").returncode == 0
    config = f"configs/probe.py:run={tmp_path / 'donor'},batch_size=64,epochs=3"
    accuracy = {}
    for devices in (1, 8):
        run = tmp_path / str(devices)
        words = ["--config", config, "--config.optimizer.learning_rate.base=20.0"]
        probe = command("main", *words, "--workdir", run, devices=devices)
        assert probe.returncode == 0, probe.output
        (result,) = (run / "eval").glob("*.json")
        accuracy[devices] = json.loads(result.read_text())["classifier"]
    assert accuracy[1] == accuracy[8]
    assert accuracy[1]["top1"] > 0.5  # chance is 0.1


def test_fine_tuning_starts_from_the_encoder_and_trains_it(digits, tmp_path):
    donor = digits("views=2")
    donor.model.towers.image.encoder.update(stages=(1, 1), widths=(4, 8))
    train(Trainer(donor), tmp_path / "donor")
    config = classifier("finetune", tmp_path / "donor")
    config.optimizer.learning_rate.base = 0.8
    train(Trainer(config), tmp_path / "tuned")
    kernel = "towers.image.encoder.conv.kernel"
    start, end = (
        encoder_of(tmp_path / run)[kernel].ravel() for run in ("donor", "tuned")
    )
    assert np.abs(end - start).max() > 1e-3
    assert np.corrcoef(start, end)[0, 1] > 0.5, "an unrelated start gives about 0"
    assert top1(tmp_path / "tuned") > 0.3  # with a width of 4, in four epochs


def test_only_trusted_image_runs_are_accepted(digits, tmp_path):
    def refused(why, data=""):
        text = f"{ROOT}/configs/probe.py:run={tmp_path},data={data}"
        with pytest.raises(InputError, match=why):
            load_config(text)

    with pytest.raises(InputError, match="configs/x.py:run=DIR"):
        load_config(f"{ROOT}/configs/probe.py")
    refused("is not a run: config.json")
    path = tmp_path / "config.json"
    path.write_text('{"views": {}, "model": {"towers": {}}}')
    refused("is not a run on image views")
    config = digits("views=2")
    path.write_text(to_json(config))
    refused("no data set 'absent'", data="absent")
    evil = {"target": "os:system", "command": f"touch {tmp_path / 'ran'}"}
    whole = dotted(config.to_dict())
    for key in (
        "model.towers.image.encoder.width",
        "model.towers.image.mean",
        "model.towers.image.std",
        "source.split",
        "views.augment.size",
        "workers",
        "evaluations.frozen.batch_size",
        "evaluations.frozen.test.split",
        "evaluations.frozen.views.m",
    ):
        assert key in whole
        tampered = json.loads(to_json(config))
        *parents, last = key.split(".")
        node = tampered
        for name in parents:
            node = node[name]
        node[last] = evil
        path.write_text(json.dumps(tampered))
        refused("not trusted in a checkpoint")
        node[last] = "a word"
        path.write_text(json.dumps(tampered))
        with contextlib.suppress(InputError):  # may also fail only when built
            load_config(f"{ROOT}/configs/probe.py:run={tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_a_different_encoder_is_refused_by_name(digits, tmp_path):
    train(Trainer(digits("views=2")), tmp_path / "donor")
    config = classifier("probe", tmp_path / "donor")
    config.model.towers.image.encoder.widths = (8,)
    with pytest.raises(InputError, match=r"kernel of .* has shape \(3, 3, 4, 4\), but"):
        train(Trainer(config), tmp_path / "probe")


@pytest.mark.parametrize("name", ["probe", "finetune"])
def test_images_of_another_size_get_resized_positions(name, digits, tmp_path):
    """Learned positions alone differ; sizes that do not belong together are refused."""
    donor = written(vit(digits("views=2")), tmp_path / "donor")
    keys = ["views.augment.size", "evaluations.accuracy.views.augment.size"]
    larger = {"model.towers.image.encoder.image": 12} | dict.fromkeys(keys, 12)
    trainer = Trainer(classifier(name, donor, **larger))
    trainer.check(tmp_path / "new")
    assert "positions 2 x 2 -> 3 x 3, bicubic" in str(trainer.laid_over)
    before = encoder_of(donor)
    after = {n: a for p in trainer.laid_over.parts for n, a in flatten(p).items()}
    position = "towers.image.encoder.position"
    assert before.pop(position).shape == (1, 5, 16)
    assert after.pop(position).shape == (1, 10, 16)
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array, err_msg=path)
    del larger["views.augment.size"]
    with pytest.raises(InputError, match=r"images are \(8, 8\), not 12 a side"):
        Trainer(classifier(name, donor, **larger)).check(tmp_path / "new")


def test_an_encoder_is_loaded_and_applied_in_three_lines(digits, tmp_path):
    train(Trainer(digits("views=2")), tmp_path / "run")
    run = load(tmp_path / "run")
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    h, _ = run.module.towers["image"].encoder(images, train=False)
    assert h.shape == (3, run.module.towers["image"].encoder.features)
