"""Stochastic depth (Huang et al. 2016): rows skip residual branches in training.

    x + keep / (1 - r_i) f_i(x),    keep ~ Bernoulli(1 - r_i),    r_i = r i / (n - 1)

for block i of n, from 0, so the rate rises linearly from 0 to r (in the form of DeiT,
Touvron et al. 2021). Each branch of each row has a draw of its own, a function of the
row's key alone: it is the same on any number of devices and in any slice of a batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from polyview.errors import check_range


def check(rate: float) -> float:
    """Return `rate`. Raises OutOfRange if it is not in [0, 0.99]."""
    check_range(0.0, 0.99, drop_path=rate)
    return rate


def factors(
    rate: float, keys: jax.Array | None, shape: tuple[int, ...]
) -> Sequence[jax.Array]:
    """Return keep / (1 - r_i) for each block, float[*branches, n].

    rate: r, that of the last block. keys: [n], one a row. shape: (blocks, *branches).
    Raises ValueError without keys.
    """
    if keys is None or keys.ndim != 1:
        raise ValueError(f"drop_path={rate} draws noise: pass key[n], one a row")
    block = jnp.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    rates = rate * block / max(shape[0] - 1, 1)

    def of_row(key: jax.Array) -> jax.Array:
        return (jax.random.uniform(key, shape) >= rates) / (1 - rates)

    return list(jax.vmap(of_row, out_axes=-1)(keys))


def scaled(branch: jax.Array, factors: jax.Array) -> jax.Array:
    """Return `branch[n, ...]` with row i times `factors[i]`, in its own type."""
    rows = (-1,) + (1,) * (branch.ndim - 1)
    return branch * factors.astype(branch.dtype).reshape(rows)
