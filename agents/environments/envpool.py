"""Levels of BabyAI as rows, simulated by envpool: its copy of minigrid in C++.

Observations are `grid` of `agents.environments.babyai`, and with a tokenizer `text` and
`caption` of `agents.environments.rows`. Levels and limits are those of minigrid, which
must be installed too; the episodes of a seed are others.
"""

import hashlib
import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from agents.environments import worlds
from agents.environments.babyai import levels
from agents.environments.captions import babyai
from agents.environments.rows import CAPTION, Texts, Told, captioning
from polyview.errors import InputError, check_range, nearest
from polyview.rl.environment import Step
from polyview.rl.rows import Shapes, check_actions, check_saved, elsewhere

_GRID, _LENGTH = (7, 7, 3), 32  # of a digest


class EnvPool:
    """n rows of a level as `polyview.rl.environment:Rows`.

    Args:
      name: of a world of BabyAI, such as babyai:GoToLocal.
      count: n.
      seed: of the rows. envpool takes a seed when it makes a row, and none later: a
        row's first episode follows from the seed and the row's number, and each later
        one also from what was played before in that row.
      most: the most steps that the rows take after `begin`; another is an InputError.
        To come back to a saved place all of them are played again, so `saved` has room
        for them: n * most bytes. Give the steps of the whole run.
      first: the number of the first row among those of all hosts.
      text, length, before, after: see `agents.environments.rows:Told`; without `text`
        no instruction is shown.
      caption, caption_length, goal_only: see `agents.environments.rows:rows`.
      reward: see `agents.environments.worlds`.
      limit: the most steps of an episode, instead of the level's own.
      threads: of envpool. What is shown does not depend on it.

    Raises InputError if envpool or minigrid is not installed, and for an unknown world
    or reward.
    """

    def __init__(
        self,
        name: str,
        count: int,
        seed: int,
        *,
        most: int,
        first: int = 0,
        text: Texts | None = None,
        length: int = 16,
        before: str = "",
        after: str = "",
        caption: bool = False,
        caption_length: int = CAPTION,
        goal_only: bool = False,
        reward: str = "success",
        limit: int | None = None,
        threads: int = 1,
    ) -> None:
        check_range(1, 2**20, count=count)
        check_range(0, 2**63, seed=seed)
        check_range(1, 2**31 - 1, most=most)
        check_range(0, 2**30, first=first)
        check_range(1, 10_000_000, limit=limit)
        check_range(1, 1024, threads=threads)
        kind, level = worlds.parse(name)
        if kind != "babyai":
            raise InputError(f"envpool has no '{name}'; give one such as babyai:GoTo")
        if reward not in worlds.REWARDS:
            raise InputError(
                f"no reward '{reward}' of {name}{nearest(reward, worlds.REWARDS)}"
            )
        self._envpool = _package()
        known = levels()
        if level not in known:
            raise InputError(f"BabyAI has no level '{level}'{nearest(level, known)}")
        self._number = known[level]
        if self._number not in self._envpool.list_all_envs():
            raise InputError(f"envpool {metadata.version('envpool')} has no '{name}'")
        self.name, self.count, self.actions = name, count, 7
        self.limit = limit or worlds.world(name).limit
        self.versions: Mapping[str, str] = {"envpool": metadata.version("envpool")}
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "grid": (_GRID, np.dtype(np.uint8))
        }
        self._told = None if text is None else Told(text, length, before, after)
        if text is not None:
            shapes["text"] = ((length,), np.dtype(np.int32))
        captions = captioning(name, text, caption, caption_length, goal_only)
        self._captioned, self._goal_only = captions and captions[1], goal_only
        if caption:
            shapes["caption"] = ((caption_length,), np.dtype(np.int32))
        self.shapes: Shapes = shapes
        self._first, self._most, self._dense = first, most, reward == "dense"
        self._settings: dict[str, Any] = {
            "num_envs": count,
            "num_threads": threads,
            "env_seed": seeds(seed, first, count),
        }
        if limit is not None:
            self._settings["max_episode_steps"] = limit
        self._pool: Any = None

    def begin(self) -> Step:
        """Begin the first episode of each row."""
        self._pool = self._envpool.make_gymnasium(self._number, **self._settings)
        self._steps = 0
        self._actions = np.zeros((self.count, self._most), np.uint8)
        self._digests = [hashlib.sha256() for _ in range(self.count)]
        length = 0 if self._told is None else self.shapes["text"][0][0]
        self._text = np.zeros((self.count, length), np.int32)
        self._missions = [""] * self.count
        raw, information = self._pool.reset()
        nothing = np.zeros(self.count, np.float32)
        no = np.zeros(self.count, bool)
        return self._shown(raw, nothing, no, no, information)

    def step(self, actions: np.ndarray) -> Step:
        """Take int[n] actions. The arrays of the result are the caller's."""
        actions = np.asarray(actions)
        check_actions(actions, self.count, self.actions, self.name, self._first)
        if self._pool is None:
            raise RuntimeError("call begin or restore first")
        if self._steps == self._most:
            raise InputError(
                f"{self.name}: the rows have taken {self._most} steps, as many as they "
                "keep for a restore; give a larger `most`"
            )
        self._actions[:, self._steps] = actions
        self._steps += 1
        return self._shown(*self._pool.step(actions.astype(np.int32)))

    def saved(self) -> dict[str, np.ndarray]:
        """Return what `restore` needs; the shapes never change.

        steps    int32[n], since `begin`, the same for all rows
        actions  uint8[n, most], since `begin`; zeros after them
        digest   uint8[n, 32], the SHA-256 of all that the row has shown
        """
        if self._pool is None:
            raise RuntimeError("call begin or restore first")
        return {
            "steps": np.full(self.count, self._steps, np.int32),
            "actions": self._actions.copy(),
            "digest": self._digest(),
        }

    def restore(self, saved: Mapping[str, np.ndarray]) -> Step:
        """Return the step at which `saved` was called, and go on from there.

        Plays all actions since `begin`. Raises InputError, with the version of envpool,
        if the rows show something else, and for arrays of other rows.
        """
        n, most = self.count, self._most
        wanted = {"steps": (n,), "actions": (n, most), "digest": (n, _LENGTH)}
        check_saved(saved, wanted, self.name)
        steps = np.asarray(saved["steps"])
        if not 0 <= steps[0] <= most or (steps != steps[0]).any():
            raise InputError(f"{self.name}: what was saved is damaged: {steps} steps")
        step = self.begin()
        for time in range(steps[0]):
            step = self.step(saved["actions"][:, time])
        wrong = (self._digest() != saved["digest"]).any(1)
        if wrong.any():
            row = self._first + int(np.argmax(wrong))
            raise elsewhere(self.name, row, self.versions)
        return step

    def close(self) -> None:
        """Give up the rows."""
        self._pool = None

    def _digest(self) -> np.ndarray:
        found = [np.frombuffer(digest.digest(), np.uint8) for digest in self._digests]
        return np.stack(found)

    def _shown(
        self,
        raw: Mapping[str, np.ndarray],
        own: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        information: Mapping[str, Any],
    ) -> Step:
        begun = information["elapsed_step"] == 0
        ends = np.stack([terminated, truncated], 1)
        # A row of bytes: what it shows, its reward and its ends.
        bytes_of = np.concatenate(
            [
                raw["image"].reshape(self.count, -1),
                own.astype(np.float32).reshape(-1, 1).view(np.uint8),
                ends.view(np.uint8),
            ],
            axis=1,
        )
        for digest, row in zip(self._digests, bytes_of, strict=True):
            digest.update(row)
        for row in np.flatnonzero(begun):
            self._digests[row].update(raw["mission"][row])
            if self._told is not None:
                self._missions[row] = self._instruction(raw["mission"][row])
                self._text[row] = self._told(self._missions[row])
        shown: dict[str, np.ndarray] = {"grid": raw["image"].astype(np.uint8)}
        if self._told is not None:
            shown["text"] = self._text.copy()
        if self._captioned is not None:
            both = zip(shown["grid"], self._missions, strict=True)
            texts = [babyai(grid, mission, self._goal_only) for grid, mission in both]
            shown["caption"] = np.stack([self._captioned(text) for text in texts])
        # envpool calls a success at the last step that is allowed cut off.
        success = (terminated | truncated) & (own > 0)
        reward = own if self._dense else success
        ended = terminated | success
        cut = truncated & ~ended
        return Step(shown, reward.astype(np.float32), ended, cut, success)

    def _instruction(self, mission: np.ndarray) -> str:
        """Return the text of bytes that end with a 0."""
        text, end, _ = mission.tobytes().partition(b"\0")
        if not end:
            raise InputError(
                f"{self.name}: envpool cuts off the instruction {text.decode()!r}"
            )
        return text.decode()


def seeds(seed: int, first: int, count: int) -> list[int]:
    """Return the seeds of rows, each in 31 bits, as envpool takes them.

    They follow one another from where `seed` says, so that no two rows have one.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return [(start + row) % 2**31 for row in range(first, first + count)]


def _package() -> Any:
    try:
        return importlib.import_module("envpool")
    except ImportError as error:
        raise InputError(
            f"envpool is needed for these rows ({error}): pip install '.[envpool]'"
        ) from error
