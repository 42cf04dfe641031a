"""A long run on a slow disk, with evaluations and kills: does anything grow or break?

    python -m benchmarks.soak --minutes 60

Trains on the digits on two cores, with evaluations and a checkpoint about every 20
seconds. Kills the run (-9) from time to time and runs the same command again. The
second half of the time is one life, long enough to see whether memory grows. Every
second, resident memory and open files of the process are read. After each life, every
checkpoint is read in full and its checksums are verified. The disk is slowed by
repeatedly writing and flushing a file of 64 MB. Writes results/soak.json at each kill,
so that a soak that is stopped keeps its figures.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax

from polyview import errors, hosts, prepare
from polyview.runs import checkpoint

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "soak.json"
WARM = 60  # uncounted first seconds of a life: it starts and compiles


def main() -> None:
    """Soak, print the figures and write results/soak.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--kill_every", type=float, default=300, help="seconds")
    parser.add_argument("--checkpoint_every", type=int, default=800, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, default=Path("runs/soak"))
    flags = parser.parse_args()
    os.chdir(ROOT)
    folder = flags.workdir.absolute()
    os.environ["POLYVIEW_DATA"] = str(folder / "data")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    if not (folder / "data" / "digits").exists():
        prepare.main(["digits", "--data_dir", str(folder / "data")])
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, "-m", "polyview.main"]
    command += ["--config=configs/polyview_digits.py", f"--workdir={folder / 'run'}"]
    command += [f"--config.checkpoint_every={flags.checkpoint_every}"]
    command += [f"--config.evaluate_every={4 * flags.checkpoint_every}"]
    command += ["--config.steps=100000000", "--config.log_every=100"]
    rng, lives = random.Random(flags.seed), []
    until = time.monotonic() + 60 * flags.minutes
    half = until - 30 * flags.minutes
    stop = threading.Event()
    slow = threading.Thread(target=slow_disk, args=(folder / "ballast", stop))
    slow.start()
    try:
        while time.monotonic() < until:
            end = time.monotonic() + flags.kill_every * rng.uniform(0.5, 1.5)
            end = until if time.monotonic() > half else min(end, until)
            lives.append(live(command, folder, end))
            write(lives, folder)
            if lives[-1]["status"] != -signal.SIGKILL:
                break
    finally:
        stop.set()
        slow.join()
    table(json.loads(RESULTS.read_text()))


def slow_disk(path: Path, stop: threading.Event) -> None:
    """Keep the disk busy until `stop` is set."""
    block = os.urandom(2**20)
    while not stop.is_set():
        with path.open("wb") as file:
            for _ in range(64):
                file.write(block)
                if stop.is_set():
                    break
            file.flush()
            os.fsync(file.fileno())
    path.unlink()


def live(command: list[str], folder: Path, end: float) -> dict:
    """Run until `end`, kill, read every checkpoint; return memory, files and status."""
    seen = []
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        began = time.monotonic()
        while time.monotonic() < end and process.poll() is None:
            time.sleep(1)
            seen.append((time.monotonic() - began, *used(process.pid)))
        process.send_signal(signal.SIGKILL)
        status = process.wait()
    warm = [line for line in seen if line[0] > WARM and line[1]] or seen
    tenth = max(1, len(warm) // 10)
    life = {"status": status, "seconds": round(time.monotonic() - began)}
    for name, column in (("mebibytes", 1), ("files", 2)):
        for when, lines in (("start", warm[:tenth]), ("end", warm[-tenth:])):
            life[f"{name}_{when}"] = statistics.median(line[column] for line in lines)
        life[f"{name}_most"] = max(line[column] for line in warm)
    return life | readable(folder / "run" / "checkpoints")


def used(pid: int) -> tuple[float, int]:
    """Return a process's resident MiB and open files, zeros if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0.0, 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files


def readable(folder: Path) -> dict:
    """Return the number of checkpoints, and how many cannot be read in full."""
    one = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    steps, broken = checkpoint.saved_steps(folder), 0
    for step in steps:
        try:
            digest = json.loads(
                (folder / str(step) / "digest" / "metadata").read_text()
            )
            template = {
                name: jax.ShapeDtypeStruct(shape, dtype, sharding=one)
                for name, (shape, dtype, _) in digest["state"].items()
            }
            checkpoint.read_state(folder / str(step), template)
        except (OSError, ValueError, checkpoint.Damaged):
            broken += 1
    return {"step": max(steps, default=0), "checkpoints": len(steps), "broken": broken}


def write(lives: list[dict], folder: Path) -> None:
    """Write the figures so far."""
    # Each life warms up anew: look for growth within a life, and between lives.
    longest = max(lives, key=lambda life: life["seconds"])
    words = " ".join(sys.argv[1:]).partition(" --workdir")[0]
    record = {
        "command": f"python -m benchmarks.soak {words}".strip(),
        "machine": {"cpu": hosts.processor(), "cores": hosts.cores()},
        "minutes": round(sum(life["seconds"] for life in lives) / 60, 1),
        "kills": len(lives),
        "steps": lives[-1]["step"],
        "evaluations": len(list((folder / "run" / "eval").glob("[0-9]*.json"))),
        "checkpoints_read": sum(life["checkpoints"] for life in lives),
        "checkpoints_broken": sum(life["broken"] for life in lives),
        "longest_life": longest,
        "lives": lives,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def table(record: dict) -> None:
    """Print the figures."""
    for name, value in record.items():
        if isinstance(value, int | float):
            print(f"{name:>20}  {value}")
    for name, value in record["longest_life"].items():
        print(f"{name:>20}  {value}")


if __name__ == "__main__":
    errors.run(main)
