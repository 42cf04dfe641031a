"""A config is checked before anything runs, and answers a mistake with what to do."""

import os

import ml_collections
import pytest

from polyview.config.file import load_config
from polyview.config.schema import changed_keys
from polyview.config.spec import build
from polyview.config.text import from_json, to_json
from polyview.config.trust import allow_list
from polyview.errors import InputError
from polyview.training.trainer import Trainer

OPTIMIZER = "polyview.training.optimizer"


def test_build_calls_targets_and_leaves_partials_to_be_called():
    spec = {
        "call": {
            "target": f"{OPTIMIZER}:linear",
            "batch_size": 512,
            "base": 0.3,
        },
        "later": [{"partial": f"{OPTIMIZER}:linear", "base": 0.3}],
        "plain": {"a": 1},
    }
    built = build(ml_collections.ConfigDict(spec))
    assert built["call"] == pytest.approx(0.6)
    assert built["later"][0](256) == pytest.approx(0.3)
    assert built["plain"] == {"a": 1}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"target": "polyview.training.optimizer:liner"}, "did you mean 'linear'"),
        ({"target": "polyview.optimiser:linear"}, "No module named"),
        ({"target": OPTIMIZER}, "package.module:Name"),
        (
            {"partial": f"{OPTIMIZER}:linear", "bas": 1},
            "did you mean 'base'",
        ),
        (
            {"target": f"{OPTIMIZER}:linear"},
            "missing a required argument",
        ),
        ({"target": "a:b", "partial": "a:b"}, "keep one"),
    ],
)
def test_build_names_the_mistake(spec, words):
    with pytest.raises(InputError, match=words):
        build(spec)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:run",
        "polyview.config.file:load_config",
        "polyview.data.sources.array_record:importlib",
        "polyview.data.prepare.fashion_mnist:_run",
        "polyview.evaluation.frozen:write_result",
        "polyview.nn.resnet:_conv",
    ],
)
def test_nothing_outside_the_trusted_packages_is_built_for_a_stranger(name):
    with pytest.raises(InputError):
        build({"target": name}, trusted=allow_list())


def test_a_trusted_module_does_not_lend_what_it_imported():
    # `Path` is callable and visible there, but not defined there.
    name = "polyview.data.sources.array_record:Path"
    with pytest.raises(InputError, match="not defined in a trusted module"):
        build({"target": name}, trusted=allow_list())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"stepz": "3"}, "did you mean 'steps'"),
        ({"optimizer.weight_decoy": "3"}, "did you mean 'weight_decay'"),
        ({"steps": "many"}, "expected int"),
        ({"steps": "3.5"}, "expected int"),
        ({"optimizer": "3"}, "is a group of keys"),
        ({"mesh.data.x": "3"}, "no key 'x'"),
    ],
)
def test_an_override_names_the_mistake(digits, overrides, words):
    with pytest.raises(InputError, match=words):
        load_config("configs/polyview_digits.py", overrides)


def test_what_any_run_may_have_is_known_where_the_file_does_not_name_it():
    flags = {"microbatch": "8", "init_from": "runs/a"}
    config = load_config("configs/polyview_digits.py", flags)
    assert (config.microbatch, config.init_from) == (8, "runs/a")
    assert "accumulate" not in config
    with pytest.raises(InputError, match="did you mean 'microbatch'"):
        load_config("configs/polyview_digits.py", {"microbach": "8"})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"steps": -1}, "must be 1 or more"),
        ({"batch_size": 0}, "must be 1 or more"),
        ({"seed": 2**32}, "4294967295 or less"),
        ({"steps": 10**11}, "must be 2147483647 or less"),
        (
            {"objective.loss.temperature": 0.0},
            "objective.loss.temperature=0.0: .*more than 0",
        ),
        ({"optimizer.warm_up": 1.5}, "1.0 or less"),
        ({"optimizer.learning_rate.base": -1.0}, "must be 0.0 or more"),
        ({"views.m": -3}, "must be 1 or more"),
        ({"views.augment.size": -4}, "must be 1 or more"),
        ({"views.augment.scale": (2.0, 1.0)}, "1.0 or less"),
        ({"keep": 1}, "must be 2 or more"),
        ({"epochs": 3}, "one of steps and epochs"),
        ({"seed": -1}, "must be 0 or more"),
        ({"microbatch": 0}, "must be 1 or more"),
        ({"accumulate": 0.5}, "expected an integer"),
    ],
)
def test_a_value_out_of_range_is_named(digits, overrides, words):
    config = digits()
    with config.unlocked():  # not every config has every key
        config.update_from_flattened_dict(overrides)
    with pytest.raises(InputError, match=words):
        Trainer(config).trace()


def test_a_number_keeps_its_kind(digits):
    config = digits(**{"optimizer.weight_decay": "1", "epochs": "2", "steps": "None"})
    assert config.optimizer.weight_decay == 1.0
    assert isinstance(config.optimizer.weight_decay, float)
    assert (config.epochs, config.steps) == (2, None)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("view=4", "did you mean 'views'"),
        ("views", "write key=value"),
        ("views=four", "expected int"),
        ("views=0", "2 or more"),
        ("batch=fxed", "did you mean 'fixed'"),
    ],
)
def test_a_config_argument_names_the_mistake(digits, argument, words):
    with pytest.raises(InputError, match=words):
        digits(argument)


def test_json_round_trip_is_the_same_config(digits):
    config = digits()
    again = from_json(to_json(config))
    assert changed_keys(config, again) == []
    assert to_json(again) == to_json(config)


def test_difference_names_what_must_not_change_and_forgives_what_may(digits):
    free = digits(log_every=7, checkpoint_every=9, workers=1, **{"mesh.fsdp": 2})
    free.microbatch = 32
    free.model.towers.image.encoder.remat = "blocks"
    assert changed_keys(digits(), free) == []
    other = digits(steps=5, **{"optimizer.warm_up": 0.5})
    assert changed_keys(digits(), other) == [
        "optimizer.warm_up: 0.1 -> 0.5",
        "steps: 4 -> 5",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "configs/polyview_digit.py"], "did you mean"),
        (["--config", "configs/polyview_digits.py", "--config.stepz=3"], "'steps'"),
        (["--config", "configs/polyview_digits.py", "--confg.steps=3"], "unknown"),
        (["--config", "configs/polyview_digits.py:views=1"], "m >= 2"),
        (["--config", "configs/polyview_digits.py", "--processes=two"], "--help"),
        (["--config", "configs/polyview_digits.py", "--config.mesh.fsdp=3"], "devices"),
    ],
)
def test_the_command_line_ends_with_status_2_and_writes_nothing(
    command, tmp_path, arguments, words
):
    process = command("main", *arguments, "--workdir", tmp_path / "run")
    lines = [line for line in process.output.splitlines() if line]
    assert process.returncode == 2, process.output
    assert words in process.output
    assert len(lines) <= 2, process.output
    assert not os.path.exists(tmp_path / "run")


def test_help_ends_with_status_0(command):
    process = command("main", "--help")
    assert process.returncode == 0
    assert "--workdir" in process.output
