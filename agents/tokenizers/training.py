"""A learnt tokenizer of actions is trained by a run of its own: its views and loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.tokenizers.residual import perplexity
from polyview.data.later import ACTION, rows_of
from polyview.data.sources.digest import derived
from polyview.data.sources.protocol import Source
from polyview.data.views import Example
from polyview.errors import InputError, check_range
from polyview.objectives.base import Batch
from polyview.objectives.supervised import mean_of_present


@dataclass(frozen=True)
class Actions:
    """m actions of an episode, at uniform times: views action float32[m, a].

    Raises InputError for actions that are not [t, a] numbers or none at all, and
    CorruptRecord for a number that is not finite.

    Attributes:
      m: how many of each episode.
      field: of the actions.
    """

    m: int
    field: str = "actions"

    def __post_init__(self) -> None:
        check_range(1, m=self.m)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        actions = continuous(example, self.field)
        # Not `rng.integers`, which another version of NumPy may draw otherwise.
        time = (rng.random(self.m) * len(actions)).astype(np.int64)
        return {
            "views": {ACTION: actions[time]},
            "present": {ACTION: np.ones(self.m, bool)},
            "targets": {},
        }


def continuous(example: Example, field: str) -> np.ndarray:
    """Return the actions of an episode, float32[t, a]; for errors see `Actions`."""
    actions = rows_of(example, field)
    if actions.ndim != 2 or actions.dtype.kind != "f" or not actions.size:
        raise InputError(
            f"field '{field}' is {actions.dtype}{list(actions.shape)}, and a tokenizer "
            "learns from one or more actions of several numbers, float [t, a]; "
            "numbered actions need none"
        )
    return actions


@dataclass(frozen=True)
class PaddedActions:
    """A source whose actions float32[t, a] get zeros after them, up to `size` numbers.

    So one tokenizer can be trained on the actions of several embodiments. Raises
    InputError for an episode of longer actions, which are never cut.
    """

    source: Source
    size: int
    field: str = "actions"

    @property
    def targets(self) -> Mapping[str, Mapping]:
        """Those of the source."""
        return self.source.targets

    @property
    def digest(self) -> str:
        """The digest of the padded episodes; "" if the source has none."""
        return derived(self.source, ["padded", self.field, str(self.size)])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        actions = continuous(example, self.field)
        if actions.shape[1] > self.size:
            raise InputError(
                f"{self.source!r} has actions of {actions.shape[1]} numbers, and they "
                f"are padded to {self.size}; give at least as many"
            )
        padding = ((0, 0), (0, self.size - actions.shape[1]))
        return {**example, self.field: np.pad(actions, padding)}

    def __repr__(self) -> str:
        return f"PaddedActions({self.source!r}, size={self.size})"


@dataclass(frozen=True)
class Quantisation:
    """mean (a - a')^2 + commitment * mean_m |r_{m-1} - C_m[k_m]|^2, with constant C.

    Of scaled actions a, over dimensions and present views; for what `ResidualVQ` of
    `agents.tokenizers.residual` calls them. Metrics: `error`, the first term;
    `commitment`, the second without its weight; `perplexity/1` .. `perplexity/M`, over
    the codes of the batch. Raises InputError for another model, or in slices.

    Attributes:
      commitment: its weight, 0 or more.
    """

    commitment: float = 1.0

    def __post_init__(self) -> None:
        check_range(0.0, commitment=self.commitment)

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        if not hasattr(module, "reconstruct"):
            raise InputError(
                "the objective quantises actions: it needs the model "
                "agents.tokenizers.residual:ResidualVQ, and microbatch=None"
            )
        if ACTION not in batch["views"]:
            raise InputError(
                "there are no actions to quantise; set views to "
                "agents.tokenizers.training:Actions"
            )
        actions, present = batch["views"][ACTION], batch["present"][ACTION]
        b, m, a = actions.shape
        valid = present.reshape(b * m)
        made = module.reconstruct(actions.reshape(b * m, a), valid, key)
        errors = jnp.square(made.decoded - made.scaled).mean(-1).reshape(b, m)
        error = mean_of_present(errors, present)
        commitment = mean_of_present(made.commitment.reshape(b, m), present)
        chose = jax.nn.one_hot(made.codes.T, module.codes) * valid[None, :, None]
        metrics = {"error": error, "commitment": commitment}
        for number, value in enumerate(perplexity(chose.sum(1)), 1):
            metrics[f"perplexity/{number}"] = value
        loss = error + self.commitment * commitment
        return loss, {"loss": loss, **metrics}
