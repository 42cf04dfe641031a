"""A policy in its worlds: lanes of episodes that are played side by side."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from agents.data import Context
from agents.environments.worlds import World


def play(model: Any, lanes: Sequence["Lane"], views: Context) -> Iterator[int]:
    """Let a model act in all lanes; yield the number of each that took an action.

    model: of `agents.policy:Policy`, for `polyview.model.Model.call`. Whoever iterates
    calls `over` of a lane whose episode has `ended`, and it begins another one.
    """
    for lane in lanes:
        lane.begin()
    told, cache = None, None
    while any(lane.playing for lane in lanes):
        texts = np.stack([_told(views, lane) for lane in lanes])
        if told is None or (texts != told).any():
            told, cache = texts, model.call("read", texts)
        windows = [lane.window(views) for lane in lanes]
        shown = {
            name: np.stack([window[0][name] for window in windows])
            for name in views.observations
        }
        present = np.stack([window[1] for window in windows])
        taken = np.stack([window[2] for window in windows])
        found = model.call("act", cache, shown, present, taken, None)
        for number, action in enumerate(np.asarray(jax.device_get(found))):
            if lanes[number].playing:
                lanes[number].act(action)
                yield number


def _told(views: Context, lane: "Lane") -> np.ndarray:
    if views.text is None:
        return np.zeros(0, np.int32)
    return views.told(lane.observation["instruction"])[0]


class Lane:
    """One world, in which one episode is played after another.

    seeds: of the episodes; limit: of their steps, 0 for the world's own.
    """

    def __init__(self, own: World, seeds: Iterator[int], limit: int):
        self.world, self.seeds = own, seeds
        self.limit = limit or own.limit
        self.played: list[tuple[int, bool, int]] = []  # seed, success, steps
        self.playing, self.seed = True, 0
        self.observation: Any = own.observation
        self.seen: deque = deque()
        self.done: deque = deque()
        self.steps, self.success, self.ended = 0, False, False

    def begin(self) -> None:
        """Begin the next episode, if there is one."""
        seed = next(self.seeds, None)
        if seed is None:
            self.playing = False
            return
        self.seed, self.steps = seed, 0
        self.success = self.ended = False
        self.observation = self.world.reset(seed)
        self.seen, self.done = deque([self.observation]), deque()

    def window(self, views: Context) -> tuple[dict, np.ndarray, np.ndarray]:
        """Return what the policy is shown: views, which are present, and actions."""
        span = views.span
        while len(self.seen) > span:
            self.seen.popleft()
            self.done.popleft()
        absent = span - len(self.seen)
        shown = {}
        for name in views.observations:
            rows = np.stack([np.asarray(seen[name]) for seen in self.seen])
            pad = np.zeros((absent, *rows.shape[1:]), rows.dtype)
            shown[name] = np.concatenate([pad, rows])
        blank = np.zeros(self.world.box[0] if self.world.box else (), self.kind)
        taken = [blank] * absent + [*self.done] + [blank]
        return shown, np.arange(span) >= absent, np.stack(taken).astype(self.kind)

    @property
    def kind(self) -> Any:
        """The type of the actions."""
        return np.int32 if self.world.box is None else np.float32

    def act(self, action: np.ndarray) -> None:
        """Take an action."""
        if self.world.box is not None:
            action = np.clip(action, *self.world.box[1:]).astype(np.float32)
        outcome = self.world.step(int(action) if self.world.box is None else action)
        self.steps += 1
        self.success = self.success or bool(self.world.success)
        self.observation = outcome.observation
        self.seen.append(outcome.observation)
        self.done.append(np.asarray(action, self.kind))
        self.ended = outcome.finished is not None or self.success
        self.ended |= self.steps >= self.limit

    def over(self) -> None:
        """Note the episode, and begin the next one."""
        self.played.append((self.seed, self.success, self.steps))
        self.begin()
