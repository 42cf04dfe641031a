"""Values of states on a scale of their own (PopArt; van Hasselt et al. 2016)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.rl.ppo import masked_mean

_SMALLEST = 1e-4  # deviation of returns, as in van Hasselt et al. 2016


class Critic(nnx.Module):
    """A hidden layer and a linear one: `critic(x[..., width]) -> normalised [...]`.

        V = deviation * normalised + mean

    `adapted` follows mean and deviation of the returns, and changes the last layer such
    that no V changes. With rate 0 they stay 0 and 1, and values are not normalised.

    Args:
      width: of the states.
      hidden: of the layer between.
      rate: of the averages of the returns; the first of them count in full.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 256,
        rate: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, hidden=hidden)
        check_range(0.0, 1.0, rate=rate)
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.up = nnx.Linear(width, hidden, **options)
        even = nnx.initializers.orthogonal(1.0)
        self.down = nnx.Linear(hidden, 1, kernel_init=even, **options)
        self.rate = rate
        self.mean = nnx.BatchStat(jnp.zeros((), param_dtype))
        self.square = nnx.BatchStat(jnp.ones((), param_dtype))
        self.seen = nnx.BatchStat(jnp.zeros((), param_dtype))  # times adapted

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.down(jax.nn.silu(self.up(x)))[..., 0]
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    @property
    def deviation(self) -> jax.Array:
        """The deviation of returns."""
        spread = self.square[...] - jnp.square(self.mean[...])
        return jnp.sqrt(jnp.maximum(spread, _SMALLEST**2))

    def restored(self, normalised: jax.Array) -> jax.Array:
        """Return values in the units of returns."""
        return normalised * self.deviation + self.mean[...]

    def normalised(self, returns: jax.Array) -> jax.Array:
        """Return what the critic should say of returns."""
        return (returns - self.mean[...]) / self.deviation

    def adapt(self, returns: jax.Array, mask: jax.Array) -> None:
        """Follow the returns where the mask is True, and keep all values as they are.

        Without any, nothing changes.
        """
        if not self.rate:
            return
        seen = self.seen[...] + 1
        rate = jnp.where(mask.any(), jnp.maximum(self.rate, 1 / seen), 0)
        old, before = self.deviation, self.mean[...]
        found: Any = (returns, jnp.square(returns))
        for kept, new in zip((self.mean, self.square), found, strict=True):
            kept[...] += rate * (masked_mean(new, mask) - kept[...])
        self.seen[...] = jnp.where(mask.any(), seen, self.seen[...])
        last: Any = self.down
        last.kernel[...] = last.kernel[...] * (old / self.deviation)
        offset = old * last.bias[...] + before - self.mean[...]
        last.bias[...] = offset / self.deviation
