"""Every word of the benchmark: names, skills, and phrasings of instructions.

A phrasing has slots: {a} {b} {c} are categories, {an_a} {an_b} the same with an
article; {at} is a receptacle and {on} the same with its preposition, {at2} {on2} {at3}
{on3} others. Those of one family alone are beside it.
"""

import re
from typing import NamedTuple

RECEPTACLES = (
    "fridge",
    "cabinet",
    "sink",
    "counter",
    "table",
    "couch",
    "shelf",
    "desk",
)
DOORS = 2  # the first receptacles are closed until they are opened
PREPOSITIONS = ("in", "in", "in", "on", "on", "on", "on", "on")

# The last of each group is held out.
GROUPS = {
    "fruit": ("apple", "banana", "cherry", "pear"),
    "dish": ("cup", "bowl", "plate", "teapot"),
    "toy": ("ball", "robot", "duck", "kite"),
    "tool": ("hammer", "drill", "saw", "wrench"),
}
ANY_OF = {
    "fruit": "a piece of fruit",
    "dish": "a dish",
    "toy": "a toy",
    "tool": "a tool",
}
ALL_OF = {"fruit": "fruit", "dish": "dishes", "toy": "toys", "tool": "tools"}
SEEN = tuple(name for group in GROUPS.values() for name in group[:-1])
HELD_OUT = tuple(group[-1] for group in GROUPS.values())
CATEGORIES = SEEN + HELD_OUT

SKILLS = (
    *(f"go to the {name}" for name in RECEPTACLES),
    *(f"pick up the {name}" for name in CATEGORIES),
    *(
        f"place {preposition} the {name}"
        for preposition, name in zip(PREPOSITIONS, RECEPTACLES, strict=True)
    ),
    *(f"open the {name}" for name in RECEPTACLES[:DOORS]),
    *(f"close the {name}" for name in RECEPTACLES[:DOORS]),
)


class Phrasings(NamedTuple):
    """Ways to say the instructions of a family: in training, and in evaluation only."""

    train: tuple[str, ...]
    evaluation: tuple[str, ...]


_SIMPLE = (
    "Put the {a} {on}.",
    "Place the {a} {on}.",
    "Move the {a} to the {at}.",
    "Bring the {a} over to the {at}.",
    "I want the {a} {on}.",
    "Could you set the {a} {on}?",
    "The {a} should be {on}.",
    "Carry the {a} to the {at}, please.",
    "Find the {a} and leave it {on}.",
    "Go get the {a}, then put it {on}.",
)

# By family. The first nine are those of training.
PHRASINGS = {
    "one": Phrasings(
        _SIMPLE,
        (
            "Make sure that the {a} ends up {on}.",
            "The {at} is where the {a} belongs.",
            "Would you mind relocating the {a} to the {at}?",
            "My {a} is needed {on}.",
            "Deliver one {a} to the {at}.",
        ),
    ),
    # {src}: where it is, {was}: the same with its preposition
    "from": Phrasings(
        (
            "Take the {a} from the {src} to the {at}.",
            "Move the {a} that is {was} to the {at}.",
            "Put the {a} from the {src} {on}.",
            "The {a} {was} should be {on}.",
            "Go to the {src}, pick up the {a} and place it {on}.",
            "There is {an_a} {was}; bring it to the {at}.",
            "Carry the {a} over from the {src} to the {at}.",
            "Get the {a} {was} and set it {on}.",
            "I left the {a} {was}, but I want it {on}.",
        ),
        (
            "You will see {an_a} {was}; its home is the {at}.",
            "From the {src}, transfer the {a} to the {at}.",
            "Do not leave the {a} {was}: it goes {on}.",
            "Relocate the {a} currently {was} to the {at}.",
        ),
    ),
    # {kind}: of a group, {some}: one of it
    "kind": Phrasings(
        (
            "Put {some} {on}.",
            "Bring {some} to the {at}.",
            "I need {some} {on}.",
            "Place any {kind} {on}.",
            "Find {some} and move it to the {at}.",
            "Could you leave {some} {on}?",
            "Move one {kind} to the {at}, whichever you like.",
            "Set {some} {on}, please.",
            "There should be {some} {on}.",
        ),
        (
            "The {at} could use {some}.",
            "Choose {some} and deliver it to the {at}.",
            "The first {kind} you come across should end up {on}.",
            "Get me {some}; I will be waiting at the {at}.",
        ),
    ),
    "either": Phrasings(
        (
            "Put {an_a} or {an_b} {on}.",
            "Bring either the {a} or the {b} to the {at}.",
            "Move the {a} to the {at}, or the {b} if you prefer.",
            "I need {an_a} or {an_b} {on}.",
            "Place one of these {on}: the {a} or the {b}.",
            "Either the {a} or the {b} should be {on}.",
            "Find {an_a} or {an_b} and leave it {on}.",
            "Carry the {a} or the {b} to the {at}.",
        ),
        (
            "Whichever you see first, the {a} or the {b}, goes {on}.",
            "The {at} needs just one thing, {an_a} or {an_b}.",
            "Between the {a} and the {b}, choose one and drop it {on}.",
            "Let the {a} or else the {b} end up {on}.",
        ),
    ),
    "two": Phrasings(
        (
            "Put the {a} {on} and the {b} {on2}.",
            "Move the {a} to the {at} and the {b} to the {at2}.",
            "Place the {a} {on}, then the {b} {on2}.",
            "First bring the {a} to the {at}, then the {b} to the {at2}.",
            "I want the {a} {on} and the {b} {on2}.",
            "The {a} should be {on} and the {b} {on2}.",
            "Carry the {a} to the {at}; after that, carry the {b} to the {at2}.",
            "Could you set the {a} {on} and the {b} {on2}?",
        ),
        (
            "The {at} gets the {a}, and the {at2} gets the {b}.",
            "Two jobs: the {a} goes {on}, the {b} goes {on2}.",
            "While the {a} belongs {on}, the {b} belongs {on2}.",
            "Make sure the {a} ends up {on} and the {b} ends up {on2}.",
        ),
    ),
    "pair": Phrasings(
        (
            "Put the {a} and the {b} {on}.",
            "Bring both the {a} and the {b} to the {at}.",
            "Move the {a} and also the {b} to the {at}.",
            "I want the {a} and the {b} {on}.",
            "Place the {a} {on}, and the {b} too.",
            "The {a} and the {b} should be {on}.",
            "Find the {a} and the {b} and leave them {on}.",
            "Carry the {a} to the {at}, then do the same with the {b}.",
        ),
        (
            "Gather two things {on}: the {a} and the {b}.",
            "The {at} is where the {a} and the {b} belong.",
            "Both {a} and {b} must end up {on}.",
            "Deliver the {a} together with the {b} to the {at}.",
        ),
    ),
    "open": Phrasings(
        (
            "Open the {at}.",
            "Please open the {at} door.",
            "I want the {at} open.",
            "Could you open up the {at}?",
            "Go to the {at} and open it.",
            "The {at} should be open.",
            "Get the {at} open for me.",
            "Open the door of the {at}.",
            "Leave the {at} open.",
            "Walk over to the {at} and open the door.",
        ),
        (
            "I would like to see what is inside the {at}.",
            "Swing the door of the {at} wide.",
            "The {at} must not stay shut.",
            "Give me access to the inside of the {at}.",
        ),
    ),
    "close": Phrasings(
        (
            "Close the {at}.",
            "Please close the {at} door.",
            "I want the {at} closed.",
            "Could you shut the {at}?",
            "Go to the {at} and close it.",
            "The {at} should be shut.",
            "Get the {at} closed for me.",
            "Close the door of the {at}.",
            "Leave the {at} closed.",
            "Walk over to the {at} and shut the door.",
        ),
        (
            "Somebody forgot the door of the {at}; fix that.",
            "The {at} must not stay open.",
            "Nobody should be able to look into the {at}.",
            "Push the door of the {at} back to where it belongs.",
        ),
    ),
    "store": Phrasings(
        (
            "Put the {a} {on} and close it.",
            "Place the {a} {on}, then shut the door.",
            "Bring the {a} to the {at} and leave the door closed.",
            "Store the {a} {on} behind a closed door.",
            "I want the {a} {on} with the door shut.",
            "Move the {a} to the {at}, and close the {at} afterwards.",
            "Set the {a} {on}; the door must be closed at the end.",
            "The {a} should be {on}, and the {at} closed.",
        ),
        (
            "Once the {a} is {on}, do not leave the door open.",
            "Shut the {a} away {on}.",
            "The closed {at} is where the {a} belongs.",
            "After you have put the {a} {on}, shut it again.",
        ),
    ),
    # {description}: of a
    "described": Phrasings(
        (), tuple(re.sub("[Tt]he {a}", "{description}", text) for text in _SIMPLE)
    ),
    # {side}: left or right of {at}
    "beside": Phrasings(
        (),
        (
            "Put the {a} at the place {side} of the {at}.",
            "Move the {a} to whatever stands {side} of the {at}.",
            "Bring the {a} to the spot just {side} of the {at}.",
            "The {a} should be at the next place to the {side} of the {at}.",
            "Place the {a} on the furniture directly {side} of the {at}.",
            "I want the {a} one place to the {side} of the {at}.",
            "Carry the {a} to the {side} neighbour of the {at}, please.",
            "The thing to the {side} of the {at} is where the {a} should be.",
        ),
    ),
    # {need}: a sentence of `NEEDS` without its end
    "need": Phrasings(
        (),
        (
            "{need}. Bring something for that to the {at}.",
            "{need}; leave what helps {on}.",
            "{need}. Put the right thing {on}.",
            "{need}, so set something useful {on}.",
            "{need}. I will look for it {on}.",
            "{need}. Can you bring what it takes to the {at}?",
            "{need}; what I am missing should be {on}.",
            "{need}. Find what is needed and move it to the {at}.",
        ),
    ),
    # {aside}: a sentence of `ASIDES`
    "aside": Phrasings(
        (),
        (
            *(f"{{aside}} {text}" for text in _SIMPLE[:6]),
            *(f"{text} {{aside}}" for text in _SIMPLE[:6]),
        ),
    ),
    "three": Phrasings(
        (),
        (
            "Put the {a} {on}, the {b} {on2} and the {c} {on3}.",
            "Move the {a} to the {at}, the {b} to the {at2} and the {c} to the {at3}.",
            "I want the {a} {on}, the {b} {on2} and the {c} {on3}.",
            "Place the {a} {on}, then the {b} {on2}, then the {c} {on3}.",
            "The {a} should be {on}, the {b} {on2} and the {c} {on3}.",
            "Set the {a} {on}, the {b} {on2}, the {c} {on3}.",
            "Could you put the {a} {on}, the {b} {on2} and the {c} {on3}?",
            "Three things: the {a} {on}, the {b} {on2}, the {c} {on3}.",
        ),
    ),
    # {kind}: of a group, {all}: more of it
    "all": Phrasings(
        (),
        (
            "Put all the {all} {on}.",
            "Move all the {all} to the {at}.",
            "Every {kind} should be {on}.",
            "Bring each {kind} to the {at}.",
            "Collect all the {all} {on}.",
            "I want all of the {all} {on}.",
            "Carry every {kind} to the {at}, please.",
            "Leave no {kind} anywhere but {on}.",
        ),
    ),
    # {door}, and {is}: open or closed
    "if_door": Phrasings(
        (),
        (
            "If the {door} is {is}, put the {a} {on}, otherwise {on2}.",
            "Put the {a} {on} if the {door} is {is}, or else {on2}.",
            "Is the {door} {is}? Then move the {a} to the {at}, if not, to the {at2}.",
            "Move the {a} to the {at} if the {door} is {is}, otherwise to the {at2}.",
            "If the {door} is {is}, bring the {a} to the {at}, or else to the {at2}.",
            "Check the {door}: if it is {is}, the {a} goes {on}, otherwise {on2}.",
            "Should the {door} be {is}, place the {a} {on}, otherwise {on2}.",
            "The {a} goes {on} when the {door} is {is}, and {on2} when it is not.",
        ),
    ),
    # {was}: where a may be
    "if_there": Phrasings(
        (),
        (
            "If there is {an_a} {was}, put it {on}, otherwise the {b}.",
            "Move the {a} {was} to the {at} if there is one, otherwise the {b}.",
            "Is there {an_a} {was}? Then bring it to the {at}, if not, the {b}.",
            "Look {was}: if you see {an_a}, put it {on}, otherwise the {b}.",
            "Should {an_a} be {was}, place it {on}, otherwise the {b}.",
            "If you find {an_a} {was}, carry it to the {at}, if not, the {b}.",
            "With {an_a} {was}, take it to the {at}; without one, take the {b}.",
            "Bring {an_a} to the {at} if one is {was}, or else the {b}.",
        ),
    ),
}
FAMILIES = tuple(PHRASINGS)

# In `described`. Training says nothing of what objects look like or are good for.
DESCRIPTIONS = {
    "apple": (
        "the crunchy fruit with a core",
        "the fruit that fell on Newton",
        "the fruit that cider is made of",
        "the fruit that keeps doctors away",
    ),
    "banana": (
        "the long bent fruit",
        "the fruit that monkeys love",
        "the fruit with a slippery peel",
        "the fruit that you peel",
    ),
    "cherry": (
        "the small fruit that grows in pairs",
        "the fruit on top of a sundae",
        "the little fruit with a stone",
        "the fruit of a Black Forest cake",
    ),
    "cup": (
        "the thing to drink coffee from",
        "the small vessel with a handle",
        "the thing that tea is drunk from",
        "the drinking vessel",
    ),
    "bowl": (
        "the deep dish for soup",
        "the round vessel for cereal",
        "the thing to toss a salad in",
        "the dish for porridge",
    ),
    "plate": (
        "the flat round dish",
        "the thing that a steak is served on",
        "the dish for a slice of pizza",
        "the disc to eat from",
    ),
    "ball": (
        "the thing that bounces",
        "the round thing to throw",
        "the sphere to play with",
        "the thing that players kick",
    ),
    "robot": (
        "the mechanical man",
        "the toy with antennas",
        "the machine that looks like a person",
        "the little android",
    ),
    "duck": (
        "the bath toy with a beak",
        "the toy that swims and quacks",
        "the toy bird",
        "the rubber animal for the tub",
    ),
    "hammer": (
        "the thing to hit nails with",
        "the tool with a heavy head",
        "the tool of a blacksmith",
        "the tool that pounds",
    ),
    "drill": (
        "the tool that makes holes",
        "the tool with a spinning tip",
        "the machine that bores into walls",
        "the tool that takes a bit",
    ),
    "saw": (
        "the tool with teeth",
        "the tool that cuts wood",
        "the blade for logs",
        "the thing to halve a board with",
    ),
}

# For the family `need`: each statement, and the objects of which any one meets it.
NEEDS = {
    "I am thirsty": ("cup",),
    "I would love some hot coffee": ("cup",),
    "I am hungry": ("apple", "banana", "cherry"),
    "I am in the mood for something sweet and healthy": ("apple", "banana", "cherry"),
    "I am going to feed a monkey": ("banana",),
    "I want to keep the doctor away": ("apple",),
    "My sundae has nothing on top yet": ("cherry",),
    "I have made soup": ("bowl",),
    "I am about to have cereal with milk": ("bowl",),
    "My steak is ready to be served": ("plate",),
    "A slice of pizza is waiting for me": ("plate",),
    "We are off to play football": ("ball",),
    "I want to practise my throws": ("ball",),
    "The baby wants a friend in the bath": ("duck",),
    "I am writing a story about androids": ("robot",),
    "The children are bored": ("ball", "robot", "duck"),
    "I have to drive a nail into the wall": ("hammer",),
    "I have to make a hole in the wall": ("drill",),
    "This wooden board is too long": ("saw",),
    "I have repairs to do": ("hammer", "drill", "saw"),
}

# In `aside`. {b} is something else than {a}.
ASIDES = (
    "It rained all morning.",
    "My neighbour plays the violin.",
    "I once lived by the sea.",
    "The train was late again.",
    "Our cat sleeps all day.",
    "The clock in the hall is slow.",
    "I met an old friend today.",
    "My sister studies law.",
    "Dinner is at seven.",
    "I have forgotten my umbrella.",
    "The post has not come yet.",
    "My uncle used to be a sailor.",
    "I like the {b} a lot.",
    "My aunt gave me the {b}.",
    "I do not need the {b} today.",
    "The {b} was quite cheap.",
)
