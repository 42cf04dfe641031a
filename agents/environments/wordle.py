"""Wordle with 500 words of this project: six guesses at a hidden one.

    state   float32[60]   for each of six guesses ten numbers: its letters, 1 to 26, and
                          their marks, 1 to 3 as below; zeros where nothing is guessed

An action is a word of `WORDS`, and any may be guessed at any time. The hidden one is
among them; training, validation and test each hide words of their own. After each guess
every letter is marked: RIGHT in its place; ELSEWHERE if the hidden word has it, in a
place that is not guessed right, and as often at most as it is there, from the left;
else ABSENT.
"""

import functools
from typing import Any

import numpy as np

from agents.environments.worlds import Observation
from polyview.errors import InputError, nearest
from polyview.rl import episodes
from polyview.rl.environment import Outcome

# Common words of five letters, American and British alike.
WORDS = tuple(
    """
about above actor adult after again agent agree ahead alarm album alert alike alive
allow alone along anger angle angry apart apple apply arena argue arise arrow audio
avoid awake award aware bacon baker basic beach beard beast begin being below bench
berry birth black blade blame blank blind block blood board boast bound brain brand
brass brave bread break brick bride brief bring broad brown brush build bunch cabin
cable camel candy canoe carry catch cause chain chair chalk charm chart chase cheap
check cheek cheer chess chest chief child claim class clean clear clerk climb clock
close cloth cloud coach coast comic count court cover crack craft crane crash cream
crime cross crowd crown cruel crust curve cycle daily dairy dance death delay depth
diary dirty dough dozen drama dream dress drill drink drive eager eagle early earth
eight elbow empty enemy enjoy enter entry equal error event every exact extra faith
false fancy feast fence fever field fifth fight final first flash flood floor flour
focus force forth forty found frame fresh front frost fruit funny ghost giant given
glass glove grade grand grape graph grass great green greet group guard guess guest
guide habit happy heart heavy hello hobby honey horse hotel house human hurry ideal
image inner issue jelly joint judge juice knife knock known label large later laugh
learn least leave lemon level lever light limit linen liver local loose lower lucky
lunch magic major maker march match maybe mayor medal media melon metal model money
month motor mount mouse mouth movie music nerve never night noble noise north nurse
oasis ocean offer often olive onion order other outer owner paint panel paper party
pasta patch pause peace pearl phone photo piano piece pilot place plain plane plant
plate plaza point pound power press price pride print prize proof proud pupil queen
quick quiet quite quote radio raise ranch range rapid reach ready refer relax reply
right river roast robot rocky rough round route royal rural salad sauce scale scarf
scene scent scope score scout seize sense serve seven shade shake shape share sharp
sheep sheet shelf shell shift shine shirt shock shore short shout shown sight silly
skill skirt sleep slice slide small smart smell smile smoke snake solid solve sorry
sound south space spare spark speak speed spell spend spice spoon sport staff stage
stair stake stand start state steam steel stick still stone store storm story stove
straw strip study stuff style sugar sunny super sweet swift swing sword table taste
teach thank theme there thick thing think third throw thumb tiger tight title toast
today tooth topic torch total touch tough tower trace track trade trail train treat
trend trial tribe trick truck truly trunk trust truth twice uncle under union until
upper urban usage usual valid value video visit vital vivid voice wagon waist waste
watch water whale wheat wheel where which while white whole width woman world worry
worth wound wrist write wrong yacht yield young youth zebra
""".split()
)
GUESSES, LETTERS = 6, 5
ABSENT, ELSEWHERE, RIGHT = 1, 2, 3
TASKS = ("english",)
INSTRUCTION = "guess the hidden word of five letters"

_A = ord("a") - 1  # so that a is 1
_SPELT = np.array([[ord(letter) - _A for letter in word] for word in WORDS])
_WORTH = 0.9  # of the dense reward, that is lost by the last guess

# Of five words in the order of the alphabet three are hidden in training (300), the
# fourth in validation and the fifth in test (100 each, as many as an evaluation plays).
_HIDDEN = tuple(
    tuple(number for number in range(len(WORDS)) if number % 5 in places)
    for places in ((0, 1, 2), (3,), (4,))
)
# Seeds below the first belong to evaluation by validation, below the second by test
# (`agents.evaluation.success`); from there to the third those of recorded episodes, by
# the remainder of 3 (`agents.demonstrate`); all others to training.
_SEEDS = (2**20, 2**22, 2**31)


class Wordle(episodes.Episodes):
    """The game; see `agents.environments.worlds:World`.

    Args:
      task: "english".
      reward: see `agents.environments.worlds`. The dense one is 0 until success, then 1
        less 0.9 of the share of the guesses that were used, as BabyAI's.
      pixels: 0; there are no pictures.

    For the hidden word see `hidden`.
    """

    kind = "wordle"

    def __init__(self, task: str, *, reward: str = "success", pixels: int = 0):
        super().__init__(dense=reward == "dense")
        if task not in TASKS:
            raise InputError(f"Wordle has no task '{task}'{nearest(task, TASKS)}")
        if type(pixels) is not int or pixels:
            raise InputError(f"Wordle has no images of {pixels!r} pixels; leave it out")
        self.environment: Any = Game()
        self.name = f"wordle:{task}"
        self.actions: tuple[str, ...] | None = WORDS
        self.box: tuple[int, float, float] | None = None
        self.limit = GUESSES
        self.shapes: dict[str, tuple[int, ...]] = {"state": (2 * LETTERS * GUESSES,)}
        self.versions = {"numpy": np.__version__}  # the rules are here; it sorts
        self.reset(0)

    def step(self, action: int) -> Outcome:
        """Guess a word, its number in `WORDS`. Raises InputError for no such."""
        state, own, ended, cut, _ = self.environment.step(action)
        self.arrived = self._observed(state)
        self.success = ended
        return self._outcome(own, ended or cut)

    def legal(self) -> None:
        """Return None: any word may be guessed at any time."""

    def fingerprint(self) -> np.ndarray:
        """Return the SHA-256 of all that determines what happens next, uint8[32]."""
        game = self.environment
        return episodes.fingerprint(
            self._seed, self._episode, self._score, game.hidden, game.state
        )

    def render(self) -> np.ndarray:
        """Draw the guesses, a square a letter, uint8[194, 162, 3]; see `draw`."""
        return draw(self.environment.state)

    def _begin(self) -> None:
        self._score, self._steps = 0.0, 0
        word = hidden(self._seed, self._episode)
        self.observation = self._observed(self.environment.begin(word))

    def _observed(self, state: np.ndarray) -> Observation:
        return {"state": state, "instruction": INSTRUCTION}


def hidden(seed: int, episode: int = 0) -> int:
    """Return the number of the word that an episode hides.

    seed, episode: of the last reset, and how many episodes have ended since. They are
    of training, validation or test by the seed, and no two of these share a word. Below
    2**22 as many seeds in a row as there are words in a part play each once.
    """
    validation, test, recorded = _SEEDS
    if seed < test:
        split = 1 if seed < validation else 2
    else:
        split = seed % 3 if seed < recorded else 0
    own, words = episodes.seed_of(seed, episode), _HIDDEN[split]
    # Recorded seeds of a split have one remainder, and so would meet a third of words.
    return words[(own if own < test else own // 3) % len(words)]


class Game:
    """One game after another.

    Attributes:
      hidden: the number of the hidden word.
      state: what is seen; see the module.
    """

    def begin(self, hidden: int) -> np.ndarray:
        """Hide a word, by its number; return what is seen."""
        self.hidden = hidden
        self.state = np.zeros(2 * LETTERS * GUESSES, np.float32)
        self._guesses: list[int] = []
        return self.state

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Guess a word; return state, reward, terminated, truncated and {"success"}.

        Raises InputError for a number that is no word.
        """
        number = np.asarray(action)
        known = len(WORDS)
        if number.shape or number.dtype.kind not in "iu" or not 0 <= number < known:
            raise InputError(f"Wordle has the actions 0 .. {known - 1}, not {action!r}")
        guess = int(number)
        row = 2 * LETTERS * len(self._guesses)
        state = self.state.copy()
        marked = marks(_SPELT[guess], _SPELT[self.hidden])
        state[row : row + 2 * LETTERS] = np.concatenate([_SPELT[guess], marked])
        self.state = state
        self._guesses.append(guess)
        done = guess == self.hidden
        reward = done * (1 - _WORTH * len(self._guesses) / GUESSES)
        cut = len(self._guesses) == GUESSES and not done
        return state, reward, done, cut, {"success": done}

    def solve(self) -> int:
        """Return a word that all marks allow, and that tells most of the others apart.

        Of such words it leaves the fewest, on average over those that are allowed; the
        first of several.
        """
        table, allowed = _table(), np.ones(len(WORDS), bool)
        for guess in self._guesses:
            allowed &= table[guess] == table[guess, self.hidden]
        return _telling(allowed.tobytes())


def marks(guess: Any, hidden: Any) -> np.ndarray:
    """Return the mark of each letter of guesses, int[..., 5]; see the module.

    guess, hidden: letters of words, int[..., 5]; one of them, or both alike.
    """
    guess, hidden = np.broadcast_arrays(guess, hidden)
    found = np.where(guess == hidden, RIGHT, ABSENT)
    free = guess != hidden  # letters of the hidden word that no mark stands for
    for place in range(LETTERS):
        for other in range(LETTERS):
            same = guess[..., place] == hidden[..., other]
            same &= (found[..., place] == ABSENT) & free[..., other]
            found[..., place] = np.where(same, ELSEWHERE, found[..., place])
            free[..., other] &= ~same
    return found


def read(state: np.ndarray) -> tuple[list[str], list[list[int]]]:
    """Return the guesses that a state shows, and the marks of their letters.

    Raises InputError for an array that is no state of Wordle.
    """
    rows = np.asarray(state)
    if rows.shape != (2 * LETTERS * GUESSES,):
        raise InputError(
            f"Wordle's state is [{2 * LETTERS * GUESSES}], not {list(rows.shape)}"
        )
    numbers = rows.reshape(GUESSES, 2, LETTERS).astype(int)
    made = [row for row in numbers if row.any()]
    words = ["".join(chr(_A + letter) for letter in row[0]) for row in made]
    return words, [row[1].tolist() for row in made]


def draw(state: np.ndarray) -> np.ndarray:
    """Draw guesses for people, uint8[194, 162, 3]: marks by colours, as in the game."""
    import cv2

    side, gap = 30, 2
    size = (GUESSES * (side + gap) + gap, LETTERS * (side + gap) + gap, 3)
    image = np.full(size, 255, np.uint8)
    colours = {0: (225,) * 3, ABSENT: (120, 124, 126), ELSEWHERE: (201, 180, 88)}
    colours[RIGHT] = (106, 170, 100)
    words, marked = read(state)
    for row in range(GUESSES):
        for place in range(LETTERS):
            top, left = (gap + at * (side + gap) for at in (row, place))
            mark = marked[row][place] if row < len(words) else 0
            image[top : top + side, left : left + side] = colours[mark]
            if mark:
                letter = words[row][place].upper()
                at = (left + 6, top + side - 7)
                cv2.putText(image, letter, at, 0, 0.75, (255,) * 3, 2, cv2.LINE_AA)
    return image


@functools.cache
def _table() -> np.ndarray:
    """Return the marks of each guess against each word, as numbers uint8[500, 500]."""
    found = marks(_SPELT[:, None], _SPELT[None]) - 1
    return (found @ 3 ** np.arange(LETTERS)).astype(np.uint8)


@functools.lru_cache(2**12)
def _telling(allowed: bytes) -> int:
    """Return which of the allowed words, bool[500], leaves the fewest of them."""
    which = np.flatnonzero(np.frombuffer(allowed, bool))
    marked = _table()[np.ix_(which, which)]
    left = [np.square(np.bincount(row)).sum() for row in marked]
    return int(which[np.argmin(left)])
