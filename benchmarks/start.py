"""Seconds from a command to its first step, with and without compiled programs kept.

    python -m benchmarks.start [--beside CHECKOUT]

Each run is a process of its own that is stopped at the line of its first step. `cold`
begins with an empty cache of compiled programs, `warm` with what `cold` left there.
`--beside` measures another checkout of the project as well, the two taking turns; one
older than the cache is measured as it is. ResNet-50 reads a folder of random pictures.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from polyview import hosts

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "start.json"
RUNS = {
    "digits": ["configs/polyview_digits.py"],
    "demo": ["configs/polyview_fashion_mnist.py:views=8"],
    "sgi_demo": ["configs/sgi_demo.py"],
    "resnet50": [
        "configs/polyview_imagenet.py:data=noise",
        "--config.batch_size=8",
        "--config.workers=0",
    ],
}
LIMIT = 600.0  # seconds


def main() -> None:
    """Measure, print the table and write results/start.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beside", metavar="CHECKOUT", type=Path)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--run", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    flags = parser.parse_args()
    trees = {"ours": ROOT} | ({"beside": flags.beside} if flags.beside else {})
    rows = []
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for run in flags.run:
            seconds: dict[str, list[float]] = {}
            for _ in range(flags.processes):
                for tree, folder in trees.items():
                    cache = Path(name) / "cache"
                    shutil.rmtree(cache, ignore_errors=True)
                    for state in ("cold", "warm"):
                        took = until_first_step(RUNS[run], folder, cache)
                        seconds.setdefault(f"{tree}_{state}", []).append(took)
            row = {"run": run} | {k: statistics.median(v) for k, v in seconds.items()}
            rows.append(row)
            print(
                "  ".join(f"{k} {v:.1f}" if k != "run" else v for k, v in row.items())
            )
    record = {
        "command": "python -m benchmarks.start"
        + " --beside DIR" * bool(flags.beside)
        + f" --run {' '.join(flags.run)}",
        "machine": hosts.machine(),
        "processes_a_case": flags.processes,
        "seconds_to_the_first_step": rows,
    }
    if flags.beside:
        words = ["git", "-C", str(flags.beside), "rev-parse", "--short", "HEAD"]
        record["beside"] = subprocess.check_output(words, text=True).strip()
    flags.output.write_text(json.dumps(record, indent=1) + "\n")


def prepare(folder: Path) -> None:
    """Write 64 random pictures of 4 classes and the data set `noise` of them."""
    rng = np.random.default_rng(0)
    for number in range(64):
        label = folder / "pictures" / f"class{number % 4}"
        label.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(label / f"{number}.png")
    words = ["folder", "--input", str(folder / "pictures"), "--name", "noise"]
    command = [sys.executable, "-m", "polyview.prepare", *words]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def until_first_step(words: list[str], checkout: Path, cache: Path) -> float:
    """Start a run of a checkout, stop it at its first step; return the seconds."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "polyview.main", "--config", *words]
        command += ["--workdir", f"{workdir}/run"]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(checkout),
            "XDG_CACHE_HOME": str(cache),
        }
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said = []
        late = threading.Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        try:
            for line in process.stdout:
                said.append(line)
                if line.startswith("step 1/"):
                    return time.perf_counter() - began
        finally:
            late.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    sys.exit(f"{' '.join(words)} did not take its first step:\n{''.join(said[-5:])}")


if __name__ == "__main__":
    main()
