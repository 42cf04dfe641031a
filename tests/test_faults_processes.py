"""If one process of a run dies, the other exits soon; the same command resumes."""

import argparse
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest
from test_resume import CONFIG, SMALL, logged, wait_for_step

from polyview import cli
from polyview.config.file import load_config
from polyview.config.text import to_json
from polyview.errors import InputError
from polyview.runs import workdir as runs_workdir
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
HEARTBEAT = 10


def pair(command, *arguments, own=((), ()), **settings):
    """Start two processes of a run; own: arguments of each alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
    several += ["--processes", 2, "--heartbeat", HEARTBEAT, "--process"]
    return [
        command("main", *arguments, *several, n, *own[n], wait=False, **settings)
        for n in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_if_one_process_is_killed_the_other_exits_and_the_run_resumes(
    command, tmp_path, killed
):
    """Kill one with -9; the other exits soon after the heartbeat time-out."""
    arguments = ["--config", CONFIG, *SMALL, "--config.steps=400"]
    arguments += ["--workdir", tmp_path / "run"]
    both = pair(command, *arguments)
    wait_for_step(both[0], tmp_path / "run", 20)
    both[killed].kill()
    output, _ = both[1 - killed].communicate(timeout=60 + 3 * HEARTBEAT)
    # The status depends on which comes first: the closed connection or the time-out.
    assert both[1 - killed].returncode in (75, 134, -6), output
    both[killed].communicate()
    both = pair(command, *arguments)
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    begun = re.search(r"400, from (\d+)", outputs[0])
    assert int(begun[1]) >= 20
    steps = [line["step"] for line in logged(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[-1] == 400


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ("--config.stepz=3", "no key 'stepz'"),
        pytest.param("--config.source.name=nil", "no data", marks=pytest.mark.slow),
    ],
)
def test_if_one_process_has_bad_input_all_end_at_once(command, tmp_path, own, why):
    """Both say why; neither waits for the time-out of JAX."""
    arguments = ["--config", CONFIG, *SMALL, "--workdir", tmp_path / "run"]
    both = pair(command, *arguments, own=((), (own,)))
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [2, 2], outputs
    last = [output.splitlines()[-1] for output in outputs]
    assert re.match(f"error: process 1 stops, and so do all: .*{why}", last[0]), last
    assert last[1].startswith("error: ") and why in last[1]
    assert not any("Traceback" in output for output in outputs)


def test_a_process_does_not_wait_for_ever_for_one_that_never_joins(monkeypatch, capsys):
    """JAX would abort with a page of stack frames; a thread ends the process before."""
    ended, statuses = threading.Event(), []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: ended.wait(60))
    monkeypatch.setattr(
        os, "_exit", lambda status: (statuses.append(status), ended.set())
    )
    monkeypatch.setattr(cli, "JOIN", 0.01)
    words = {"coordinator": "a:1", "processes": 2, "process": 0, "heartbeat": 1}
    cli.start(argparse.Namespace(distributed=True, **words))
    error = capsys.readouterr().err
    assert statuses == [2] and error.count("\n") == 1
    assert "not all processes joined in 0.01 s" in error and "--heartbeat" in error


def test_only_one_process_trains_in_a_workdir(tmp_path, monkeypatch):
    """Two at once would destroy each other's checkpoints; after one has ended, in any
    way, the next can start."""
    config = load_config("configs/polyview_gaussian.py:steps=2,batch_size=16")
    program = f"""
import time
from pathlib import Path
from polyview.config.text import from_json
from polyview.runs.workdir import claimed_workdir

run = from_json({to_json(config)!r})
with claimed_workdir(Path({str(tmp_path)!r}), run):
    print("claimed", flush=True)
    time.sleep(600)
"""
    first = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert first.stdout.readline() == "claimed\n"
        monkeypatch.setattr(runs_workdir, "PATIENCE", 0)
        with pytest.raises(InputError, match="another process trains in"):
            train(Trainer(config), tmp_path)
        assert not (tmp_path / "metrics.jsonl").exists()
    finally:
        first.kill()
        first.communicate()
    train(Trainer(config), tmp_path)
