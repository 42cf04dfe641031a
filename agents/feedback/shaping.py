"""Rewards that are shaped by a fixed reward network, for `polyview.rl.learner`.

    r^ = (r - mean) / deviation       of the state that an action led to
    mean, deviation                   of the network over the pairs it was trained on

`Raw`, `Thresholded` and `Potential` make rewards of r^; the key `shaping` of a config
names one. No action is taken where an episode is over, and its reward stays 0. With
each come metrics over the last rows of play

    preferred   the mean of r^
    shaped      the mean of the reward that is learnt from
    fooled      the share of episodes that ended without success although the mean of
                their r^ is above `threshold`: the network was satisfied, the goal was
                not reached

`fooled` counts episodes of earlier calls too, each call .9 times as much as the next.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from polyview.errors import TINY, InputError, check_range
from polyview.nn.fixed import freeze
from polyview.rl.acting import Acted, Played, Shown
from polyview.rl.critic import Critic
from polyview.rl.ppo import Judged, masked_mean

_RECENT = 0.9  # as the learner's own counts of episodes


class Rewarded(nnx.Module):
    """An actor, and beside it a reward network that no step changes.

    Args:
      actor: makes a `polyview.rl.acting:Actor`, which this module acts as.
      reward: makes an `agents.feedback.distil:Reward`; `init` gives its weights.
    """

    def __init__(
        self,
        *,
        actor: Callable[..., Any],
        reward: Callable[..., Any],
        rngs: nnx.Rngs,
    ):
        self.actor = actor(rngs=rngs)
        self.reward = reward(rngs=rngs)
        freeze(self.reward)

    @property
    def actions(self) -> int:
        """The number of actions."""
        return self.actor.actions

    @property
    def critic(self) -> Critic:
        """The critic of the actor."""
        return self.actor.critic

    @property
    def memory(self) -> int | None:
        """How many earlier steps the actor sees."""
        return self.actor.memory

    @property
    def episodes(self) -> int | None:
        """The most episodes that the actor sees in a row of play."""
        return self.actor.episodes

    def recall(self, past: Mapping[str, Any], views: Mapping[str, jax.Array]) -> Any:
        """Return the actor's memory."""
        return self.actor.recall(past, views)

    def act(
        self,
        memory: Any,
        views: Mapping[str, jax.Array],
        first: jax.Array,
        key: jax.Array | None,
    ) -> tuple[Any, Acted]:
        """Return the actor's memory and actions."""
        return self.actor.act(memory, views, first, key)

    def prepare(self, play: dict[str, Any]) -> dict[str, Any]:
        """Return the play as the actor prepares it."""
        return self.actor.prepare(play)

    def judge(self, play: Mapping[str, Any]) -> Judged:
        """Return what the actor says of all steps."""
        return self.actor.judge(play)


class Told(NamedTuple):
    """What a shaping carries of the episode of each row, and of those before.

    total, steps: float32[n], the sum of r^ in this episode, and of how many.
    done: float32[n, 2], decayed counts of episodes that ended, and of those fooled.
    own: of the form of shaping.
    """

    total: jax.Array
    steps: jax.Array
    done: jax.Array
    own: Any


@dataclass(frozen=True)
class _Shaping:
    """A form of shaping; see the module.

    Attributes:
      mean, deviation: of r over the pairs that the network was trained on.
      threshold: of r^; see the metric `fooled`.
      weight: of what is made of r^.
      extrinsic: of the environment's own reward.
    """

    mean: float
    deviation: float
    threshold: float
    weight: float = 1.0
    extrinsic: float = 1.0

    def __post_init__(self) -> None:
        large = 1e30  # NaN is not below it
        check_range(-large, large, mean=self.mean, threshold=self.threshold)
        check_range(TINY, large, deviation=self.deviation)
        check_range(-large, large, weight=self.weight, extrinsic=self.extrinsic)

    def begin(self, shown: Shown, limit: int) -> Told:
        """Return the carry of rows that begin; see `polyview.rl.acting:Shaping`."""
        zero = jnp.zeros(shown.first.shape, jnp.float32)
        done = jnp.zeros((*zero.shape, 2), jnp.float32)
        return Told(zero, zero, done, self._begin(shown, limit))

    def __call__(
        self,
        module: Any,
        carry: Told,
        played: Played,
        following: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, Told, dict[str, jax.Array]]:
        """Return rewards [t, n], the carry, and metrics."""
        if not hasattr(module, "reward"):
            raise InputError(
                "shaping needs a reward network beside the actor: give "
                "agents.feedback.shaping:Rewarded as the model"
            )
        views = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y[None]]),
            dict(played.shown.views),
            dict(following),
        )
        # By steps, so that rows stay where they are on several devices.
        scores = jax.vmap(module.reward)(views).astype(jnp.float32)
        scores = (scores - self.mean) / self.deviation
        taken = ~played.shown.over
        made, own = self._made(scores, carry.own, played, views)
        reward = self.extrinsic * played.reward + self.weight * made
        reward = jnp.where(taken, reward, 0).astype(played.reward.dtype)
        told, fooled = self._counted(carry, scores[1:], played)
        metrics = {
            "preferred": masked_mean(scores[1:], taken),
            "shaped": masked_mean(reward, taken),
            "fooled": fooled,
        }
        return reward, told._replace(own=own), metrics

    def _begin(self, shown: Shown, limit: int) -> Any:
        return ()

    def _made(
        self, scores: jax.Array, own: Any, played: Played, views: Mapping[str, Any]
    ) -> tuple[jax.Array, Any]:
        """Return what is added [t, n], and the new `own`.

        scores: r^ [t + 1, n] of views {name: [t + 1, n, ...]}: what was shown before
        each step, and after the last.
        """
        raise NotImplementedError

    def _counted(
        self, carry: Told, scores: jax.Array, played: Played
    ) -> tuple[Told, jax.Array]:
        """Count episodes, given r^ [t, n] of where each step led to."""

        def one(carry: tuple, now: tuple) -> tuple[tuple, None]:
            total, steps, done = carry
            score, began, over, success = now
            total = jnp.where(began, 0, total + score)
            steps = jnp.where(began, 0, steps + 1)
            high = total > self.threshold * steps
            ended = over & ~began
            new = jnp.stack([ended, ended & high & ~success], -1)
            return (total, steps, done + new), None

        begun = carry.total, carry.steps, _RECENT * carry.done
        given = scores, played.shown.over, played.over, played.success
        (total, steps, done), _ = jax.lax.scan(one, begun, given)
        ended, fooled = done.sum(0)
        return Told(total, steps, done, None), fooled / jnp.maximum(ended, 1e-6)


@dataclass(frozen=True)
class Raw(_Shaping):
    """extrinsic r + weight r^."""

    def _made(
        self, scores: jax.Array, own: Any, played: Played, views: Mapping[str, Any]
    ) -> tuple[jax.Array, Any]:
        return scores[1:], own


class _Met(NamedTuple):
    """Hashes uint32[n, limit + 1, 2] of what episodes showed, and their int32[n]."""

    hashes: jax.Array
    number: jax.Array


@dataclass(frozen=True)
class Thresholded(_Shaping):
    """extrinsic r + weight 1[r^ > threshold] r^ / n^power (Klissarov et al. 2024).

    n counts how often this episode has shown the observation `counted`, now included.
    Two observations are taken for one if 64 bits of a hash are the same.

    Attributes:
      counted: an observation of the environment, such as grid or caption.
      power: of the counts; 0 leaves them out.
    """

    counted: str = "grid"
    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0.0, 1e3, power=self.power)

    def _begin(self, shown: Shown, limit: int) -> _Met:
        hashes = self._hashes(shown.views)
        room = jnp.zeros((len(hashes), limit + 1, 2), jnp.uint32)
        count = jnp.ones(len(hashes), jnp.int32)
        return _Met(room.at[:, 0].set(hashes), count)

    def _hashes(self, views: Mapping[str, jax.Array]) -> jax.Array:
        if self.counted not in views:
            raise InputError(
                f"shaping.counted={self.counted!r}, and the environment shows "
                f"{', '.join(views)}"
            )
        return hashes(views[self.counted])

    def _made(
        self, scores: jax.Array, own: _Met, played: Played, views: Mapping[str, Any]
    ) -> tuple[jax.Array, _Met]:
        rows = jnp.arange(len(own.number))

        def one(met: _Met, now: tuple) -> tuple[_Met, jax.Array]:
            new, began = now
            place = jnp.where(began, 0, met.number)
            times = jnp.arange(met.hashes.shape[1])[None]
            same = (met.hashes == new[:, None]).all(-1) & (times < place[:, None])
            # No episode is longer than its limit, so that there is room.
            table = met.hashes.at[rows, place].set(new)
            return _Met(table, place + 1), same.sum(1) + 1

        own, n = jax.lax.scan(
            one, own, (jax.vmap(self._hashes)(views)[1:], played.shown.over)
        )
        own = _Met(*own)
        gained = scores[1:] / n.astype(jnp.float32) ** self.power
        return jnp.where(scores[1:] > self.threshold, gained, 0), own


@dataclass(frozen=True)
class Potential(_Shaping):
    """extrinsic r + weight (discount phi(s') - phi(s)), phi = r^.

    phi is 0 at an end that is no cut-off, so that the best policy stays what it is (Ng
    et al. 1999). Where an episode was cut off, phi(s') counts as the value there does.

    Attributes:
      discount: that of the run.
    """

    discount: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0.0, 1.0, discount=self.discount)

    def _made(
        self, scores: jax.Array, own: Any, played: Played, views: Mapping[str, Any]
    ) -> tuple[jax.Array, Any]:
        after = jnp.where(played.terminated, 0, scores[1:])
        return self.discount * after - scores[:-1], own


def hashes(x: jax.Array) -> jax.Array:
    """Return 64 bits of each row of x[n, ...], uint32[n, 2], by all of its numbers."""
    flat = x.reshape(len(x), -1)
    if jnp.issubdtype(flat.dtype, jnp.floating):
        flat = jax.lax.bitcast_convert_type(flat.astype(jnp.float32), jnp.uint32)
    flat = flat.astype(jnp.uint32)
    place = jnp.arange(flat.shape[1], dtype=jnp.uint32)[None]
    salts = jnp.array([0x9E3779B9, 0x85EBCA6B], jnp.uint32)
    own = _mixed(place[..., None] + salts[None, None]) ^ flat[..., None]
    return _mixed(own).sum(1, dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """Return numbers uint32 whose bits all depend on all bits of those given."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # Wellons 2018
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
