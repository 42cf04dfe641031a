"""One Atari game: four emulator frames a step, 84x84 grey pixels, the console's RAM.

The preprocessing is that of Mnih et al. 2015, as in the DQN Replay data: an action is
held for four frames; an observation is the pixelwise maximum of the last two, resized
with cv2.INTER_AREA. Lost lives are reported apart from the end of the game, because
training may end an episode at a lost life while the game continues.

The emulator and the games come with ale-py, which is under the GPL. Users install it
separately; it is not part of this project.
"""

import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np

from polyview.data.sources.array_record import pack, unpack
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError
from sgi.games import canonical_name

VERSION = "0.12.1"  # of ale-py: another may load, step or resize differently
SIZE = 84
FRAME_SKIP = 4
FRAME_CAP = 108_000  # half an hour of play; the game is then truncated
NOOPS = 30  # most frames without action at a game's start
RAM = 128


class Step(NamedTuple):
    """The result of an action.

    Attributes:
      frame: uint8[84, 84], the observation after the action.
      reward: the change of the score, not clipped.
      life_lost: a life was lost but the game continues; never in a game without lives.
      game_over: the game ended by its own rules.
      truncated: the game was cut off after 108,000 frames.
    """

    frame: np.ndarray
    reward: float
    life_lost: bool
    game_over: bool
    truncated: bool


class Game:
    """A game in progress; call `reset` first, and again after the game has ended.

    Args:
      name: as ale-py, gym or gymnasium spells it; see `sgi.games.canonical_name`.
      sticky: the probability that the console repeats the last action at a frame
        (Machado et al. 2018: 0.25).
      seed: seed of the sticky actions.

    Attributes:
      name: the name of the game, as ale-py spells it.
      actions: names of the game's minimal action set; an action is an index into it.

    Raises:
      InputError: the game is unknown, its ROM is missing, wrong or for two players, or
        ale-py is not installed in the right version.
    """

    def __init__(self, name: str, *, sticky: float = 0.0, seed: int = 0):
        self.name, self._sticky = canonical_name(name), sticky
        path = rom(self.name)
        self._emulator = _ale().ALEInterface()
        self._emulator.setInt("random_seed", seed % 2**31)
        self._emulator.setFloat("repeat_action_probability", sticky)
        self._emulator.setInt("max_num_frames_per_episode", FRAME_CAP)
        self._emulator.loadROM(path)
        self._actions = self._emulator.getMinimalActionSet()
        self.actions = [action.name for action in self._actions]
        height, width = self._emulator.getScreenDims()
        self._screens = np.zeros((2, height, width), np.uint8)
        self._frame = np.zeros((SIZE, SIZE), np.uint8)

    def reset(self, noops: int = 0) -> np.ndarray:
        """Start a game, wait `noops` frames and return the current frame."""
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

        If the game ends within them, it does not change in the rest.
        """
        return self.step_each([action] * FRAME_SKIP)

    def step_each(self, actions: Sequence[int]) -> Step:
        """Take an action for each of the four frames of a step."""
        emulator = self._emulator
        lives, reward = emulator.lives(), 0
        for number, action in enumerate(actions):
            reward += emulator.act(self._actions[action])
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

        It shows the last emulator frame only, so flickering objects may be missing.
        """
        return self._emulator.getScreenRGB()

    def state(self) -> bytes:
        """Return the whole state of the game, the sticky actions' included."""
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
        """Continue from a `state` of the same game; return the current frame.

        Raises InputError if the bytes are not such a state; the game is then unchanged.
        """
        try:
            fields = unpack(state)
            kind = fields["game"], fields["sticky"]
            emulator = _ale().ALEState(fields["emulator"])
            frame = fields["frame"].reshape(SIZE, SIZE)
        # ale-py raises SystemError for bytes that it cannot read.
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
    install = f"pip install ale-py=={VERSION}"
    try:
        import ale_py
        import ale_py.roms
    except ImportError as error:
        raise InputError(
            f"Atari games need ale-py ({error}); it is under the GPL, so install it "
            f"separately: {install}"
        ) from None
    version = getattr(ale_py, "__version__", "unknown")
    if version != VERSION:
        raise InputError(
            f"Atari games need ale-py {VERSION}, but {version} is installed: {install}"
        )
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py


def rom(name: str) -> Path:
    """Return the path of a game's ROM, in ale-py or in the folder ALE_ROMS_DIR.

    Raises InputError if there is none, or none that the emulator can load: ale-py ends
    the process when it tries.
    """
    ale_py, folder = _ale(), os.environ.get("ALE_ROMS_DIR")
    where = f"ALE_ROMS_DIR={folder}" if folder else "ale-py's own folder"
    mend = "unset ALE_ROMS_DIR" if folder else "reinstall ale-py"
    mend += " to use the ROMs that come with ale-py"
    try:
        with contextlib.redirect_stdout(None):  # ale-py prints the folder
            path = ale_py.roms.get_rom_path(name)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"no ROM of '{name}' in {where}: {what}; {mend}") from error
    if path is None or ale_py.ALEInterface.isSupportedROM(path) is None:
        raise InputError(f"ale-py cannot load the ROM of '{name}' in {where}; {mend}")
    return path
