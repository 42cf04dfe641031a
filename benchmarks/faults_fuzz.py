"""Fuzz one reader for some seconds; see benchmarks.faults.

python -m benchmarks.faults_fuzz READER SECONDS SEED
"""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.command_line import module_of_test


def main(name: str, seconds: float, seed: int) -> None:
    """Fuzz and print the number of inputs; raises the first unexpected error."""
    hostile = module_of_test("test_faults_hostile")
    until, inputs = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until:
            inputs += hostile.fuzz(name, 100, Path(folder), seed + inputs)
            print(f"inputs {inputs}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
