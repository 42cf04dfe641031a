"""A game as an agent trains in it: a lost life ends the episode it learns from.

As in the official code, a game begins with 1 to 30 frames without action. After a lost
life one such frame passes and the game continues. Actions are not sticky.
"""

import hashlib

import numpy as np

from polyview.rl.environment import Finished, Outcome
from sgi.atari import NOOPS, Game


class Environment:
    """Plays one game after another, as a function of the seed and the actions.

    An episode is a whole game. An outcome is `done` if a life was lost, or the game
    ended or was cut off. Follows `polyview.rl.environment.Environment`.

    Attributes:
      frame: uint8[84, 84], the current observation.
      steps: actions taken since the reset.
      last: the last finished game since the reset, or None.

    Raises:
      InputError: the game is unknown, or ale-py is not installed.
    """

    def __init__(self, game: str, seed: int):
        self._name = game
        self.reset(seed)

    def reset(self, seed: int) -> np.ndarray:
        """Start again, exactly as a new environment with that seed does."""
        self._game = Game(self._name, seed=seed)  # an emulator is seeded only once
        self._rng = np.random.default_rng(seed)
        self.last: Finished | None = None
        self.steps = 0
        self._begin()
        return self.frame

    def step(self, action: int) -> Outcome:
        """Take an action, an index into the game's actions."""
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

    def legal(self) -> None:
        """Return None: all of the game's actions are always legal."""

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that determines how the game continues: uint8[32].

        It excludes the waits at the start of later games, which follow from the seed
        and the number of games played.
        """
        return np.frombuffer(hashlib.sha256(self._game.state()).digest(), np.uint8)

    def _begin(self) -> None:
        self.frame = self._game.reset(int(self._rng.integers(1, NOOPS + 1)))
        self._score, self._steps = 0.0, 0
