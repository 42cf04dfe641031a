"""The protocol of an objective, as the trainer calls it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

Batch = Mapping[str, Any]
"""`views`, `present` and `targets`, each a dict of arrays by name, and `index`."""

Module = Callable[..., Mapping[str, Any]]
"""`module(batch, *, key, train) -> {modality: Features}`."""


class Objective(Protocol):
    """A loss to be minimised, as a function of the modules and one batch.

    An objective that compares samples may have a method `negatives(b, m) -> int`, the
    views of other samples an anchor meets. The banner of a run shows that number.
    """

    def __call__(
        self, module: Module, target_module: Module | None, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss of the global batch and scalar metrics.

        The metrics may include the module's output under "features"; the trainer
        computes health metrics from it when it logs. `target_module` is the moving
        average of `module`, or None if the run has none; it gets no gradient.
        """
        ...
