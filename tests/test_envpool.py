"""envpool's BabyAI looks and plays as minigrid's, and comes back exactly."""

import importlib.util
import sys

import numpy as np
import pytest

from agents.environments import babyai, worlds
from agents.environments.envpool import EnvPool, seeds
from agents.environments.rows import rows
from polyview.errors import InputError, OutOfRange

pytest.importorskip("minigrid")
with_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="needs envpool"
)
LEVEL = "babyai:GoToLocal"
KINDS = 11  # of objects


class Letters:
    """A tokenizer of letters."""

    def rows(self, texts, length):
        numbers = np.zeros((1, length), np.int32)
        numbers[0, : len(texts[0])] = [ord(c) for c in texts[0]]
        return numbers, numbers > 0


TOLD = {"text": Letters(), "length": 40}


def played(pool, actions):
    """The steps of rows from their beginning."""
    return [pool.begin(), *(pool.step(a) for a in actions)]


def assert_same(found, wanted):
    assert found.observation.keys() == wanted.observation.keys()
    for name, array in wanted.observation.items():
        np.testing.assert_array_equal(found.observation[name], array)
        assert found.observation[name].dtype == array.dtype
    for one, other in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def watched(made, steps, seed):
    """Random play, as an array of numbers for each whole episode of it.

    They are length, success, dense reward, whether it was cut off, and what its first
    observation shows: for each cell and kind of object, whether it is there.
    """
    rng = np.random.default_rng(seed)
    step, episodes, said = made.begin(), [], set()
    length = np.zeros(made.count, int)
    first = step.observation["grid"].copy()
    for _ in range(steps):
        step = made.step(rng.integers(7, size=made.count))
        length += 1
        over = step.terminated | step.truncated
        for row in np.flatnonzero(over):
            numbers = length[row], step.success[row], step.reward[row]
            there = first[row][..., 0, None] == np.arange(KINDS)
            episodes.append([*numbers, step.truncated[row], *there.ravel()])
            text = step.observation["text"][row]
            said.add("".join(map(chr, text[text >= 0])))
        begun = length < 0
        first[begun] = step.observation["grid"][begun]
        length[begun] = 0
        length[over] = -2  # the next step begins
    return np.array(episodes, float), said


@with_envpool
def test_random_play_is_that_of_minigrid():
    settings = {"reward": "dense", **TOLD}
    pool = EnvPool(LEVEL, 64, 0, most=600, **settings)
    slow = rows(LEVEL, 16, 0, **settings)
    assert pool.shapes == slow.shapes
    assert (pool.actions, pool.limit) == (slow.actions, slow.limit) == (7, 64)
    found, said = watched(pool, 600, 1)
    wanted, meant = watched(slow, 600, 2)
    assert len(found) > 600 and len(wanted) > 150
    error = np.sqrt(found.var(0) / len(found) + wanted.var(0) / len(wanted))
    apart = np.abs(found.mean(0) - wanted.mean(0))
    assert (apart[:4] <= 3 * error[:4]).all()
    assert error[0] < 2 and error[1] < 0.05  # length and success: the test can fail
    # Of hundreds of numbers, one may lie 4 errors away; rare ones are seen too seldom.
    assert (apart <= 4.5 * error + 0.02).all()
    assert meant <= said and len(said) <= len(meant) * 2
    for episodes in (found, wanted):
        length, success, reward, cut = episodes[:, :4].T
        assert (success == (reward > 0)).all() and (success == 1 - cut).all()
        np.testing.assert_allclose(reward, success * (1 - 0.9 * length / 64), atol=1e-6)


@with_envpool
def test_saved_rows_go_on_exactly(rng):
    def made(**more):
        return EnvPool(LEVEL, 5, 3, most=200, first=2, **TOLD, **more)

    pool = made()
    actions = rng.integers(7, size=(200, 5))
    steps, kept = [pool.begin()], {}
    for number, action in enumerate(actions):
        if number % 37 == 0:
            kept[number] = pool.saved()
        steps.append(pool.step(action))
    assert any((step.terminated | step.truncated).any() for step in steps)
    shapes = {(k, v.shape, v.dtype) for one in kept.values() for k, v in one.items()}
    assert len(shapes) == 3
    again = made(threads=2)
    for number, saved in kept.items():
        assert_same(again.restore(saved), steps[number])
        for name, array in again.saved().items():
            np.testing.assert_array_equal(array, saved[name])
        for later in range(number, min(number + 20, 200)):
            assert_same(again.step(actions[later]), steps[later + 1])
    with pytest.raises(InputError, match="taken 200 steps.*give a larger `most`"):
        pool.step(actions[0])
    assert_same(pool.begin(), steps[0])


@with_envpool
def test_ends_are_shown_and_the_next_step_resets(rng):
    actions = rng.integers(7, size=(150, 6))
    one, other = (EnvPool(LEVEL, 6, 0, most=150, limit=20, **TOLD) for _ in range(2))
    step, again, ends = one.begin(), other.begin(), 0
    for action in actions:
        assert_same(again, step)
        over = step.terminated | step.truncated
        text = step.observation["text"].copy()
        step = one.step(action)
        # What is done at an end is ignored.
        again = other.step(np.where(over, (action + 1) % 7, action))
        now = step.terminated | step.truncated | step.success
        assert not now[over].any() and not step.reward[over].any()
        np.testing.assert_array_equal(step.observation["text"][~over], text[~over])
        np.testing.assert_array_equal(step.reward, step.success.astype(np.float32))
        np.testing.assert_array_equal(step.success, step.terminated)
        ends += over
    assert ends.min() >= 4 and one.limit == 20


@with_envpool
def test_rows_do_not_depend_on_one_another(rng):
    actions = rng.integers(7, size=(100, 4))
    whole = played(EnvPool(LEVEL, 4, 6, most=100), actions)
    half = played(EnvPool(LEVEL, 2, 6, most=100, first=2), actions[:, 2:])
    for step, part in zip(whole, half, strict=True):
        np.testing.assert_array_equal(
            step.observation["grid"][2:], part.observation["grid"]
        )
        np.testing.assert_array_equal(step.reward[2:], part.reward)
    grids = whole[0].observation["grid"]
    assert len(np.unique(grids, axis=0)) == 4
    other = EnvPool(LEVEL, 4, 7, most=1).begin().observation["grid"]
    assert (other != grids).any((1, 2, 3)).all()


@with_envpool
def test_what_is_shown_is_the_callers(rng):
    pool, again = (EnvPool(LEVEL, 2, 0, most=90, **TOLD) for _ in range(2))
    actions = rng.integers(7, size=(90, 2))
    wanted, step = played(again, actions), pool.begin()
    for number, action in enumerate(actions):
        assert_same(step, wanted[number])
        for array in [*step.observation.values(), *step[1:], *pool.saved().values()]:
            array[...] = 1
        step = pool.step(action)


def test_no_two_rows_have_one_seed():
    for seed in range(40):
        found = seeds(seed, 5, 1000)
        assert len({*found}) == 1000 and min(found) >= 0 and max(found) < 2**31
        assert seeds(seed, 0, 1005)[5:] == found
    assert seeds(1, 0, 1) != seeds(2, 0, 1)


@with_envpool
def test_another_place_names_the_version(rng):
    pool = EnvPool(LEVEL, 2, 0, most=30, first=7)
    played(pool, rng.integers(7, size=(20, 2)))
    saved = pool.saved()
    version = pool.versions["envpool"]
    wrong = saved["digest"].copy()
    wrong[1, 4] += 1
    message = f"GoToLocal, row 8: .*another state.*envpool {version} here"
    with pytest.raises(InputError, match=message):
        EnvPool(LEVEL, 2, 0, most=30, first=7).restore(saved | {"digest": wrong})
    with pytest.raises(InputError, match="row 7: .*another state"):
        EnvPool(LEVEL, 2, 1, most=30, first=7).restore(saved)
    with pytest.raises(InputError, match="another state"):  # an action is another
        early = saved["actions"].copy()
        early[0, :12] = np.arange(12) % 3
        pool.restore(saved | {"actions": early})
    with pytest.raises(InputError, match="is damaged"):
        pool.restore(saved | {"steps": saved["steps"] + 11})
    with pytest.raises(InputError, match="is damaged"):
        pool.restore(saved | {"steps": saved["steps"] - np.arange(2)})
    with pytest.raises(InputError, match="there is no action 9"):
        pool.restore(saved | {"actions": saved["actions"] * 0 + 9})
    with pytest.raises(InputError, match="same number of rows"):
        EnvPool(LEVEL, 2, 0, most=31).restore(saved)


@with_envpool
@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"name": "metaworld:reach-v3"}, InputError, "envpool has no 'metaworld"),
        ({"name": "GoToLocal"}, InputError, "is no world"),
        ({"name": "babyai:GoToLoca"}, InputError, "did you mean 'GoToLocal'"),
        ({"reward": "fair"}, InputError, "no reward 'fair'"),
        ({"count": 0}, OutOfRange, "count=0"),
        ({"most": 0}, OutOfRange, "most=0"),
        ({"limit": 0}, OutOfRange, "limit=0"),
        ({"threads": 0}, OutOfRange, "threads=0"),
        ({"seed": -1}, OutOfRange, "seed=-1"),
    ],
)
def test_what_cannot_be_made(wrong, error, message):
    with pytest.raises(error, match=message):
        EnvPool(**{"name": LEVEL, "count": 2, "seed": 0, "most": 3, **wrong})


@with_envpool
def test_actions_and_instructions_that_do_not_fit():
    pool = EnvPool(LEVEL, 2, 0, most=3, first=3)
    for call in (pool.saved, lambda: pool.step(np.zeros(2, int))):
        with pytest.raises(RuntimeError, match="begin or restore first"):
            call()
    pool.begin()
    with pytest.raises(InputError, match="row 4: there is no action 7"):
        pool.step(np.array([6, 7]))
    assert pool.saved()["steps"].tolist() == [0, 0]
    with pytest.raises(InputError, match="cuts off the instruction 'go to'"):
        pool._instruction(np.frombuffer(b"go to", np.uint8))


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(InputError, match=r"pip install '\.\[envpool\]'"):
        EnvPool(LEVEL, 2, 0, most=3)


@with_envpool
def test_levels_have_limits_as_in_minigrid():
    for level in ("GoToObj", "MiniBossLevel", "PutNextLocal"):
        pool = EnvPool(f"babyai:{level}", 32, 0, most=300)
        assert pool.limit == worlds.world(f"babyai:{level}").limit
        begun, longest, step = np.zeros(32, int), 0, pool.begin()
        for time in range(1, 300):
            step = pool.step(np.zeros(32, int))
            length = time - begun
            if step.truncated.any():
                longest = max(longest, length[step.truncated].max())
            begun[step.terminated | step.truncated] = time + 1
        assert 0 < longest <= pool.limit, level


@with_envpool
def test_envpool_has_all_levels():
    envpool = pytest.importorskip("envpool")
    assert set(babyai.levels().values()) <= set(envpool.list_all_envs())
