"""A resumed run ends like an uninterrupted one, on one process or several.

The promise: bit for bit on the same devices, cores and JAX version. On another number
of processes or devices, equal in float64. In float32 sums differ in the last bits,
and training makes the differences grow.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from polyview.errors import InputError, NonFiniteError
from polyview.runs import checkpoint
from polyview.training.nonfinite import replay_run
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
CONFIG = "configs/polyview_digits.py"
SMALL = (
    "--config.batch_size=8",
    "--config.log_every=5",
    "--config.checkpoint_every=10",
    "--config.model.towers.image.encoder.width=4",
)


def logged(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "time"} for x in lines]


def saved_arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, with names and shapes from its digest."""
    folder = workdir / "checkpoints" / str(step)
    digest = json.loads((folder / "digest" / "metadata").read_text())["state"]
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=one)
        for name, (shape, dtype, _) in digest.items()
    }
    state = checkpoint.read_state(folder, template)
    return {name: np.asarray(array) for name, array in state.items()}


def wait_for_step(process, workdir: Path, step: int) -> None:
    """Return once a run has a checkpoint at or after `step`."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        steps = [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*[0-9]")]
        if steps and max(steps) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])


def wait_for_a_save(process, workdir: Path) -> None:
    """Return while a checkpoint is partly written."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if any((workdir / "checkpoints").glob("*tmp*")):
            return
        time.sleep(0.0005)
    raise AssertionError(process.communicate()[0])


def test_a_resumed_run_equals_an_uninterrupted_one(command, tmp_path):
    """Killed twice, once while saving, then stopped by SIGTERM and resumed."""
    arguments = ["--config", CONFIG, *SMALL, "--config.steps=200"]
    arguments += ["--config.checkpoint_every=20"]
    reference = command("main", *arguments, "--workdir", tmp_path / "reference")
    assert reference.returncode == 0, reference.output
    arguments += ["--workdir", tmp_path / "stopped"]
    for how, status, at in (
        (signal.SIGKILL, -9, 20),
        (signal.SIGKILL, -9, 80),
        (signal.SIGTERM, 75, 140),
    ):
        stopped = command("main", *arguments, wait=False)
        wait_for_step(stopped, tmp_path / "stopped", at)
        if at == 80:
            wait_for_a_save(stopped, tmp_path / "stopped")
        stopped.send_signal(how)
        output, _ = stopped.communicate(timeout=60)
        assert stopped.returncode == status, output
    again = command("main", *arguments)
    assert again.returncode == 0, again.output
    for log in (output, again.output):
        assert "from 0 " not in log, "the run must resume, not restart"

    assert logged(tmp_path / "stopped") == logged(tmp_path / "reference")
    ends = [saved_arrays(tmp_path / name, 200) for name in ("stopped", "reference")]
    assert ends[0].keys() == ends[1].keys()
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], err_msg=name)


def on_processes(command, count: int, *arguments, x64: bool) -> None:
    """Run a command to its end on `count` processes with 2 devices in total."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
    several += ["--processes", count]
    running = [
        command(
            "main",
            *arguments,
            *([*several, "--process", process] if count > 1 else []),
            devices=2 // count,
            wait=False,
            jax_enable_x64=int(x64),
        )
        for process in range(count)
    ]
    for process in running:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def stop_at(workdir: Path, step: int) -> None:
    """Delete the checkpoints after `step`, as if the run had stopped there."""
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)


@pytest.mark.slow
def test_one_and_two_processes_train_the_same(command, tmp_path):
    """float64: resuming on 1 -> 2 -> 1 processes equals one process over 40 steps to
    1e-6. float32: the first 5 losses on two processes equal those on one to 1e-5."""
    types = ":dtype=float64,param_dtype=float64"
    arguments = [*SMALL, "--config.steps=40", "--config.keep=9"]
    one = ["--config", CONFIG + types, *arguments, "--workdir", tmp_path / "one"]
    on_processes(command, 1, *one, x64=True)
    mixed = ["--config", CONFIG + types, *arguments, "--workdir", tmp_path / "mixed"]
    shutil.copytree(tmp_path / "one", tmp_path / "mixed")
    stop_at(tmp_path / "mixed", 10)
    on_processes(command, 2, *mixed, x64=True)
    stop_at(tmp_path / "mixed", 30)
    on_processes(command, 1, *mixed, x64=True)
    ends = [saved_arrays_x64(tmp_path / name, 40) for name in ("one", "mixed")]
    for name, array in ends[0].items():
        np.testing.assert_allclose(array, ends[1][name], atol=1e-6, err_msg=name)

    short = [*SMALL, "--config.steps=5", "--config.log_every=1"]
    losses = []
    for count in (1, 2):
        workdir = tmp_path / f"float32-{count}"
        single = ["--config", CONFIG, *short, "--workdir", workdir]
        on_processes(command, count, *single, x64=False)
        losses.append([line["loss"] for line in logged(workdir)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
def test_a_resumed_launch_of_two_processes_equals_one_process(
    data_dir, command, tmp_path
):
    """launch/local.sh: SIGTERM, then the same command to the end, equals one process
    in float64 to 1e-6."""
    types = ":dtype=float64,param_dtype=float64"
    options = [*SMALL, "--config.steps=200", "--config.keep=9"]
    config = ["--config", CONFIG + types, *options, "--workdir"]
    on_processes(command, 1, *config, tmp_path / "one", x64=True)
    launch = ["bash", "launch/local.sh", "--processes", "2", "--restarts", "2", "--"]
    words = [sys.executable, "-m", "polyview.main", *config, tmp_path / "two"]
    environment = os.environ | {"POLYVIEW_DATA": str(data_dir), "JAX_ENABLE_X64": "1"}

    def started():
        return subprocess.Popen(
            [*launch, *map(str, words)],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    run = started()
    wait_for_step(run, tmp_path / "two", 20)
    run.send_signal(signal.SIGTERM)
    _, log = run.communicate(timeout=120)
    assert run.returncode == 75, log
    assert "the same command again to resume" in log
    stopped = checkpoint.saved_steps(tmp_path / "two" / "checkpoints")[-1]
    assert 20 <= stopped < 200
    run = started()
    _, log = run.communicate(timeout=300)
    assert run.returncode == 0, log
    ends = [saved_arrays_x64(tmp_path / name, 200) for name in ("one", "two")]
    for name, array in ends[0].items():
        np.testing.assert_allclose(array, ends[1][name], atol=1e-6, err_msg=name)


def saved_arrays_x64(workdir: Path, step: int) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        return saved_arrays(workdir, step)


def test_a_workdir_with_another_config_is_refused(digits, tmp_path):
    train(Trainer(digits()), tmp_path)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(InputError, match="steps: 4 -> 5"):
        train(Trainer(digits(steps=5)), tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    train(Trainer(digits(log_every=2, **{"mesh.fsdp": 2})), tmp_path)


def test_metrics_after_the_restored_step_are_written_once(digits, tmp_path):
    train(Trainer(digits(steps=6, checkpoint_every=2)), tmp_path)
    stop_at(tmp_path, 4)
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole[:-9])  # cut within the last line
    train(Trainer(digits(steps=6, checkpoint_every=2)), tmp_path)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_failed_initialisation_leaves_no_workdir(digits, tmp_path):
    config = digits()
    config.init_from = str(tmp_path / "nothing")
    with pytest.raises(InputError, match="no checkpoint to load"):
        train(Trainer(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_nonfinite_step_stops_the_run_and_can_be_replayed(digits, tmp_path, capsys):
    config = digits(steps=9, checkpoint_every=3)
    config.optimizer.learning_rate.base = 1e38
    with pytest.raises(NonFiniteError, match="--replay"):
        train(Trainer(config), tmp_path)
    dumped = [int(p.name) for p in (tmp_path / "dump").iterdir()]
    assert len(dumped) == 1
    capsys.readouterr()
    replay_run(Trainer, tmp_path)
    output = capsys.readouterr().out
    assert f"step {dumped[0] + 1}" in output
    assert "healthy 0" in output
