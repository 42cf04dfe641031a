"""The one expensive term of the contrastive losses: the scores of other samples.

Every loss of the family compares an anchor with its positives and with views of the
other samples of the global batch. The losses differ only in which of those views count,
so one function gives the log-sum-exp of each view, and nothing else ever sees scores
between samples:

    n[i, a, g] = log sum_{j != i} exp(anchors[i, a] . candidates[j, g])
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def log_negatives(anchors: jax.Array, candidates: jax.Array) -> jax.Array:
    """Log-sum-exp of each anchor's scores over the other samples, view by view.

    anchors float[b, m, d] and candidates float[b, n, d] give float[b, m, n]. Divide the
    anchors by the temperature; a log-sum-exp over the last axis joins all views. Under
    a mesh (`jax.set_mesh`, Auto axes) the rows are sharded over all of its axes, and
    each device scores its own anchors against the gathered candidates. Raises
    ValueError for b = 1, and for a b that the devices cannot share equally.
    """
    b = len(anchors)
    if b < 2:
        raise ValueError(f"negatives are other samples: b = {b} has none, give b >= 2")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return _rows(anchors, candidates, first=0)
    if b % mesh.size:
        raise ValueError(f"b = {b} samples cannot be divided among {mesh.size} devices")

    def local(anchors, candidates):
        first = jax.lax.axis_index(mesh.axis_names) * len(anchors)
        candidates = jax.lax.all_gather(candidates, mesh.axis_names, tiled=True)
        return _rows(anchors, candidates, first)

    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(local, in_specs=rows, out_specs=rows)(anchors, candidates)


def _rows(anchors, candidates, first):
    """`log_negatives` of anchors that are rows first, first + 1, ... of the batch."""
    scores = jnp.einsum("imd,jnd->imjn", anchors, candidates)
    row = first + jnp.arange(len(anchors))
    other = row[:, None] != jnp.arange(len(candidates))[None, :]
    return jax.nn.logsumexp(scores, axis=2, where=other[:, None, :, None])
