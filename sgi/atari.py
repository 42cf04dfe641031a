"""One Atari game: four emulator frames a step, 84x84 grey pixels, the console's RAM.

The preprocessing is that of Mnih et al. 2015 as in the DQN Replay data: an action is
held for four frames, an observation is the pixelwise maximum of the last two, resized
with cv2.INTER_AREA. A lost life and the end of the game are told apart, since training
may end an episode at the one while the game goes on to the other.

The emulator and the games come in ale-py, under the GPL: it is installed by those who
want it and no part of this project.
"""

import contextlib
import difflib
import functools
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np

from polyview.data.sources.array_record import pack, unpack
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError

SIZE = 84
FRAME_SKIP = 4
FRAME_CAP = 108_000  # half an hour of play, then the game is cut off
NOOPS = 30  # frames without action at a game's start, at most
RAM = 128


class Step(NamedTuple):
    """What an action led to.

    Attributes:
      frame: uint8[84, 84], what is seen after it.
      reward: the change of the score, not clipped.
      life_lost: a life went but the game goes on; never so in a game without lives.
      game_over: the game has ended by its own rules.
      truncated: the game was cut off after 108,000 frames.
    """

    frame: np.ndarray
    reward: float
    life_lost: bool
    game_over: bool
    truncated: bool


class Game:
    """A game in progress; call `reset` first, and after the game has ended.

    Args:
      name: as ale-py spells it, such as `ms_pacman`.
      sticky: the probability that the console repeats the last action at a frame
        (Machado et al. 2018: 0.25).
      seed: of the sticky actions.

    Attributes:
      name: of the game.
      actions: the names of its minimal set of actions; an action is an index into it.

    Raises:
      InputError: there is no such game, its ROM is missing or another one, or ale-py
        is not installed.
    """

    def __init__(self, name: str, *, sticky: float = 0.0, seed: int = 0):
        ale_py = _ale()
        if name not in ale_py.roms.get_all_rom_ids():
            raise InputError(f"there is no game '{name}'; {_nearest(name)}")
        self.name, self._sticky = name, sticky
        self._emulator = ale_py.ALEInterface()
        self._emulator.setInt("random_seed", seed % 2**31)
        self._emulator.setFloat("repeat_action_probability", sticky)
        self._emulator.setInt("max_num_frames_per_episode", FRAME_CAP)
        self._emulator.loadROM(_rom(name))
        self._actions = self._emulator.getMinimalActionSet()
        self.actions = [action.name for action in self._actions]
        height, width = self._emulator.getScreenDims()
        self._screens = np.zeros((2, height, width), np.uint8)
        self._frame = np.zeros((SIZE, SIZE), np.uint8)

    def reset(self, noops: int = 0) -> np.ndarray:
        """Begin a game, let `noops` frames pass and return the frame that is seen."""
        self._emulator.reset_game()
        return self.wait(noops)

    def wait(self, frames: int) -> np.ndarray:
        """Let emulator frames pass without action, as after a lost life."""
        for _ in range(frames):
            self._emulator.act(0)
        self._emulator.getScreenGrayscale(self._screens[0])
        self._frame = _resize(self._screens[0])
        return self._frame

    def step(self, action: int) -> Step:
        """Hold an action, an index into `actions`, for four frames.

        A game that ends within them stands still for the rest.
        """
        emulator, held = self._emulator, self._actions[action]
        lives, reward = emulator.lives(), 0
        for number in range(FRAME_SKIP):
            reward += emulator.act(held)
            if number >= FRAME_SKIP - 2:
                emulator.getScreenGrayscale(self._screens[number - FRAME_SKIP + 2])
        self._frame = _resize(np.maximum(*self._screens))
        ended = emulator.game_over(with_truncation=False)
        return Step(
            self._frame,
            float(reward),
            emulator.lives() < lives and not ended,
            ended,
            emulator.game_truncated(),
        )

    def ram(self) -> np.ndarray:
        """Return the console's memory, uint8[128]."""
        return self._emulator.getRAM()

    def screen(self) -> np.ndarray:
        """Return the console's picture in colour, uint8[210, 160, 3] in most games.

        It is that of the last emulator frame alone: what flickers may be missing.
        """
        return self._emulator.getScreenRGB()

    def state(self) -> bytes:
        """Return all that decides how the game goes on, sticky actions included."""
        emulator = self._emulator.cloneState(include_rng=True).serialize()
        return pack(
            {
                "game": self.name,
                "sticky": self._sticky,
                "emulator": emulator,
                "frame": self._frame,
            }
        )

    def restore(self, state: bytes) -> np.ndarray:
        """Go on from a `state` of the same game; returns the frame that is seen.

        Raises:
          InputError: the bytes are no such state; the game is then as it was.
        """
        try:
            fields = unpack(state)
            kind = fields["game"], fields["sticky"]
            emulator = _ale().ALEState(fields["emulator"])
            frame = fields["frame"].reshape(SIZE, SIZE)
        # What ale-py raises for bytes it cannot read is a SystemError.
        except (CorruptRecord, KeyError, AttributeError, TypeError, ValueError) as e:
            raise InputError(f"not a state of {self.name} ({e})") from None
        except SystemError:
            raise InputError(f"not a state of {self.name}: it is damaged") from None
        if kind != (self.name, self._sticky):
            raise InputError(
                f"a state of {kind[0]} with sticky {kind[1]} does not fit "
                f"{self.name} with sticky {self._sticky}"
            )
        self._emulator.restoreState(emulator)
        self._frame = frame
        return frame


def _resize(screen: np.ndarray) -> np.ndarray:
    return cv2.resize(screen, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


@functools.cache
def _ale() -> ModuleType:
    try:
        import ale_py
        import ale_py.roms
    except ImportError as error:
        raise InputError(
            f"Atari games need ale-py ({error}); it is under the GPL and installed "
            "apart: pip install ale-py==0.12.1"
        ) from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py


def _rom(name: str) -> Path:
    """Return a game's ROM, of ale-py or of the folder that ALE_ROMS_DIR names."""
    try:
        with contextlib.redirect_stdout(None):  # it prints the folder
            return _ale().roms.get_rom_path(name)
    except OSError as error:
        folder = os.environ.get("ALE_ROMS_DIR")
        where = f"ALE_ROMS_DIR={folder}" if folder else "ale-py's own folder"
        what = error.strerror or str(error).partition("\n")[0]
        raise InputError(
            f"no ROM of '{name}' in {where}: {what}; "
            + ("unset ALE_ROMS_DIR" if folder else "install ale-py once more")
            + " to play with the ROMs that come with ale-py"
        ) from error


def _nearest(name: str) -> str:
    """Name the games whose letters come nearest, however they were spelt."""
    letters = {game.replace("_", ""): game for game in _ale().roms.get_all_rom_ids()}
    wanted = "".join(filter(str.isalnum, name)).lower()
    nearest = difflib.get_close_matches(wanted, letters, n=3)
    if not nearest:
        return "games are spelt as in ms_pacman, pong, breakout"
    return f"the nearest: {', '.join(letters[match] for match in nearest)}"
