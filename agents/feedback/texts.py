"""Questions about a world in words, and texts of walks to train a language model on.

A question ends where the answer begins; an answer is one of a few strings, or the
caption of the next observation. `NOTHING` in the place of a goal and of captions makes
the question without content. Change `VERSION` with any text.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from agents.demonstrate import seeds
from agents.environments.captioned import Moves, Permuted
from agents.environments.captions import captioner
from agents.environments.worlds import World, parse, world
from agents.feedback.walks import Walk, walk
from agents.recording import SPLITS
from polyview.errors import InputError, check_range, nearest

VERSION = "1"
NOTHING = "N/A"
LETTERS = ("A", "B")
TASKS = ("captions", "policy")
_LISTED = 100  # actions; of more, some stand for all
_BEGIN = "You act in a small world, one step at a time.\n"


def acting(goal: str, caption: str, actions: Sequence[str]) -> str:
    """Ask for the next action."""
    return (
        f"{_BEGIN}{_choices(actions)}Goal: {goal}\nObservation: {caption}\nNext action:"
    )


def following(caption: str, action: str) -> str:
    """Ask for the caption of the next observation."""
    return f"{_BEGIN}Observation: {caption}\nAction: {action}\nNext observation:"


def choosing(caption: str, action: str, first: str, second: str) -> str:
    """Ask which of two captions follows, for one of `LETTERS`."""
    return (
        f"{_BEGIN}Observation: {caption}\nAction: {action}\n"
        f"Which observation is next?\nA: {first}\nB: {second}\nAnswer:"
    )


def leading(before: str, after: str, actions: Sequence[str]) -> str:
    """Ask for the action between two captions."""
    return (
        f"{_BEGIN}{_choices(actions)}Observation: {before}\n"
        f"Next observation: {after}\nAction between:"
    )


def _choices(actions: Sequence[str]) -> str:
    some = ", ".join(actions[:_LISTED])
    return f"Actions: {some}{' and others' * (len(actions) > _LISTED)}\n"


def made(name: str, permute: int | None = None) -> World:
    """Return a world with actions that have names.

    permute: for BabyAI, see `agents.environments.captioned:Permuted`. Raises InputError
    for an unknown world.
    """
    kind, task = parse(name)
    if permute is not None:
        if kind != "babyai":
            raise InputError(f"only actions of BabyAI are permuted, not of {name}")
        return Permuted(task, permute)
    own = world(name)
    return Moves(own) if kind == "metaworld" else own


def walks(
    room: World,
    split: str,
    episodes: int,
    *,
    seed: int = 0,
    random: float = 0.0,
    goal_only: bool = False,
) -> Iterator[Walk]:
    """Yield walks of one action or more, as many as asked for; see `walk`.

    split: no two have an episode in common. Raises InputError for an unknown split, and
    for continuous actions, of which the expert's have no name.
    """
    if split not in SPLITS:
        raise InputError(f"split={split!r}{nearest(split, SPLITS)}")
    if room.actions is None or isinstance(room, Moves):
        raise InputError(
            f"the expert of {room.name} takes actions that have no names; its walks "
            "cannot be told"
        )
    caption = captioner(room.name, goal_only)
    found = (
        walk(room, one, caption=caption, random=random, valued=False)
        for one in seeds(seed, SPLITS.index(split), 0)
    )
    return islice((one for one in found if len(one.moments) > 1), episodes)


class Texts:
    """Questions and answers of walks, as a source: {"prompt", "answer", "episode"}.

    With task "captions" the next caption is the answer to a caption and an action, and
    the expert's actions are mixed with drawn ones; with "policy" the action of an
    expert to a goal and a caption. An answer begins with a space. Everything follows
    from the arguments; walks are played when it is made.

    Args:
      env: the name of a world.
      task: of `TASKS`.
      episodes: walks.
      split: of their seeds.
      seed: of the walks.
      random: probability of a drawn action, of captions.
      permute, goal_only: see `made` and `agents.environments.captions:captioner`.
    """

    def __init__(
        self,
        env: str,
        task: str,
        episodes: int,
        *,
        split: str = "train",
        seed: int = 0,
        random: float = 0.5,
        permute: int | None = None,
        goal_only: bool = False,
    ):
        check_range(1, episodes=episodes)
        if task not in TASKS:
            raise InputError(f"task={task!r}{nearest(task, TASKS)}")
        self.targets: dict[str, dict[str, Any]] = {}
        self._about = f"{env}, {task}, {split}"
        room = made(env, permute)
        shown = walks(
            room,
            split,
            episodes,
            seed=seed,
            random=random if task == "captions" else 0.0,
            goal_only=goal_only,
        )
        told: Callable[[Walk, Sequence[str]], Iterator[tuple[str, str]]]
        told = _next_captions if task == "captions" else _expert_actions
        names = room.actions or ()
        self._rows = [
            {"prompt": prompt, "answer": f" {answer}", "episode": number}
            for number, one in enumerate(shown)
            for prompt, answer in told(one, names)
        ]
        text = json.dumps([VERSION, self._rows])
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._rows[index])

    def __repr__(self) -> str:
        return f"Texts({self._about}: {len(self)})"


def _next_captions(shown: Walk, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for now, then in zip(shown.moments, shown.moments[1:], strict=False):
        yield following(now.caption, names[now.action]), then.caption


def _expert_actions(shown: Walk, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for now in shown.moments[:-1]:
        asked = acting(shown.instruction, now.caption, names)
        yield asked, names[now.action]
