"""A config is checked before anything runs; an error says how to correct it."""

import ast
import os
import sys
import textwrap
from pathlib import Path

import ml_collections
import pytest

from polyview import cli, errors, main
from polyview.config import trust
from polyview.config.file import load_config
from polyview.config.schema import changed_keys, check_config
from polyview.config.spec import build
from polyview.config.text import from_json, to_json
from polyview.config.trust import allow_list
from polyview.errors import InputError, check_range
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
OPTIMIZER = "polyview.training.optimizer"


def test_build_calls_targets_and_returns_partials_uncalled():
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
def test_an_untrusted_config_builds_only_trusted_targets(name):
    with pytest.raises(InputError):
        build({"target": name}, trusted=allow_list())


def test_names_imported_by_a_trusted_module_are_not_trusted():
    # The module imports `Path` but does not define it.
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


def test_optional_keys_can_be_set_if_the_file_omits_them():
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


def test_an_overridden_number_keeps_its_type(digits):
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


def test_changed_keys_lists_only_keys_that_must_not_change(digits):
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
def test_a_bad_command_line_exits_with_status_2_and_writes_nothing(
    command, tmp_path, arguments, words
):
    process = command("main", *arguments, "--workdir", tmp_path / "run")
    lines = [line for line in process.output.splitlines() if line]
    assert process.returncode == 2, process.output
    assert words in process.output
    assert len(lines) <= 2, process.output
    assert not os.path.exists(tmp_path / "run")


def test_help_exits_with_status_0(command):
    process = command("main", "--help")
    assert process.returncode == 0
    assert "--workdir" in process.output


def test_an_override_changes_only_one_of_several_shared_parts(tmp_path):
    """Configs share pieces between places; an override changes only its own place."""
    split = {"source.split": "train[:10%]"}
    config = load_config("configs/polyview_cifar10.py", split)
    assert config.source.split == "train[:10%]"
    assert config.evaluations.frozen.train.split == "train"
    path = written(
        tmp_path / "shared.py",
        """
        import ml_collections

        def get_config(argument):
            tower = {"encoder": {"inputs": 3, "layers": [{"width": 4}]}}
            config = ml_collections.ConfigDict({"width": 8, "towers": {}})
            config.towers.update({"first": tower, "second": tower})
            config.hidden = config.get_ref("width")
            return config
        """,
    )
    config = load_config(path, {"towers.second.encoder.inputs": "7", "width": "16"})
    assert config.towers.second.encoder.inputs == 7
    assert config.towers.first.encoder.inputs == 3
    assert config.hidden == config.width == 16, "the reference was not updated"


def written(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_keys_that_may_change_are_matched_by_full_path(digits):
    free, held = digits(), digits()
    free.model.towers.image.encoder.remat = "blocks"
    free.objective.loss.negatives.exchange = "ring"
    assert changed_keys(digits(), free) == []
    with held.unlocked():
        held.objective.keep = 3
        held.model.remat = "blocks"
        held.source.workers = 5
    assert changed_keys(digits(), held) == [
        "model.remat: 'absent' -> 'blocks'",
        "objective.keep: 'absent' -> 3",
        "source.workers: 'absent' -> 5",
    ]


def adapter(rank: int, scale: float, keep: int = 0):
    """A user's own component, with its own ranges."""
    check_range(1, rank=rank)
    return rank, scale, keep


def test_a_number_is_checked_by_the_component_that_takes_it(digits):
    config = digits()
    with config.unlocked():
        config.lora = {"target": f"{__name__}:adapter", "rank": 4, "scale": 2.0}
        config.lora.keep = 1
    check_config(config)
    assert build(config.lora) == (4, 2.0, 1)
    config.lora.rank = 0
    with pytest.raises(InputError, match="model.lora.rank=0: it must be 1 or more"):
        build(config.lora, where="model.lora")


@pytest.fixture
def siblings(tmp_path, monkeypatch):
    """`siblings(name, trusted=None)` makes a package beside `polyview`; importing it
    leaves the file `imported`."""
    monkeypatch.setattr(trust, "__file__", str(tmp_path / "polyview/config/trust.py"))
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, trusted: str | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        written(
            folder / "__init__.py",
            f"""
            from pathlib import Path

            Path({str(tmp_path / "imported")!r}).touch()

            def made():
                return "made"
            """,
        )
        if trusted is not None:
            (folder / "trusted.txt").write_text(trusted)
        return folder

    yield make
    trust._listed.cache_clear()


def test_a_package_lists_the_names_that_checkpoints_may_call(siblings, tmp_path):
    siblings("sibling_listed", "# these\nsibling_listed:made  # in a line\n")
    assert trust.allow_list() == {"sibling_listed:made"}
    assert not (tmp_path / "imported").exists(), "the package was imported"
    assert build({"target": "sibling_listed:made"}, trust.allow_list()) == "made"


def test_a_package_without_a_list_is_refused_before_its_import(siblings, tmp_path):
    siblings("sibling_bare")
    with pytest.raises(InputError, match="run again with --trust sibling_bare"):
        build({"target": "sibling_bare:made"}, trust.allow_list())
    assert not (tmp_path / "imported").exists()
    allowed = trust.allow_list(("sibling_bare",))
    assert build({"target": "sibling_bare:made"}, allowed) == "made"


def test_a_package_cannot_trust_names_of_another(siblings):
    siblings("sibling_other", "os:system\nsubprocess\nsibling_others:made\n")
    assert trust.allow_list() == frozenset()


def test_the_new_name_of_a_moved_target_must_be_trusted(siblings, tmp_path):
    siblings("sibling_moved", "sibling_moved:old -> os:system\n")
    with pytest.raises(InputError, match="not trusted in a checkpoint"):
        build({"target": "sibling_moved:old"}, trust.allow_list())
    assert not (tmp_path / "imported").exists()


def test_a_run_folder_is_not_a_package(siblings):
    folder = siblings("sibling_run", "sibling_run:made\n")
    (folder / "checkpoints").mkdir()
    assert trust.allow_list() == frozenset()


OLD_NAMES = [
    (f"polyview.{old}", f"polyview.{new}")
    for old, new in [
        ("optimizer:adamw", "training.optimizer:adamw"),
        ("objectives.polyview:geometric", "objectives.contrastive:geometric"),
        ("data.source:ArrayRecord", "data.sources.array_record:ArrayRecord"),
        ("evaluation.protocol:Protocol", "evaluation.frozen:FrozenFeatures"),
    ]
]


def test_a_mistyped_target_lists_what_a_config_can_name():
    """The public functions and classes of the module: no helper, no import."""
    text = (ROOT / "polyview" / "objectives" / "contrastive.py").read_text()
    kinds = ast.FunctionDef | ast.ClassDef
    names = {node.name for node in ast.parse(text).body if isinstance(node, kinds)}
    with pytest.raises(InputError, match="has no 'zzzz'; available: ") as caught:
        build({"partial": "polyview.objectives.contrastive:zzzz"})
    listed = str(caught.value).partition("available: ")[2].split(", ")
    assert listed == sorted(name for name in names if name[0] != "_")
    with pytest.raises(InputError, match="did you mean 'WeightedKnn'"):
        build({"partial": "polyview.evaluation.knn:Weighted_Knn"})


@pytest.mark.parametrize(("old", "new"), OLD_NAMES)
def test_old_names_are_resolved_only_for_checkpoints(old, new):
    trusted = allow_list()
    found = trust.import_target(old, trusted, "config")
    assert found is trust.import_target(new, trusted, "config")
    with pytest.raises(InputError, match=f"{old!r} is now {new!r}; change it"):
        build({"partial": old})


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("from polyview import recipes", "polyview.recipes is polyview.config.parts"),
        ("import polyview.recipes", "polyview.recipes is polyview.config.parts"),
        (
            "from polyview.data.source import ArrayRecord",
            "polyview.data.source is polyview.data.sources",
        ),
        (
            "from polyview import config as configs; configs.arguments('')",
            "polyview.config.arguments is polyview.config.overrides.parse_arguments",
        ),
        (
            "from polyview import config as configs; configs.load('x.py')",
            "polyview.config.load is polyview.config.file.load_config",
        ),
        (
            "from polyview.config import arguments",
            "polyview.config.arguments is polyview.config.overrides.parse_arguments",
        ),
        (
            "from polyview.config import parts; parts.evaluation()",
            "polyview.config.parts.evaluation is polyview.config.parts.frozen",
        ),
    ],
)
def test_a_config_file_of_version_0_1_is_told_the_new_names(tmp_path, line, new):
    path = written(tmp_path / "old.py", f"def get_config(argument):\n    {line}\n")
    with pytest.raises(InputError) as error:
        load_config(path)
    assert f"; {new.replace(' is ', ' is now ')} (docs/" in str(error.value)
    assert "old.py:2" in str(error.value)


CLOSENESS = """
    from polyview.config.file import load_config

    def loss(z):
        return z @ z  # [b, m, d] with itself

    def get_config(argument):
        path = {path!r}
        config = load_config(path, {{"batch_size": "8", "steps": "2"}}).to_dict()
        config["objective"]["loss"] = {{"partial": "closeness_of_a_user:loss"}}
        config["objective"]["bound"] = None
        return config
"""


def test_an_error_in_user_code_names_its_file_and_line(
    data_dir, tmp_path, monkeypatch, capsys
):
    """The config's own folder is importable from any working directory."""
    path = f"{ROOT}/configs/polyview_digits.py:views=2"
    config = written(tmp_path / "closeness_of_a_user.py", CLOSENESS.format(path=path))
    monkeypatch.setenv("POLYVIEW_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["main", "--config", config, "--workdir", "run"]
    for more in ([], ["--traceback"]):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as end:
            errors.run(main.main)
        printed = capsys.readouterr().err
        assert end.value.code == 2
        (line,) = [x for x in printed.splitlines() if x.startswith("error: ")]
        assert "closeness_of_a_user.py:5" in line, line
        assert ("Traceback" in printed and "return z @ z" in printed) == bool(more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[1, 2]", "must return a dict"),
        ("{'rate': __import__('numpy').float32(1)}", "JSON cannot hold"),
    ],
)
def test_an_invalid_return_value_of_get_config_is_an_error(tmp_path, value, words):
    file = tmp_path / "own.py"
    file.write_text(f"def get_config(argument):\n    return {value}\n")
    with pytest.raises(InputError, match=f"own.py.*{words}"):
        load_config(str(file))


def test_help_lists_the_traceback_flag(capsys):
    with pytest.raises(SystemExit):
        cli.Parser(prog="x").parse_args(["--help"])
    assert "--traceback" in capsys.readouterr().out
