"""From values to behaviour: whom to follow, what to imitate, where to explore.

Pure functions of NumPy arrays.
"""

import numpy as np

from dvf.value import Value
from polyview.errors import TINY, InputError, check_range


def best_policy(values: np.ndarray) -> np.ndarray:
    """Return the policy to follow at each state, for each reward: int[n, k].

    Generalised policy improvement: the one with the highest value (Barreto et al.
    2017). values: float[n, policies, k].
    """
    if values.ndim != 3 or not values.shape[1]:
        raise InputError(f"values have shape {values.shape}, not [n, policies, k]")
    return values.argmax(1)


def advantages(
    rewards: np.ndarray, values: np.ndarray, discount: float, ahead: int = 1
) -> np.ndarray:
    """Return what the actions of an episode gained over the value, float64[t - 1].

        A[i] = sum_{j=1..h} g^j r[i + j] + g^h V[i + h] - V[i],   h = min(ahead, t-1-i)

    Several steps ahead, the gain of an action stands out from errors of the value.

    Args:
      rewards: float[t], of the states; that of the first is not used.
      values: float[t], of the states.
      discount: g.
      ahead: how many steps.

    Raises InputError for arrays of different lengths, or of one state.
    """
    check_range(0.0, 1 - TINY, discount=discount)
    check_range(1, ahead=ahead)
    t = len(rewards)
    if rewards.shape != values.shape or rewards.ndim != 1 or t < 2:
        raise InputError(
            f"rewards of shape {rewards.shape} and values of shape {values.shape}; "
            "advantages need one of each for each of two states or more"
        )
    now = np.arange(t - 1)
    then = np.minimum(now + ahead, t - 1)
    gained = np.power(float(discount), then - now) * values[then] - values[now]
    for steps in range(1, min(ahead, t - 1) + 1):
        gained[: t - steps] += discount**steps * rewards[steps:]
    return gained


def exploration_bonus(
    states: np.ndarray, futures: np.ndarray, weights: np.ndarray, std: np.ndarray
) -> Value:
    """Return how far from a state its futures lie, on average: a `Value` of k = 1.

    The distance is Euclidean, in deviations of the states. A bonus for states that lead
    far, learnt from data without actions (after Mazoure et al. 2023, whose form is not
    published).

    Args:
      states: float[n, d].
      futures, weights: of `dvf.futures:Futures`.
      std: float[d], the deviation of the states.
    """
    away = np.sqrt(np.square((futures - states[:, None]) / std).sum(-1))
    mean = (weights * away).sum(1)
    error = np.sqrt((weights**2 * (away - mean[:, None]) ** 2).sum(1))
    return Value(mean[:, None], error[:, None])
