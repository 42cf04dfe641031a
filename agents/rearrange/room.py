"""One episode at a time, on the host, for worlds and for gymnasium."""

from typing import Any

import jax
import numpy as np

from agents.rearrange import drawing, environment, solver, tasks
from agents.rearrange.environment import State
from agents.rearrange.words import RECEPTACLES, SKILLS
from polyview.errors import InputError, check_range


class Room:
    """The episodes of a split, by their rows.

    Args: see `agents.rearrange.environment:Rearrange`.

    Attributes:
      table: the episodes.
      state: as it is now.
      instruction: of the episode.
    """

    def __init__(self, split: str, seed: int = 0, invalid_penalty: float = 0.0):
        check_range(0.0, 100.0, invalid_penalty=invalid_penalty)
        self.table = tasks.table(split, seed)
        self._penalty = np.float32(invalid_penalty)
        self._device = _host()
        self.begin_at(0)

    def begin_at(self, row: int) -> np.ndarray:
        """Begin an episode of the table; return what the agent sees."""
        check_range(0, len(self.table) - 1, row=row)
        key = np.array([0, row], np.uint32)
        with jax.default_device(self._device):
            self.state, image = _begin(self.table.episode(row), key)
            self._seen = _look(self.state, np.zeros(len(RECEPTACLES), bool))
        self.instruction = self.table.text(row)
        return np.asarray(image)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a skill; return image, reward, terminated, truncated and {"success"}.

        Raises InputError for a number that is no skill.
        """
        number = np.asarray(action)
        known = len(SKILLS)
        if number.shape or number.dtype.kind not in "iu" or not 0 <= number < known:
            raise InputError(
                f"TextRearrange has the actions 0 .. {known - 1}, not {action!r}"
            )
        with jax.default_device(self._device):
            self.state, image, results = _step(self.state, int(number), self._penalty)
            self._seen = _look(self.state, self._seen)
        reward, done, cut = (np.asarray(value).item() for value in results)
        return np.asarray(image), reward, done, cut, {"success": done}

    def solve(self, search: bool = False) -> int:
        """Return the next skill of `agents.rearrange.solver`.

        search: knows only what the episode has shown.
        """
        return int(_solve(self.state, self._seen if search else None))

    def render(self) -> np.ndarray:
        """Draw the whole room for people, uint8[h, w, 3]."""
        tones = np.asarray(_colours(self.state))
        return drawing.draw(jax.device_get(self.state), tones)


@jax.jit
def _begin(episode: tasks.Episodes, key: Any) -> tuple[State, Any]:
    state = environment.start(episode, key)
    return state, environment.observe(state)


@jax.jit
def _step(state: State, action: Any, penalty: Any) -> tuple[State, Any, Any]:
    state, *results, _ = environment.step(state, action, penalty)
    return state, environment.observe(state), results


_solve, _look = jax.jit(solver.solve), jax.jit(solver.look)
_colours = jax.jit(environment.colours)


def _host() -> Any:
    """Return this process's CPU: single steps are slower elsewhere."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]
