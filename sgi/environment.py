"""A game as an agent meets it in training: a lost life ends what it learns from.

As in the official code: a game begins with 1 to 30 frames without action; after a lost
life one such frame passes and the game goes on. Nothing is sticky.
"""

import hashlib

import numpy as np

from polyview.rl.environment import Finished, Outcome
from sgi.atari import NOOPS, Game


class Environment:
    """One game after another; all that happens is a function of seed and actions.

    An episode is a whole game; an outcome is `done` where a life or the game ended, or
    the game was cut off. Follows `polyview.rl.environment.Environment`.

    Attributes:
      frame: uint8[84, 84], what is seen now: the observation.
      steps: actions taken since the reset.
      last: the last game that has ended since the reset, or None.

    Raises:
      InputError: there is no such game, or ale-py is not installed.
    """

    def __init__(self, game: str, seed: int):
        self._name = game
        self.reset(seed)

    def reset(self, seed: int) -> np.ndarray:
        """Begin anew, as a new environment of that seed does."""
        self._game = Game(self._name, seed=seed)  # the emulator takes its seed once
        self._rng = np.random.default_rng(seed)
        self.last: Finished | None = None
        self.steps = 0
        self._begin()
        return self.frame

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

    def legal(self) -> None:
        """All of a game's own actions are legal at any time."""

    def fingerprint(self) -> np.ndarray:
        """The SHA-256 of everything that decides how the game continues: uint8[32].

        The waits at the start of later games are not in it: they follow from the seed
        and the number of games played.
        """
        return np.frombuffer(hashlib.sha256(self._game.state()).digest(), np.uint8)

    def _begin(self) -> None:
        self.frame = self._game.reset(int(self._rng.integers(1, NOOPS + 1)))
        self._score, self._steps = 0.0, 0
