"""A policy of its own: an action from a state, by weighted imitation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dvf.condition import Scale
from dvf.occupancy import Layers
from dvf.transitions import STATE, WEIGHT
from polyview.data.later import ACTION
from polyview.errors import InputError, check_range
from polyview.objectives.base import Batch


class Policy(nnx.Module):
    """The mean action of a state by an MLP: float[n, d] -> float[n, actions].

    Args:
      mean, std: float[d] each, of the states of the data.
      actions: the size of an action.
      hidden: widths, with SiLU.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        actions: int,
        hidden: Sequence[int] = (128, 128),
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, actions=actions, hidden=hidden)
        self.scale = Scale(mean, std)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layers = Layers([self.scale.features, *hidden, actions], **options)

    def act(self, state: jax.Array) -> jax.Array:
        """Return float[n, actions], not clipped."""
        return self.layers(self.scale.apart(state))


@dataclass(frozen=True)
class Imitation:
    """sum w |a - policy(s)|^2 / sum w over a batch of `dvf.transitions:Transitions`.

    With equal weights behaviour cloning; with weights by advantages, advantage-weighted
    regression of a Gaussian of fixed deviation (Peng et al. 2019).
    """

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        views = batch["views"]
        if ACTION not in views or WEIGHT not in batch["targets"]:
            raise InputError(
                "imitation needs states, actions and weights; set views to "
                "dvf.transitions:Transitions"
            )
        b, m, d = views[STATE].shape
        told = module.act(views[STATE].reshape(b * m, d))
        actions = views[ACTION].reshape(b * m, -1)
        if told.shape != actions.shape:
            raise InputError(
                f"the model has {told.shape[1]} numbers an action, the data "
                f"{actions.shape[1]}; set model.actions"
            )
        weights = batch["targets"][WEIGHT].reshape(b * m)
        errors = jnp.square(told - actions).sum(-1)
        # Weights may all be too small for a float.
        whole = jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)
        return (weights * errors).sum() / whole, {"error": errors.mean()}
