"""The forms of a convolution on a CPU, by the shapes of our networks.

    python -m benchmarks.conv [--output FILE.json]
    python -m benchmarks.conv --smoke    # two shapes, writes nothing: does it work?

For each shape and for the forward pass, the gradient of the input and that of the
kernel: the rate of each form as a share of a large float32 matrix product, measured in
the same process. A star marks the form that `polyview.nn.conv.forms` chooses. "in a
loop" is XLA's form within a `lax.scan`, which takes up to a hundred times as long and
is measured up to half a GFLOP. Each figure is the fastest of some calls.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.networks import fastest
from polyview import errors, hosts
from polyview.nn import conv
from polyview.training.peak import matmul_rate

RESULTS = Path(__file__).parent / "results" / "conv.json"
CALLS = 4
MOST_IN_A_LOOP = 5e8  # FLOPs
# Batch, size of the map, channels, features, kernel, stride, padding.
SHAPES = {
    "ResNet-18, 64 px": [
        (32, 64, 3, 64, 3, 1, 1),
        (32, 64, 64, 64, 3, 1, 1),
        (32, 64, 64, 128, 3, 2, 1),
        (32, 32, 128, 128, 3, 1, 1),
        (32, 16, 64, 64, 3, 1, 1),
        (32, 8, 128, 128, 3, 1, 1),
        (32, 4, 256, 256, 3, 1, 1),
        (32, 4, 256, 512, 3, 2, 1),
        (32, 2, 512, 512, 3, 1, 1),
        (32, 16, 64, 128, 1, 2, 0),
    ],
    "ResNet-50, 96 px": [
        (16, 96, 3, 64, 7, 2, 3),
        (16, 24, 256, 64, 1, 1, 0),
        (16, 12, 128, 128, 3, 1, 1),
        (16, 6, 1024, 256, 1, 1, 0),
        (16, 3, 512, 512, 3, 1, 1),
    ],
    "ResNet-50, 224 px": [
        (8, 224, 3, 64, 7, 2, 3),
        (8, 56, 64, 64, 3, 1, 1),
        (8, 56, 256, 64, 1, 1, 0),
    ],
    "SGI, S, an update": [
        (32, 84, 4, 32, 8, 4, 0),
        (32, 20, 32, 64, 4, 2, 0),
        (32, 9, 64, 64, 3, 1, 0),
        (32, 7, 64, 64, 3, 1, 1),
    ],
    "SGI, S, 256 windows": [
        (2048, 84, 4, 32, 8, 4, 0),
        (2048, 20, 32, 64, 4, 2, 0),
        (2048, 9, 64, 64, 3, 1, 0),
        (256, 7, 64, 64, 3, 1, 1),
    ],
    "the demo": [
        (512, 28, 1, 64, 4, 4, 0),
        (512, 7, 64, 64, 3, 1, 1),
        (512, 7, 64, 128, 3, 2, 1),
        (512, 4, 128, 128, 3, 1, 1),
    ],
}
SMOKE = {"smoke": [(2, 4, 3, 4, 3, 1, 1), (2, 4, 3, 4, 2, 2, 0)]}


def xla_of_kernel(
    x: jax.Array,
    cotangent: jax.Array,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: conv.Pads,
) -> jax.Array:
    """XLA's gradient of a kernel `shape`."""
    convolution = partial(conv.xla, x, strides=strides, pads=pads)
    kernel = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(convolution, kernel)(cotangent)[0]


FORMS = {
    conv.xla: "xla",
    conv.product: "product",
    conv.product_of_blocks: "product of blocks",
}
FORMS_OF_KERNEL = {
    xla_of_kernel: "xla",
    conv.by_tap: "by tap",
    conv.of_patches: "of patches",
}


def main() -> None:
    """Measure each shape, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--smoke", action="store_true", help="small shapes, any machine")
    add("--output", type=Path, default=RESULTS, help="JSON (default: %(default)s)")
    flags = parser.parse_args()
    rate = matmul_rate("float32")
    print(f"matrix product: {rate / 1e9:.0f} GFLOP/s")
    rows = []
    for network, shapes in (SMOKE if flags.smoke else SHAPES).items():
        for shape in shapes:
            rows.append({"network": network, "shape": shape} | measured(*shape, rate))
            print(line(rows[-1]), flush=True)
    if not flags.smoke:
        record = {
            "command": "python -m benchmarks.conv",
            "machine": hosts.machine(),
            "matmul_flops_per_second": rate,
            "columns": "batch, map, channels, features, kernel, stride, padding",
            "rows": rows,
        }
        flags.output.write_text(json.dumps(record, indent=1) + "\n")


def measured(
    n: int, size: int, channels: int, features: int, k: int, s: int, p: int, rate: float
) -> dict:
    """Measure the share of the matrix rate that each form reaches, by direction."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, size, size, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(k, k, channels, features)), jnp.float32)
    strides, pads = (s, s), ((p, p), (p, p))
    y = conv.xla(x, kernel, strides, pads)
    flops = 2 * y.size * k * k * channels
    at = {"strides": strides, "pads": pads}
    chosen = conv.forms(x.shape, kernel.shape, **at)
    count = conv.slices(x.shape, kernel.shape, **at)
    forward = conv.slices(x.shape, kernel.shape, **at, fewest=conv.MANY_ROWS)
    found: dict[str, dict] = {"forward": {}, "input": {}, "kernel": {}}

    def add(direction: str, form: Callable, slices: int, function: Callable) -> None:
        inputs = (x, kernel) if direction == "forward" else (y, kernel, x)
        seconds = timed(jax.jit(function), *inputs)
        found[direction][named(form, slices)] = flops / seconds / rate
        xlas = (conv.xla, xla_of_kernel)
        if form in xlas and slices == 1 and flops <= MOST_IN_A_LOOP:
            seconds = in_a_loop(function, *inputs)
            found[direction]["xla in a loop"] = flops / seconds / rate

    def of_rows(
        x: jax.Array, kernel: jax.Array, form: Callable, slices: int
    ) -> jax.Array:
        return conv.joined(partial(form, kernel=kernel, **at), slices, x)

    def of_input(
        y: jax.Array, kernel: jax.Array, x: jax.Array, form: Callable, slices: int
    ) -> jax.Array:
        return conv.joined(conv.transposed(form, x, kernel, **at), slices, y)

    def of_kernel(
        y: jax.Array, kernel: jax.Array, x: jax.Array, form: Callable, slices: int
    ) -> jax.Array:
        return conv.summed(partial(form, shape=kernel.shape, **at), slices, x, y)

    for form in FORMS:
        if form is conv.product_of_blocks and (s == 1 or k % s):
            continue
        for slices in sorted({1, forward}):
            add("forward", form, slices, partial(of_rows, form=form, slices=slices))
        for slices in sorted({1, 1 if form is conv.xla else count}):
            add("input", form, slices, partial(of_input, form=form, slices=slices))
    for form in FORMS_OF_KERNEL:
        for slices in sorted({1, 1 if form is xla_of_kernel else count}):
            add("kernel", form, slices, partial(of_kernel, form=form, slices=slices))
    stars = {
        "forward": named(chosen.forward, forward),
        "input": named(chosen.input, 1 if chosen.input is conv.xla else count),
        "kernel": named(chosen.kernel, count),
    }
    return {"shares": found, "chosen": stars}


def named(form: Callable, slices: int) -> str:
    """Name a form as the table does."""
    name = (FORMS | FORMS_OF_KERNEL)[form]
    return f"{name} in slices" if slices > 1 else name


def timed(function: Callable, *inputs: jax.Array, calls: int = CALLS) -> float:
    """Return the seconds of the fastest call, after one that compiles."""
    return fastest(lambda: jax.block_until_ready(function(*inputs)), calls)


def in_a_loop(function: Callable, *inputs: jax.Array) -> float:
    """Return the seconds of a call in a loop of two, the faster of two loops."""

    @jax.jit
    def loop(first: jax.Array, *others: jax.Array) -> jax.Array:
        def body(total: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
            return total + function(first * scale, *others), None

        shape = jax.eval_shape(function, first, *others)
        start = jnp.zeros(shape.shape, shape.dtype)
        return jax.lax.scan(body, start, jnp.arange(2.0))[0]

    return timed(loop, *inputs, calls=2) / 2


def line(row: dict) -> str:
    """Format a row of the table."""
    text = f"{row['network']:22}{row['shape']!s:32}"
    for direction, shares in row["shares"].items():
        star = row["chosen"][direction]
        cells = (f"{n}{'*' * (n == star)} {s:.3f}" for n, s in shares.items())
        text += f"\n    {direction:8} " + "  ".join(cells)
    return text


if __name__ == "__main__":
    errors.run(main)
