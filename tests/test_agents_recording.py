"""Demonstrations are successes, come back as they were played, and can be replayed."""

import importlib.util
import itertools
import json
import logging

import numpy as np
import pytest

from agents import demonstrate, recording
from agents.demonstrate import Demonstrations, Failed, prepare, seeds
from agents.environments.worlds import world
from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError

pytest.importorskip("minigrid")
with_metaworld = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="needs metaworld"
)
LEVELS = ("babyai:GoToLocal", "babyai:PickupLoc")
TASKS = ("metaworld:reach-v3", "metaworld:button-press-topdown-v3")
FEW = {"episodes": 6, "validation": 2, "test": 1}


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """A folder with demonstrations of two levels, with images."""
    folder = tmp_path_factory.mktemp("data") / "levels"
    prepare(LEVELS, folder, pixels=14, **FEW)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with noisy demonstrations of two tasks of Meta-World."""
    folder = tmp_path_factory.mktemp("data") / "tasks"
    prepare(TASKS, folder, episodes=1, validation=1, test=1, noise=0.1)
    return folder


def read(folder):
    splits = {}
    for split in recording.SPLITS:
        source = ArrayRecord(folder.name, split, folder.parent)
        splits[split] = [source[number] for number in range(len(source))]
    return splits


def check_replayed(folder, **options):
    """Play all recorded actions again: observations and successes are the same."""
    described = recording.describe(folder.name, folder.parent)
    rooms = [world(name, **options) for name in described["tasks"]]
    for episode in itertools.chain(*read(folder).values()):
        recording.check(episode, described, "this one")
        room = rooms[episode["task"]]
        seen = [room.reset(episode["seed"])]
        assert seen[0]["instruction"] == episode["instruction"]
        for action in episode["actions"]:
            assert not room.success
            outcome = room.step(action)
            seen.append(room.arrived)
        assert room.success and outcome.finished.score == 1.0
        for name in described["observations"]:
            np.testing.assert_array_equal(
                episode[name], np.stack([step[name] for step in seen])
            )
    return described


def test_recorded_levels_succeed_when_they_are_replayed(levels):
    described = check_replayed(levels, pixels=14)
    assert described["world"] == "babyai" and described["tasks"] == [*LEVELS]
    assert described["versions"] == {"minigrid": "3.2.0"}
    assert described["observations"] == {"grid": [7, 7, 3], "image": [14, 14, 3]}
    assert described["action"]["names"][3] == "pick up"
    recording.check_versions(described)
    splits = read(levels)
    every = [len(e["actions"]) for e in itertools.chain(*splits.values())]
    steps = sum(len(episode["actions"]) for episode in splits["train"])
    assert described["longest"] == max(every)
    assert described["counts"] == {"episodes": 12, "steps": steps, "failed": 0}
    assert described["statistics"] == {}
    assert splits["train"][0]["actions"].dtype == np.int64


@with_metaworld
def test_recorded_tasks_succeed_when_they_are_replayed(tasks):
    described = check_replayed(tasks)
    assert described["versions"].keys() == {"metaworld", "mujoco"}
    assert described["observations"] == {"state": [39]}
    train = read(tasks)["train"]
    actions = np.concatenate([episode["actions"] for episode in train])
    states = np.concatenate([episode["state"] for episode in train]).astype(np.float64)
    assert actions.dtype == np.float32 and abs(actions).max() == 1.0
    action = described["action"]
    assert action["size"] == 4 and action["box"] == [-1.0, 1.0]
    # The quantile by its definition: linear between the values in order.
    ordered = np.sort(actions.astype(np.float64), 0)
    for key, share in (("low", 0.01), ("high", 0.99)):
        at = share * (len(ordered) - 1)
        below = ordered[int(at)]
        wanted = below + (at % 1) * (ordered[int(at) + 1] - below)
        np.testing.assert_allclose(action[key], wanted, atol=1e-12)
    found = described["statistics"]["state"]
    np.testing.assert_allclose(found["mean"], states.mean(0), atol=1e-9)
    np.testing.assert_allclose(found["std"], states.std(0), atol=1e-7)
    assert found["std"][11] == 0  # an object that the task lacks


@with_metaworld
def test_noise_is_part_of_what_is_recorded():
    room = world("metaworld:reach-v3")
    plain = demonstrate.demonstrate(room, 5)["actions"]
    noisy = demonstrate.demonstrate(room, 5, noise=0.3)["actions"]
    again = demonstrate.demonstrate(room, 5, noise=0.3)["actions"]
    np.testing.assert_array_equal(noisy, again)
    first = noisy[0] - plain[0]
    assert 0.01 < abs(first).max() < 2 and abs(noisy).max() <= 1


def test_tasks_take_turns_and_no_seed_comes_twice(levels):
    splits = read(levels)
    counts = {split: len(episodes) for split, episodes in splits.items()}
    assert counts == {"train": 12, "validation": 4, "test": 2}
    for episodes in splits.values():
        assert [e["task"] for e in episodes] == [0, 1] * (len(episodes) // 2)
    starts = [(e["task"], e["seed"]) for e in itertools.chain(*splits.values())]
    assert len(set(starts)) == len(starts) == 18


def test_seeds_of_splits_are_disjoint_and_leave_room_for_others():
    drawn = {
        (split, task): list(itertools.islice(seeds(7, split, task), 2000))
        for split in range(3)
        for task in range(2)
    }
    assert drawn[0, 0] == list(itertools.islice(seeds(7, 0, 0), 2000))
    assert drawn[0, 0] != list(itertools.islice(seeds(8, 0, 0), 2000))
    for (split, task), found in drawn.items():
        assert len(set(found)) == 2000
        assert 2**22 <= min(found) and max(found) < 2**31
        assert {seed % 3 for seed in found} == {split}
        for (other, _), more in drawn.items():
            assert other == split or not set(found) & set(more)
        assert task == 0 or found != drawn[split, 0]


def test_no_seed_is_drawn_twice(monkeypatch):
    monkeypatch.setattr(demonstrate, "FIRST_SEED", 2**31 - 150)
    drawn = list(itertools.islice(seeds(0, 1, 0), 45))  # of the 49 that there are
    assert len(set(drawn)) == 45


def test_the_same_settings_record_the_same_and_others_are_refused(levels, tmp_path):
    manifest = (levels / "manifest.json").read_text()
    again = prepare(LEVELS, levels, pixels=14, **FEW)
    assert "is there already: 12 episodes" in again and "episodes/s" not in again
    assert (levels / "manifest.json").read_text() == manifest
    written = prepare(LEVELS, tmp_path / "levels", pixels=14, **FEW)
    assert "written: 12 episodes" in written and "failed in 0 of 18" in written
    assert (tmp_path / "levels" / "manifest.json").read_text() == manifest
    for change in ({"episodes": 7}, {"seed": 1}, {"pixels": 0}):
        with pytest.raises(InputError, match=f"prepared with {[*change][0]}"):
            prepare(LEVELS, levels, **{"pixels": 14, **FEW, **change})
    with pytest.raises(InputError, match="prepared with env"):
        prepare(LEVELS[:1], levels, pixels=14, **FEW)


def test_failures_are_dropped_and_counted(tmp_path, monkeypatch):
    """Every third time the bot gives up, and every seventh it does nothing."""
    bot, calls = demonstrate.expert, itertools.count()

    def expert(room):
        number = next(calls)

        def give_up(observation):
            raise Failed

        if number % 3 == 0:
            return give_up
        return (lambda observation: 6) if number % 7 == 0 else bot(room)

    monkeypatch.setattr(demonstrate, "expert", expert)
    summary = prepare(LEVELS[:1], tmp_path / "few", episodes=10, validation=1, test=1)
    monkeypatch.undo()
    described = check_replayed(tmp_path / "few")
    # 0 3 6 7 9 12 14 15 of the first 18 calls are failures, then 18.
    assert described["counts"]["episodes"] == 10 and described["counts"]["failed"] == 8
    assert described["failed"] == {"train": 8, "validation": 1, "test": 0}
    assert "failed in 9 of 21" in summary


def test_an_expert_that_never_succeeds_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(demonstrate, "expert", lambda room: lambda observation: 6)
    monkeypatch.setattr(demonstrate, "_PATIENCE", 5)
    with pytest.raises(InputError, match="GoToLocalS5N2 failed 5 times in a row"):
        prepare(["babyai:GoToLocalS5N2"], tmp_path / "none", **FEW)
    assert not [*tmp_path.iterdir()]


def test_a_bot_that_does_not_know_what_to_do_has_failed(monkeypatch):
    from minigrid.utils import baby_ai_bot

    def stuck(bot):
        raise AssertionError("0 nonzero directions")

    monkeypatch.setattr(baby_ai_bot.BabyAIBot, "replan", stuck)
    assert demonstrate.demonstrate(world("babyai:GoToLocal"), 1) is None


def test_demonstrations_of_a_name():
    found = demonstrate.demonstrations("babyai:GoToLocal", 3, iter([9, 8, 7]))
    assert len(found) == 3 and isinstance(found, Demonstrations)
    assert [episode["seed"] for episode in found] == [9, 8, 7] and found.failed == 0


CONTINUOUS = {
    "world": "test",
    "tasks": ["test:a", "test:b"],
    "settings": {},
    "versions": {"numpy": "1.0"},
    "observations": {"state": (3,)},
    "action": {"size": 2, "box": [-1.0, 1.0]},
}
NUMBERED = {
    **CONTINUOUS,
    "observations": {"grid": (7, 7, 3)},
    "action": {"names": ["left", "right"]},
}


def episode(**changes):
    rng = np.random.default_rng(changes.get("seed", 0))
    return {
        "instruction": "go there",
        "task": 0,
        "seed": 1,
        "actions": rng.uniform(-1, 1, (4, 2)).astype(np.float32),
        "state": rng.normal(size=(5, 3)).astype(np.float32),
    } | changes


def numbered(**changes):
    rows = {
        "instruction": "go there",
        "task": 0,
        "seed": 1,
        "actions": np.array([0, 1, 1]),
        "grid": np.zeros((4, 7, 7, 3), np.uint8),
    }
    return rows | changes


def write(folder, splits, provenance=CONTINUOUS):
    recording.write(folder, splits, source="a test", **provenance)


def test_what_is_written_comes_back(tmp_path):
    train = [episode(seed=n, task=n % 2) for n in range(3)]
    write(tmp_path / "a", {"train": train, "test": [episode(seed=9)]})
    source = ArrayRecord("a", "train", tmp_path)
    assert source.targets["task"]["names"] == ["test:a", "test:b"]
    for number, wanted in enumerate(train):
        found = source[number]
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)
            assert np.asarray(found[name]).dtype == np.asarray(value).dtype
    described = recording.describe("a", tmp_path)
    assert described["counts"] == {"episodes": 3, "steps": 12, "failed": 0}
    write(tmp_path / "b", {"train": [numbered()]}, NUMBERED)
    found = ArrayRecord("b", "train", tmp_path)[0]["actions"]
    assert found.tolist() == [0, 1, 1] and found.dtype == np.int64


def nan(array):
    spoilt = array.copy()
    spoilt.flat[0] = np.nan
    return spoilt


GOOD = episode()
BAD = {
    "NaN action": (episode(actions=nan(GOOD["actions"])), "not finite"),
    "NaN state": (episode(state=nan(GOOD["state"])), "state has a number"),
    "out of the box": (episode(actions=GOOD["actions"] * 9), "outside the box"),
    "width": (episode(actions=GOOD["actions"][:, :1]), r"not float32\[4, 2\]"),
    "float64": (episode(actions=GOOD["actions"].astype(float)), "float64"),
    "states": (episode(state=GOOD["state"][1:]), r"not float32\[5, 3\]"),
    "no action": (
        episode(actions=GOOD["actions"][:0], state=GOOD["state"][:1]),
        "has no action",
    ),
    "task": (episode(task=2), "no task 2, only 0 .. 1"),
    "bool task": (episode(task=True), "no task"),
    "seed": (episode() | {"seed": 1.5}, "seed is 1.5"),
    "silent": (episode(instruction="  "), "no instruction"),
    "bytes": (episode(instruction=b"go"), "no instruction"),
    "another field": (episode(reward=1.0), "reward"),
    "lacking": ({k: v for k, v in GOOD.items() if k != "state"}, "has the fields"),
    "numbered": (numbered(actions=np.array([0, 2, 1])), "outside 0 .. 1"),
    "negative": (numbered(actions=np.array([0, -1, 1])), "outside 0 .. 1"),
    "int32": (numbered(actions=np.array([0, 1, 1], np.int32)), "not int64"),
    "grid": (numbered(grid=np.zeros((4, 7, 7, 3))), "not uint8"),
    "single": (
        numbered(actions=np.int64(0), grid=np.zeros((2, 7, 7, 3), np.uint8)),
        r"int64\[\], not int64\[1\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_episodes_are_refused_and_nothing_is_left(case, tmp_path):
    bad, message = BAD[case]
    provenance, good = (
        (NUMBERED, numbered(seed=0)) if "grid" in bad else (CONTINUOUS, episode(seed=0))
    )
    with pytest.raises(InputError, match="train 1") as refused:
        write(tmp_path / "a", {"train": [good, bad]}, provenance)
    refused.match(message)
    assert not [*tmp_path.iterdir()]


def test_a_seed_that_comes_twice_is_refused(tmp_path):
    splits = {"train": [episode(), episode(task=1)], "test": [episode()]}
    with pytest.raises(InputError, match="test 0: task 0 has two episodes from seed 1"):
        write(tmp_path / "a", splits)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": ["a", "a"]}, "tasks"),
        ({"versions": {"numpy": 1}}, "versions"),
        ({"versions": {}}, "versions"),
        ({"observations": {}}, "state, grid, image"),
        ({"observations": {"picture": (3,)}}, "state, grid, image"),
        ({"action": {"size": 0, "box": [-1.0, 1.0]}}, "action"),
        ({"action": {"size": 2, "box": [1.0, 1.0]}}, "action"),
        ({"action": {"size": 2, "box": [-1.0, float("nan")]}}, "action"),
        ({"action": {"names": []}}, "action"),
    ],
)
def test_worlds_that_make_no_sense_are_refused(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a", {"train": [episode()]}, {**CONTINUOUS, **change})


def test_train_is_needed(tmp_path):
    with pytest.raises(InputError, match="no split is called train"):
        write(tmp_path / "a", {"test": [episode()]})
    with pytest.raises(InputError, match="no examples for the split train"):
        write(tmp_path / "a", {"train": []})
    assert not [*tmp_path.iterdir()]


def test_what_is_absent_is_told_how_to_make(tmp_path):
    with pytest.raises(InputError, match="agents.prepare --env WORLD:TASK --name a"):
        recording.describe("a", tmp_path)
    about = {"version": "1", "targets": {}, "source": "a test", "licence": "ours"}
    records.write(tmp_path / "b", {"train": [{"label": 1}]}, **about)
    with pytest.raises(InputError, match="holds no demonstrations, but other data"):
        recording.describe("b", tmp_path)


@pytest.mark.parametrize(
    "path, value",
    [
        ("longest", 0),
        ("longest", "9"),
        ("counts", {"episodes": 1}),
        ("failed", None),
        ("tasks", ["x", "y"]),
        ("versions", ["numpy"]),
        ("action", {"size": 2, "box": [-1, 1], "low": [0], "high": [1, 1]}),
        ("action", {"size": 2, "box": [-1, 1], "low": [0, "1"], "high": [1, 1]}),
        ("observations", {"state": ["3"]}),
    ],
)
def test_a_damaged_manifest_is_refused(path, value, tmp_path):
    write(tmp_path / "a", {"train": [episode()]})
    file = tmp_path / "a" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["provenance"][path] = value
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="is damaged: "):
        recording.describe("a", tmp_path)


def test_another_version_of_the_world_is_refused(caplog):
    numpy = np.__version__
    recording.check_versions({"versions": {"numpy": numpy}})
    with pytest.raises(InputError, match=f"numpy 1.0, but {numpy} is installed"):
        recording.check_versions({"versions": {"numpy": "1.0"}})
    with pytest.raises(InputError, match="pip install no-such-world==2.0"):
        recording.check_versions({"versions": {"no-such-world": "2.0"}})
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        recording.check_versions({"versions": {"numpy": numpy, "flax": "0.1"}})
    assert "flax 0.1" in caplog.text


@pytest.mark.parametrize(
    "names, options, message",
    [
        ([], {}, "no world to record"),
        (["babyai:GoToLokal"], {}, "did you mean 'GoToLocal'"),
        (["babyai:GoToLocal", "metaworld:reach-v3"], {}, "are not one world"),
        (["babyai:GoToLocal"] * 2, {}, "is given twice"),
        (LEVELS, {"episodes": 0}, "number of episodes for train is 0"),
        (LEVELS, {"test": -1}, "number of episodes for test is -1"),
        (LEVELS, {"noise": 0.1}, "numbered actions"),
        (LEVELS, {"noise": float("nan")}, "noise is nan"),
        (LEVELS, {"seed": -1}, "seed is -1"),
        (LEVELS, {"pixels": 5000}, "5000 pixels"),
    ],
)
def test_what_cannot_be_recorded_is_refused(names, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        prepare(names, tmp_path / "a", **{**FEW, **options})
    assert not [*tmp_path.iterdir()]
