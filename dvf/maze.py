"""A maze of square cells: where its walls are, and the shortest ways through it.

Rows go down and columns to the right; x grows with the column and y falls with the row,
as in the mazes of gymnasium-robotics. A free cell has a number, from 0, by rows.
"""

from collections.abc import Sequence

import numpy as np

from polyview.errors import TINY, InputError, check_range

WALL, FREE = "#", "."
# To neighbours, as (row, column): the order that breaks ties of shortest ways.
_DIRECTIONS = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])


class Maze:
    """Walls and free cells, and distances between these.

    Args:
      walls: the rows from above, of '#' for a wall and '.' for a free cell.
      cell: length of the side of a cell.
      centre: x and y of the middle of the map.

    Raises InputError unless the map is a rectangle of these two characters, closed by
    walls, whose free cells are all connected.

    Attributes:
      rows: the map as given.
      walls: bool[rows, columns].
      cells: int[n, 2], row and column of each free cell.
    """

    def __init__(
        self,
        walls: Sequence[str],
        cell: float = 1.0,
        centre: Sequence[float] = (0.0, 0.0),
    ):
        check_range(TINY, cell=cell)
        self.rows, self.cell, self.centre = list(walls), cell, tuple(centre)
        self.walls = _read(self.rows)
        self.cells = np.argwhere(~self.walls)
        self._number = np.full(self.walls.shape, -1)
        self._number[tuple(self.cells.T)] = np.arange(len(self.cells))
        beside = self.cells[:, None] + _DIRECTIONS  # never off the map: it is closed
        self._neighbours = self._number[beside[..., 0], beside[..., 1]]
        if (self.distances(0) < 0).any():
            raise InputError(
                "the maze has free cells that no way connects; open a wall between "
                f"them: {self.rows}"
            )

    def __len__(self) -> int:
        """The number of free cells."""
        return len(self.cells)

    def cell_of(self, xy: np.ndarray) -> np.ndarray:
        """Return the number of the free cell at each position, int[n].

        It is -1 in a wall and off the map. xy: float[n, 2].
        """
        return self._number[self._place(xy)]

    def centre_of(self, cell: np.ndarray | int) -> np.ndarray:
        """Return x and y of the middle of cells, float64[..., 2], by their numbers."""
        row, column = np.moveaxis(self.cells[cell], -1, 0)
        rows, columns = self.walls.shape
        x = self.centre[0] + (column + 0.5 - columns / 2) * self.cell
        y = self.centre[1] + (rows / 2 - row - 0.5) * self.cell
        return np.stack([x, y], -1)

    def places(self, side: int) -> np.ndarray:
        """Return positions evenly over free cells, float64[n side^2, 2], cell by cell.

        side: how many fill the side of a cell; 1: the middles.
        """
        check_range(1, side=side)
        along = self.cell * ((np.arange(side) + 0.5) / side - 0.5)
        within = np.stack(np.meshgrid(along, along, indexing="ij"), -1).reshape(-1, 2)
        return (self.centre_of(np.arange(len(self)))[:, None] + within).reshape(-1, 2)

    def blocks(self) -> np.ndarray:
        """Return left, bottom, width and height of each cell of wall, float64[n, 4]."""
        rows, columns = self.walls.shape
        row, column = np.argwhere(self.walls).T
        left = self.centre[0] + (column - columns / 2) * self.cell
        bottom = self.centre[1] + (rows / 2 - row - 1) * self.cell
        side = np.full(len(row), self.cell)
        return np.stack([left, bottom, side, side], -1)

    def touches(
        self, xy: np.ndarray, margin: float | tuple[float, float]
    ) -> np.ndarray:
        """Return which squares touch a wall or leave the map, bool[n].

        A square reaches `margin`, at most half a cell, to each side of its position; a
        pair is the margin in x and in y. xy: float[n, 2].
        """
        check_range(0.0, self.cell / 2, margin=margin)
        in_x, in_y = np.broadcast_to(margin, 2)
        found = np.zeros(len(xy), bool)
        # A square smaller than a cell lies in the cells of its corners.
        for x in (-in_x, in_x):
            for y in (-in_y, in_y):
                found |= self.walls[self._place(xy + np.array([x, y]))]
        return found

    def distances(self, goal: int) -> np.ndarray:
        """Return the length in steps of a shortest way to a cell, int[n].

        A step leads to one of four neighbours. The search is breadth-first. Raises
        InputError if there is no cell of that number.
        """
        if not 0 <= goal < len(self):
            raise InputError(
                f"the maze has no free cell {goal}; give a number of 0 .. "
                f"{len(self) - 1}"
            )
        steps = np.full(len(self), -1)
        reached, count = np.array([goal]), 0
        while len(reached):
            steps[reached] = count
            beside = np.unique(self._neighbours[reached])
            reached = beside[(beside >= 0) & (steps[beside] < 0)]
            count += 1
        return steps

    def next_cell(self, goal: int) -> np.ndarray:
        """Return the cell that follows each cell on a shortest way to `goal`, int[n].

        Of several ways, the one that goes up comes first, then down, left and right;
        the goal follows itself. Raises InputError as `distances`.
        """
        steps = self.distances(goal)
        after = np.where(self._neighbours < 0, len(self), steps[self._neighbours])
        following = self._neighbours[np.arange(len(self)), after.argmin(1)]
        following[goal] = goal
        return following

    def free(self, rng: np.random.Generator, count: int, margin: float) -> np.ndarray:
        """Draw positions that are at least `margin` off every wall, float64[count, 2].

        They are uniform over such positions. margin: less than half a cell, to each
        side.
        """
        check_range(0.0, self.cell * (0.5 - TINY), margin=margin)
        positions = np.empty((count, 2))
        missing = np.arange(count)
        while len(missing):
            middle = self.centre_of(rng.integers(len(self), size=len(missing)))
            within = self.cell * (rng.random((len(missing), 2)) - 0.5)
            positions[missing] = middle + within
            missing = missing[self.touches(positions[missing], margin)]
        return positions

    def _place(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return row and column, int[n] each, of positions.

        Those off the map count as on its border, which is wall.
        """
        rows, columns = self.walls.shape
        row = rows / 2 - (xy[:, 1] - self.centre[1]) / self.cell
        column = (xy[:, 0] - self.centre[0]) / self.cell + columns / 2
        return (
            np.clip(np.floor(row), 0, rows - 1).astype(int),
            np.clip(np.floor(column), 0, columns - 1).astype(int),
        )


def _read(rows: Sequence[str]) -> np.ndarray:
    """Return where the walls of a map are, bool[rows, columns]."""
    if not rows or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InputError(f"the rows of a maze must be of one length: {list(rows)}")
    if odd := set("".join(rows)) - {WALL, FREE}:
        raise InputError(
            f"a maze is drawn with '{WALL}' and '{FREE}', not {sorted(odd)}"
        )
    walls = np.array([[letter == WALL for letter in row] for row in rows])
    border = (walls[0], walls[-1], walls[:, 0], walls[:, -1])
    if walls.all() or not all(side.all() for side in border):
        raise InputError(
            f"a maze needs walls all round, and a free cell within: {list(rows)}"
        )
    return walls
