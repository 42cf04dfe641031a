"""On a GPU or a TPU: the loss at large batches, a step at 224 px, agents of SGI.

    python -m benchmarks.accelerator [--output FILE.json]
    python -m benchmarks.accelerator --smoke    # small sizes: does it work here?

The loss is `geometric`, value and gradient, of N = 65,536 and 131,072 embeddings of d =
128 features. Its share is 6 N^2 d FLOP a second over the rate of a large square matrix
product of the same type and precision on the same devices. The step is the trainer's,
in bfloat16 on one batch that stays on the device: ResNet-50 with LARS, with photometry
and without (the bare model), and ViT-S with AdamW. The difference is photometry's share
of the step, which should be at most a tenth. An update of SGI is that of
`benchmarks.sgi`, also for ten agents in one program.

Nothing is read from a data set. Each row runs in a separate process, so that peak
memory is measured per row, and the output is written after each: the same command
resumes an interrupted one, and tries again what failed.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from polyview import errors

FEATURES, LOSS_VIEWS = 128, 8
LOSSES = [
    {"kind": "loss", "rows": rows, "dtype": dtype}
    for rows in (65_536, 131_072)
    for dtype in ("bfloat16", "float32")
]
STEPS = [
    {"kind": "step", "encoder": "resnet50", "views": views, "photometry": photometry}
    for views in (2, 8)
    for photometry in (True, False)
]
STEPS += [
    {"kind": "step", "encoder": "vit_s", "views": views, "photometry": True}
    for views in (2, 8)
]
UPDATES = [
    {"kind": "update", "size": size, "seeds": seeds}
    for size in ("S", "M")
    for seeds in (None, 10)
]
SMOKE = {"rows": 1 / 64, "side": 32, "views": 128}  # rows: a factor


def main() -> None:
    """Measure each row, print the tables, write the JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes, any machine")
    parser.add_argument(
        "--views_a_device", type=int, default=512, help="views a device in a step"
    )
    parser.add_argument("--repeats", type=int, default=20, help="calls a row")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.row:
        print(json.dumps(measured(flags)))
        return
    done = before(flags)
    found: list[dict] = []
    for row in (*LOSSES, *STEPS, *UPDATES):
        same = [one for one in done if row.items() <= one.items()]
        found.append(same[0] if same else row | measured_apart(row))
        print(line(found), flush=True)
        if flags.output:
            flags.output.write_text(json.dumps(record(flags, found), indent=1) + "\n")


def before(flags: argparse.Namespace) -> list[dict]:
    """Return the rows that an interrupted command has measured."""
    if flags.output is None or not flags.output.exists():
        return []
    written = json.loads(flags.output.read_text())
    if written["smoke"] != flags.smoke:
        raise errors.InputError(
            f"{flags.output} holds other sizes (smoke={written['smoke']}); remove it"
        )
    return [row for row in written["rows"] if "error" not in row]


def measured_apart(row: dict) -> dict:
    """Measure a row in a separate process; return the last line of any error."""
    command = [sys.executable, "-m", "benchmarks.accelerator", *sys.argv[1:]]
    done = subprocess.run(
        [*command, "--row", json.dumps(row)], capture_output=True, text=True
    )
    last = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1]
    return {"error": last} if done.returncode else json.loads(last)


def measured(flags: argparse.Namespace) -> dict:
    """Measure the requested row in this process."""
    from polyview import hosts

    row = dict(flags.row)
    function = {"loss": loss, "step": step, "update": update}[row.pop("kind")]
    return function(flags, **row) | {"machine": hosts.machine()}


def loss(flags: argparse.Namespace, rows: int, dtype: str) -> dict:
    """Measure seconds, memory and share of the matmul rate of loss and gradient."""
    import jax
    import jax.numpy as jnp

    from polyview import devices
    from polyview.objectives.contrastive import geometric
    from polyview.objectives.negatives import log_negatives
    from polyview.training import cost
    from polyview.training.peak import all_devices, matmul_rate

    rows = int(SMOKE["rows"] * rows) if flags.smoke else rows
    mesh = devices.make_mesh()
    negatives = partial(log_negatives, dtype=jnp.dtype(dtype))
    function = partial(geometric, temperature=0.1, negatives=negatives)
    shape = rows // LOSS_VIEWS, LOSS_VIEWS, FEATURES
    make = partial(jax.random.normal, shape=shape)
    z = jax.jit(make, out_shardings=devices.rows(mesh))(jax.random.key(0))
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.value_and_grad(lambda z: function(z).mean()))
        program = gradient.lower(z).compile()
        jax.block_until_ready(program(z))
        seconds = []
        for _ in range(flags.repeats):
            began = time.perf_counter()
            jax.block_until_ready(program(z))
            seconds.append(time.perf_counter() - began)
    memory = cost.memory(program)  # now, since measuring the rate needs memory too
    # Full float32 precision, not the faster products that accelerators default to.
    reached = all_devices(matmul_rate(dtype, precision="highest"))
    low, median, high = cost.quartiles(seconds)
    return {
        "rows": rows,
        "seconds": {"median": median, "quartiles": [low, high]},
        "matmul_flops_per_second": reached,
        "share_of_matmul_rate": 6 * rows**2 * FEATURES / median / reached,
        "memory": memory,
    }


def step(flags: argparse.Namespace, encoder: str, views: int, photometry: bool) -> dict:
    """Measure seconds, views a second, MFU and memory of the trainer's step."""
    import jax

    from polyview.config.file import load_config
    from polyview.training import cost, flops
    from polyview.training.peak import peak_flops
    from polyview.training.trainer import Trainer

    config = load_config(
        f"configs/polyview_imagenet.py:views={views},encoder={encoder}"
    )
    each = SMOKE["views"] if flags.smoke else flags.views_a_device
    config.batch_size = jax.device_count() * each // views
    side = SMOKE["side"] if flags.smoke else 224
    with config.unlocked():
        config.source = {
            "target": "benchmarks.accelerator:photographs",
            "count": config.batch_size,
            "side": side,
        }
        config.views.augment.size = side
        config.views.targets = ()
        config.evaluations, config.workers = None, 0
        tower = config.model.towers.image
        if not photometry:
            tower.photometry = None
        if flags.smoke:
            tower.encoder = {
                "partial": "polyview.nn.resnet:resnet_tiny",
                "in_channels": 3,
            }
    run = Trainer(config)
    with jax.set_mesh(run.mesh):
        shapes = run.trace()
        model, dtype = flops.of_step(run, shapes)
        program, compile_seconds = cost.compiled(run, shapes)
        _, seconds = cost.on_one_batch(run, program, flags.repeats)
    memory = cost.memory(program)
    peak, source = peak_flops(dtype)
    low, median, high = cost.quartiles(seconds)
    return {
        "samples": config.batch_size,
        "seconds": {"median": median, "quartiles": [low, high]},
        "views_per_second": config.batch_size * views / median,
        "model_flops": model["total"],
        "mfu": model["total"] / median / peak,
        "peak": {"flops_per_second": peak, "source": source},
        "compile_seconds": compile_seconds,
        "memory": memory,
    }


def update(flags: argparse.Namespace, size: str, seeds: int | None) -> dict:
    """Measure an agent's update, or that of several agents in one program."""
    from benchmarks import sgi

    return sgi.measured(flags, "update", "tiny" if flags.smoke else size, seeds=seeds)


def photographs(count: int, side: int):
    """Make a source of random images, slightly larger than the views."""
    import numpy as np

    from polyview.data.sources.memory import InMemory

    side = side * 9 // 8
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, side, side, 3), np.uint8)
    return InMemory({"image": images})


def line(found: list[dict]) -> str:
    """Format the last row; after a bare step, add photometry's share of the step."""
    row = found[-1]
    if row["kind"] == "loss":
        name = f"loss, N = {row['rows']:,}, {row['dtype']}"
    elif row["kind"] == "update":
        name = f"SGI, size {row['size']}, agents: {row['seeds'] or 1}"
    else:
        name = f"{row['encoder']}, M = {row['views']}"
        name += "" if row["photometry"] else " without photometry"
    if "error" in row:
        return f"{name:36} {row['error']}"
    text = f"{name:36}{1e3 * row['seconds']['median']:10.2f} ms"
    text += f"{row['memory']['peak_bytes'] / 2**20:10.0f} MiB"
    if row["kind"] != "step":
        return f"{text}{row['share_of_matmul_rate']:8.1%} of the matmul rate"
    text += f"{row['mfu']:8.1%} MFU{row['views_per_second']:10.0f} views/s"
    share = photometry_share(found)
    return text if share is None else f"{text}  photometry {share:.1%} of the step"


def photometry_share(found: list[dict]) -> float | None:
    """Return photometry's share of the step, if the last row is the bare step."""
    whole, bare = found[-2:]
    if bare["photometry"] or "error" in whole:
        return None
    return 1 - bare["seconds"]["median"] / whole["seconds"]["median"]


def record(flags: argparse.Namespace, found: list[dict]) -> dict:
    """Return the record: the command, the rows, photometry's share by views."""
    pairs = [
        (whole["views"], photometry_share([whole, bare]))
        for whole, bare in zip(found, found[1:], strict=False)
        if bare["kind"] == "step" and not bare["photometry"] and "error" not in bare
    ]
    return {
        "command": " ".join(["python -m benchmarks.accelerator", *sys.argv[1:]]),
        "smoke": flags.smoke,
        "rows": found,
        "photometry_share": dict(pairs),
    }


if __name__ == "__main__":
    errors.run(main)
