"""What the trainer asks of an objective, and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

Batch = Mapping[str, Any]
"""`views`, `present`, `targets` (each a dict of arrays by name) and `index`."""

Module = Callable[..., Mapping[str, Any]]
"""`module(batch, *, key, train) -> {modality: Features}`."""


class Objective(Protocol):
    """A loss to be minimised, as a function of the modules and one batch.

    Where it compares samples, `negatives(b, m) -> int` may say with how many views of
    others; the banner of a run shows it.
    """

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss of the global batch and scalar metrics.

        Under the name "features" the metrics may hold what the module returned; the
        trainer looks at its health where it logs. `target_module` is the moving average
        of `module`, or None where the run keeps none; no gradient flows through it.
        """
        ...
