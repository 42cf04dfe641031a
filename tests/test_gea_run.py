"""One policy for several domains: both stages, by the configs that users type."""

import contextlib
import re

import jax
import numpy as np
import pytest
from conftest import see_devices
from test_agents_weights import gguf_file, put
from test_lowering import exported

from agents import demonstrate, domains, recording, report, video
from agents.data import Frames
from polyview.config.file import load_config
from polyview.config.text import to_json
from polyview.errors import InputError
from polyview.rl.learner import PolicyLearner
from polyview.runs.evaluating import Asked, evaluate
from polyview.runs.load import load
from polyview.training.train import train
from polyview.training.trainer import Trainer

pytest.importorskip("minigrid")


def record(folder, name, size, rng):
    """Write 24 episodes of actions of some numbers in a world that does not exist."""
    episodes = [
        {
            "instruction": "reach",
            "task": 0,
            "seed": seed,
            "state": rng.normal(size=(6, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (5, size)).astype(np.float32),
        }
        for seed in range(24)
    ]
    recording.write(
        folder / name,
        {"train": episodes[:22], "validation": episodes[22:]},
        world="mine",
        tasks=[f"mine:{name}"],
        settings={},
        versions={"numpy": np.__version__},
        observations={"state": [3]},
        action={"size": size, "box": [-1, 1]},
        source="a test",
    )


@pytest.fixture(scope="module", autouse=True)
def shelf(tmp_path_factory):
    """A data folder with a tiny language model and demonstrations of three domains."""
    folder = tmp_path_factory.mktemp("shelf")
    put(gguf_file(tmp_path_factory.mktemp("model") / "tiny.gguf"), "tiny", folder)
    counts = {"episodes": 12, "validation": 2, "test": 2, "seed": 0}
    demonstrate.prepare(
        ["babyai:GoToObj"], folder / "goto", pixels=0, noise=0.0, **counts
    )
    for size in (2, 3):
        record(folder, f"reach{size}", size, np.random.default_rng(size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        see_devices(patch, 1)  # several share two cores, and wait for each other
        with kept_programs(tmp_path_factory.mktemp("programs")):
            yield folder


@contextlib.contextmanager
def kept_programs(folder):
    """Compile each program once, though several runs have it."""
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(scope="module")
def codes(shelf, tmp_path_factory):
    """The run of a tokenizer of actions of 2 and 3 numbers."""
    folder = tmp_path_factory.mktemp("codes") / "run"
    config = load_config(
        "configs/agents_tokenizer.py:data=reach2+reach3,codes=8,width=8,steps=2",
        {"batch_size": "8", "views.views.m": "8"},
    )
    assert len(config.model.low) == 3
    assert config.model.low[2] == recording.describe("reach3")["action"]["low"][2]
    train(Trainer(config), folder)
    return folder


DATA = "data=goto+reach2,weights=2+1,model=tiny,room=60"
SMALL = {"log_every": "1", "checkpoint_every": "1"}


def supervised(codes, argument="", **overrides):
    text = f"{DATA},body=scratch,observations=,tokenizer={codes},steps=4,batch_size=8"
    small = {
        "model.body.layers": "1",
        "model.body.width": "16",
        "model.body.heads": "2",
    }
    small |= {"model.body.kv_heads": "2", "model.body.hidden": "16"}
    return load_config(
        f"configs/gea_supervised.py:{text},episodes=2,{argument}",
        {**SMALL, **small, **overrides},
    )


@pytest.fixture(scope="module")
def begun(codes, tmp_path_factory):
    """A run of the first stage."""
    folder = tmp_path_factory.mktemp("supervised") / "run"
    train(Trainer(supervised(codes)), folder)
    return folder


def arrays_of(run):
    return {name: np.asarray(array) for name, array in load(run).arrays.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class Stopped(Exception):
    pass


def interrupted(learner, folder, after, monkeypatch):
    """Train, and stop as if killed before a step."""
    take, count = learner.take, iter(range(after))

    def stop(*arguments):
        if next(count, None) is None:
            raise Stopped
        return take(*arguments)

    monkeypatch.setattr(learner, "take", stop)
    with pytest.raises(Stopped):
        train(learner, folder)


def test_an_interrupted_mixture_ends_with_the_same_bits(
    codes, begun, tmp_path, monkeypatch
):
    interrupted(Trainer(supervised(codes)), tmp_path / "run", 3, monkeypatch)
    train(Trainer(supervised(codes)), tmp_path / "run")
    same(arrays_of(begun), arrays_of(tmp_path / "run"))


def online(begun, argument="", **overrides):
    small = {"rollout": "4", "steps": "2", "minibatches": "1", "passes": "1"}
    config = load_config(
        f"configs/gea_online.py:start={begun},play=goto,rows=8,{argument}",
        {**SMALL, **small, **overrides},
    )
    with config.unlocked():  # the other worlds do not exist
        config.evaluations = {"goto": config.evaluations.goto}
    return config


def test_the_second_stage_plays_on_and_is_resumed_exactly(begun, tmp_path, monkeypatch):
    argument = "privileged=grid"  # which actions see too; worlds of images have others
    learner = PolicyLearner(online(begun, argument))
    train(learner, tmp_path / "whole")
    before, after = arrays_of(begun), arrays_of(tmp_path / "whole")
    moved = [
        name
        for name in after
        if name not in before or not np.array_equal(before[name], after[name])
    ]
    assert any(name.startswith("bridges.values_goto_grid") for name in moved)
    # What is played has learnt, and by cloning what is not.
    for part in ("bridges.grid", "policies.goto.critic", "adapters.codes.coded"):
        assert any(name.startswith(part) for name in moved), part
    assert not [name for name in moved if name.startswith("adapters.codes.tokenizer")]
    made = [PolicyLearner(online(begun, argument)) for _ in range(2)]
    interrupted(made[0], tmp_path / "run", 1, monkeypatch)
    train(made[1], tmp_path / "run")
    same(after, arrays_of(tmp_path / "run"))
    evaluate(tmp_path / "run", None, Asked(references=True))
    film = tmp_path / "film.gif"
    video.main(
        ["--run", str(tmp_path / "run"), "--output", str(film), "--episodes", "1"]
        + ["--world", "babyai:GoToObj"]
    )
    page = tmp_path / "page.html"
    (tmp_path / "run" / "films").mkdir()
    film.rename(tmp_path / "run" / "films" / "goto.gif")
    report.main(["--run", str(tmp_path / "run"), "--output", str(page)])
    assert "data:image/gif" in page.read_text()
    with pytest.raises(InputError, match="has no success in worlds"):
        report.main(["--run", str(begun), "--output", str(page)])


def test_a_difference_is_paired_by_episode():
    def numbers(won, seed=0):
        about = {"worlds": ["w"], "episodes": len(won), "split": "test", "seed": seed}
        return {"protocol": about, "worlds": {"w": {"successes": won}}}

    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.5
    after = before.copy()
    after[np.flatnonzero(~before)[:40]] = True  # 40 more are won, and none is lost
    gain, low, high = report.difference(numbers([*before]), numbers([*after]))
    assert gain == pytest.approx(0.1)
    # A binomial of 400 with probability .1; unpaired, the interval were .07 each side.
    assert high - low == pytest.approx(2 * 1.96 * (0.1 * 0.9 / 400) ** 0.5, rel=0.15)
    assert report.difference(numbers([*before]), numbers([*after], seed=1)) is None


def test_the_second_stage_can_do_without_what_it_compares(begun):
    alone = online(begun, "clone=0.0")
    assert "beside" not in alone and alone.objective.weight == 0
    assert alone.init.to_dict() == {"": {"from": str(begun), "path": ""}}
    fresh = online(begun, "scratch=True,popart=False")
    assert [*fresh.init] == ["adapters.codes.tokenizer"]
    assert fresh.model.domains.goto.critic.rate == 0


def test_domains_that_do_not_fit_are_refused(begun, codes, shelf, tmp_path):
    with pytest.raises(InputError, match="two domains with one name, goto"):
        domains.named("goto+goto")
    with pytest.raises(InputError, match="'a-b' is no name of a domain"):
        domains.named("a-b")
    with pytest.raises(InputError, match="give 3 numbers joined by +"):
        domains.weights("1+2", ["a", "b", "c"])
    with pytest.raises(InputError, match="weights of the mixture are all 0"):
        Trainer(supervised(codes, "weights=0+0"))
    with pytest.raises(InputError, match="needs tokenizer=RUN"):
        load_config(f"configs/gea_supervised.py:{DATA},observations=,body=scratch")
    record(shelf, "reach4", 4, np.random.default_rng(4))
    with pytest.raises(InputError, match="actions of 4 numbers, and the tokenizer"):
        supervised(codes, "data=reach4,weights=")
    with pytest.raises(InputError, match="play=gotoo; did you mean 'goto'"):
        online(begun, "play=gotoo")
    with pytest.raises(InputError, match="is no run of configs/gea_supervised.py"):
        online(codes)
    with pytest.raises(InputError, match="rows=0; give 1 or more"):
        load_config(f"configs/gea_online.py:start={begun},play=goto,rows=0")
    with pytest.raises(InputError, match="two domains with one name, reach2"):
        load_config("configs/agents_tokenizer.py:data=reach2+reach2")


def test_an_encoder_of_frames_is_seen_by_all_domains(shelf, tmp_path, monkeypatch):
    shapes = {"image": [5, 5, 3]}
    monkeypatch.setattr(recording, "describe", lambda name: {"observations": shapes})
    config = load_config("configs/gea_frames.py:data=goto,pixels=32")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "config.json").write_text(to_json(config))
    run = str(tmp_path / "frames")
    found = {
        seeing: domains.seen(["a", "b"], "image", run, seeing, 24)
        for seeing in domains.SEEING
    }
    for seeing, (bridges, by_domain, init) in found.items():
        assert by_domain == {"a": {"image": "image"}, "b": {"image": "image"}}
        assert bridges["image"]["size"] == 24
        assert bridges["image"]["tower"]["frozen"] == seeing.endswith("frozen")
        assert bool(init) == (not seeing.startswith("random"))
    assert found["frozen"][2]["bridges.image.tower.encoder"]["from"] == run
    with pytest.raises(InputError, match="seeing='frosen'; did you mean 'frozen'"):
        domains.seen(["a"], "image", run, "frosen", 24)


def test_frames_of_a_sample_are_near_in_time():
    def whole(frame, rng, m):
        return frame[None]

    frames = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)
    views, seen = Frames(64, whole, within=2), set()
    for seed in range(200):
        shown = views({"image": frames}, np.random.default_rng(seed))["views"]["image"]
        assert shown.shape == (64, 1, 1, 1)
        times = sorted(set(shown.ravel().tolist()))
        assert times[-1] - times[0] <= 4
        seen.add(tuple(times))
    # Every moment is drawn, and at the ends fewer frames are near.
    middles = {(t - 2, t - 1, t, t + 1, t + 2) for t in range(2, 7)}
    assert seen >= middles | {(0, 1, 2), (0, 1, 2, 3), (6, 7, 8), (5, 6, 7, 8)}


def test_prompts_that_differ_by_blanks_alone_are_refused(monkeypatch):
    same_kind = domains.prompts({"a": "babyai", "b": "babyai"})
    assert same_kind["a"] == same_kind["b"]
    blank = dict(
        domains.PROMPTS, mine=("a player in a  grid", *domains.PROMPTS["babyai"][1:])
    )
    monkeypatch.setattr(domains, "PROMPTS", blank)
    with pytest.raises(InputError, match="prompts of a and b differ by blanks alone"):
        domains.prompts({"a": "babyai", "b": "mine"})


def test_a_body_of_1_7_billion_weights_lowers_for_256_devices(codes, monkeypatch):
    sizes = {"layers": 24, "width": 2048, "heads": 32, "kv_heads": 32, "hidden": 8192}
    wide = {f"model.body.{name}": str(size) for name, size in sizes.items()}
    wide |= {"model.body.dtype": "bfloat16", "model.body.vocabulary": "49152"}
    config = supervised(codes, batch_size="1024", **wide)
    with config.unlocked():
        config.source.sources = {
            name: {"target": "test_gea_run:Many", "source": source}
            for name, source in config.source.sources.items()
        }
    program = exported(config, monkeypatch, 8, 32)
    text = program.mlir_module()
    assert program.nr_devices == 256
    split = re.search(
        r'tensor<24x2048x8192x[a-z0-9]+> {sdy.sharding = [^>]*{"fsdp"}', text
    )
    assert split, "the weights of the body are not split"
    # The rows of a domain are split over all devices again.
    assert re.search(r'sdy.sharding_constraint [^\n]*\[\{"data", "fsdp"\}', text)
    assert jax.devices()


class Many:
    """A source as if it had a thousand times the rows."""

    def __init__(self, source):
        self.source = source
        self.targets, self.digest = source.targets, source.digest

    def __len__(self):
        return 1000 * len(self.source)

    def __getitem__(self, index):
        return self.source[index % len(self.source)]
