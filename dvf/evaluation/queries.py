"""Starts, and roll-outs from them: what futures and values are compared with."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dvf.rewards import Reward, rewarded
from dvf.value import returns
from polyview.data.sources.protocol import Source
from polyview.errors import InputError

_LEFT_OUT = 0.05  # of the future, without a warning


@dataclass(frozen=True)
class Queries:
    """Each of n = starts x asked rows is a start, a policy, and perhaps an action.

    Rows of one start are adjacent, sorted by policy; every start has the same policies.
    state:
    float[n, d]. policy: int[n]. action: float[n, a], the first one, or None. futures:
    float[n, rollouts, t, d], the states from the next on. starts: how many.
    """

    state: np.ndarray
    policy: np.ndarray
    action: np.ndarray | None
    futures: np.ndarray
    starts: int

    def by_start(self, values: np.ndarray) -> np.ndarray:
        """Return [starts, asked, ...] of values[n, ...]."""
        return values.reshape(self.starts, -1, *values.shape[1:])


def read(source: Source) -> Queries:
    """Read all rows of a split that `python -m dvf.prepare` wrote for evaluation.

    Raises InputError for rows of another kind, and for starts of which one has other
    policies than another.
    """
    rows = [source[i] for i in range(len(source))]
    wanted = {"state", "policy", "start", "futures"}
    if not rows or not wanted <= set(rows[0]):
        has = sorted(rows[0]) if rows else "no rows"
        raise InputError(
            f"{source!r} has {has}, and an evaluation reads {sorted(wanted)}; name a "
            "split of roll-outs, such as values_validation"
        )
    rows.sort(key=lambda row: (row["start"], row["policy"]))  # stable
    counts = np.unique([row["start"] for row in rows], return_counts=True)[1]
    if len(set(counts.tolist())) != 1:
        raise InputError(
            f"{source!r}: its starts have from {counts.min()} to {counts.max()} rows; "
            "name a split with as many of each"
        )
    acting = np.array([row["policy"] for row in rows]).reshape(len(counts), -1)
    if (acting != acting[0]).any():
        raise InputError(
            f"{source!r}: its starts have roll-outs of different policies; name a "
            "split with the same policies for each"
        )
    action = None
    if "action" in rows[0]:
        action = np.stack([row["action"] for row in rows]).astype(np.float32)
    return Queries(
        np.stack([row["state"] for row in rows]).astype(np.float32),
        np.array([row["policy"] for row in rows], np.int32),
        action,
        np.stack([row["futures"] for row in rows]).astype(np.float32),
        len(counts),
    )


def check_discount(estimate: Any, discount: float) -> None:
    """Raise InputError for estimates that are discounted otherwise than the truth."""
    own = getattr(estimate, "discount", discount)
    if own != discount:
        raise InputError(
            f"discount={discount}, and that of estimate is {own}; set both to one"
        )


def shortness(queries: Queries, discount: float) -> str | None:
    """Return a warning if roll-outs end long before the future does, else None.

    They hold all but g^t of it, by which true values are too small.
    """
    steps = queries.futures.shape[2]
    if (left_out := float(discount) ** steps) <= _LEFT_OUT:
        return None
    return (
        f"roll-outs of {steps} steps leave out {100 * left_out:.0f} % of what is to "
        f"come at discount {discount}, so true values are too small; record a longer "
        "--horizon, or evaluate a smaller discount"
    )


class Truth(NamedTuple):
    """Values of roll-outs. mean: float64[n, k]. standard_error: of that mean."""

    mean: np.ndarray
    standard_error: np.ndarray


def truth(queries: Queries, reward: Reward, discount: float) -> Truth:
    """Return the values of k rewards, averaged over the roll-outs.

    What would come after a roll-out is left out: see `shortness`.
    """
    each = np.stack(
        [returns(rewarded(reward, own), discount) for own in queries.futures]
    )
    count = each.shape[1]
    spread = each.std(1, ddof=1) if count > 1 else np.full(each[:, 0].shape, np.nan)
    return Truth(each.mean(1), spread / np.sqrt(count))
