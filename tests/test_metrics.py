"""metrics.jsonl is the record of a run: one object a line, each step once."""

import json

import pytest

from polyview.errors import InputError
from polyview.runs import metrics
from polyview.terminal import duration
from polyview.training.train import train
from polyview.training.trainer import Trainer


def test_a_metrics_line_holds_step_values_and_times(digits, tmp_path):
    train(Trainer(digits(steps=5, log_every=2)), tmp_path)
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 4, 5]
    for line in lines:
        measured = {"loss", "mi_bound", "gradient_norm", "learning_rate"}
        health = {"alignment", "uniformity", "rankme", "standard_deviation"}
        assert measured | {f"image/{name}" for name in health} <= set(line)
        assert line["image/rankme"] > 1, "health was not measured at a logged step"
        assert all(isinstance(v, int | float) for k, v in line.items() if k != "time")
        assert set(line["time"]) == {"seconds", "steps_per_second", "views_per_second"}
    assert list((tmp_path / "tensorboard").iterdir())


def test_keep_until_drops_later_and_truncated_lines(tmp_path):
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
def test_a_damaged_metrics_line_is_named(tmp_path, line, after):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n" + after)
    with pytest.raises(InputError, match="metrics.jsonl, line 2 is damaged"):
        metrics.read(path)


def test_a_directory_in_place_of_metrics_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        metrics.read(tmp_path)


def test_an_epoch_drops_the_remainder_of_the_data(digits):
    config = digits(steps=None, epochs=3, batch_size=64)
    assert Trainer(config).steps == 3 * (1437 // 64)


def test_durations_are_short_and_readable():
    assert [duration(s) for s in (5, 184, 3720)] == ["5s", "3m04s", "1h02m"]


def test_the_first_line_of_a_process_gives_no_rate_with_compilation(tmp_path, capsys):
    writer = metrics.Writer(tmp_path, 40, 100, views=8, active=True)
    for step in (60, 80):
        writer.write(step, {"loss": 1.0})
    writer.close()
    first, second = capsys.readouterr().out.splitlines()
    assert "with compilation" in first and "left" not in first
    assert "steps/s" in second and second.endswith("left")
