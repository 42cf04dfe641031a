"""Scaling of the loss with devices, and a projected step on a TPU v5e-256.

    python -m benchmarks.scaling

Measured: the bytes that one device sends to collectives in a step of the loss (value
and gradient), and the memory it needs, on 1, 2, 4 and 8 virtual CPU devices, for a
global batch that stays constant and one that grows with the devices. Both are read from
the compiled programs; nothing is timed. A CPU computes in float32 here.

Projected, not measured: the seconds of a training step of ResNet-50 at 224 px on 256
chips of TPU v5e, from its FLOPs, the bytes of its gradients, the bytes of the loss as
measured above, and the assumptions printed with it.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.collectives import collective_bytes, largest_array
from polyview import devices, errors
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.model import abstract_module
from polyview.objectives import contrastive
from polyview.objectives.negatives import log_negatives
from polyview.training import flops

RESULTS = Path(__file__).parent / "results" / "scaling.json"
DEVICES = (1, 2, 4, 8)
LOSSES = {
    "geometric": contrastive.geometric,
    "sufficient_statistics": contrastive.sufficient_statistics,
}
EXCHANGES = ("gather", "ring")
VIEWS, FEATURES = 8, 128
ROWS = 4096  # embeddings of the constant batch
ROWS_EACH = 1024  # embeddings on each device of the growing batch

CHIPS = 256
# Data sheet of TPU v5e (https://cloud.google.com/tpu/docs/v5e): dense bfloat16, and
# half of the 400 GB/s that a chip's links carry in both directions together.
PEAK, LINKS = 197e12, 200e9
BATCHES = ((4096, 2), (1024, 8), (4096, 8))  # K unique samples of M views
MFU = (0.3, 0.5)  # assumed
ASSUMPTIONS = (
    f"{CHIPS} chips of {PEAK / 1e12:.0f} TFLOP/s in bfloat16 and {LINKS / 1e9:.0f} "
    "GB/s into each chip over its links (data sheet); the links reach that figure",
    f"an MFU of {MFU[0]} or {MFU[1]} of the model's FLOPs: assumed, not measured",
    "the gradients of all parameters are summed in float32 round rings, 2 (n - 1) / n "
    "of their bytes into each chip; nothing is split over fsdp",
    "the geometric loss with gathered candidates, float32: for each embedding as many "
    "bytes in collectives as were measured on 8 devices",
    "not counted: photometry, the optimiser, the input, and the statistics of "
    "BatchNorm (few bytes, but a hundred messages, whose latency is not known here)",
    "the least: all communication behind the computation; the most: none",
)


def main() -> None:
    """Measure in one process for each number of devices, project, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().measure:
        print(json.dumps(measured_here()))
        return
    measured = [row for devices in DEVICES for row in measured_on(devices)]
    projected = projection(measured)
    print(measured_table(measured))
    print(projected_table(projected))
    record = {
        "command": "python -m benchmarks.scaling",
        "jax": jax.__version__,
        "features": FEATURES,
        "views": VIEWS,
        "measured": measured,
        "projected": projected,
        "assumptions": ASSUMPTIONS,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def measured_on(devices: int) -> list[dict]:
    """Return the rows of the table for a number of virtual devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    command = [sys.executable, "-m", "benchmarks.scaling", "--measure"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measured_here() -> list[dict]:
    """Measure each loss, exchange and batch on the devices of this process."""
    devices = jax.device_count()
    return [
        {"loss": loss, "exchange": exchange, "batch": batch, "devices": devices}
        | measure(loss, exchange, rows)
        for loss in LOSSES
        for exchange in EXCHANGES
        for batch, rows in (("stays", ROWS), ("grows", ROWS_EACH * devices))
    ]


def measure(loss: str, exchange: str, rows: int) -> dict:
    """Measure one device's traffic and memory for a loss and its gradient."""
    mesh = devices.make_mesh()
    negatives = partial(log_negatives, exchange=exchange)
    function = partial(LOSSES[loss], temperature=0.1, negatives=negatives)
    split = devices.rows(mesh)
    z = jax.ShapeDtypeStruct(
        (rows // VIEWS, VIEWS, FEATURES), jnp.float32, sharding=split
    )
    gradient = jax.jit(
        jax.value_and_grad(lambda z: function(z).mean()),
        out_shardings=(devices.replicated(mesh), split),
    )
    with jax.set_mesh(mesh):
        program = gradient.lower(z).compile()
    text, account = program.as_text(), program.memory_analysis()
    found = collective_bytes(text)
    return {
        "rows": rows,
        "collective_bytes": found,
        "bytes_in": bytes_in(found, mesh.size),
        "temporary_bytes": account.temp_size_in_bytes,
        "argument_and_output_bytes": account.argument_size_in_bytes
        + account.output_size_in_bytes,
        "largest_array": largest_array(text)[1],
    }


def bytes_in(collectives: dict[str, int], devices: int) -> float:
    """Return the bytes received by each device if every collective uses a ring."""
    others = (devices - 1) / devices
    passes = {
        "all-gather": others,
        "all-reduce": 2 * others,  # a reduce-scatter and an all-gather
        "all-to-all": others,
        "collective-permute": 1,
        "reduce-scatter": others,
    }
    return sum(passes[kind] * size for kind, size in collectives.items())


def projection(measured: list[dict]) -> list[dict]:
    """Project the seconds of a step on the pod for each batch and assumed MFU."""
    forward, backward, parameters = resnet50()
    (loss,) = (
        row
        for row in measured
        if (row["loss"], row["exchange"]) == ("geometric", "gather")
        and (row["batch"], row["devices"]) == ("stays", max(DEVICES))
    )
    others = (CHIPS - 1) / CHIPS
    measured_others = (loss["devices"] - 1) / loss["devices"]
    each_row = loss["bytes_in"] / measured_others / loss["rows"]
    found = []
    for samples, views in BATCHES:
        rows = samples * views
        work = rows * (forward + backward) + 6 * rows**2 * FEATURES
        gradients = 2 * others * 4 * parameters
        embeddings = others * each_row * rows
        messages = (gradients + embeddings) / LINKS
        computing = {mfu: work / (CHIPS * PEAK * mfu) for mfu in MFU}
        found.append(
            {
                "samples": samples,
                "views": views,
                "views_on_a_chip": rows // CHIPS,
                "model_flops": work,
                "share_of_the_loss": 6 * rows**2 * FEATURES / work,
                "gradient_bytes_in": gradients,
                "loss_bytes_in": embeddings,
                "communication_seconds": messages,
                "computing_seconds": {str(mfu): s for mfu, s in computing.items()},
                "step_seconds": {
                    str(mfu): {"least": max(s, messages), "most": s + messages}
                    for mfu, s in computing.items()
                },
            }
        )
    return found


def resnet50() -> tuple[int, int, int]:
    """Return FLOPs of a view, forward and backward, and the number of parameters."""
    config = load_config("configs/polyview_imagenet.py")
    parts = abstract_module(build(config.model))
    view = {
        "views": {"image": jax.ShapeDtypeStruct((1, 1, 224, 224, 3), jnp.uint8)},
        "index": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    found, _ = flops.module_products(parts, view)
    forward = sum(product.flops for product in found)
    backward = sum(product.flops * product.gradients for product in found)
    return forward, backward, sum(leaf.size for leaf in jax.tree.leaves(parts.params))


def measured_table(measured: list[dict]) -> str:
    """Format one line per program, with bytes in MB and relative to the embeddings."""
    lines = [
        f"{'loss':22}{'exchange':9}{'batch':6}{'devices':>8}{'rows':>6}"
        f"{'MB in':>8}{'x N d':>7}{'temporaries MB':>15}  largest array"
    ]
    for row in measured:
        embeddings = 4 * row["rows"] * FEATURES
        lines.append(
            f"{row['loss']:22}{row['exchange']:9}{row['batch']:6}{row['devices']:8}"
            f"{row['rows']:6}{row['bytes_in'] / 1e6:8.2f}"
            f"{row['bytes_in'] / embeddings:7.2f}{row['temporary_bytes'] / 1e6:15.2f}"
            f"  {row['largest_array']}"
        )
    return "\n".join(lines)


def projected_table(projected: list[dict]) -> str:
    """Format one line per batch, and the assumptions."""
    lines = [
        "\nProjected, not measured: ResNet-50, 224 px, bfloat16, TPU v5e-256",
        f"{'K':>6}{'M':>3}{'views a chip':>14}{'TFLOP':>8}{'of the loss':>13}"
        f"{'communication ms':>18}"
        + "".join(f"{f'step ms at MFU {mfu}':>24}" for mfu in MFU),
    ]
    for row in projected:
        steps = (
            f"{1e3 * s['least']:.1f} to {1e3 * s['most']:.1f}"
            for s in row["step_seconds"].values()
        )
        lines.append(
            f"{row['samples']:6}{row['views']:3}{row['views_on_a_chip']:14}"
            f"{row['model_flops'] / 1e12:8.1f}{row['share_of_the_loss']:13.2%}"
            f"{1e3 * row['communication_seconds']:18.2f}"
            + "".join(f"{text:>24}" for text in steps)
        )
    return "\n".join([*lines, "Assumed:", *(f"- {text}" for text in ASSUMPTIONS)])


if __name__ == "__main__":
    errors.run(main)
