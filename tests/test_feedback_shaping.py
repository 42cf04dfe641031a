"""Rewards that are shaped by a fixed reward network: what they are, and in a run."""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rl_acting import STATE, after, config, simple

from agents.feedback.shaping import Potential, Raw, Thresholded, hashes
from benchmarks import rewards
from benchmarks.studies import measure_missing
from polyview.errors import InputError
from polyview.rl.acting import Acted, Played, Shown
from polyview.rl.learner import PolicyLearner
from polyview.training.train import train

AUTO = jax.sharding.AxisType.Auto
SCALE = {"mean": 0.5, "deviation": 2.0, "threshold": 0.1}


class Numbers:
    """Stands in for an actor with a reward network: what is seen is its reward."""

    @staticmethod
    def reward(views):
        return views["state"][:, 0]


def steps_of(rng, rows=8, length=40):
    """Return chance play [length, rows], and the views that came last.

    An episode ends one time in four; half of the ends are cut-offs. What is seen are
    whole numbers, so that an episode shows some of them again.
    """
    seen = rng.integers(-3, 4, (length + 1, rows, 1)).astype(np.float32)
    over = np.zeros((length + 1, rows), bool)
    for time in range(length):  # an end is followed by a beginning
        over[time + 1] = (rng.random(rows) < 0.25) & ~over[time]
    terminated = over[1:] & (rng.random((length, rows)) < 0.5)
    success = over[1:] & (rng.random((length, rows)) < 0.5)
    first = np.concatenate([np.ones((1, rows), bool), over[:-1]])
    shown = Shown({"state": seen[:-1]}, first[:-1], over[:-1])
    reward = np.where(over[:-1], 0, rng.normal(size=(length, rows)))
    nothing = np.zeros((length, rows), np.float32)
    acted = Acted(nothing.astype(np.int32), nothing, nothing)
    reward = reward.astype(np.float32)
    played = Played(shown, acted, reward, terminated, over[1:], success)
    return played, {"state": seen[-1]}


@functools.cache
def compiled(shaping):
    """Return what begins, and what shapes rewards."""
    begin = jax.jit(functools.partial(shaping.begin, limit=40))
    return begin, jax.jit(functools.partial(shaping, Numbers))


def shaped(shaping, played, last, parts=2):
    """Return rewards and metrics of play that comes in parts, one call each."""
    begin, call = compiled(shaping)
    carry, found = begin(jax.tree.map(lambda x: x[0], played.shown)), []
    length = len(played.reward) // parts
    whole = np.concatenate([played.shown.views["state"], last["state"][None]])
    for start in range(0, len(played.reward), length):
        own = jax.tree.map(lambda x, at=start: x[at : at + length], played)
        following = {"state": whole[start + length]}
        rewards, carry, metrics = call(carry, own, following)
        found.append(rewards)
    return np.concatenate(found), metrics


def looped(played, last, each, length=40):
    """Return rewards [t, n] by a loop: each(r, seen before, after, step, episode)."""
    seen = np.concatenate([played.shown.views["state"], last["state"][None]])[..., 0]
    scores = (seen - SCALE["mean"]) / SCALE["deviation"]
    found = np.zeros(played.reward.shape)
    for row in range(found.shape[1]):
        met = [seen[0, row]]
        for time in range(length):
            if played.shown.over[time, row]:
                met = [seen[time + 1, row]]
                continue
            met.append(seen[time + 1, row])
            before, now = scores[time, row], scores[time + 1, row]
            end = bool(played.terminated[time, row])
            reward = float(played.reward[time, row])
            found[time, row] = each(reward, before, now, end, met)
    return found


FORMS = {
    "raw": (
        Raw(**SCALE, weight=0.5, extrinsic=3.0),
        lambda r, before, now, end, met: 3 * r + 0.5 * now,
    ),
    "thresholded": (
        Thresholded(**SCALE, weight=0.5, counted="state", power=2.0),
        lambda r, before, now, end, met: (
            r + 0.5 * (now > 0.1) * now / met.count(met[-1]) ** 2
        ),
    ),
    "potential": (
        Potential(**SCALE, weight=2.0, discount=0.9),
        lambda r, before, now, end, met: r + 2 * (0.9 * now * (not end) - before),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_rewards_are_those_of_a_loop_whatever_the_length_of_a_call(name, rng):
    shaping, each = FORMS[name]
    played, last = steps_of(rng)
    for parts in (1, 4) if name == "thresholded" else (4,):
        found, _ = shaped(shaping, played, last, parts)
        np.testing.assert_allclose(
            found, looped(played, last, each), rtol=1e-5, atol=1e-6
        )


def test_potentials_telescope_over_each_episode(rng):
    played, last = steps_of(rng, length=80)
    found, _ = shaped(FORMS["potential"][0], played, last, parts=8)
    gained = found - np.asarray(played.reward)
    seen = np.concatenate([played.shown.views["state"], last["state"][None]])[..., 0]
    phi = 2 * (seen - 0.5) / 2
    ends = 0
    for row in range(8):
        start = 0
        for end in np.flatnonzero(played.over[:, row]):
            times = np.arange(start, end + 1)
            whole = (0.9 ** (times - start)) @ gained[times, row]
            value = 0 if played.terminated[end, row] else phi[end + 1, row]
            expected = 0.9 ** len(times) * value - phi[start, row]
            assert whole == pytest.approx(expected, abs=1e-5)
            assert not gained[end + 1 : end + 2, row].any()  # an action not taken
            start, ends = end + 2, ends + 1
    assert ends > 20


def test_a_potential_leaves_the_best_policy_of_a_chain_and_a_raw_reward_does_not():
    """Left or right in six states; the right end is worth 1, and ends the episode."""
    states, discount = 6, 0.9
    went = np.array(
        [[max(s - 1, 0), s + 1] for s in range(states - 1)] + [[states - 1] * 2]
    )
    tempting = np.array([[9.0], [0.0], [-4.0], [1.0], [-7.0], [-30.0]], np.float32)
    before, action = map(np.ravel, np.mgrid[: states - 1, :2])
    following = went[before, action]
    ends = following == states - 1
    one = np.zeros((1, len(before)), bool)
    shown = Shown({"state": tempting[before][None]}, ~one, one)
    nothing = np.zeros(one.shape, np.float32)
    acted = Acted(nothing.astype(np.int32), nothing, nothing)
    reward = ends[None].astype(np.float32)
    played = Played(shown, acted, reward, ends[None], ends[None], ends[None])

    def best(shaping):
        rewards, _ = shaped(shaping, played, {"state": tempting[following]}, parts=1)
        worth = np.zeros(states)
        for _ in range(500):
            rest = np.where(ends, 0, worth[following])
            values = (rewards[0] + discount * rest).reshape(-1, 2)
            worth = np.append(values.max(1), 0)
        return values.argmax(1)

    right = np.ones(states - 1)
    scale = {"mean": 0.0, "deviation": 1.0, "threshold": 0.0, "weight": 1.0}
    assert (best(Raw(**scale | {"weight": 0.0})) == right).all()
    assert (best(Potential(**scale, discount=discount)) == right).all()
    assert (best(Raw(**scale)) != right).any()
    assert (best(Potential(**scale, discount=0.5)) != right).any()


def test_who_is_fooled_is_counted(rng):
    played, last = steps_of(rng)
    # What is counted does not depend on the form.
    _, metrics = shaped(FORMS["thresholded"][0], played, last, parts=1)
    seen = np.concatenate([played.shown.views["state"], last["state"][None]])[..., 0]
    scores = (seen[1:] - 0.5) / 2
    taken = ~np.asarray(played.shown.over)
    fooled = []
    for row, end in zip(*np.nonzero(np.asarray(played.over).T), strict=True):
        begun = np.flatnonzero(played.shown.over[: end + 1, row])
        start = begun[-1] + 1 if len(begun) else 0
        high = scores[start : end + 1, row].mean() > 0.1
        fooled.append(high and not played.success[end, row])
    assert 0 < np.mean(fooled) < 1
    assert metrics["fooled"] == pytest.approx(np.mean(fooled))
    assert metrics["preferred"] == pytest.approx(scores[taken].mean(), rel=1e-5)


def test_hashes_see_every_number_and_its_place(rng):
    x = rng.integers(0, 11, (1, 7, 7, 3), np.uint8)
    others = [x]
    for place in range(x.size):
        changed = x.copy()
        changed.reshape(-1)[place] ^= 1
        others.append(changed)
    swapped = x.copy()
    swapped[0, 0, 0], swapped[0, 0, 1] = x[0, 0, 1], x[0, 0, 0]
    if (swapped != x).any():
        others.append(swapped)
    found = np.asarray(jax.jit(hashes)(np.concatenate(others)))
    assert all(len(set(half.tolist())) == len(others) for half in found.T)
    numbers = jnp.array([[0.5, -1.0], [0.5, -1.0], [0.5, -1.5]])
    a, b, c = map(tuple, np.asarray(jax.jit(hashes)(numbers)).tolist())
    assert a == b != c


def test_devices_change_nothing(rng, on_devices):
    played, last = steps_of(rng)
    shaping, _ = FORMS["thresholded"]
    whole, told = shaped(shaping, played, last, parts=1)
    mesh = jax.make_mesh((8,), ("data",), (AUTO,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    own = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    first = jax.device_put(jax.tree.map(lambda x: x[0], played.shown), own)
    spread = jax.device_put(played, rows), jax.device_put(last, own)
    begin, call = compiled(shaping)
    with jax.set_mesh(mesh):
        found, _, metrics = call(begin(first), *spread)
    np.testing.assert_array_equal(found, whole)
    assert metrics["fooled"] == pytest.approx(told["fooled"])


REWARD = {
    "partial": "agents.feedback.distil:Reward",
    "encoders": {"state": {**STATE, "hidden": 8}},
    "width": 8,
    "hidden": 8,
}
AT = "agents.feedback.shaping"
MODEL = {"partial": f"{AT}:Rewarded", "actor": simple(), "reward": REWARD}
OWN = {"target": f"{AT}:Thresholded", **SCALE, "counted": "state", "threshold": -9.0}


def test_a_shaped_run_that_is_stopped_goes_on_exactly(tmp_path, on_devices):
    on_devices(1)
    whole = config(MODEL, shaping=OWN, steps=2, passes=1, rollout=3)
    learner = PolicyLearner(whole)
    taken, states = learner.take, []

    def kept(state, inputs):
        states.append(taken(state, inputs))
        return states[-1]

    learner.take = kept
    state = train(learner, tmp_path / "whole")
    learner.check = lambda workdir: None  # it has passed, and would trace all again

    def stopping(state, inputs):
        if len(states) == 3:
            raise KeyboardInterrupt
        return kept(state, inputs)

    learner.take = stopping
    with pytest.raises(KeyboardInterrupt):
        train(learner, tmp_path / "parts")
    learner.take = taken
    resumed = train(learner, tmp_path / "parts")
    for a, b in zip(*map(jax.tree.leaves, (state, resumed)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    # It carries what episodes that go on have shown, and the reward never changes.
    assert (np.asarray(resumed.shaped.own.number) > 1).any()
    assert all(
        float(metrics["shaped"]) != float(metrics["reward"]) for _, metrics in states
    )
    assert "reward" in learner.fixed and "reward" not in state.train.params
    assert len([*(tmp_path / "parts" / "fixed").iterdir()]) == 1


def test_a_run_without_shaping_keeps_nothing_of_it(on_devices):
    on_devices(1)
    learner = PolicyLearner(config(simple()))
    shapes = learner.template()
    assert "shaped" not in shapes


@pytest.mark.slow
def test_rewards_that_stay_change_no_bit_of_a_run(monkeypatch, on_devices):
    monkeypatch.setattr("polyview.runs.init.keep_fixed", lambda *_: [])
    on_devices(1)
    still = {"target": f"{AT}:Raw", **SCALE, "weight": 0.0}
    runs = [config(simple()), config(simple(), shaping=None)]
    runs += [config(MODEL, shaping=still), config(MODEL)]
    found = [after(PolicyLearner(run), 2)[1] for run in runs]
    losses = [[one["loss"] for one in own] for own in found]
    assert losses[0] == losses[1] and losses[2] == losses[3]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"deviation": 0.0}, "config key shaping.deviation=0.0"),
        ({"mean": float("nan")}, "config key shaping.mean=nan"),
        ({"target": f"{AT}:Potential", "discount": 0.99}, "shaping.discount=0.99"),
        ({"counted": "grid"}, "shaping.counted='grid'.*shows state"),
    ],
)
def test_what_does_not_fit_is_told(change, text, tmp_path, on_devices):
    on_devices(1)
    own = {key: value for key, value in OWN.items() if key != "counted"}
    own |= {"counted": "state"} if "target" not in change else {}
    with pytest.raises(InputError, match=text):
        PolicyLearner(config(MODEL, shaping=own | change)).check(tmp_path)


def test_an_actor_without_a_reward_network_is_told(tmp_path, on_devices):
    on_devices(1)
    with pytest.raises(InputError, match="give agents.feedback.shaping:Rewarded"):
        PolicyLearner(config(simple(), shaping=OWN)).check(tmp_path)


def test_runs_of_two_lengths_are_rows_of_their_own(tmp_path, monkeypatch):
    """The weight that is chosen is that of runs of the same length."""
    best, played = {10: 0.03, 20: 0.3}, []

    def learnt(flags, about):
        played.append((flags.thousand, about))
        success = 0.9 if about["weight"] == best[flags.thousand] else 0.2
        return {"at": [1.0], "mean_success": success + about["seed"] / 1e6}

    monkeypatch.setattr(rewards, "learnt", learnt)
    monkeypatch.setattr("polyview.hosts.machine", dict)
    output = tmp_path / "ppo.json"
    for thousand in (10, 20, 10):
        flags = argparse.Namespace(thousand=thousand, workdir=tmp_path)
        rows = measure_missing(
            functools.partial(rewards.ppo, flags),
            output,
            tmp_path,
            functools.partial(rewards.summary, "ppo"),
        )
    each = 2 * len(rewards.REWARD_WEIGHTS) + rewards.LEARNERS * len(rewards.ARMS)
    assert [row["thousand"] for row in rows] == [10] * each + [20] * each
    assert len(played) == 2 * each  # nothing is measured again
    shaped = [row for row in rows if row["seed"] < rewards.LEARNERS and row["weight"]]
    assert {(row["thousand"], row["weight"]) for row in shaped} == {*best.items()}
    means = json.loads(output.read_text())["means"]
    assert len(means) == 2 * len(rewards.ARMS)
    assert means["oracle, potential, 10 thousand steps"][0] == pytest.approx(0.900002)
