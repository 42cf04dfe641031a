"""The cost of fixed weights: seconds of a step, bytes of a checkpoint.

    python -m benchmarks.fixed_weights

A frozen body of `--parameters` numbers (134 M, as in a small language model) feeds a
trained head of 1 M. The engine's step, with its check for finite values, is compared
with a jitted gradient and update of the head alone, on the same loss, with the body as
a plain argument. The two take turns; the medians are compared. Checkpoints are measured
for a body of 1 M and of 100 M. Writes benchmarks/results/fixed_weights.json.
"""

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from polyview import errors, hosts
from polyview.model import merge_module, split_module
from polyview.nn.fixed import Fixed
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.weights import keep_fixed
from polyview.training.step import create_state, make_step

RESULTS = Path(__file__).parent / "results"
WIDTH = 1024


class Bodied(nnx.Module):
    """Fixed square matrices in sequence, then a trained one."""

    def __init__(self, parameters: int, *, rngs: nnx.Rngs):
        count = max(1, parameters // WIDTH**2)
        draw = jax.random.normal(rngs.params(), (count, WIDTH, WIDTH)) / WIDTH**0.5
        self.body, self.head = Fixed(draw), nnx.Param(jnp.eye(WIDTH))

    def __call__(self, batch, *, key, train):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        x, _ = jax.lax.scan(layer, batch["x"], self.body[...])
        return x @ self.head[...]


def loss_of(module, target, batch, key):
    """Return the mean square; its gradient needs the forward pass of the whole body."""
    return jnp.mean(module(batch, key=key, train=True) ** 2), {}


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=134_000_000)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    flags = parser.parse_args()
    optimizer = optax.sgd(1e-3, momentum=0.9)
    seconds = steps(flags.parameters, flags.rows, flags.steps, optimizer)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    record = {
        "command": "python -m benchmarks.fixed_weights",
        "machine": hosts.machine(),
        "parameters": flags.parameters,
        "rows": flags.rows,
        "step_seconds": medians,
        "ratio": medians["engine"] / medians["plain"],
        "checkpoint_bytes": {
            name: checkpoint_bytes(size, optimizer)
            for name, size in (("1M", 10**6), ("100M", 10**8))
        },
    }
    print(json.dumps(record, indent=1))
    (RESULTS / "fixed_weights.json").write_text(json.dumps(record, indent=1) + "\n")


def steps(parameters: int, rows: int, count: int, optimizer) -> dict[str, list]:
    """Take steps of both kinds in turns; return the seconds of each."""
    make = functools.partial(Bodied, parameters)
    seed = jnp.uint32(0)
    create = functools.partial(create_state, make, optimizer)
    state, fixed = jax.jit(create)(seed)
    graph = split_module(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))).graph
    engine = jax.jit(make_step(graph, loss_of, optimizer), donate_argnums=0)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def plain(params, momentum, fixed, batch):
        def loss(params):
            module = merge_module(graph, params, {}, fixed)
            return loss_of(module, None, batch, None)[0]

        value, gradient = jax.value_and_grad(loss)(params)
        updates, momentum = optimizer.update(gradient, momentum, params)
        return optax.apply_updates(params, updates), momentum, value

    batch = {"x": jax.random.normal(jax.random.key(1), (rows, WIDTH))}
    params = jax.tree.map(jnp.copy, state.params)
    momentum = optimizer.init(params)
    seconds = {"engine": [], "plain": []}
    for number in range(count + 3):
        began = time.perf_counter()
        state, values = engine(state, fixed, batch, jnp.int32(number), seed)
        jax.block_until_ready((state, values))
        middle = time.perf_counter()
        params, momentum, value = plain(params, momentum, fixed, batch)
        jax.block_until_ready((params, value))
        if number >= 3:
            seconds["engine"].append(middle - began)
            seconds["plain"].append(time.perf_counter() - middle)
    return seconds


def checkpoint_bytes(parameters: int, optimizer) -> dict[str, int]:
    """Return the bytes of a checkpoint, and of the arrays that a step changes."""
    make = functools.partial(Bodied, parameters)
    state, fixed = jax.jit(functools.partial(create_state, make, optimizer))(
        jnp.uint32(0)
    )
    with tempfile.TemporaryDirectory() as folder:
        record = keep_fixed(Path(folder), fixed, [], "seed 0")
        with Checkpoints(Path(folder) / "checkpoints") as checkpoints:
            checkpoints.save(1, state, "{}", record)
        step = Path(folder) / "checkpoints" / "1"
        size = sum(path.stat().st_size for path in step.rglob("*") if path.is_file())
    return {"checkpoint": size, "state": sum(x.nbytes for x in jax.tree.leaves(state))}


if __name__ == "__main__":
    errors.run(main)
