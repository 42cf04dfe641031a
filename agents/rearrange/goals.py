"""What each family of instructions asks for: random starts, and rules. Numpy only."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agents.rearrange import words
from agents.rearrange.words import CATEGORIES, DOORS, FAMILIES, RECEPTACLES

OBJECTS = 6  # of an episode
CLAUSES = 3
SCENES = range(32)  # orders of the receptacles along the walls, and their light
NEW = 24  # the first scene that training does not have


def _orders() -> np.ndarray:
    """Return int[32, 8]: the receptacles of each scene, from left to right."""
    drawn = np.random.default_rng(2310).random((len(SCENES), len(RECEPTACLES)))
    return drawn.argsort(1)


ORDERS = _orders()
POSITIONS = ORDERS.argsort(1)  # of each receptacle


def _texts(*values: str) -> np.ndarray:
    return np.array(values, object)


_NOUNS = _texts(*CATEGORIES)
_WITH_ARTICLE = _texts(*(f"a{'n' * (c[0] in 'aeiou')} {c}" for c in CATEGORIES))
_AT = _texts(*RECEPTACLES)
_ON = _texts(
    *(f"{p} the {r}" for p, r in zip(words.PREPOSITIONS, RECEPTACLES, strict=True))
)
_KINDS = tuple(words.GROUPS)
_GROUPS = np.array(
    [[c in group for c in CATEGORIES] for group in words.GROUPS.values()]
)
_HELPS = np.array([[c in helps for c in CATEGORIES] for helps in words.NEEDS.values()])
_ALL_DESCRIPTIONS = np.array(list(words.DESCRIPTIONS.values()), object)


@dataclass
class Draft:
    """n random starts, to which a rule adds the goals. Those not `good` are dropped.

    Three objects are picked, which with three receptacles fill the slots that phrasings
    share. novel: whether they are of held-out categories; others may be too, then.

    Draws are of `random` alone: other methods of NumPy's generators may draw otherwise
    in another version.
    """

    count: int
    rng: np.random.Generator
    scenes: range
    novel: bool
    clauses: list[tuple[np.ndarray, np.ndarray, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = self.count
        self.row = np.arange(n)
        known = len(CATEGORIES) if self.novel else len(words.SEEN)
        self.categories = self.integers(known, OBJECTS)
        self.picked = self.rng.random((n, OBJECTS)).argsort(1)[:, :CLAUSES]
        if self.novel:
            held = len(words.SEEN) + self.integers(len(words.HELD_OUT), CLAUSES)
            self.categories[self.row[:, None], self.picked] = held
        self.places = self.integers(len(RECEPTACLES), OBJECTS)
        self.open = self.rng.random((n, DOORS)) < 0.5
        self.agent = self.integers(len(RECEPTACLES))
        self.scene = self.scenes[0] + self.integers(len(self.scenes))
        self.targets = self.integers(len(RECEPTACLES), CLAUSES)
        self.doors = np.full((n, DOORS), -1)
        self.good = np.ones(n, bool)
        self.chosen = self.categories[self.row[:, None], self.picked]
        a, b, c = self.chosen.T
        at, at2, at3 = self.targets.T
        self.slots = {
            **{"a": _NOUNS[a], "b": _NOUNS[b], "c": _NOUNS[c]},
            **{"an_a": _WITH_ARTICLE[a], "an_b": _WITH_ARTICLE[b]},
            **{"at": _AT[at], "at2": _AT[at2], "at3": _AT[at3]},
            **{"on": _ON[at], "on2": _ON[at2], "on3": _ON[at3]},
        }

    def integers(self, below: int, *shape: int) -> np.ndarray:
        """Return random numbers int[n, *shape] below a bound."""
        return (self.rng.random((self.count, *shape)) * below).astype(np.int64)

    def alike(self, number: int) -> np.ndarray:
        """Return bool[n, 6]: objects of the category of a picked one."""
        return self.categories == self.chosen[:, number, None]

    def among(self, members: np.ndarray) -> np.ndarray:
        """Return bool[n, 6]: objects that bool[n, 16] of the categories has."""
        return members[self.row[:, None], self.categories]

    def want(self, objects: np.ndarray, number: int = 0, every: bool = False) -> None:
        """Add a clause: these objects to a target, by its number."""
        self.clauses.append((objects, self.targets[:, number], every))

    def possible(self) -> np.ndarray:
        """Return bool[n]: objects of each clause are there, and not yet in place.

        No object is of two clauses. Of all objects of a kind two or more must move.
        """
        good = np.ones(self.count, bool)
        claimed = np.zeros((self.count, OBJECTS), np.int64)
        for objects, target, every in self.clauses:
            away = objects & (self.places != target[:, None])
            good &= (away.sum(1) >= 2) if every else (away == objects).all(1)
            good &= objects.any(1)
            claimed += objects
        return good & (claimed <= 1).all(1)

    def columns(self, family: str) -> list[np.ndarray]:
        """Return what `Episodes` has; texts are 0."""
        n = self.count
        wanted = np.zeros((n, CLAUSES, OBJECTS), bool)
        every = np.zeros((n, CLAUSES), bool)
        target = np.zeros((n, CLAUSES), np.uint8)
        for number, clause in enumerate(self.clauses):
            wanted[:, number], target[:, number], every[:, number] = clause
        small = (self.categories, self.places, self.open, self.agent, self.scene)
        return [
            *(np.asarray(a, bool if a is self.open else np.uint8) for a in small),
            *(wanted, every, target, self.doors.astype(np.int8)),
            np.full(n, FAMILIES.index(family), np.uint8),
            np.zeros(n, np.int32),
        ]


Slots = dict[str, np.ndarray]


def _one(draft: Draft) -> Slots:
    draft.want(draft.alike(0))
    return {}


def _from(draft: Draft) -> Slots:
    source = draft.places[draft.row, draft.picked[:, 0]]
    draft.want(draft.alike(0) & (draft.places == source[:, None]))
    return {"src": _AT[source], "was": _ON[source]}


def _kind(draft: Draft) -> Slots:
    kind = draft.integers(len(_KINDS))
    draft.want(draft.among(_GROUPS[kind]))
    some = _texts(*(words.ANY_OF[name] for name in _KINDS))
    return {"kind": _texts(*_KINDS)[kind], "some": some[kind]}


def _either(draft: Draft) -> Slots:
    draft.want(draft.alike(0) | draft.alike(1))
    draft.good &= draft.chosen[:, 0] != draft.chosen[:, 1]
    return {}


def _two(draft: Draft) -> Slots:
    draft.want(draft.alike(0))
    draft.want(draft.alike(1), 1)
    draft.good &= draft.targets[:, 0] != draft.targets[:, 1]
    return {}


def _pair(draft: Draft) -> Slots:
    draft.want(draft.alike(0))
    draft.want(draft.alike(1))
    return {}


def _door(draft: Draft, wanted: int) -> Slots:
    door = draft.integers(DOORS)
    draft.doors[draft.row, door] = wanted
    draft.good &= draft.open[draft.row, door] != wanted
    return {"at": _AT[door]}


def _store(draft: Draft) -> Slots:
    draft.want(draft.alike(0))
    draft.good &= draft.targets[:, 0] < DOORS
    draft.doors[draft.row, draft.targets[:, 0] % DOORS] = 0
    return {}


def _described(draft: Draft) -> Slots:
    draft.want(draft.alike(0))
    which = draft.integers(_ALL_DESCRIPTIONS.shape[1])
    return {"description": _ALL_DESCRIPTIONS[draft.chosen[:, 0], which]}


def _beside(draft: Draft) -> Slots:
    draft.want(draft.alike(0))
    right = draft.integers(2)
    # The target is right of the receptacle at its left.
    place = POSITIONS[draft.scene, draft.targets[:, 0]] + 1 - 2 * right
    draft.good &= (place >= 0) & (place < len(RECEPTACLES))
    other = ORDERS[draft.scene, place % len(RECEPTACLES)]
    return {"at": _AT[other], "side": _texts("left", "right")[right]}


def _need(draft: Draft) -> Slots:
    need = draft.integers(len(words.NEEDS))
    draft.want(draft.among(_HELPS[need]))
    return {"need": _texts(*words.NEEDS)[need]}


def _aside(draft: Draft) -> Slots:
    draft.want(draft.alike(0))
    draft.good &= draft.chosen[:, 0] != draft.chosen[:, 1]
    which = draft.integers(len(words.ASIDES))
    said = zip(which.tolist(), draft.slots["b"].tolist(), strict=True)
    return {"aside": _texts(*(words.ASIDES[k].format(b=b) for k, b in said))}


def _three(draft: Draft) -> Slots:
    for number in range(CLAUSES):
        draft.want(draft.alike(number), number)
    return {}


def _all(draft: Draft) -> Slots:
    kind = draft.integers(len(_KINDS))
    draft.want(draft.among(_GROUPS[kind]), every=True)
    more = _texts(*(words.ALL_OF[name] for name in _KINDS))
    return {"kind": _texts(*_KINDS)[kind], "all": more[kind]}


def _if_door(draft: Draft) -> Slots:
    door, said = draft.integers(DOORS), draft.integers(2)  # 1: if it is open
    holds = draft.open[draft.row, door] == said
    first, second = draft.targets[:, 0].copy(), draft.targets[:, 1]
    objects = draft.alike(0)
    for target in (first, second):  # in neither, or the instruction gives itself away
        draft.good &= ~(objects & (draft.places == target[:, None])).any(1)
    draft.good &= first != second
    draft.targets[:, 0] = np.where(holds, first, second)
    draft.want(objects)
    return {"door": _AT[door], "is": _texts("closed", "open")[said]}


def _if_there(draft: Draft) -> Slots:
    a, b = draft.alike(0), draft.alike(1)
    # Half of the time where it is, else somewhere, which is seldom there.
    source = draft.places[draft.row, draft.picked[:, 0]]
    source = np.where(draft.integers(2), source, draft.integers(len(RECEPTACLES)))
    there = a & (draft.places == source[:, None])
    draft.want(np.where(there.any(1)[:, None], there, b))
    target = draft.targets[:, 0]
    draft.good &= (draft.chosen[:, 0] != draft.chosen[:, 1]) & (source != target)
    draft.good &= ~((a | b) & (draft.places == target[:, None])).any(1)
    return {"was": _ON[source]}


RULES: dict[str, Callable[[Draft], Slots]] = {
    "one": _one,
    "from": _from,
    "kind": _kind,
    "either": _either,
    "two": _two,
    "pair": _pair,
    "open": functools.partial(_door, wanted=1),
    "close": functools.partial(_door, wanted=0),
    "store": _store,
    "described": _described,
    "beside": _beside,
    "need": _need,
    "aside": _aside,
    "three": _three,
    "all": _all,
    "if_door": _if_door,
    "if_there": _if_there,
}
