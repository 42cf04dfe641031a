"""The range of actions, and tokens by equal bins: one a dimension.

A tokenizer has `length` tokens an action, each of `codes` values, and

    tokens(actions float[n, a]) -> int32[n, length]
    actions(tokens int32[n, length]) -> float[n, a]

Actions are clipped to a range that training data gave, and scaled to [-1, 1]. The range
is part of the tokenizer, so that no other code can undo it by other numbers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from polyview.errors import InputError, check_range


class Range(nnx.Module):
    """Actions between `low` and `high`, a number of each a dimension, as [-1, 1].

    A dimension with low = high is constant: 0 when scaled, and `low` when restored.
    Raises InputError for none, for two numbers of dimensions, and for low > high.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float]):
        if len(low) != len(high) or not len(low):
            raise InputError(
                f"low has {len(low)} numbers and high {len(high)}; give one of each "
                "for each dimension of an action"
            )
        self.low, self.high = tuple(map(float, low)), tuple(map(float, high))
        check_range(-1e30, 1e30, range=(*self.low, *self.high))
        for number, (least, most) in enumerate(zip(self.low, self.high, strict=True)):
            if least > most:
                raise InputError(
                    f"low[{number}]={least:g} is above high[{number}]={most:g}; give "
                    "the quantiles of 1 and 99 % of the training data"
                )
        self.size = len(self.low)

    def scaled(self, actions: jax.Array) -> jax.Array:
        """Return float[n, a] in [-1, 1]. Raises InputError for another a."""
        self._check(actions)
        centre, half = self._rows(actions)
        scaled = (actions - centre) / np.where(half > 0, half, 1).astype(half.dtype)
        return jnp.where(half > 0, jnp.clip(scaled, -1, 1), 0)

    def restored(self, scaled: jax.Array) -> jax.Array:
        """Return the actions float[n, a] of what `scaled` returned, in the range."""
        centre, half = self._rows(scaled)
        low, high = (np.array([x], half.dtype) for x in (self.low, self.high))
        return jnp.clip(centre + half * jnp.clip(scaled, -1, 1), low, high)

    def outside(self, actions: jax.Array) -> jax.Array:
        """Return whether a number is clipped, bool[n, a]."""
        self._check(actions)
        low, high = (np.array([x], actions.dtype) for x in (self.low, self.high))
        return (actions < low) | (actions > high)

    def _check(self, actions: jax.Array) -> None:
        if actions.ndim != 2 or actions.shape[1] != self.size:
            raise InputError(
                f"the tokenizer is made for actions [n, {self.size}], not "
                f"{list(actions.shape)}; take the one of these data"
            )

    def _rows(self, like: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.array([self.low]), np.array([self.high])
        dtype = jnp.promote_types(like.dtype, jnp.float32)
        return ((low + high) / 2).astype(dtype), ((high - low) / 2).astype(dtype)


class Uniform(nnx.Module):
    """Each dimension in `codes` equal bins, whose centre stands for them.

    The error of an action in the range is at most half a bin, (high - low) / 2 codes.
    Bins between quantiles of 1 and 99 % are those of OpenVLA (Kim et al. 2024).

    Args:
      low, high: of `Range`.
      codes: bins a dimension.
    """

    def __init__(
        self,
        *,
        low: Sequence[float],
        high: Sequence[float],
        codes: int = 256,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs  # nothing is drawn or learnt
        check_range(1, 2**24, codes=codes)  # beyond, float32 cannot count them
        self.range = Range(low, high)
        self.length, self.codes = self.range.size, codes

    def tokens(self, actions: jax.Array) -> jax.Array:
        """Return the bins, int32[n, a]. Raises InputError for another a."""
        share = (self.range.scaled(actions) + 1) / 2
        bins = jnp.floor(share * self.codes).astype(jnp.int32)
        return jnp.clip(bins, 0, self.codes - 1)  # the largest action is in the last

    def actions(self, tokens: jax.Array) -> jax.Array:
        """Return the centres of bins, float[n, a]."""
        return self.range.restored((2 * tokens + 1) / self.codes - 1)

    def scaled(self, actions: jax.Array) -> jax.Array:
        """Return the actions in [-1, 1], float[n, a]."""
        return self.range.scaled(actions)

    def outside(self, actions: jax.Array) -> jax.Array:
        """Return whether a number is clipped, bool[n, a]."""
        return self.range.outside(actions)
