"""Episodes that an expert plays, with chance actions: captions, and true values.

The value of a moment is minus the number of steps that the expert still needs from it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.demonstrate import Failed, expert
from agents.environments.worlds import World
from polyview.errors import check_range
from polyview.rl.episodes import Over, stop

UNKNOWN = float("nan")  # a value


class Moment(NamedTuple):
    """One time of an episode.

    Attributes:
      caption: what is seen, in words.
      observation: {field: array}, the fields of the world.
      value: minus the remaining steps of the expert; NaN if it is not known.
      action: the one that is taken next; None at the end of the walk.
    """

    caption: str
    observation: dict[str, np.ndarray]
    value: float
    action: Any


class Walk(NamedTuple):
    """One episode: its moments from the first to the last, and whether it succeeded."""

    instruction: str
    task: int
    seed: int
    moments: tuple[Moment, ...]
    success: bool


def walk(
    room: World,
    seed: int,
    *,
    caption: Callable[[World], str],
    task: int = 0,
    random: float = 0.0,
    valued: bool = True,
) -> Walk:
    """Play an episode by its expert; all follows from the seed.

    The walk ends with the episode, or where the expert does not know what to do.

    Args:
      room: the world. Its next episode is not begun.
      caption: of `agents.environments.captions:captioner`.
      task: the number of the world among those of a data set.
      random: the probability of each action to be drawn evenly from all that are legal,
        instead of the expert's.
      valued: find values, else they are NaN. Each chance action costs an episode.

    A value is NaN if the expert, left alone from there, fails: it is lost, or cannot
    succeed any more, or not within the steps that the world allows. Raises OutOfRange
    for a `random` outside 0 .. 1.
    """
    check_range(0.0, 1.0, random=random)
    rng = np.random.default_rng((seed, 3))
    seen: list[tuple[str, dict[str, np.ndarray]]] = []
    actions: list[Any] = []
    chance: list[int] = []  # the times of actions that the expert did not choose
    success = False
    with _one_episode(room):
        observation = room.reset(seed)
        instruction = observation["instruction"]
        act, taken = expert(room), None
        while True:
            seen.append((caption(room), {n: observation[n] for n in room.shapes}))
            if success or len(actions) == room.limit:
                break
            try:
                action = act(observation, taken)
            except Failed:
                break
            taken = None
            if random and rng.random() < random:
                chance.append(len(actions))
                action = taken = drawn(room, rng)
            actions.append(action)
            over, success = _step(room, action)
            observation = room.arrived
            if over and not success:
                seen.append((caption(room), {n: observation[n] for n in room.shapes}))
                break
        values = np.full(len(seen), UNKNOWN)
        if valued:
            known, end = float(len(actions)) if success else UNKNOWN, len(seen)
            # Since the last chance action the expert has played, so that the end of the
            # episode is its own; before that it plays on from where chance came in.
            for time in (*reversed(chance), -1):
                values[time + 1 : end] = np.arange(time + 1, end) - known
                if time >= 0:
                    known = _length(room, seed, actions[:time], chance)
                    end = time + 1
    moments = tuple(
        Moment(text, arrays, float(value), action)
        for (text, arrays), value, action in zip(
            seen, values, [*actions, *[None] * (len(seen) - len(actions))], strict=True
        )
    )
    return Walk(instruction, task, seed, moments, success)


def _length(
    room: World, seed: int, actions: Sequence[Any], chance: Sequence[int]
) -> float:
    """Return the length of an episode: the actions given, then those of the expert.

    chance: the times of actions that the expert did not choose. NaN if it fails.
    """
    observation = room.reset(seed)
    act, taken = expert(room), None
    try:
        for time in range(room.limit):
            action = act(observation, taken)
            taken = None
            if time < len(actions):
                action = actions[time]
                taken = action if time in chance else None
            over, success = _step(room, action)
            observation = room.arrived
            if success:
                return float(time + 1)
            if over:
                break
    except Failed:
        pass
    return UNKNOWN


def drawn(room: World, rng: np.random.Generator) -> Any:
    """Draw an action evenly from all that are legal."""
    if room.box is not None:
        size, low, high = room.box
        return (low + (high - low) * rng.random(size)).astype(np.float32)
    assert room.actions is not None
    legal = room.legal()
    numbers = np.arange(len(room.actions)) if legal is None else np.flatnonzero(legal)
    return int(numbers[int(rng.random() * len(numbers))])


def _step(room: World, action: Any) -> tuple[bool, bool]:
    """Take an action; return whether the episode is over, and whether it succeeded."""
    try:
        room.step(action)
    except Over:
        return True, bool(room.success)
    return bool(room.success), bool(room.success)


@contextlib.contextmanager
def _one_episode(room: World) -> Iterator[None]:
    """Keep a world from beginning its next episode."""
    before, room.on_end = room.on_end, stop
    try:
        yield
    finally:
        room.on_end = before
