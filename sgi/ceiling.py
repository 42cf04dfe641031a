"""The greatest accuracy with which an action can be inferred from the next frame.

Where two actions lead to the same frame, nothing tells them apart: in Breakout FIRE
does what NOOP does while the ball is in play, and under sticky actions the console may
ignore an action for the whole step. For a state s, uniform play and the distribution
p(o | s, a) of the next frame o,

    ceiling = mean over s of  sum_o max_a p(o | s, a) / A

is the best accuracy when the game's whole state is known. A network sees only frames,
so it may stay below.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sgi.atari import FRAME_SKIP, NOOPS, Game


class Ceiling(NamedTuple):
    """What can be known of uniformly random actions.

    Attributes:
      accuracy: the greatest possible, a mean over states.
      groups: indices of actions that do the same in most states, without sticky
        actions.
    """

    accuracy: float
    groups: list[list[int]]


@functools.cache
def ceiling(
    name: str, *, sticky: float, states: int = 200, apart: int = 20, seed: int = 0
) -> Ceiling:
    """Return the ceiling of a game, over `states` states of random play.

    apart: steps from a state to the next.
    sticky: the probability that the console repeats the last action at a frame.
    """
    game, rng = Game(name), np.random.default_rng(seed)
    actions = range(len(game.actions))
    accuracies, same = [], np.zeros((len(actions), len(actions)))
    last = 0
    game.reset(int(rng.integers(1, NOOPS + 1)))
    for number in range(states * apart):
        if number % apart == 0:
            state = game.state()
            frames = [after(game, state, last, action) for action in actions]
            accuracies.append(knowable(frames, sticky))
            same += [[a[0] == b[0] for b in frames] for a in frames]
        action = int(rng.integers(len(actions)))
        late = min(int(rng.geometric(1 - sticky)) - 1, FRAME_SKIP)
        step = game.step_each([last] * late + [action] * (FRAME_SKIP - late))
        last = action if late < FRAME_SKIP else last
        if step.game_over or step.truncated:
            game.reset(int(rng.integers(1, NOOPS + 1)))
            last = 0
    return Ceiling(float(np.mean(accuracies)), grouped(same > states / 2))


def after(game: Game, state: bytes, last: int, action: int) -> list[bytes]:
    """Return the next frame if the console takes the action 0, 1 .. 4 frames late.

    Until then it repeats `last`. The game is left in `state`.
    """
    frames = []
    for late in range(FRAME_SKIP + 1):
        game.restore(state)
        held = [last] * late + [action] * (FRAME_SKIP - late)
        frames.append(game.step_each(held).frame.tobytes())
    game.restore(state)
    return frames


def knowable(frames: Sequence[Sequence[bytes]], sticky: float) -> float:
    """Return the best accuracy in a state, given `frames[action][late]`."""
    late = [(1 - sticky) * sticky**n for n in range(FRAME_SKIP)] + [sticky**FRAME_SKIP]
    best: defaultdict[bytes, float] = defaultdict(float)
    for each in frames:
        probability: defaultdict[bytes, float] = defaultdict(float)
        for frame, chance in zip(each, late, strict=True):
            probability[frame] += chance
        for frame, chance in probability.items():
            best[frame] = max(best[frame], chance)
    return sum(best.values()) / len(frames)


def grouped(same: np.ndarray) -> list[list[int]]:
    """Return the connected groups of `same: bool[n, n]`, by their first members."""
    group = np.arange(len(same))
    for one, other in np.argwhere(same):
        group[group == group[other]] = group[one]
    return [np.flatnonzero(group == g).tolist() for g in dict.fromkeys(group.tolist())]
