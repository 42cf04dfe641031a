"""metrics.jsonl is the truth of a run: one object a line, each step once."""

import json

import pytest

from polyview.errors import InputError
from polyview.runs import metrics
from polyview.terminal import duration
from polyview.training.train import train
from polyview.training.trainer import Trainer


def test_a_line_holds_the_step_its_values_and_apart_from_them_the_times(
    digits, tmp_path
):
    train(Trainer(digits(steps=5, log_every=2)), tmp_path)
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 4, 5]
    for line in lines:
        measured = {"loss", "mi_bound", "gradient_norm", "learning_rate"}
        health = {"alignment", "uniformity", "rankme", "standard_deviation"}
        assert measured | {f"image/{name}" for name in health} <= set(line)
        assert line["image/rankme"] > 1, "looked at where it is logged"
        assert all(isinstance(v, int | float) for k, v in line.items() if k != "time")
        assert set(line["time"]) == {"seconds", "steps_per_second", "views_per_second"}
    assert list((tmp_path / "tensorboard").iterdir())


def test_lines_past_a_step_are_dropped_and_a_cut_line_is_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join([*whole, '{"step": 4, "lo']))
    metrics.keep_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[2]",
        b'{"loss": 1.0}',
        b'{"step": "2"}',
        b'{"step": 2, "\xff": 1}',
    ],
)
@pytest.mark.parametrize("after", [b"", b'{"step": 3}\n'])
def test_a_broken_line_is_named(tmp_path, line, after):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n" + after)
    with pytest.raises(InputError, match="metrics.jsonl, line 2 is damaged"):
        metrics.read(path)


def test_a_directory_is_no_metrics(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        metrics.read(tmp_path)


def test_epochs_are_whole_passes_without_the_remainder(digits):
    config = digits(steps=None, epochs=3, batch_size=64)
    assert Trainer(config).steps == 3 * (1437 // 64)


def test_durations_are_read_at_a_glance():
    assert [duration(s) for s in (5, 184, 3720)] == ["5s", "3m04s", "1h02m"]
