"""A full disk or a wrong clock costs at most a clear error, never finished work."""

import contextlib
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.multihost import multihost
from test_resume import logged, saved_arrays

from polyview.config.file import load_config
from polyview.data.prepare import records
from polyview.errors import InputError, NonFiniteError
from polyview.runs import checkpoint, metrics
from polyview.runs.checkpoint import Checkpoints, saved_steps
from polyview.training import nonfinite
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


def config():
    """Six steps of the smallest run, each with a checkpoint."""
    flags = {"log_every": "1", "checkpoint_every": "1"}
    config = load_config("configs/polyview_gaussian.py:steps=6,batch_size=16", flags)
    with config.unlocked():
        config.keep = 6
    return config


@contextlib.contextmanager
def files_of(most: int):
    """Limit each file to `most` bytes: to its writer, a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """After a failed save, let its threads wait a second, not minutes."""
    monkeypatch.setattr(multihost, "_DEFAULT_BARRIER_TIMEOUT", 1)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    train(Trainer(config()), workdir)
    return workdir


def test_a_disk_full_while_saving_is_one_line_and_the_run_resumes(
    straight, tmp_path, monkeypatch, capfd
):
    save = Checkpoints.save
    with contextlib.ExitStack() as full, pytest.raises(InputError) as caught:

        def fills(self, step, *rest):
            self.wait()
            if step == 4:
                full.enter_context(files_of(1000))
            save(self, step, *rest)

        monkeypatch.setattr(Checkpoints, "save", fills)
        train(Trainer(config()), tmp_path)
    error = str(caught.value)
    assert "File too large" in error and "it resumes from step 3" in error
    assert "\n" not in error and capfd.readouterr().err.count("\n") < 5
    assert saved_steps(tmp_path / "checkpoints") == [1, 2, 3]

    monkeypatch.setattr(Checkpoints, "save", save)
    train(Trainer(config()), tmp_path)
    assert "from 3 " in capfd.readouterr().out
    assert logged(tmp_path) == logged(straight)
    ends = [saved_arrays(workdir, 6) for workdir in (tmp_path, straight)]
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], err_msg=name)


def test_a_full_disk_does_not_hide_a_non_finite_step(tmp_path, capfd):
    (tmp_path / "dump" / "1").mkdir(parents=True)
    state = {"a": jnp.arange(4096.0)}
    checkpoint.checksums(state)  # compile now, because that writes a cache file

    def save(step, checkpoints):
        checkpoints.save(step, state, "{}")

    with files_of(1000), pytest.raises(NonFiniteError) as caught:
        nonfinite.stop(7, save, tmp_path)
    error = str(caught.value)
    assert "step 8 is not finite; the state before it could not be saved (" in error
    assert "File too large" in error and "\n" not in error
    assert (tmp_path / "dump" / "1").is_dir(), "the old dump was removed too early"
    with pytest.raises(NonFiniteError, match="repeat the step with"):
        nonfinite.stop(7, save, tmp_path)
    assert saved_steps(tmp_path / "dump") == [7]


def test_a_clock_running_backwards_changes_no_result(straight, tmp_path, monkeypatch):
    """Every reading of the clock is an hour before the last."""
    clock = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    train(Trainer(config()), tmp_path)
    assert logged(tmp_path) == logged(straight)
    ends = [saved_arrays(workdir, 6) for workdir in (tmp_path, straight)]
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], err_msg=name)


def test_a_partly_written_metrics_line_is_cut_off_on_resume(
    tmp_path,
):
    path = tmp_path / "metrics.jsonl"
    lines = metrics.Lines(path)
    with (
        files_of(300),
        pytest.raises(InputError, match="cannot write .*File too large"),
    ):
        for step in range(100):
            lines.write({"step": step, "loss": 0.5})
    lines.close()
    whole = metrics.read(path)
    assert len(path.read_bytes()) == 300
    assert [line["step"] for line in whole] == list(range(11)), "line 12 is cut"
    metrics.keep_until(path, whole[-1]["step"])
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole


def test_tensorboard_on_a_full_disk_is_an_error_and_does_not_hang(tmp_path):
    board = metrics.Board(tmp_path / "tensorboard", 1)
    with files_of(2000), pytest.raises(InputError, match="cannot write"):
        for step in range(1000):
            board.write(step, {"loss": 0.5})
    board.close()


@pytest.mark.parametrize("most", [0, 200, 12_000])
def test_a_disk_full_while_preparing_data_is_a_one_line_error(tmp_path, most):
    examples = ({"x": np.random.default_rng(n).bytes(5000)} for n in range(9))
    about = {"version": "1", "targets": {}, "source": "", "licence": ""}
    message = "cannot write into .*: .*File too large; give another --data_dir"
    with files_of(most), pytest.raises(InputError, match=message) as caught:
        records.write(tmp_path / "set", {"train": examples}, **about)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "tensorboard"])
def test_a_workdir_that_cannot_be_written_is_named(straight, tmp_path, name):
    """A file in place of a folder, or the reverse, stops root too."""
    (tmp_path / "config.json").write_text((straight / "config.json").read_text())
    if name == "metrics.jsonl":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("in the way")
    with pytest.raises(InputError, match=f"cannot .*{name}|{name} (cannot|is a file)"):
        train(Trainer(config()), tmp_path)


def test_an_error_exits_without_waiting_for_threads():
    program = """
import threading, time
from polyview import errors

def main():
    threading.Thread(target=time.sleep, args=[60]).start()
    raise errors.InputError("said")

errors.run(main)
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (2, b"error: said\n")
    assert time.monotonic() - began < 30
