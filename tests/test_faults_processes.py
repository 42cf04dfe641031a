"""If one process of a run dies, the other exits soon; the same command resumes."""

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
def test_if_one_process_is_killed_the_other_exits_and_the_run_resumes(
    command, tmp_path, killed
):
    """Kill one with -9; the other exits soon after the heartbeat time-out."""
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
    # The status depends on which comes first: the closed connection or the time-out.
    assert pair[1 - killed].returncode in (75, 134, -6), output
    pair[killed].communicate()
    pair = started()
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    begun = re.search(r"400, from (\d+)", outputs[0])
    assert int(begun[1]) >= 20
    steps = [line["step"] for line in logged(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[-1] == 400


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
