"""TextRearrange as a world with instructions, and as an environment of gymnasium."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from agents import demonstrate as demonstrating
from agents import recording
from agents.demonstrate import expert
from agents.environments.worlds import world
from agents.rearrange.words import SKILLS
from polyview.errors import InputError
from polyview.rl import episodes

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def context():
    return world("rearrange:context")


def test_a_world_has_what_the_protocol_asks_for(context):
    assert context.name == "rearrange:context" and context.kind == "rearrange"
    assert context.actions == SKILLS and len(set(SKILLS)) == 36
    assert context.box is None and context.limit == 32 and context.legal() is None
    shown = context.reset(4)
    assert shown.keys() == {"image", "instruction"} == {*context.shapes, "instruction"}
    assert shown["image"].shape == context.shapes["image"] == (32, 32, 3)
    assert shown["image"].dtype == np.uint8
    assert shown["instruction"] == context.environment.table.text(4)
    drawn = context.render()
    assert drawn.dtype == np.uint8 and drawn.shape == (236, 968, 3) and drawn.std() > 20


@pytest.mark.parametrize("first", [0, 2**20])
def test_a_thousand_seeds_play_every_episode_once(context, first):
    rows = set()
    for seed in range(first, first + 1000):
        context._seed, context._episode = seed, 0
        rows.add(context._row())
    assert rows == set(range(1000))


def test_an_episode_follows_from_its_seed_and_actions(context):
    other, rng = world("rearrange:context"), np.random.default_rng(0)
    actions = rng.integers(36, size=70)
    one, two = context.reset(8), other.reset(1008)
    np.testing.assert_array_equal(one["image"], two["image"])
    assert one["instruction"] == two["instruction"]
    other.reset(8)
    prints = []
    for action in actions:
        left, right = context.step(int(action)), other.step(int(action))
        assert left[1:] == right[1:]
        np.testing.assert_array_equal(
            left.observation["image"], right.observation["image"]
        )
        prints.append(context.fingerprint().tobytes())
        assert prints[-1] == other.fingerprint().tobytes()
    assert len(set(prints)) == len(prints)


def test_success_ends_an_episode_and_the_next_one_begins(context):
    dense = world("rearrange:context", reward="dense")
    shown, _ = context.reset(11), dense.reset(11)
    act, rewards, own, images = expert(context), [], [], []
    context.on_end = lambda: images.append(context.render())
    for _ in range(context.limit):
        action = act(context.observation)
        outcome, fuller = context.step(action), dense.step(action)
        rewards.append(outcome.reward)
        own.append(fuller.reward)
        assert outcome.done == context.success == dense.success
        if outcome.done:
            break
    context.on_end = None
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert sum(own) == pytest.approx(15) and own[-1] > 10
    assert outcome.finished == (1.0, len(rewards)) and len(images) == 1
    assert context.arrived["instruction"] == shown["instruction"]
    following = world("rearrange:context").reset(episodes.seed_of(11, 1))
    assert outcome.observation["instruction"] == following["instruction"]
    np.testing.assert_array_equal(outcome.observation["image"], following["image"])


def test_an_episode_without_success_ends_at_the_limit(context):
    context.reset(0)
    outcomes = [context.step(0) for _ in range(32)]
    assert not any(outcome.done for outcome in outcomes[:-1])
    assert outcomes[-1].done and outcomes[-1].finished == (0.0, 32)


def test_demonstrations_are_recorded_from_the_solver(tmp_path):
    names = ["rearrange:train_validation", "rearrange:conditional_instructions"]
    made = demonstrating.prepare(
        names, tmp_path / "shown", episodes=6, validation=2, test=2
    )
    assert "failed in 0 of 20" in made
    described = recording.describe("shown", tmp_path)
    assert described["observations"] == {"image": [32, 32, 3]}
    assert described["action"]["names"] == list(SKILLS)
    recording.check_versions(described)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("rearrange:contxt", {}, "did you mean 'context'"),
        ("rearange:context", {}, "did you mean 'rearrange'"),
        ("rearrange:context", {"pixels": 64}, "images of 32 pixels"),
        ("rearrange:context", {"pixels": True}, "images of 32 pixels"),
        ("rearrange:context", {"reward": "sparse"}, "no reward 'sparse'"),
    ],
)
def test_unknown_splits_and_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        world(name, **options)


@pytest.mark.parametrize("action", [36, -1, 1.0, None, [1, 2]])
def test_what_is_no_skill_is_refused(context, action):
    with pytest.raises(InputError, match="actions 0 .. 35"):
        context.step(action)


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_what_is_no_seed_is_refused(context, seed):
    with pytest.raises(InputError, match="give 0 or more"):
        context.reset(seed)


def test_gymnasium_takes_it_for_an_environment():
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    import agents.rearrange  # noqa: F401

    made = gymnasium.make(
        "TextRearrange-v0", split="conditional_instructions", render_mode="rgb_array"
    )
    with warnings.catch_warnings(action="error"):
        check_env(made.unwrapped)
    shown, _ = made.reset(options={"row": 7})
    assert shown["instruction"] == made.unwrapped._room.table.text(7)
    while True:
        shown, reward, ended, cut, info = made.step(made.unwrapped._room.solve())
        assert shown in made.observation_space
        if ended or cut:
            break
    assert ended and not cut and info["success"] and reward > 10
    with pytest.raises(InputError, match="no split"):
        gymnasium.make("TextRearrange-v0", split="tests")


def test_importing_it_is_light():
    program = (
        "import sys, agents.rearrange\n"
        "assert not {'jax', 'cv2'} & set(sys.modules)\n"
        "import gymnasium\n"
        "assert 'TextRearrange-v0' in gymnasium.registry"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
