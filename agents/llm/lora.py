"""Low-rank adapters of fixed kernels: y = x W + (alpha / rank) (x A) B.

(Hu et al. 2022.) B starts at zero, so an adapted body starts as its base; A is uniform
in +-1 / sqrt(inputs), as in PEFT.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import TINY, InputError, check_range, nearest


class Lora(nnx.Module):
    """Adapters of one kernel in all blocks: a[layers, in, rank], b[layers, rank, out].

    Args:
      layers, shape: of the stacked kernels, inputs and outputs.
      rank: r; at most the smaller of inputs and outputs.
      alpha: the change is scaled by alpha / rank.
      dropout: of the inputs of A in training (Dettmers et al. 2023 use 0.1 at most).
    """

    def __init__(
        self,
        layers: int,
        shape: tuple[int, int],
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        inputs, outputs = shape
        check_range(1, min(shape), rank=rank)
        check_range(TINY, alpha=alpha)
        check_range(0.0, 1 - TINY, dropout=dropout)
        bound = inputs**-0.5
        begun = (layers, inputs, rank)
        draw = jax.random.uniform(rngs.params(), begun, param_dtype, -bound, bound)
        self.a = nnx.LoRAParam(draw)
        self.b = nnx.LoRAParam(jnp.zeros((layers, rank, outputs), param_dtype))
        self.rank, self.scale, self.dropout = rank, alpha / rank, dropout

    def stacked(self) -> tuple[jax.Array, jax.Array]:
        """Return A and B of all blocks, split over devices as they are."""
        return self.a.get_raw_value(), self.b.get_raw_value()

    def change(
        self, x: jax.Array, a: jax.Array, b: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Return what one block's adapter adds; with a key, with dropout."""
        if key is not None and self.dropout > 0:
            kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), 0)
        return (x @ a.astype(x.dtype)) @ b.astype(x.dtype) * self.scale

    def whole(self) -> jax.Array:
        """Return the change of every kernel, [layers, inputs, outputs]."""
        return jnp.einsum("lir,lro->lio", self.a[...], self.b[...]) * self.scale


def check_targets(targets: Iterable[str], kernels: Mapping) -> tuple[str, ...]:
    """Return the kernels to adapt. Raises InputError for one that does not exist."""
    if isinstance(targets, str):
        raise InputError(f"lora.targets={targets!r} is a string; write a list")
    targets = tuple(targets)
    for name in targets:
        if name not in kernels:
            raise InputError(f"lora.targets has {name!r}{nearest(name, kernels)}")
    return targets
