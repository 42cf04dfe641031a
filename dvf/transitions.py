"""States and actions of recorded episodes, with weights, for imitation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyview.data.later import ACTION, rows_of
from polyview.data.views import Example
from polyview.errors import TINY, InputError, check_range

STATE, WEIGHT = "state", "weight"


@dataclass(frozen=True)
class Transitions:
    """m states of an episode and the actions taken there, at uniform times.

        views    state float32[m, d], action float32[m, a]
        targets  weight float32[m], min(exp(advantage / scale), most)

    (Peng et al. 2019, with their largest weight of 20.)

    Attributes:
      m: how many of each episode.
      advantages: the field with that of each action, which `python -m dvf.weigh`
        writes; None: all weights are 1, and imitation is behaviour cloning.
      scale: of the advantages, their deviation times a temperature.
      most: the largest weight.
      states, actions: fields, [t, d] and [t - 1, a].
    """

    m: int
    advantages: str | None = None
    scale: float = 1.0
    most: float = 20.0
    states: str = "states"
    actions: str = "actions"

    def __post_init__(self) -> None:
        check_range(1, m=self.m)
        check_range(TINY, scale=self.scale, most=self.most)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        states = rows_of(example, self.states).astype(np.float32, copy=False)
        actions = rows_of(example, self.actions).astype(np.float32, copy=False)
        gained = np.zeros(len(actions), np.float32)
        if self.advantages is not None:
            gained = rows_of(example, self.advantages).astype(np.float32, copy=False)
        if len(actions) not in (len(states) - 1, len(states)) or not len(actions):
            raise InputError(
                f"there are {len(actions)} actions and {len(states)} states; give an "
                "action for each state but the last"
            )
        if gained.shape != (len(actions),):
            raise InputError(
                f"field '{self.advantages}' has shape {gained.shape}, and there are "
                f"{len(actions)} actions; give one advantage an action"
            )
        # Not `rng.integers`, which another version of NumPy may draw otherwise.
        time = (rng.random(self.m) * len(actions)).astype(np.int64)
        views = {STATE: states[time], ACTION: actions[time]}
        present = np.ones(self.m, bool)
        weights = np.exp(np.minimum(gained[time] / self.scale, np.log(self.most)))
        weights = weights.astype(np.float32)
        return {
            "views": views,
            "present": {name: present.copy() for name in views},
            "targets": {WEIGHT: weights},
        }
