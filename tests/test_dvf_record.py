"""Mazes, worlds and players, and what is recorded of their play."""

import contextlib
import importlib.util
import itertools
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dvf import __main__, players, prepare, recording
from dvf.maze import Maze
from dvf.players import GoalPlayer, play
from dvf.worlds import (
    ANT_STATE,
    BOX,
    RADIUS,
    SIZES,
    AntMaze,
    PointMaze,
    PointWorld,
    at_rest,
    world,
)
from polyview.data.later import Later, lost_share
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError, OutOfRange

ROOT = Path(__file__).parent.parent
SMALL = ("#####", "#...#", "#.#.#", "#...#", "#.###", "#####")
with_mujoco = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None
    or importlib.util.find_spec("mujoco") is None,
    reason="needs gymnasium-robotics",
)


def run(*arguments):
    prepare.main([str(argument) for argument in arguments])


def record(folder, *more):
    run(
        *("--env", "point", "--episodes", 24, "--length", 30, "--policies", 3),
        *("--starts", 3, "--rollouts", 2, "--horizon", 7, "--data_dir", folder),
        *more,
    )
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A data directory with 24 episodes of the point world, and futures."""
    return record(tmp_path_factory.mktemp("data"))


def splits(data_dir, name="point"):
    sources = {
        split: ArrayRecord(name, split, data_dir)
        for split in (*recording.EPISODES, *recording.TRUTH, recording.MAP)
    }
    return {
        split: [*map(source.__getitem__, range(len(source)))]
        for split, source in sources.items()
    }


def mazes():
    """Our map, a small one off the origin with cells of 2, and six random ones."""
    found = [Maze(PointWorld.MAP), Maze(SMALL, cell=2.0, centre=(3.0, -1.0))]
    rng = np.random.default_rng(0)
    while len(found) < 8:
        walls = np.pad(rng.random((4, 5)) < 0.25, 1, constant_values=True)
        rows = ["".join("#" if wall else "." for wall in row) for row in walls]
        with contextlib.suppress(InputError):  # not connected
            found.append(Maze(rows))
    return found


def slow_distances(maze):
    """All shortest ways, by relaxing every pair through every cell."""
    count = len(maze.cells)
    table = [[0 if a == b else 10**6 for b in range(count)] for a in range(count)]
    for a, b in itertools.product(range(count), repeat=2):
        if abs(maze.cells[a] - maze.cells[b]).sum() == 1:
            table[a][b] = 1
    for middle, a, b in itertools.product(range(count), repeat=3):
        table[a][b] = min(table[a][b], table[a][middle] + table[middle][b])
    return table


@pytest.mark.parametrize("maze", mazes(), ids=lambda maze: maze.rows[2])
def test_ways_are_shortest_and_ties_go_up_down_left_right(maze):
    table, cells = slow_distances(maze), maze.cells.tolist()
    for goal in range(len(maze)):
        assert maze.distances(goal).tolist() == table[goal]
        for cell, following in enumerate(maze.next_cell(goal)):
            row, column = cells[cell]
            beside = [(row - 1, column), (row + 1, column)]
            beside += [(row, column - 1), (row, column + 1)]
            numbers = [cells.index([*place]) for place in beside if [*place] in cells]
            nearer = [n for n in numbers if table[goal][n] < table[goal][cell]]
            assert following == (nearer[0] if nearer else goal)


def walls_within(maze, xy, margin):
    """Whether a square overlaps a wall, by comparing rectangles one after the other."""
    rows, columns = maze.walls.shape
    for row, column in np.argwhere(maze.walls):
        left = maze.centre[0] + (column - columns / 2) * maze.cell
        top = maze.centre[1] - (row - rows / 2) * maze.cell
        across = left - margin < xy[0] < left + maze.cell + margin
        if across and top - maze.cell - margin < xy[1] < top + margin:
            return True
    return False


@pytest.mark.parametrize("maze", mazes()[:3], ids=lambda maze: maze.rows[2])
def test_positions_and_cells_agree_with_the_rectangles_of_walls(maze, rng):
    middles = maze.centre_of(np.arange(len(maze)))
    np.testing.assert_array_equal(maze.cell_of(middles), np.arange(len(maze)))
    np.testing.assert_array_equal(maze.centre_of(2), middles[2])
    size = max(maze.walls.shape) * maze.cell
    anywhere = maze.centre + size * (rng.random((300, 2)) - 0.5) * 0.9
    inside = [walls_within(maze, xy, 0.0) for xy in anywhere]
    beyond = (
        abs(anywhere - maze.centre) > np.array(maze.walls.shape)[::-1] / 2 * maze.cell
    )
    np.testing.assert_array_equal(
        maze.cell_of(anywhere) < 0, np.array(inside) | beyond.any(1)
    )
    margin = 0.3 * maze.cell
    near = [walls_within(maze, xy, margin) for xy in anywhere]
    np.testing.assert_array_equal(
        maze.touches(anywhere, margin)[~beyond.any(1)], np.array(near)[~beyond.any(1)]
    )
    off = maze.centre + np.array([[10 * size, 0.0], [0.0, -10 * size]])
    assert (maze.cell_of(off) == -1).all() and maze.touches(off, 0.1).all()


def test_free_positions_are_uniform_and_keep_off_walls(rng):
    maze = Maze(SMALL, cell=2.0, centre=(3.0, -1.0))
    drawn = maze.free(rng, 2000, 0.4)
    assert not any(walls_within(maze, xy, 0.4 - 1e-9) for xy in drawn)
    # The share of each cell is its area at least 0.4 off walls, found on a fine grid.
    grid = np.stack(np.meshgrid(*[np.arange(-6, 6, 0.2) + 0.1] * 2), -1).reshape(-1, 2)
    grid = grid + maze.centre
    grid = grid[[not walls_within(maze, xy, 0.4) for xy in grid]]
    grid = grid[maze.cell_of(grid) >= 0]
    share = np.bincount(maze.cell_of(grid), minlength=len(maze)) / len(grid)
    found = np.bincount(maze.cell_of(drawn), minlength=len(maze)) / len(drawn)
    np.testing.assert_allclose(found, share, atol=4 * np.sqrt(0.1 / 2000))
    within = abs(drawn - maze.centre_of(maze.cell_of(drawn))).max()
    assert within > 0.95  # up to the border of a cell that is open there


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "of one length"),
        (["###", "##"], "of one length"),
        (["####", "#.x#", "####"], r"not \['x'\]"),
        (["###", "#..", "###"], "walls all round"),
        (["###", "###", "###"], "a free cell within"),
        (["#####", "#.#.#", "#####"], "no way connects"),
    ],
)
def test_what_is_no_maze_is_refused(rows, message):
    with pytest.raises(InputError, match=message):
        Maze(rows)


def test_numbers_that_do_not_fit_a_maze_are_refused(rng):
    maze = Maze(SMALL)
    for goal in (-1, len(maze)):
        with pytest.raises(InputError, match=f"no free cell {goal}"):
            maze.distances(goal)
    with pytest.raises(OutOfRange, match="margin"):
        maze.free(rng, 1, 0.5)
    with pytest.raises(OutOfRange, match="cell"):
        Maze(SMALL, cell=0.0)


def bodies(maze, rng, count, speed=5.0):
    xy = maze.free(rng, count, RADIUS)
    return np.concatenate([xy, rng.uniform(-speed, speed, xy.shape)], 1)


def test_bodies_of_the_point_world_never_enter_a_wall(rng):
    """200 bodies, 400 steps, pushed for long into all corners."""
    room = PointWorld()
    states, force = bodies(room.maze, rng, 200), np.zeros((200, 2))
    room.begin(states)
    cells = room.maze.cell_of(states[:, :2])
    stopped = 0
    for step in range(400):
        if step % 25 == 0:
            force = rng.choice([-1.5, 0.0, 1.5], force.shape)
        before, states = states, room.step(force)
        assert not room.maze.touches(states[:, :2], RADIUS - 1e-6).any()
        assert (np.hypot(*states[:, 2:].T) <= 5 + 1e-9).all()
        assert abs(states[:, :2] - before[:, :2]).max() <= 0.05 + 1e-9
        ways = room.maze.cells[cells]
        cells = room.maze.cell_of(states[:, :2])
        assert (abs(room.maze.cells[cells] - ways).sum(1) <= 2).all()
        stopped += (states[:, 2:] == 0).sum()
        # As recorded: rounded, and begun from there.
        room.begin(states.astype(np.float32))
        room.begin(states)
    assert stopped > 1000


def test_a_step_of_the_point_world_follows_its_equation(rng):
    """Far from walls by hand; at a wall the body stops there, and slides along it."""
    room = PointWorld()
    start = np.array([*room.maze.centre_of(0), 0.6, -0.2])
    room.begin(start[None])
    action = np.array([0.25, -3.0])
    found = room.step(action[None])[0]
    velocity = (start[2:] + 0.01 * 23.9 * np.array([0.25, -1.0])) / (1 + 0.01 * 0.239)
    np.testing.assert_allclose(found[2:], velocity, rtol=1e-12)
    np.testing.assert_allclose(found[:2], start[:2] + 0.01 * velocity, rtol=1e-12)
    # Cell 0 is the corner above on the left: walls are half a cell away.
    for _ in range(100):
        states = room.step(np.array([[-1.0, 0.01]]))
        found = states[0].copy()
        states[:] = np.nan  # the world keeps its own
    x, y = room.maze.centre_of(0)
    np.testing.assert_allclose(found[0], x - 0.5 + RADIUS, atol=1e-12)
    assert found[2] == 0 and found[3] != 0 and found[1] != start[1]
    # Without force, motion only ever slows down, and bodies do not meet one another.
    room.begin(np.concatenate([bodies(room.maze, rng, 50), start[None]]))
    energy = np.full(51, np.inf)
    for _ in range(60):
        states = room.step(np.zeros((51, 2)))
        now = (states[:, 2:] ** 2).sum(1)
        assert (now <= energy).all() and (now[energy == 0] == 0).all()
        energy = now


@pytest.mark.parametrize(
    "name",
    [
        "point",
        *(
            pytest.param(f"{kind}_umaze", marks=with_mujoco)
            for kind in ("pointmaze", "antmaze")
        ),
    ],
)
def test_a_world_refuses_states_that_it_cannot_begin(name):
    room = world(name)
    good = room.rest(room.maze.centre_of(0)[None])[0]
    d, cell = len(good), room.maze.cell
    for states, message in [
        (good, rf"must be \[n, {d}\], not \[{d}\]"),
        ([good, [np.nan, *good[1:]]], "not finite"),
        ([good, [good[0] - cell, *good[1:]]], "begin in a wall"),
        ([good, [99.0, *good[1:]]], "begin in a wall, at x 99"),
    ]:
        with pytest.raises(InputError, match=message):
            room.begin(np.array(states))


@pytest.fixture(scope="module")
def environment():
    """gymnasium-robotics' own PointMaze, apart from ours."""
    world("pointmaze_medium")  # keeps the notice off the import
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

    made = PointMazeEnv(maze_map=maps.MEDIUM_MAZE)
    made.reset(seed=0)
    yield made
    Path(made.tmp_xml_file_path).unlink()


@with_mujoco
def test_point_maze_gives_the_states_of_its_environment_exactly(environment, rng):
    """Ten bodies at once against one after the other, with many hits of walls."""
    room, point = PointMaze("medium"), environment.point_env
    states = bodies(room.maze, rng, 10, speed=6.0)
    forces = np.repeat(rng.uniform(-1.6, 1.6, (4, 10, 2)), 25, axis=0)
    forces = forces + 0.2 * rng.standard_normal(forces.shape)
    for _ in range(2):
        room.begin(states)
        found = np.stack([room.step(force) for force in forces])
        for body, state in enumerate(states):
            point.reset()
            point.set_state(state[:2], state[2:])
            for step, force in enumerate(forces[:, body]):
                expected = environment.step(force)[0]["observation"]
                np.testing.assert_array_equal(found[step, body], expected)
        hits = [room.maze.touches(now[:, :2], RADIUS) for now in found]
        assert np.any(hits, axis=0).sum() >= 8
        # The second time from walls: there it matters that the past is forgotten.
        states = found[np.argmax(hits, axis=0), np.arange(10)]


@with_mujoco
@pytest.mark.parametrize("size", SIZES)
def test_the_map_is_that_of_the_environment(size, rng):
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.maze_v4 import Maze as TheirMaze

    before = set(Path(tempfile.gettempdir()).glob("ant_maze*.xml"))
    ours = PointMaze(size).maze
    drawn = {"umaze": maps.U_MAZE, "medium": maps.MEDIUM_MAZE, "large": maps.LARGE_MAZE}
    np.testing.assert_array_equal(ours.walls, np.array(drawn[size]) == 1)
    theirs = TheirMaze(drawn[size], 1, 0.4)
    for cell, place in enumerate(ours.cells):
        expected = theirs.cell_rowcol_to_xy(place)
        np.testing.assert_array_equal(ours.centre_of(cell), expected)
    for xy in ours.free(rng, 50, 0.0):
        place = ours.cells[ours.cell_of(xy[None])[0]]
        np.testing.assert_array_equal(place, theirs.cell_xy_to_rowcol(xy))
    assert set(Path(tempfile.gettempdir()).glob("ant_maze*.xml")) <= before


@pytest.fixture(scope="module")
def ants():
    return AntMaze("medium")


@with_mujoco
def test_an_ant_moves_as_in_its_environment(ants, rng):
    """Ten steps of AntMaze by the torques that a loop over legs finds, exactly."""
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.ant_maze_v5 import AntMazeEnv

    environment = AntMazeEnv(maze_map=maps.MEDIUM_MAZE)
    Path(environment.tmp_xml_file_path).unlink()
    ant = environment.ant_env
    names = [
        *("x", "y", "z", *(f"orientation {axis}" for axis in "wxyz")),
        *(f"{part} {leg}" for leg in (1, 2, 3, 4) for part in ("hip", "ankle")),
        *("x velocity", "y velocity", "z velocity"),
        *(f"angular velocity {axis}" for axis in "xyz"),
        *(f"{p} {leg} velocity" for leg in (1, 2, 3, 4) for p in ("hip", "ankle")),
    ]
    order = [ANT_STATE.index(name) for name in names]
    states = at_rest(ants, rng, 3)
    for actions in rng.uniform(-1.5, 1.5, (2, 3, 2)):
        ants.begin(states)
        found = ants.step(actions)
        for body, (action, begun) in enumerate(zip(actions, states, strict=True)):
            environment.reset()
            ant.set_state(begun[order[:15]], begun[order[15:]])
            for tick in range(10):
                q, v = ant.data.qpos, ant.data.qvel
                torques = slow_gait(q, v, np.clip(action, -1, 1), tick / 10)
                environment.step(np.array(torques))
            expected = np.concatenate([ant.data.qpos, ant.data.qvel])
            np.testing.assert_allclose(found[body, order], expected, atol=1e-9)
        ants.begin(states)  # what came before is forgotten
        np.testing.assert_array_equal(ants.step(actions), found)
        states = found


def slow_gait(q, v, action, time):
    """Torques of one ant, leg by leg, in the order of the motors: 4, 1, 2, 3."""
    heading = math.atan2(
        2 * (q[3] * q[6] + q[4] * q[5]), 1 - 2 * (q[5] ** 2 + q[6] ** 2)
    )
    way = action / max(1, math.hypot(*action))
    wanted = way + 1.8 * (way - v[:2])
    torques = []
    for leg in (4, 1, 2, 3):
        points = math.radians(90 * leg - 45) + heading  # the leg, in the world
        swing = 0.5 * (wanted @ [-math.sin(points), math.cos(points)])
        swing = min(max(swing - 0.2 * heading - 0.05 * v[5], -0.52), 0.52)
        phase = (time + (0.5 if leg in (2, 4) else 0)) % 1
        if phase < 0.8:
            hip, ankle = swing * (1 - 2 * phase / 0.8), 0.56
        else:
            lifted = (phase - 0.8) / 0.2
            hip, ankle = (
                swing * (2 * lifted - 1),
                0.56 - 0.18 * math.sin(math.pi * lifted),
            )
        ankle *= -1 if leg in (2, 3) else 1
        for joint, aim in (0, hip), (1, ankle):
            place = 2 * (leg - 1) + joint
            torque = 2.9 * (aim - q[7 + place]) - 0.2 * v[6 + place]
            torques.append(min(max(torque, -1), 1))
    return torques


@with_mujoco
def test_ants_walk_to_every_side_and_stand_where_none_is_told(ants):
    cells = ants.maze.cells.tolist()
    places = [[2, 1], *[[2, 2]] * 5]  # room for two cells each way
    begun = ants.maze.centre_of([cells.index(place) for place in places])
    ways = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [-0.7, 0.7], [0, 0]])
    states = ants.rest(begun)
    ants.begin(states)
    for _ in range(6):
        states = ants.step(ways)
    moved = states[:, :2] - begun
    along = (moved * ways).sum(1)
    assert (along[:5] > 1).all() and abs(moved[5]).max() < 1e-3
    off = np.linalg.norm(moved - along[:, None] * ways, axis=1)[:4]
    assert (off < along[:4] * np.tan(np.radians(20))).all()
    assert (states[:, 4] > 0.35).all()  # on their feet


def reached(room, player, steps, rng, count=32):
    """The share of bodies within one cell of the goal, and in its cell, at the end."""
    states, policy = at_rest(room, rng, count), np.zeros(count, int)
    assert not room.maze.touches(states[:, :2], room.margin).any()
    assert (states[:, 2:4] == 0).all()
    passed, taken = play(room, [player], policy, states, steps, rng)
    assert (abs(taken) <= 1).all()
    cells = room.maze.cell_of(passed[:, -1, :2].astype(float))
    away = room.maze.distances(player.goal)[cells]
    return (away <= 1).mean(), (away == 0).mean()


@pytest.mark.parametrize(
    "name", ["point", pytest.param("pointmaze_medium", marks=with_mujoco)]
)
def test_players_reach_their_goal_and_stay(name, rng):
    room = world(name)
    first, second = players.players(room.maze, 2, noise=0.0)
    assert reached(room, first, 380, rng) == reached(room, second, 380, rng) == (1, 1)
    noisy = players.players(room.maze, 2, noise=1.0)[1]
    assert reached(room, noisy, 380, rng) == (1, 1)


@with_mujoco
@pytest.mark.slow
def test_ants_reach_their_goal(ants, rng):
    player = players.players(ants.maze, 2, noise=1.0)[1]
    walker = prepare.Walker(ants.maze, player.goal)
    near, there = reached(ants, walker, 300, rng, count=16)
    assert near >= 0.9 and there >= 0.8


def test_players_get_worse_with_the_share_of_random_actions(rng):
    room = PointWorld()
    goal = players.players(room.maze, 1)[0].goal
    table = players.qualities(room.maze, goal, [(1.0, 0.0), (1.0, 0.5), (1.0, 1.0)])
    good, middling, poor = (reached(room, p, 200, rng, 256)[0] for p in table)
    assert good > middling + 0.1 > poor + 0.2
    assert [p.name for p in table] == [
        "goal 1,1",
        *(f"goal 1,1 random {r}" for r in (0.5, 1)),
    ]


def test_an_action_is_control_then_noise_then_the_box(rng):
    maze = Maze(SMALL)
    goal = len(maze) - 1
    start = maze.centre_of(0)
    states = np.array([[*start, 0.3, 0.5], [*(start + [0.02, -0.97]), 0.5, -0.1]])
    exact = GoalPlayer(maze, goal, noise=0.0).actions(states, rng)
    # Of two equal ways, the one down comes before the one to the right.
    np.testing.assert_allclose(
        exact, [[-0.3, -1.0], [10 * -0.02 - 0.5, -1.0]], atol=1e-12
    )
    many = states[:1].repeat(20_000, 0)
    noisy = GoalPlayer(maze, goal, noise=0.5).actions(many, rng)
    assert (abs(noisy) <= 1).all()
    drawn = np.clip(exact[0] + 0.5 * rng.standard_normal(many[:, :2].shape), *BOX)
    np.testing.assert_allclose(noisy.mean(0), drawn.mean(0), atol=0.02)
    np.testing.assert_allclose(noisy.std(0), drawn.std(0), atol=0.02)
    mixed = GoalPlayer(maze, goal, noise=0.0, random=0.3).actions(many, rng)
    uniform = (mixed != exact[0]).all(1)
    assert abs(uniform.mean() - 0.3) < 0.015
    assert (
        abs(mixed[uniform].mean()) < 0.03 and abs(mixed[uniform].var() - 1 / 3) < 0.02
    )
    # A state that no world gives, in a wall: as from the nearest cell.
    lost = np.array([[*(maze.centre_of(2) + [0.0, 0.7]), 0.0, 0.0]])
    found = GoalPlayer(maze, goal, noise=0.0).actions(lost, rng)
    np.testing.assert_allclose(found, [[0, -1]], atol=1e-12)


def test_goals_are_far_from_one_another():
    for maze in mazes():
        table, count = slow_distances(maze), min(6, len(maze))
        goals = [max(range(len(maze)), key=lambda c: (max(table[c]), -c))]
        while len(goals) < count:
            away = [min(table[c][g] for g in goals) for c in range(len(maze))]
            goals.append(away.index(max(away)))
        assert [p.goal for p in players.players(maze, count)] == goals


def test_players_that_cannot_be_are_refused():
    maze = Maze(SMALL)
    for count in (0, len(maze) + 1):
        with pytest.raises(InputError, match=f"{count} players cannot"):
            players.players(maze, count)
    with pytest.raises(InputError, match="one or more pairs"):
        players.qualities(maze, 0, [])
    for wrong in ({"noise": -1.0}, {"random": 1.5}):
        with pytest.raises(OutOfRange):
            GoalPlayer(maze, 0, **wrong)


def test_records_have_the_format(recorded):
    read = splits(recorded)
    sizes = {name: len(rows) for name, rows in read.items()}
    assert sizes == {
        **{"train": 24, "validation": 3},
        **{"values_validation": 9, "values_test": 9},
        **{"actions_validation": 24, "actions_test": 24},  # 2 starts, 3 policies, 4
        "values_map": 3 * 4 * len(PointWorld().maze),  # four places in a cell
    }
    for name in recording.EPISODES:
        for number, row in enumerate(read[name]):
            assert {*row} == {"states", "policy", "actions", "terminal"}
            assert row["states"].shape == (30, 4) and row["actions"].shape == (29, 2)
            assert row["states"].dtype == row["actions"].dtype == np.float32
            assert row["terminal"] is False and row["policy"] == number % 3
            assert (row["states"][0, 2:] == 0).all() and (
                abs(row["actions"]) <= 1
            ).all()
    for name in recording.TRUTH:
        acts = name.startswith("actions")
        for number, row in enumerate(read[name]):
            fields = {"state", "policy", "start", "futures"}
            assert {*row} == fields | ({"action"} if acts else set())
            assert row["futures"].shape == (2, 7, 4) and row["state"].shape == (4,)
            assert row["futures"].dtype == row["state"].dtype == np.float32
            each = 4 if acts else 1
            assert row["policy"] == number // each % 3
            assert row["start"] == number // (3 * each)
        states = {row["start"]: row["state"] for row in read[name]}
        for row in read[name]:
            np.testing.assert_array_equal(row["state"], states[row["start"]])
        assert any((state[2:] != 0).any() for state in states.values())
    forced = {(row["start"], *row["action"].tolist()) for row in read["actions_test"]}
    assert len(forced) == 8  # four actions of each start, the same for all policies


def test_the_manifest_describes_world_players_and_states(recorded):
    manifest = json.loads((recorded / "point/manifest.json").read_text())
    train = splits(recorded)["train"]
    states = np.concatenate([row["states"] for row in train]).astype(np.float64)
    found = manifest["statistics"]["states"]
    np.testing.assert_allclose(found["mean"], states.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["std"], states.std(0), rtol=1e-9)
    names = manifest["targets"]["policy"]["names"]
    assert manifest["targets"]["policy"]["classes"] == len(names) == 3
    described = recording.describe("point", recorded)
    assert described["counts"] == {"episodes": 24, "states": 720}
    assert described["lost"] == {"discount": 0.97, "share": lost_share([30] * 24, 0.97)}
    assert described["box"] == [-1, 1] and described["world"] == "point"
    maze = recording.maze_of(described)
    assert maze.rows == [*PointWorld.MAP]
    for row, player in zip(described["players"], names, strict=True):
        assert player == f"goal {row['goal'][0]},{row['goal'][1]}"
        assert (
            maze.cells.tolist()[maze.cell_of(np.array([row["xy"]]))[0]] == row["goal"]
        )


def test_later_reads_the_episodes(recorded, rng):
    views = Later(m=5, discount=0.8, actions="actions", targets=["policy"])
    source = ArrayRecord("point", "train", recorded)
    example = views(source[7], rng)
    assert example["views"]["later"].shape == (5, 4)
    assert example["views"]["action"].shape == (5, 2)
    assert (
        example["targets"]["policy"] == 1 and source.targets["policy"]["classes"] == 3
    )


def again(room, states, actions):
    """Repeat recorded actions from a recorded state, one body at a time."""
    room.begin(states[:1].astype(float))
    return np.stack([room.step(action[None].astype(float))[0] for action in actions])


@pytest.mark.parametrize(
    "name",
    [
        "point",
        *(
            pytest.param(f"{kind}_umaze", marks=with_mujoco)
            for kind in ("pointmaze", "antmaze")
        ),
    ],
)
def test_recorded_actions_lead_through_the_recorded_states(name, tmp_path):
    run(
        *("--env", name, "--episodes", 4, "--policies", 2),
        *("--length", 6 if name.startswith("ant") else 40),
        *("--no_truth", "--data_dir", tmp_path),
    )
    room, source = world(name), ArrayRecord(name, "train", tmp_path)
    for row in (source[0], source[3]):
        np.testing.assert_array_equal(
            again(room, row["states"], row["actions"]).astype(np.float32),
            row["states"][1:],
        )
    assert not (tmp_path / name / "values_test-00000.array_record").exists()


def test_futures_are_those_of_the_policy(tmp_path):
    """Without noise a loop over one body finds all roll-outs, first actions too."""
    record(tmp_path, "--noise", 0, "--seed", 5)
    room, rng = PointWorld(), np.random.default_rng(0)
    acting = players.players(room.maze, 3, 0.0)
    read = splits(tmp_path)
    for row in [*read["values_test"], *read["actions_validation"]]:
        state = row["state"][None].astype(float)
        room.begin(state)
        for step in range(7):
            action = acting[row["policy"]].actions(state, rng).astype(np.float32)
            if step == 0 and "action" in row:
                action = row["action"][None]
            state = room.step(action.astype(float))
            for rollout in range(2):
                np.testing.assert_array_equal(
                    row["futures"][rollout, step], state[0].astype(np.float32)
                )


def test_a_map_begins_at_rest_all_over_the_maze(recorded, tmp_path):
    """Four places in each free cell, at the middles of its quarters."""
    maze, rows = PointWorld().maze, splits(recorded)[recording.MAP]
    quarters = [
        [x + across, y + up, 0, 0]
        for x, y in maze.centre_of(np.arange(len(maze)))
        for across, up in itertools.product((-0.25, 0.25), repeat=2)
    ]
    for number, row in enumerate(rows):
        assert (row["start"], row["policy"]) == (number // 3, number % 3)
        np.testing.assert_allclose(row["state"], quarters[row["start"]], atol=1e-6)
        assert row["futures"].shape == (2, 7, 4) and "action" not in row
    record(tmp_path / "none", "--places", 0)
    assert not [*(tmp_path / "none").glob("*/values_map*")]
    others = {path.name for path in (tmp_path / "none/point").glob("*record")}
    for name in others:  # a map changes nothing else
        both = [folder / "point" / name for folder in (recorded, tmp_path / "none")]
        assert both[0].read_bytes() == both[1].read_bytes()
    record(recorded)  # exists, whatever its places are
    record(recorded, "--places", 2)
    with pytest.raises(InputError, match="prepared with places 2, not 1"):
        record(recorded, "--places", 1)
    for places, message in [(-1, "give 0 or more"), (2, "without --no_truth")]:
        with pytest.raises(InputError, match=message):
            run("--env", "point", "--no_truth", "--places", places)


def test_blocks_are_the_rectangles_of_walls(rng):
    maze = Maze(SMALL, cell=2.0, centre=(3.0, -1.0))
    anywhere = maze.centre + rng.uniform(-0.99, 0.99, (400, 2)) * [5, 6]
    x, y = anywhere.T
    inside = [
        (left < x) & (x < left + wide) & (low < y) & (y < low + high)
        for left, low, wide, high in maze.blocks()
    ]
    expected = [walls_within(maze, xy, 0.0) for xy in anywhere]
    np.testing.assert_array_equal(np.sum(inside, 0), expected)


def test_roll_outs_differ_where_the_policy_is_noisy(recorded):
    read = splits(recorded)
    for rows in (read[name] for name in recording.TRUTH):
        first = [row["futures"][0, 0] == row["futures"][1, 0] for row in rows]
        last = [row["futures"][0, -1] == row["futures"][1, -1] for row in rows]
        # A first action that is given leads to one state.
        assert np.all(first) if "action" in rows[0] else not np.all(first)
        assert not np.all(last, axis=1).any()


def test_the_seed_alone_decides_every_byte(recorded, tmp_path):
    record(tmp_path / "again")
    record(tmp_path / "other", "--seed", 1)
    files = sorted(path.name for path in (recorded / "point").iterdir())
    assert len(files) == 8
    for file in files:
        content = (recorded / "point" / file).read_bytes()
        assert content == (tmp_path / "again/point" / file).read_bytes()
        assert content != (tmp_path / "other/point" / file).read_bytes()
    # What is asked of one split does not change another.
    record(tmp_path / "more", "--starts", 5)
    for file in ("train-00000.array_record", "validation-00000.array_record"):
        content = (recorded / "point" / file).read_bytes()
        assert content == (tmp_path / "more/point" / file).read_bytes()


def test_no_start_and_no_state_is_in_two_splits(recorded):
    seen: dict[bytes, str] = {}
    for name, rows in splits(recorded).items():
        states = [
            row["states"] if "states" in row else row["state"][None] for row in rows
        ]
        own = {state.tobytes() for state in np.concatenate(states)}
        assert not own & {*seen}
        seen |= dict.fromkeys(own, name)


def test_existing_episodes_are_kept_and_other_settings_refused(recorded, capsys):
    before = {p: p.stat().st_mtime_ns for p in (recorded / "point").iterdir()}
    record(recorded)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{recorded / 'point'} already exists: 24 episodes, 720 states, "
        f"{lost_share([30], 0.97):.1%} of pairs lost at discount 0.97"
    )
    for flag, value in [("noise", 0.5), ("players", "qualities"), ("seed", 3)]:
        with pytest.raises(InputError, match=f"prepared with {flag} .*, not {value}"):
            record(recorded, f"--{flag}", value)
    with pytest.raises(InputError, match="prepared with starts 3, not None"):
        run(
            *("--env", "point", "--episodes", 24, "--length", 30, "--policies", 3),
            *("--no_truth", "--data_dir", recorded),
        )
    assert before == {p: p.stat().st_mtime_ns for p in (recorded / "point").iterdir()}


def test_players_of_several_qualities_are_recorded(tmp_path, capsys):
    flags = ("--env", "point", "--name", "mixed", "--players", "qualities")
    run(
        *(*flags, "--policies", 3, "--episodes", 6, "--length", 20, "--no_truth"),
        *("--data_dir", tmp_path),
    )
    line = capsys.readouterr().out
    assert "mixed written: 6 episodes, 120 states" in line and "steps/s" in line
    table = recording.describe("mixed", tmp_path)["players"]
    assert [row["random"] for row in table] == [0, 0.5, 1]
    assert len({(*row["goal"], row["noise"]) for row in table}) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "pointmaze_medum"], "no world; did you mean 'pointmaze_medium'"),
        (["--env", "point", "--players", "goal"], "did you mean 'goals'"),
        (["--env", "point", "--episodes", 0], "--episodes is 0; give 1 or more"),
        (["--env", "point", "--length", 1], "--length is 1; give 2 or more"),
        (["--env", "point", "--policies", 0], "--policies is 0; give 1 or more"),
        (["--env", "point", "--policies", 99], "99 players cannot"),
        (["--env", "point", "--starts", 0], "--starts is 0; give 1 or more"),
        (["--env", "point", "--rollouts", 0], "--rollouts is 0; give 1 or more"),
        (["--env", "point", "--rollouts", 2000], "give 1000 or less"),
        (["--env", "point", "--horizon", -1], "--horizon is -1; give 1 or more"),
        (["--env", "point", "--seed", -1], "--seed is -1; give 0 or more"),
        (["--env", "point", "--noise", "nan"], "--noise is nan; give 0 or more"),
        (["--env", "point", "--noise", "inf"], "--noise is inf; give 0 or more"),
        (["--env", "point", "--name", "a/b"], "--name a/b is a path"),
        (["--env", "point", "--no_truth", "--starts", 2], "--starts only applies"),
        (["--env", "point", "--episode", 2], "did you mean '--episodes'"),
    ],
)
def test_bad_flags_are_errors_that_write_nothing(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(*flags, "--data_dir", tmp_path)
    assert not [*tmp_path.iterdir()]


def write_one(folder, **changes):
    states = np.arange(12, dtype=np.float32).reshape(6, 2)
    actions = np.zeros((5, 1), np.float32)
    episode = {"states": states, "policy": 0, "actions": actions, "terminal": False}
    future = {"state": states[0], "policy": 0, "start": 0, "futures": states[None]}
    rows = {"train": [episode | changes.get("episode", {})]}
    if "future" in changes:
        rows["values_test"] = [future | changes["future"]]
    provenance = {"state": ["x", "spin"], "action": ["force"], "box": [-1.0, 1.0]}
    recording.write(
        folder / "own", rows, policies=["a"], source="a test", provenance=provenance
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"episode": {"states": np.ones((6, 2), np.float32)}},
            r"0 of the states \(x\)",
        ),
        (
            {"episode": {"states": np.float32([[1, 7], [2, 7], [3, 7]] * 2)}},
            r"number 1 of the states \(spin\) is 7 throughout",
        ),
        (
            {"episode": {"states": np.full((6, 2), np.nan, np.float32)}},
            "train 0: states",
        ),
        ({"episode": {"states": np.ones((1, 2), np.float32)}}, "has 1 states; give 2"),
        ({"episode": {"states": np.ones((6, 3), np.float32)}}, r"not float32\[6, 2\]"),
        ({"episode": {"states": np.ones((6, 2))}}, r"float64\[6, 2\], not float32"),
        (
            {"episode": {"actions": np.zeros((6, 1), np.float32)}},
            r"not float32\[5, 1\]",
        ),
        ({"episode": {"actions": np.full((5, 1), 2, np.float32)}}, "an action of 2.0"),
        ({"episode": {"policy": 1}}, "there is no policy 1, only 0 .. 0"),
        ({"future": {"futures": np.ones((6, 2), np.float32)}}, r"not \[r, n, d\]"),
        ({"future": {"futures": np.ones((1, 0, 2), np.float32)}}, r"not \[r, n, d\]"),
        ({"future": {"state": np.full(2, np.inf, np.float32)}}, "values_test 0: state"),
        ({"future": {"action": np.full(1, -2, np.float32)}}, "an action of -2.0"),
    ],
)
def test_episodes_that_cannot_be_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_one(tmp_path, **changes)
    assert not [*tmp_path.iterdir()]
    write_one(tmp_path, **{key: {} for key in changes})  # the change was to blame
    assert ArrayRecord("own", "train", tmp_path)[0]["policy"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": 3}, "holds no recorded episodes"),
        ({"counts": {"episodes": "x", "states": 2}}, "its counts are"),
        ({"counts": {}}, "its counts are"),
        ({"lost": {}}, "its share of lost pairs is None"),
    ],
)
def test_damaged_provenance_is_refused(recorded, tmp_path, change, message):
    manifest = json.loads((recorded / "point/manifest.json").read_text())
    manifest["provenance"] |= change
    (tmp_path / "point").mkdir()
    (tmp_path / "point/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        recording.describe("point", tmp_path)
    with pytest.raises(InputError, match="no recorded episodes 'other'"):
        recording.describe("other", tmp_path)


@pytest.mark.parametrize("maze", [{}, {"rows": 3, "cell": 1, "centre": [0, 0]}])
def test_a_damaged_maze_is_refused(maze):
    with pytest.raises(InputError, match="damaged"):
        recording.maze_of({"maze": maze})


def test_without_gymnasium_robotics_the_line_says_what_to_install(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("gymnasium_robotics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(
        InputError, match=r"pip install '\.\[dvf\]', or take --env point"
    ):
        world("pointmaze_medium")
    with pytest.raises(InputError, match="no PointMaze of size 'mediun'; did you mean"):
        PointMaze("mediun")
    with pytest.raises(InputError, match="no world 'pont'; did you mean 'point'"):
        world("pont")


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )


@with_mujoco
@pytest.mark.parametrize("name", ["pointmaze_umaze", "antmaze_umaze"])
def test_their_mazes_print_nothing(name):
    done = python(f"from dvf.worlds import world; world('{name}')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_point_world_needs_numpy_alone():
    done = python(
        "import sys; from dvf.worlds import world; import dvf.prepare; world('point');"
        "print({'mujoco', 'gymnasium', 'gymnasium_robotics', 'jax'} & {*sys.modules})"
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "set()", "")


def test_the_program_lists_its_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dvf"])
    __main__.main()
    assert "prepare Record episodes" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["dvf", "prepare", "--env", "pont"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "no world; did you mean 'point'?" in capsys.readouterr().err
