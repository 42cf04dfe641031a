"""Health of features, measured without labels: are they spread out, or collapsed?

A loss can fall while the representation collapses. Four measures show this, on a batch
during training and on a whole split at evaluation. Rows are scaled to unit length
first, except for RankMe; sums are in float32 or better. All four stay finite on
degenerate input: a single row, a single view, all zeros.
"""

import jax
import jax.numpy as jnp


def _float(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _unit(x: jax.Array) -> jax.Array:
    """Scale rows to length one; a zero row stays zero."""
    x = _float(x)
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    tiny = jnp.finfo(x.dtype).tiny
    return jnp.where(squared > tiny, x * jax.lax.rsqrt(jnp.maximum(squared, tiny)), 0)


def alignment(z: jax.Array) -> jax.Array:
    """Mean squared distance between two views of a sample; 0 is perfect, 2 is chance.

    z is [b, m, d]. alignment = mean over i and a != c of |z_ia - z_ic|^2, which equals
    2 / (m - 1) sum_a |z_ia - mean_a z_ia|^2; zero for one view, which has no pair.
    Wang & Isola 2020, alpha = 2.
    """
    z = _unit(z)
    apart = z - jnp.mean(z, axis=1, keepdims=True)
    pairs = max(z.shape[1] - 1, 1)
    return jnp.mean(2 / pairs * jnp.sum(jnp.square(apart), axis=(1, 2)))


def uniformity(h: jax.Array, *, sharpness: float = 2.0) -> jax.Array:
    """How evenly the rows cover the sphere; 0 is collapsed, more negative is better.

    h is [n, d]. uniformity = log mean over i != j of exp(-sharpness |h_i - h_j|^2), at
    least -4 sharpness; zero for one row. Rows are processed in blocks, so memory is
    linear in n. Wang & Isola 2020, t = sharpness = 2.
    """
    h = _unit(h)
    rows = h.shape[0]
    if rows < 2:
        return jnp.zeros((), h.dtype)

    def potential(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, one = row
        squared = jnp.sum(jnp.square(one)) + jnp.sum(jnp.square(h), axis=1)
        squared = squared - 2 * jnp.matmul(h, one, precision="highest")
        kernel = jnp.exp(-sharpness * jnp.maximum(squared, 0))
        return jnp.sum(jnp.where(jnp.arange(rows) == index, 0, kernel)) / (rows - 1)

    means = jax.lax.map(potential, (jnp.arange(rows), h), batch_size=min(rows, 256))
    return jnp.log(jnp.mean(means))


def rankme(h: jax.Array) -> jax.Array:
    """Effective number of dimensions, from 1 to min(n, d).

    h is [n, d]. RankMe = exp(-sum_k p_k log p_k), p_k = s_k / sum_l s_l, with s the
    singular values of h (not centred); all-zero features have rank 1. Garrido et al.
    2023. The singular values are those of the d x d factor R of h = QR. The roots of
    the Gram matrix's eigenvalues are cheaper, but in float32 they lose every s below
    1e-3 of the largest (RankMe 153 instead of 339 on Fashion-MNIST pixels).
    """
    h = _float(h)
    h = h / jnp.maximum(jnp.max(jnp.abs(h)), jnp.finfo(h.dtype).tiny)
    singular = jnp.linalg.svd(jnp.linalg.qr(h, mode="r"), compute_uv=False)
    total = jnp.sum(singular)
    p = singular / jnp.where(total > 0, total, 1)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p, p)))


def standard_deviation(h: jax.Array) -> jax.Array:
    """Standard deviation of each dimension, relative to an even spread.

    h is [n, d], the result [d]: sqrt(d) times the deviation over the unit rows. It is 1
    on average for an even spread and 0 after a collapse. Chen & He 2021, figure 2.
    """
    h = _unit(h)
    return jnp.sqrt(jnp.asarray(h.shape[1], h.dtype)) * jnp.std(h, axis=0)


def health(z: jax.Array) -> dict[str, jax.Array]:
    """All four measures of a batch, as scalars to log; no alignment for one view.

    z is [b, m, d]. Uniformity is computed within each view and averaged over views, as
    in Wang & Isola 2020, so that it ignores how close a sample's own views are. RankMe
    and the standard deviation use all b * m rows.
    """
    rows = z.reshape(-1, z.shape[-1])
    return ({"alignment": alignment(z)} if z.shape[1] > 1 else {}) | {
        "uniformity": jnp.mean(jax.lax.map(uniformity, jnp.moveaxis(z, 1, 0))),
        "rankme": rankme(rows),
        "standard_deviation": jnp.mean(standard_deviation(rows)),
    }
