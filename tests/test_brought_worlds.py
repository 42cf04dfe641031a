"""Worlds of other packages keep what `agents.environments.worlds:World` promises."""

import importlib.util
import sys

import cv2
import numpy as np
import pytest

from agents import demonstrate, parts, prepare, recording
from agents.environments import rows as world_rows
from agents.environments.captions import captioner
from agents.environments.worlds import kind_of, parse, world
from dvf.worlds import PointMaze
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError
from polyview.rl.episodes import seed_of

KNOWN, NEW = "dvf.navigation:KnownGoals", "dvf.navigation:NewGoals"
PONG = "sgi.pong:Pong"


def needing(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"needs {package}"
    )


with_mujoco, with_ale = needing("gymnasium_robotics"), needing("ale_py")
NAMES = [pytest.param(KNOWN, marks=with_mujoco), pytest.param(PONG, marks=with_ale)]


@pytest.fixture(scope="module")
def made():
    """`made(name, number)` -> a world that other tests may have played in."""
    kept = {}

    def make(name, number=0, **options):
        key = name, number, *options.items()
        if key not in kept:
            kept[key] = world(name, **options)
        kept[key].on_end = None
        return kept[key]

    return make


def taken(room, rng, count):
    if room.box is None:
        return rng.integers(len(room.actions), size=count).tolist()
    return list(rng.uniform(-1, 1, (count, room.box[0])).astype(np.float32))


def played(room, seed, actions):
    """The fingerprints and arrays of a reset and some actions."""
    seen = [room.reset(seed)]
    prints = [room.fingerprint()]
    for action in actions:
        seen.append(room.step(action).observation)
        prints.append(room.fingerprint())
    name = next(iter(room.shapes))
    return np.stack(prints), np.stack([one[name] for one in seen])


def won(room, seed):
    """Let the expert play an episode; return rewards and all that it led to."""
    seen, rewards = [room.reset(seed)], []
    act = demonstrate.expert(room)
    while True:
        outcome = room.step(act(seen[-1]))
        seen.append(room.arrived)
        rewards.append(outcome.reward)
        assert outcome.done == (outcome.finished is not None)
        if outcome.done:
            return rewards, seen, outcome


def ways(maze, goal):
    """The steps from each free cell to a goal, by relaxation until nothing changes."""
    places = [tuple(cell) for cell in maze.cells.tolist()]
    found = {place: np.inf for place in places} | {places[goal]: 0}
    for _ in places:
        for row, column in places:
            beside = ((row + 1, column), (row - 1, column), (row, column + 1))
            least = min(found.get(one, np.inf) for one in (*beside, (row, column - 1)))
            found[row, column] = min(found[row, column], least + 1)
    return np.array([found[place] for place in places])


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_its_seed_and_its_actions(made, rng, name):
    room, again = made(name), made(name, 1)
    actions = taken(room, rng, 110)
    wanted, seen = played(room, 5, actions)
    assert len(np.unique(wanted, axis=0)) == len(wanted)
    assert wanted.dtype == np.uint8 and wanted.shape[1] == 32
    assert room._episode > 0  # so that the next one is compared, too
    played(room, 6, actions[:20])
    for other in (room, again):
        found, observed = played(other, 5, actions)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(observed, seen)
    elsewhere, observed = played(room, 6, actions)
    assert (elsewhere != wanted).any(1).all() and (observed != seen).any()
    for wrong in (-1, 1.5, True, None):
        with pytest.raises(InputError, match="give 0 or more"):
            room.reset(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_observations_and_fields_are_as_promised(made, name):
    room = made(name)
    assert room.name == name and room.legal() is None
    assert room.kind == {KNOWN: "pointmaze", PONG: "pong"}[name]
    assert (room.box is None) != (room.actions is None)
    recording.check_versions({"versions": room.versions})
    episode = demonstrate.demonstrate(room, 1)
    provenance = {
        "observations": {field: list(shape) for field, shape in room.shapes.items()},
        "action": recording.action_of(room),
        "tasks": [name],
    }
    recording.check(episode, provenance, "this one")
    drawn = room.render()
    assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.std() > 10


@pytest.mark.parametrize("name", NAMES)
def test_success_is_worth_one_and_begins_the_next_episode(made, name):
    room = made(name)
    before = []
    room.on_end = lambda: before.append(room.fingerprint())
    rewards, seen, outcome = won(room, 11)
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0] and room.success
    assert outcome.finished == (1.0, len(rewards)) and len(rewards) <= room.limit
    assert outcome.observation is room.observation is not room.arrived
    field = next(iter(room.shapes))
    following = made(name, 1)
    first = following.reset(seed_of(11, 1))
    np.testing.assert_array_equal(outcome.observation[field], first[field])
    assert (seen[-1][field] != first[field]).any()
    assert len(before) == 1 and (before[0] != room.fingerprint()).any()
    assert not room.step(taken(room, np.random.default_rng(0), 1)[0]).done
    assert not room.success and room.observation is room.arrived
    # Its score is that of its own episode.
    room.on_end = None
    assert won(room, 12)[2].finished.score == 1.0


@with_mujoco
def test_success_is_to_be_within_half_a_cell_of_the_goal(made):
    room, dense = made(KNOWN), made(NEW, reward="dense")
    for seed in range(4):
        for one in (room, dense):
            rewards, seen, outcome = won(one, seed)
            states = np.stack([step["state"] for step in seen])
            away = np.linalg.norm(states[:, :2] - states[:, 4:], axis=1)
            assert (away[:-1] > 0.5).all() and away[-1] <= 0.5 and one.success
            assert (states[:, 4:] == states[0, 4:]).all() and not states[0, 2:4].any()
        maze = dense.environment.maze
        goal = int(maze.cell_of(states[:1, 4:])[0])
        left, longest = ways(maze, goal), max(ways(maze, n).max() for n in (0, 24))
        cells = maze.cell_of(states[1:, :2])
        assert (cells >= 0).all()
        np.testing.assert_allclose(rewards, -left[cells] / longest)
        assert rewards[-1] == 0 and min(rewards) >= -1


@with_mujoco
def test_goals_that_are_new_are_never_asked_for_before(made):
    known, new = made(KNOWN), made(NEW, reward="dense")
    maze = known.environment.maze
    assert sorted([*known.goals, *new.goals]) == [*range(len(maze))]
    assert len(new.goals) == len(maze) // 5
    for goal in new.goals:  # all over the maze
        assert sorted(ways(maze, goal)[new.goals])[1] >= 4
    seen = {}
    for room in (known, new):
        found = []
        for seed in range(120):
            state = room.reset(seed)["state"].astype(np.float64)
            goal = int(maze.cell_of(state[None, 4:])[0])
            start = int(maze.cell_of(state[None, :2])[0])
            np.testing.assert_array_equal(state[4:], maze.centre_of(goal))
            assert ways(maze, goal)[start] >= 3 if seed < 20 else True
            found.append(goal)
        seen[room] = set(found)
        assert seen[room] == set(room.goals)  # and each of them is
    assert room.reset(3)["state"].tolist() == room.reset(3)["state"].tolist()


@with_mujoco
def test_a_force_lasts_for_five_steps_and_is_clipped(made, rng):
    room, maze = made(KNOWN), PointMaze("medium")
    first = room.reset(8)["state"]
    maze.begin(first[None, :4].astype(np.float64))
    start = room.environment._world._states.copy()
    maze.begin(start)
    for action in rng.uniform(-2, 2, (20, 2)).astype(np.float32):
        found = room.step(action).observation["state"]
        for _ in range(5):
            wanted = maze.step(np.clip(action, -1, 1)[None].astype(np.float64))
        np.testing.assert_array_equal(found[:4], wanted[0].astype(np.float32))
    for wrong in (np.zeros(3), np.full(2, np.nan), np.zeros((1, 2))):
        with pytest.raises(InputError, match="2 finite numbers"):
            room.step(wrong)


@with_mujoco
def test_a_fingerprint_holds_all_of_the_simulation(made, rng):
    room = made(KNOWN)
    room.reset(0)
    for action in taken(room, rng, 5):
        room.step(action)
    body = room.environment._world._bodies[0]
    for array in (body.qpos, body.qvel, body.qacc_warmstart, body.ctrl):
        before, kept = room.fingerprint(), array.copy()
        array[-1] += 1e-9
        assert (room.fingerprint() != before).any()
        array[:] = kept
        np.testing.assert_array_equal(room.fingerprint(), before)


@with_mujoco
def test_a_maze_is_drawn_from_above(made):
    room = made(KNOWN, pixels=40)  # five pixels a cell
    image, state = room.reset(2)["image"], room.observation["state"]
    assert image.shape == room.shapes["image"] == (40, 40, 3)
    walls = room.environment.maze.walls
    for row in range(40):
        for column in range(40):
            x, y = (column + 0.5) / 5 - 4, 4 - (row + 0.5) / 5
            ball = np.hypot(x - state[0], y - state[1])
            goal = np.hypot(x - state[4], y - state[5])
            red, green, blue = image[row, column].astype(int)
            if ball < 0.1:
                assert blue > red + 100
            elif goal < 0.35:
                assert green > red + 50
            elif min(ball - 0.25, goal - 0.5) > 0.15:
                grey = 90 if walls[row // 5, column // 5] else 240
                assert (red, green, blue) == (grey,) * 3


@with_mujoco
@pytest.mark.parametrize("name", [KNOWN, NEW])
def test_the_expert_reaches_every_goal(made, name):
    room = made(name, **({} if name == KNOWN else {"reward": "dense"}))
    lengths = [len(won(room, seed)[0]) for seed in range(25) if room.reset(seed)]
    assert max(lengths) <= 51 and room.limit == 100


@with_ale
def test_the_expert_wins_its_points(made):
    room = made(PONG, pixels=16)
    scores = [won(room, seed)[2].finished for seed in range(6)]
    assert [score.score for score in scores] == [1.0] * 6
    assert max(score.steps for score in scores) <= 243


@with_ale
def test_the_expert_knows_where_its_paddle_goes(made):
    """Also by actions of others, and when it was sent on beyond the wall."""
    room = made(PONG, pixels=16)
    room.reset(2)
    act, last = room.expert(), None
    for action in [0] * 4 + [4] * 10 + [3] * 4 + [2] + [0] * 2:
        act(room.observation, last)
        room.step(action)
        last = action
    act(room.observation, last)
    paddle = int(room.environment.game.ram()[51])
    assert 60 < paddle < 110 and abs(act._knob - paddle) < 4


@with_ale
def test_a_point_ends_an_episode_of_pong(made, monkeypatch):
    room, dense = made(PONG, pixels=16), made(PONG, 2, reward="dense", pixels=16)
    named = "noop, fire, right, left, right fire, left fire"
    assert room.actions == tuple(named.split(", "))
    # The memory counts the points of both, as the screen shows them.
    ends, lost = [], 0
    dense.on_end = lambda: ends.append(points())

    def points():
        return dense.environment.game.ram()[[13, 14]].astype(int)

    for seed in range(3):
        room.reset(seed)
        dense.reset(seed)
        before = points()
        assert before.sum() in range(1, 5)
        while True:
            outcome, own = room.step(3), dense.step(3)
            assert outcome.done == own.done
            if own.done:
                break
            assert own.reward == outcome.reward == 0 and not room.success
        lost += own.reward == -1
        assert own.reward == [1, -1] @ (before - ends[-1]) and abs(own.reward) == 1
        assert room.success == dense.success == outcome.reward == (own.reward == 1)
        assert outcome.finished.score == outcome.reward
        assert own.finished.score == own.reward
    assert lost
    dense.on_end = None
    rewards, *_ = won(dense, 3)
    assert rewards[-1] == 1 and not any(rewards[:-1])
    monkeypatch.setattr("sgi.pong.LIMIT", 4)
    room.reset(0)
    outcomes = [room.step(1) for _ in range(4)]
    assert [outcome.done for outcome in outcomes] == [False] * 3 + [True]
    assert outcomes[-1].finished == (0.0, 4) and not room.success
    for wrong in (6, -1, 1.0, None):
        with pytest.raises(InputError, match="actions 0 .. 5"):
            room.step(wrong)


@with_ale
def test_images_of_pong_are_three_frames_in_a_row(made, rng):
    room, small = made(PONG), made(PONG, pixels=16)
    first = room.reset(4)["image"]
    small.reset(4)
    assert first.shape == room.shapes["image"] == (84, 84, 3)
    assert small.shapes["image"] == (16, 16, 3)
    frames = [first[..., 0]] * 3
    np.testing.assert_array_equal(first, np.stack(frames, -1))
    moved = 0
    for action in taken(room, rng, 40):
        image = room.step(action).observation["image"]
        frames = [*frames[1:], room.environment.game._frame]
        np.testing.assert_array_equal(image, np.stack(frames, -1))
        resized = [
            cv2.resize(f, (16, 16), interpolation=cv2.INTER_AREA) for f in frames
        ]
        found = small.step(action).observation["image"]
        np.testing.assert_array_equal(found, np.stack(resized, -1))
        moved += (image[..., 0] != image[..., 2]).any()
    assert moved > 30


@with_ale
def test_points_differ_by_their_seed(made):
    """The opening of a game alone would not tell twenty of them apart."""
    room = made(PONG)
    firsts = {room.reset(seed)["image"].tobytes() for seed in range(20)}
    assert len(firsts) > 17


@with_ale
def test_points_of_pong_are_rows(made):
    rows = world_rows.rows(PONG, 2, 0, pixels=16)
    step, ended = rows.begin(), 0
    assert step.observation["image"].shape == (2, 16, 16, 3) and rows.actions == 6
    for _ in range(120):
        step = rows.step(np.zeros(2, int))
        ended += step.terminated.sum()
        assert not step.truncated.any() and not step.success.any()
    assert ended >= 2


@pytest.mark.parametrize("name", [*NAMES, pytest.param(NEW, marks=with_mujoco)])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"reward": "sucess"}, "did you mean 'success'"),
        ({"pixels": -1}, "give 0 to"),
        ({"pixels": 5000}, "give 0 to"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        world(name, **options)


def test_names_of_worlds_that_are_brought():
    assert parse(KNOWN) == ("dvf.navigation", "KnownGoals")
    assert kind_of([KNOWN, NEW], "record") == "dvf.navigation"
    with pytest.raises(InputError, match="babyai and dvf.navigation are not one world"):
        kind_of([KNOWN, "babyai:GoTo"], "record")
    with pytest.raises(InputError, match="given twice"):
        kind_of([PONG, PONG], "record")
    for wrong in ("a.b:", "a:B", "a..b:C", ".:C", "a.b:C-D", "a.b:C:D", "a.b"):
        with pytest.raises(InputError, match="is no world.*package.module:Class"):
            world(wrong, typed=True)
    with pytest.raises(InputError, match="has no captions; babyai, .* have"):
        captioner(KNOWN)
    # What is trusted need not be a world.
    with pytest.raises(InputError, match="the world .dvf.worlds:world.: missing"):
        world("dvf.worlds:world")
    with pytest.raises(InputError, match="dvf.navigation has no 'Goals'"):
        world("dvf.navigation:Goals", typed=True)


STRANGER = """
from polyview.rl.episodes import Episodes, fingerprint
import numpy as np


class Room(Episodes):
    name, kind, box, limit = "stranger.rooms:Room", "stranger", None, 3
    actions, versions, shapes = ("left", "right"), {"numpy": np.__version__}, {}
    shapes = {"state": (1,)}

    def __init__(self, *, reward, pixels):
        super().__init__(reward == "dense")
        self.environment = None
        self.reset(0)

    def _begin(self):
        self._score, self._steps = 0.0, 0
        self.observation = {"state": np.zeros(1, np.float32), "instruction": "go"}

    def step(self, action):
        self.arrived = {**self.observation, "state": np.ones(1, np.float32)}
        self.success = action == 1
        return self._outcome(0.0, self.success)


class Expert(Room):
    name = "stranger.rooms:Expert"

    def expert(self):
        return lambda observation, taken=None: 1
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A folder of modules with a package that no trusted.txt names."""
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "__init__.py").touch()
    (tmp_path / "stranger" / "rooms.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "stranger"]:
        del sys.modules[name]


def test_a_strangers_world_is_imported_only_if_the_user_typed_it(stranger, capsys):
    name = "stranger.rooms:Expert"
    with pytest.raises(InputError, match="in no trusted.txt.*--trust stranger") as told:
        world(name)
    assert len(str(told.value)) <= 2 * 88
    assert not {one for one in sys.modules if one.startswith("stranger")}
    few = ["--episodes", "3", "--validation", "1", "--test", "1"]
    command = ["--data_dir", str(stranger), "--env"]
    prepare.main([*few, *command, name])
    folder = stranger / "stranger_rooms_expert"
    assert f"{folder} written: 3 episodes" in capsys.readouterr().out
    described = recording.describe(folder.name, stranger)
    assert described["tasks"] == [name] and described["world"] == "stranger"
    with pytest.raises(InputError, match="Room has no expert; give its class a method"):
        prepare.main([*few, *command, "stranger.rooms:Room"])
    with pytest.raises(InputError, match="in no trusted.txt"):  # imported or not
        world(name)


@with_mujoco
def test_recorded_ways_are_found_again_and_have_a_bridge(tmp_path, monkeypatch):
    few = ["--episodes", "4", "--validation", "1", "--test", "1"]
    prepare.main(["--env", KNOWN, "--data_dir", str(tmp_path), "--noise", "0.2", *few])
    name = "dvf_navigation_knowngoals"
    described, room = recording.describe(name, tmp_path), world(KNOWN)
    assert described["world"] == "pointmaze" and described["tasks"] == [KNOWN]
    for split in recording.SPLITS:
        for episode in ArrayRecord(name, split, tmp_path):
            states = [room.reset(episode["seed"])["state"]]
            for action in episode["actions"]:
                assert not room.success
                room.step(action)
                states.append(room.arrived["state"])
            assert room.success
            np.testing.assert_array_equal(np.stack(states), episode["state"])
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))
    bridges, _ = parts.bridges(name)
    assert len(bridges["state"]["mean"]) == 6
