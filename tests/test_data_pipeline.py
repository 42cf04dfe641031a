"""A batch depends only on (seed, step), not on hosts, workers or the first step."""

import io
import itertools
import logging
import time
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from polyview.data import pipeline
from polyview.data.augment import RandomResizedCrop
from polyview.data.pipeline import batches, ordered
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord
from polyview.data.views import Generated
from polyview.errors import InputError

LENGTH = 22
VIEWS = Generated(2, RandomResizedCrop(6))


def examples(length=LENGTH):
    rng = np.random.default_rng(0)
    return InMemory(
        {
            "image": rng.integers(0, 255, (length, 9, 7, 1), np.uint8),
            "label": np.arange(length),
        }
    )


@dataclass(frozen=True)
class Damaged:
    """Examples with some corrupt records."""

    corrupt: frozenset[int]
    length: int = LENGTH
    targets = {}

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.corrupt:
            raise CorruptRecord(f"example {index}")
        return examples(self.length)[index]


def read(source=None, **options):
    options = {"seed": 3, "batch_size": 4, "steps": 12} | options
    return list(batches(source or examples(), VIEWS, **options))


def assert_equal(left, right):
    assert [step for step, _ in left] == [step for step, _ in right]
    for (_, a), (_, b) in zip(left, right, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        for part in ("views", "present", "targets"):
            assert a[part].keys() == b[part].keys()
            for name in a[part]:
                np.testing.assert_array_equal(a[part][name], b[part][name])


def test_a_batch_has_the_documented_structure():
    (step, batch), *_ = read(steps=1)
    assert step == 0
    assert batch["views"]["image"].shape == (4, 2, 6, 6, 1)
    assert batch["views"]["image"].dtype == np.uint8
    assert batch["present"]["image"].shape == (4, 2) and batch["present"]["image"].all()
    assert batch["index"].dtype == np.int64
    np.testing.assert_array_equal(batch["targets"]["label"], batch["index"])


def test_each_epoch_is_a_new_permutation_without_the_remainder():
    steps = read(steps=15)  # 5 steps an epoch, 2 of 22 rows dropped
    epochs = [
        np.concatenate([batch["index"] for _, batch in steps[5 * e : 5 * e + 5]])
        for e in range(3)
    ]
    for rows in epochs:
        assert len(set(rows.tolist())) == 20 and set(rows.tolist()) <= set(
            range(LENGTH)
        )
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))
    other = np.concatenate([batch["index"] for _, batch in read(seed=4, steps=5)])
    assert not np.array_equal(epochs[0], other)


def test_permutations_are_uniform():
    """Each of 5 rows takes each position equally often over seeds and epochs."""
    counts = np.zeros((5, 5))
    for seed, epoch in itertools.product(range(40), range(50)):
        counts[np.arange(5), pipeline.permutation(5, seed, epoch)] += 1
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert chi_squared < 39.3  # 99.9% quantile, 16 degrees of freedom


def test_augmentations_differ_between_epochs_and_seeds():
    def views_of(row, steps):
        for _, batch in steps:
            for place in np.flatnonzero(batch["index"] == row):
                yield batch["views"]["image"][place].tobytes()

    row = int(read(steps=1)[0][1]["index"][0])
    seen = list(views_of(row, read(steps=15))) + list(views_of(row, read(seed=9)))
    assert len(seen) >= 3 and len(set(seen)) == len(seen)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_get_contiguous_blocks_of_the_single_host_batch(hosts):
    whole = read(batch_size=8)
    parts = [
        read(batch_size=8, process_index=p, process_count=hosts) for p in range(hosts)
    ]
    joined = []
    for at_step in zip(*parts, strict=True):
        local = [batch for _, batch in at_step]
        batch = {"index": np.concatenate([part["index"] for part in local])}
        for group in ("views", "present", "targets"):
            batch[group] = {
                name: np.concatenate([part[group][name] for part in local])
                for name in local[0][group]
            }
        joined.append((at_step[0][0], batch))
    assert_equal(joined, whole)


def test_batches_from_a_later_step_equal_the_rest_of_the_run():
    assert_equal(read(start=7), read()[7:])
    assert read(start=12) == []


def test_worker_processes_make_the_same_batches():
    assert_equal(read(workers=2, steps=7, start=2), read(steps=7, start=2))


def test_an_abandoned_iterator_closes_promptly():
    stream = batches(examples(), VIEWS, seed=0, batch_size=4, steps=10**6)
    next(stream)
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 5


def test_a_corrupt_record_is_replaced_by_the_next_valid_one():
    source = Damaged(frozenset({3, 4, 21}))
    whole, damaged = read(), read(source)
    replaced = {3: 5, 4: 5, 21: 0}
    for (_, a), (_, b) in zip(whole, damaged, strict=True):
        expected = [replaced.get(int(index), int(index)) for index in a["index"]]
        assert b["index"].tolist() == expected
        assert b["targets"]["label"].tolist() == expected
        kept = ~np.isin(a["index"], list(replaced))
        np.testing.assert_array_equal(
            a["views"]["image"][kept], b["views"]["image"][kept]
        )
    assert_equal(damaged, read(source))
    assert_equal(damaged[5:], read(source, start=5))


def test_corrupt_records_are_logged_at_most_once_a_minute(caplog, monkeypatch):
    clock = iter(itertools.count(0, 25))
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.WARNING, logger="polyview.data.pipeline"):
        read(Damaged(frozenset(range(0, LENGTH, 2))), steps=10)
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 5
    assert "Damaged" in lines[0] and "corrupt" in lines[0]
    totals = [int(line.split("): ")[-1].split()[0]) for line in lines]
    assert totals == sorted(totals) and totals[-1] > 10


def test_an_undecodable_image_is_replaced_too():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    good = buffer.getvalue()
    source = InMemory({"image": [good, good[:200], good, good], "label": range(4)})
    rows = [batch["index"].tolist() for _, batch in read(source, steps=1)]
    assert sorted(rows[0]) == [0, 2, 2, 3]


@pytest.mark.parametrize("length", [LENGTH, 400])
def test_an_unreadable_source_is_named(length):
    with pytest.raises(InputError, match=r"Damaged.*unreadable"):
        read(Damaged(frozenset(range(length)), length), steps=1)


def test_an_input_error_in_a_worker_process_is_raised():
    views = Generated(2, RandomResizedCrop(6), targets=("age",))
    with pytest.raises(InputError, match="no field 'age'"):
        list(batches(examples(), views, seed=0, batch_size=4, steps=1, workers=1))


def test_ordered_gives_each_row_once_and_pads_the_last_batch():
    read_rows = list(ordered(examples(), VIEWS, batch_size=8))
    index = np.concatenate([batch["index"] for batch in read_rows])
    assert index.tolist() == list(range(LENGTH)) + [-1, -1]
    assert all(batch["views"]["image"].shape[0] == 8 for batch in read_rows)
    labels = np.concatenate([batch["targets"]["label"] for batch in read_rows])
    assert labels.tolist() == list(range(LENGTH)) + [LENGTH - 1] * 2


def test_ordered_splits_the_same_batches_between_two_hosts():
    whole = list(ordered(examples(), VIEWS, batch_size=8))
    for host in range(2):
        part = list(
            ordered(
                examples(), VIEWS, batch_size=8, process_index=host, process_count=2
            )
        )
        assert len(part) == len(whole)
        for a, b in zip(whole, part, strict=True):
            block = slice(4 * host, 4 * host + 4)
            np.testing.assert_array_equal(a["index"][block], b["index"])
            np.testing.assert_array_equal(
                a["views"]["image"][block], b["views"]["image"]
            )


def test_ordered_gives_corrupt_rows_index_minus_one():
    index = np.concatenate(
        [b["index"] for b in ordered(Damaged(frozenset({5})), VIEWS, batch_size=8)]
    )
    assert index.tolist() == [i if i != 5 else -1 for i in range(LENGTH)] + [-1, -1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 23}, "23.*22 examples"),
        ({"batch_size": 6, "process_count": 4}, "6.*4 hosts"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": -2}, "workers is -2"),
    ],
)
def test_invalid_pipeline_options_are_refused_before_reading(options, message):
    options = {"seed": 3, "batch_size": 4, "steps": 12} | options
    with pytest.raises(InputError, match=message):
        batches(examples(), VIEWS, **options)  # no batch is requested


@pytest.mark.parametrize("task", [{"kind": "class"}, {"kind": "mask"}])
def test_an_out_of_range_label_is_named_with_its_row(task):
    images = [np.zeros((6, 6, 1), np.uint8) for _ in range(4)]

    def labels(last):
        each = np.array([0, 1, 2, last])
        return each if task["kind"] == "class" else each[:, None, None] + [[0, 0]]

    for last in (-1, 3):
        source = InMemory(
            {"image": images, "label": labels(last)},
            targets={"label": task | {"classes": 3}},
        )
        with pytest.raises(InputError, match=rf"row 3 has label {last}, outside 0"):
            read(source, steps=1, batch_size=4)
    source = InMemory({"image": images, "label": labels(2)}, targets=source.targets)
    read(source, steps=1, batch_size=4)


def test_examples_of_different_shapes_are_an_input_error():
    images = [np.zeros((6, 6, 1 + i % 2), np.uint8) for i in range(4)]
    source = InMemory({"image": images, "label": range(4)})
    with pytest.raises(InputError, match="differ in the shape of views 'image'"):
        read(source, steps=1)
