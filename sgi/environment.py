"""A game as an agent meets it in training: a lost life ends what it learns from.

As in the official code: a game begins with 1 to 30 frames without action; after a lost
life one such frame passes and the game goes on. Nothing is sticky.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from sgi.atari import NOOPS, Game


class Finished(NamedTuple):
    """A game that has ended: its raw score, and how many steps it took."""

    score: float
    steps: int


class Outcome(NamedTuple):
    """What an action led to.

    Attributes:
      frame: uint8[84, 84], what the next action is chosen on: where a life or the game
        ended, of what begins.
      reward: the change of the score, not clipped.
      done: a life or the game ended, or the game was cut off.
      finished: the game, where it has ended.
    """

    frame: np.ndarray
    reward: float
    done: bool
    finished: Finished | None


class Environment:
    """One game after another; all that happens is a function of seed and actions.

    Attributes:
      frame: uint8[84, 84], what is seen now.
      steps: actions taken since the first game began.
      last: the last game that has ended, or None.

    Raises:
      InputError: there is no such game, or ale-py is not installed.
    """

    def __init__(self, game: str, seed: int):
        self._game = Game(game, seed=seed)
        self._rng = np.random.default_rng(seed)
        self.last: Finished | None = None
        self.steps = 0
        self._begin()

    def step(self, action: int) -> Outcome:
        """Take an action, an index into the game's own."""
        step = self._game.step(action)
        self.frame = step.frame
        self._score += step.reward
        self._steps += 1
        self.steps += 1
        over = step.game_over or step.truncated
        if over:
            self.last = Finished(self._score, self._steps)
            self._begin()
        elif step.life_lost:
            self.frame = self._game.wait(1)
        return Outcome(
            self.frame,
            step.reward,
            over or step.life_lost,
            self.last if over else None,
        )

    def fingerprint(self) -> np.ndarray:
        """The SHA-256 of all that decides how the game goes on: uint8[32]."""
        return np.frombuffer(hashlib.sha256(self._game.state()).digest(), np.uint8)

    def _begin(self) -> None:
        self.frame = self._game.reset(int(self._rng.integers(1, NOOPS + 1)))
        self._score, self._steps = 0.0, 0
