"""Batches as a pure function of (seed, step), on any number of hosts and workers.

    epoch, place = divmod(step, len // B)
    batch(step) = views(source[permutation(seed, epoch)[place B : (place + 1) B]])

Each row draws from its own random stream, keyed by (seed, epoch, index), so its value
does not depend on which host, thread or process computes it, and their numbers may
change when a run resumes. Host p of n makes the contiguous block p B/n .. (p+1) B/n of
every batch. There is no iterator state to save: the position of a run is its step.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from polyview.data.sources.protocol import (
    CorruptRecord,
    Source,
    check_numbers,
    check_targets,
)
from polyview.data.workers import explained
from polyview.errors import InputError

Views = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
Batch = dict[str, Any]

PADDING = -1  # `index` of a padding row
_ORDER, _VIEWS = 0, 1  # purposes of a random stream
_GIVE_UP = 100  # consecutive corrupt records before the source counts as unreadable

_log = logging.getLogger(__name__)


def batches(
    source: Source,
    views: Views,
    *,
    seed: int,
    batch_size: int,
    steps: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) for the steps start .. steps - 1.

    Every epoch is a new permutation; its last len(source) % batch_size rows are
    dropped, so a batch never spans two epochs. A corrupt record is replaced by the next
    valid one of the source, and `index` gives the row actually read.

    Args:
      source: the examples.
      views: from `polyview.data.views`.
      seed: 0 .. 2**64 - 1.
      batch_size: unique samples of the global batch.
      steps: end before this step.
      start: the first step; not 0 in a resumed run.
      process_index: the number of this host.
      process_count: the number of hosts.
      workers: processes that make batches; 0 makes them in a thread of this process.

    Yields:
      The step and this host's rows: `views` {name: [b, m, ...]}, `present`
      {name: bool[b, m]}, `targets` {name: [b, ...]} and `index` int64[b].

    Raises:
      InputError: the source is unreadable or has fewer than batch_size examples, or
        the hosts cannot share a batch evenly.
    """
    if len(source) < batch_size:
        raise InputError(
            f"batch_size is {batch_size}, but {source!r} has only {len(source)} "
            "examples; use a smaller batch or more data"
        )
    shuffled = functools.partial(_Shuffled, len(source))
    order = getattr(source, "order", shuffled)(batch_size, seed)  # a mixture has one
    block = _block(batch_size, process_index, process_count)
    sequence = _Batches(source, views, order, seed, block, steps)
    # One thread disturbs training least: several would wait for the interpreter lock
    # half of the time. Large images need `workers`.
    return _read(sequence, start, workers, threads=1)


def ordered(
    source: Source,
    views: Views,
    *,
    batch_size: int,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yield every row of the source once, in order, in batches of equal size.

    The last batch is padded with repeated rows, marked by `index` -1. A corrupt record
    becomes such padding too, since no row may count twice in an evaluation. Arguments
    and rows are as in `batches`.
    """
    order = _InOrder(len(source), batch_size)
    block = _block(batch_size, process_index, process_count)
    steps = -(-len(source) // batch_size)
    sequence = _Batches(source, views, order, seed, block, steps)
    # OpenCV releases the interpreter lock, so decoding runs in parallel.
    threads = min(4, os.cpu_count() or 1)
    return (batch for _, batch in _read(sequence, 0, workers=0, threads=threads))


@dataclass(frozen=True)
class _Shuffled:
    """Rows of a training step: a permutation per epoch, cut into whole batches."""

    length: int
    batch_size: int
    seed: int

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, place = divmod(step, self.length // self.batch_size)
        start = place * self.batch_size
        order = permutation(self.length, self.seed, epoch)
        rows = order[start : start + self.batch_size]
        return np.full_like(rows, epoch), rows

    def name(self, wanted: int, read: int) -> int:
        """Return the `index` of a row read in place of the wanted one."""
        return read


@dataclass(frozen=True)
class _InOrder:
    """Rows of an evaluation: 0, 1, 2 ..., then padding."""

    length: int
    batch_size: int

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.zeros_like(rows), np.where(rows < self.length, rows, PADDING)

    def name(self, wanted: int, read: int) -> int:
        return read if read == wanted else PADDING


@functools.lru_cache(maxsize=4)
def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers 0 .. length - 1 in an order of the epoch's own."""
    # Raw Philox words are the only random stream that NumPy promises never to change.
    words = _philox(seed, number=epoch, epoch=0, purpose=_ORDER).random_raw(length)
    return np.argsort(words, kind="stable")


def _philox(seed: int, *, number: int, epoch: int, purpose: int) -> np.random.Philox:
    """Return an independent stream of a counter-based generator, set by its key."""
    return np.random.Philox(
        key=np.array([seed, number], np.uint64),
        counter=np.array([0, 0, purpose, epoch], np.uint64),
    )


@dataclass(frozen=True)
class _Batches:
    """The batches of one host as a sequence: element `step` is a pure function."""

    source: Source
    views: Views
    order: Any  # `_Shuffled`, `_InOrder` or that of `polyview.data.mixture`
    seed: int
    block: slice
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[int, Batch, np.ndarray]:
        """Return the step, its batch and the indices of its corrupt records."""
        epochs, wanted = (part[self.block].tolist() for part in self.order.rows(step))
        rows = [len(self.source) - 1 if i == PADDING else i for i in wanted]
        made = map(self._row, rows, _fetch(self.source, rows), epochs)
        read, examples = zip(*made, strict=True)
        batch = _stack(examples)
        names = [self.order.name(w, r) for w, r in zip(wanted, read, strict=True)]
        batch["index"] = np.array(names, np.int64)
        check_targets(self.source, batch)
        corrupt = [
            w for w, r in zip(wanted, read, strict=True) if w != r and w != PADDING
        ]
        return step, batch, np.array(corrupt, np.int64)

    def _row(
        self, row: int, example: dict[str, Any] | None, epoch: int
    ) -> tuple[int, dict[str, Any]]:
        """Return the index and the views of a row, or of the next valid one."""
        length = len(self.source)
        stream = _philox(self.seed, number=row, epoch=epoch, purpose=_VIEWS)
        rng = np.random.Generator(stream)
        reason = ""
        for candidate in range(row, row + min(length, _GIVE_UP)):
            candidate %= length
            try:
                if example is None:
                    example = self.source[candidate]
                result = self.views(example, rng)
                check_numbers(result["targets"])
                return candidate, result
            except CorruptRecord as error:
                example, reason = None, str(error)
        raise InputError(
            f"{self.source!r} is unreadable: {min(length, _GIVE_UP)} corrupt records "
            f"in a row from index {row} (last reason: {reason})"
        )


def _fetch(source: Source, rows: list[int]) -> list[dict[str, Any] | None]:
    """Read all rows in one call if possible; None marks a row to read singly."""
    read_many = getattr(source, "__getitems__", None)
    if read_many is not None:
        with contextlib.suppress(CorruptRecord):
            return read_many(rows)
    return [None] * len(rows)


def _stack(rows: Sequence[dict[str, Any]]) -> Batch:
    batch: Batch = {}
    for part in ("views", "present", "targets"):
        batch[part] = {}
        for name in rows[0][part]:
            values = [row[part][name] for row in rows]
            try:
                batch[part][name] = np.stack(values)
            except ValueError:
                shapes = sorted({value.shape for value in values})
                raise InputError(
                    f"examples differ in the shape of {part} '{name}': "
                    f"{', '.join(map(str, shapes))}; add an augmentation that resizes "
                    "them to one shape"
                ) from None
    return batch


def _block(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"batch_size is {batch_size}, which {process_count} hosts cannot share "
            "evenly; use a positive multiple of the number of hosts"
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _read(
    sequence: _Batches, start: int, workers: int, threads: int
) -> Iterator[tuple[int, Batch]]:
    if not 0 <= sequence.seed < 2**64:
        raise InputError(f"seed is {sequence.seed}; it must be in 0 .. 2**64 - 1")
    if workers < 0:
        raise InputError(f"workers is {workers}; it must be 0 or more")
    if start >= sequence.steps:
        return iter(())
    dataset = grain.MapDataset.source(sequence)[start:].to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
    if workers:
        if not flags.FLAGS.is_parsed():  # grain reads a flag, also without absl.app.run
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        )
    return _report(iter(dataset), sequence.source, workers)


def _report(
    read: grain.DatasetIterator, source: Source, workers: int
) -> Iterator[tuple[int, Batch]]:
    """Yield batches; log corrupt records at most once a minute, and their total."""
    total, logged, quiet_until = 0, 0, 0.0

    def warn(when: str) -> None:
        message = "%r: %d corrupt or empty records skipped %s"
        _log.warning(message, source, total, when)

    lost = explained(source) if workers else contextlib.nullcontext()
    with contextlib.closing(read), lost:
        try:
            for step, batch, corrupt in read:
                total += len(corrupt)
                if len(corrupt) and time.monotonic() >= quiet_until:
                    quiet_until = time.monotonic() + 60
                    warn(f"so far (now index {corrupt[0]})")
                    logged = total
                yield step, batch
        finally:
            if total > logged:
                warn("in all")
