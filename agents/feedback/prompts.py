"""What a language model is asked about observations, in words.

Each prompt of a wording begins with the same text, so that a model reads it once. There
stand examples: a small model that is asked without any prefers, surely and often, the
observation that is farther from the goal. What "closer" means is then told by us; which
words name the goal, and which observation is closer to it, is left to the model. Texts
are continued, without the format of a chat.

Change `VERSION` with any text: labels name it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from polyview.errors import InputError, nearest

VERSION = "2"
LETTERS = (" A", " B")  # of answers, each one token
DIGITS = tuple("0123456789")
NOTHING = "N/A"  # a goal without content (Zhao et al. 2021)
_APART = "\n\n"


class Prompt(NamedTuple):
    """shared: begins all prompts of a wording; own: follows, up to the answer.

    The empty line between them begins `own`: read apart, both have the same tokens as
    together. A tokenizer takes newlines at the end of a text for one token, and before
    a word for two.
    """

    shared: str
    own: str

    @property
    def text(self) -> str:
        """All of it."""
        return self.shared + self.own


class Wording(NamedTuple):
    """A question: an instruction, examples of fields with answers, and the fields.

    `fields` are goal, a and b in braces, where the question has them.
    """

    instruction: str
    fields: str
    examples: Sequence[tuple[str, str, str, str]]

    def ask(self, goal: str, a: str, b: str = "") -> Prompt:
        """Return the prompt that the answer follows."""
        shown = [
            f"{_APART}{self.fields.format(goal=goal, a=a, b=b)}{answer}"
            for goal, a, b, answer in self.examples
        ]
        own = _APART + self.fields.format(goal=goal, a=a, b=b)
        return Prompt(self.instruction + "".join(shown), own)


_COMPARED = (
    (
        "go to the grey box",
        "You see a grey box 4 steps ahead and 2 steps to the left.",
        "You see a grey box 1 step ahead.",
        " B",
    ),
    (
        "go to the green key",
        "You see a green key 2 steps to the right.",
        "You see no objects.",
        " A",
    ),
    (
        "go to the red door",
        "You see a closed red door right in front of you.",
        "You see a closed red door 5 steps ahead and 1 step to the right.",
        " A",
    ),
    (
        "go to the purple ball",
        "You see no objects. A wall is right in front of you.",
        "You see a purple ball 3 steps ahead.",
        " B",
    ),
)
WORDINGS = {
    "default": Wording(
        "Which observation is closer to the goal?",
        "Goal: {goal}\nA: {a}\nB: {b}\nCloser:",
        _COMPARED,
    ),
    "explore": Wording(
        "Which observation is newer and more unusual?",
        "A: {a}\nB: {b}\nMore unusual:",
        (
            (
                "",
                "You see no objects.",
                "You see a red box 2 steps ahead; a green key 1 step to the left.",
                " B",
            ),
            (
                "",
                "You see an open blue door 1 step ahead. You carry a grey key.",
                "You see no objects. A wall is right in front of you.",
                " A",
            ),
        ),
    ),
}
RATED = Wording(
    "How close is each observation to the goal, from 0 (far) to 9 (reached)?",
    # The digit is a token of its own, without the space.
    "Goal: {goal}\nObservation: {a}\nCloseness: ",
    (
        ("go to the grey box", "You see a grey box 4 steps ahead.", "", "5"),
        ("go to the green key", "You see no objects.", "", "0"),
        ("go to the red door", "You see a red door right in front of you.", "", "9"),
        ("go to the purple ball", "You see a purple ball 2 steps ahead.", "", "7"),
    ),
)


def comparison(wording: str, goal: str, a: str, b: str) -> Prompt:
    """Return the question which of two captions is preferred.

    wording: a key of `WORDINGS`. Raises InputError for another, and for a goal without
    words where the wording names it.
    """
    if wording not in WORDINGS:
        raise InputError(f"--goal {wording}{nearest(wording, (*WORDINGS, 'shuffled'))}")
    chosen = WORDINGS[wording]
    if "{goal}" in chosen.fields:
        _check_goal(goal)
    return chosen.ask(goal, a, b)


def rating(goal: str, caption: str) -> Prompt:
    """Return the question how close a caption is to a goal, answered by a digit."""
    _check_goal(goal)
    return RATED.ask(goal, caption)


def _check_goal(goal: str) -> None:
    if not goal.strip():
        raise InputError("a pair has an empty goal; prepare its pairs again")
