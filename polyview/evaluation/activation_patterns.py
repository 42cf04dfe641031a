"""Density and local error rate of a network in the space of its activation patterns.

A pattern g in {0, 1}^N says which of the N units of a layer are active, h > 0. The rows
of a fit have the distinct patterns j, n_j rows each, of which c_j are predicted right;
m = sum_j n_j. With Hamming distance d and bandwidth rho

    kappa(q, j) = exp(-d(q, j)^2 / (2 rho^2))
    Z = sum_i C(N, i) exp(-i^2 / (2 rho^2))
    P(q) = sum_j n_j kappa(q, j) / (m Z)
    E(q) = sum_j (n_j - c_j) kappa(q, j) / sum_j n_j kappa(q, j)

The density P, which sums to 1 over all patterns, says whether the network has been
here; fit it to rows that trained the network. E, the estimate of Nadaraya (1964) and
Watson (1964) of the error rate near q, says whether it was right here; fit it to rows
that did not train the network, since it has learnt those that did. Ji et al. 2022 (Test
Sample Accuracy Scales with Training Sample Density in Neural Networks) bound the error
at q by

    R(q) + sqrt(log(2 / delta) / (2 m)) / P(q)
    R(q) = sum_j (n_j - c_j) kappa(q, j) / (m F_j)
    F_j = sum_g P(g) kappa(g, j) = sum_l n_l G(d(j, l)) / (m Z)
    G(d(j, l)) = sum_g kappa(g, j) kappa(g, l)

so that sum_q P(q) R(q) is the error rate of the rows. The second term exceeds 1 by many
orders of magnitude: the bound is vacuous, and ranks as -P does. All sums over the 2^N
patterns are exact, and in log space, where nothing overflows.
"""

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import gammaln, logsumexp

from polyview import hosts
from polyview.errors import InputError

Form = Literal["exact", "released"]

_WORDS = 2**15  # compared at once: 256 KiB, for the cache of a core
_PAIRS = 2**23  # distances in memory at once in each thread: 16 MiB of uint16
_TERMS = 2**17  # of G at once: 1 MiB of float64


@dataclasses.dataclass(frozen=True, eq=False)
class Patterns:
    """The k distinct patterns of some rows, with how often each one occurs.

    Attributes:
      words: uint64[k, w], from `packed`.
      count: float64[k], the rows of each.
      correct: float64[k], those of them that are predicted right; None if not known.
      units: N.
      bandwidth: rho, in 1 .. N.
    """

    words: np.ndarray
    count: np.ndarray
    correct: np.ndarray | None
    units: int
    bandwidth: float

    @classmethod
    def fit(
        cls, active: np.ndarray, correct: np.ndarray | None, bandwidth: float
    ) -> "Patterns":
        """Merge rows of equal pattern.

        active: bool[n, units]; correct: bool[n], or None for densities only. Raises
        InputError for no rows or units, other shapes or types, a bandwidth outside
        1 .. units, and a layer in which no unit ever changes.
        """
        active = _checked(active)
        rows, units = active.shape
        _check_bandwidths(units, [bandwidth])
        if constant_share(active) == 1:
            bits = "inactive" if not active.any() else "active" if active.all() else ""
            raise InputError(
                f"activation patterns: all {units} units (100 %) are constant over "
                f"{rows} row{'s' * (rows > 1)}{bits and f', always {bits}'}; the layer "
                "is dead: name another one, or give other rows"
            )
        words = packed(active)
        # As one item a row, which numpy sorts by its bytes.
        items = words.view(np.dtype((np.void, words.itemsize * words.shape[1])))[:, 0]
        _, first, place, count = np.unique(
            items, return_index=True, return_inverse=True, return_counts=True
        )
        right = None
        if correct is not None:
            correct = np.asarray(correct)
            if correct.shape != (rows,) or correct.dtype != bool:
                raise InputError(
                    f"activation patterns: correct is {correct.dtype}"
                    f"{[*correct.shape]}; give bool[{rows}], one for each row of active"
                )
            right = np.bincount(place, correct, len(first))
        return cls(words[first], count.astype(np.float64), right, units, bandwidth)

    @property
    def rows(self) -> float:
        """m."""
        return float(self.count.sum())

    @property
    def errors(self) -> float:
        """The rows predicted wrong; if 0, E is 0 everywhere and says nothing.

        Raises InputError if `correct` is not known.
        """
        return float(self._wrong().sum())

    def log_density(self, active: np.ndarray) -> np.ndarray:
        """Return log P of queries bool[n, units], finite float64[n]."""
        return log_densities(self, active, [self.bandwidth])[0]

    def error_rate(self, active: np.ndarray) -> np.ndarray:
        """Return E of queries bool[n, units], float64[n] in 0 .. 1.

        Raises InputError if `correct` is not known.
        """
        return error_rates(self, active, [self.bandwidth])[0]

    def log_masses(self, form: Form = "exact") -> np.ndarray:
        """Return log F_j of each pattern, float64[k], in O(k^2).

        form: of Z, see `log_normaliser`.
        """
        return self._log_masses(np.arange(len(self.words)), form)

    def log_risk(self, active: np.ndarray, form: Form = "exact") -> np.ndarray:
        """Return log R of queries bool[n, units], float64[n]; -inf without errors.

        Only patterns with errors have a term: O(k) for each of these, and for each
        query.
        """
        rows = packed(_checked(active, self.units))
        wrong = self._wrong()
        used = np.flatnonzero(wrong)
        if not len(used):
            return np.full(len(rows), -np.inf)
        # No weight underflows: masses of patterns differ by a factor of at most m.
        log_masses = self._log_masses(used, form)
        weight = wrong[used] * np.exp(log_masses.min() - log_masses)
        tables = _log_kernels(self.units, [self.bandwidth])
        scale, sums = _log_scaled(rows, self.words[used], tables, weight[None])
        return scale[0] + np.log(sums[0, 0]) - log_masses.min() - math.log(self.rows)

    def log10_bound(
        self, active: np.ndarray, confidence: float = 0.95, form: Form = "exact"
    ) -> np.ndarray:
        """Return log10 of R + sqrt(log(2 / delta) / (2 m)) / P of queries, float64[n].

        A diagnostic, never an error rate: as a bound of the error it is vacuous, 10^100
        and more where a layer has some hundred units, and it ranks as -P does, whatever
        the confidence. active: bool[n, units]; confidence: 1 - delta, between 0 and 1;
        form: of Z. Raises InputError if `correct` is not known.
        """
        if not 0 < confidence < 1:
            raise InputError(
                f"activation patterns: confidence={confidence}; give one between 0 and "
                "1, such as 0.95"
            )
        log_risk = self.log_risk(active, form)
        log_density = self.log_density(active)
        log_density += log_normaliser(self.units, self.bandwidth)
        log_density -= log_normaliser(self.units, self.bandwidth, form)
        gap = math.sqrt(math.log(2 / (1 - confidence)) / (2 * self.rows))
        return np.logaddexp(log_risk, math.log(gap) - log_density) / math.log(10)

    def _wrong(self) -> np.ndarray:
        if self.correct is None:
            raise InputError(
                "activation patterns: these were fitted without `correct`, so only "
                "densities are known; give which rows are predicted right"
            )
        return self.count - self.correct

    def _log_masses(self, which: np.ndarray, form: Form) -> np.ndarray:
        tables = log_factors(self.units, self.bandwidth)[None]
        scale, sums = _log_scaled(
            self.words[which], self.words, tables, self.count[None]
        )
        log_normalised = log_normaliser(self.units, self.bandwidth, form)
        return scale[0] + np.log(sums[0, 0]) - math.log(self.rows) - log_normalised


class Estimates(NamedTuple):
    """log P and E of n queries at several bandwidths, float64[bandwidths, n]."""

    log_density: np.ndarray
    error_rate: np.ndarray


def estimates(
    patterns: Patterns, active: np.ndarray, bandwidths: Sequence[float]
) -> Estimates:
    """Return log P and E of queries bool[n, units] at each of several bandwidths.

    Distances, which take nearly all the time, are computed once. Raises InputError if
    `correct` is not known.
    """
    weights = np.stack([patterns.count, patterns._wrong()])
    scale, sums = _kernel_sums(patterns, active, bandwidths, weights)
    return Estimates(
        _normalised(patterns, bandwidths, scale, sums[0]),
        np.minimum(sums[1] / sums[0], 1),  # rounding
    )


def log_densities(
    patterns: Patterns, active: np.ndarray, bandwidths: Sequence[float]
) -> np.ndarray:
    """Return log P of queries bool[n, units], float64[bandwidths, n], as `estimates`.

    `correct` may be unknown.
    """
    scale, sums = _kernel_sums(patterns, active, bandwidths, patterns.count[None])
    return _normalised(patterns, bandwidths, scale, sums[0])


def error_rates(
    patterns: Patterns, active: np.ndarray, bandwidths: Sequence[float]
) -> np.ndarray:
    """Return E of queries bool[n, units], float64[bandwidths, n], as `estimates`."""
    return estimates(patterns, active, bandwidths).error_rate


def log_normaliser(units: int, bandwidth: float, form: Form = "exact") -> float:
    """Return log Z.

    form: "exact", or "released" for sum_i C(N, i) exp(-i^2 rho^2 / 2), only to compare
    with numbers of the authors' code: this has the inverse of the bandwidth, and P no
    longer sums to 1. Raises InputError for a bandwidth outside 1 .. units.
    """
    _check_bandwidths(units, [bandwidth])
    if form not in ("exact", "released"):
        raise InputError(
            f"activation patterns: the normaliser's form is {form!r}; give 'exact', or "
            "'released' to compare with the published code"
        )
    steps = np.arange(units + 1)
    width = bandwidth if form == "exact" else 1 / bandwidth
    log_binomials = _log_binomials(_log_factorials(units), np.array([units]))[0]
    return float(logsumexp(log_binomials - np.square(steps / width) / 2))


def log_factors(units: int, bandwidth: float) -> np.ndarray:
    """Return log G(d) for d = 0 .. units, float64[units + 1], exactly, in O(units^2).

    Let g differ from one pattern in k of the d bits in which the two differ, and in l
    of the N - d others. Its distances are k + l and d - k + l, whose squares sum to
    2 (k - d/2)^2 + 2 (l + d/2)^2, so that the sum over k and l factorises:

        G(d) = sum_k C(d, k) exp(-(k - d/2)^2 / rho^2)
             * sum_l C(N - d, l) exp(-(l + d/2)^2 / rho^2)

    Raises InputError for a bandwidth outside 1 .. units.
    """
    _check_bandwidths(units, [bandwidth])
    log_factorials = _log_factorials(units)
    flips = np.arange(units + 1)
    found = np.empty(units + 1)
    block = max(1, _TERMS // (units + 1))
    for start in range(0, units + 1, block):
        d = np.arange(start, min(start + block, units + 1))
        half = d[:, None] / 2
        inside = _log_binomials(log_factorials, d)
        inside -= np.square((flips[: inside.shape[1]] - half) / bandwidth)
        outside = _log_binomials(log_factorials, units - d)
        outside -= np.square((flips[: outside.shape[1]] + half) / bandwidth)
        found[d] = logsumexp(inside, axis=1) + logsumexp(outside, axis=1)
    return found


def packed(active: np.ndarray) -> np.ndarray:
    """Return patterns of one bit a unit, bool[n, units] -> uint64[n, ceil(units / 64)].

    The bits beyond `units` are 0.
    """
    bits = np.packbits(_checked(active), axis=1)
    return np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)


def distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Hamming distances of packed patterns.

    rows: uint64[n, w]; others: uint64[m, w] -> the smallest unsigned integer that holds
    64 w, [n, m]. Besides these it needs less than 1 MiB.
    """
    width = rows.shape[1]
    kind = np.min_scalar_type(64 * width)
    found = np.empty((len(rows), len(others)), kind)
    step = max(1, _WORDS // width)
    for start in range(0, len(others), step):
        # Words first, so that sums over words run along memory.
        block = np.ascontiguousarray(others[start : start + step].T)
        differing, bits = np.empty_like(block), np.empty(block.shape, np.uint8)
        for row, out in zip(rows, found[:, start : start + step], strict=True):
            np.bitwise_xor(block, row[:, None], out=differing)
            np.bitwise_count(differing, out=bits)
            bits.sum(axis=0, dtype=kind, out=out)
    return found


def constant_share(active: np.ndarray) -> float:
    """Return the share of units that are the same in all rows, bool[n, units]."""
    active = _checked(active)
    return float((active.all(axis=0) | ~active.any(axis=0)).mean())


def _kernel_sums(
    patterns: Patterns,
    active: np.ndarray,
    bandwidths: Sequence[float],
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    rows = packed(_checked(active, patterns.units))
    _check_bandwidths(patterns.units, bandwidths)
    tables = _log_kernels(patterns.units, bandwidths)
    return _log_scaled(rows, patterns.words, tables, weights)


def _normalised(
    patterns: Patterns,
    bandwidths: Sequence[float],
    scale: np.ndarray,
    sums: np.ndarray,
) -> np.ndarray:
    normalisers = [log_normaliser(patterns.units, one) for one in bandwidths]
    log_total = math.log(patterns.rows) + np.array(normalisers)[:, None]
    return scale + np.log(sums) - log_total


def _log_kernels(units: int, bandwidths: Sequence[float]) -> np.ndarray:
    """Return log kappa at each distance, float64[bandwidths, units + 1]."""
    scaled = np.arange(units + 1) / np.asarray(bandwidths, np.float64)[:, None]
    return -np.square(scaled) / 2


def _log_scaled(
    rows: np.ndarray, others: np.ndarray, tables: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum weight * exp(table[distance]) over `others`, for each row, table and weight.

    rows: uint64[n, w]; others: uint64[k, w]; tables: float64[r, units + 1]; weights:
    float64[s, k], not negative -> scale float64[r, n] and sums float64[s, r, n], to be
    multiplied by exp(scale), the term of the nearest of `others`.
    """

    def some(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = np.empty((len(tables), len(block)))
        sums = np.empty((len(weights), len(tables), len(block)))
        for at, row in enumerate(distances(block, others)):
            # Tables depend on the distance alone: one histogram serves all of them.
            low, high = int(row.min()), int(row.max()) + 1
            scale[:, at] = tables[:, low]
            terms = np.exp(tables[:, low:high] - tables[:, low, None])
            for weight, out in zip(weights, sums, strict=True):
                out[:, at] = terms @ np.bincount(row, weight)[low:]
        return scale, sums

    step = max(1, _PAIRS // len(others))
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    with ThreadPoolExecutor(min(len(blocks), hosts.cores())) as pool:
        scales, sums = zip(*pool.map(some, blocks), strict=True)
    return np.concatenate(scales, axis=-1), np.concatenate(sums, axis=-1)


def _log_factorials(most: int) -> np.ndarray:
    return gammaln(np.arange(most + 1) + 1.0)


def _log_binomials(log_factorials: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """Return log C(top, i), i = 0 .. max(tops), float64[tops, i]; -inf for i > top."""
    chosen = np.arange(tops.max() + 1)
    rest = tops[:, None] - chosen
    found = log_factorials[tops, None] - log_factorials[chosen]
    found -= log_factorials[np.maximum(rest, 0)]
    return np.where(rest >= 0, found, -np.inf)


def _checked(active: np.ndarray, units: int | None = None) -> np.ndarray:
    active = np.asarray(active)
    if active.ndim != 2 or active.dtype != bool:
        raise InputError(
            f"activation patterns: these are {active.dtype}{[*active.shape]}; give "
            "bool[rows, units], such as h > 0"
        )
    if not active.size:
        rows, given = active.shape
        raise InputError(
            f"activation patterns: {rows} rows of {given} units; give one or more of "
            "both"
        )
    if units is not None and active.shape[1] != units:
        raise InputError(
            f"activation patterns: queries have {active.shape[1]} units, the fitted "
            f"patterns {units}; take both from the same layer of the same network"
        )
    return active


def _check_bandwidths(units: int, bandwidths: Sequence[float]) -> None:
    if units < 1:
        raise InputError(f"activation patterns: {units} units; give a layer with units")
    wrong = [one for one in bandwidths if not 1 <= one <= units]
    if wrong or not len(bandwidths):
        given = wrong[0] if wrong else "no"
        raise InputError(
            f"activation patterns: bandwidth {given}; give one or more between 1 and "
            f"the number of units, {units}"
        )
