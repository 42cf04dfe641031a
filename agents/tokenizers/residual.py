"""Actions as tokens by residual quantisation, learnt (RVQ-VAE) or by k-means alone.

    e = Enc(a),  r_0 = e
    k_m = argmin_k |r_{m-1} - C_m[k]|^2,  r_m = r_{m-1} - C_m[k_m]
    a' = Dec(sum_m C_m[k_m])

With one codebook this is vector quantisation (van den Oord et al. 2017), with several
that of SoundStream (Zeghidour et al. 2021). Codebooks are no parameters but means of
what chose them, as exponential moving averages (van den Oord et al., appendix A.1):

    N <- g N + (1 - g) n,   S <- g S + (1 - g) s,   C = S / N

of the n rows of a batch that chose a code, and their sum s. They begin as k-means of
the first batch, so that no average starts at zero; the larger it is, the better. A code
that hardly any row chooses, since the encoder has moved on, would not move either. It
is replaced by a row of the batch, more likely one that the codebook fits badly.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from agents.tokenizers.uniform import Range
from polyview.errors import TINY, InputError, check_range

_LLOYD = 10  # iterations of the first batch's k-means


def nearest_codes(rows: jax.Array, codebook: jax.Array) -> jax.Array:
    """Return the code of least distance, int32[n], of rows[n, d] in codebook[K, d]."""
    # |r|^2 is the same for all codes. TPUs would round the product to bfloat16.
    products = jnp.matmul(rows, codebook.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.square(codebook).sum(1)[None] - 2 * products
    return distances.argmin(1).astype(jnp.int32)


def quantise(residual: jax.Array, codebooks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the codes int32[n, M] of rows, and their sum float[n, dim].

    residual: float[n, dim], r_0. codebooks: float[M, K, dim].
    """
    codes, rest = [], residual
    for codebook in codebooks:
        codes.append(nearest_codes(rest, codebook))
        rest = rest - codebook[codes[-1]]
    chosen = jnp.stack(codes, 1)
    return chosen, summed(chosen, codebooks)


def summed(codes: jax.Array, codebooks: jax.Array) -> jax.Array:
    """Return sum_m C_m[k_m], float[n, dim], of codes int32[n, M]."""
    return _chosen(codes, codebooks).sum(0)


def remainders(
    residual: jax.Array, codebooks: jax.Array, codes: jax.Array
) -> jax.Array:
    """Return r_0 .. r_M, float[M + 1, n, dim], of rows and their codes."""
    steps = jnp.cumsum(_chosen(codes, codebooks), 0)
    return jnp.concatenate([residual[None], residual[None] - steps])


def ema_update(
    counts: jax.Array,
    sums: jax.Array,
    given: jax.Array,
    codes: jax.Array,
    valid: jax.Array,
    decay: float,
) -> tuple[jax.Array, jax.Array]:
    """Return the moving averages N[M, K] and S[M, K, dim] after a batch.

    given: float[M, n, dim], what each codebook quantised: `remainders` but the last.
    codes: int32[n, M]. valid: bool[n], which rows count.
    """
    chose = jax.nn.one_hot(codes.T, counts.shape[1], dtype=sums.dtype)
    chose = chose * valid[None, :, None]
    highest = jax.lax.Precision.HIGHEST
    new = jnp.einsum("mnk,mnd->mkd", chose, given, precision=highest)
    return (
        decay * counts + (1 - decay) * chose.sum(1),
        decay * sums + (1 - decay) * new,
    )


def replace_dead(
    counts: jax.Array,
    sums: jax.Array,
    given: jax.Array,
    codes: jax.Array,
    valid: jax.Array,
    threshold: float,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Return N and S with rows of the batch in place of codes that few rows choose.

    A code is dead if its N is below `threshold` of the mean, sum N / K: at that number
    a larger codebook would be dead as a whole. The rows are drawn by the key, without
    repetition, in proportion to their squared error; a new code counts as the mean one.
    Arguments are those of `ema_update`.
    """
    size = counts.shape[1]
    mean = counts.sum(1, keepdims=True) / size
    dead = counts < threshold * mean
    books = sums / jnp.maximum(counts, TINY)[..., None]
    errors = jnp.square(given - _chosen(codes, books)).sum(-1)
    keys = jax.random.split(key, len(counts))
    rows = jax.vmap(drawn, (0, None, None, 0))(errors, valid, size, keys)
    # The first dead code takes the first row drawn, the second the second ...
    turn = jnp.cumsum(dead, 1) - dead
    rows = jnp.take_along_axis(rows, turn, 1)
    new = jnp.take_along_axis(given, rows[..., None], 1)
    return (
        jnp.where(dead, mean, counts),
        jnp.where(dead[..., None], new * mean[..., None], sums),
    )


def drawn(weight: jax.Array, valid: jax.Array, count: int, key: jax.Array) -> jax.Array:
    """Draw `count` rows in proportion to weight[n], int32[count], none twice.

    Only if fewer are valid, they repeat. The largest of log weight + Gumbel noise are
    such a draw (Efraimidis & Spirakis 2006).
    """
    score = jnp.log(jnp.maximum(weight, TINY)) + jax.random.gumbel(key, weight.shape)
    order = jax.lax.top_k(jnp.where(valid, score, -jnp.inf), count)[1]
    return order[jnp.arange(count) % jnp.maximum(valid.sum(), 1)]


def spread(rows: jax.Array, valid: jax.Array, count: int, key: jax.Array) -> jax.Array:
    """Draw rows far apart to begin k-means, float[count, d] (Arthur & Vassilvitskii).

    Each is drawn in proportion to its squared distance from those before it. Drawn
    alike, most of many codes would lie where the data are dense, not where they err.
    """
    noise = jax.random.gumbel(key, (count, len(rows)))

    def add(
        number: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        book, nearest = carry
        score = jnp.log(jnp.maximum(nearest, TINY**2)) + noise[number]
        row = rows[jnp.where(valid, score, -jnp.inf).argmax()]
        distance = jnp.square(rows - row[None]).sum(1)
        return book.at[number].set(row), jnp.minimum(nearest, distance)

    book = jnp.zeros((count, rows.shape[1]), rows.dtype)
    far = jnp.full(len(rows), 1e30, rows.dtype)
    return jax.lax.fori_loop(0, count, add, (book, far))[0]


def k_means(
    residual: jax.Array, valid: jax.Array, codebooks: int, codes: int, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return codebooks that quantise a batch, and their N and S: of what is left over.

    residual: float[n, dim]. Each codebook begins with `spread` rows and takes 10
    iterations of Lloyd (1982), then the next one takes the remainders.
    """
    books, counts, sums = [], [], []
    rest = residual
    for one in jax.random.split(key, codebooks):
        book = spread(rest, valid, codes, one)

        def moved(_: jax.Array, book: jax.Array, rest: jax.Array = rest) -> jax.Array:
            number, total = _assigned(rest, book, valid)
            mean = total / jnp.maximum(number, 1)[:, None]
            return jnp.where((number > 0)[:, None], mean, book)

        book = jax.lax.fori_loop(0, _LLOYD, moved, book)
        number, _ = _assigned(rest, book, valid)
        books.append(book)
        # None starts at zero: what no row chose would be a mean of nothing.
        counts.append(jnp.maximum(number, TINY))
        sums.append(book * counts[-1][:, None])
        rest = rest - book[nearest_codes(rest, book)]
    return jnp.stack(books), jnp.stack(counts), jnp.stack(sums)


def perplexity(counts: jax.Array) -> jax.Array:
    """Return exp of the entropy of each codebook, float[M], of counts[M, K].

    K if all codes are chosen equally often, 1 if one is chosen always.
    """
    share = counts / jnp.maximum(counts.sum(1, keepdims=True), TINY)
    terms = jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0)
    return jnp.exp(-terms.sum(1))


class Reconstruction(NamedTuple):
    """Actions, scaled, and drawn again from their tokens.

    scaled, decoded: float[n, a]. commitment: float[n], mean_m |r_m|^2 with constant
    codes. codes: int32[n, M].
    """

    scaled: jax.Array
    decoded: jax.Array
    commitment: jax.Array
    codes: jax.Array


class ResidualVQ(nnx.Module):
    """A residual VQ-VAE of single actions: `codebooks` tokens of `codes` values each.

    Encoder and decoder are an isometry and an MLP beside it, which begins at zero:

        Enc(a) = Q a + MLP(a),   Dec(q) = Q^T q + MLP(q),   Q^T Q = 1

    so training starts from plain residual k-means of the actions and need not find it.
    Q stays as drawn. With `dim` less than a it is a projection, Q Q^T = 1.

    Args:
      low, high: of `agents.tokenizers.uniform:Range`.
      codebooks, codes: M and K.
      width, depth: of the hidden layers of either MLP.
      dim: of a code.
      decay: g of the moving averages.
      threshold: below this share of the mean number of rows a code is replaced; 0:
        never. Where few actions lie far apart, codes for them are seldom chosen and
        still worth having: 0.1 raised the error.
    """

    def __init__(
        self,
        *,
        low: Sequence[float],
        high: Sequence[float],
        codebooks: int = 2,
        codes: int = 256,
        width: int = 256,
        dim: int = 8,
        depth: int = 2,
        decay: float = 0.99,
        threshold: float = 0.02,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, codebooks=codebooks, width=width, dim=dim, depth=depth)
        check_range(2, codes=codes)
        check_range(0.0, 1 - TINY, decay=decay, threshold=threshold)
        self.range = Range(low, high)
        self.length, self.codes = codebooks, codes
        self.decay, self.threshold = decay, threshold
        size = self.range.size
        sides = max(dim, size), min(dim, size)
        tall, _ = jnp.linalg.qr(jax.random.normal(rngs.params(), sides))
        isometry = tall.T if dim >= size else tall
        # Never written; a statistic, so that a checkpoint has it.
        self.isometry = nnx.BatchStat(isometry.astype(param_dtype))
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        hidden = [width] * depth
        self.encoder = _Layers([size, *hidden, dim], **options)
        self.decoder = _Layers([dim, *hidden, size], **options)
        shape = codebooks, codes
        self.books = nnx.BatchStat(jnp.zeros((*shape, dim), param_dtype))
        self.counts = nnx.BatchStat(jnp.zeros(shape, param_dtype))
        self.sums = nnx.BatchStat(jnp.zeros((*shape, dim), param_dtype))
        # 1 after the first batch, and a float so that an average of it is one, too.
        self.begun = nnx.BatchStat(jnp.zeros((), param_dtype))

    def tokens(self, actions: jax.Array) -> jax.Array:
        """Return the codes, int32[n, M]. Raises InputError for another a."""
        return quantise(self._encoded(self.range.scaled(actions)), self.books[...])[0]

    def actions(self, tokens: jax.Array) -> jax.Array:
        """Return the actions of codes int32[n, M], float[n, a], in the range."""
        return self.range.restored(self._decoded(summed(tokens, self.books[...])))

    def scaled(self, actions: jax.Array) -> jax.Array:
        """Return the actions in [-1, 1], float[n, a]."""
        return self.range.scaled(actions)

    def outside(self, actions: jax.Array) -> jax.Array:
        """Return whether a number is clipped, bool[n, a]."""
        return self.range.outside(actions)

    def reconstruct(
        self, actions: jax.Array, valid: jax.Array, key: jax.Array
    ) -> Reconstruction:
        """Quantise the actions of a training batch, and learn the codebooks from it.

        The gradient of `decoded` passes through the codes as if they were r_0. valid:
        bool[n], which rows count for the codebooks. Raises InputError for fewer rows
        than codes.
        """
        if len(actions) < self.codes:
            raise InputError(
                f"a batch of {len(actions)} actions cannot begin codebooks of "
                f"codes={self.codes}; give larger batches or fewer codes"
            )
        scaled = self.range.scaled(actions)
        encoded = self._encoded(scaled)
        fixed = jax.lax.stop_gradient(encoded)
        to_begin, to_replace = jax.random.split(key)
        books, counts, sums = jax.lax.cond(
            self.begun[...] > 0,
            lambda: (self.books[...], self.counts[...], self.sums[...]),
            lambda: k_means(fixed, valid, self.length, self.codes, to_begin),
        )
        codes, quantised = quantise(fixed, books)
        rest = remainders(encoded, books, codes)
        commitment = jnp.square(rest[1:]).sum(-1).mean(0)
        given = jax.lax.stop_gradient(rest[:-1])
        counts, sums = ema_update(counts, sums, given, codes, valid, self.decay)
        if self.threshold:
            counts, sums = replace_dead(
                counts, sums, given, codes, valid, self.threshold, to_replace
            )
        self.books[...] = sums / jnp.maximum(counts, TINY)[..., None]
        self.counts[...], self.sums[...] = counts, sums
        self.begun[...] = jnp.ones_like(self.begun[...])
        straight = encoded + jax.lax.stop_gradient(quantised - encoded)
        return Reconstruction(scaled, self._decoded(straight), commitment, codes)

    def _encoded(self, scaled: jax.Array) -> jax.Array:
        return scaled @ self.isometry[...] + self.encoder(scaled)

    def _decoded(self, quantised: jax.Array) -> jax.Array:
        return quantised @ self.isometry[...].T + self.decoder(quantised)


class ResidualMeans(nnx.Module):
    """Residual k-means of the scaled actions: `ResidualVQ` without a network.

    `fit` makes one. codebooks: float[M, K, a].
    """

    def __init__(
        self,
        *,
        low: Sequence[float],
        high: Sequence[float],
        codebooks: int = 2,
        codes: int = 256,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs  # `fit` draws, from a seed
        check_range(1, codebooks=codebooks, codes=codes)
        self.range = Range(low, high)
        self.length, self.codes = codebooks, codes
        self.books = nnx.BatchStat(jnp.zeros((codebooks, codes, self.range.size)))

    def tokens(self, actions: jax.Array) -> jax.Array:
        """Return the codes, int32[n, M]. Raises InputError for another a."""
        return quantise(self.range.scaled(actions), self.books[...])[0]

    def actions(self, tokens: jax.Array) -> jax.Array:
        """Return the actions of codes int32[n, M], float[n, a], in the range."""
        return self.range.restored(summed(tokens, self.books[...]))

    def scaled(self, actions: jax.Array) -> jax.Array:
        """Return the actions in [-1, 1], float[n, a]."""
        return self.range.scaled(actions)

    def outside(self, actions: jax.Array) -> jax.Array:
        """Return whether a number is clipped, bool[n, a]."""
        return self.range.outside(actions)


def fit(
    actions: np.ndarray,
    codebooks: int,
    codes: int,
    seed: int,
    *,
    low: Sequence[float],
    high: Sequence[float],
) -> ResidualMeans:
    """Return `ResidualMeans` of actions float[n, a], on the host.

    low, high: of their range. Raises InputError for more codes than distinct actions,
    of which a code would stand for none.
    """
    from sklearn.cluster import KMeans  # seconds to import

    means = ResidualMeans(low=low, high=high, codebooks=codebooks, codes=codes)
    rest = np.asarray(means.scaled(jnp.asarray(actions, jnp.float32)), np.float64)
    distinct = len(np.unique(rest, axis=0))
    if codes > distinct:
        raise InputError(
            f"codes={codes}, but there are only {distinct} distinct actions; give as "
            "many codes or fewer"
        )
    books = np.zeros(means.books.shape)
    for book in books:
        # Few actions may leave fewer distinct remainders; the last codes stay 0.
        most = min(codes, len(np.unique(rest, axis=0)))
        found = KMeans(most, n_init=1, random_state=seed).fit(rest)
        book[:most] = found.cluster_centers_
        rest = rest - found.cluster_centers_[found.labels_]
    means.books[...] = jnp.asarray(books, means.books.dtype)
    return means


class _Layers(nnx.Module):
    """Linear layers of these widths with GELU between them; the last begins at 0."""

    def __init__(self, widths: Sequence[int], **options: Any):
        *hidden, out = widths
        self.hidden = nnx.List(
            nnx.Linear(wide, narrow, **options)
            for wide, narrow in zip(hidden, hidden[1:], strict=False)
        )
        zeros = nnx.initializers.zeros_init()
        self.output = nnx.Linear(hidden[-1], out, kernel_init=zeros, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.hidden:
            x = nnx.gelu(layer(x))
        y = self.output(x)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))


def _chosen(codes: jax.Array, codebooks: jax.Array) -> jax.Array:
    """Return C_m[k_m], float[M, n, dim], of codes int32[n, M]."""
    return jax.vmap(lambda book, own: book[own])(codebooks, codes.T)


def _assigned(
    rows: jax.Array, book: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return how many rows chose each code, float[K], and their sums float[K, d]."""
    chose = jax.nn.one_hot(nearest_codes(rows, book), len(book), dtype=rows.dtype)
    chose = chose * valid[:, None]
    highest = jax.lax.Precision.HIGHEST
    return chose.sum(0), jnp.matmul(chose.T, rows, precision=highest)
