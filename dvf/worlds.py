"""Worlds in which many bodies move through one maze at once, each for itself.

A world has a `maze`, a `name`, and the `origin` of its rules, for a manifest, and

    begin(states float64[n, 4])              put n bodies there, at rest or moving
    step(actions float64[n, 2]) -> states    move each one step

A state is x, y and the velocity in both directions; an action is a force, clipped to
[-1, 1]. A world holds no random numbers.
"""

import importlib
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from dvf.maze import FREE, WALL, Maze
from polyview.errors import InputError, nearest

STATE = ("x", "y", "x velocity", "y velocity")
ACTION = ("x force", "y force")
BOX = (-1.0, 1.0)  # of each number of an action
RADIUS = 0.1  # of a body; a cell is 1 wide

_NOTICE = "gymnasium_robotics"  # as the notices of its makers name it


class World(Protocol):
    """See the module."""

    maze: Maze
    name: str
    origin: dict[str, str]

    def begin(self, states: np.ndarray) -> None: ...

    def step(self, actions: np.ndarray) -> np.ndarray: ...


class PointWorld:
    """A point mass with drag, in numpy: no further package is needed.

        v <- limit((v + dt a f) / (1 + dt c)),    x <- x + dt v

    with f the action and the constants of PointMaze's ball, so that the same players
    play in both. Speed, not each component, is limited. A wall stops the motion towards
    it; the body is a square there, which slides along.
    """

    # Two loops and three dead ends; no symmetry.
    MAP = (
        "#########",
        "#...#...#",
        "#.#.#.#.#",
        "#.#...#.#",
        "#.###.###",
        "#.....#.#",
        "###.#.#.#",
        "#.......#",
        "#########",
    )
    DT = 0.01
    ACCELERATION = 23.9  # by an action of 1
    DRAG = 0.239  # per unit of time
    SPEED = 5.0  # the limit: half of `RADIUS` a step, so no wall is passed unseen
    _SLACK = 1e-6  # a body beside a wall, rounded to float32, is not inside it

    name = "point"

    def __init__(self) -> None:
        self.maze = Maze(self.MAP)
        self.origin = {"rules": "dvf.worlds:PointWorld"}
        self._states = np.zeros((0, 4))

    def begin(self, states: np.ndarray) -> None:
        """Put bodies at states, float64[n, 4]. Raises InputError for one in a wall."""
        self._states = _checked(states, self.maze, RADIUS - self._SLACK)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Move each body by its action, float64[n, 2]; return the states."""
        force = self.ACCELERATION * np.clip(actions, *BOX)
        xy, velocity = self._states[:, :2], self._states[:, 2:]
        velocity = (velocity + self.DT * force) / (1 + self.DT * self.DRAG)
        speed = np.sqrt((velocity**2).sum(1, keepdims=True))
        velocity = velocity * np.minimum(1, self.SPEED / np.maximum(speed, self.SPEED))
        xy = xy.copy()
        for axis in (0, 1):  # one after the other, so that bodies slide along walls
            xy[:, axis] += self.DT * velocity[:, axis]
            ahead = np.zeros_like(xy)
            ahead[:, axis] = np.sign(velocity[:, axis]) * RADIUS
            side = [RADIUS - self._SLACK] * 2
            side[axis] = 0.0
            front = xy + ahead  # the middle of the edge in front
            hit = self.maze.touches(front, (side[0], side[1]))
            edge = self._nearest_edge(front[hit, axis], axis)
            xy[hit, axis] = edge - ahead[hit, axis]
            velocity[hit, axis] = 0
        self._states = np.concatenate([xy, velocity], 1)
        return self._states.copy()

    def _nearest_edge(self, along: np.ndarray, axis: int) -> np.ndarray:
        """Return the edge of a cell that is nearest to each coordinate."""
        size, cell = self.maze.walls.shape[1 - axis], self.maze.cell
        first = self.maze.centre[axis] - size / 2 * cell
        return first + cell * np.round((along - first) / cell)


class PointMaze:
    """PointMaze of gymnasium-robotics, many bodies at once: the same states, exactly.

    Before it moves, the environment limits each component of the velocity to 5 and
    solves for all forces with the action of the last step. The solver then starts from
    these forces, so the same is done here, except that what no action changes is
    computed once instead of twice. `begin` resets the simulation.

    Args:
      size: of the maze: umaze, medium or large.

    Raises InputError for another size, and if gymnasium-robotics is not installed.
    """

    SIZES = ("umaze", "medium", "large")
    SPEED = 5.0  # of each component

    def __init__(self, size: str):
        if size not in self.SIZES:
            raise InputError(
                f"no PointMaze of size '{size}'{nearest(size, self.SIZES)}"
            )
        self.name = f"pointmaze_{size}"
        environment = _environment(size)
        walls = environment.maze.maze_map
        self.maze = Maze(
            ["".join(WALL if cell == 1 else FREE for cell in row) for row in walls],
            environment.maze.maze_size_scaling,
        )
        self.origin = {
            name: metadata.version(name) for name in ("gymnasium-robotics", "mujoco")
        }
        self._mujoco: Any = importlib.import_module("mujoco")
        self._model = environment.point_env.model
        self._bodies: list[Any] = []  # kept: each has 14 MB of address space
        self._states = np.zeros((0, 4))

    def begin(self, states: np.ndarray) -> None:
        """Put bodies at states, float64[n, 4].

        Raises InputError for one whose middle is in a wall. Walls are a little soft:
        the edge of a fast body does get in.
        """
        self._states = _checked(states, self.maze, 0.0)
        while len(self._bodies) < len(states):
            self._bodies.append(self._mujoco.MjData(self._model))
        for body, state in zip(self._bodies, self._states, strict=False):
            self._mujoco.mj_resetData(self._model, body)
            body.qpos[:], body.qvel[:] = state[:2], state[2:]
            self._mujoco.mj_forward(self._model, body)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Move each body by its action, float64[n, 2]; return the states."""
        actions = np.clip(actions, *BOX)
        model, states = self._model, self._states
        forward, advance = self._mujoco.mj_forward, self._mujoco.mj_step2
        fast = (abs(states[:, 2:]) > self.SPEED).any(1)
        for number in np.flatnonzero(fast):
            limited = np.clip(states[number, 2:], -self.SPEED, self.SPEED)
            self._bodies[number].qvel[:] = limited
        for body, action, state in zip(self._bodies, actions, states, strict=False):
            forward(model, body)  # with the last action
            body.ctrl[:] = action
            advance(model, body)
            state[:2], state[2:] = body.qpos, body.qvel
        return states.copy()


WORLDS = ("point", *(f"pointmaze_{size}" for size in PointMaze.SIZES))


def world(name: str) -> World:
    """Return the world of a name. Raises InputError for an unknown one."""
    if name not in WORLDS:
        raise InputError(f"no world '{name}'{nearest(name, WORLDS)}")
    if name == PointWorld.name:
        return PointWorld()
    return PointMaze(name.removeprefix("pointmaze_"))


def at_rest(room: World, rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw states without motion, uniform over a world's maze, float64[count, 4]."""
    # Twice the radius, lest a wall pushes at once.
    xy = room.maze.free(rng, count, 2 * RADIUS)
    return np.concatenate([xy, np.zeros_like(xy)], 1)


def _checked(states: np.ndarray, maze: Maze, margin: float) -> np.ndarray:
    """Return a copy of states, float64[n, 4]. Raises InputError for other shapes, for a
    number that is not finite, and for a position less than `margin` off a wall."""
    states = np.array(states, np.float64)
    if states.ndim != 2 or states.shape[1] != len(STATE):
        raise InputError(f"states must be [n, {len(STATE)}], not {list(states.shape)}")
    if not np.isfinite(states).all():
        raise InputError("a body would begin at a state that is not finite")
    inside = maze.touches(states[:, :2], margin)
    if inside.any():
        x, y = states[inside.argmax(), :2]
        raise InputError(f"a body would begin in a wall, at x {x:g}, y {y:g}")
    return states


def _environment(size: str) -> Any:
    """Return gymnasium-robotics' PointMaze; only its model and its map are used."""
    maze_of = {"umaze": "U_MAZE", "medium": "MEDIUM_MAZE", "large": "LARGE_MAZE"}
    _without_notice()
    try:
        maps = _import("maps")
        module = _import("point_maze")
    except ImportError as error:
        raise InputError(
            f"PointMaze needs gymnasium-robotics and mujoco ({error}); run: pip "
            "install '.[dvf]', or take --env point"
        ) from error
    environment = module.PointMazeEnv(maze_map=getattr(maps, maze_of[size]))
    # It leaves its model in the folder of temporary files.
    Path(environment.tmp_xml_file_path).unlink(missing_ok=True)
    return environment


def _import(name: str) -> ModuleType:
    return importlib.import_module(f"gymnasium_robotics.envs.maze.{name}")


def _without_notice() -> None:
    """Keep the notice on other environments off stderr, where the import prints it."""
    try:
        notices = importlib.import_module("farama_notifications").notifications
    except ImportError:
        return
    notices.pop(_NOTICE, None)
