"""What a language model knows of a world: does it act, predict and explain?

    policy    the share of episodes that it succeeds in, beside chance and the expert
    next      which of two captions follows a caption and an action
    inverse   which action led from a caption to the next

Choices between two captions are asked in both orders, since a model may prefer a place.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.demonstrate import Expert, Failed, expert
from agents.environments.worlds import World
from agents.feedback import texts
from agents.feedback.walks import Walk, drawn
from agents.llm.prompted import Asked
from agents.playing import Lane, play
from polyview.rl.aggregates import success_interval


class Question(NamedTuple):
    """prompts: asked in turn; right: the number of the right answer to the first, the
    others have it in the other order; episode: that it is about."""

    prompts: tuple[str, ...]
    right: int
    episode: int


class Questions(NamedTuple):
    """Questions, and how many moments none was made of since captions are equal."""

    asked: list[Question]
    left_out: int


def next_questions(walks: Sequence[Walk], names: Sequence[str], seed: int) -> Questions:
    """Ask of each action which caption followed: the true one, or another of the walk.

    The other is drawn by the seed among those that differ from the true one. No
    question is made where none does, and where the caption stays as it was.
    """
    rng = np.random.default_rng((seed, 5))
    found, left_out = [], 0
    for episode, walk in enumerate(walks):
        every = list(dict.fromkeys(moment.caption for moment in walk.moments))
        for now, then in zip(walk.moments, walk.moments[1:], strict=False):
            others = [caption for caption in every if caption != then.caption]
            if not others or now.caption == then.caption:
                left_out += 1
                continue
            other = others[int(rng.random() * len(others))]
            about = now.caption, names[now.action]
            prompts = (
                texts.choosing(*about, then.caption, other),
                texts.choosing(*about, other, then.caption),
            )
            found.append(Question(prompts, 0, episode))
    return Questions(found, left_out)


def inverse_questions(walks: Sequence[Walk], names: Sequence[str]) -> Questions:
    """Ask which action lies between two captions, unless they are equal."""
    found, left_out = [], 0
    for episode, walk in enumerate(walks):
        for now, then in zip(walk.moments, walk.moments[1:], strict=False):
            if now.caption == then.caption:
                left_out += 1
                continue
            prompt = texts.leading(now.caption, then.caption, names)
            found.append(Question((prompt,), int(now.action), episode))
    return Questions(found, left_out)


def answer_next(asked: Asked, questions: Sequence[Question]) -> dict[str, Any]:
    """Return accuracy in both orders and in the first alone, and what is preferred.

    asked: answers with `texts.LETTERS`. The score of the true caption is the mean of
    its log odds in both orders, in which a leaning to one letter cancels.
    """
    prompts = [prompt for question in questions for prompt in question.prompts]
    odds = asked.scores(prompts) @ np.array([1.0, -1.0])
    first, second = odds[::2], -odds[1::2]
    episode = np.array([question.episode for question in questions])
    return {
        **_rate((first + second) / 2 > 0, episode),
        "one_order": _rate(first > 0, episode)["rate"],
        "says_first": float(np.mean(odds > 0)),
        "orders_agree": float(np.mean((first > 0) == (second > 0))),
        "chance": 0.5,
    }


def answer_inverse(
    asked: Asked, questions: Sequence[Question], names: Sequence[str]
) -> dict[str, Any]:
    """Return the accuracy over all actions, and beside it that of the commonest one.

    The mean over actions of the accuracy of each (`balanced`) is that of chance for
    whoever always says the same.
    """
    best = asked.scores([one.prompts[0] for one in questions]).argmax(-1)
    right = np.array([question.right for question in questions])
    episode = np.array([question.episode for question in questions])
    kinds = np.unique(right)
    return {
        **_rate(best == right, episode),
        "balanced": float(
            np.mean([np.mean(best[right == one] == one) for one in kinds])
        ),
        "balanced_chance": 1 / len(kinds),
        "chance": 1 / len(names),
        "commonest": float(np.bincount(right).max() / len(right)),
        "asked": {names[one]: int((right == one).sum()) for one in kinds},
        "said": {names[one]: int((best == one).sum()) for one in np.unique(best)},
    }


def played(lanes: Sequence[Lane], asked: Any, views: Any) -> dict[str, Any]:
    """Let a model act until the seeds of all lanes are used; return its success."""
    for number in play(asked, lanes, views):
        if lanes[number].ended:
            lanes[number].over()
    every = sorted(one for lane in lanes for one in lane.played)
    return _successes([success for _, success, _ in every], [n for *_, n in every])


def by_expert(room: World, seeds: Sequence[int], limit: int) -> dict[str, Any]:
    """Return the success of the expert of a world in episodes of `limit` steps."""
    return _run(room, seeds, limit, lambda seed: expert(room))


def by_chance(room: World, seeds: Sequence[int], limit: int) -> dict[str, Any]:
    """Return the success of actions that are drawn evenly, by the seed."""

    def begin(seed: int) -> Expert:
        rng = np.random.default_rng((seed, 6))

        return lambda observation, taken=None: drawn(room, rng)

    return _run(room, seeds, limit, begin)


def _run(room: World, seeds: Sequence[int], limit: int, begin: Any) -> dict[str, Any]:
    won, steps = [], []
    for seed in seeds:
        observation, act = room.reset(seed), begin(seed)
        count, success = 0, False
        while count < limit and not success:
            try:
                outcome = room.step(act(observation))
            except Failed:
                break
            observation, success, count = room.arrived, bool(room.success), count + 1
            if outcome.finished is not None:
                break
        won.append(success)
        steps.append(count)
    return _successes(won, steps)


def _successes(won: Sequence[bool], steps: Sequence[int]) -> dict[str, Any]:
    return {
        "rate": float(np.mean(won)),
        "interval": list(success_interval(sum(map(bool, won)), len(won))),
        "episodes": len(won),
        "steps": float(np.mean(steps)),
    }


def _rate(right: np.ndarray, episode: np.ndarray) -> dict[str, Any]:
    """Return the share of right answers; questions of an episode may be alike.

    The interval is Wilson's, with the number of questions divided by the design effect
    (Dean and Pagano 2015): how much more the share varies over whole episodes than over
    as many questions apart. Where all answers agree, episodes count in their place.
    """
    n, rate = len(right), float(np.mean(right))
    number = np.unique(episode, return_inverse=True)[1]
    off = np.bincount(number, right - rate)
    clusters = len(off)
    apart, trials = rate * (1 - rate) / n, float(clusters)
    if apart > 0 and clusters > 1:
        whole = np.sum(off**2) / n**2 * clusters / (clusters - 1)
        trials = n / max(float(whole / apart), 1.0)
    low, high = success_interval(rate * trials, trials)  # type: ignore[arg-type]
    return {"rate": rate, "interval": [low, high], "questions": n, "episodes": clusters}
