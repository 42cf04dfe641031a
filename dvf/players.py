"""Players: policies that go to a goal through a maze, some worse than others.

A player heads for the middle of the next cell on a shortest way to its goal, by
proportional and derivative control; there it stays. Noise on its actions makes its play
cover more of the maze, and a share of random actions makes it worse.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dvf.maze import Maze
from dvf.worlds import ACTION, BOX, World
from polyview.errors import InputError, check_range

# The controller of D4RL's maze data (Fu et al. 2020). With PointMaze's ball it is a
# little less than critically damped.
_PROPORTIONAL, _DERIVATIVE = 10.0, 1.0


class GoalPlayer:
    """A policy that goes to the middle of a cell.

    Args:
      maze: where it plays.
      goal: the number of a free cell.
      noise: deviation of the Gaussian noise on each number of an action in [-1, 1].
      random: the probability of a uniformly random action instead.

    Raises InputError for a goal that is no free cell, and OutOfRange for a noise below
    0 and a probability outside [0, 1].
    """

    def __init__(self, maze: Maze, goal: int, noise: float = 1.0, random: float = 0.0):
        check_range(0.0, 1e6, noise=noise)
        check_range(0.0, 1.0, random=random)
        self.maze, self.goal, self.noise, self.random = maze, int(goal), noise, random
        self._targets = maze.centre_of(maze.next_cell(self.goal))

    def actions(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return an action for each state, float64[n, 2] in [-1, 1].

        states: float64[n, 4], as those of `dvf.worlds`.
        """
        xy, velocity = states[:, :2], states[:, 2:]
        cells = self.maze.cell_of(xy)
        lost = cells < 0  # in a wall, as a state that no world gave may be
        if lost.any():
            middles = self.maze.centre_of(np.arange(len(self.maze)))
            away = ((middles - xy[lost, None]) ** 2).sum(-1)
            cells[lost] = away.argmin(1)
        force = _PROPORTIONAL * (self._targets[cells] - xy) - _DERIVATIVE * velocity
        # Clipped before the noise is added, which would not matter otherwise: far from
        # the way-point the force is many times the box.
        actions = np.clip(force, *BOX) + self.noise * rng.standard_normal(xy.shape)
        if self.random:
            uniform = rng.uniform(*BOX, xy.shape)
            instead = rng.random(len(xy)) < self.random
            actions = np.where(instead[:, None], uniform, actions)
        return np.clip(actions, *BOX)

    @property
    def name(self) -> str:
        """Such as "goal 3,5": row and column. What differs from noise 1 is added."""
        row, column = self.maze.cells[self.goal]
        text = f"goal {row},{column}"
        text += f" noise {self.noise:g}" if self.noise != 1 else ""
        return text + (f" random {self.random:g}" if self.random else "")

    def describe(self) -> dict[str, Any]:
        """Return the player as a row of a table, for a manifest."""
        return {
            "goal": self.maze.cells[self.goal].tolist(),
            "xy": self.maze.centre_of(self.goal).tolist(),
            "noise": self.noise,
            "random": self.random,
        }


def players(maze: Maze, count: int, noise: float = 1.0) -> list[GoalPlayer]:
    """Return players with `count` goals that are far from one another.

    The first goal is an end of the longest shortest way, and each next one the cell
    that is farthest from all before; of equals the lowest number. Raises InputError for
    fewer than 1 and more than there are free cells.
    """
    if not 1 <= count <= len(maze):
        raise InputError(
            f"{count} players cannot each have a goal of their own in a maze of "
            f"{len(maze)} free cells; give 1 to {len(maze)}"
        )
    longest = [maze.distances(cell).max() for cell in range(len(maze))]
    goals = [int(np.argmax(longest))]
    nearest = maze.distances(goals[0])
    while len(goals) < count:
        goals.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, maze.distances(goals[-1]))
    return [GoalPlayer(maze, goal, noise) for goal in goals]


def qualities(
    maze: Maze, goal: int, pairs: Sequence[tuple[float, float]]
) -> list[GoalPlayer]:
    """Return players with one goal: one a pair of noise and random share."""
    if not len(pairs):
        raise InputError("qualities needs one or more pairs of noise and random share")
    return [GoalPlayer(maze, goal, noise, random) for noise, random in pairs]


def play(
    world: World,
    players: Sequence[GoalPlayer],
    policy: np.ndarray,
    states: np.ndarray,
    steps: int,
    rng: np.random.Generator,
    first: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Let a player act for each of n bodies, all at once.

    The world is given states and actions as they are returned, in float32: from the
    first state and the actions, it takes the same way again.

    Args:
      world: is begun anew.
      players: the policies.
      policy: int[n], which of them acts for each body.
      states: where the bodies begin, [n, d].
      steps: how many.
      rng: of the players.
      first: actions [n, a] of the first step, instead of those of the players.

    Returns states float32[n, steps + 1, d] and actions float32[n, steps, a].
    """
    policy = np.asarray(policy)
    groups = [np.flatnonzero(policy == number) for number in range(len(players))]
    passed = np.empty((len(states), steps + 1, np.shape(states)[1]), np.float32)
    passed[:, 0] = states
    taken = np.empty((len(states), steps, len(ACTION)), np.float32)
    current = passed[:, 0].astype(np.float64)
    world.begin(current)
    for step in range(steps):
        if step == 0 and first is not None:
            taken[:, 0] = first
        else:
            for player, rows in zip(players, groups, strict=True):
                taken[rows, step] = player.actions(current[rows], rng)
        current = world.step(taken[:, step].astype(np.float64))
        passed[:, step + 1] = current
    return passed, taken
