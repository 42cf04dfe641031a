"""Rows are single environments, each as if it were alone, and come back exactly."""

import functools
import hashlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agents.environments import rows as world_rows
from agents.environments import worlds
from polyview.errors import InputError, OutOfRange, Stop
from polyview.rl import rows as rl_rows
from polyview.rl.rows import Gymnasium, HostRows, seed_of

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("minigrid")
ROOT = Path(__file__).parent.parent


class Toy:
    """Ends, is cut off and succeeds at random; `fault` says what it does wrong."""

    name = "toy"
    actions = 3
    versions = {"toy": "1.2"}

    def __init__(self, fault="", limit=9, shapes=None):
        self.fault, self.limit = fault, limit
        self.shapes = shapes or {
            "state": ((2,), np.float32),
            "legal": ((3,), bool),
        }
        if fault == "made":
            raise InputError("it cannot be made")

    def reset(self, seed):
        self.seed, self.past = seed, []
        return self.shown()

    def step(self, action):
        assert not self.over, "a step after the end"
        self.past.append(action)
        if self.fault == "raises" and len(self.past) == 3:
            raise ValueError("broken inside")
        shown, draw = self.shown(), self.draw
        reward = float("nan") if self.fault == "nan" else draw[0]
        chance = 1 if self.fault == "never ends" else draw[1]
        ended, cut = chance < 0.15, 0.1 < chance < 0.25  # sometimes both
        self.over = ended or cut
        return shown, reward, ended, cut, draw[2] < 0.5

    def shown(self):
        self.over = False
        rng = np.random.default_rng([self.seed, *self.past])
        if self.fault == "forgets" and len(self.past) == 2:
            rng = np.random.default_rng()
        self.draw = rng.random(5)
        shown = {"state": self.draw[3:].astype(np.float32), "legal": self.draw[:3] > 0}
        if self.fault == "float64":
            shown["state"] = shown["state"].astype(np.float64)
        if self.fault == "shape":
            shown["state"] = shown["state"][:1]
        if self.fault == "field":
            shown["more"] = 0
        return shown

    def fingerprint(self):
        data = pickle.dumps((self.seed, self.past, self.draw.tobytes()))
        return np.frombuffer(hashlib.sha256(data).digest(), np.uint8)


class Letters:
    """A tokenizer of letters."""

    def rows(self, texts, length):
        if len(texts[0]) > length:
            raise InputError(f"{texts[0]!r} has no room")
        numbers = np.zeros((1, length), np.int32)
        numbers[0, : len(texts[0])] = [ord(c) for c in texts[0]]
        return numbers, numbers > 0


KINDS = {
    "toy": Toy,
    "cartpole": functools.partial(Gymnasium, "CartPole-v1"),
    "babyai": functools.partial(
        world_rows.WorldRow, "babyai:GoToRedBallNoDists", text=Letters(), length=30
    ),
}


def fields(step):
    return {**step.observation, **step._asdict(), "observation": None}


def assert_same(found, wanted):
    found, wanted = fields(found), fields(wanted)
    assert found.keys() == wanted.keys()
    for name in found.keys() - {"observation"}:
        assert found[name].dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(found[name], wanted[name], name)


def played(rows, actions):
    """The steps of rows from their beginning."""
    return [rows.begin(), *(rows.step(a) for a in actions)]


def alone(make, seed, row, actions):
    """What a row shows, by a plain loop over one environment: a list of 5-tuples."""
    single, episode, taken = make(), 0, 0
    shown = [(single.reset(seed_of(seed, row, 0)), 0.0, False, False, False)]
    for action in actions:
        if shown[-1][2] or shown[-1][3]:
            episode, taken = episode + 1, 0
            first = single.reset(seed_of(seed, row, episode))
            shown.append((first, 0.0, False, False, False))
            continue
        observation, reward, ended, cut, success = single.step(action)
        taken += 1
        cut = not ended and (cut or taken == single.limit)
        success = success and (ended or cut)
        shown.append((observation, reward, ended, cut, success))
    return shown


@pytest.mark.parametrize("kind, steps", [("toy", 80), ("cartpole", 80), ("babyai", 80)])
def test_rows_are_single_environments(kind, steps, rng):
    make, seed, first = KINDS[kind], 5, 7
    rows = HostRows(make, 3, seed, first=first)
    actions = rng.integers(rows.actions, size=(steps, 3))
    found = played(rows, actions)
    begun = 0
    for row in range(3):
        wanted = alone(make, seed, first + row, actions[:, row].tolist())
        for step, (shown, reward, *ends) in zip(found, wanted, strict=True):
            for name, (shape, dtype) in rows.shapes.items():
                assert step.observation[name].shape == (3, *shape)
                assert step.observation[name].dtype == dtype
                np.testing.assert_array_equal(step.observation[name][row], shown[name])
            assert step.reward[row] == np.float32(reward)
            has = step.terminated[row], step.truncated[row], step.success[row]
            assert list(has) == ends
            begun += has[0] or has[1]
    assert begun >= 2  # episodes ended within


def test_an_action_at_an_end_is_ignored_and_leads_to_the_next_episode(rng):
    actions = rng.integers(3, size=(60, 4))
    one, other = (HostRows(Toy, 4, 0) for _ in range(2))
    step, again = one.begin(), other.begin()
    for action in actions:
        over = step.terminated | step.truncated
        assert_same(again, step)
        step = one.step(action)
        again = other.step(np.where(over, (action + 1) % 3, action))
        assert not step.reward[over].any()
        ends = step.terminated | step.truncated | step.success
        assert not ends[over].any()
        assert not (step.terminated & step.truncated).any()


def test_what_never_ends_is_cut_off_at_its_limit():
    rows = HostRows(functools.partial(Toy, "never ends", limit=4), 2, 0)
    steps = played(rows, np.zeros((10, 2), int))
    cut = [bool(step.truncated.all()) for step in steps]
    assert cut == [False] * 4 + [True] + [False] * 4 + [True, False]
    assert not np.any([step.terminated for step in steps])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_rows_go_on_exactly(kind, rng):
    rows = HostRows(KINDS[kind], 3, 2, first=4)
    length = 3 * rows.limit if rows.limit < 100 else 120
    actions = rng.integers(rows.actions, size=(length, 3))
    moments = {0, 1, *rng.choice(length, 6, replace=False).tolist()}
    ended = [rows.begin()]
    kept = {}
    for number, action in enumerate(actions):
        over = ended[-1].terminated | ended[-1].truncated
        if number in moments or over.any() and len(kept) < 10:
            kept[number] = rows.saved()
        ended.append(rows.step(action))
    shapes = {(k, v.shape, v.dtype) for one in kept.values() for k, v in one.items()}
    assert len(shapes) == 4
    again = HostRows(KINDS[kind], 3, 2, first=4)
    for number, saved in kept.items():
        assert_same(again.restore(saved), ended[number])
        for name, array in again.saved().items():
            np.testing.assert_array_equal(array, saved[name])
        for later in range(number, min(number + 20, length)):
            assert_same(again.step(actions[later]), ended[later + 1])


def test_what_was_saved_and_shown_is_the_callers(rng):
    rows, again = (HostRows(Toy, 2, 0) for _ in range(2))
    actions = rng.integers(3, size=(20, 2))
    wanted = played(again, actions)
    step = rows.begin()
    for number, action in enumerate(actions):
        assert_same(step, wanted[number])
        for array in [*step.observation.values(), *step[1:], *rows.saved().values()]:
            array[...] = 1
        step = rows.step(action)


def test_processes_show_the_same(rng):
    actions = rng.integers(7, size=(70, 3))
    make = functools.partial(world_rows.rows, "babyai:GoToRedBallNoDists", 3, 9)
    texts = {"text": Letters(), "length": 30, "first": 2}
    here, there = make(**texts), make(**texts, processes=2)
    try:
        for name in ("actions", "limit", "shapes", "versions", "name"):
            assert getattr(here, name) == getattr(there, name)
        assert len(there._workers._processes) == 2
        step = here.begin()
        assert_same(there.begin(), step)
        whole = world_rows.rows("babyai:GoToRedBallNoDists", 5, 9).begin()
        grids = whole.observation["grid"]
        np.testing.assert_array_equal(grids[2:], step.observation["grid"])
        for action in actions:
            step = here.step(action)
            assert_same(there.step(action), step)
        saved = there.saved()
        for name, array in here.saved().items():
            assert array.dtype == saved[name].dtype
            np.testing.assert_array_equal(array, saved[name])
        there.begin()
        assert_same(there.restore(saved), step)
    finally:
        there.close()


def test_hosts_share_one_numbering(rng):
    actions = rng.integers(3, size=(40, 8))
    whole = played(HostRows(Toy, 8, 1), actions)
    halves = [
        played(HostRows(Toy, 4, 1, first=f), actions[:, f : f + 4]) for f in (0, 4)
    ]
    for step, *parts in zip(whole, *halves, strict=True):
        for name, array in fields(step).items():
            if name != "observation":
                both = np.concatenate([fields(part)[name] for part in parts])
                np.testing.assert_array_equal(array, both)


def test_no_two_episodes_have_one_seed():
    found = [seed_of(s, r, k) for s in range(3) for r in range(20) for k in range(20)]
    assert len({*found}) == len(found)
    assert {divmod(seed >> 64, 2**32) for seed in found} == {
        (r, k) for r in range(20) for k in range(20)
    }
    counts = np.bincount([seed % 8 for seed in found], minlength=8)
    assert counts.min() > 100  # of 150: a remainder alone is as if drawn
    assert seed_of(3, 2, 1) == seed_of(3, 2, 1) < 2**128
    drawn = np.random.SeedSequence(3, spawn_key=(2, 1)).generate_state(1, np.uint64)
    assert seed_of(3, 2, 1) % 2**64 == drawn[0]


def test_an_error_in_a_process_comes_with_its_place():
    rows = HostRows(functools.partial(Toy, "raises"), 2, 0, processes=1)
    try:
        rows.begin()
        with pytest.raises(ValueError, match="broken inside") as caught:
            for _ in range(30):
                rows.step(np.zeros(2, int))
        assert "test_rl_rows.py" in str(caught.value.__cause__)
        assert "in step" in str(caught.value.__cause__)
        rows.begin()  # it is still there
        (process,) = rows._workers._processes
        os.kill(process.pid, signal.SIGTERM)
        rows.step(np.zeros(2, int))
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(Stop, match="rows 0 to 1 has ended.*-9"):
            rows.step(np.zeros(2, int))
    finally:
        rows.close()
    assert not process.is_alive()
    with pytest.raises(InputError, match="it cannot be made"):
        HostRows(functools.partial(Toy, "made"), 2, 0, processes=1)
    with pytest.raises(InputError, match="cannot be sent to other processes"):
        HostRows(lambda: Toy(), 2, 0, processes=1)


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_processes_end_with_the_one_that_made_them(end):
    code = f"""
import functools, os
from polyview.rl.rows import Gymnasium, HostRows
rows = HostRows(functools.partial(Gymnasium, "CartPole-v1"), 1, 0, processes=1)
rows.begin()
print("begun", flush=True)
{end}
"""
    # Its output ends when the last of them does.
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, timeout=30
    )
    assert done.returncode == (-9 if end else 0)
    assert done.stdout


@pytest.mark.parametrize(
    "fault, message",
    [
        ("nan", "toy, row 4: the reward of action 1 is nan"),
        ("float64", r"toy, row 4: state is float64\[2\], and is said to be float32"),
        ("shape", r"toy, row 4: state is float32\[1\].* float32\[2\]"),
        ("field", "toy, row 4 shows .*'more'.* says that it shows"),
    ],
)
def test_environments_are_held_to_what_they_say(fault, message):
    rows = HostRows(functools.partial(Toy, fault), 2, 0, first=4)
    with pytest.raises(InputError, match=message):
        rows.begin()
        rows.step(np.ones(2, int))


@pytest.mark.parametrize(
    "actions, message",
    [
        ([0, 3], "toy, row 5: there is no action 3, only 0 .. 2"),
        ([-1, 0], "toy, row 4: there is no action -1"),
        ([0.0, 1.0], r"2 rows take integers \[2\], not float64\[2\]"),
        ([0], r"not int64\[1\]"),
    ],
)
def test_actions_that_there_are_not(actions, message):
    rows = HostRows(Toy, 2, 0, first=4)
    first = rows.begin()
    saved = rows.saved()
    with pytest.raises(InputError, match=message):
        rows.step(np.array(actions))
    assert_same(rows.restore(saved), first)
    for name, array in rows.saved().items():  # no row has moved
        np.testing.assert_array_equal(array, saved[name])


def test_another_place_names_the_versions(rng):
    def saved_after(steps, make=Toy, seed=0):
        rows = HostRows(make, 2, seed)
        played(rows, rng.integers(3, size=(steps, 2)))
        return rows, rows.saved()

    rows, saved = saved_after(1)
    for name in ("episode", "fingerprint"):
        array = saved[name].copy()
        array[1] += 1
        with pytest.raises(InputError, match=r"toy, row 1: .*another.*toy 1\.2 here"):
            rows.restore({**saved, name: array})
    with pytest.raises(InputError, match="toy, row 0: .*another state"):
        HostRows(Toy, 2, 1).restore(saved)
    forgets = functools.partial(Toy, "forgets", limit=2)
    rows, saved = saved_after(40, forgets)
    while (saved["steps"] < 2).all():
        rows.step(np.zeros(2, int))
        saved = rows.saved()
    with pytest.raises(InputError, match="more than seed and actions"):
        rows.restore(saved)
    long = functools.partial(Toy, "never ends")
    rows, saved = saved_after(9, long)
    with pytest.raises(InputError, match="another state"):  # these end before
        HostRows(Toy, 2, 0).restore(saved)
    with pytest.raises(InputError, match="10 steps of episode 0"):
        rows.restore({**saved, "steps": saved["steps"] + 1})
    with pytest.raises(InputError, match="is damaged"):
        rows.restore({**saved, "actions": saved["actions"] + 3})
    with pytest.raises(InputError, match="same number of rows"):
        HostRows(Toy, 3, 0).restore(saved)
    del saved["steps"]
    with pytest.raises(InputError, match="were saved as"):
        rows.restore(saved)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"count": 0}, "count=0"),
        ({"seed": -1}, "seed=-1"),
        ({"first": -1}, "first=-1"),
        ({"processes": 3}, "processes=3: it must be 2 or less"),
        ({"make": functools.partial(Toy, limit=0)}, "limit=0"),
    ],
)
def test_numbers_of_rows(wrong, message):
    with pytest.raises(OutOfRange, match=message):
        HostRows(**{"make": Toy, "count": 2, "seed": 0, **wrong})


def test_rows_are_alike_and_begin_first():
    toys = iter([Toy(), Toy(limit=3)])
    with pytest.raises(InputError, match="row 1: its actions, limit"):
        HostRows(lambda: next(toys), 2, 0)
    rows = HostRows(Toy, 2, 0)
    for call in (rows.saved, lambda: rows.step(np.zeros(2, int))):
        with pytest.raises(RuntimeError, match="begin or restore first"):
            call()


class Shown(gymnasium.Env):
    """An environment of gymnasium with any spaces."""

    def __init__(self, space, actions=None, value=None, info=None):
        self.observation_space = space
        self.action_space = actions or gymnasium.spaces.Discrete(2)
        self.value, self.info, self.taken = value, info or {}, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.shown(), {}

    def step(self, action):
        self.taken.append(action)
        return self.shown(), 0.5, True, True, self.info

    def shown(self):
        return self.observation_space.sample() if self.value is None else self.value


gymnasium.register("Shown-v0", Shown)
BOX = functools.partial(gymnasium.spaces.Box, 0, 9)


def shown(space, limit=5, **settings):
    return Gymnasium("Shown-v0", limit=limit, space=space, **settings)


def test_observations_of_gymnasium():
    both = gymnasium.spaces.Dict(
        pose=BOX((2,), np.float64), camera=BOX((4, 4, 3), np.uint8), n=BOX((), np.int64)
    )
    single = shown(both)
    said = {"pose": ((2,), np.float32), "camera": ((4, 4, 3), np.uint8)}
    assert single.shapes == {**said, "n": ((), np.int64)}
    assert single.actions == 2 and single.limit == 5
    rows = HostRows(lambda: shown(both), 2, 0)
    step = rows.begin()
    assert step.observation["pose"].dtype == np.float32
    step = rows.step(np.zeros(2, int))
    assert step.terminated.all() and step.success.all() and not step.truncated.any()
    assert shown(BOX((3,), np.uint8)).shapes == {"state": ((3,), np.float32)}
    assert shown(BOX((3, 3, 1), np.uint8)).shapes == {"image": ((3, 3, 1), np.uint8)}
    floats = functools.partial(
        shown, BOX((3, 3, 1), np.uint8), value=np.zeros((3, 3, 1))
    )
    with pytest.raises(InputError, match=r"Shown-v0, row 0: image is float64.* uint8"):
        HostRows(floats, 2, 0).begin()


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_gymnasium_may_say_what_succeeded(key):
    single = shown(BOX((3,), np.float32), info={key: np.bool_(False)})
    single.reset(0)
    assert single.step(0)[1:] == (0.5, True, True, False)


def test_actions_of_gymnasium_may_begin_elsewhere():
    single = shown(BOX((3,), np.float32), actions=gymnasium.spaces.Discrete(2, start=5))
    single.reset(0)
    single.step(1)
    assert single._environment.unwrapped.taken == [6]


def test_a_fingerprint_of_gymnasium_is_of_all_that_was_shown():
    single = Gymnasium("CartPole-v1")
    found = []
    for seed, actions in [(0, ""), (1, ""), (0, "0"), (0, "1"), (0, "01"), (0, "10")]:
        for _ in range(2):
            single.reset(seed)
            for action in actions:
                single.step(int(action))
            found.append(single.fingerprint().tobytes())
    assert len({*found}) == 6 and found[::2] == found[1::2]
    assert single.versions == {"gymnasium": gymnasium.__version__}
    assert rl_rows._versions("minigrid.envs.empty").keys() == {"gymnasium", "minigrid"}


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("NoSuch-v0", {}, "gymnasium cannot make 'NoSuch-v0'"),
        ("nosuch_module:NoSuch-v0", {}, "cannot make"),
        ("CartPole-v1", {"colour": 1}, "cannot make 'CartPole-v1'.*colour"),
        ("Pendulum-v1", {}, r"Pendulum-v1 has the actions Box.*numbered"),
        ("FrozenLake-v1", {}, "a Box, or a Dict"),
        ("Shown-v0", {"space": BOX((2,), np.float32)}, "never end; give a limit"),
        (
            "Shown-v0",
            {
                "space": gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(3)),
                "limit": 2,
            },
            "a Box, or a Dict",
        ),
    ],
)
def test_environments_of_gymnasium_that_cannot_be_rows(name, settings, message):
    with pytest.raises(InputError, match=message):
        Gymnasium(name, **settings)


def test_gymnasium_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(InputError, match="pip install gymnasium"):
        Gymnasium("CartPole-v1")


@pytest.mark.parametrize("reward", worlds.REWARDS)
def test_a_row_is_its_world_until_the_end(reward, rng):
    name = "babyai:GoToRedBallNoDists"
    single = world_rows.WorldRow(name, reward=reward, text=Letters(), length=30)
    world = worlds.world(name, reward=reward)
    ends = set()
    for seed in range(12):
        first = world.reset(seed)
        row = single.reset(seed)
        told = "".join(map(chr, row["text"][row["text"] >= 0]))
        assert told == first["instruction"]
        assert (row["text"][len(told) :] == -1).all() and row["text"].dtype == np.int32
        np.testing.assert_array_equal(row["grid"], first["grid"])
        for _ in range(single.limit):
            np.testing.assert_array_equal(single.fingerprint(), world.fingerprint())
            action = int(rng.integers(3))
            outcome = world.step(action)
            row, own, ended, cut, success = single.step(action)
            np.testing.assert_array_equal(row["grid"], world.arrived["grid"])
            assert own == outcome.reward and success == world.success
            assert (ended or cut) == outcome.done and ended == success
            if ended or cut:
                break
        assert outcome.done
        ends.add((ended, cut))
    assert ends == {(True, False), (False, True)}


@pytest.mark.parametrize("last", [False, True])
def test_a_failure_terminates_even_at_the_limit(last):
    """Where the order of doors is strict, the wrong one ends the episode."""
    single = world_rows.WorldRow("babyai:GoToLocalS5N2")
    single.reset(0)
    own = single._world.environment
    own.instrs.verify = lambda action: "failure"
    if last:
        own.step_count = own.max_steps - 1
    assert single.step(0)[1:] == (0.0, True, False, False)


def test_rows_of_worlds_can_be_shorter_and_show_pictures():
    rows = world_rows.rows("babyai:GoToLocal", 2, 0, limit=3, pixels=8)
    said = {"grid": ((7, 7, 3), np.uint8), "image": ((8, 8, 3), np.uint8)}
    assert rows.shapes == said and rows.limit == 3 and rows.actions == 7
    steps = played(rows, np.full((4, 2), 6))
    assert [bool(step.truncated.all()) for step in steps] == [0, 0, 0, 1, 0]
    assert rows.versions.keys() == {"minigrid"}


@pytest.mark.parametrize(
    "name, settings, error, message",
    [
        ("babyai:Nowhere", {}, InputError, "no level 'Nowhere'"),
        ("babyai:GoToLocal", {"reward": "fair"}, InputError, "no reward 'fair'"),
        ("babyai:GoToLocal", {"limit": 65}, OutOfRange, "limit=65: it must be 64"),
        ("babyai:GoToLocal", {"length": 0, "text": Letters()}, OutOfRange, "length=0"),
    ],
)
def test_worlds_that_cannot_be_rows(name, settings, error, message):
    with pytest.raises(error, match=message):
        world_rows.rows(name, 2, 0, **settings)


def test_continuous_actions_are_refused(monkeypatch):
    world = worlds.world("babyai:GoToLocal")
    world.actions = None
    monkeypatch.setattr(worlds, "world", lambda *_, **__: world)
    with pytest.raises(InputError, match="metaworld:x has continuous actions"):
        world_rows.rows("metaworld:x", 1, 0)


def test_an_instruction_without_room_is_quoted():
    rows = world_rows.rows("babyai:GoToLocal", 1, 0, text=Letters(), length=8)
    with pytest.raises(InputError, match="'go to .*' has no room"):
        rows.begin()


def test_tokens_of_an_instruction_are_made_once():
    calls = []

    class Counted(Letters):
        def rows(self, texts, length):
            calls.append(texts)
            return super().rows(texts, length)

    told = world_rows.Told(Counted(), 6, before="<", after=">")
    for _ in range(3):
        assert told("ab").tolist() == [60, 97, 98, 62, -1, -1]
    assert calls == [["<ab>"]]
