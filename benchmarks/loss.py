"""Time and memory of the contrastive losses, forward and backward, on one device.

    python -m benchmarks.loss --peer_python /path/to/python

Ours computes scores in tiles. It is compared with the plain JAX form, which holds all
scores, and, for two views, with the NTXentLoss of lightly, in a separate environment
with torch and lightly. Float32, d = 128, temperature 0.1; every loss normalises its
embeddings. The floor is the time of the operations that a loss in linear memory needs,
at the rate of a large matrix product measured in the same process: for r = b*m
embeddings 4 r^2 d, as the scores are symmetric and computed twice. A program that keeps
all scores needs 6 r^2 d without the symmetry. The scores of sufficient statistics are
not symmetric: 8 r^2 d.

Each figure is the median over processes, which take turns; each process reports the
median of its calls. Extra memory is the rise of the process's peak in the first call,
or the compiled program's temporaries and output, whichever is larger.
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

D = 128
TEMPERATURE = 0.1
RESULTS = Path(__file__).parent / "results" / "loss.json"
# The floor of each loss, in units of r^2 d operations.
FLOORS = {"nt_xent": 4, "geometric": 4, "sufficient_statistics": 8}


def held(field: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def measured(call, calls: int) -> dict:
    """Measure seconds of a call, and the bytes by which the first raises the peak."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = held("VmRSS")
    call()
    extra = held("VmHWM") - before
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "extra_bytes": extra}


def plain_negatives(anchors, candidates=None, *, temperature, largest=None):
    """`log_negatives` with all scores in memory."""
    import jax
    import jax.numpy as jnp

    candidates = anchors if candidates is None else candidates
    b, m, d = anchors.shape
    scores = jnp.einsum("imd,jnd->imjn", anchors, candidates) / temperature
    other = ~jnp.eye(b, dtype=bool)[:, None, :, None]
    return jax.nn.logsumexp(scores, axis=(2, 3), where=other)


def jax_row(form: str, loss: str, rows: int, views: int, calls: int) -> dict:
    """Measure our loss, or its plain form, in this process."""
    import jax

    from polyview.objectives import contrastive
    from polyview.objectives.negatives import log_negatives

    negatives = {"ours": log_negatives, "plain": plain_negatives}[form]
    function = getattr(contrastive, loss)

    def mean(z):
        return function(z, temperature=TEMPERATURE, negatives=negatives).mean()

    z = jax.random.normal(jax.random.key(0), (rows // views, views, D))
    compiled = jax.jit(jax.value_and_grad(mean)).lower(z).compile()
    plan = compiled.memory_analysis()
    planned = plan.temp_size_in_bytes + plan.output_size_in_bytes
    before = matmul_rate()
    result = measured(lambda: jax.block_until_ready(compiled(z)), calls)
    result["extra_bytes"] = max(result["extra_bytes"], planned)
    return result | {"operations_per_second": max(before, matmul_rate())}


def matmul_rate(side: int = 4096) -> float:
    """Measure operations per second of a square float32 product, the best of 5."""
    import jax

    x = jax.random.normal(jax.random.key(0), (side, side))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def lightly_row(rows: int, calls: int) -> dict:
    """Measure NTXentLoss on two views of `rows // 2` embeddings each."""
    # The packaged torchvision, which lightly imports, lacks operators for a CPU build
    # of torch. The loss needs none, but the import registers their shapes: skip that.
    skipped = "torchvision._meta_registrations"
    sys.modules[skipped] = types.ModuleType(skipped)
    import torch
    from lightly.loss import NTXentLoss

    torch.manual_seed(0)
    z = torch.randn(2, rows // 2, D, requires_grad=True)
    loss = NTXentLoss(temperature=TEMPERATURE)

    def call():
        z.grad = None
        loss(z[0], z[1]).backward()

    return measured(call, calls) | {"torch": torch.__version__}


# form, loss, r = b*m, m
CASES = [
    ("ours", "nt_xent", 8192, 2),
    ("lightly", "nt_xent", 8192, 2),
    ("ours", "geometric", 8192, 8),
    ("plain", "geometric", 8192, 8),
    ("ours", "sufficient_statistics", 8192, 8),
    ("plain", "sufficient_statistics", 8192, 8),
    ("ours", "geometric", 4096, 8),
    ("ours", "geometric", 16384, 8),
    ("ours", "geometric", 32768, 8),
]


def apart(case: tuple, python: str, calls: int) -> dict | None:
    """Measure one case in a separate process."""
    program = [__file__] if case[0] == "lightly" else ["-m", "benchmarks.loss"]
    command = [python, *program, "--case", json.dumps(case), "--calls", str(calls)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", default="", help="python with lightly")
    parser.add_argument("--turns", type=int, default=3, help="processes per case")
    parser.add_argument("--calls", type=int, default=5, help="calls per process")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        form, loss, rows, views = options.case
        if form == "lightly":
            print(json.dumps(lightly_row(rows, options.calls)))
        else:
            print(json.dumps(jax_row(form, loss, rows, views, options.calls)))
        return

    found = {case: [] for case in CASES}
    for _ in range(options.turns):
        for case in CASES:
            python = options.peer_python if case[0] == "lightly" else sys.executable
            if python and (result := apart(case, python, options.calls)):
                found[case].append(result)
    rows = [summary(case, results) for case, results in found.items() if results]
    print_table(rows)

    from polyview import hosts

    result = {
        "command": "python -m benchmarks.loss --peer_python PYTHON",
        "machine": hosts.machine(),
        "processes_a_case": options.turns,
        "calls_a_process": options.calls,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def summary(case: tuple, results: list[dict]) -> dict:
    """Return the medians of a case, and its floor at the rate of its processes."""
    form, loss, rows, views = case
    row = {"form": form, "loss": loss, "rows": rows, "views": views}
    for key in ("seconds", "extra_bytes"):
        row[key] = statistics.median(r[key] for r in results)
    if form != "lightly":
        floors = [
            FLOORS[loss] * rows**2 * D / r["operations_per_second"] for r in results
        ]
        row["floor_seconds"] = statistics.median(floors)
        over = [r["seconds"] / f for r, f in zip(results, floors, strict=True)]
        row["over_floor"] = statistics.median(over)
    return row


def print_table(rows: list[dict]) -> None:
    print(f"{'':46}{'seconds':>9}{'floor':>8}{'ratio':>7}{'extra MB':>10}")
    ours = {(r["loss"], r["rows"]): r for r in rows if r["form"] == "ours"}
    for row in rows:
        name = f"{row['form']}, {row['loss']}, {row['rows']} embeddings"
        floor = f"{row['floor_seconds']:8.3f}" if "floor_seconds" in row else f"{'':8}"
        over = f"{row['over_floor']:7.2f}" if "over_floor" in row else f"{'':7}"
        line = f"{name:46}{row['seconds']:9.3f}{floor}{over}"
        line += f"{row['extra_bytes'] / 1e6:10.1f}"
        if row["form"] != "ours" and (mine := ours.get((row["loss"], row["rows"]))):
            speed = row["seconds"] / mine["seconds"]
            memory = row["extra_bytes"] / mine["extra_bytes"]
            line += f"   ours: {speed:.1f}x faster, 1/{memory:.0f} of the memory"
        print(line)


if __name__ == "__main__":
    main()
