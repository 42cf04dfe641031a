"""What the loop asks of whatever learns, from data or by acting.

A learner owns its steps: what goes into one, what one does, what a checkpoint keeps of
it. The loop owns when: logging, evaluating, saving, stopping. The learner of a data
pipeline is `polyview.training.trainer`; one that acts plays in `inputs`, and chooses in
`take`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import Mesh

State = Any


class Learner(Protocol):
    """Steps of learning, as a function of a config and nothing else.

    Methods that have a body here are what a learner that inherits does by default.

    Attributes:
      config: of the run.
      steps: how many there are in all.
      mesh: the devices; all methods are called with it in scope.
      samples: that a step takes, for the rate in samples a second.
      evaluations: {name: evaluation}, of `evaluated` steps.
      acts: whether the inputs of a step depend on what the one before chose; metrics
        are then read before the next step begins, else while it is under way.
      fixed_record: where the fixed weights are kept (`polyview.runs.weights`), known
        once there is a state.
    """

    config: Any
    steps: int
    mesh: Mesh
    samples: int = 1
    evaluations: Mapping[str, Callable] = {}
    acts: bool = False
    fixed_record: list[dict] = []

    def check(self, workdir: Path) -> None:
        """Raise InputError for what cannot run; nothing is compiled or written yet."""

    def create(self, workdir: Path) -> State:
        """Return the state before the first step."""
        ...

    def template(self) -> Any:
        """Return the shapes, types and shardings of what `saved` returns."""
        ...

    def saved(self, state: State) -> Any:
        """Return what a checkpoint keeps of a state: arrays on the devices."""
        return state

    def restored(self, workdir: Path, saved: Any, folder: Path, step: int) -> State:
        """Return the state of a checkpoint, exactly where it was.

        folder: of the checkpoint. Raises InputError where that cannot be.
        """
        return saved

    def inputs(self, start: int) -> Iterator[Any]:
        """Generate what goes into step `start` and later ones; closed at the end."""
        ...

    def take(self, state: State, inputs: Any) -> tuple[State, dict]:
        """Take a step: the next state, which may use up the old one, and metrics.

        "healthy" is False where anything was not finite; the state is then the old one.
        """
        ...

    def logged(self, step: int) -> bool:
        """Whether the metrics of the step that makes `step` are written."""
        return step % self.config.log_every == 0 or step in (1, self.steps)

    def values(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Return what is written of a step: metrics, and what only the host knows."""
        return metrics

    def evaluated(self, step: int) -> bool:
        """Whether the state after `step` steps is evaluated; 0 is before the first."""
        every = self.config.get("evaluate_every", 0)
        return bool(every) and step > 0 and (step % every == 0 or step == self.steps)

    def model(self, state: State, step: int) -> Any:
        """Return what the evaluations are given of a state."""
        return state

    def banner(self, state: State, start: int) -> dict[str, str]:
        """Return what is printed before a run begins, or resumes from step `start`."""
        return {"steps": f"{self.steps:,}, from {start:,}"}

    def told(self, inputs: Any) -> str:
        """Return a line that names the inputs of a step, for its replay."""
        return "once more"

    def close(self) -> None:
        """Close what `create` or `restored` opened."""
