"""Every config of the project, in every variant, builds and traces a step."""

from pathlib import Path

import jax
import numpy as np
import pytest
from golden import VARIANTS
from ml_collections import ConfigDict

from polyview.config import parts
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.config.text import dotted
from polyview.config.trust import allow_list
from polyview.data.prepare import brats, emoji, han, openi
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import class_task
from polyview.errors import InputError
from polyview.evaluation.base import specs_of
from polyview.training.trainer import Trainer
from sgi import recording
from sgi.learner import check

ROOT = Path(__file__).parent.parent


def test_the_imagenet_config_accepts_another_data_set():
    config = load_config("configs/polyview_imagenet.py:data=mine")
    mine = [
        config.source,
        config.evaluations.frozen.train,
        config.evaluations.frozen.test,
    ]
    assert [(s.name, s.split) for s in mine] == [
        ("mine", "train"),
        ("mine", "train"),
        ("mine", "test"),
    ]


def test_a_data_set_is_read_in_its_own_format(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))
    (tmp_path / "mine" / "1.0.0").mkdir(parents=True)
    (tmp_path / "mine" / "1.0.0" / "dataset_info.json").touch()
    assert parts.prepared("mine", "test")["target"].endswith(":Tfds")
    (tmp_path / "mine" / "manifest.json").touch()
    assert parts.prepared("mine", "test")["target"].endswith(":ArrayRecord")
    assert parts.prepared("none", "test")["target"].endswith(":ArrayRecord")


def photographs(name: str = "", split: str = "") -> InMemory:
    """Sixteen images in place of a data set that tests cannot download."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (16, 50, 60, 3), np.uint8)
    labels = random.integers(0, 10, 16)
    target = {"kind": "class", "classes": 10, "names": [str(i) for i in range(10)]}
    return InMemory({"image": images, "label": labels}, targets={"label": target})


def reports(name: str = "", split: str = "") -> InMemory:
    """Sixteen studies, some without an indication."""
    random = np.random.default_rng(0)
    lengths = {label.lower(): n for label, n in openi.SECTIONS.items()}
    lengths |= {"mesh": openi.MESH_WORDS, "descriptors": openi.DESCRIPTORS}
    views = {
        view: list(random.integers(0, 9, (16, length)).astype(np.int32))
        for view, length in lengths.items()
    }
    views["indication"][3] = None
    views["image"] = list(random.integers(0, 256, (16, 140, 150, 3), np.uint8))
    views["image"][5] = None
    labels = random.integers(0, 2, (16, len(openi.LABELS))).astype(np.uint8)
    target = {"kind": "multi-label", "names": openi.LABELS}
    return InMemory(views | {"labels": labels}, targets={"labels": target})


def drawings(name: str = "", split: str = "") -> InMemory:
    """Sixteen concepts."""
    random = np.random.default_rng(0)
    columns = {
        vendor: random.integers(0, 256, (16, 64, 64, 3), np.uint8)
        for vendor in ("noto", "twemoji", "openmoji", "fluent")
    }
    columns["text"] = random.integers(0, 9, (16, emoji.LENGTH)).astype(np.int32)
    columns |= {level: random.integers(0, 9, 16) for level in ("group", "subgroup")}
    target = {"kind": "class", "classes": 9}
    targets = {"group": target, "subgroup": target}
    return InMemory(columns, targets=targets)


def scans(name: str = "", split: str = "") -> InMemory:
    """Sixteen slices."""
    random = np.random.default_rng(0)
    columns = {
        sequence: random.normal(size=(16, 96, 96, 1)).astype(np.float16)
        for sequence in brats.SEQUENCES
    }
    columns["mask"] = random.integers(0, 4, (16, 96, 96)).astype(np.uint8)
    return InMemory(columns, targets=brats.TARGETS)


def glyphs(name: str = "", split: str = "") -> InMemory:
    """Sixteen characters, each drawn by every font."""
    random = np.random.default_rng(0)
    columns = {
        font: random.integers(0, 256, (16, 64, 64, 1), np.uint8)
        for font in {*han.ALL_FONTS, *han.TRAIN_FONTS}
    }
    columns |= {"label": np.arange(16), "attributes": np.ones((16, 206), np.uint8)}
    columns |= {"boxes": np.zeros((16, 2, 4)), "parts": np.zeros((16, 2), int)}
    targets = {
        "boxes": {"kind": "boxes"},
        "parts": {"kind": "parts"},
        "label": class_task([str(i) for i in range(1712)]),
        "attributes": {"kind": "multi-label", "names": [str(i) for i in range(206)]},
    }
    return InMemory(columns, targets=targets)


STAND_INS = {
    "openi": "reports",
    "emoji": "drawings",
    "mri_phantom": "scans",
    "han": "glyphs",
    "han_fonts": "glyphs",
}


def with_stand_in(spec):
    """A spec in which sources of prepared data are stand-ins, also inside others."""
    if not isinstance(spec, (dict, ConfigDict)):
        return spec
    made = {key: with_stand_in(part) for key, part in spec.items()}
    if made.get("target") in (
        "polyview.data.sources.tfds:Tfds",
        "polyview.data.sources.array_record:ArrayRecord",
    ):
        made["target"] = f"test_configs:{STAND_INS.get(spec['name'], 'photographs')}"
        made.pop("data_dir", None)
    return made


@pytest.fixture(scope="module", autouse=True)
def play(tmp_path_factory):
    """Recordings under the names used by the SGI configs."""
    step = {"frame": np.zeros((84, 84), np.uint8), "action": 0, "reward": 0.0}
    steps = [recording.Step(**step, terminal=t == 99, first=t == 0) for t in range(100)]
    folder = tmp_path_factory.mktemp("play")
    for game in ("pong", "seaquest", "boxing"):
        recording.write(
            folder / f"{game}_random",
            steps,
            len(steps),
            source="",
            licence="",
            provenance={"game": game, "actions": ["NOOP", "FIRE", "RIGHT"]},
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        yield


def test_every_config_is_in_this_list():
    names = {p.stem for p in (ROOT / "configs").glob("*.py")}
    # sgi.finetune reads the first; test_probe_run, test_config_folder,
    # test_dvf_evaluation, test_dvf_atari, test_agents_run, test_rl_run,
    # test_feedback_distil, test_feedback_shaping, test_feedback_asking and
    # test_gea_run test the rest.
    others = {"sgi_finetune", "probe", "finetune", "polyview_folder"}
    others |= {"dvf_pointmaze", "dvf_policy", "dvf_atari"}
    others |= {"agents_policy", "agents_tokenizer", "agents_babyai"}
    others |= {"agents_rearrange", "agents_rearrange_clone", "ppo_cartpole"}
    others |= {"rewards_distil", "rewards_ppo", "rewards_tuning"}
    others |= {"gea_supervised", "gea_online", "gea_frames"}
    assert names == {*VARIANTS, *others}


def test_the_sgi_configs_have_the_official_numbers(monkeypatch):
    pytest.importorskip("ale_py")
    description = {"policy": "DQN", "actions": ["NOOP"] * 6}
    monkeypatch.setattr(recording, "describe", lambda name: description)
    path = f"{ROOT}/configs/sgi_pretrain.py"
    made = dotted(load_config(f"{path}:game=pong,mix=M").to_dict())
    expected = {
        "epochs": 20,
        "batch_size": 256,
        "source.name": "pong_m",
        "views.jumps": 5,
        "views.goal": (2, 49),
        "model.hidden": 512,
        "model.sigma": 0.0,
        "model.encoder.blocks": 3,
        "model.encoder.expand": 2,
        "model.encoder.widths": (32, 64, 64),
        "target_decay": 0.99,
        "objective.spr": 1.0,
        "objective.goal": 1.0,
        "objective.inverse": 1.0,
        "objective.jumps": 5,
        "objective.discount": 0.99,
        "objective.goal_noise": 0.5,
        "objective.goal_permutation": 0.2,
        "objective.distance_scale": 5.0,
        "objective.reward_scale": 10.0,
        "optimizer.learning_rate.base": 1e-4,
        "optimizer.epsilon": 1.5e-4,
        "optimizer.clip": 10.0,
    }
    assert {key: made[key] for key in expected} == expected
    assert load_config(f"{path}:game=pong,mix=ML,size=L").epochs == 10
    path = f"{ROOT}/configs/sgi_finetune.py"
    made = dotted(load_config(f"{path}:game=pong").to_dict())
    expected = {
        "steps": 100_000,
        "random_steps": 2000,
        "updates_per_step": 2,
        "batch_size": 32,
        "n_step": 10,
        "discount": 0.99,
        "priority.alpha": 0.5,
        "priority.beta": (0.4, 1.0),
        "model.sigma": 0.5,
        "target_decay": 0.99,
        "objective.spr": 5.0,
        "objective.jumps": 5,
        "optimizer.encoder": 1e-6,
        "optimizer.first": 3e-5,
        "optimizer.rest": 1e-4,
        "optimizer.clip": None,
        "optimizer.epsilon": 1.5e-4,
        "evaluation.episodes": 100,
        "evaluation.epsilon": 0.001,
        "evaluation.cap": 27_000,
    }
    assert {key: made[key] for key in expected} == expected
    scratch = load_config(f"{path}:game=pong,start=scratch").optimizer
    assert (scratch.encoder, scratch.first, scratch.rest) == (1e-4,) * 3
    assert scratch.clip == 10.0


def test_random_play_is_refused_as_a_mix_of_agents(monkeypatch):
    description = {"policy": "random", "actions": ["NOOP"]}
    monkeypatch.setattr(recording, "describe", lambda name: description)
    with pytest.raises(InputError, match="pong_w is random play; mix=W"):
        load_config(f"{ROOT}/configs/sgi_pretrain.py:game=pong,mix=W")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ms_pacman_random", "--game ms_pacman$"),
        ("pong_probe", "--game pong --steps 20000 --seed 1 --name pong_probe"),
        ("pong_m", "--agent.* or import .*--import"),
    ],
)
def test_a_missing_recording_gives_the_command_to_make_it(name, advice, tmp_path):
    with pytest.raises(InputError, match=advice):
        recording.describe(name, tmp_path)


@pytest.mark.parametrize("size", ["tiny", "S", "M", "L"])
@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_the_fine_tuning_config_builds(size, start):
    pytest.importorskip("ale_py")
    text = f"{ROOT}/configs/sgi_finetune.py:game=pong,size={size},start={start}"
    flags = {"init_from": "runs/a"} if start == "pretrained" else {}
    config = load_config(text, flags)
    check(config)
    for part in ("model", "objective", "optimizer", "evaluation"):
        build(config[part], trusted=allow_list(), where=part)
    config.init_from = None if start == "pretrained" else "runs/a"
    with pytest.raises(InputError, match="init_from"):
        check(config)


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n, variants in VARIANTS.items() for a in variants]
)
def test_a_config_builds_and_traces_a_step(name, argument):
    config = load_config(f"{ROOT}/configs/{name}.py:{argument}")
    config.source = with_stand_in(config.source)
    config.workers = 0
    config.batch_size = 8
    if name.endswith(("_digits", "_fashion_mnist")):
        tower = config.model.towers.image
        tower.encoder.in_channels = 3
    for name, part in specs_of(config).items():
        config.evaluations[name] = ConfigDict(with_stand_in(part))
        build(config.evaluations[name], where="evaluations")
    run = Trainer(config)
    with jax.set_mesh(run.mesh):
        shapes = run.trace()
    assert shapes["index"].shape == (8,)


@pytest.mark.parametrize("name", [*VARIANTS, "probe", "finetune"])
def test_a_config_documents_how_to_run_it(name):
    text = (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]
    assert f"--config configs/{name}.py" in text
    assert "python -m polyview.main" in text


def test_a_misspelt_field_is_reported_as_missing_in_all_rows():
    path = f"{ROOT}/configs/crossmodal_openi.py"
    config = load_config(f"{path}:method=supervised,views=findings+impression")
    config.source = with_stand_in(config.source)
    config.evaluations = None
    config.batch_size = 8
    run = Trainer(config)
    with jax.set_mesh(run.mesh):
        run.trace()
        assert not run.absent
        config.views.fields.findings = ("fndings",)
        run = Trainer(config)
        run.shapes = run.trace()
    report = run.banner(run.shape, 0)["missing"]
    assert "findings: a view in no row of the first batch" in report
