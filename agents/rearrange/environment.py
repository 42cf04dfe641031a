"""The rules and the reward, as pure functions of arrays, for `jit` and `vmap`.

A skill is one of `words.SKILLS`. The agent may

    go      to another receptacle
    pick    a category that is where it stands, with an empty hand; of several, the
            object of the lowest number
    place   what is in its hand, at the receptacle where it stands
    open    the door where it stands, or close it

and neither picks nor places at a closed door. A skill that may not be taken, or would
change nothing, is invalid: the state stays as it is, but for the step that it took.

    reward = 10 [success] + 5 (progress after - progress before) - penalty [invalid]

Success is that every clause of the goal holds and doors are as wanted. It ends the
episode; 32 steps cut it off. Progress is the share of sub-goals that hold in a state.
Each object that a clause needs has two: it was picked up, and is in place; the first
holds while it is in the hand or in place. A wanted door is one, which holds once all
clauses do. So what is undone is taken away again, and nothing is gained by doing it
twice: with success, progress adds up to 5, less what held at the start, as it may where
all objects of a kind are asked for.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.environments.rows import PADDING, Texts
from agents.rearrange import pictures, tasks
from agents.rearrange.goals import OBJECTS
from agents.rearrange.tasks import Episodes
from agents.rearrange.words import CATEGORIES, DOORS, RECEPTACLES, SKILLS
from polyview.errors import check_range

LIMIT = 32  # steps of an episode
HAND = len(RECEPTACLES)  # the place of what is held
SUCCESS, PROGRESS = 10.0, 5.0

# The skills [36] by what they do, and to which receptacle, category or door.
_COUNTS = (len(RECEPTACLES), len(CATEGORIES), len(RECEPTACLES), DOORS, DOORS)
_GO, _PICK, _PLACE, _OPEN, _CLOSE = range(5)
_VERB = np.repeat(np.arange(5, dtype=np.int32), _COUNTS)
_THING = np.concatenate([np.arange(count, dtype=np.int32) for count in _COUNTS])


class State(NamedTuple):
    """Where everything is in an episode.

    Attributes:
      episode: how it began, and what is asked for; see `tasks.Episodes`.
      places: int32[6], the receptacle of each object; `HAND` of what is held.
      open: bool[2].
      agent: int32, the receptacle at which it is.
      steps: int32, since the start.
      key: uint32[2], of the noise of pictures.
    """

    episode: Episodes
    places: Any
    open: Any
    agent: Any
    steps: Any
    key: Any


def start(episode: Episodes, key: Any) -> State:
    """Return the first state of an episode. key: uint32[2]."""
    return State(
        episode,
        jnp.asarray(episode.places, jnp.int32),
        jnp.asarray(episode.open, bool),
        jnp.asarray(episode.agent, jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.asarray(key, jnp.uint32),
    )


def shut(state: State, receptacle: Any) -> Any:
    """Return whether receptacles, int[...], are closed."""
    always = jnp.ones(len(RECEPTACLES) - DOORS, bool)
    return ~jnp.concatenate([state.open, always])[receptacle]


def legal(state: State) -> Any:
    """Return the skills that are valid, bool[36]: they would change something."""
    here, held = state.places == state.agent, state.places == HAND
    within = ~shut(state, state.agent)
    categories = state.episode.categories
    found = jnp.any(
        here[:, None] & (categories[:, None] == jnp.arange(len(CATEGORIES))[None]), 0
    )
    stands = state.agent == jnp.arange(len(RECEPTACLES))
    at_door = stands[:DOORS]
    return jnp.concatenate(
        [
            ~stands,
            found & within & ~held.any(),
            stands & within & held.any(),
            at_door & ~state.open,
            at_door & state.open,
        ]
    )


def act(state: State, action: Any) -> tuple[State, Any]:
    """Return the state after a skill, and whether it was valid."""
    chosen = jnp.arange(len(SKILLS)) == action
    valid = jnp.any(chosen & legal(state))
    verb = jnp.where(valid, jnp.sum(chosen * _VERB), -1)
    thing = jnp.sum(chosen * _THING)
    alike = (state.episode.categories == thing) & (state.places == state.agent)
    first = jnp.arange(OBJECTS) == jnp.argmax(alike)
    places = jnp.where(first & (verb == _PICK), HAND, state.places)
    placed = (state.places == HAND) & (verb == _PLACE)
    door = jnp.arange(DOORS) == thing
    return state._replace(
        places=jnp.where(placed, state.agent, places),
        open=(state.open | (door & (verb == _OPEN))) & ~(door & (verb == _CLOSE)),
        agent=jnp.where(verb == _GO, thing, state.agent).astype(jnp.int32),
        steps=state.steps + 1,
    ), valid


def needed(state: State) -> tuple[Any, Any]:
    """Return what has still to be moved, bool[3, 6], and clauses that hold, bool[3].

    A clause that asks for any of its objects needs none once one of them is in place.
    """
    wanted, every = state.episode.wanted, state.episode.every
    there = wanted & (state.places[None] == state.episode.target[:, None])
    holds = jnp.where(every, (there == wanted).all(1), there.any(1) | ~wanted.any(1))
    return wanted & ~there & ~holds[:, None], holds


def progress(state: State) -> tuple[Any, Any]:
    """Return the share of sub-goals that hold, and whether the whole goal does."""
    wanted, every = state.episode.wanted, state.episode.every
    left, holds = needed(state)
    count = jnp.where(every, wanted.sum(1), wanted.any(1))
    placed = jnp.where(every, (wanted & ~left).sum(1), holds & wanted.any(1))
    held = (left & (state.places == HAND)[None]).any(1)
    doors = state.episode.doors
    right = (doors == state.open) & holds.all()
    reached = (2 * placed + held).sum() + right.sum()
    total = 2 * count.sum() + (doors >= 0).sum()
    success = holds.all() & (right | (doors < 0)).all()
    return reached.astype(jnp.float32) / total, success


def step(state: State, action: Any, penalty: Any) -> tuple[State, Any, Any, Any, Any]:
    """Return state, reward, terminated, truncated, success. penalty: of the invalid."""
    before, _ = progress(state)
    state, valid = act(state, action)
    after, success = progress(state)
    reward = SUCCESS * success + PROGRESS * (after - before) - penalty * ~valid
    truncated = (state.steps >= LIMIT) & ~success
    return state, reward.astype(jnp.float32), success, truncated, success


def observe(state: State) -> Any:
    """Return what the agent sees, uint8[32, 32, 3]; the same for the same state."""
    now = state.episode
    visible = (state.places == state.agent) & ~shut(state, state.agent)
    return pictures.picture(
        now.categories,
        visible,
        state.places == HAND,
        now.scene,
        state.agent,
        ~shut(state, state.agent),
        _typed(state.key),
        state.steps,
    )


def colours(state: State) -> Any:
    """Return the two tones of each object; see `pictures.colours`."""
    return pictures.colours(_typed(state.key))


def _typed(key: Any) -> Any:
    return jax.random.wrap_key_data(key, impl="threefry2x32")


class Rearrange:
    """The episodes of a split, as `polyview.rl.environment:ArrayEnvironment`.

    Observes `image`, uint8[32, 32, 3], and with a tokenizer `text`, int32[length].

    Args:
      split: of `tasks.SPLITS`.
      seed: of the table; see `tasks.table`.
      invalid_penalty: of an invalid skill. 0.05 is published for LLaRP, whose released
        code applies none.
      text: makes the tokens of instructions, such as `agents.llm.tokenizer:Tokenizer`.
      length: room for an instruction. A longer one is an InputError that quotes it.

    Raises InputError for an unknown split.
    """

    actions, limit = len(SKILLS), LIMIT

    def __init__(
        self,
        split: str,
        seed: int = 0,
        invalid_penalty: float = 0.0,
        text: Texts | None = None,
        length: int = 24,
    ) -> None:
        check_range(0.0, 100.0, invalid_penalty=invalid_penalty)
        check_range(1, length=length)
        self.table = tasks.table(split, seed)
        self._penalty = invalid_penalty
        self._episodes = Episodes(*map(jnp.asarray, self.table.episodes))
        self._tokens: Any = None
        if text is not None:
            tokens, real = text.rows(list(self.table.texts), length)
            self._tokens = jnp.asarray(np.where(real, tokens, PADDING), jnp.int32)

    @property
    def data(self) -> dict[str, Any]:
        """The number of episodes and their digest, which a resumed run must match."""
        digest = hashlib.sha256("\n".join(self.table.texts).encode())
        for values in self.table.episodes:
            digest.update(np.ascontiguousarray(values).tobytes())
        return {"rows": len(self.table), "digest": digest.hexdigest()}

    def begin(self, key: Any) -> State:
        """Return the start of a row of the table, drawn evenly."""
        which, noise = jax.random.split(key)
        row = jax.random.randint(which, (), 0, len(self.table))
        return self._start(row, jax.random.bits(noise, (2,), jnp.uint32))

    def begin_at(self, row: Any) -> State:
        """Return the start of a row of the table; its pictures follow from the row."""
        check_range(0, len(self.table) - 1, row=row)
        row = jnp.asarray(row, jnp.int32)
        return self._start(row, jnp.stack([jnp.zeros_like(row), row]))

    def step(self, state: State, action: Any) -> tuple[State, Any, Any, Any, Any]:
        """Return state, reward, terminated, truncated, success."""
        return step(state, action, self._penalty)

    def observe(self, state: State) -> dict[str, Any]:
        """Return {"image"}, and "text" if there is a tokenizer."""
        shown = {"image": observe(state)}
        if self._tokens is not None:
            shown["text"] = self._tokens[state.episode.text]
        return shown

    def _start(self, row: Any, key: Any) -> State:
        return start(Episodes(*(values[row] for values in self._episodes)), key)
