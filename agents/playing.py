"""A policy in its worlds: lanes of episodes that are played side by side."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.data import TEXT, Context
from agents.environments.worlds import World
from polyview.rl.acting import Acted


def play(model: Any, lanes: Sequence["Lane"], views: Context) -> Iterator[int]:
    """Let a model act in all lanes; yield the number of each that took an action.

    model: of `agents.policy:Policy`, for `polyview.model.Model.call`. Whoever iterates
    calls `over` of a lane whose episode has `ended`, and it begins another one.
    """
    for lane in lanes:
        lane.begin()
    # What a policy sees of a whole episode stays in its memory; else it is shown anew.
    whole = 1 < views.span and all(lane.limit < views.span for lane in lanes)
    told, memory = None, None
    while any(lane.playing for lane in lanes):
        now = _now(views, lanes)
        first = np.array([len(lane.seen) == 1 for lane in lanes])
        if memory is None or not whole:
            texts = now.get(TEXT)
            if memory is None or views.span > 1 or np.any(texts != told):
                told = texts
                memory = model.call("recall", _past(views, lanes, texts), now)
            first = first & whole
        memory, acted = model.call("act", memory, now, first, None)
        for number, action in enumerate(np.asarray(jax.device_get(acted.action))):
            if lanes[number].playing:
                lanes[number].act(action)
                yield number


class Chance:
    """A model that takes each action with the same probability, by a seed."""

    def __init__(self, world: World, seed: int = 0):
        self._world, self._rng = world, np.random.default_rng(seed)

    def call(self, method: str, *arguments: Any) -> Any:
        """Recall nothing, or act."""
        if method == "recall":
            return ()
        n = len(arguments[2])
        if self._world.box is None:
            count = len(self._world.actions or ())
            action = (count * self._rng.random(n)).astype(np.int32)
        else:
            size, low, high = self._world.box
            drawn = low + (high - low) * self._rng.random((n, size))
            action = drawn.astype(np.float32)
        nothing = np.zeros(n, np.float32)
        return (), Acted(*map(jnp.asarray, (action, nothing, nothing)))


def _now(views: Context, lanes: Sequence["Lane"]) -> dict[str, np.ndarray]:
    """Return what all lanes show, {name: [n, ...]}."""
    found = {
        name: np.stack([np.asarray(lane.observation[name]) for lane in lanes])
        for name in views.observations
    }
    if views.text is not None:
        texts = [views.told(lane.observation["instruction"])[0] for lane in lanes]
        found[TEXT] = np.stack(texts)
    return found


def _past(
    views: Context, lanes: Sequence["Lane"], texts: np.ndarray | None
) -> dict[str, Any]:
    """Return the steps before this one, as many as the policy sees."""
    every, real, actions = zip(*(lane.past(views) for lane in lanes), strict=True)
    shown = {
        name: np.stack([own[name] for own in every]) for name in views.observations
    }
    if texts is not None:
        shown[TEXT] = np.repeat(texts[:, None], views.span - 1, 1)
    past = {"views": shown, "real": np.stack(real), "actions": np.stack(actions)}
    return past | {"first": np.zeros_like(past["real"])}


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

    def past(self, views: Context) -> tuple[dict, np.ndarray, np.ndarray]:
        """Return views of the `span - 1` steps before, which are real, and actions."""
        count = views.span - 1
        while len(self.done) > count:
            self.seen.popleft()
            self.done.popleft()
        absent = count - len(self.done)
        shown = {}
        for name in views.observations:
            rows = np.stack([np.asarray(seen[name]) for seen in self.seen])
            pad = np.zeros((absent, *rows.shape[1:]), rows.dtype)
            shown[name] = np.concatenate([pad, rows[:-1]])
        blank = np.zeros(self.world.box[0] if self.world.box else (), self.kind)
        taken = [blank] * absent + [*self.done]
        whole = np.stack(taken) if taken else np.zeros((0, *blank.shape))
        return shown, np.arange(count) >= absent, whole.astype(self.kind)

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
