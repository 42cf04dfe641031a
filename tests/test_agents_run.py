"""Policies from demonstrations to films, by the commands that users type."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from test_agents_weights import gguf_file, put

from agents import demonstrate, parts, prepare, recording, video
from agents.environments.worlds import world
from polyview.config.file import load_config
from polyview.errors import InputError
from polyview.runs.checksum import flatten
from polyview.runs.evaluating import Asked, evaluate
from polyview.runs.importing import import_weights
from polyview.runs.load import encoder_of, load, untrained_model
from polyview.training.train import train
from polyview.training.trainer import Trainer

pytest.importorskip("minigrid")


@pytest.fixture(scope="module", autouse=True)
def shelf(tmp_path_factory):
    """A data folder with a tiny language model and demonstrations of two levels."""
    folder = tmp_path_factory.mktemp("shelf")
    put(gguf_file(tmp_path_factory.mktemp("model") / "tiny.gguf"), "tiny", folder)
    levels = ["babyai:GoToRedBall", "babyai:GoToObj"]
    counts = {"episodes": 12, "validation": 2, "test": 2, "seed": 0}
    demonstrate.prepare(levels, folder / "levels", pixels=0, noise=0.0, **counts)
    rng = np.random.default_rng(0)
    episodes = [
        {
            "instruction": "reach",
            "task": 0,
            "seed": seed,
            "state": rng.normal(size=(6, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (5, 2)).astype(np.float32),
        }
        for seed in range(24)
    ]
    recording.write(
        folder / "reach",
        {"train": episodes},
        world="mine",
        tasks=["mine:reach"],
        settings={},
        versions={"numpy": np.__version__},
        observations={"state": [3]},
        action={"size": 2, "box": [-1, 1]},
        source="a test",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        yield folder


SMALL = {
    "model.bridges.grid.hidden": "8",
    "views.draws": "2",
    "evaluations.success.limit": "4",
    "checkpoint_every": "2",
}


def config_of(argument="adapter=semlang", **overrides):
    first = "data=levels,model=tiny,layers=1,rank=2,steps=4,batch_size=8,episodes=2"
    first += ",length=64"
    path = f"configs/agents_policy.py:{first},{argument}"
    return load_config(path, {**SMALL, **overrides})


@pytest.fixture(scope="module")
def run(shelf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "semlang"
    train(Trainer(config_of()), folder)
    return folder


def state_of(run):
    return {name: np.asarray(array) for name, array in load(run).arrays.items()}


def test_an_interrupted_run_ends_with_the_same_bits(run, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    taken = Trainer.take

    def stopping(self, state, inputs):
        if int(inputs[0]) == 3:
            raise Stopped
        return taken(self, state, inputs)

    monkeypatch.setattr(Trainer, "take", stopping)
    with pytest.raises(Stopped):
        train(Trainer(config_of()), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setenv("POLYVIEW_DATA", str(run.parents[1] / "none"))
    with pytest.raises(InputError, match="python -m agents.prepare"):
        config_of()
    monkeypatch.undo()
    train(Trainer(config_of()), tmp_path / "run")
    ended, whole = state_of(tmp_path / "run"), state_of(run)
    assert ended.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(ended[name], array, err_msg=name)


def test_a_policy_acts_in_its_worlds_and_is_filmed(run, tmp_path, capsys):
    evaluate(run, None, Asked())
    printed = capsys.readouterr().out
    assert "of 4 episodes" in printed and "success-" not in printed
    output = tmp_path / "film.gif"
    level = "babyai:GoToObj"
    what = ["--run", str(run), "--output", str(output), "--episodes", "1"]
    video.main([*what, "--world", level])
    assert f"{level}, " in capsys.readouterr().out
    with Image.open(output) as film:
        film.seek(film.n_frames - 1)  # it can be read to its end
        assert film.size == world(level).render().shape[1::-1]
    for wrong, message in [
        (["--episodes", "0"], "1 to 1000"),
        (["--seed", "-1"], "give 0"),
        (["--output", str(tmp_path / "film.mp4")], "end in .gif"),
        (["--output", str(tmp_path / "x.gif"), "--world", "moon"], "moon"),
    ]:
        with pytest.raises(InputError, match=message):
            video.main([*what, *wrong])


def test_a_tokenizer_comes_from_its_run_and_stays_as_it_was(tmp_path):
    sizes = {"model.width": "8", "batch_size": "8", "views.m": "4"}
    made = load_config("configs/agents_tokenizer.py:data=reach,codes=4,steps=2", sizes)
    donor = tmp_path / "tokenizer"
    made.evaluations = None
    train(Trainer(made), donor)
    argument = f"data=reach,adapter=rvq,tokenizer={donor},body=scratch"
    small = {"model.bridges.state.hidden": "8", "evaluations": "None"}
    config = load_config(
        f"configs/agents_policy.py:model=tiny,steps=2,batch_size=8,length=64,{argument}",
        {**small, "views.draws": "2"},
    )
    run = tmp_path / "run"
    train(Trainer(config), run)
    theirs, ours = state_of(donor), state_of(run)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[f"adapter.tokenizer.{name}"], array)
    shutil.rmtree(donor)  # the run stands alone
    actions = np.zeros((1, 2), np.float32)
    assert load(run).module.adapter.encode(actions).parts.shape == (1, 2)
    (kept,) = (run / "fixed").iterdir()
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load(run)
    with pytest.raises(InputError, match="needs tokenizer=RUN"):
        parts.adapter("vq", "reach", "tiny")
    with pytest.raises(InputError, match="leave tokenizer out"):
        parts.adapter("uniform", "reach", "tiny", "somewhere")


def test_a_policy_sees_by_the_encoder_of_another_run(shelf, tmp_path):
    counts = {"episodes": 8, "validation": 1, "test": 1, "seed": 0}
    seen = shelf / "seen"
    demonstrate.prepare(["babyai:GoToRedBall"], seen, pixels=16, noise=0.0, **counts)
    donor = load_config("configs/polyview_cifar10.py:views=2")
    with donor.unlocked():
        encoder = {"partial": "polyview.nn.resnet:resnet_tiny", "in_channels": 3}
        donor.model.towers.image.encoder = encoder
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    random = untrained_model(donor, whole)
    path = tmp_path / "weights.safetensors"
    theirs = encoder_of(random, "image")
    save_file({name: np.asarray(array) for name, array in theirs.items()}, path)
    import_weights(path, donor, tmp_path / "donor")
    config = load_config(
        "configs/agents_policy.py:data=seen,model=tiny,layers=1,rank=2,steps=1,length=64"
        f",batch_size=8,episodes=1,observations=image,vision={tmp_path / 'donor'}",
        {
            "views.draws": "1",
            "model.bridges.image.hidden": "8",
            "evaluations.success.limit": "2",
        },
    )
    train(Trainer(config), tmp_path / "run")
    found = load(tmp_path / "run")
    at = "bridges.image.tower.encoder"
    for name, array in theirs.items():
        np.testing.assert_array_equal(found.arrays[f"{at}.{name}"], array)
    assert not any(name.startswith(at) for name in flatten(found.parts.params))
    evaluate(tmp_path / "run", None, Asked())
    with pytest.raises(InputError, match="vision=RUN"):
        parts.bridges("seen", "image")
    with pytest.raises(InputError, match="did you mean 'image'"):
        parts.bridges("seen", "imago")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("adapter=uniform", "numbered"),
        ("adapter=semlagn", "did you mean 'semlang'"),
        ("data=reach,adapter=lang", "continuous"),
        ("layers=3", "give 1 to 2"),
        ("rank=100", "rank=100"),
        ("model=", "body=scratch"),
        ("model=huge", "agents.prepare llm"),
        ("data=nowhere", "agents.prepare --env"),
        ("body=big", "neither 'llm' nor 'scratch'"),
        ("adapter=pred,demonstrations=7", "batch_size=8"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_step(argument, message):
    with pytest.raises(InputError, match=message):
        first = "data=levels,model=tiny,layers=1,steps=2,batch_size=8,rank=2"
        Trainer(load_config(f"configs/agents_policy.py:{first},{argument}"))


def test_more_codes_than_different_actions_are_refused():
    assert recording.describe("reach")["action"]["distinct"] == 24 * 5
    load_config("configs/agents_tokenizer.py:data=reach,codes=120")
    with pytest.raises(InputError, match="codes=121.*only 120 different"):
        load_config("configs/agents_tokenizer.py:data=reach,codes=121")


def test_an_instruction_without_room_is_refused():
    with pytest.raises(InputError, match="larger length"):
        trainer = Trainer(config_of("adapter=pred,length=3"))
        with jax.set_mesh(trainer.mesh):
            trainer.trace()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give either"),
        ("llm --env babyai:GoToObj", "give either"),
        ("lllm", "cannot be prepared"),
        ("llm --episodes 3", "only applies with --env"),
        ("llm --name mine", "give --weights too"),
        ("llm --weights x.gguf", "needs --name"),
        ("--env babyai:GoToObj --weights x.gguf", "only applies to llm"),
        ("--env babyai:GoToObj --name a/b", "is a path"),
        ("--env babyai:GoToOjb", "did you mean"),
        ("--env mars:rock", "is no world"),
    ],
)
def test_the_command_line_of_prepare_is_checked(words, message, tmp_path):
    with pytest.raises(InputError, match=message):
        prepare.main([*words.split(), "--data_dir", str(tmp_path)])
    assert not [*tmp_path.iterdir()]


def test_trained_parts_are_those_of_the_paper(run):
    model = load(run)
    trained = {name.split(".")[0] for name in flatten(model.parts.params)}
    # The words of an adapter are those of the body.
    assert trained == {"body", "bridges"}
