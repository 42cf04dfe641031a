"""Several data sets in one run: each has its exact share of every batch.

    shares   s_d = batch_size * weight_d / sum of weights
    rows     of domain d in step t: floor(E_d + u/q) - floor(E_(d-1) + u/q)

with E_d = s_1 + ... + s_d, q the common denominator of the shares, and u = t g mod q,
where g shares no factor with q: less than one row from the share in each step, and over
each q steps exactly q s_d rows (Hermite's identity). g is near q times the golden
ratio, so that it is nearly so over any number of steps.
Each domain goes through its own permutations, one after the other; what a step shows
follows from seed and step alone.

A model sees the views and targets of every domain in every row, as "domain/name": zeros
and not present in the rows of others. The target `domain` is the number of the row's,
in the order of their names. A model that takes all domains alike has `Alike` instead.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import ceil, floor, gcd, lcm
from typing import Any

import numpy as np

from polyview.data.pipeline import permutation
from polyview.data.sources.digest import derived
from polyview.data.sources.protocol import Source, class_task
from polyview.data.views import Example
from polyview.errors import InputError

DOMAIN = "domain"  # a target; see the module
_MOST = 100_000  # steps after which the numbers of rows repeat

# The pipeline keeps few, as an epoch needs one; a batch here, up to two of each domain.
_permutation = functools.lru_cache(maxsize=32)(permutation.__wrapped__)
_log = logging.getLogger(__name__)


def shares(weights: Mapping[str, float], batch_size: int) -> list[Fraction]:
    """Return the rows of a batch that each domain has on average.

    Raises InputError for weights that are negative, not finite or all 0, and for ones
    that need more than 100,000 steps to come out even.
    """
    exact = {name: _fraction(name, weight) for name, weight in weights.items()}
    total = sum(exact.values())
    if not total:
        raise InputError("the weights of the mixture are all 0; raise one")
    found = [batch_size * weight / total for weight in exact.values()]
    if lcm(*(share.denominator for share in found)) > _MOST:
        raise InputError(
            f"the weights {dict(weights)} do not come out even within {_MOST:,} steps; "
            "give small whole numbers"
        )
    return found


def most_rows(weights: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Return the most rows of each domain in a batch; see `shares`."""
    found = zip(weights, shares(weights, batch_size), strict=True)
    return {name: ceil(share) for name, share in found}


def _fraction(name: str, weight: float) -> Fraction:
    if isinstance(weight, bool) or not 0 <= weight < float("inf"):
        raise InputError(f"the weight of {name!r} is {weight}; give 0 or more")
    return Fraction(str(weight))  # as it is written: 0.1 is a tenth


@dataclass(frozen=True)
class Quotas:
    """Which rows of a mixture make a batch; see the module.

    sizes: rows of each domain's source, which stand one after the other.
    """

    sizes: tuple[int, ...]
    shares: tuple[Fraction, ...]
    seed: int

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """The rows of each domain in each step of a period, int64[q, domains]."""
        period = lcm(*(share.denominator for share in self.shares))
        edges = [Fraction(0), *accumulate(self.shares)]
        stride = round(period * (5**0.5 - 1) / 2)
        while gcd(stride, period) > 1:
            stride += 1
        whole = [
            [floor(edge + Fraction(step * stride % period, period)) for edge in edges]
            for step in range(period)
        ]
        return np.diff(np.array(whole, np.int64), axis=1)

    @functools.cached_property
    def _before(self) -> np.ndarray:
        start = np.zeros((1, len(self.sizes)), np.int64)
        return np.concatenate([start, np.cumsum(self.counts, 0)])

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch and the number of each row of a batch, int64[b].

        Domains are spread evenly over the batch, so that all hosts read some of each.
        """
        periods, inside = divmod(step, len(self.counts))
        count = self.counts[inside]
        first = periods * self._before[-1] + self._before[inside]
        found, starts = [], np.cumsum((0, *self.sizes[:-1]))
        for domain, size in enumerate(self.sizes):
            place = first[domain] + np.arange(count[domain])
            epochs, places = np.divmod(place, size)
            rows = [
                _permutation(size, self.seed, epoch + (domain << 40))[at]
                for epoch, at in zip(epochs.tolist(), places.tolist(), strict=True)
            ]
            spread = (np.arange(count[domain]) + 0.5) / max(count[domain], 1)
            rows = starts[domain] + np.array(rows, np.int64)
            found.append(np.stack([spread, epochs, rows]))
        every = np.concatenate(found, 1)
        _, epochs, rows = every[:, np.argsort(every[0], kind="stable")].astype(np.int64)
        return epochs, rows

    def name(self, wanted: int, read: int) -> int:
        """Return the `index` of a row read in place of the wanted one."""
        return read


class Mixture:
    """Sources, one after the other, that share each batch by weights; see the module.

    A row is {"domain", "example", "sources"}: the row of its source, and all of these,
    for `OfDomains`. Give the run `steps`, as domains have epochs of their own.

    Args:
      sources: {domain: source}, one or more.
      weights: {domain: its weight}; None gives all the same.

    Raises InputError for other domains in weights than in sources, an empty source, and
    the weights that `shares` refuses.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float] | None = None,
    ):
        if not sources:
            raise InputError("a mixture needs a source or more")
        weights = dict.fromkeys(sources, 1) if weights is None else dict(weights)
        if weights.keys() != sources.keys():
            raise InputError(
                f"the mixture has the domains {', '.join(sources)}, and weights of "
                f"{', '.join(weights)}; give each its weight"
            )
        for name, source in sources.items():
            if not len(source):
                raise InputError(f"the domain {name!r} has no examples")
        # By name: a config that is read again from JSON has its keys in that order.
        self._sources = dict(sorted(sources.items()))
        self._weights = {name: weights[name] for name in self._sources}
        shares(self._weights, 1)
        self._ends = np.cumsum([len(source) for source in self._sources.values()])
        self.targets: dict[str, dict[str, Any]] = {DOMAIN: class_task([*self._sources])}
        for name, source in self._sources.items():
            for target, task in source.targets.items():
                self.targets[f"{name}/{target}"] = task

    @property
    def digest(self) -> str:
        """The digest of all rows and their weights; "" if a source has none."""
        texts = [str(sorted(self._weights.items()))]
        for source in self._sources.values():
            texts = [derived(source, ["mixture", *texts])]
            if not texts[0]:
                break
        return texts[0]

    def order(self, batch_size: int, seed: int) -> Quotas:
        """Return which rows make the batches of a run.

        Warns of a domain that has fewer rows than its share of one batch.
        """
        sizes = [len(source) for source in self._sources.values()]
        own = shares(self._weights, batch_size)
        for name, size, share in zip(self._sources, sizes, own, strict=True):
            if share > size:
                _log.warning(
                    "the domain %r has %d examples, and %.4g of each batch: some are "
                    "there twice",
                    name,
                    size,
                    share,
                )
        return Quotas(tuple(sizes), tuple(own), seed)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, "right"))
        name = [*self._sources][number]
        start = int(self._ends[number - 1]) if number else 0
        example = self._sources[name][int(index) - start]
        return {DOMAIN: name, "example": example, "sources": self._sources}

    def __repr__(self) -> str:
        parts = (f"{name}: {source!r}" for name, source in self._sources.items())
        return f"Mixture({', '.join(parts)})"


class OfDomains:
    """Views of a row of a mixture: those of its domain, and none of the others.

    Call it as `views(example, rng)`, with a row of `Mixture`.

    Args:
      views: {domain: its views}. A domain's views have the same shapes in every row.

    Raises InputError for a row of a domain without views.
    """

    def __init__(self, views: Mapping[str, Callable[..., dict[str, Any]]]):
        self.views = dict(sorted(views.items()))
        self._blank: dict[str, dict[str, Any]] = {}

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        name = example[DOMAIN]
        if name not in self.views:
            raise InputError(
                f"the mixture has the domain {name!r}, and views of "
                f"{', '.join(self.views)}; give views of each"
            )
        made = {name: self.views[name](example["example"], rng)}
        for other in self.views:
            if other != name:
                made[other] = self._absent(other, example["sources"])
        found: dict[str, Any] = {"views": {}, "present": {}, "targets": {}}
        for domain in self.views:
            for part, values in made[domain].items():
                for key, value in values.items():
                    found[part][f"{domain}/{key}"] = value
        number = np.asarray([*self.views].index(name), np.int64)
        found["targets"][DOMAIN] = number
        return found

    def _absent(self, name: str, sources: Mapping[str, Source]) -> dict[str, Any]:
        """Return zeros in the shapes of a domain's views."""
        if name not in self._blank:
            made = self.views[name](sources[name][0], np.random.default_rng(0))
            self._blank[name] = {
                part: {key: np.zeros_like(value) for key, value in values.items()}
                for part, values in made.items()
            }
        return self._blank[name]


class Alike:
    """The same views of the rows of all domains of a mixture, under their own names."""

    def __init__(self, views: Callable[..., dict[str, Any]]):
        self.views = views

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, Any]:
        return self.views(example["example"], rng)


def of_domain(batch: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the views, masks and targets of a domain under their own names."""
    return {part: under(batch[part], name) for part in ("views", "present", "targets")}


def under(parts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what is called "name/...", by the rest of its name."""
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): value
        for key, value in parts.items()
        if key.startswith(prefix)
    }
