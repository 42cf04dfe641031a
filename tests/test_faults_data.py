"""Corrupt records are counted, reported and skipped; non-finite steps stop a run."""

import io
import logging
import struct
import zlib
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from polyview.config.file import load_config
from polyview.data.augment import RandomResizedCrop, ResizeCenterCrop
from polyview.data.gaussian import Factors
from polyview.data.pipeline import batches, ordered
from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.views import Generated
from polyview.errors import InputError, NonFiniteError
from polyview.training.nonfinite import replay_run
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROWS, BATCH = 600, 24
VIEWS = Generated(2, RandomResizedCrop(6))


def encoded(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (12, 9)).save(out, kind)
    return out.getvalue()


def huge_png() -> bytes:
    """A PNG of 20,000 x 15,000 pixels, by its header: 300 megapixels in 60 bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 2, 0, 0, 0)
    body = (
        chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


GOOD = {"image": encoded("JPEG"), "label": 1}
BROKEN = {
    "a JPEG cut short": {"image": encoded("JPEG")[:-40]},
    "no bytes": {"image": b""},
    "zeros": {"image": bytes(500)},
    "a huge PNG": {"image": huge_png()},
    "floats beyond 1": {"image": np.full((12, 9, 3), 2, np.float32)},
    "wide integers": {"image": np.ones((12, 9, 3), np.int64)},
    "no pixels": {"image": np.ones((0, 9, 3), np.uint8)},
    "one axis": {"image": np.ones(12, np.uint8)},
    "a text": {"image": "photo.jpg"},
    "nothing": {"image": None},
    "a label in words": {"label": "three"},
    "no label": {"label": None},
}


def written(folder, broken: dict[int, dict], rows: int = ROWS):
    """Write a data set in which the given rows are broken."""
    examples = ({**GOOD, **broken.get(row, {})} for row in range(rows))
    targets = {"label": {"kind": "class", "classes": 2}}
    about = {"version": "1", "source": "", "licence": ""}
    records.write(folder / "set", {"train": examples}, targets=targets, **about)
    return ArrayRecord("set", data_dir=folder)


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.WARNING, logger="polyview.data.pipeline")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("kind", BROKEN)
def test_one_percent_of_corrupt_records_is_skipped_and_reported(tmp_path, logged, kind):
    bad = range(50, ROWS, 100)
    source = written(tmp_path, {row: BROKEN[kind] for row in bad})
    epoch = list(batches(source, VIEWS, seed=1, batch_size=BATCH, steps=ROWS // BATCH))
    rows = np.concatenate([batch["index"] for _, batch in epoch])
    expected = set(range(ROWS)) - set(bad)
    assert set(rows.tolist()) == expected, "not all intact rows were read"
    assert f": {len(bad)} corrupt" in logged()[-1], "the total was not logged"
    views = Generated(1, ResizeCenterCrop(6))
    evaluated = np.concatenate(
        [batch["index"] for batch in ordered(source, views, batch_size=BATCH)]
    )
    assert sorted(evaluated[evaluated >= 0]) == sorted(expected), "a row was read twice"


def test_unusual_but_valid_images_are_read(tmp_path, logged):
    unusual = [encoded("JPEG", "CMYK"), encoded("PNG", "L"), encoded("PNG", "I;16")]
    unusual += [encoded("JPEG") + b"more", encoded("WEBP"), encoded("BMP")]
    source = written(tmp_path, {n: {"image": x} for n, x in enumerate(unusual)}, 24)
    ((_, batch),) = batches(source, VIEWS, seed=1, batch_size=24, steps=1)
    assert sorted(batch["index"]) == list(range(24)) and not logged()
    assert batch["views"]["image"].shape == (24, 2, 6, 6, 3)


@pytest.mark.parametrize("kind", ["zeros", "a label in words"])
def test_100_corrupt_records_in_a_row_stop_with_the_source_named(tmp_path, kind):
    shard = {row: BROKEN[kind] for row in range(200, 400)}
    source = written(tmp_path, shard)
    with pytest.raises(InputError, match=r"'set'.* 100 corrupt records in a row from"):
        list(batches(source, VIEWS, seed=1, batch_size=BATCH, steps=ROWS // BATCH))
    with pytest.raises(InputError, match="100 corrupt records in a row"):
        list(ordered(source, VIEWS, batch_size=BATCH))


class Spiked(Factors):
    """Factors with one value replaced."""

    def __init__(self, size: int, at: int, value: float):
        super().__init__(size)
        self._draws[at] = value


@dataclass(frozen=True)
class Poisoned:
    """An objective with a non-finite loss, or gradient alone, in one row's batch."""

    objective: object
    at: int
    value: float
    gradient_alone: bool

    def __call__(self, module, target, batch, key):
        loss, metrics = self.objective(module, target, batch, key)
        hit = jnp.any(batch["index"] == self.at)
        if self.gradient_alone:  # d sqrt(0) is infinite
            loss = (
                loss + jnp.sqrt(jnp.where(hit, 0.0 * loss, 1.0)) - jnp.where(hit, 0, 1)
            )
        else:
            loss = jnp.where(hit, self.value, loss)
        return loss, metrics


@pytest.mark.parametrize(
    ("place", "value"),
    [("batch", float("nan")), ("loss", float("inf")), ("gradient", None)],
)
def test_a_non_finite_step_leaves_a_dump_that_shows_the_row(
    tmp_path, capsys, place, value
):
    size = {"batch_size": "16", "log_every": "1"}
    config = load_config("configs/polyview_gaussian.py:steps=5,batch_size=16", size)
    spec = {"at": 33, "value": value}
    if place == "batch":
        config.source = {"target": "test_faults_data:Spiked", "size": 80, **spec}
    else:
        config.objective = {
            "target": "test_faults_data:Poisoned",
            "objective": config.objective,
            "gradient_alone": place == "gradient",
            **spec,
        }
    order = [b["index"] for _, b in Trainer(config).batches(0)]
    number = next(n for n, rows in enumerate(order) if 33 in rows)
    with pytest.raises(NonFiniteError, match=f"step {number + 1} is not finite"):
        train(Trainer(config), tmp_path)
    assert [p.name for p in (tmp_path / "dump").iterdir()] == [str(number)]
    capsys.readouterr()
    replay_run(Trainer, tmp_path, trust=("test_faults_data",))
    printed = capsys.readouterr().out
    assert f"step {number + 1}, rows " in printed and " 33" in printed.replace("[", " ")
    assert "healthy 0" in printed
