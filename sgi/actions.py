"""Accuracy of SGI's inverse model on play that it was not trained on.

    python -m polyview.evaluate --run runs/a

The result has two levels beside it: chance, the share of the most frequent action, and
the greatest accuracy that is possible (`sgi.ceiling`). So it shows whether pre-training
has begun to learn.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from polyview import hosts
from polyview.errors import InputError
from polyview.evaluation.base import Result
from polyview.nn.towers import Features
from polyview.terminal import say
from sgi import recording
from sgi.ceiling import Ceiling, ceiling
from sgi.episodes import OfEpisodes


@dataclasses.dataclass(frozen=True)
class Actions(OfEpisodes):
    """Accuracy of the inverse model; called as `(model, mesh)`. Nothing is fitted.

    Attributes:
      states: of the game, in which the ceiling is measured.
    """

    states: int = 200

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Evaluate `model.call("infer", frames)`, a `sgi.network.Network`.

        The last step of an episode is left out: its next frame is not recorded. The
        ceiling is None for play that is not random, and without the emulator. Raises
        InputError if the recording has too few episodes, or too short ones.
        """
        began = time.perf_counter()
        play = recording.describe(self.recording, self.data_dir)
        names = play["actions"]
        source, inferred, _, parts = self.read(
            inferring(model), mesh, jumps=1, name="actions"
        )
        action = inferred.targets["action"][:, 0].astype(int)
        answer = inferred.h.argmax(1)
        seen = ~inferred.targets["terminal"][:, 0]
        held, test = (seen & part for part in (parts.validation, parts.test))
        if not (held.any() and test.any()):
            raise InputError(
                f"recording '{self.recording}' has no two steps in its validation or "
                "test episodes; record more steps"
            )
        confusion = np.zeros((len(names), len(names)), int)
        np.add.at(confusion, (action[test], answer[test]), 1)
        numbers: dict[str, Any] = {
            "protocol": {
                "recording": repr(source),
                "game": play["game"],
                "every": self.every,
                "rows": {"validation": int(held.sum()), "test": int(test.sum())},
                "chance": "the most frequent action of the test rows",
                "ceiling": "uniform play, known state, sticky actions as recorded",
            },
            "accuracy": float(np.mean(answer[test] == action[test])),
            "validation_accuracy": float(np.mean(answer[held] == action[held])),
            "chance": float(np.bincount(action[test]).max() / test.sum()),
            "ceiling": None,
            "actions": list(names),
            "confusion": confusion.tolist(),
        }
        known = self._ceiling(play)
        if known is not None:
            span = known.accuracy - numbers["chance"]
            above = numbers["accuracy"] - numbers["chance"]
            right = sum(confusion[np.ix_(g, g)].sum() for g in known.groups)
            numbers |= {
                "ceiling": known.accuracy,
                "reached": above / span if span > 0 else None,
                "groups": [[names[a] for a in group] for group in known.groups],
                "accuracy_of_groups": float(right / test.sum()),
            }
        numbers["machine"] = hosts.machine()
        numbers["seconds"] = round(time.perf_counter() - began, 3)
        return Result(
            numbers, summary=self.summary(numbers), columns=self.columns(numbers)
        )

    def _ceiling(self, play: Mapping[str, Any]) -> Ceiling | None:
        """Return the ceiling of a recording by its provenance, or None if unknown."""
        if play.get("policy") != "random":
            return None
        try:
            return ceiling(play["game"], sticky=play["sticky"], states=self.states)
        except InputError as error:  # no emulator
            if hosts.is_first_process():
                say(f"actions: no ceiling: {error}")
            return None

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Return a line: accuracy, chance and ceiling."""
        text = f"accuracy {numbers['accuracy']:.3f}, chance {numbers['chance']:.3f}"
        if numbers["ceiling"] is None:
            return text
        return f"{text}, ceiling {numbers['ceiling']:.3f}"

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Return accuracy, chance and, if known, the ceiling, in percent."""
        return {
            f"actions: {name} %": 100 * numbers[name]
            for name in ("accuracy", "chance", "ceiling")
            if numbers[name] is not None
        }

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Draw the answers to each action."""
        del figure_data
        from polyview.evaluation.frozen_figures import confusion

        counts, names = np.asarray(numbers["confusion"]), numbers["actions"]
        return {"answers": confusion(counts, names, of="Inverse model")}


def inferring(model: Any) -> Callable[[Mapping], dict[str, Features]]:
    """Return a function that gives the logits of a batch's actions as features."""

    def infer(batch: Mapping) -> dict[str, Features]:
        logits: jax.Array = model.call("infer", batch["views"]["frames"])
        return {"frames": Features(z=logits[:, None], h=logits[:, None], local=None)}

    return infer
