"""One point of Pong, as a world with instructions.

    image   uint8[p, p, 3]        the last three grey frames, the oldest first

An episode is the play for a point: who makes it ends the episode. Actions are those of
the emulator by name, each held for four frames (`sgi.atari`), and never sticky.

Frames without action before a game, and the emulator's seed, change nothing but its
phase against the four frames: a player would meet four games. So the seed also says how
many points were played before by chance, 1 to 4, and each action of these.

It follows the protocol of worlds of other packages by its names alone. Breakout is left
out: a game is one long episode there, without a goal that is soon reached or missed.
"""

import itertools
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from polyview.errors import InputError
from polyview.rl.environment import Outcome
from polyview.rl.episodes import Episodes, check_pixels, fingerprint, seed_of
from sgi.atari import FRAME_SKIP, NOOPS, SIZE, VERSION, Game
from sgi.ram import ADDRESSES

INSTRUCTION = "win the point"
LIMIT = 300  # actions of an episode
BEFORE = 4  # the most points that were played before it
_FRAMES = 3  # in an image


class Play:
    """The play for one point after another.

    Attributes:
      game: the emulator.
      frames: uint8[3, 84, 84], the oldest first; the first one thrice.
    """

    def __init__(self) -> None:
        self.game = Game("pong")
        self.game.reset()
        # Another reset would leave marks in the emulator's state.
        self._start = self.game.state()

    def begin(self, seed: int) -> None:
        """Begin the play that follows from a seed; see the module."""
        rng = np.random.default_rng(seed)
        self.game.restore(self._start)
        for _ in range(rng.integers(1, BEFORE + 1)):
            while not self.game.step(int(rng.integers(len(self.game.actions)))).reward:
                pass
        frame = self.game.wait(int(rng.integers(1, NOOPS + 1)))
        self.frames, self._taken = np.stack([frame] * _FRAMES), 0

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action; return frames, reward, terminated, truncated and {}.

        The reward is the point: 1, -1 or 0.
        """
        step = self.game.step(action)
        self.frames = np.concatenate([self.frames[1:], step.frame[None]])
        self._taken += 1
        over = step.reward != 0
        return self.frames, step.reward, over, not over and self._taken == LIMIT, {}


class Pong(Episodes):
    """A point of Pong against the computer; see the module.

    Args:
      reward: "success": 1 for the point; "dense": the point, 1 or -1. Both end with it.
      pixels: of images, at most 84; 0 for 84.

    The expert wins the points of the seeds 0 to 199, in 117 actions on average and 243
    at most.

    Raises InputError for wrong arguments, and if ale-py is not installed.
    """

    name, kind = "sgi.pong:Pong", "pong"

    def __init__(self, *, reward: str = "success", pixels: int = 0):
        super().__init__(dense=reward == "dense")
        if reward not in ("success", "dense"):
            raise InputError(f"reward={reward!r} is neither 'success' nor 'dense'")
        check_pixels(pixels, SIZE)
        self.environment = Play()
        names = self.environment.game.actions
        self.actions: tuple[str, ...] | None = tuple(map(_words, names))
        self.box: tuple[int, float, float] | None = None
        self.limit = LIMIT
        self._pixels = pixels or SIZE
        self.shapes: dict[str, tuple[int, ...]] = {
            "image": (self._pixels, self._pixels, _FRAMES)
        }
        self.versions = {"ale-py": VERSION}
        self.reset(0)

    def step(self, action: int) -> Outcome:
        """Take an action, its number in `actions`. Raises InputError for no such."""
        number, known = np.asarray(action), len(self.actions or ())
        if number.shape or number.dtype.kind not in "iu" or not 0 <= number < known:
            raise InputError(f"Pong has the actions 0 .. {known - 1}, not {action!r}")
        _, own, ended, cut, _ = self.environment.step(int(number))
        self.arrived, self.success = self._observed(), own > 0
        return self._outcome(own, ended or cut)

    def legal(self) -> None:
        """Return None: every action may be taken at any time."""

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that determines what happens next, uint8[32]."""
        play = self.environment
        place = self._seed, self._episode, self._score, self._steps
        return fingerprint(*place, play.game.state(), play.frames)

    def render(self) -> np.ndarray:
        """Return the console's picture, uint8[210, 160, 3]."""
        return self.environment.game.screen()

    def expert(self) -> "Player":
        """Return a player that reads the console's memory."""
        return Player(self.environment.game.ram)

    def _begin(self) -> None:
        self._score, self._steps = 0.0, 0
        self.environment.begin(seed_of(self._seed, self._episode))
        self.observation = self._observed()

    def _observed(self) -> dict[str, Any]:
        image = np.ascontiguousarray(self.environment.frames.transpose(1, 2, 0))
        if self._pixels != SIZE:
            size = (self._pixels, self._pixels)
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return {"image": image, "instruction": INSTRUCTION}


def _words(name: str) -> str:
    """Return the name of an action in words: RIGHTFIRE is "right fire"."""
    return name.lower().replace("fire", " fire").strip()


# How the game works, as we measured it; positions are those of its memory.
_PONG = ADDRESSES["pong"]
_CLOCK = 8  # address of the byte that counts frames
_CONTACT = 188  # x at which our paddle meets the ball, if the clock is odd
_TOP, _BOTTOM = 44, 207  # where the ball's y turns back
_TURN = 23 / FRAME_SKIP  # a frame of an action turns the knob by this
_KNOB = 13, 205  # its range
_PADDLE = 38, 204  # the part of it that moves the paddle
# The ball's y less the paddle's as they meet. Up to 0 the ball leaves upwards by 2 a
# frame, from 1 by 1, from 5 level, from 9 downwards by 1, from 13 to 16 by 2.
_UPPER, _MIDDLE, _LOWER = -0.5, 6.5, 14.5
_HIT = -1.2, 15.5  # beyond these it may miss
_TURNS = (0, 0, -1, 1, -1, 1)  # of the knob, by each action: "right" is up
_ACTIONS = {0: 0, -1: 2, 1: 3}
_READY = 110  # of the knob, while the ball leaves
_NEAR = 12  # about half of what an action turns it by
_AHEAD = 5  # actions that are planned
_PLANS = {
    count: np.array(list(itertools.product((0, -1, 1), repeat=count)))
    for count in range(1, _AHEAD + 1)
}


class Player:
    """The expert of Pong: it puts an end of its paddle where the ball will arrive.

    The ball then leaves by 2 pixels a frame, up or down; the opponent's paddle follows
    by 1.75. It is late where the ball comes to it after a long way without a bounce,
    upwards above all. Where there is no such way, the middle of the paddle is safe.

    memory: returns the console's memory, uint8[128].
    """

    def __init__(self, memory: Callable[[], np.ndarray]):
        self._memory = memory
        self._ball = 0, 0  # x and y before the last action; y is 0 where there is none
        self._speed = 0  # of its y, pixels a frame
        self._paddle, self._knob = -1, 0.0
        self._turns = 0, 0  # the last two, as in `_TURNS`

    def __call__(self, observation: Any, taken: int | None = None) -> int:
        """Return an action; taken: the last one, if it was not the one returned."""
        memory = self._memory().astype(int)
        x, y = memory[_PONG["ball_x"]], memory[_PONG["ball_y"]]
        paddle, clock = memory[_PONG["player_y"]], memory[_CLOCK]
        if taken is not None:
            self._turns = self._turns[0], _TURNS[taken]
        knob = self._knob + FRAME_SKIP * _TURN * self._turns[1]
        still = paddle == self._paddle and not any(self._turns)
        if self._paddle < 0 or still and _PADDLE[0] < paddle < _PADDLE[1] - 1:
            knob = paddle + 0.5
        self._knob, self._paddle = float(np.clip(knob, *_KNOB)), paddle
        (before, last), self._ball = self._ball, (x, y)
        seen = last and y
        if seen:
            self._speed = _speed(y - last, y, self._speed)
        if seen and before < x < _CONTACT:
            turn = self._meet(x, y, paddle, clock)
        else:
            turn = self._towards(_READY)
        self._turns = self._turns[1], turn
        return _ACTIONS[turn]

    def _meet(self, x: int, y: int, paddle: int, clock: int) -> int:
        frames = _CONTACT - x
        frames += (clock + frames + 1) % 2
        arrives = _bounced(y + self._speed * frames)
        # A ball that leaves downwards bounces and comes up; it is with the opponent 120
        # frames later, and from more than 130 down it would have bounced again.
        wanted = _LOWER if arrives <= 130 else _UPPER if arrives <= 165 else _MIDDLE
        count = -(-frames // FRAME_SKIP)
        if count > _AHEAD:
            return self._towards(arrives - wanted)
        plans = _PLANS[count]
        knob = np.full(len(plans), self._knob)
        at = np.full(len(plans), float(paddle))
        for frame in range(frames):
            if (clock + frame) % 2 == 0:  # the paddle moves every other frame
                at = np.floor((at + np.clip(knob, *_PADDLE)) / 2)
            knob = np.clip(knob + _TURN * plans[:, frame // FRAME_SKIP], *_KNOB)
        met = arrives - at
        missed = (met < _HIT[0]) | (met > _HIT[1])
        cost = abs(met - wanted) + 50 * missed + 0.1 * abs(plans).sum(1)
        return int(plans[cost.argmin(), 0])

    def _towards(self, place: float) -> int:
        """Return the turn that brings the knob near a place."""
        away = place - self._knob
        return 0 if abs(away) <= _NEAR else int(np.sign(away))


def _speed(change: int, y: int, before: int) -> int:
    """Return the speed of the ball's y from its change in an action.

    Within the action it may have bounced; before: the speed until then.
    """
    if change % FRAME_SKIP == 0:
        return change // FRAME_SKIP
    return -abs(before) if y > (_TOP + _BOTTOM) / 2 else abs(before)


def _bounced(y: int) -> int:
    """Return where a ball is that would be at y without walls."""
    height = _BOTTOM - _TOP
    way = (y - _TOP) % (2 * height)
    return _TOP + min(way, 2 * height - way)
