"""An encoder of views that are plain vectors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range


class Mlp(nnx.Module):
    """One hidden layer with GELU: x[n, inputs] -> h[n, features], and local[n, 1, ...].

    A vector has one position, so `local` is h itself.
    """

    def __init__(
        self,
        *,
        inputs: int,
        hidden: int = 64,
        features: int = 16,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, inputs=inputs, hidden=hidden, features=features)
        self.features = features
        layer: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.hidden = nnx.Linear(inputs, hidden, **layer)
        self.output = nnx.Linear(hidden, features, **layer)

    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        h = self.output(nnx.gelu(self.hidden(x)))
        return h, h[:, None, :]
