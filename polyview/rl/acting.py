"""What an actor is, and how it plays: rows of episodes, side by side.

An actor is a module that acts with a memory of the episode, and judges whole rows of
play afterwards; both must give the same probabilities. `play`, which it judges, is

    views     {name: [n, c + t, ...]}, observations
    first     bool[n, c + t], where an episode begins
    real      bool[n, c + t], False where a step is of no use: c steps stand before the
              t that were played, and those of earlier episodes are not real
    actions   int32[n, c + t]
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from polyview.rl.critic import Critic
from polyview.rl.environment import ArrayEnvironment, Step
from polyview.rl.ppo import Judged

Memory = Any


class Acted(NamedTuple):
    """Actions int32[n], their log probabilities, and normalised values, float[n]."""

    action: jax.Array
    log_prob: jax.Array
    value: jax.Array


class Actor(Protocol):
    """A policy with values; see the module.

    Attributes:
      actions: the number of actions.
      critic: of its values.
      memory: how many earlier steps of the episode it sees; None for all.
      episodes: the most episodes that a row of play may have; None for any number.
        Steps of later ones are not learnt from.
    """

    actions: int
    critic: Critic
    memory: int | None
    episodes: int | None

    def recall(self, past: Mapping[str, Any], views: Mapping[str, jax.Array]) -> Memory:
        """Return the memory of the real steps of `play` [n, c], before the next one.

        views: {name: [n, ...]} of the next step.
        """

    def act(
        self,
        memory: Memory,
        views: Mapping[str, jax.Array],
        first: jax.Array,
        key: jax.Array | None,
    ) -> tuple[Memory, Acted]:
        """Draw actions, or take the likeliest without a key; views: {name: [n, ...]}.

        first: bool[n], where an episode begins, and what was before is forgotten.
        """

    def prepare(self, play: dict[str, Any]) -> dict[str, Any]:
        """Add what `judge` needs of fixed weights alone: once, for all epochs."""

    def judge(self, play: Mapping[str, Any]) -> Judged:
        """Return what the actor says of all steps, [n, c + t]."""


class Shown(NamedTuple):
    """What rows show: views {name: [n, ...]}, and bool[n] if first or over."""

    views: Any
    first: jax.Array
    over: jax.Array


class Past(NamedTuple):
    """The last c steps: views {name: [n, c, ...]}, bool[n, c] first, int32 actions."""

    views: Any
    first: jax.Array
    actions: jax.Array


class Tally(NamedTuple):
    """Score and steps of the episodes that go on, [n], and of those that are over.

    done: float32[4], decayed sums of episodes, successes, scores and steps.
    """

    score: jax.Array
    steps: jax.Array
    done: jax.Array


class Played(NamedTuple):
    """t steps of n rows, [t, n, ...]: what was shown, done, and came of it."""

    shown: Shown
    acted: Acted
    reward: jax.Array
    terminated: jax.Array
    over: jax.Array
    success: jax.Array


class Shaping(Protocol):
    """What makes the reward that is learnt from of the environment's own.

    Its `carry` is a pytree of arrays [n, ...], and part of a run's checkpoints. If it
    has a `discount`, that must be the run's.
    """

    def begin(self, shown: Shown, limit: int) -> Any:
        """Return the carry of rows that show the first step of their first episodes.

        limit: the most steps of an episode.
        """

    def __call__(
        self, module: Any, carry: Any, played: Played, following: Mapping[str, Any]
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """Return rewards [t, n], the carry after them, and metrics.

        module: the actor. following: views {name: [n, ...]} of what the last step led
        to.
        """


class Here(NamedTuple):
    """Rows of an `ArrayEnvironment`: their states, and of each its episode's number,
    the steps since it began, int32[n], and if it is over, bool[n].
    """

    state: Any
    episode: jax.Array
    steps: jax.Array
    over: jax.Array


def shown_of(step: Step, over: jax.Array) -> Shown:
    """Return what a step shows; over: bool[n], where the step before was the last."""
    return Shown(step.observation, over, step.terminated | step.truncated)


def begin(
    environment: ArrayEnvironment, key: jax.Array, rows: jax.Array
) -> tuple[Here, Step]:
    """Return the first step of the first episode of rows int32[n].

    An episode's key follows from `key`, the number of its row and its own alone.
    """
    episode = jnp.zeros(rows.shape, jnp.int32)
    state = jax.vmap(environment.begin)(_keys(key, rows, episode))
    no = jnp.zeros(rows.shape, bool)
    here = Here(state, episode, jnp.zeros_like(episode), no)
    reward = jnp.zeros(rows.shape, jnp.float32)
    return here, Step(jax.vmap(environment.observe)(state), reward, no, no, no)


def step(
    environment: ArrayEnvironment,
    key: jax.Array,
    rows: jax.Array,
    here: Here,
    actions: jax.Array,
) -> tuple[Here, Step]:
    """Take actions int32[n]; rows that are over begin their next episode."""
    went, reward, terminated, truncated, success = jax.vmap(environment.step)(
        here.state, actions
    )
    fresh = jax.vmap(environment.begin)(_keys(key, rows, here.episode + 1))

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        over = here.over.reshape(-1, *(1,) * (new.ndim - 1))
        return jnp.where(over, new, old)

    state = jax.tree.map(chosen, fresh, went)
    steps = jnp.where(here.over, 0, here.steps + 1)
    truncated |= steps >= environment.limit
    terminated, truncated, success = (
        part & ~here.over for part in (terminated, truncated & ~terminated, success)
    )
    over = terminated | truncated
    reward = jnp.where(here.over, 0, reward).astype(jnp.float32)
    shown = jax.vmap(environment.observe)(state)
    now = Here(state, here.episode + here.over, steps, over)
    return now, Step(shown, reward, terminated, truncated, success & over)


def _keys(key: jax.Array, rows: jax.Array, episodes: jax.Array) -> jax.Array:
    def of_row(row: jax.Array, episode: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, row), episode)

    return jax.vmap(of_row)(rows, episodes)


def rows_of(past: Past, shown: Shown | None = None) -> dict[str, Any]:
    """Return the last steps as `play`, real where they are of the episode shown.

    shown: what follows; None: nothing, and the last step's episode is meant.
    """
    first = past.first
    begun = jnp.cumsum(first, 1, dtype=jnp.int32)
    real = (begun == begun[:, -1:]) & (begun > 0) if first.shape[1] else first
    if shown is not None:
        real &= ~shown.first[:, None]
    return {
        "views": past.views,
        "first": first,
        "real": real,
        "actions": past.actions,
    }


def episode_numbers(play: Mapping[str, Any]) -> jax.Array:
    """Return the number of each step's episode in its row of play, int32[n, c + t].

    0 is the episode of the first real step.
    """
    begun = jnp.cumsum(play["first"] & play["real"], 1, dtype=jnp.int32)
    earliest = jnp.where(play["real"], begun, begun[:, -1:]).min(1, keepdims=True)
    return jnp.maximum(begun - earliest, 0)


def play_of(past: Past, shown: Shown, actions: jax.Array) -> dict[str, Any]:
    """Return `play` of the steps before and those that were played.

    shown: [t, n, ...]; actions: int32[t, n].
    """
    views, first, taken = jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1), (shown.views, shown.first, actions)
    )
    before = rows_of(past, Shown(None, first[:, 0], first[:, 0]))
    now = {"views": views, "first": first, "real": jnp.ones_like(first)}
    now["actions"] = taken
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), before, now)


def last_steps(play: Mapping[str, Any], count: int) -> Past:
    """Return the last steps of `play`."""
    start = play["first"].shape[1] - count
    views, first, actions = jax.tree.map(
        lambda x: x[:, start:], (play["views"], play["first"], play["actions"])
    )
    return Past(views, first, actions)


def no_past(shown: Shown, count: int) -> Past:
    """Return the steps before the first: none, in the shapes of `count`."""

    def empty(x: jax.Array) -> jax.Array:
        return jnp.zeros((x.shape[0], count, *x.shape[1:]), x.dtype)

    first = empty(shown.first)
    return Past(jax.tree.map(empty, shown.views), first, first.astype(jnp.int32))


def counted(tally: Tally, step: Step, over: jax.Array) -> Tally:
    """Add a step to the scores; over: bool[n], where it begins an episode."""
    score = jnp.where(over, 0, tally.score) + step.reward
    steps = jnp.where(over, 0, tally.steps + 1)
    ended = (step.terminated | step.truncated).astype(jnp.float32)
    sums = [ended, step.success, score * ended, steps * ended]
    added = jnp.stack([jnp.sum(part, dtype=jnp.float32) for part in sums])
    return Tally(score, steps, tally.done + added)


def play(
    actor: Actor,
    past: Past,
    shown: Shown,
    tally: Tally,
    here: Here,
    go: Callable[[Here, jax.Array], tuple[Here, Step]],
    key: jax.Array,
    count: int,
) -> tuple[Here, Shown, Tally, Played, jax.Array]:
    """Play `count` steps on the device; return also the values of the last state.

    go: takes actions, as `step`.
    """

    def one(carry: tuple, number: jax.Array) -> tuple[tuple, Played]:
        memory, here, shown, tally = carry
        own = jax.random.fold_in(key, number)
        memory, acted = actor.act(memory, shown.views, shown.first, own)
        here, gone = go(here, acted.action)
        tally = counted(tally, gone, shown.over)
        following = shown_of(gone, shown.over)
        came = gone.reward, gone.terminated, following.over, gone.success
        played = Played(shown, acted, *came)
        return (memory, here, following, tally), played

    memory = actor.recall(rows_of(past, shown), shown.views)
    begun = memory, here, shown, tally
    (memory, here, shown, tally), played = jax.lax.scan(one, begun, jnp.arange(count))
    _, acted = actor.act(memory, shown.views, shown.first, None)
    return here, shown, tally, played, acted.value
