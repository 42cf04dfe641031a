"""Rewards of a state, which may be chosen after training.

A reward maps states[..., d] to float[..., k], for k rewards at once, and takes arrays
of NumPy and of JAX.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polyview.errors import TINY, InputError, check_range


class Reward(Protocol):
    """`names` has one name a reward."""

    @property
    def names(self) -> Sequence[str]: ...

    def __call__(self, states: Any) -> Any: ...


@dataclass(frozen=True)
class Discs:
    """1 within a disc and 0 outside of it, for each of k discs.

    Attributes:
      centres: k places, of the first numbers of a state.
      radius: in the units of the states.
    """

    centres: Sequence[Sequence[float]]
    radius: float = 0.5

    def __post_init__(self) -> None:
        check_range(TINY, radius=self.radius)
        if not len(self.centres) or len({len(centre) for centre in self.centres}) != 1:
            raise InputError("centres: give one place or more, all of one length")

    @property
    def names(self) -> list[str]:
        """The place of each disc."""
        return [" ".join(f"{x:.1f}" for x in centre) for centre in self.centres]

    def __call__(self, states: Any) -> Any:
        centres = np.asarray(self.centres, np.float32)
        dims = centres.shape[1]
        if states.shape[-1] < dims:
            raise InputError(
                f"states have {states.shape[-1]} numbers, and centres {dims}; give "
                "places in the space of the states"
            )
        centres = centres.reshape(*(1,) * (states.ndim - 1), *centres.shape)
        away = ((states[..., None, :dims] - centres) ** 2).sum(-1)
        return (away < self.radius**2).astype(np.float32)


@dataclass(frozen=True)
class Column:
    """One number of a state, or several: each is a reward of its own.

    Attributes:
      columns: which numbers.
    """

    columns: Sequence[int]

    def __post_init__(self) -> None:
        if not len(self.columns):
            raise InputError("columns: name one number of a state or more")

    @property
    def names(self) -> list[str]:
        """The number of each column."""
        return [f"state {column}" for column in self.columns]

    def __call__(self, states: Any) -> Any:
        if not 0 <= min(self.columns) <= max(self.columns) < states.shape[-1]:
            raise InputError(
                f"columns={list(self.columns)}: a state has the numbers 0 .. "
                f"{states.shape[-1] - 1}"
            )
        return states[..., np.asarray(self.columns)]


def rewarded(reward: Reward, states: np.ndarray) -> np.ndarray:
    """Return the rewards float64[..., k] of states float[..., d].

    Raises InputError for a reward of another shape, or that is not finite.
    """
    rewards = np.asarray(reward(states), np.float64)
    if rewards.ndim != states.ndim or rewards.shape[:-1] != states.shape[:-1]:
        raise InputError(
            f"the reward maps states of shape {states.shape} to {rewards.shape}; it "
            f"must return [{', '.join(map(str, states.shape[:-1]))}, k]"
        )
    if not np.isfinite(rewards).all():
        place = np.argwhere(~np.isfinite(rewards))[0]
        state = states[tuple(place[:-1])]
        raise InputError(f"the reward of state {state} is not finite; correct it")
    return rewards


def spread(places: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` of places[n, 2] at random, none twice while there are others."""
    check_range(1, count=count)
    rng = np.random.default_rng(seed)
    rounds = -(-count // len(places))
    order = np.concatenate([rng.permutation(len(places)) for _ in range(rounds)])
    return places[order[:count]]


@dataclass(frozen=True)
class Learnt:
    """Rewards by a regressor: `fitted.predict(float[n, d]) -> float[n, k]`."""

    fitted: Any
    names: Sequence[str]

    def __call__(self, states: Any) -> Any:
        flat = np.asarray(states, np.float64).reshape(-1, states.shape[-1])
        told = self.fitted.predict(flat).reshape(len(flat), -1)
        return told.reshape(*states.shape[:-1], -1)


def learnt(states: np.ndarray, rewards: np.ndarray, names: Sequence[str]) -> Learnt:
    """Return rewards learnt from labelled states, by kernel ridge regression.

    The kernel is Gaussian on standardised states; its width and the penalty are chosen
    by cross-validation on the labelled states alone.

    states: float[n, d]. rewards: float[n, k]. Raises InputError for fewer than five.
    """
    _check_labels(states, rewards)
    from sklearn.kernel_ridge import KernelRidge  # takes a second
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), KernelRidge(kernel="rbf"))
    tried = {
        "kernelridge__gamma": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        "kernelridge__alpha": (1e-3, 1e-2, 1e-1, 1.0),
    }
    scoring = "neg_mean_squared_error"
    chosen = GridSearchCV(pipeline, tried, scoring=scoring, cv=min(5, len(states)))
    return Learnt(chosen.fit(states, rewards), tuple(names))


@dataclass(frozen=True)
class Linear:
    """Rewards that are linear in a state: states[..., d] @ weights + bias.

    Attributes:
      weights: float[d, k].
      bias: float[k].
      names: k of them.
    """

    weights: np.ndarray
    bias: np.ndarray
    names: Sequence[str]

    def __call__(self, states: Any) -> Any:
        bias = self.bias.reshape(*(1,) * (states.ndim - 1), -1)
        return states @ self.weights + bias


def linear(states: np.ndarray, rewards: np.ndarray, names: Sequence[str]) -> Linear:
    """Return rewards learnt from labelled states, by ridge regression.

    For more states than `learnt` can take: time grows with n, not its square. States
    are standardised, and the penalty of each reward is chosen by leaving one state out.

    states: float[n, d]. rewards: float[n, k]. Raises InputError for fewer than five.
    """
    _check_labels(states, rewards)
    from sklearn.linear_model import RidgeCV  # takes a second

    exact = states.astype(np.float64)
    mean, std = exact.mean(0), exact.std(0)
    std = np.where(std > 0, std, 1.0)
    penalties = np.logspace(-2, 6, 9)
    fitted = RidgeCV(penalties, alpha_per_target=True)
    fitted.fit((exact - mean[None]) / std[None], rewards.astype(np.float64))
    weights = fitted.coef_.reshape(-1, len(mean)).T / std[:, None]
    return Linear(weights, fitted.intercept_ - mean @ weights, tuple(names))


def _check_labels(states: np.ndarray, rewards: np.ndarray) -> None:
    """Raise InputError for too few states, or another number of rewards."""
    if len(states) < 5 or len(states) != len(rewards):
        raise InputError(
            f"{len(states)} states and {len(rewards)} rewards; give as many of each, "
            "five or more"
        )
