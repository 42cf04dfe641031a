"""Rewards from preferences: a network that scores what is seen, by Bradley and Terry.

    P(o_1 is preferred to o_2) = s(r(o_1) - r(o_2)),    s(x) = 1 / (1 + exp(-x))

(Bradley and Terry 1952; Christiano et al. 2017; Klissarov et al. 2024.) Only
differences of r are known: a constant may be added to all of them.

A batch holds the two moments of a pair as two looks at one thing:

    views    text         int32[1, length]: the instruction's tokens, -1 after them
             caption      int32[2, room]: the tokens of each caption, if asked for
             OBSERVATION  [2, ...] for each other one that is asked for
    targets  preference   float32: 1 if the first is preferred, 0 if the second is, .5
             weight       float32, of the pair in the mean
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from agents.bridges import Bag
from agents.data import TEXT
from agents.environments.rows import CAPTION as ROOM
from agents.environments.rows import Texts, Told
from agents.feedback import labels as files
from agents.feedback.pairs import describe
from polyview.data.sources.protocol import Source, default_data_dir
from polyview.data.views import Example, take
from polyview.errors import InputError, check_range
from polyview.objectives.base import Batch

_GAIN = 4.0  # of words, which a bag makes small by the words that all have (ours)
CAPTION, CAPTIONS, GRID = "caption", ("caption_1", "caption_2"), "grid"


def bradley_terry(
    rewards: jax.Array, preference: jax.Array, weight: jax.Array
) -> jax.Array:
    """Return mean w -[y log s(r_1 - r_2) + (1 - y) log s(r_2 - r_1)].

    rewards: float[b, 2]. preference: y, float[b], .5 for a tie. weight: w, float[b], 0
    or more; the mean is over their sum.

    It is `polyview.objectives.bounds.info_nce` with one negative; that is not called
    since its masks know no ties and no weights.
    """
    gap = rewards[:, 0] - rewards[:, 1]
    losses = preference * jax.nn.softplus(-gap)
    losses += (1 - preference) * jax.nn.softplus(gap)
    total = weight.sum()
    return jnp.where(total > 0, (weight * losses).sum() / jnp.maximum(total, 1e-30), 0)


@dataclass(frozen=True)
class BradleyTerry:
    """The loss of pairs; see the module. The views are `Pair`.

    Metrics: `accuracy` over the pairs that are no ties, and the deviation of rewards.
    """

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        targets = batch["targets"]
        if "preference" not in targets:
            raise InputError(
                "distillation needs preferences; set views to "
                "agents.feedback.distil:Pair, and source to Preferred"
            )
        if not hasattr(module, "pairs"):
            raise InputError("distillation takes a batch whole; set microbatch to None")
        rewards = module.pairs(batch["views"])
        y, weight = targets["preference"], targets["weight"]
        sure = jnp.where(y == 0.5, 0, weight)
        right = (rewards[:, 0] > rewards[:, 1]) == (y > 0.5)
        found = {
            "accuracy": (sure * right).sum() / jnp.maximum(sure.sum(), 1e-30),
            "deviation": rewards.std(),
        }
        return bradley_terry(rewards, y, weight), found


class _Scores(nnx.Module):
    """A network that scores observations; see `Reward`."""

    def __call__(self, views: Mapping[str, jax.Array]) -> jax.Array:
        """Return rewards float[n] of views {name: [n, ...]}."""
        raise NotImplementedError

    def pairs(self, views: Mapping[str, jax.Array]) -> jax.Array:
        """Return rewards float[b, 2] of views {name: [b, 1 or 2, ...]}.

        What has one look, as the instruction, is that of both moments.
        """

        def flat(x: jax.Array) -> jax.Array:
            whole = jnp.broadcast_to(x, (len(x), 2, *x.shape[2:]))
            return whole.reshape(-1, *x.shape[2:])

        return self({name: flat(x) for name, x in views.items()}).reshape(-1, 2)


class Reward(_Scores):
    """A reward of what is seen: `reward({name: [n, ...]}) -> [n]`.

    Encoders map observations [n, ...] to [n, width] or to tokens [n, tokens, width], as
    bridges of `agents.bridges`; all they say side by side gives the reward by two
    layers with SiLU. With an encoder of `text` each instruction may get a constant of
    its own, which pairs of one instruction do not tell.

    Args:
      encoders: {observation: makes its encoder}.
      width: of what encoders say.
      hidden: of the layers.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, Callable[..., Any]],
        width: int = 64,
        hidden: int = 128,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, width=width, hidden=hidden)
        if not set(encoders) - {TEXT}:
            raise InputError("a reward needs an encoder of an observation")
        made = {name: make(width, rngs=rngs) for name, make in encoders.items()}
        self.encoders: Any = nnx.Dict(made)
        size = sum(getattr(one, "count", 1) for one in made.values()) * width
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.last = _Layers(size, hidden, options)

    def __call__(self, views: Mapping[str, jax.Array]) -> jax.Array:
        """Return rewards float[n] of views {name: [n, ...]}."""
        check_views(views, self.encoders)
        found = [
            encoder(views[name]).reshape(len(views[name]), -1)
            for name, encoder in self.encoders.items()
        ]
        return self.last(jnp.concatenate(found, -1))


class Sought(_Scores):
    """A reward of cells in which an instruction looks for what it names.

    Each of `looks` questions is answered by where it looks among the cells, or by that
    there is no such cell; cells are codes [h, w, c]:

        p(cell) = exp q(cell) / (1 + sum over cells of exp q),
        q(cell) = sum over c of T[question, c, code],   T = T_0 + A bag(instruction)

    (bag: `agents.bridges:Bag`). A question can ask for a colour and a kind at once, and
    A learns words apart: an object that was never named in training is found by its
    colour and its kind. Where it is gives the reward, by two layers with SiLU. They do
    not see the instruction itself: pairs compare moments of one instruction alone, and
    so say nothing of what one is worth beside another.

    Args:
      shape: of the cells, the observation `grid`.
      codes: of each of the c channels.
      looks: questions. More, and wider layers, follow a judge's errors sooner.
      width: of the bag.
      hidden: of the layers.
      rows: of the bag's table.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        codes: int = 16,
        looks: int = 1,
        width: int = 32,
        hidden: int = 32,
        rows: int = 1021,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, shape=list(shape), codes=codes, looks=looks)
        check_range(1, width=width, hidden=hidden)
        h, w, c = shape
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.bag = Bag(width, rows=rows, **options)
        self.ask = nnx.Linear(width, looks * c * codes, use_bias=False, **options)
        draw = jax.random.normal(rngs.params(), (looks, c * codes), param_dtype)
        self.table = nnx.Param(draw)
        self.last = _Layers(h * w * looks, hidden, options)
        self.shape, self.codes, self.looks, self.dtype = (h, w, c), codes, looks, dtype

    def __call__(self, views: Mapping[str, jax.Array]) -> jax.Array:
        """Return rewards float[n] of `grid` [n, h, w, c] and `text` [n, length]."""
        check_views(views, (GRID, TEXT))
        x, n = views[GRID], len(views[GRID])
        if x.shape[1:] != self.shape:
            raise InputError(f"grids are {x.shape[1:]}, not {self.shape}")
        asked = _GAIN * self.ask(self.bag(views[TEXT])).reshape(n, self.looks, -1)
        table = self.table[...].astype(self.dtype)
        chosen = jax.nn.one_hot(x, self.codes, dtype=self.dtype)
        chosen = jnp.where((x < self.codes)[..., None], chosen, jnp.nan)  # no code
        cells = chosen.reshape(n, self.shape[0] * self.shape[1], -1)
        found = jnp.einsum("npk,nmk->nmp", cells, asked + table[None])
        nothing = jnp.zeros((n, self.looks, 1), found.dtype)
        found = jax.nn.softmax(jnp.concatenate([found, nothing], -1))[..., :-1]
        return self.last(found.reshape(n, -1))


class _Layers(nnx.Module):
    """Two hidden layers with SiLU, and a number: [n, size] -> [n]."""

    def __init__(self, size: int, hidden: int, options: dict):
        self.up = nnx.Linear(size, hidden, **options)
        self.middle = nnx.Linear(hidden, hidden, **options)
        self.down = nnx.Linear(hidden, 1, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.down(jax.nn.silu(self.middle(jax.nn.silu(self.up(x)))))[:, 0]
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))


def check_views(views: Mapping[str, Any], wanted: Iterable[str]) -> None:
    """Raise InputError unless all observations that a reward reads are shown."""
    for name in wanted:
        if name not in views:
            raise InputError(
                f"the environment shows {', '.join(views)}, and the reward reads "
                f"{name!r}"
            )


class Preferred:
    """Pairs with the preferences of a file of labels, as a source of examples.

    A pair without a label, or whose label is unknown, is left out. An example is the
    pair's record with `preference` and `weight`, 1.

    Args:
      pairs: a source of pairs (`agents.feedback.pairs`) of one split.
      name: of the data set of pairs, whose folder holds the labels.
      labels: their name; see `agents.feedback.labels`.
      tie_quantile, orders: see `agents.feedback.labels:preference`. What is a tie is
        decided by these pairs alone.
      data_dir: of all data sets; by default that of the environment.

    Raises InputError for labels of other pairs or of none of these, and as `labels`
    does.
    """

    def __init__(
        self,
        pairs: Source,
        name: str,
        labels: str,
        *,
        tie_quantile: float = 0.2,
        orders: str = "both",
        data_dir: str | None = None,
    ):
        self.name, self.labels = name, labels
        path = files.path_of(Path(data_dir or default_data_dir()) / name, labels)
        known = files.read(path, describe(name, data_dir)["digest"])
        records = [pairs[index] for index in range(len(pairs))]
        own = {int(take(record, "pair")) for record in records}
        if own.isdisjoint(known.ids.tolist()):
            raise InputError(
                f"{path} has no label of these {len(records)} pairs; judge this split "
                "of them: python -m agents.judge --split"
            )
        preferences = files.preference(known, tie_quantile, orders, calibration=own)
        self._records = [
            {**record, "preference": preferences[number], "weight": 1.0}
            for record in records
            if (number := int(record["pair"])) in preferences
        ]
        self.targets: dict[str, dict[str, Any]] = {}
        told = [[int(r["pair"]), r["preference"]] for r in self._records]
        whole = json.dumps([getattr(pairs, "digest", ""), told]).encode()
        self.digest = hashlib.sha256(whole).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._records[index])

    def __repr__(self) -> str:
        return f"Preferred({self.name!r}, {self.labels!r})"


@dataclass(frozen=True)
class Pair:
    """The two moments of a pair, as views; see the module.

    Attributes:
      observations: fields of the pair to show; "caption" shows both captions.
      text: the tokenizer of instructions and captions; None shows no text.
      length: room for an instruction, in tokens; a longer one is an InputError.
      room: the same for a caption.
      before: text that stands before each instruction, and after: after it.
    """

    observations: Sequence[str]
    text: Texts | None = None
    length: int = 16
    room: int = ROOM
    before: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        check_range(1, length=self.length, room=self.room)
        if isinstance(self.observations, str) or not self.observations:
            raise InputError("views.observations is a list of one field or more")
        if self.text is None and CAPTION in self.observations:
            raise InputError("captions need a tokenizer; set views.text")

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        views = self.shown(example)
        number = {
            name: np.float32(take(example, name)) for name in ("preference", "weight")
        }
        return {
            "views": views,
            "present": {name: np.ones(len(x), bool) for name, x in views.items()},
            "targets": {name: np.asarray(value) for name, value in number.items()},
        }

    def shown(self, pair: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the views of a pair, with or without preference."""
        views = {}
        for name in self.observations:
            if name == CAPTION:
                told = [self._captions(take(pair, field)) for field in CAPTIONS]
                views[name] = np.stack(told)
            else:
                views[name] = np.asarray(take(pair, name))
        if self.text is not None:
            views[TEXT] = self._told(take(pair, "instruction"))[None]
        return views

    @functools.cached_property
    def _told(self) -> Told:
        assert self.text is not None
        return Told(self.text, self.length, self.before, self.after)

    @functools.cached_property
    def _captions(self) -> Told:
        assert self.text is not None
        return Told(self.text, self.room)
