"""Episodes as a table: what stands where, and what is asked for. Numpy only.

A goal is up to three clauses, each "any of these objects at this receptacle", or all of
them, and the wanted state of doors. What an instruction leaves to the start, as "if the
fridge is closed" does, and to the room, as "right of the sink", is decided here: goals
are plain arrays. The order in which clauses are fulfilled does not matter.

Every row is a function of the split, the seed and its number. A text is said in one
split only, whatever the seed: `train`, `train_validation` and `new_scenes` share the
phrasings of training, and each takes those texts whose checksum is its own.
"""

import functools
import itertools
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from agents.rearrange.goals import NEW, RULES, SCENES, Draft
from agents.rearrange.words import FAMILIES, PHRASINGS
from polyview.errors import InputError, check_range, nearest

_KEPT = (range(8), range(8, 9), range(9, 10))  # checksums of texts, modulo 10
_TRAINING = FAMILIES[:9]


@dataclass(frozen=True)
class Split:
    """What the episodes of a split are drawn from.

    Attributes:
      families: of instructions, each with its share.
      kept: the checksums of its texts, modulo 10.
      rephrased: whether phrasings are those of evaluation.
      novel: whether what is asked for is held out from training.
      scenes: its rooms.
      rows: the number of episodes.
    """

    families: dict[str, int]
    kept: range = range(10)
    rephrased: bool = True
    novel: bool = False
    scenes: range = SCENES[:NEW]
    rows: int = 1000


_SHARES = dict(zip(_TRAINING, (4, 2, 1, 1, 4, 2, 1, 1, 2), strict=True))
_NAMED = {name: _SHARES[name] for name in ("one", "from", "two", "pair", "store")}
SPLITS = {
    # A multiple of 3: see `agents.demonstrate:seeds`, whose splits are remainders.
    "train": Split(_SHARES, _KEPT[0], rephrased=False, rows=162_000),
    "train_validation": Split(_SHARES, _KEPT[1], rephrased=False),
    "new_scenes": Split(_SHARES, _KEPT[2], rephrased=False, scenes=SCENES[NEW:]),
    "rephrasing": Split(_SHARES),
    "referring_expressions": Split({"described": 1}),
    "spatial_relationships": Split({"beside": 1}),
    "context": Split({"need": 1}),
    "irrelevant_text": Split({"aside": 1}),
    "multiple_rearrangements": Split({"three": 1}),
    "novel_objects": Split(_NAMED, rephrased=False, novel=True),
    "multiple_objects": Split({"all": 1}),
    "conditional_instructions": Split({"if_door": 1, "if_there": 1}),
}


class Episodes(NamedTuple):
    """Episodes [n], or one of them without that axis.

    Attributes:
      categories: uint8[n, 6], of the objects.
      places: uint8[n, 6], the receptacles at which they are.
      open: bool[n, 2], the doors.
      agent: uint8[n], the receptacle at which it is.
      scene: uint8[n], for `ORDERS` and `agents.rearrange.pictures`.
      wanted: bool[n, 3, 6], the objects of each clause; none if there is no such.
      every: bool[n, 3], whether a clause asks for all of them.
      target: uint8[n, 3], where to.
      doors: int8[n, 2], 1 to be open and 0 to be closed at the end, -1 for either.
      family: uint8[n], of `FAMILIES`.
      text: int32[n], of `Table.texts`.
    """

    categories: Any
    places: Any
    open: Any
    agent: Any
    scene: Any
    wanted: Any
    every: Any
    target: Any
    doors: Any
    family: Any
    text: Any


class Table(NamedTuple):
    """The episodes of a split, and their distinct instructions."""

    episodes: Episodes
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.episodes.text)

    def text(self, row: int) -> str:
        """Return the instruction of a row."""
        return self.texts[self.episodes.text[row]]

    def episode(self, row: int) -> Episodes:
        """Return a row."""
        return Episodes(*(values[row] for values in self.episodes))


def table(split: str, seed: int = 0) -> Table:
    """Return the episodes of a split; see `SPLITS`. The arrays must not be changed.

    seed: another one gives other episodes of the same split, for those who need more.
    The benchmark is seed 0.

    Raises InputError for an unknown split, OutOfRange for a seed below 0.
    """
    if split not in SPLITS:
        raise InputError(
            f"TextRearrange has no split '{split}'{nearest(f'{split}', SPLITS)}"
        )
    check_range(0, 2**63, seed=seed)
    return _table(split, seed)


@functools.lru_cache(maxsize=16)
def _table(split: str, seed: int) -> Table:
    own = SPLITS[split]
    stream = zlib.crc32(split.encode())
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
    total, parts = sum(own.families.values()), []
    said: list[np.ndarray] = []
    for number, (family, share) in enumerate(own.families.items()):
        last = number == len(own.families) - 1
        count = own.rows * share // total
        count = own.rows - sum(len(texts) for texts in said) if last else count
        episodes, texts = _drawn(own, family, count, rng)
        parts.append(episodes)
        said.append(texts)
    mixed = rng.random(own.rows).argsort()
    texts, text = np.unique(np.concatenate(said), return_inverse=True)
    columns = [np.concatenate(column)[mixed] for column in zip(*parts, strict=True)]
    columns[-1] = text.astype(np.int32)[mixed]
    for column in columns:
        column.setflags(write=False)
    return Table(Episodes(*columns), tuple(texts.tolist()))


def _drawn(
    split: Split, family: str, count: int, rng: np.random.Generator
) -> tuple[Episodes, np.ndarray]:
    """Return episodes of a family, without the numbers of their texts, and these."""
    parts, have = [], 0
    said: list[str] = []
    while have < count:
        tried = 4 * (count - have) // len(split.kept) + 1000
        draft = Draft(tried, rng, split.scenes, split.novel)
        slots = RULES[family](draft)
        good = np.flatnonzero(draft.good & draft.possible())
        lists = {
            name: values[good].tolist()
            for name, values in (draft.slots | slots).items()
        }
        phrasings = PHRASINGS[family][split.rephrased]
        chosen = draft.integers(len(phrasings))[good].tolist()
        texts = [
            _sentence(phrasings[number], dict(zip(lists, values, strict=True)))
            for number, *values in zip(chosen, *lists.values(), strict=True)
        ]
        kept = [zlib.crc32(text.encode()) % 10 in split.kept for text in texts]
        rows = good[kept]
        parts.append([column[rows] for column in draft.columns(family)])
        said += itertools.compress(texts, kept)
        have += len(rows)
    columns = (np.concatenate(column)[:count] for column in zip(*parts, strict=True))
    return Episodes(*columns), np.array(said[:count], object)


def _sentence(phrasing: str, slots: dict[str, str]) -> str:
    text = phrasing.format_map(slots)
    return text[0].upper() + text[1:]
