"""A world is a function of its seed and its actions; success is worth 1 and ends it."""

import importlib.util
import sys

import numpy as np
import pytest

from agents.demonstrate import demonstrate, expert
from agents.environments import babyai, metaworld
from agents.environments.worlds import world
from polyview.errors import InputError
from polyview.rl import episodes

pytest.importorskip("minigrid")
with_metaworld = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="needs metaworld"
)
BALL, RED = 6, 0  # in minigrid's grids


@pytest.fixture(scope="module")
def reach():
    return world("metaworld:reach-v3")


def prints(room, seed, actions):
    """The fingerprints of an episode, and its arrays."""
    first = room.reset(seed)
    found, seen = [room.fingerprint()], [first[next(iter(room.shapes))]]
    for action in actions:
        outcome = room.step(action)
        found.append(room.fingerprint())
        seen.append(outcome.observation[next(iter(room.shapes))])
    return np.stack(found), np.stack(seen)


def check_deterministic(room, again, actions):
    wanted, seen = prints(room, 5, actions)
    assert len(np.unique(wanted, axis=0)) == len(wanted)  # each step counts
    assert wanted.dtype == np.uint8 and wanted.shape[1] == 32
    prints(room, 6, actions[:20])  # what was played before leaves no trace
    for other in (room, again):
        found, observed = prints(other, 5, actions)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(observed, seen)
    elsewhere, observed = prints(room, 6, actions)
    assert (elsewhere != wanted).any(1).all() and (observed != seen).any()


# Beyond the limit of the first, so that further episodes begin.
@pytest.mark.parametrize("level, steps", [("GoToLocalS5N2", 60), ("MiniBossLevel", 10)])
def test_seed_and_actions_determine_a_level(level, steps, rng):
    check_deterministic(
        world(f"babyai:{level}"), world(f"babyai:{level}"), rng.integers(6, size=steps)
    )


@with_metaworld
def test_seed_and_actions_determine_a_task(reach, rng):
    actions = rng.uniform(-1, 1, (30, 4)).astype(np.float32)
    check_deterministic(reach, world("metaworld:reach-v3"), actions)


def test_a_fingerprint_holds_what_no_observation_shows():
    room = world("babyai:GoToLocal")
    first = room.reset(3)
    for _ in range(4):
        last = room.step(0).observation
    np.testing.assert_array_equal(first["grid"], last["grid"])
    turned = room.fingerprint()
    room.reset(3)
    assert (turned != room.fingerprint()).any()  # fewer steps remain


@with_metaworld
def test_a_fingerprint_holds_all_of_the_simulation(reach):
    def spoil(array):
        before, kept = reach.fingerprint(), array.copy()
        array[..., -1] += 1e-9
        assert (reach.fingerprint() != before).any()
        array[...] = kept
        np.testing.assert_array_equal(reach.fingerprint(), before)

    own = reach.environment
    spoil(own.data.qvel)
    spoil(own.data.qacc_warmstart)
    spoil(own.data.mocap_pos)
    spoil(own.model.body_pos)
    spoil(own._target_pos)


def test_fingerprints_tell_values_apart():
    class Box:
        def __init__(self, **fields):
            vars(self).update(fields)

    def printed(*values):
        return episodes.fingerprint(*values).tobytes()

    same, box = Box(a=1), Box(a=1)
    loop = Box(a=1)
    loop.me = loop
    values = [
        [1, 2],
        [2, 1],
        [[1], 2],
        ["1", 2],
        [1.0, 2],
        {"a": 1},
        {"a": None},
        same,
        Box(a=2),
        [same, same],
        [same, box],
        [same, box, same],
        [same, box, box],
        loop,
        np.zeros(2),
        np.zeros(2, np.float32),
        np.zeros((1, 2)),
    ]
    assert len({printed(value) for value in values}) == len(values)
    assert printed(box) == printed(same) == printed(Box(a=np.int64(1), env=loop))
    assert printed({"a": 1, "b": 2}) == printed({"b": 2, "a": 1})


def test_success_is_worth_one_and_begins_the_next_episode():
    room = world("babyai:GoToRedBallNoDists")
    observation = room.reset(11)
    assert observation["instruction"] == "go to the red ball"
    act, rewards = expert(room), []
    for _ in range(room.limit):
        outcome = room.step(act(room.observation))
        rewards.append(outcome.reward)
        assert outcome.done == (outcome.finished is not None) == room.success
        if outcome.done:
            break
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert outcome.finished == (1.0, len(rewards))
    # The agent arrived in front of the ball. What it sees now is another level.
    assert room.arrived["grid"][3, 5, :2].tolist() == [BALL, RED]
    assert outcome.observation is room.observation is not room.arrived
    following = world("babyai:GoToRedBallNoDists").reset(episodes.seed_of(11, 1))
    np.testing.assert_array_equal(outcome.observation["grid"], following["grid"])
    assert not room.step(6).done and room.observation is room.arrived


def test_an_episode_without_success_ends_at_the_limit():
    room = world("babyai:GoToLocalS5N2")
    room.reset(0)
    outcomes = [room.step(6) for _ in range(room.limit)]
    assert room.limit == 25 and not any(outcome.done for outcome in outcomes[:-1])
    assert outcomes[-1].done and outcomes[-1].finished == (0.0, 25)
    assert not room.success


def test_a_mission_that_fails_ends_the_episode_without_success(monkeypatch):
    room = world("babyai:GoToLocal")
    raw, *_ = room.environment.step(6)
    monkeypatch.setattr(
        room.environment, "step", lambda action: (raw, 0, True, False, {})
    )
    outcome = room.step(6)
    assert outcome.done and outcome.finished == (0.0, 1) and not room.success


def test_dense_reward_of_a_level_falls_with_time():
    room = world("babyai:GoToLocal", reward="dense")
    steps = len(demonstrate(world("babyai:GoToLocal"), 4)["actions"])
    room.reset(4)
    act = expert(room)
    rewards = [room.step(act(room.observation)).reward for _ in range(steps)]
    assert not any(rewards[:-1]) and room.success
    assert rewards[-1] == pytest.approx(1 - 0.9 * steps / 64)


def test_the_limit_holds_for_every_mission():
    for level in ("GoToSeqS5R2", "SynthS5R2", "PickupLoc", "OpenTwoDoors"):
        room = world(f"babyai:{level}")
        limits = []
        for seed in range(25):
            room.reset(seed)
            limits.append(room.environment.max_steps)
        assert max(limits) == room.limit
    assert min(limits) == 720


def test_missions_that_are_rejected_are_not_printed(capfd):
    room = world("babyai:PutNextLocal")
    for seed in range(40):
        room.reset(seed)
    assert capfd.readouterr().out == ""
    for seed in range(40):
        room.environment.reset(seed=seed)
    assert "rejected" in capfd.readouterr().out  # or the test shows nothing


def test_levels_and_their_names():
    known = babyai.levels()
    assert len(known) == 96 and known["GoToObjS6"] == "BabyAI-GoToObjS6-v1"
    assert world("babyai:GoToLocal").actions[2] == "go forward"
    actions = world("babyai:GoToLocal").environment.actions
    names = ["left", "right", "forward", "pickup", "drop", "toggle", "done"]
    assert [action.name for action in actions] == names  # in the order of `ACTIONS`


def test_images_show_what_the_agent_sees():
    room = world("babyai:GoToRedBallNoDists", pixels=56)
    seen = 0
    for seed in range(10):
        observation = room.reset(seed)
        image, grid = observation["image"], observation["grid"]
        assert image.shape == room.shapes["image"] == (56, 56, 3)
        assert image.dtype == np.uint8
        red = (image[..., 0] > 200) & (image[..., 1:] < 120).all(-1)
        cells = red.reshape(7, 8, 7, 8).mean((1, 3)).T > 0.2  # by column
        cells[3, 6] = False  # the agent, a red triangle
        np.testing.assert_array_equal(cells, grid[..., 0] == BALL)
        seen += cells.sum()
    assert seen > 3
    drawn = room.render()
    assert drawn.dtype == np.uint8 and drawn.shape == (256, 256, 3)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("babyai:GoToLokal", {}, "did you mean 'GoToLocal'"),
        ("baby:GoToLocal", {}, "did you mean 'babyai'"),
        ("babyai", {}, "babyai:GoToLocal"),
        ("", {}, "babyai:GoToLocal"),
        ("babyai:GoToLocal", {"reward": "sucess"}, "did you mean 'success'"),
        ("babyai:GoToLocal", {"pixels": -1}, "give 0 to 1024"),
        ("babyai:GoToLocal", {"pixels": 5000}, "give 0 to 1024"),
    ],
)
def test_unknown_worlds_and_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        world(name, **options)


@pytest.mark.parametrize("action", [7, -1, 1.0, None, [1, 2]])
def test_what_is_no_numbered_action_is_refused(action):
    with pytest.raises(InputError, match="actions 0 .. 6"):
        world("babyai:GoToLocal").step(action)


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(InputError, match="give 0 or more"):
        world("babyai:GoToLocal").reset(seed)


@pytest.mark.parametrize(
    "name, package, extra",
    [
        ("babyai:GoToLocal", "minigrid", "agents"),
        ("metaworld:reach-v3", "metaworld.env_dict", "metaworld"),
    ],
)
def test_an_absent_package_names_its_extra(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install '\.\[{extra}\]'"):
        world(name)


@with_metaworld
def test_the_goal_is_seen_and_follows_from_the_seed(reach):
    goals = []
    for seed in range(3):
        states = [reach.reset(seed)["state"]]
        goal = reach.environment._target_pos.astype(np.float32)
        for _ in range(3):
            states.append(reach.step(np.ones(4, np.float32)).observation["state"])
        assert states[0].dtype == np.float32 and states[0].shape == (39,)
        for state in states:
            np.testing.assert_array_equal(state[-3:], goal)
        # The second part of a state is the first part of the one before.
        np.testing.assert_array_equal(states[2][18:36], states[1][:18])
        goals.append(goal)
    assert len(np.unique(goals, axis=0)) == 3


@with_metaworld
def test_a_task_ends_with_success_or_at_its_limit():
    room = world("metaworld:reach-v3")
    dense = world("metaworld:reach-v3", reward="dense")
    actions = demonstrate(room, 8)["actions"]
    room.reset(8)
    dense.reset(8)
    outcomes = [room.step(action) for action in actions]
    rewards = [dense.step(action).reward for action in actions]
    assert [outcome.reward for outcome in outcomes[:-1]] == [0.0] * (len(actions) - 1)
    assert outcomes[-1].reward == 1.0 and outcomes[-1].done
    assert outcomes[-1].finished == (1.0, len(actions))
    # The hand has come to within 5 cm of the goal, between the fingers, below it.
    hand, goal = room.arrived["state"][:3], room.arrived["state"][-3:]
    assert np.linalg.norm(hand[:2] - goal[:2]) < 0.05
    assert np.linalg.norm(room.observation["state"][-3:] - goal) > 1e-3
    # Meta-World's own rewards go on.
    assert dense.success and rewards[-1] > rewards[0] > 0
    dense.environment.max_path_length = len(actions) + 9  # to save time
    still = [dense.step(np.zeros(4)) for _ in range(9)]
    assert [outcome.done for outcome in still] == [False] * 8 + [True]
    assert still[-1].finished.steps == len(actions) + 9
    assert room.limit == 500


@with_metaworld
def test_actions_are_clipped_to_the_box_and_must_be_finite(reach):
    assert reach.box == (4, -1.0, 1.0) and reach.actions is None
    reach.reset(0)
    reach.step(np.array([3.0, -7.0, 1.0, 2.0]))
    clipped = reach.fingerprint()
    reach.reset(0)
    reach.step(np.array([1.0, -1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(reach.fingerprint(), clipped)
    for wrong in (np.zeros(3), np.full(4, np.nan), np.zeros((1, 4))):
        with pytest.raises(InputError, match="4 finite numbers"):
            reach.step(wrong)


@with_metaworld
def test_every_task_has_an_instruction_of_its_own():
    known = metaworld.tasks()
    assert len(known) == 50
    assert {f"{name}-v3" for name in metaworld.INSTRUCTIONS} <= set(known)
    said = [metaworld.instruction(name) for name in known]
    assert len(set(said)) == 50
    assert all(text.replace(" ", "").isalpha() and text.islower() for text in said)
    assert metaworld.instruction("drawer-open-v3") == "open the drawer"
    assert metaworld.instruction("stick-pull-v3") == "stick pull"
    with pytest.raises(InputError, match="did you mean 'reach-v3'"):
        world("metaworld:reach")


@with_metaworld
def test_a_machine_that_cannot_draw_is_told_what_it_lacks(reach, monkeypatch):
    import mujoco

    def fail(*arguments):
        raise RuntimeError("no display")

    monkeypatch.setattr(mujoco.Renderer, "__init__", fail)
    monkeypatch.setattr(reach, "_renderers", {})
    with pytest.raises(InputError, match="no display.*MUJOCO_GL"):
        reach.render()


@pytest.mark.slow
@with_metaworld
def test_drawing_does_not_disturb_a_task():
    room = world("metaworld:reach-v3")
    room.reset(1)
    try:
        drawn = room.render()
    except InputError:
        pytest.skip("MuJoCo cannot draw here")
    assert drawn.dtype == np.uint8 and drawn.shape == (480, 480, 3)
    assert drawn.std() > 10
    before = room.fingerprint()
    room.reset(1)
    np.testing.assert_array_equal(room.fingerprint(), before)
