"""Roll-outs that tell a policy, advantages on disk, and imitation by them."""

import json

import numpy as np
import pytest

import dvf.prepare
import dvf.weigh
from dvf import load, recording, rollouts
from dvf.control import advantages
from dvf.value import FromFutures
from polyview.config.file import load_config
from polyview.data.later import Later
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.by_class import ByClass
from polyview.data.sources.memory import InMemory
from polyview.errors import InputError
from polyview.runs.evaluating import Asked, evaluate
from polyview.training.train import train
from polyview.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small recording of the point world, at the place where configs look."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        what = "--env point --name tiny --episodes 64 --length 40 --policies 4"
        what += " --starts 4 --rollouts 2 --horizon 20"
        dvf.prepare.main([*what.split(), "--data_dir", str(folder)])
        yield folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "future"
    overrides = {"checkpoint_every": "3", "model.denoiser.hidden": "(8,)"}
    config = load_config("configs/dvf_pointmaze.py:data=tiny,steps=3", overrides)
    train(Trainer(config), workdir)
    return workdir


GOAL = [0.5, 0.5]


def weigh(data, run, name, *more):
    what = ["--run", str(run), "--data", "tiny", "--name", name, "--goal=0.5,0.5"]
    what += [
        "--samples",
        "4",
        "--split",
        "train[:8]",
        "--radius",
        "2",
        "--data_dir",
        str(data),
    ]
    dvf.weigh.main([*what, *more])


def test_exploring_weighs_by_how_far_futures_reach(data, run):
    what = f"--run {run} --data tiny --name exploring --explore --samples 4 --ahead 3"
    more = ["--split", "train[:2]", "--data_dir", str(data)]
    dvf.weigh.main([*what.split(), *more])
    model, kind = load.read(run)
    estimate = FromFutures(0.97, 4, common=True, policies=4)
    statistics = recording.describe("tiny", data)["statistics"]["states"]
    for own in ArrayRecord("exploring", data_dir=data):
        states = own["states"]
        far = []
        for policy in range(4):
            told = np.full(len(states), policy, np.int32)
            drawn = estimate.futures(load.sampled(model, 10), states, told, None)
            parts = zip(*drawn, strict=True)
            futures, weights = map(np.concatenate, parts)
            away = (futures - states[:, None]) / np.array(statistics["std"])
            far.append((weights * np.sqrt((away**2).sum(-1))).sum(1))
        best = np.max(far, 0)
        for number, gained in enumerate(own["advantages"]):
            then = min(number + 3, len(states) - 1)
            assert gained == pytest.approx(best[then] - best[number], abs=2e-4)
    with pytest.raises(InputError, match="has no goal; give one"):
        load_config("configs/dvf_policy.py:data=exploring")


def test_weighed_actions_are_imitated_and_evaluated(data, run, tmp_path):
    weigh(data, run, "weighed")
    source = ArrayRecord("weighed", data_dir=data)
    assert len(source) == 8
    plain = ArrayRecord("tiny", "train[:8]", data_dir=data)
    gained = []
    for own, other in zip(map(source.__getitem__, range(8)), plain, strict=False):
        np.testing.assert_array_equal(own["states"], other["states"])
        assert own["advantages"].shape == (39,)
        gained.append(own["advantages"])
    config = load_config("configs/dvf_policy.py:data=weighed,temperature=2.0,steps=2")
    assert config.views.scale == pytest.approx(2 * np.concatenate(gained).std())
    config.batch_size = 8
    config.evaluations.play.starts = config.evaluations.play.horizon = 2
    train(Trainer(config), tmp_path / "policy")
    evaluate(tmp_path / "policy", None, Asked())
    found = json.loads((tmp_path / "policy/eval/2-play.json").read_text())
    assert found["protocol"]["world"] == "point" and found["return"] >= 0


def test_advantages_use_the_best_policy_and_the_same_random_numbers(data, run):
    """Against a loop over states and policies, one call of the model each."""
    import jax

    from dvf import load, value
    from dvf.rewards import Discs

    weigh(data, run, "looped", "--ahead", "5")
    example = ArrayRecord("looped", data_dir=data)[1]
    reward = Discs([GOAL], 2.0)
    model = load.sampled(load.read(run)[0], 10)
    index = np.arange(4, dtype=np.int32)[None]
    # All queries look as far ahead, each future in a fourth of the law of its own.
    shares = (np.arange(4) + np.random.default_rng([0, 0]).random(4)) / 4
    offset = np.array([[1 + int(np.log1p(-s) / np.log(0.97)) for s in shares]])
    best = []
    for state in example["states"][:8]:
        told = []
        for policy in range(4):
            one = state[None], np.array([policy], np.int32)
            given = one[0], offset, one[1], None, None, jax.random.key(0), index
            drawn = model.call("sample", *given)
            rewards = np.asarray(reward(np.asarray(drawn.states)))
            told.append(value.value(rewards, np.asarray(drawn.weights), 0.97).mean)
        best.append(max(float(v[0, 0]) for v in told))
    rewards = reward(example["states"])[:8, 0]
    expected = advantages(rewards, np.array(best), 0.97, ahead=5)[:3]
    np.testing.assert_allclose(example["advantages"][:3], expected, atol=1e-4)


def test_weighing_is_refused_in_a_line(data, run, tmp_path):
    weigh(data, run, "once")
    weigh(data, run, "once")  # is there already
    with pytest.raises(InputError, match="other settings"):
        weigh(data, run, "once", "--ahead", "3")
    with pytest.raises(InputError, match="no recorded episodes 'none'"):
        dvf.weigh.main(
            ["--run", str(run), "--data", "none", "--name", "x", "--goal", "0,0"]
        )
    with pytest.raises(InputError, match="no action gains more"):
        weigh(data, run, "far", "--radius", "1e-6")
    assert not (data / "far").exists()
    with pytest.raises(InputError, match="in a wall or outside"):
        weigh(data, run, "wall", "--goal=-30,3")
    with pytest.raises(InputError, match="write a place"):
        load_config("configs/dvf_policy.py:data=tiny,temperature=0.0,goal=2.5")
    with pytest.raises(InputError, match="--ahead is 0"):
        weigh(data, run, "zero", "--ahead", "0")
    with pytest.raises(InputError, match="have no advantages"):
        load_config("configs/dvf_policy.py:data=tiny")
    with pytest.raises(InputError, match="'tiny' has no goal|tiny has no goal"):
        load_config("configs/dvf_policy.py:data=tiny,temperature=0.0")


def episodes(policies, length=6):
    """Episodes whose states name their number."""
    states = [np.full((length, 1), n, np.float32) for n in range(len(policies))]
    states = [own + np.arange(length)[:, None] / 100 for own in states]
    target = {"kind": "class", "classes": max(policies) + 1}
    columns = {"states": states, "policy": np.array(policies)}
    return InMemory(columns, targets={"policy": target})


def test_a_rollout_is_of_the_policy_and_of_another_episode(rng):
    source = episodes([0, 1, 0, 1, 0])
    views = rollouts.WithRollout(Later(m=2, discount=0.5), steps=3)
    by_policy = ByClass(source, label="policy", field="states")
    seen = {row: set() for row in range(5)}
    for draw in range(200):
        for row in seen:
            made = views(by_policy[row], np.random.default_rng([draw, row]))
            shown = made["views"]["rollout"]
            other = int(shown[0, 0])
            seen[row].add(other)
            np.testing.assert_allclose(shown[:, 0] - other, [0, 0.02, 0.05], atol=1e-6)
            assert made["present"]["rollout"].all()
    assert seen == {0: {2, 4}, 1: {3}, 2: {0, 4}, 3: {1}, 4: {0, 2}}
    with pytest.raises(InputError, match="one episode"):
        views(ByClass(episodes([0, 1, 1]), label="policy", field="states")[0], rng)


def test_rollouts_of_policies_are_their_first_episodes():
    found = rollouts.of_policies(episodes([1, 0, 0, 2]), steps=2)
    np.testing.assert_allclose(found[:, 0, 0], [1, 0, 3])
    with pytest.raises(InputError, match="no episode of policy 1"):
        rollouts.of_policies(episodes([0, 2]))


def test_a_model_may_be_told_policies_by_rollouts(data, tmp_path):
    overrides = {"checkpoint_every": "2", "model.denoiser.hidden": "(8,)"}
    for split in ("value", "control", "occupancy"):
        overrides[f"evaluations.{split}.estimate.samples"] = "4"
    argument = "data=tiny,steps=2,policy=rollout"
    config = load_config(f"configs/dvf_pointmaze.py:{argument}", overrides)
    train(Trainer(config), tmp_path / "run")
    evaluate(tmp_path / "run", None, Asked())
    assert len(list((tmp_path / "run/eval").glob("2-*.json"))) == 4
