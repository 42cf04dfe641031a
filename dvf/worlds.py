"""Worlds in which many bodies move through one maze at once, each for itself.

A world has a `maze`, a `name`, and the `origin` of its rules, for a manifest, names of
the numbers of a `state`, the `margin` to walls at which bodies begin, and

    rest(positions float64[n, 2]) -> states  of bodies that do not move
    begin(states float64[n, d])              put n bodies there, at rest or moving
    step(actions float64[n, 2]) -> states    move each one step

The first numbers of a state are x, y and the velocity in both directions, and for a
point there are no others. An action is a force, or where an ant shall walk, clipped to
[-1, 1]. A world holds no random numbers.
"""

import functools
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from dvf.maze import FREE, WALL, Maze
from polyview import hosts
from polyview.errors import InputError, nearest

STATE = ("x", "y", "x velocity", "y velocity")
ACTION = ("x force", "y force")
BOX = (-1.0, 1.0)  # of each number of an action
RADIUS = 0.1  # of a point's body; a cell is 1 wide
_JOINTS = tuple(f"{joint} {leg}" for leg in range(1, 5) for joint in ("hip", "ankle"))
ANT_STATE = (
    *(*STATE, "z"),
    *(f"orientation {axis}" for axis in "wxyz"),  # a quaternion
    *(*_JOINTS, "z velocity"),
    *(f"angular velocity {axis}" for axis in "xyz"),
    *(f"{joint} velocity" for joint in _JOINTS),
)

_NOTICE = "gymnasium_robotics"  # as the notices of its makers name it


class World(Protocol):
    """See the module."""

    maze: Maze
    name: str
    origin: dict[str, str]
    state: tuple[str, ...]
    margin: float

    def rest(self, positions: np.ndarray) -> np.ndarray: ...

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
    state: tuple[str, ...] = STATE
    margin = 2 * RADIUS  # lest a wall pushes at once

    def __init__(self) -> None:
        self.maze = Maze(self.MAP)
        self.origin = {"rules": "dvf.worlds:PointWorld"}
        self._states = np.zeros((0, 4))

    def rest(self, positions: np.ndarray) -> np.ndarray:
        """Return float64[n, 4]: positions, and no velocity."""
        return np.concatenate([positions, np.zeros_like(positions)], 1)

    def begin(self, states: np.ndarray) -> None:
        """Put bodies at states, float64[n, 4]. Raises InputError for one in a wall."""
        self._states = _checked(states, self, RADIUS - self._SLACK)

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

    SPEED = 5.0  # of each component
    state: tuple[str, ...] = STATE
    margin = PointWorld.margin
    rest = PointWorld.rest

    def __init__(self, size: str):
        self.name = f"pointmaze_{size}"
        environment, self.maze, self.origin = _environment("PointMaze", size)
        self._mujoco: Any = importlib.import_module("mujoco")
        self._model = environment.point_env.model
        self._bodies: list[Any] = []  # kept: each has 14 MB of address space
        self._states = np.zeros((0, 4))

    def begin(self, states: np.ndarray) -> None:
        """Put bodies at states, float64[n, 4].

        Raises InputError for one whose middle is in a wall. Walls are a little soft:
        the edge of a fast body does get in.
        """
        self._states = _checked(states, self, 0.0)
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


class AntMaze:
    """AntMaze of gymnasium-robotics: ants of four legs, and the gait that walks them.

    An action is the way to walk, as x and y: at 1, about 0.7 a second. A step is one
    cycle of a trot, ten steps of the environment or half a second: all states are of
    one phase, so the phase is none of their numbers. From state and action the gait
    sets the torques of the joints, 20 times a second; they are not recorded. The ant
    walks to all sides and keeps the heading 0. One that has fallen on its back stays
    there.

    A state is `ANT_STATE`: positions and velocities as the environment has them, with
    the orientation as a quaternion, in another order.

    Args:
      size: of the maze: umaze, medium or large. A cell is 4 wide.

    Raises InputError for another size, and if gymnasium-robotics is not installed.
    """

    TICKS = 10  # steps of the environment in a cycle
    # Ours, found by a random search for the fastest trot to every side.
    STANCE = 0.8  # share of the cycle in which a foot is on the ground
    SWING, TURN, SPIN = 0.5, 0.2, 0.05  # of hips: by direction, heading, angular speed
    HIP = 0.52  # the largest swing, radians: the joint's limit
    ANKLE, LIFT = 0.56, 0.18  # radians below the horizontal: standing; and less by
    SPEED, PULL = 1.0, 1.8  # that the gait aims at, and the weight of what is missing
    STIFFNESS, DAMPING = 2.9, 0.2  # torques of a joint, of which the largest is 1
    HEIGHT = 0.38  # of the torso of an ant that stands

    _LEGS = np.pi * (0.25 + 0.5 * np.arange(4))  # where they point
    _FORWARD = np.stack([-np.sin(_LEGS), np.cos(_LEGS)])  # of a foot, as its hip turns
    _PHASE = np.array([0.0, 0.5, 0.0, 0.5])  # diagonal legs move together
    _DOWN = np.array([1.0, -1.0, -1.0, 1.0])  # sign of an ankle's angle
    # Motors are in another order than joints: leg 4 comes first.
    _MOTORS = np.array([6, 7, 0, 1, 2, 3, 4, 5])
    # Of positions[15] and velocities[14], where the numbers of a state are.
    _ORDER = np.array([0, 1, 15, 16, *range(2, 15), *range(17, 29)])

    state: tuple[str, ...] = ANT_STATE
    margin = 1.0  # legs reach 0.8 to each side

    def __init__(self, size: str):
        self.name = f"antmaze_{size}"
        environment, self.maze, self.origin = _environment("AntMaze", size)
        self._mujoco: Any = importlib.import_module("mujoco")
        self._model = environment.ant_env.model
        self._frames = environment.ant_env.frame_skip
        self._bodies: list[Any] = []
        self._count = 0

    def rest(self, positions: np.ndarray) -> np.ndarray:
        """Return float64[n, 29]: ants that stand at positions, heading to x."""
        both = np.zeros((len(positions), len(self._ORDER)))
        both[:, :2], both[:, 2], both[:, 3] = positions, self.HEIGHT, 1.0
        both[:, 8:15:2] = self.ANKLE * self._DOWN
        return both[:, self._ORDER]

    def begin(self, states: np.ndarray) -> None:
        """Put ants at states, float64[n, 29].

        Raises InputError for one whose middle is in a wall.
        """
        both = np.empty((len(states), len(self._ORDER)))
        both[:, self._ORDER] = _checked(states, self, 0.0)
        while len(self._bodies) < len(states):
            self._bodies.append(self._mujoco.MjData(self._model))
        self._count = len(states)
        for body, own in zip(self._bodies, both, strict=False):
            self._mujoco.mj_resetData(self._model, body)
            body.qpos[:], body.qvel[:] = own[:15], own[15:]
            self._mujoco.mj_forward(self._model, body)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Let each ant take a cycle by its action, float64[n, 2]; return the states."""
        actions = np.clip(actions, *BOX)
        # Bodies are apart, and the simulator lets other threads run.
        parts = np.array_split(np.arange(self._count), hosts.cores())
        with ThreadPoolExecutor(len(parts)) as pool:
            moved = list(pool.map(lambda own: self._cycle(own, actions[own]), parts))
        return np.concatenate(moved)[:, self._ORDER]

    def _cycle(self, numbers: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Move these ants through a cycle; return positions and velocities."""
        bodies = [self._bodies[number] for number in numbers]
        both = np.empty((len(bodies), len(self._ORDER)))
        for tick in range(self.TICKS + 1):
            for own, body in zip(both, bodies, strict=True):
                own[:15], own[15:] = body.qpos, body.qvel
            if tick < self.TICKS and bodies:
                torques = self._torques(both, actions, tick / self.TICKS)
                for body, torque in zip(bodies, torques, strict=True):
                    body.ctrl[:] = torque
                    self._mujoco.mj_step(self._model, body, nstep=self._frames)
        return both

    def _torques(
        self, both: np.ndarray, actions: np.ndarray, time: float
    ) -> np.ndarray:
        """Return the torques float64[n, 8] of ants at a time of the cycle, 0 to 1."""
        w, x, y, z = both[:, 3:7].T
        heading = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y**2 + z**2))
        length = np.sqrt((actions**2).sum(1, keepdims=True))
        way = actions / np.maximum(length, 1)
        way = way + self.PULL * (self.SPEED * way - both[:, 15:17])
        cos, sin = np.cos(heading), np.sin(heading)
        ahead = cos * way[:, 0] + sin * way[:, 1]
        left = cos * way[:, 1] - sin * way[:, 0]
        swing = self.SWING * np.stack([ahead, left], 1) @ self._FORWARD
        turn = self.TURN * heading + self.SPIN * both[:, 20]
        swing = np.clip(swing - turn[:, None], -self.HIP, self.HIP)
        phase = (time + self._PHASE) % 1
        down, lifted = phase / self.STANCE, (phase - self.STANCE) / (1 - self.STANCE)
        stands = phase < self.STANCE
        # A foot on the ground goes back evenly; then it is lifted and put forward.
        hips = swing * np.where(stands, 1 - 2 * down, 2 * lifted - 1)
        lift = np.where(stands, 0.0, self.LIFT * np.sin(np.pi * lifted))
        ankles = np.broadcast_to(self._DOWN * (self.ANKLE - lift), hips.shape)
        aims = np.stack([hips, ankles], 2).reshape(len(both), -1)
        torques = self.STIFFNESS * (aims - both[:, 7:15]) - self.DAMPING * both[:, 21:]
        return np.clip(torques[:, self._MOTORS], -1, 1)


SIZES = ("umaze", "medium", "large")
_MADE: dict[str, Callable[[str], World]] = {"pointmaze": PointMaze, "antmaze": AntMaze}
WORLDS = (PointWorld.name, *(f"{kind}_{size}" for kind in _MADE for size in SIZES))


def world(name: str) -> World:
    """Return the world of a name. Raises InputError for an unknown one."""
    if name not in WORLDS:
        raise InputError(f"no world '{name}'{nearest(name, WORLDS)}")
    if name == PointWorld.name:
        return PointWorld()
    kind, _, size = name.partition("_")
    return _MADE[kind](size)


def at_rest(room: World, rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw states without motion, uniform over a world's maze, float64[count, d]."""
    return room.rest(room.maze.free(rng, count, room.margin))


def _checked(states: np.ndarray, room: World, margin: float) -> np.ndarray:
    """Return a copy of states, float64[n, d]. Raises InputError for other shapes, for a
    number that is not finite, and for a position less than `margin` off a wall."""
    states, d = np.array(states, np.float64), len(room.state)
    if states.ndim != 2 or states.shape[1] != d:
        raise InputError(f"states must be [n, {d}], not {list(states.shape)}")
    if not np.isfinite(states).all():
        raise InputError("a body would begin at a state that is not finite")
    inside = room.maze.touches(states[:, :2], margin)
    if inside.any():
        x, y = states[inside.argmax(), :2]
        raise InputError(f"a body would begin in a wall, at x {x:g}, y {y:g}")
    return states


def _environment(kind: str, size: str) -> tuple[Any, Maze, dict[str, str]]:
    """Return an environment of gymnasium-robotics, its maze, and the origin of both.

    Only its model and its map are used. kind: PointMaze or AntMaze.
    """
    if size not in SIZES:
        raise InputError(f"no {kind} of size '{size}'{nearest(size, SIZES)}")
    maze_of = {"umaze": "U_MAZE", "medium": "MEDIUM_MAZE", "large": "LARGE_MAZE"}
    _without_notice()
    try:
        maps = _import("maps")
        module = _import({"PointMaze": "point_maze", "AntMaze": "ant_maze_v5"}[kind])
    except ImportError as error:
        raise InputError(
            f"{kind} needs gymnasium-robotics and mujoco ({error}); run: pip "
            "install '.[dvf]', or take --env point"
        ) from error
    make, rows = getattr(module, f"{kind}Env"), getattr(maps, maze_of[size])
    environment = _environment_of(make, tuple(map(tuple, rows)))
    maze = Maze(
        [
            "".join(WALL if cell == 1 else FREE for cell in row)
            for row in environment.maze.maze_map
        ],
        environment.maze.maze_size_scaling,
    )
    packages = "gymnasium-robotics", "mujoco"
    return environment, maze, {name: metadata.version(name) for name in packages}


@functools.cache  # it takes half a second, and its model is only read
def _environment_of(make: Callable[..., Any], rows: tuple[tuple, ...]) -> Any:
    environment = make(maze_map=[list(row) for row in rows])
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
