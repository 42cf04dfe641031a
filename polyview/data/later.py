"""Views that come later: pairs of states of one episode, a random time apart.

    t uniform over the states that have a successor;   Dt ~ Geometric(1 - discount)

so the later state s[t + Dt] is a draw of the discounted occupancy of the future of s[t]
(Janner et al. 2020; Eysenbach et al. 2021). Episodes end, and what would come after the
last state is unknown, or after a terminal state does not exist. Such a pair is missing.
Were the last state to stand in for it, ends would look like places where play stays.

Dropping these pairs makes far offsets rarer late in an episode, and a model of all
later states as one would see the future too near. A model that is told the offset is
not misled: hence it is among the targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyview.data.sources.protocol import CorruptRecord
from polyview.data.views import Example, take
from polyview.errors import TINY, InputError, check_range

ACTION, OFFSET = "action", "offset"  # names of a view and of a target


@dataclass(frozen=True)
class Later:
    """m pairs of an episode: a state at time t, and the state at t + offset.

        views    state, later  float32[m, d]
                 action        [m, ...]: taken at t, only with `actions`
        targets  offset        int64[m]: as drawn, also of a missing pair

    Call it as `views(example, rng)`, where an example is an episode. `present` is False
    for all views of a pair that ends beyond the last state, and they are zeros; so are
    all pairs of an episode of fewer than two states. Raises InputError for states that
    are not [t, d] and for actions of another number than states or one less, and
    CorruptRecord for a number that is not finite.

    Attributes:
      m: pairs per example.
      discount: g of the offsets, 0 <= g < 1; their mean is 1 / (1 - g). See `offsets`.
      most: the largest offset, to which longer ones are shortened; None for no limit.
      states: the field of the states, [t, d], in order of time.
      actions: a field whose row t is the action taken at state t; the last state may
        have none. None, for data without actions, makes no such view.
      targets: the fields passed on, such as the number of the policy that acted.
      names: of the two views.
    """

    m: int
    discount: float
    most: int | None = None
    states: str = "states"
    actions: str | None = None
    targets: Sequence[str] = ()
    names: Sequence[str] = ("state", "later")

    def __post_init__(self) -> None:
        check_range(1, m=self.m, most=self.most)
        check_range(0.0, 1 - TINY, discount=self.discount)
        for field in ("targets", "names"):
            if isinstance(getattr(self, field), str):
                raise InputError(f"views.{field} is a string; write a list")
        if len(self.names) != 2 or len({*self.names, ACTION}) != 3:
            raise InputError(
                f"views.names is {list(self.names)}; write two different names, "
                f"neither '{ACTION}'"
            )
        if OFFSET in self.targets:
            raise InputError(
                f"views.targets has '{OFFSET}', which these views draw themselves; "
                "remove it, or rename the field"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        states = rows_of(example, self.states).astype(np.float32, copy=False)
        if states.ndim != 2:
            raise InputError(
                f"field '{self.states}' has shape {states.shape}, not [t, d]: a row of "
                "numbers for each time; correct views.states, or the data"
            )
        last = len(states) - 1
        actions = None
        if self.actions is not None:
            actions = rows_of(example, self.actions)
            if actions.ndim < 1 or len(actions) not in (last, last + 1):
                raise InputError(
                    f"field '{self.actions}' has shape {actions.shape}, but there are "
                    f"{last + 1} states; give an action for each state but the last"
                )
        # Not `rng.integers`, for the reason that `offsets` gives.
        time = (rng.random(self.m) * max(last, 0)).astype(np.int64)
        offset = offsets(rng, self.m, self.discount, self.most)
        real = time + offset <= last
        state, later = self.names
        views = {
            state: _taken(states, time, real),
            later: _taken(states, time + offset, real),
        }
        if actions is not None:
            views[ACTION] = _taken(actions, time, real)
        targets = {name: np.asarray(take(example, name)) for name in self.targets}
        return {
            "views": views,
            "present": {name: real.copy() for name in views},
            "targets": {OFFSET: offset, **targets},
        }


def rows_of(example: Example, name: str) -> np.ndarray:
    """Return a field of an episode, floats as float32.

    Raises InputError for a field that is not numeric, and CorruptRecord for a number
    that is not finite.
    """
    values = np.asarray(take(example, name))
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"field '{name}' has type {values.dtype}, not numbers; correct the "
            "views, or the data"
        )
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an overflow is an error below
            values = values.astype(np.float32, copy=False)
        wrong = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if wrong.any():
            raise CorruptRecord(
                f"field '{name}' is not finite at step {wrong.argmax()}"
            )
    return values


def offsets(
    rng: np.random.Generator, count: int, discount: float, most: int | None = None
) -> np.ndarray:
    """Draw steps ahead, int64[count]: P(k) = (1 - g) g^(k - 1) for k = 1, 2, ...

    g is the discount, and 0 always gives 1. With `most` an offset is the smaller of the
    two, so that P(most) is the whole tail g^(most - 1): a cap of the horizon, not the
    law given that k <= most. Raises OutOfRange for g outside 0 <= g < 1 and for `most`
    below 1.
    """
    check_range(0.0, 1 - TINY, discount=discount)
    check_range(1, most=most)
    # P(k > n) = g^n is inverted by hand: uniform numbers are what NumPy is least likely
    # to draw otherwise in another version, and a run must find its batches again.
    return at_share(rng.random(count), discount, most)


def at_share(share: np.ndarray, discount: float, most: int | None = None) -> np.ndarray:
    """Return the least offset k with P(offsets <= k) > share, int64 of share's shape.

    share: in [0, 1); uniform, it gives `offsets`.
    """
    steps = np.ones(np.shape(share), np.int64)
    if discount > 0:
        steps += np.floor(np.log1p(-share) / np.log(discount)).astype(np.int64)
    return steps if most is None else np.minimum(steps, most)


def lost_share(
    lengths: np.ndarray | Sequence[int], discount: float, most: int | None = None
) -> float:
    """Return the expected share of pairs that end beyond the last state.

    For an episode of T states, the mean of P(Dt > n) = g^n over the n = 1 .. T - 1
    states that may be left, and 0 for n >= `most`; 1 for T < 2. Every episode counts
    alike, as in a batch. Near g = 1 - 3 / T a third of all pairs is lost.

    Args:
      lengths: the number of states of each episode.
      discount: g, 0 <= g < 1.
      most: the largest offset, if any.

    Raises InputError without episodes and for a negative length, and OutOfRange as
    `offsets`.
    """
    check_range(0.0, 1 - TINY, discount=discount)
    check_range(1, most=most)
    states = np.asarray(lengths, np.int64)
    if not states.size or states.min() < 0:
        raise InputError(
            "the share of lost pairs needs the lengths of one or more episodes, 0 or "
            f"more states each, not {states.tolist()}"
        )
    after = np.maximum(states - 1, 1)
    terms = after if most is None else np.minimum(after, most - 1)
    # The geometric sum of g^1 .. g^terms.
    beyond = discount * (1 - np.power(float(discount), terms)) / (1 - discount)
    return float(np.where(states < 2, 1.0, beyond / after).mean())


def _taken(values: np.ndarray, times: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Return the rows at `times` where `real`, and zeros elsewhere."""
    taken = np.zeros((len(times), *values.shape[1:]), values.dtype)
    taken[real] = values[times[real]]
    return taken
