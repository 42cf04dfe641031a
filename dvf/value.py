"""Values: the discounted sum of rewards to come, from futures or told directly.

    V(s) = sum_{k >= 1} g^k E r(s[t + k]) = g / (1 - g) E_{s' ~ rho} r(s')

A reward is paid on arrival: r(s[t + 1]) is the first. With futures given the first
action, the same number is Q(s, a). For a reward of state and action at time t,
Q(s, a) = r(s, a) + g / (1 - g) E r, the form of Bellman's equation: add r(s, a).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dvf.condition import Condition, Scale
from dvf.occupancy import Layers
from dvf.rewards import Reward, rewarded
from polyview.data.later import Later, at_share
from polyview.data.sources.protocol import Source
from polyview.errors import TINY, InputError, check_range


class Value(NamedTuple):
    """mean: float64[n, k], of k rewards. standard_error: the same, or None."""

    mean: np.ndarray
    standard_error: np.ndarray | None


def value(rewards: np.ndarray, weights: np.ndarray, discount: float) -> Value:
    """Return the values of futures with these rewards, and their standard errors.

        mean = c sum_i w_i r_i,   error = c sqrt(sum_i w_i^2 (r_i - mean / c)^2),
        c = g / (1 - g)

    The error covers only the finite number of futures, not errors of the model itself;
    for equal weights it is the deviation of r over sqrt(count).

    Args:
      rewards: float[n, count, k].
      weights: float[n, count], which sum to 1.
      discount: g.

    Raises InputError for fewer than two futures, and OutOfRange for g outside [0, 1).
    """
    check_range(0.0, 1 - TINY, discount=discount)
    if rewards.ndim != 3 or rewards.shape[:2] != weights.shape or weights.shape[1] < 2:
        raise InputError(
            f"rewards of shape {rewards.shape} and weights of shape {weights.shape}; a "
            "value needs rewards[n, count, k] and weights[n, count] of two futures or "
            "more"
        )
    scale, weights = discount / (1 - discount), weights[..., None].astype(np.float64)
    mean = (weights * rewards).sum(1)
    away = rewards - mean[:, None]
    return Value(scale * mean, scale * np.sqrt((weights**2 * away**2).sum(1)))


def returns(rewards: np.ndarray, discount: float) -> np.ndarray:
    """Return sum_k g^k r_k, k = 1 .. t, of rewards[..., t, k of them]: float64[..., k].

    rewards[..., 0, :] are those of the first step.
    """
    steps = rewards.shape[-2]
    powers = np.power(float(discount), np.arange(1, steps + 1))
    return np.einsum("t,...tk->...k", powers, rewards.astype(np.float64))


class Estimate(Protocol):
    """Values of a model at states, for policies by number, and rewards."""

    def __call__(
        self,
        model: Any,
        states: np.ndarray,
        policy: np.ndarray | None,
        action: np.ndarray | None,
        reward: Reward,
    ) -> Value:
        """states: float[n, d], policy: int[n], action: float[n, a] or None."""


@dataclass(frozen=True)
class FromFutures:
    """Values from futures that a model of occupancy draws.

    The offset of future i of a query is drawn from the i-th of `samples` equal shares
    of its law: all offsets, near and far, occur as often as they should, and the error
    is smaller than that of independent draws, by which it is told.

    Attributes:
      discount: g of the values. A model that is told the offset may have been trained
        for another.
      samples: futures a value; of a model that weighs candidates, offsets.
      most: the largest offset, to cap the horizon; see `polyview.data.later:offsets`.
      policies: how many the model knows by their number; None: any.
      rollouts: float[policies, steps, d], of each policy, for a model that is told the
        policy by a roll-out; None: by its number.
      candidates: states float[c, d] of the data, of which a contrastive model takes its
        futures.
      seed: of the draws. Query i draws by (seed, i), unless `common`.
      rows: queries at a time; memory grows with rows times samples.
      common: all queries draw by the same random numbers, so that differences between
        values are less noisy than the values.
    """

    discount: float
    samples: int = 256
    candidates: np.ndarray | None = None
    policies: int | None = None
    rollouts: np.ndarray | None = None
    seed: int = 0
    rows: int = 128
    common: bool = False
    most: int | None = None

    def __post_init__(self) -> None:
        check_range(0.0, 1 - TINY, discount=self.discount)
        check_range(2, samples=self.samples)
        check_range(1, rows=self.rows, most=self.most)

    def __call__(
        self,
        model: Any,
        states: np.ndarray,
        policy: np.ndarray | None,
        action: np.ndarray | None,
        reward: Reward,
    ) -> Value:
        """As `Estimate`, with standard errors of the draws."""
        parts = [
            value(rewarded(reward, futures), weights, self.discount)
            for futures, weights in self.futures(model, states, policy, action)
        ]
        means, errors = zip(*parts, strict=True)
        return Value(np.concatenate(means), np.concatenate(errors))

    def futures(
        self,
        model: Any,
        states: np.ndarray,
        policy: np.ndarray | None,
        action: np.ndarray | None,
    ) -> Any:
        """Generate (states[rows, count, d], weights[rows, count]) of the queries."""
        key = jax.random.key(self.seed)
        policy = told(policy, self.policies, self.rollouts)
        for start in range(0, len(states), self.rows):
            # The last rows are padded, so that one program serves all.
            numbers = np.arange(start, start + self.rows)
            rows = np.minimum(numbers, len(states) - 1)
            first = numbers * (0 if self.common else self.samples)
            index = first[:, None] + np.arange(self.samples)
            drawn = model.call(
                "sample",
                states[rows],
                self._offsets(numbers),
                None if policy is None else policy[rows],
                None if action is None else action[rows],
                self.candidates,
                key,
                index.astype(np.int32),
            )
            real = min(self.rows, len(states) - start)
            yield np.asarray(drawn.states)[:real], np.asarray(drawn.weights)[:real]

    def _offsets(self, numbers: np.ndarray) -> np.ndarray:
        """Return the offsets of queries, int32[n, samples], by (seed, number)."""
        shares = np.stack(
            [
                np.random.default_rng([self.seed, 0 if self.common else number]).random(
                    self.samples
                )
                for number in numbers.tolist()
            ]
        )
        shares = (np.arange(self.samples) + shares) / self.samples
        return at_share(shares, self.discount, self.most).astype(np.int32)


@dataclass(frozen=True)
class Direct:
    """Values of a model that was trained on the rewards themselves (`Values`).

    Attributes:
      policies, rollouts: as in `FromFutures`.
    """

    policies: int | None = None
    rollouts: np.ndarray | None = None

    def __call__(
        self,
        model: Any,
        states: np.ndarray,
        policy: np.ndarray | None,
        action: np.ndarray | None,
        reward: Reward,
    ) -> Value:
        """As `Estimate`. Raises InputError for actions, and for other rewards."""
        if action is not None:
            raise InputError(
                "values of states say nothing of a first action; evaluate on roll-outs "
                "without one, such as values_test"
            )
        policy = told(policy, self.policies, self.rollouts)
        values = np.asarray(model.call("told", states, policy), np.float64)
        if values.shape[1] != len(reward.names):
            raise InputError(
                f"the model tells values of {values.shape[1]} rewards, not of "
                f"{len(reward.names)}; evaluate the rewards that it was trained on"
            )
        return Value(values, None)


def told(
    policy: np.ndarray | None, known: int | None, rollouts: np.ndarray | None
) -> np.ndarray | None:
    """Return policies int[n] as a model takes them: by number, or by roll-outs.

    Raises InputError for a policy that the model does not know.
    """
    if policy is None:
        return None
    known = len(rollouts) if rollouts is not None else known
    if known is not None and policy.max(initial=0) >= known:
        raise InputError(
            f"the model knows the policies 0 .. {known - 1}, and is asked for "
            f"{policy.max()}; evaluate it on the data of its training"
        )
    return policy if rollouts is None else rollouts[policy]


class Values(nnx.Module):
    """Values of known rewards by an MLP, for `dvf.objectives:TemporalDifference`.

    Args:
      rewards: k, how many.
      mean, std, policies: see `dvf.occupancy:DiffusionOccupancy`.
      hidden: widths, with SiLU.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        rewards: int,
        policies: Callable[..., nnx.Module] | None = None,
        hidden: Sequence[int] = (128, 128, 128),
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, rewards=rewards, hidden=hidden)
        self.condition = Condition(
            scale=Scale(mean, std),
            policies=None if policies is None else policies(rngs=rngs),
            offset_features=0,
        )
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layers = Layers([self.condition.width, *hidden, rewards], **options)

    def of(self, state: jax.Array, policy: jax.Array | None) -> jax.Array:
        """Return float[n, k] of state[n, d] and of a policy's representation."""
        unused = jnp.ones(len(state), jnp.int32)
        return self.layers(self.condition(state, unused, policy, None))

    def told(self, state: jax.Array, policy: jax.Array | None) -> jax.Array:
        """Return float[n, k]; policy: as the model's policies take it."""
        return self.of(state, self.condition.of_policy(policy))


def later_states(
    source: Source,
    discount: float,
    count: int = 2000,
    seed: int = 0,
    most: int | None = None,
) -> np.ndarray:
    """Return states that come later in the data, float32[count, d].

    They are drawn as `polyview.data.later:Later` draws them for training, of episodes
    drawn uniformly: discount and `most` must be those of the training. Raises
    InputError for episodes too short for one.
    """
    check_range(1, count=count)
    rng = np.random.default_rng(seed)
    views = Later(m=8, discount=discount, most=most)
    found: list[np.ndarray] = []
    for _ in range(100 * count):
        if len(found) >= count:
            return np.stack(found[:count])
        drawn = views(source[int(rng.integers(len(source)))], rng)
        found += list(drawn["views"]["later"][drawn["present"]["later"]])
    raise InputError(
        f"{source!r}: hardly a state of its episodes has a later one at discount "
        f"{discount}; record longer episodes"
    )
