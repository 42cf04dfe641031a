"""Wordle marks as the original, its expert heeds all marks, and captions say them."""

import itertools
import re

import numpy as np
import pytest

from agents import demonstrate, recording
from agents.environments import captions, wordle
from agents.environments.rows import rows
from agents.environments.wordle import ABSENT, ELSEWHERE, RIGHT, WORDS, marks
from agents.environments.worlds import world
from agents.evaluation import success
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError
from polyview.rl.rows import seed_of

SIGNS = {".": ABSENT, "?": ELSEWHERE, "!": RIGHT}


@pytest.fixture(scope="module")
def game():
    return world("wordle:english")


def spelt(word):
    return np.array([ord(letter) - ord("a") + 1 for letter in word])


def marked(guess, hidden):
    """The marks of a guess by counting letters, as the original is described."""
    found, left = {}, {}
    for letter in hidden:
        left[letter] = left.get(letter, 0) + 1
    for place in range(5):
        if guess[place] == hidden[place]:
            found[place] = RIGHT
            left[guess[place]] -= 1
    for place in range(5):
        if place not in found:
            more = left.get(guess[place], 0) > 0
            found[place] = ELSEWHERE if more else ABSENT
            left[guess[place]] = left.get(guess[place], 0) - more
    return [found[place] for place in range(5)]


@pytest.mark.parametrize(
    "guess, hidden, signs",
    [
        ("crane", "crane", "!!!!!"),
        ("speed", "abide", "..?.?"),  # one of two letters, the left one
        ("speed", "erase", "?.??."),
        ("allee", "apple", "!?..!"),  # the last e is right, so that no other is there
        ("geese", "eerie", ".!?.!"),
        ("level", "hello", "?!..?"),
    ],
)
def test_repeated_letters_are_marked_as_in_the_original(guess, hidden, signs):
    wanted = [SIGNS[sign] for sign in signs]
    assert (
        marks(spelt(guess), spelt(hidden)).tolist() == wanted == marked(guess, hidden)
    )


def test_marks_are_those_of_a_loop_that_counts(rng):
    few = ["".join("abc"[n] for n in row) for row in rng.integers(3, size=(60, 5))]
    every = [*few, *rng.choice(WORDS, 40)]
    letters = np.stack([spelt(word) for word in every])
    found = marks(letters[:, None], letters[None])
    wanted = [[marked(guess, hidden) for hidden in every] for guess in every]
    np.testing.assert_array_equal(found, wanted)


def test_there_are_500_words_of_five_letters():
    assert len(WORDS) == len(set(WORDS)) == 500 and list(WORDS) == sorted(WORDS)
    assert all(re.fullmatch("[a-z]{5}", word) for word in WORDS)


def test_a_game_ends_with_the_word_or_with_six_guesses(game):
    first = game.reset(100)
    assert first["instruction"] and not first["state"].any()
    assert first["state"].shape == game.shapes["state"]
    outcome = game.step(3)  # the first word of validation, for the second time
    assert outcome.reward == 1 and outcome.finished == (1.0, 1) and game.success
    assert wordle.read(game.arrived["state"]) == ([WORDS[3]], [[RIGHT] * 5])
    assert not game.observation["state"].any()  # the next one has begun
    game.reset(100)
    for number in range(6):
        assert not game.arrived["state"][10 * number :].any()
        outcome = game.step(4 + number)
        assert (outcome.finished is not None) == (number == 5) and not game.success
    words, found = wordle.read(game.arrived["state"])
    assert words == list(WORDS[4:10])
    assert found == [marked(word, WORDS[3]) for word in words]
    dense = world("wordle:english", reward="dense")
    dense.reset(0)
    assert dense.step(4).reward == 0 and dense.step(3).reward == pytest.approx(0.7)


def hidden_words(game, seeds, games=1):
    """The numbers of the words that some games from each seed hide."""
    found = []
    for seed in seeds:
        game.reset(seed)
        found.append(game.environment.hidden)
        for _ in range(games - 1):
            game.step(game.environment.hidden)
            found.append(game.environment.hidden)
    return found


def hide(game, word):
    """Begin a game that hides a word."""
    every = (seed for first in (0, 2**20, 2**31) for seed in range(first, first + 900))
    game.reset(next(seed for seed in every if WORDS[wordle.hidden(seed)] == word))


def test_training_validation_and_test_hide_words_of_their_own(game):
    """In recorded episodes, in evaluations, in rows of play, and in games after that
    of a seed; all words are hidden, and evaluations play each once."""
    recorded = [
        hidden_words(game, itertools.islice(demonstrate.seeds(5, split, 0), 3000))
        for split in range(3)
    ]
    for split, size in enumerate((300, 100, 100)):
        shares = np.bincount(recorded[split], minlength=500)[[*set(recorded[split])]]
        assert len(shares) == size and shares.max() < 4 * 3000 / size
    parts = [set(words) for words in recorded]
    assert set().union(*parts) == {*range(500)} and sum(map(len, parts)) == 500
    for name, part in (("validation", 1), ("test", 2)):
        first = success._SEEDS[name]
        evaluated = hidden_words(game, range(first, first + 100))
        assert set(evaluated) == parts[part] and len(set(evaluated)) == 100
        last = hidden_words(game, range(first + 2**20 - 50, first + 2**20))
        assert set(last) <= parts[part]
    played = [seed_of(3, row, episode) for row in range(20) for episode in range(20)]
    assert set(hidden_words(game, played)) <= parts[0]
    for seed, part in ((0, 1), (2**20, 2), (played[0], 0), (2**22 + 3, 1)):
        later = set(hidden_words(game, [seed], games=60))
        assert later <= parts[part] and len(later) > 30


def test_seed_and_guesses_determine_a_game(game):
    def prints(seed, *guesses):
        game.reset(seed)
        found = [game.fingerprint()]
        for guess in guesses:
            game.step(guess)
            found.append(game.fingerprint())
        return np.stack(found)

    wanted = prints(7, 1, 2, 3)
    assert len(np.unique(wanted, axis=0)) == 4
    prints(8, 5)
    np.testing.assert_array_equal(prints(7, 1, 2, 3), wanted)
    assert (prints(8, 1, 2, 3) != wanted).any(1).all()


def test_the_expert_guesses_what_all_marks_allow(game):
    lengths = []
    for seed in [*range(0, 100, 8), *range(2**31, 2**31 + 900, 72)]:
        episode = demonstrate.demonstrate(game, seed)
        assert episode is not None
        said = [WORDS[action] for action in episode["actions"]]
        lengths.append(len(said))
        word = WORDS[wordle.hidden(seed)]
        assert said[-1] == word
        for number, guess in enumerate(said):
            for before in said[:number]:
                assert marked(before, guess) == marked(before, word)
    assert np.mean(lengths) < 3.6 and max(lengths) <= 6


def test_the_expert_guesses_what_tells_most_words_apart(game):
    hide(game, "crane")
    game.step(WORDS.index("route"))
    known = marked("route", "crane")
    allowed = [word for word in WORDS if marked("route", word) == known]

    def left(guess):
        seen = [tuple(marked(guess, word)) for word in allowed]
        return sum(seen.count(one) for one in seen)

    best = min(allowed, key=left)  # the first of several
    assert len(allowed) > 3 and WORDS[game.environment.solve()] == best


def read_caption(text):
    """The guesses and marks that a caption says."""
    words, found = [], []
    for guess, said in re.findall(r"Guess \d was (\w+): ([^.]+)\.", text):
        row = {}
        for part in said.split("; "):
            names, _, meaning = re.fullmatch("(.+) (is|are) (.+)", part).groups()
            sign = {"right": RIGHT, "in the word but elsewhere": ELSEWHERE}
            for name in re.split(", | and ", names):
                *which, letter = name.removeprefix("the ").split()
                order = ["first", "second", "third"].index(which[0]) if which else 0
                places = [at for at in range(5) if guess[at] == letter]
                assert bool(which) == (len(places) > 1)
                row[places[order]] = sign.get(meaning, ABSENT)
                # That a letter is not in the word is said only if it is not.
                others = {marked_ for at, marked_ in row.items() if at in places}
                if meaning == "not in the word":
                    assert others == {ABSENT}
        words.append(guess)
        found.append([row[at] for at in range(5)])
    return words, found


def test_captions_say_all_marks_and_the_guesses_left(game, rng):
    assert (
        captions.wordle(np.zeros(60, np.float32))
        == "Nothing has been guessed yet. 6 guesses are left."
    )
    for seed in rng.integers(500, size=20):
        game.reset(int(seed))
        describe = captions.captioner("wordle:english")
        for number in range(1, 6):
            guess, right = int(rng.integers(500)), wordle.hidden(int(seed))
            game.step((guess + (guess == right)) % 500)
            text = describe(game)
            assert read_caption(text) == wordle.read(game.arrived["state"])
            left = f"{6 - number} guesses are" if number < 5 else "1 guess is"
            assert text.endswith(f" {left} left.")
            assert not captions.shows_object(text)
    hide(game, "table")
    game.step(WORDS.index("toast"))
    assert captions.captioner("wordle:english")(game) == (
        "Guess 1 was toast: the first t is right; a is in the word but elsewhere; "
        "o and s are not in the word; the second t is one too many. 5 guesses are left."
    )
    state = np.zeros(60, np.float32)
    state[:10] = [*spelt("table"), *[RIGHT] * 5]
    assert captions.wordle(state) == "Guess 1, table, is the word."


def test_games_are_recorded_and_played_as_rows(tmp_path):
    small = {"episodes": 3, "validation": 1, "test": 1}
    demonstrate.prepare(["wordle:english"], tmp_path / "games", **small)
    described = recording.describe("games", tmp_path)
    assert described["action"]["names"] == list(WORDS)
    episode = ArrayRecord("games", "train", tmp_path)[0]
    words, _ = wordle.read(episode["state"][-1])
    assert words == [WORDS[action] for action in episode["actions"]]
    several = rows("wordle:english", 2, 0)
    several.begin()
    for number in range(6):
        step = several.step(np.array([number, number]))
    assert step.truncated.all() and not step.terminated.any()


def test_wrong_input_is_refused(game):
    for action in (-1, 500, 1.0, [1]):
        with pytest.raises(InputError, match=r"actions 0 \.\. 499"):
            game.step(action)
    with pytest.raises(InputError, match="no task 'english5'.*'english'"):
        world("wordle:english5")
    with pytest.raises(InputError, match="pixels"):
        world("wordle:english", pixels=32)
    with pytest.raises(InputError, match=r"\[60\], not \[59\]"):
        captions.wordle(np.zeros(59))
    assert game.render().shape == (194, 162, 3)
