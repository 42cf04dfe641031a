"""Survival of runs and readers: kills, damage, full disks, hostile input.

    python -m benchmarks.faults                              # every part, small
    python -m benchmarks.faults --parts kills --count 100
    python -m benchmarks.faults --parts fuzz --seconds 600

Each part is written to results/faults.json when it is done; running a part again
replaces it. Counts are written after each trial, so that a part that is stopped keeps
its figures. `--workdir` keeps the uninterrupted runs and the compiled programs.

kills, sgi_kills: a run in a new folder is killed (-9) at a random moment, every second
time while it saves, and the same command is run again. It must end with the same bytes
in every array, and the same metrics, as an uninterrupted run. damage: a file of the
newest checkpoint, chosen by size, is cut or has one bit flipped. If the damage is
noticed, the run must resume from the checkpoint before; if not, it must read what was
saved. It must print no traceback. disk: a run on a small tmpfs that fills (requires
root). processes: one of two is killed; measures the seconds until the other ends.
folder: 100,000 files and loops of links. fuzz: readers and strategies of
tests/test_faults_hostile.py, each in a separate process for a number of seconds.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.command_line import ROOT, module_of_test
from polyview import errors, hosts, prepare
from polyview.data.sources.folder import Folder
from polyview.errors import InputError
from polyview.files import write_whole
from polyview.runs import metrics
from polyview.runs.checkpoint import saved_steps

RESULTS = Path(__file__).parent / "results" / "faults.json"
STEPS = 60
SMALL = [
    "polyview.main",
    "--config=configs/polyview_digits.py",
    f"--config.steps={STEPS}",
    "--config.batch_size=8",
    "--config.log_every=1",
    "--config.checkpoint_every=5",
    "--config.model.towers.image.encoder.width=4",
]
PLAY_STEPS = 160
PLAY = [
    "sgi.finetune",
    "--config=configs/sgi_finetune.py:game=breakout,size=S,start=scratch",
    f"--config.steps={PLAY_STEPS}",
    "--config.random_steps=80",
    "--config.seeds=2",
    "--config.batch_size=4",
    "--config.n_step=3",
    "--config.objective.jumps=1",
    "--config.log_every=10",
    "--config.checkpoint_every=10",
    "--config.model.encoder.widths=(4,4,4)",
    "--config.model.hidden=8",
    "--config.evaluation=None",
]


def main() -> None:
    """Run the parts, print the table and write results/faults.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--count", type=int, default=5, help="kills, damaged files")
    parser.add_argument("--seconds", type=float, default=3, help="per fuzzed reader")
    parser.add_argument("--readers", nargs="+", help="fuzz only these readers again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, default=Path("runs/faults"))
    flags = parser.parse_args()
    os.chdir(ROOT)
    folder = flags.workdir.absolute()
    os.environ |= {
        "POLYVIEW_DATA": str(folder / "data"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if not (folder / "data" / "digits").exists():
        prepare.main(["digits", "--data_dir", str(folder / "data")])
    for name in flags.parts:
        PARTS[name](folder, flags)
    table()


def recorded() -> dict:
    """Return the results of the parts done before."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def record(name: str, result: dict) -> None:
    """Write a part's result, with the machine and the command."""
    found = recorded()
    machine = {"cpu": hosts.processor(), "cores": hosts.cores()}
    words = " ".join(sys.argv[1:]).partition(" --workdir")[0]
    command = f"python -m benchmarks.faults {words}".strip()
    found[name] = {"command": command, "machine": machine, **result}
    write_whole(RESULTS, (json.dumps(found, indent=1) + "\n").encode())


def table() -> None:
    """Print the results in results/faults.json."""
    for name, result in recorded().items():
        figures = {
            key: value
            for key, value in result.items()
            if isinstance(value, int | float | str) and key != "command"
        }
        print(f"{name:>10}  " + ", ".join(f"{k} {v}" for k, v in figures.items()))


def start(words: list[str], workdir: Path, log: Path | None = None) -> subprocess.Popen:
    """Start a command in the background; its output goes beside its workdir."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with (log or workdir.with_suffix(".log")).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *words, f"--workdir={workdir}"],
            stdout=log,
            stderr=log,
        )


def finish(words: list[str], workdir: Path) -> None:
    """Run a command to its end. Raises InputError if it fails."""
    if start(words, workdir).wait(timeout=900):
        text = workdir.with_suffix(".log").read_text()
        raise InputError(f"{workdir} failed: {text[-500:]}")


def kills(folder: Path, flags) -> None:
    """Kill a training run."""
    _kills("kills", SMALL, STEPS, folder, flags)


def sgi_kills(folder: Path, flags) -> None:
    """Kill a fine-tuning run."""
    _kills("sgi_kills", PLAY, PLAY_STEPS, folder, flags)


def _kills(name: str, words: list[str], steps: int, folder: Path, flags) -> None:
    straight = folder / name / "straight"
    seconds_of = folder / name / "seconds"
    if not seconds_of.exists():
        shutil.rmtree(straight, ignore_errors=True)
        finish(words, straight)  # compiles, so that the next run is as fast as a trial
        shutil.rmtree(straight)
        began = time.monotonic()
        finish(words, straight)
        seconds_of.write_text(str(time.monotonic() - began))
    seconds = float(seconds_of.read_text())
    expected = what_remains(straight, steps)
    rng = random.Random(flags.seed)
    result = {"tried": 0, "survived": 0, "while_saving": 0, "resumed": 0, "trials": []}
    for number in range(flags.count):
        workdir = folder / name / f"trial-{number}"
        shutil.rmtree(workdir, ignore_errors=True)
        trial = kill(words, workdir, seconds, rng, wait_for_save=number % 2 == 1)
        trial["from"] = max(saved_steps(workdir / "checkpoints"), default=0)
        finish(words, workdir)
        trial["equal"] = what_remains(workdir, steps) == expected
        result["trials"].append(trial)
        result["tried"] += 1
        result["survived"] += trial["equal"]
        result["while_saving"] += trial["saving"]
        result["resumed"] += trial["from"] > 0
        record(name, result)
        print(f"{name} {number + 1}/{flags.count}: {trial}", flush=True)
        if trial["equal"]:
            shutil.rmtree(workdir)


def kill(
    words: list[str], workdir: Path, seconds: float, rng, wait_for_save: bool
) -> dict:
    """Start a run and kill it at a random moment; return when and how it ended."""
    process = start(words, workdir)
    began = time.monotonic()
    moment = began + rng.uniform(0, seconds)
    while time.monotonic() < moment and process.poll() is None:
        time.sleep(0.001)
    while wait_for_save and process.poll() is None and not saving(workdir):
        time.sleep(0.0005)
    if wait_for_save:
        time.sleep(rng.uniform(0, 0.02))
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    status = process.wait()
    after = round(time.monotonic() - began, 3)
    return {"after": after, "status": status, "saving": saving(workdir)}


def saving(workdir: Path) -> bool:
    """Return whether a checkpoint is being written."""
    return any((workdir / "checkpoints").glob("*tmp*"))


def what_remains(workdir: Path, step: int) -> tuple:
    """Return the checksums of the last state's arrays, and the logs without times."""
    digest = workdir / "checkpoints" / str(step) / "digest" / "metadata"
    lines = [
        {k: v for k, v in line.items() if k != "time"}
        for line in metrics.read(workdir / "metrics.jsonl")
    ]
    episodes = workdir / "episodes.jsonl"
    games = episodes.read_text() if episodes.exists() else ""
    return json.loads(digest.read_text()), lines, games


def damage(folder: Path, flags) -> None:
    """Cut files of the newest checkpoint, or flip a bit in them."""
    rng = random.Random(flags.seed)
    whole = folder / "damage" / "whole"
    if not (whole / "checkpoints" / str(STEPS)).exists():
        shutil.rmtree(whole, ignore_errors=True)
        finish(SMALL, whole)
    expected = what_remains(whole, STEPS)
    result = {"tried": 0, "survived": 0, "noticed": 0, "tracebacks": 0}
    for number in range(flags.count):
        workdir = folder / "damage" / "trial"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(whole, workdir)
        newest = workdir / "checkpoints" / str(STEPS)
        files = sorted(p for p in newest.rglob("*") if p.stat().st_size and p.is_file())
        # By size: each byte is equally likely. Most files are small, unread nodes.
        (path,) = rng.choices(files, [path.stat().st_size for path in files])
        content = bytearray(path.read_bytes())
        if number % 2:
            content = content[: rng.randrange(len(content))]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        finish(SMALL, workdir)
        text = workdir.with_suffix(".log").read_text()
        result["tried"] += 1
        result["survived"] += what_remains(workdir, STEPS)[1:] == expected[1:]
        result["noticed"] += " skipped: " in text
        result["tracebacks"] += "Traceback" in text
        record("damage", result)
        print(f"damage {number + 1}/{flags.count}: {path.relative_to(newest)}")


def disk(folder: Path, flags) -> None:
    """Run on a disk that is too small, then enlarge it and resume."""
    mount = folder / "disk"
    mount.mkdir(parents=True, exist_ok=True)
    whole = folder / "damage" / "whole"
    if not (whole / "checkpoints" / str(STEPS)).exists():
        finish(SMALL, whole)
    result = {"tried": 0, "survived": 0, "tracebacks": 0, "answers": []}
    for kilobytes in (16, 200, 400, 500, 700):
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(mount)]
        )
        if made.returncode:
            raise InputError("the part disk requires root; leave it out")
        process = start(SMALL, mount / "run", folder / "disk.log")
        try:
            status = process.wait(timeout=300)
            text = (folder / "disk.log").read_text().replace(str(folder), "DIR")
            subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
            finish(SMALL, mount / "run")
            equal = what_remains(mount / "run", STEPS) == what_remains(whole, STEPS)
        finally:
            process.kill()
            subprocess.run(["umount", "-l", str(mount)])
        result["tried"] += 1
        result["survived"] += equal and status == 2
        result["tracebacks"] += "Traceback" in text
        answer = {"kilobytes": kilobytes, "status": status, "says": text[-200:]}
        if "Traceback" in text:
            answer["says"] = text[text.index("Traceback") :][:2000]
        result["answers"].append(answer)
        record("disk", result)
        print(f"disk of {kilobytes} kB: status {status}, equal {equal}", flush=True)


def processes(folder: Path, flags) -> None:
    """Kill one of two processes; time the end of the other, and resume."""
    heartbeat = 10
    result = {"heartbeat_seconds": heartbeat, "tried": 0, "survived": 0, "trials": []}
    for killed in (0, 1):
        workdir = folder / "processes" / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        pair = pair_of(workdir, heartbeat)
        while not saved_steps(workdir / "checkpoints"):
            if any(process.poll() is not None for process in pair):
                raise InputError(f"a process ended early; see {workdir}*.log")
            time.sleep(0.01)
        pair[killed].kill()
        began = time.monotonic()
        status = pair[1 - killed].wait(timeout=300)
        seconds = round(time.monotonic() - began, 2)
        again = [process.wait(timeout=900) for process in pair_of(workdir, heartbeat)]
        result["tried"] += 1
        result["survived"] += again == [0, 0]
        result["trials"].append(
            {"killed": killed, "status_of_other": status, "seconds": seconds}
        )
        result["most_seconds"] = max(t["seconds"] for t in result["trials"])
        record("processes", result)
        print(f"process {killed} killed: {result['trials'][-1]}", flush=True)


def pair_of(workdir: Path, heartbeat: int) -> list[subprocess.Popen]:
    """Start the two processes of a run."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    port = random.SystemRandom().randrange(20_000, 30_000)
    several = ["--distributed", "--processes=2", f"--coordinator=127.0.0.1:{port}"]
    several += [f"--heartbeat={heartbeat}", f"--workdir={workdir}"]
    pair = []
    for number in (0, 1):
        with Path(f"{workdir}-{number}.log").open("w") as log:
            words = [sys.executable, "-m", *SMALL, *several, f"--process={number}"]
            pair.append(subprocess.Popen(words, stdout=log, stderr=log))
    return pair


def folder_of_many(folder: Path, flags) -> None:
    """List a folder of 100,000 files with loops of links."""
    many, count = folder / "many", 100_000
    shutil.rmtree(many, ignore_errors=True)
    for number in range(count):
        below = many / f"{number // 1000:03d}"
        if number % 1000 == 0:
            below.mkdir(parents=True)
            (below / "up").symlink_to(many, target_is_directory=True)
        (below / f"{number}.png").touch()
    began = time.monotonic()
    found = len(Folder(many))
    seconds = round(time.monotonic() - began, 2)
    record("folder", {"files": count, "found": found, "seconds": seconds})
    shutil.rmtree(many)


def fuzz(folder: Path, flags) -> None:
    """Fuzz readers, each for a number of seconds."""
    hostile = module_of_test("test_faults_hostile")
    done_before = recorded().get("fuzz", {}).get("readers", {}) if flags.readers else {}
    result = {"seconds_each": flags.seconds, "readers": done_before}
    for name in flags.readers or hostile.FUZZ:
        if name not in hostile.FUZZ:
            raise InputError(f"no reader {name!r}{errors.nearest(name, hostile.FUZZ)}")
        words = [sys.executable, "-m", "benchmarks.faults_fuzz", name]
        words += [str(flags.seconds), str(flags.seed)]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=flags.seconds + 300
            )
            counts = re.findall(r"^inputs (\d+)$", done.stdout, re.MULTILINE)
            inputs = int(counts[-1]) if counts else 0
            why = "\n".join(line[:200] for line in done.stderr.splitlines()[-20:])
            failed = done.returncode != 0
        except subprocess.TimeoutExpired:
            inputs, why, failed = 0, "it hangs", True
        about = {"inputs": inputs, "seconds": flags.seconds, "failed": failed}
        result["readers"][name] = about | ({"why": why} if failed else {})
        for key in ("inputs", "failed"):
            result[key] = sum(reader[key] for reader in result["readers"].values())
        record("fuzz", result)
        print(f"fuzz {name}: {inputs} inputs{', FAILED' if failed else ''}", flush=True)


PARTS = {
    "kills": kills,
    "sgi_kills": sgi_kills,
    "damage": damage,
    "disk": disk,
    "processes": processes,
    "folder": folder_of_many,
    "fuzz": fuzz,
}


if __name__ == "__main__":
    errors.run(main)
