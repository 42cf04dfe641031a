"""SGI: cost of an agent's update, a pre-training step, the environment and batches.

    python -m benchmarks.sgi [--official CHECKOUT --peer_python PYTHON]
    python -m benchmarks.sgi --smoke    # small sizes, writes nothing: does it work?

An update is that of `sgi.agent` on 32 steps of play; a pre-training step is that of
`sgi.pretrain` on 256 windows. Each is compiled with its state donated and takes a batch
of noise that stays on the device, from a game of 18 actions. Rows for depthwise "lax"
use XLA's grouped convolution instead of shifts. A row for several seeds is one program
for all of them, which on a CPU takes one after another.

FLOPs are counted in two ways. Products: 2 for each multiply-add of the step's matrix
products and convolutions, forward and backward, counted by `polyview.training.flops` in
the traced step; the share is their rate over that of a large float32 matrix product.
All: XLA's cost analysis of the unoptimised step, including elementwise work such as
depthwise shifts, but the body of a loop once, as in gradients that `polyview.nn.conv`
computes in slices. Each row is a separate process, so that peak memory is measured per
row. With a checkout of mila-iqia/SGI, each row is followed by the same step of the
official code, from `benchmarks/sgi_official.py` in a Python with torch, kornia and
rlpyt.

The environment is one game of `sgi.atari` under random actions, four emulator frames a
step. A pre-training batch holds 256 windows of `sgi.replay.Window`; "stacks" are the
frames in a batch of the official code, four for each of 60 times.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from polyview import errors, hosts
from polyview.config.spec import build
from polyview.model import abstract_module
from polyview.rl import replay
from polyview.training import cost, flops, optimizer
from polyview.training.peak import matmul_rate
from polyview.training.step import create_state, make_step
from sgi import agent, parts, pretrain
from sgi.atari import Game
from sgi.online import for_each_seed
from sgi.replay import Window

RESULTS = Path(__file__).parent / "results" / "sgi.json"
ACTIONS = 18
BATCHES = {"update": 32, "pretrain": 256}
OFFICIAL_TIMES = 60
GAME_STEPS = 5000
ROWS = [{"kind": kind, "size": size} for size in ("S", "M") for kind in BATCHES]
ROWS.append({"kind": "update", "size": "M", "depthwise": "lax"})
# In a smoke test networks are tiny, batches small and compilation unoptimised.
SMOKE_ROWS = [{"kind": kind, "size": "tiny"} for kind in BATCHES]
SMOKE_BATCH = 8
HURRY = {"xla_backend_optimization_level": 0}


def main() -> None:
    """Measure each row, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--smoke", action="store_true", help="small sizes, any machine")
    add("--seeds", type=int, default=10, help="in the row of several (default: 10)")
    add("--repeats", type=int, default=3, help="timed steps a row (default: 3)")
    add("--game", default="pong", help="game to play (default: pong)")
    add("--official", metavar="CHECKOUT", type=Path, help="a clone of mila-iqia/SGI")
    add("--peer_python", default=sys.executable, help="a Python that can run it")
    add("--output", type=Path, default=RESULTS, help="JSON (default: %(default)s)")
    add("--row", type=json.loads, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.row:
        print(json.dumps(measured(flags, **flags.row)))
        return
    several = {"kind": "update", "size": "S", "seeds": flags.seeds}
    found = []
    for row in SMOKE_ROWS if flags.smoke else [*ROWS, several]:
        found.append(row | measured_apart(row))
        print(line(found[-1]), flush=True)
        if flags.official and row.keys() == {"kind", "size"}:
            found[-1]["official"] = officially(flags, **row)
            print(f"    the official code: {found[-1]['official']}", flush=True)
    for row in found:
        if text := ratio(row, found):
            print(text)
    rate = played(flags.game, GAME_STEPS)
    print(f"{'environment, ' + flags.game:32}{rate:10.0f} steps/s")
    batch = batch_bytes(BATCHES["pretrain"])
    megabytes = {name: f"{size / 1e6:.1f} MB" for name, size in batch.items()}
    print(f"batch of {BATCHES['pretrain']} windows, bytes of frames: {megabytes}")
    if not flags.smoke:
        record = {
            "command": "python -m benchmarks.sgi"
            + " --official CHECKOUT --peer_python PYTHON" * bool(flags.official),
            "machine": hosts.machine(),
            "repeats": flags.repeats,
            "rows": found,
            "environment": {"game": flags.game, "steps_per_second": rate},
            "batch_bytes": batch,
        }
        flags.output.write_text(json.dumps(record, indent=1) + "\n")


def measured_apart(row: dict) -> dict:
    """Measure a row in a separate process; return the last line of any error."""
    command = [sys.executable, "-m", "benchmarks.sgi", *sys.argv[1:]]
    done = subprocess.run(
        [*command, "--row", json.dumps(row)], capture_output=True, text=True
    )
    last = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1]
    return {"error": last} if done.returncode else json.loads(last)


def officially(flags: argparse.Namespace, kind: str, size: str) -> dict:
    """Measure the same step of the official code; return the last line of any error."""
    program = str(Path(__file__).parent / "sgi_official.py")
    command = [flags.peer_python, program, str(flags.official), kind, size]
    done = subprocess.run(command, capture_output=True, text=True)
    last = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1]
    return {"error": last} if done.returncode else json.loads(last)


def measured(
    flags: argparse.Namespace,
    kind: str,
    size: str,
    depthwise: str = "shifts",
    seeds: int | None = None,
) -> dict:
    """Measure seconds, FLOPs and memory of a training step."""
    b = SMOKE_BATCH if flags.smoke else BATCHES[kind]
    create, take = program(kind, size, depthwise)
    batch, seed = {"update": replayed, "pretrain": windows}[kind](b), np.uint32(0)
    if seeds is not None:
        seed = np.arange(seeds, dtype=np.uint32)
        batch = jax.tree.map(lambda x: np.stack([x] * seeds), batch)
        create, of_one = jax.vmap(create), take

        def take(state, batch, number, seed):
            numbers = jax.numpy.broadcast_to(number, seed.shape)
            return for_each_seed(of_one, state, batch, numbers, seed)

    options = HURRY if flags.smoke else {}
    state = jax.jit(create, compiler_options=options)(seed)
    batch = jax.device_put(batch)
    inputs = state, batch, np.int32(0), seed
    traced = jax.make_jaxpr(take)(*inputs).jaxpr
    found, _ = flops.products(traced, [False] * len(traced.invars))
    products = sum(product.flops for product in found)
    lowered = jax.jit(take, donate_argnums=0).lower(*inputs)
    everything = lowered.cost_analysis()["flops"]
    began = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    compile_seconds = time.perf_counter() - began
    seconds = []
    for number in range(1 + flags.repeats):
        began = time.perf_counter()
        state, values = compiled(state, batch, np.int32(number), seed)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    if not np.asarray(values["healthy"]).all():
        raise ArithmeticError("a step was not finite")
    memory = cost.memory(compiled)  # now, since measuring the rate needs memory too
    rate = matmul_rate("float32")
    low, median, high = cost.quartiles(seconds[1:])
    return {
        "batch": b,
        "seconds": {"median": median, "quartiles": [low, high]},
        "product_flops": products,
        "all_flops": everything,
        "matmul_flops_per_second": rate,
        "share_of_matmul_rate": products / median / rate,
        "compile_seconds": compile_seconds,
        "memory": memory,
    }


def program(kind: str, size: str, depthwise: str):
    """Return `create(seed) -> state` and the engine's step, as set in the paper."""
    floats = {"dtype": "float32", "param_dtype": "float32"}
    sigma = 0.5 if kind == "update" else 0.0
    network = parts.network(size, ACTIONS, sigma=sigma, **floats)
    if "depthwise" in network["encoder"]:
        network["encoder"]["depthwise"] = depthwise
    network = build(network)
    sizes = {"steps": 1, "batch_size": 1}  # unused by constant learning rates
    if kind == "update":
        objective = agent.Rainbow()
        rates = {"encoder": 1e-6, "first": 3e-5, "rest": 1e-4}
        made = agent.grouped_adam(**sizes, **rates)
    else:
        objective = pretrain.Pretrain()
        rule = partial(optimizer.constant, base=1e-4)
        made = pretrain.adam(**sizes, learning_rate=rule)
    graph, *_ = abstract_module(network)
    take = make_step(graph, objective, made.transformation, 0.99)

    def create(seed):
        return create_state(network, made.transformation, seed, 0.99)[0]

    return create, lambda state, *inputs: take(state, {}, *inputs)


def replayed(b: int) -> dict:
    """Return a batch that `polyview.rl.replay` draws from noise."""
    steps, rng = 200, np.random.default_rng(0)
    seen = replay.Buffer(
        frames=rng.integers(0, 256, (steps, 84, 84), np.uint8),
        action=rng.integers(0, ACTIONS, steps).astype(np.int32),
        reward=rng.integers(-1, 2, steps).astype(np.float32),
        done=rng.random(steps) < 0.01,
        priority=np.ones(steps, np.float32),
        size=np.int32(steps),
    )
    asked = {"jumps": 5, "n_step": 10, "discount": 0.99, "alpha": 0.5, "beta": 0.4}
    draw = jax.jit(partial(replay.sample, batch_size=b, **asked))
    return jax.device_get(draw(jax.device_put(seen), jax.random.key(0)))


def windows(b: int) -> dict:
    """Return a batch that `sgi.replay` cuts from noise."""
    steps, rng = 60, np.random.default_rng(0)
    example = {
        "frames": rng.integers(0, 256, (steps, 84, 84), np.uint8),
        "action": rng.integers(0, ACTIONS, steps).astype(np.int32),
        "reward": np.zeros(steps, np.float32),
        "terminal": np.arange(steps) == steps - 1,
    }
    cut = [Window()(example | {"time": i % steps}, rng) for i in range(b)]
    batch = jax.tree.map(lambda *x: np.stack(x), *cut)
    return batch | {"index": np.arange(b, dtype=np.int32)}


def batch_bytes(b: int) -> dict:
    """Return the bytes of frames in a pre-training batch, ours and the official."""
    views = windows(b)["views"]
    return {
        "frames": sum(frames.nbytes for frames in views.values()),
        "stacks": OFFICIAL_TIMES * views["goal"].nbytes,
    }


def played(name: str, steps: int) -> float:
    """Measure steps a second of a game under random actions."""
    game = Game(name)
    actions = np.random.default_rng(0).integers(len(game.actions), size=steps)
    game.reset()
    began = time.perf_counter()
    for action in actions.tolist():
        outcome = game.step(action)
        if outcome.game_over or outcome.truncated:
            game.reset()
    return steps / (time.perf_counter() - began)


def name_of(row: dict) -> str:
    name = f"{row['kind']}, {row['size']}"
    name += f", depthwise {row['depthwise']}" if "depthwise" in row else ""
    return name + (f", {row['seeds']} seeds" if "seeds" in row else "")


def line(row: dict) -> str:
    """Format a row of the table."""
    if "error" in row:
        return f"{name_of(row):32}{row['error']}"
    text = f"{name_of(row):32}{1e3 * row['seconds']['median']:10.1f} ms"
    text += f"{row['product_flops'] / 1e9:8.1f} GFLOP in products"
    text += f"{row['all_flops'] / 1e9:8.1f} in all"
    text += f"{row['share_of_matmul_rate']:8.1%} of the matmul rate"
    return text + f"{row['memory']['peak_bytes'] / 2**20:8.0f} MiB"


def ratio(row: dict, rows: list[dict]) -> str | None:
    """Compare the time of a variant (depthwise, seeds) with its plain row."""
    plain = {"kind": row["kind"], "size": row["size"]}
    (base,) = (
        r for r in rows if r | plain == r and not {"depthwise", "seeds"} & set(r)
    )
    if base is row or "error" in row or "error" in base:
        return None
    times = row["seconds"]["median"] / base["seconds"]["median"]
    return f"{name_of(row)}: {times:.2f} of the time of {name_of(base)}"


if __name__ == "__main__":
    errors.run(main)
