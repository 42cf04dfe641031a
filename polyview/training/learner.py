"""The protocol of a learner, which the loop drives.

A learner defines the inputs of a step, the step, and the contents of a checkpoint. The
loop decides when to log, evaluate, save and stop. `polyview.training.trainer` learns
from a data pipeline. A learner that acts steps its environments in `inputs` and chooses
actions in `take` (`sgi.learner`), or does both in `take` (`polyview.rl.learner`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax.sharding import Mesh

State = Any


class Learner(Protocol):
    """The steps of a run, determined by its config alone.

    Methods with a body are defaults for learners that inherit.

    Attributes:
      config: the run's config.
      steps: the number of steps in the run.
      mesh: the devices; all methods are called with it in scope.
      samples: samples a step, for the rate in samples a second; unit: their name.
      shown: values that are printed beside the loss.
      evaluations: {name: evaluation}, run at `evaluated` steps.
      acts: whether a step's inputs depend on actions of the step before. If so, metrics
        are read before the next step begins, else while it runs.
      data: {name: {"rows": number, "digest": text}} of what the run reads. It must be
        equal in all processes, and in a resumed run.
      fixed_record: where fixed weights are saved (`polyview.runs.weights`), once known.
    """

    config: Any
    steps: int
    mesh: Mesh
    samples: int = 1
    unit: str = "views"
    shown: Sequence[str] = ()
    evaluations: Mapping[str, Callable] = {}
    acts: bool = False
    data: Mapping[str, Any] = {}
    fixed_record: list[dict] = []

    def check(self, workdir: Path) -> None:
        """Raise InputError if the run is impossible; compile and write nothing."""

    def create(self, workdir: Path) -> State:
        """Return the state before the first step."""
        ...

    def template(self) -> Any:
        """Return the shapes, types and shardings of the result of `saved`."""
        ...

    def saved(self, state: State) -> Any:
        """Return the part of a state to checkpoint: arrays on the devices."""
        return state

    def restored(self, workdir: Path, saved: Any, folder: Path, step: int) -> State:
        """Return the state of a checkpoint, to resume from exactly there.

        folder: the checkpoint's. Raises InputError if resuming is impossible.
        """
        return saved

    def inputs(self, start: int) -> Any:
        """Return a generator of the inputs of step `start` and later."""
        ...

    def take(self, state: State, inputs: Any) -> tuple[State, dict]:
        """Take a step; return the next state and metrics. May donate the old state.

        "healthy" is False if anything was not finite; the old state is then returned,
        or one that must not be saved among the checkpoints.
        """
        ...

    def logged(self, step: int) -> bool:
        """Whether metrics are written after `step` steps."""
        return step % self.config.log_every == 0 or step in (1, self.steps)

    def values(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Return the values to log for a step: metrics, and values from the host."""
        return metrics

    def evaluated(self, step: int) -> bool:
        """Whether the state after `step` steps is evaluated; 0: before the first."""
        every = self.config.get("evaluate_every", 0)
        return bool(every) and step > 0 and (step % every == 0 or step == self.steps)

    def model(self, state: State, step: int) -> Any:
        """Return the model of a state that evaluations receive."""
        return state

    def banner(self, state: State, start: int) -> dict[str, str]:
        """Return {name: text} to print before a run begins or resumes at `start`."""
        return {"steps": f"{self.steps:,}, from {start:,}"}

    def told(self, inputs: Any) -> str:
        """Return a line that describes the inputs of a step, for its replay."""
        return "repeated"

    def close(self) -> None:
        """Release resources of `create` or `restored`."""
        return None
