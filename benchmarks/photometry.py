"""Colour and blur of 224 px views, from uint8 to floats: views per second on one core.

    python -m benchmarks.photometry --peer_python /path/to/python

Ours is `nn/photometry` in a jitted call on a batch of 8 views a row. The peer is
torchvision's SimCLR transform (v2), view by view on uint8 tensors, converted to floats
at the end, which is faster. It runs in a separate environment with torch and
torchvision. The floor reads and writes the same bytes once: a jitted call that only
converts the batch to floats. Ours and the floor return fresh memory, which the system
must allocate page by page.

The second table is ours at 1024 views by chunk size. Every row is a separate process,
pinned to one core; the figure is that of the median round. On an accelerator, ours and
the floor run on the accelerator.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

VIEWS = 8
SIZE = 224
BATCHES = (64, 256, 1024)
CHUNKS = tuple(2**power for power in range(18, 25))
RESULTS = Path(__file__).parent / "results" / "photometry.json"


def ours(views: int, chunk: int):
    """Photometry of a batch, `chunk` floats at a time (0: the default)."""
    import jax

    from polyview.nn import photometry

    photometry.CHUNK = chunk or photometry.CHUNK
    return on_batch(views, jax.jit(photometry.Photometry()))


def floor(views: int, chunk: int):
    """One pass over the same bytes."""
    import jax

    return on_batch(views, jax.jit(lambda images, keys: images.astype(float) / 255))


def on_batch(views: int, function):
    import jax
    import numpy as np

    shape = (views // VIEWS, VIEWS, SIZE, SIZE, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images = jax.device_put(noise)
    keys = jax.random.split(jax.random.key(0), len(images))
    return lambda: function(images, keys).block_until_ready()


def peer(views: int, chunk: int):
    """Photometry by torchvision."""
    # The packaged torchvision lacks operators for a CPU build of torch. Transforms need
    # none, but the import of the package registers their shapes: skip that.
    skipped = "torchvision._meta_registrations"
    sys.modules[skipped] = types.ModuleType(skipped)
    import torch
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transform = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    images = torch.randint(0, 256, (views, 3, SIZE, SIZE), dtype=torch.uint8)
    return lambda: torch.stack([transform(image) for image in images])


ROWS = {"ours": ours, "peer": peer, "floor": floor}


def measure(row: str, views: int, chunk: int, core: int, rounds: int) -> float:
    """Measure views per second of one row in this process, pinned to one core."""
    os.sched_setaffinity(0, {core})
    once = ROWS[row](views, chunk)
    once()  # compile, fill caches
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return views / statistics.median(seconds)


def measured_apart(
    row: str, views: int, chunk: int, options: argparse.Namespace
) -> float | None:
    python = options.peer_python if row == "peer" else sys.executable
    if not python or not Path(python).exists():
        return None
    # The peer's environment lacks polyview; this file is all it needs.
    program = [__file__] if row == "peer" else ["-m", "benchmarks.photometry"]
    command = [python, *program, "--row", row, "--views", str(views)]
    command += ["--chunk", str(chunk), "--core", str(options.core)]
    command += ["--rounds", str(options.rounds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    return float(done.stdout)


def main() -> None:
    """Measure, print the tables and write results/photometry.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer_python", default="", help="python with torch and torchvision"
    )
    parser.add_argument("--core", type=int, default=0, help="the core to measure on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--views", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        case = options.row, options.views, options.chunk
        print(measure(*case, options.core, options.rounds))
        return

    speed = {
        views: {row: measured_apart(row, views, 0, options) for row in ROWS}
        for views in BATCHES
    }
    names = "views", *ROWS, "ours / peer", "floor / ours"
    print("".join(f"{name:>14}" for name in names))
    for views, found in speed.items():
        ratios = (
            ratio(found["ours"], found["peer"]),
            ratio(found["floor"], found["ours"]),
        )
        cells = str(views), *map(show, found.values()), *ratios
        print("".join(f"{cell:>14}" for cell in cells))
    chunks = {
        chunk: measured_apart("ours", BATCHES[-1], chunk, options) for chunk in CHUNKS
    }
    print(f"\n{'chunk, floats':>14}{'ours':>14}")
    for chunk, found in chunks.items():
        print(f"{chunk:14}{show(found):>14}")

    from polyview import hosts

    result = {
        "command": "python -m benchmarks.photometry --peer_python PYTHON",
        "machine": hosts.machine(),
        "unit": f"views/s on one core, {SIZE} px, uint8 to float32",
        "by_views": speed,
        "by_chunk": chunks,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def show(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f}"


def ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.1f}x" if a and b else "not measured"


if __name__ == "__main__":
    main()
