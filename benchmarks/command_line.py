"""Wrong command lines, each run as a process: exit status, answer and time.

    python -m benchmarks.command_line

The commands are those of tests/test_faults_commands.py. A wrong command is answered if
it exits with status 2, prints the expected words in at most two lines, and creates no
files. Compiled programs are cached, as for a user's second command.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from polyview import errors, hosts

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
LIMIT = 3.0  # seconds within which a mistake should be answered


def main() -> None:
    """Measure, print the table and write results/command_line.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    commands = module_of_test("test_faults_commands")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["POLYVIEW_DATA"] = str(folder / "data")
        commands.files(folder)
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        lines = [
            measure(line, says, commands.words_of(line, folder), folder, environment)
            for line, says in commands.WRONG
        ]
    answered = sum(line["answered"] for line in lines)
    seconds = [line["seconds"] for line in lines]
    print(
        f"{answered} of {len(lines)} answered; seconds: median "
        f"{statistics.median(seconds):.2f}, most {max(seconds):.2f}"
    )
    record = {
        "command": "python -m benchmarks.command_line",
        "machine": hosts.machine(),
        "tried": len(lines),
        "answered": answered,
        "under_limit": sum(s < LIMIT for s in seconds),
        "limit_seconds": LIMIT,
        "median_seconds": statistics.median(seconds),
        "most_seconds": max(seconds),
        "commands": lines,
    }
    path = RESULTS / "command_line.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


def module_of_test(name: str):
    """Import a module of tests/."""
    path = ROOT / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(
    line: str, says: str, words: list[str], folder: Path, environment: dict
) -> dict:
    """Run a command line; return its time, status and answer."""
    before = sorted(os.listdir(folder))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    seconds = round(time.perf_counter() - began, 2)
    answered = (
        done.returncode == 2
        and says in done.stderr
        and done.stderr.count("\n") <= 2
        and not done.stdout
        and sorted(os.listdir(folder)) == before
    )
    print(f"{seconds:6.2f} s  {'answered' if answered else 'WRONG   '}  {line}")
    answer = done.stderr.strip().replace(str(folder), "DIR")
    return {
        "line": line[:150],
        "seconds": seconds,
        "status": done.returncode,
        "answered": answered,
        "answer": answer.replace(str(Path.home()), "~"),
    }


if __name__ == "__main__":
    errors.run(main)
