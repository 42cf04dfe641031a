"""The training loop also drives learners that act; killed runs resume exactly."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_resume import logged, saved_arrays, wait_for_step

ROOT = Path(__file__).parent.parent
STEPS = 400


def bandit(workdir, wait=True):
    """Train the two-armed bandit of tests/bandit.py in a separate process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bandit", str(workdir), str(STEPS)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if wait:
        process.output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, process.output
    return process


@pytest.mark.parametrize("how, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_resumed_acting_learner_equals_an_uninterrupted_one(tmp_path, how, status):
    reference, stopped = tmp_path / "reference", tmp_path / "stopped"
    log = bandit(reference).output
    assert "gap" in log and f"step {STEPS}/{STEPS}" in log
    process = bandit(stopped, wait=False)
    wait_for_step(process, stopped, 60)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    bandit(stopped)
    assert logged(stopped) == logged(reference)
    ends = [saved_arrays(workdir, STEPS) for workdir in (stopped, reference)]
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], err_msg=name)
    results = [
        json.loads((workdir / "eval" / f"{STEPS}-better.json").read_text())
        for workdir in (stopped, reference)
    ]
    assert results[0] == results[1]
    assert results[0]["gap"] > 0.4, "it has not learned which arm pays"


def test_a_new_acting_learner_is_one_file_of_under_80_lines():
    lines = (ROOT / "tests" / "bandit.py").read_text().splitlines()
    code = [line for line in lines if line.strip()]
    assert len(code) < 80
