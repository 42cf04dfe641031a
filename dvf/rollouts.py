"""Roll-outs that tell a model which policy acts: other episodes of the same policy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dvf.policies import ROLLOUT
from polyview.data.later import Later
from polyview.data.sources.labels import check_label
from polyview.data.sources.protocol import CorruptRecord, Source
from polyview.data.views import Example, take
from polyview.errors import InputError, check_range


@dataclass(frozen=True)
class WithRollout:
    """The views of `later`, and "rollout" float32[steps, d]: play of the same policy.

    It comes from an episode drawn among the others of the policy, never from the one
    whose future is to be told: `steps` states, evenly spread over it. Raises InputError
    if a policy has no other episode.

    Attributes:
      later: pairs of an episode.
      steps: of the roll-out.
      episodes: the field that is a sequence of states of this and of other episodes, as
        `polyview.data.sources.by_class:ByClass` makes it.
    """

    later: Later
    steps: int = 32
    episodes: str = "images"

    def __post_init__(self) -> None:
        check_range(2, steps=self.steps)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        made = self.later(example, rng)
        episodes: Any = take(example, self.episodes)
        if len(episodes) < 2:
            raise InputError(
                "a policy has one episode, and its roll-out would be the future that "
                "is to be told; record more, or tell policies by their number"
            )
        other = 1 + int(rng.random() * (len(episodes) - 1))
        shown = spread(np.asarray(episodes[other], np.float32), self.steps)
        if not np.isfinite(shown).all():
            raise CorruptRecord("a roll-out has a state that is not finite")
        made["views"][ROLLOUT] = shown
        made["present"][ROLLOUT] = np.ones(self.steps, bool)
        return made


def spread(states: np.ndarray, steps: int) -> np.ndarray:
    """Return `steps` states, evenly spread from the first of states[t, d] to the last.

    A short episode shows some states again.
    """
    times = np.linspace(0, len(states) - 1, steps).round().astype(np.int64)
    return states[times]


def of_policies(source: Source, steps: int = 32) -> np.ndarray:
    """Return a roll-out of each policy, float32[policies, steps, d], for evaluation.

    It is the first episode of each, in a source with the target "policy". Raises
    InputError for a policy without one.
    """
    check_label(source, "policy", "roll-outs belong to")
    count = source.targets["policy"]["classes"]
    found: dict[int, np.ndarray] = {}
    for index in range(len(source)):
        if len(found) < count:
            example = source[index]
            found.setdefault(int(example["policy"]), example["states"])
    if missing := sorted(set(range(count)) - found.keys()):
        raise InputError(f"{source!r} has no episode of policy {missing[0]}")
    shown = [np.asarray(found[policy], np.float32) for policy in range(count)]
    return np.stack([spread(states, steps) for states in shown])
