"""A ball that goes to a goal in a maze, as a world with instructions.

    state   float32[6]            x, y, their velocities, and x and y of the goal
    image   uint8[p, p, 3]        if asked for: the maze from above; see `draw`

The maze is the medium one of PointMaze (`dvf.worlds`). A goal is the middle of a free
cell. `NewGoals` are a fifth of the cells, far from one another, which `KnownGoals`
never asks for: who has learnt the one shows in the other what it makes of goals. An
action, two numbers in [-1, 1], is a force that lasts for five steps of the simulation,
0.05 of its seconds.

They follow the protocol of worlds of other packages by its names alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dvf.maze import Maze
from dvf.players import GoalPlayer, players
from dvf.worlds import ACTION, BOX, PointMaze
from polyview.errors import InputError
from polyview.rl.environment import Outcome
from polyview.rl.episodes import Episodes, check_pixels, fingerprint, seed_of

INSTRUCTION = "move the ball to the goal"
HELD = 5  # steps of the simulation, for an action
REACHED = 0.5  # from the goal; a cell is 1 wide
APART = 3  # steps of the shortest way from start to goal, at least
# Actions of an episode; from 2,660 starts all over the maze the expert needs up to 51.
LIMIT = 100

_FILM = 320  # pixels
_FREE, _WALL, _GOAL, _BALL = (240, 240, 240), (90, 90, 90), (70, 170, 90), (40, 80, 200)
_SHOWN = 0.25  # radius of the ball in pictures, for the eye: it is 0.1


class Ball:
    """The ball in the maze, on one way after another.

    Attributes:
      maze: where it is.
      goal: the number of the cell that it shall go to.
      state: float32[6]; see the module.
    """

    def __init__(self) -> None:
        self._world = PointMaze("medium")
        self.maze, self.versions = self._world.maze, self._world.origin
        self._longest = max(
            int(self.maze.distances(cell).max()) for cell in range(len(self.maze))
        )

    def begin(self, start: np.ndarray, goal: int) -> None:
        """Put the ball at rest at x and y, float[2], and set its goal."""
        self.goal, self._taken = goal, 0
        self._target, self._away = self.maze.centre_of(goal), self.maze.distances(goal)
        states = np.concatenate([start, np.zeros(2)])[None]
        self._world.begin(states)
        self._see(states)

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push, by float[2]; return state, reward, terminated, truncated and {}.

        The reward is minus the steps that the shortest way from the ball's cell to the
        goal still has, divided by the longest one of the maze: -1 to 0.
        """
        for _ in range(HELD):
            states = self._world.step(np.asarray(action, np.float64)[None])
        self._see(states)
        self._taken += 1
        place = states[0, :2]
        done = bool(np.linalg.norm(place - self._target) <= REACHED)
        # Walls are a little soft; in one, the ball counts to the nearest cell.
        middles = self.maze.centre_of(np.arange(len(self.maze)))
        cell = int(((middles - place) ** 2).sum(1).argmin())
        reward = -float(self._away[cell]) / self._longest
        return self.state, reward, done, not done and self._taken == LIMIT, {}

    def simulated(self) -> np.ndarray:
        """Return all that the simulation goes on from, float64[n]."""
        mujoco, model = self._world._mujoco, self._world._model
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, self._world._bodies[0], state, kind)
        return state

    def _see(self, states: np.ndarray) -> None:
        self.state = np.concatenate([states[0], self._target]).astype(np.float32)


class _Goals(Episodes):
    """What the worlds of this module have in common.

    Args:
      reward: "success": 1 for the step that reaches the goal; "dense": see
        `Ball.step`. Both end the episode at the goal.
      pixels: of images, 0 for none.

    An action outside the box is clipped to it. Raises InputError for wrong arguments,
    and if gymnasium-robotics is not installed.
    """

    name: str
    kind = "pointmaze"
    _new: bool  # which of the goals are this world's

    def __init__(self, *, reward: str = "success", pixels: int = 0):
        super().__init__(dense=reward == "dense")
        if reward not in ("success", "dense"):
            raise InputError(f"reward={reward!r} is neither 'success' nor 'dense'")
        check_pixels(pixels, 1024)
        self.environment = Ball()
        maze = self.environment.maze
        apart = {player.goal for player in players(maze, len(maze) // 5)}
        self.goals = [n for n in range(len(maze)) if (n in apart) == self._new]
        self.actions: tuple[str, ...] | None = None
        self.box: tuple[int, float, float] | None = (len(ACTION), *BOX)
        self.limit = LIMIT
        self.shapes: dict[str, tuple[int, ...]] = {"state": (6,)}
        if pixels:
            self.shapes["image"] = (pixels, pixels, 3)
        self.versions: dict[str, str] = dict(self.environment.versions)
        self._pixels = pixels
        self.reset(0)

    def step(self, action: np.ndarray) -> Outcome:
        """Push, by float[2]. Raises InputError for other shapes, and for NaN."""
        force = np.asarray(action, np.float32)
        if force.shape != (len(ACTION),) or not np.isfinite(force).all():
            raise InputError(f"{self.name} takes 2 finite numbers, not {action}")
        _, own, ended, cut, _ = self.environment.step(force)
        self.arrived, self.success = self._observed(), ended
        return self._outcome(own, ended or cut)

    def legal(self) -> None:
        """Return None: actions are continuous."""

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that determines what happens next, uint8[32]."""
        ball = self.environment
        return fingerprint(
            self._seed,
            self._episode,
            self._score,
            self._steps,
            ball.goal,
            ball.simulated(),
        )

    def render(self) -> np.ndarray:
        """Draw the maze from above, uint8[320, 320, 3]."""
        return draw(self.environment.maze, self.environment.state, _FILM)

    def expert(self) -> Callable[..., np.ndarray]:
        """Return what goes the shortest way, from wherever the ball is.

        It reaches every goal. Actions are float32[2].
        """
        player = GoalPlayer(self.environment.maze, self.environment.goal, noise=0.0)
        rng = np.random.default_rng(0)  # of noise, which there is none of

        def act(observation: dict[str, Any], taken: Any = None) -> np.ndarray:
            state = observation["state"][None, :4].astype(np.float64)
            return player.actions(state, rng)[0].astype(np.float32)

        return act

    def _begin(self) -> None:
        self._score, self._steps = 0.0, 0
        rng = np.random.default_rng(seed_of(self._seed, self._episode))
        maze = self.environment.maze
        goal = self.goals[rng.integers(len(self.goals))]
        starts = np.flatnonzero(maze.distances(goal) >= APART)
        middle = maze.centre_of(starts[rng.integers(len(starts))])
        within = maze.cell - 2 * PointMaze.margin  # lest a wall pushes at once
        self.environment.begin(middle + within * (rng.random(2) - 0.5), goal)
        self.observation = self._observed()

    def _observed(self) -> dict[str, Any]:
        ball = self.environment
        observation = {"state": ball.state, "instruction": INSTRUCTION}
        if self._pixels:
            observation["image"] = draw(ball.maze, ball.state, self._pixels)
        return observation


class KnownGoals(_Goals):
    """Goals in four fifths of the cells; see the module."""

    name = "dvf.navigation:KnownGoals"
    _new = False


class NewGoals(_Goals):
    """Goals in the other cells; see the module."""

    name = "dvf.navigation:NewGoals"
    _new = True


def draw(maze: Maze, state: np.ndarray, pixels: int) -> np.ndarray:
    """Draw a maze from above: walls, the ball, and the places that count as the goal.

    state: float[6]; see the module. Returns uint8[pixels, pixels, 3].
    """
    rows, columns = maze.walls.shape
    along = (np.arange(pixels) + 0.5) / pixels
    cells = (along * rows).astype(int)[:, None], (along * columns).astype(int)
    image = np.where(maze.walls[cells][..., None], _WALL, _FREE).astype(np.float64)
    x = maze.centre[0] + (along - 0.5) * columns * maze.cell
    y = maze.centre[1] + (0.5 - along[:, None]) * rows * maze.cell
    size = rows * maze.cell / pixels
    discs = (state[4:6], REACHED, _GOAL), (state[:2], _SHOWN, _BALL)
    for middle, radius, colour in discs:
        away = np.hypot(x - middle[0], y - middle[1])
        # How much of a pixel is covered, about: edges are soft.
        share = np.clip((radius - away) / size + 0.5, 0, 1)[..., None]
        image += share * (np.array(colour) - image)
    return image.round().astype(np.uint8)
