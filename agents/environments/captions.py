"""What a world shows, in words: the same for the same observation. Numpy only.

A caption says what the observation shows and no more, so that who judges it knows as
much as the agent. Goal-aware captions of BabyAI leave out all that the instruction does
not name: what matters is then our knowledge, not that of who reads the caption.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.environments import wordle as rules
from agents.environments.worlds import World, parse
from polyview.errors import InputError

# minigrid's numbers.
_COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
_KINDS = {4: "door", 5: "key", 6: "ball", 7: "box"}
_DOORS = ("open", "closed", "locked")
_WALL = 2

_NAMED = re.compile(rf"(?:({'|'.join(_COLOURS)}) )?(door|key|ball|box|object)\b")
# How a sentence begins that says of a thing where it is.
_SEEN, _CARRIED = "You see", "You carry"
_SHOWN = re.compile(
    rf"(?:{_SEEN}|{_CARRIED}) an? (?:(?:{'|'.join(_DOORS)}) )?(?:{'|'.join(_COLOURS)}) "
    rf"(?:{'|'.join(_KINDS.values())})\b"
)

# Of Meta-World: what the first object is, by the beginning of a task's name.
_THINGS = {
    "assembly": "ring",
    "basketball": "ball",
    "bin-picking": "block",
    "box-close": "lid",
    "button-press": "button",
    "coffee-button": "button",
    "coffee": "mug",
    "dial": "dial",
    "disassemble": "ring",
    "door-lock": "lock",
    "door-unlock": "lock",
    "door": "door handle",
    "drawer": "drawer handle",
    "faucet": "faucet handle",
    "hammer": "hammer",
    "hand-insert": "block",
    "handle": "handle",
    "lever": "lever",
    "peg": "peg",
    "pick": "block",
    "plate": "plate",
    "push": "block",
    "shelf": "block",
    "soccer": "ball",
    "stick": "stick",
    "sweep": "block",
    "window": "window handle",
}
_OPEN = 0.5  # of the gripper's opening, 0 to 1, from which on it is called open


def captioner(name: str, goal_only: bool = False) -> Callable[[World], str]:
    """Return what describes `arrived` of a world of a name such as babyai:GoToLocal.

    It may be called while the next episode has not begun; see
    `polyview.rl.episodes:stop`. goal_only: see `babyai`.

    Raises InputError for an unknown world, and for goal_only in another than BabyAI.
    """
    kind, task = parse(name)
    known: dict[str, Callable[[World], str]] = {
        "babyai": functools.partial(_of_babyai, goal_only=goal_only),
        "metaworld": lambda room: metaworld(room.arrived["state"], task),
        "rearrange": lambda room: rearrange(room.environment),
        "wordle": lambda room: wordle(room.arrived["state"]),
    }
    if kind not in known:
        raise InputError(f"{name} has no captions; {', '.join(known)} have")
    if goal_only and kind != "babyai":
        raise InputError(f"goal-aware captions are for BabyAI, not for {name}")
    return known[kind]


def _of_babyai(room: World, goal_only: bool) -> str:
    shown = room.arrived
    return babyai(shown["grid"], shown["instruction"], goal_only)


class _Thing(NamedTuple):
    """An object of BabyAI: its kind, its colour, and the state of a door."""

    kind: str
    colour: str
    state: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.state, self.colour, self.kind)))


def babyai(grid: np.ndarray, instruction: str = "", goal_only: bool = False) -> str:
    """Describe what an agent of BabyAI sees, the nearest first.

    Args:
      grid: uint8[7, 7, 3], as `agents.environments.babyai` has it.
      instruction: of the episode; read with goal_only alone.
      goal_only: say of each object that the instruction names where it is, or that it
        is not seen, and nothing else.

    Raises InputError for an array of another shape, and with goal_only for an
    instruction that names no object.
    """
    grid = np.asarray(grid)
    if grid.shape != (7, 7, 3):
        raise InputError(f"BabyAI's grid is [7, 7, 3], not {list(grid.shape)}")
    return _babyai(grid.tobytes(), instruction if goal_only else None)


@functools.lru_cache(2**14)
def _babyai(cells: bytes, instruction: str | None) -> str:
    """instruction: None for a caption that is not goal-aware."""
    seen: list[tuple[tuple[int, int, int], _Thing]] = []
    carried: _Thing | None = None
    for column in range(7):
        for row in range(7):
            at = 3 * (7 * column + row)
            kind, colour, state = cells[at : at + 3]
            if kind not in _KINDS:
                continue
            door = _DOORS[state] if _KINDS[kind] == "door" else ""
            thing = _Thing(_KINDS[kind], _COLOURS[colour], door)
            ahead, right = 6 - row, column - 3
            if ahead or right:
                seen.append(((ahead + abs(right), ahead, right), thing))
            else:  # where it stands is what it carries
                carried = thing
    seen.sort()
    missing: list[str] = []
    if instruction is not None:
        named = _NAMED.findall(instruction)
        if not named:
            raise InputError(
                f"goal-aware captions need an instruction that names an object of "
                f"BabyAI, not {instruction!r}"
            )
        everything = [thing for _, thing in seen] + ([carried] if carried else [])
        missing = [
            f"{colour} {kind}".strip()
            for colour, kind in dict.fromkeys(named)
            if not any(_is(thing, [(colour, kind)]) for thing in everything)
        ]
        seen = [one for one in seen if _is(one[1], named)]
        carried = carried if carried and _is(carried, named) else None
    sentences = []
    if seen:
        places = [
            f"{_a(thing)} {_place(ahead, right)}" for (_, ahead, right), thing in seen
        ]
        sentences.append(f"{_SEEN} {'; '.join(places)}.")
    elif instruction is None:
        sentences.append(f"{_SEEN} no objects.")
    if missing:
        sentences.append(f"You do not see {' or '.join(map(_a, missing))}.")
    if instruction is None and cells[3 * (7 * 3 + 5)] == _WALL:
        sentences.append("A wall is right in front of you.")
    if carried:
        sentences.append(f"{_CARRIED} {_a(carried)}.")
    return " ".join(sentences)


def shows_object(caption: str) -> bool:
    """Return whether a caption says where an object of BabyAI is, in sight or in hand.

    What it says is not seen does not count. It is False for all other worlds.
    """
    return _SHOWN.search(caption) is not None


def _is(thing: _Thing, named: Sequence[tuple[str, str]]) -> bool:
    """Return whether a thing is one of those named: (colour or "", kind or object)."""
    return any(
        colour in ("", thing.colour) and kind in ("object", thing.kind)
        for colour, kind in named
    )


def _place(ahead: int, right: int) -> str:
    if (ahead, right) == (1, 0):
        return "right in front of you"
    parts = []
    if ahead:
        parts.append(f"{_steps(ahead)} ahead")
    if right:
        parts.append(f"{_steps(abs(right))} to the {'right' if right > 0 else 'left'}")
    return " and ".join(parts)


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _a(thing: Any) -> str:
    return f"a{'n' * (str(thing)[0] in 'aeiou')} {thing}"


def rearrange(room: Any) -> str:
    """Describe what an agent of TextRearrange sees.

    room: an `agents.rearrange.room:Room`. Where it stands, whether that is open, what
    is there unless a door hides it, and what it holds; not what stands elsewhere.
    """
    from agents.rearrange.environment import HAND
    from agents.rearrange.words import CATEGORIES, DOORS, PREPOSITIONS, RECEPTACLES

    state = room.state
    at, places = int(state.agent), np.asarray(state.places)
    categories = np.asarray(state.episode.categories)
    name, door = RECEPTACLES[at], at < DOORS
    is_open = not door or bool(np.asarray(state.open)[at])
    sentences = [f"You stand at the {name}."]
    if door:
        sentences[0] = (
            f"You stand at the {name}, which is {('closed', 'open')[is_open]}."
        )
    if is_open:
        things = [_a(CATEGORIES[one]) for one in sorted(categories[places == at])]
        seen = _listed(things) or "nothing"
        sentences.append(f"You see {seen} {PREPOSITIONS[at]} it.")
    held = [_a(CATEGORIES[one]) for one in categories[places == HAND]]
    sentences.append(f"You hold {_listed(held) or 'nothing'}.")
    return " ".join(sentences)


def _listed(texts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    *most, last = texts or [""]
    return f"{', '.join(most)} and {last}" if most else last


def metaworld(state: np.ndarray, task: str) -> str:
    """Describe what an arm of Meta-World sees, in whole centimetres.

    Args:
      state: float[39], as `agents.environments.metaworld` has it.
      task: its name, such as reach-v3.

    Right and ahead are those of the arm, as it looks at the table.
    """
    state = np.asarray(state, np.float64)
    if state.shape != (39,):
        raise InputError(f"Meta-World's state is [39], not {list(state.shape)}")
    hand, thing, goal = state[:3], state[4:7], state[36:]
    grip = "open" if state[3] >= _OPEN else "closed"
    sentences = [f"The gripper is {grip}."]
    if task.startswith("reach"):
        return f"{sentences[0]} The goal is {_apart(goal - hand)} the gripper."
    name = next((_THINGS[key] for key in _THINGS if task.startswith(key)), "object")
    sentences.append(f"The {name} is {_apart(thing - hand)} the gripper.")
    sentences.append(f"The goal is {_apart(goal - thing)} the {name}.")
    return " ".join(sentences)


def _apart(offset: np.ndarray) -> str:
    """Return how one place [3] lies to another, in words, in metres."""
    sideways = "to the left of", "to the right of"
    words = (sideways, ("behind", "ahead of"), ("below", "above"))
    parts = [
        f"{abs(cm)} cm {pair[int(cm > 0)]}"
        for cm, pair in zip(np.rint(100 * offset).astype(int), words, strict=True)
        if cm
    ]
    return _listed(parts) or "at"


def wordle(state: np.ndarray) -> str:
    """Describe the guesses of a game of Wordle and their marks, letter by letter.

    state: float[60], as `agents.environments.wordle` has it.
    """
    guesses, marks = rules.read(state)
    sentences: list[str] = []
    for number, (guess, marked) in enumerate(zip(guesses, marks, strict=True), 1):
        if set(marked) == {rules.RIGHT}:
            return " ".join([*sentences, f"Guess {number}, {guess}, is the word."])
        sentences.append(f"Guess {number} was {guess}: {_marked(guess, marked)}.")
    if not guesses:
        sentences.append("Nothing has been guessed yet.")
    left = rules.GUESSES - len(guesses)
    rest = "1 guess is" if left == 1 else f"{left or 'No'} guesses are"
    return " ".join([*sentences, f"{rest} left."])


def _marked(guess: str, marks: Sequence[int]) -> str:
    """Return what the marks of a guess mean, in words: letters of one mark together."""
    right: list[str] = []
    elsewhere: list[str] = []
    absent: list[str] = []
    surplus: list[str] = []
    for place, (letter, mark) in enumerate(zip(guess, marks, strict=True)):
        alike = [at for at, other in enumerate(guess) if other == letter]
        name = letter
        if len(alike) > 1:
            name = f"the {('first', 'second', 'third')[alike.index(place)]} {letter}"
        if mark == rules.RIGHT:
            right.append(name)
        elif mark == rules.ELSEWHERE:
            elsewhere.append(name)
        elif any(marks[at] != rules.ABSENT for at in alike):
            surplus.append(name)
        else:
            absent.append(name)
    parts = [
        f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {meaning}"
        for names, meaning in (
            (right, "right"),
            (elsewhere, "in the word but elsewhere"),
            (absent, "not in the word"),
            (surplus, f"{'one ' * (len(surplus) == 1)}too many"),
        )
        if names
    ]
    return "; ".join(parts)
