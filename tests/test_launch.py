"""Launchers pass a command unchanged to every host and return its status."""

import concurrent.futures
import importlib.util
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AWKWARD = [
    "--workdir",
    "a b;c",
    "it's",
    "$HOME",
    "*",
    "",
    "two\nlines",
    "--x=é|&>",
    "\\",
    "-n",
]
# A program that prints its arguments and environment.
SAY = (
    "import json, os, sys; print(json.dumps([sys.argv[1:], {k: v for k, v in "
    "os.environ.items() if k.startswith(('JAX_', 'SLURM_'))}])); sys.exit(%d)"
)
CLOUD = {
    # Stand-ins, on one host, for the cluster programs that launchers call.
    "srun": """
        while [ "${1#--}" != "$1" ]; do shift; done
        for task in 0 1; do "$@" || exit; done""",
    "sbatch": """
        for word; do case $word in --wrap=*) eval "${word#--wrap=}";; esac; done""",
    "scontrol": 'echo "scontrol $*" >&2',
    "gcloud": """
        for word; do case $word in
            --command=*) line=${word#--command=};;
            --worker=*) worker=${word#--worker=};; esac; done
        cd "$FAKE_HOME" && bash -c "$line" || exit 1""",
    "xpk": """
        for word; do case $word in
            --command=*) sh -c "${word#--command=}" || true;;
            --wait*) exit "${XPK_STATUS:-0}";; esac; done""",
}


@pytest.fixture
def launch(tmp_path):
    """`launch("slurm", words...)` -> the finished launcher, run with stand-ins."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in CLOUD.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tools / name).chmod(stat.S_IRWXU)
    (tmp_path / "home" / "polyview").mkdir(parents=True)

    def run(name, *words, **settings):
        environment = os.environ | {
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FAKE_HOME": str(tmp_path / "home"),
            "SLURM_JOB_ID": "7",
            **settings,
        }
        environment.pop("JAX_NUM_CPU_DEVICES", None)
        return subprocess.run(
            ["bash", f"{ROOT}/launch/{name}.sh", *words],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )

    return run


REMOTE = {
    "local": ["local"],
    "slurm": ["slurm", "--nodes", "2"],
    "slurm --batch": ["slurm", "--nodes", "2", "--batch"],
    "tpu_vm": ["tpu_vm", "run", "--name", "n", "--zone", "z"],
    "gke": ["gke", *"--name n --cluster c --tpu v6e-16 --image i".split()],
}


@pytest.mark.parametrize("launcher", REMOTE)
def test_a_command_arrives_unchanged_and_its_status_is_returned(launch, launcher):
    command = ["python", "-c", SAY % 5, *AWKWARD]
    done = launch(*REMOTE[launcher], "--cache", "my cache", "--", *command)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    assert lines, done.stderr
    for line in lines:
        words, environment = json.loads(line)
        several = [] if launcher == "local" else ["--distributed"]
        assert words == AWKWARD + several
        assert environment["JAX_COMPILATION_CACHE_DIR"] == "my cache"
    assert done.returncode == (0 if launcher == "gke" else 5), done.stderr


@pytest.mark.parametrize("launcher", REMOTE)
def test_a_dry_run_prints_the_command_and_runs_nothing(launch, launcher, tmp_path):
    mark = tmp_path / "ran"
    command = ["touch", str(mark), *AWKWARD]
    done = launch(*REMOTE[launcher], "--dry-run", "--", *command)
    assert done.returncode == 0 and not mark.exists(), done.stderr
    words = shlex.split(done.stdout)
    if launcher != "local":  # the command is quoted in a line for another shell
        nested = [w for w in words if "touch" in w]
        words = shlex.split(nested[0]) if "touch" not in words else words
    start = words.index("touch")
    assert words[start : start + len(command)] == command


def test_one_process_per_node_uses_all_its_gpus(launch):
    command = ["--", "python", "-c", SAY % 0]
    for per, devices in (("node", "0,1,2,3"), ("gpu", None)):
        done = launch("slurm", "--gpus", "4", "--per", per, *command)
        _, environment = json.loads(done.stdout.splitlines()[0])
        assert environment.get("JAX_LOCAL_DEVICE_IDS") == devices
        dry = launch("slurm", "--gpus", "4", "--per", per, "--dry-run", *command)
        tasks = {"node": 1, "gpu": 4}[per]
        assert f"--ntasks-per-node={tasks}" in shlex.split(dry.stdout)


def test_a_slurm_job_that_saved_and_stopped_is_requeued(launch):
    for status, queued in ((75, True), (3, False)):
        done = launch("slurm", "--batch", "--", "python", "-c", SAY % status)
        assert done.returncode == status
        assert ("scontrol requeue 7" in done.stderr) == queued


def test_a_failed_gke_job_returns_its_status(launch):
    words = [*REMOTE["gke"], "--", "true"]
    assert launch(*words, XPK_STATUS="9").returncode == 9
    assert launch(*words[:-2], "--detach", *words[-2:], XPK_STATUS="9").returncode == 0


def test_a_stopped_tpu_run_returns_75_and_is_not_restarted(launch, tmp_path):
    program = (
        "import signal, sys, time; print('started', flush=True); "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep(60)"
    )
    words = [*REMOTE["tpu_vm"], "--restarts", "3", "--", "python", "-c", program]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(launch, *words)
        log = tmp_path / "home" / "polyview.log"
        while not (log.exists() and "started" in log.read_text()):
            assert not running.done(), running.result().stderr
            time.sleep(0.05)
        time.sleep(0.5)  # until the handler is installed
        assert launch("tpu_vm", "stop", *REMOTE["tpu_vm"][2:]).returncode == 0
        done = running.result()
    assert done.returncode == 75, done.stderr
    assert log.read_text().count("started") == 1


def test_tpu_vm_verbs_print_the_right_commands(launch):
    options = ["--name", "n", "--zone", "z", "--project", "p p", "--dry-run"]
    made = launch(
        "tpu_vm", "create", *options, "--type", "v5e-16", "--version", "v", "--spot"
    )
    words = shlex.split(made.stdout)
    assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "create"]
    assert {"--project=p p", "--spot", "--accelerator-type=v5e-16"} <= set(words)
    queued = launch(
        "tpu_vm", "create", *options, "--queue", "--type", "v5e-16", "--version", "v"
    )
    assert "queued-resources create n" in queued.stdout
    for verb, command in (
        ("install", "./polyview[tpu]"),
        ("logs", "tail"),
        ("stop", "kill -TERM"),
        ("delete", "tpu-vm delete n"),
    ):
        assert command in launch("tpu_vm", verb, *options).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local"], "no command after --"),
        (["local", "--processes", "0", "--", "true"], "--processes is '0'"),
        (["local", "--processes", "--", "true"], "--processes needs a value"),
        (["local", "--procesess", "2", "--", "true"], "unknown option '--procesess'"),
        (["slurm", "--per", "gpu", "--", "true"], "--per gpu requires --gpus"),
        (["slurm", "--per", "host", "--", "true"], "not node or gpu"),
        (["tpu_vm", "run", "--name", "n", "--", "true"], "requires --name and --zone"),
        (["tpu_vm", "fly", "--name", "n", "--zone", "z"], "unknown verb 'fly'"),
        (["gke", "--name", "n", "--", "true"], "--image are required"),
        (["evaluate"], "name a run"),
        (["evaluate", "/nowhere"], "has no checkpoints"),
    ],
)
def test_bad_launcher_arguments_are_a_one_line_error(launch, words, message):
    done = launch(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["local", "slurm", "tpu_vm", "gke", "evaluate"])
def test_help_of_a_launcher_is_its_file_header(launch, name):
    done = launch(name, "--help")
    assert done.returncode == 0 and f"bash launch/{name}.sh" in done.stdout
    assert "set -euo" not in done.stdout and "--dry-run" in done.stdout


def test_a_command_that_exits_with_75_is_restarted(launch, tmp_path):
    count = tmp_path / "count"
    program = f"echo x >> {count}; [ $(wc -l < {count}) -ge 3 ] && exit 4; exit 75"
    done = launch("local", "--restarts", "5", "--", "bash", "-c", program)
    assert done.returncode == 4 and count.read_text() == "x\n" * 3
    count.unlink()
    done = launch("local", "--restarts", "1", "--", "bash", "-c", program)
    assert done.returncode == 75 and count.read_text() == "x\n" * 2


def start(*words):
    return subprocess.Popen(
        ["bash", f"{ROOT}/launch/local.sh", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_signal_reaches_the_program_and_prevents_a_restart():
    program = "trap 'echo told; exit 75' TERM; echo ready; while :; do sleep 0.1; done"
    run = start("--restarts", "3", "--", "bash", "-c", program)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=20)
    assert run.returncode == 75 and output == "told\n"


def test_if_one_process_fails_the_others_are_stopped():
    program = 'case "$*" in *"--process 1"*) exit 3;; esac; exec sleep 100'
    began = time.monotonic()
    run = start("--processes", "3", "--", "bash", "-c", program, "name")
    run.communicate(timeout=60)
    assert run.returncode == 3 and time.monotonic() - began < 50


def test_each_unevaluated_checkpoint_gets_its_own_job(launch, tmp_path):
    run = tmp_path / "a run"
    for step in ("20", "40", "100", "tmp.300"):
        (run / "checkpoints" / step).mkdir(parents=True)
    (run / "eval").mkdir()
    for result in ("20-frozen", "40", "3-frozen-on-fashion_mnist"):
        (run / "eval" / f"{result}.json").write_text("{}")
    (run / "checkpoints" / "3").mkdir()
    launcher = ["--", "bash", "launch/slurm.sh", "--batch"]
    option = ["--option", "--config.evaluations.frozen.knn.k=5"]
    done = launch("evaluate", str(run), *option, "--dry-run", *launcher)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines == [
        [*launcher[1:], "--", "python", "-m", "polyview.evaluate", "--run", str(run)]
        + ["--step", step, option[1]]
        for step in ("3", "100")
    ]
    newest = launch("evaluate", str(run), "--newest", "--dry-run").stdout
    assert shlex.split(newest)[-2:] == ["--step", "100"]
    # A failed job does not stop the others.
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "$@"\nexit 6\n')
    program.chmod(stat.S_IRWXU)
    done = launch("evaluate", str(run), "--python", str(program))
    assert done.returncode == 6 and done.stdout.count("--step") == 2


@pytest.fixture
def sweep():
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "launch" / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sweep_runs_every_combination_in_order(sweep, capsys):
    words = "rate=1e-3,x y seed=0,1 -- run --workdir {rate}-{seed} --config.r={rate}"
    words = words.replace("x y", "x;y").split(" ")
    assert sweep.main(words) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["run", "--workdir", f"{rate}-{seed}", f"--config.r={rate}"]
        for rate in ("1e-3", "x;y")
        for seed in "01"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a=1,2", "no command after --"),
        ("a=1,2 a=3 -- run {a}", "'a=3' is not a new"),
        ("a -- run {a}", "'a' is not a new name=value"),
        ("a=1,2 -- run", "{a} does not occur"),
        ("a=1,2 b=1,2 -- run --workdir={a} {b}", "2 commands have the workdir 1"),
    ],
)
def test_a_bad_sweep_grid_is_a_one_line_error(sweep, capsys, words, message):
    assert sweep.main(words.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == "" and printed.err.count("\n") == 1


@pytest.mark.parametrize("how", ["ABRT", "KILL"])
def test_if_a_process_dies_all_are_restarted_and_a_line_says_so(launch, how):
    """JAX aborts a process that lost another, and prints a page of stack frames."""
    program = f'case "$*" in *"--process 1"*) kill -{how} $$;; esac; exec sleep 100'
    several = ["--processes", "2", "--restarts", "1", "--"]
    done = launch("local", *several, "bash", "-c", program, "name")
    lines = [line for line in done.stderr.splitlines() if "the same command" in line]
    assert done.returncode == 75 and len(lines) == 2
    assert "starting it again" in done.stderr
