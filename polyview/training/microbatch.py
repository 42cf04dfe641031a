"""Two ways to process a batch too large for memory.

Slices (`config.microbatch`) are encoded one after another before one loss. The loss and
the gradient are those of the whole batch, in the memory of a slice.
Parts (`config.accumulate`) have a loss each; their gradients are averaged. An anchor
has fewer negatives, so the loss differs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from polyview.errors import InputError


def division(config: ConfigDict, devices: int) -> tuple[int, int]:
    """Return the numbers of slices and of parts of a batch.

    Raises InputError if the batch or the devices do not divide evenly.
    """
    b, microbatch = config.batch_size, config.get("microbatch")
    parts = config.get("accumulate") or 1
    if microbatch and parts > 1:
        raise InputError(
            "microbatch and accumulate are both set: microbatch computes one loss for "
            "the whole batch, accumulate averages the losses of parts; keep one"
        )
    slices = b // microbatch if microbatch else 1
    for key, divisor in ("microbatch", microbatch or 1), ("accumulate", parts):
        if b % divisor:
            raise InputError(f"batch_size={b} is not a multiple of {key}={divisor}")
    rows = b // slices // parts
    if rows % devices:
        what = f"microbatch={rows}" if slices > 1 else f"batch_size={b}"
        what += f" / accumulate={parts}" if parts > 1 else ""
        raise InputError(
            f"{what} does not divide among {devices} devices; choose a multiple of "
            f"{devices * parts}"
        )
    return slices, parts


def in_slices(encode: Callable, slices: int) -> Callable:
    """Return `encode(batch, key=, train=)` as a function that encodes slice by slice.

    Only the features are kept; the backward pass encodes each slice again (gradient
    caching; Gao et al. 2021). Values and gradients are unchanged, for any objective, if
    a row's features depend on no other row: see `refuse_written`.
    """

    def encode_all(batch: dict, *, key: jax.Array | None, train: bool) -> Any:
        @jax.checkpoint
        def encode_slice(number: jax.Array) -> Any:
            return encode(_piece(batch, slices, number), key=key, train=train)

        return _joined(jax.lax.map(encode_slice, jnp.arange(slices)))

    return encode_all


def refuse_written(before: dict, after: dict) -> None:
    """Raise InputError if encoding a slice wrote a statistic, as BatchNorm does."""
    # It then also read that of a slice. A written array is a new one, even when traced.
    same = jax.tree.map(lambda a, b: a is b, before, after)
    for path, kept in jax.tree.leaves_with_path(same):
        if not kept:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise InputError(
                f"microbatch: BatchNorm would take {name} over a slice, not over the "
                "batch, which changes training; use a ViT and a projector with "
                "norm='none', or freeze the encoder, or set microbatch to None"
            )


def mean_of_parts(gradient_of: Callable, parts: int) -> Callable:
    """Return `gradient_of(params, statistics, batch)` as a mean over parts of a batch.

    It returns gradients and (statistics, metrics, features). An anchor has
    (b / parts - 1) m negatives instead of (b - 1) m. Each part updates the statistics
    in turn; features are those of all rows, in the order of the batch.
    """
    if parts == 1:
        return gradient_of

    def mean(params: dict, statistics: dict, batch: dict) -> tuple[dict, tuple]:
        def add(carry: tuple[dict, dict], number: jax.Array) -> tuple[tuple, list]:
            total, statistics = carry
            part = _piece(batch, parts, number)
            gradients, (statistics, *rest) = gradient_of(params, statistics, part)
            return (jax.tree.map(jnp.add, total, gradients), statistics), rest

        start = jax.tree.map(jnp.zeros_like, params), statistics
        (total, statistics), (metrics, features) = jax.lax.scan(
            add, start, jnp.arange(parts)
        )
        metrics = jax.tree.map(lambda x: x.mean(0), metrics)
        gradients = jax.tree.map(lambda x: x / parts, total)
        return gradients, (statistics, metrics, _joined(features))

    return mean


def _piece(batch: dict, pieces: int, number: jax.Array) -> dict:
    """Rows `number`, `number + pieces`, ... of a batch; no row leaves its device."""

    def rows(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, pieces, *x.shape[1:])
        return jax.lax.dynamic_index_in_dim(x, number, axis=1, keepdims=False)

    return jax.tree.map(rows, batch)


def _joined(pieces: Any) -> Any:
    """Undo `_piece` on stacked arrays `[pieces, b / pieces, ...]`."""
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), pieces
    )
