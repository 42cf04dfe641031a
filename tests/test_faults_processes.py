"""Where one process of a run dies the other ends soon, and the same command goes on."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import CONFIG, SMALL, logged, wait_for_step

from polyview.config.file import load_config
from polyview.config.text import to_json
from polyview.errors import InputError
from polyview.runs import workdir as runs_workdir
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
HEARTBEAT = 10


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_process_ends_and_the_run_goes_on(command, tmp_path, killed):
    """kill -9 of one; the other within the heartbeat's time-out, and some seconds."""
    arguments = ["--config", CONFIG, *SMALL, "--config.steps=400"]
    arguments += ["--workdir", tmp_path / "run"]

    def started():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        several = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
        several += ["--processes", 2, "--heartbeat", HEARTBEAT, "--process"]
        return [command("main", *arguments, *several, n, wait=False) for n in (0, 1)]

    pair = started()
    wait_for_step(pair[0], tmp_path / "run", 20)
    pair[killed].kill()
    output, _ = pair[1 - killed].communicate(timeout=60 + 3 * HEARTBEAT)
    # What it meets first: the closed connection, or the silence.
    assert pair[1 - killed].returncode in (75, 134, -6), output
    pair[killed].communicate()
    pair = started()
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    begun = re.search(r"400, from (\d+)", outputs[0])
    assert int(begun[1]) >= 20
    steps = [line["step"] for line in logged(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[-1] == 400


def test_one_workdir_is_trained_in_by_one_program(tmp_path, monkeypatch):
    """Two at once would destroy one another's saves; when one has ended, however it
    ended, the next one can begin."""
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
