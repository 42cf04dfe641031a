"""The cost of a config on these devices: rate, MFU, waiting for input, memory.

The same compiled step runs twice: with batches read as in training, and with one batch
that stays on the device. The difference is the cost of the input. Rates are means over
all steps, since several workers deliver batches in bursts and no single step is
typical. Quartiles are reported beside the mean.

MFU is model FLOPs a second (see `polyview.training.flops`) over all devices' peak.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled
from ml_collections import ConfigDict

from polyview import devices, hosts
from polyview.config.text import dotted, text_digest, to_json
from polyview.training import flops
from polyview.training.peak import peak_flops
from polyview.training.prefetch import prefetch
from polyview.training.step import TrainState
from polyview.training.trainer import Trainer

WARM_UP = 3  # untimed first steps of each run


def measure(config: ConfigDict, steps: int) -> dict[str, Any]:
    """Measure the record that `polyview.bench` reports, over `steps` steps.

    Raises InputError for a config that cannot run.
    """
    run = Trainer(config)
    with jax.set_mesh(run.mesh):
        shapes = run.trace()
        model, dtype = flops.of_step(run, shapes)
        program, compile_seconds = compiled(run, shapes)
        state, fixed = on_one_batch(run, program, steps)
        timed, waits = with_pipeline(run, program, state, steps)
        used = memory(program)  # now, since measuring the peak rate needs memory too
    peak, source = peak_flops(dtype)

    images = config.batch_size
    views = sum(v.shape[1] for v in shapes["views"].values())

    def rates(seconds: Sequence[float]) -> dict[str, Any]:
        low, median, high = quartiles(seconds)
        mean = statistics.fmean(seconds)
        return {
            "step_seconds": {"mean": mean, "median": median, "quartiles": [low, high]},
            "images_per_second": images / mean,
            "views_per_second": images * views / mean,
            "mfu": model["total"] / mean / peak,
        }

    return {
        "machine": hosts.machine(),
        "config": {
            "digest": text_digest(to_json(config)),
            "keys": dotted(json.loads(to_json(config))),
        },
        "batch": {"images": images, "views_of_an_image": views},
        "steps": len(timed),
        "pipeline": rates(timed),
        "fixed_batch": rates(fixed),
        "input_wait_share": sum(waits) / sum(timed),
        "model_flops": {**model, "convention": flops.CONVENTION},
        "peak": {"flops_per_second": peak, "source": source},
        "memory": used,
        "compile_seconds": compile_seconds,
    }


def table(record: dict[str, Any]) -> str:
    """Format a record of `measure` as a table."""
    machine, peak, memory = record["machine"], record["peak"], record["memory"]
    runs = record["pipeline"], record["fixed_batch"]

    def row(name: str, *cells: str) -> str:
        return f"{name:>12}  " + "".join(f"{cell:<28}" for cell in cells).rstrip()

    def spread(run: dict[str, Any]) -> str:
        low, high = (1e3 * s for s in run["step_seconds"]["quartiles"])
        mean = 1e3 * run["step_seconds"]["mean"]
        return f"{mean:.4g} ms ({low:.4g} to {high:.4g})"

    images, views = record["batch"].values()
    model = record["model_flops"]
    lines = [
        row("machine", f"{machine['devices']} x {machine['device']}, {peak['source']}"),
        row("batch", f"{images} images of {views} views"),
        row("", "with its pipeline", "one fixed batch"),
        row("step", *map(spread, runs)),
        row("images/s", *(f"{run['images_per_second']:.4g}" for run in runs)),
        row("views/s", *(f"{run['views_per_second']:.4g}" for run in runs)),
        row("MFU", *(f"{100 * run['mfu']:.3g} %" for run in runs)),
        row("input wait", f"{100 * record['input_wait_share']:.3g} %"),
        row(
            "model",
            f"{model['total'] / 1e9:.4g} GFLOP a step, "
            f"{100 * model['loss'] / max(model['total'], 1):.3g} % in the loss",
        ),
        row(
            "peak",
            f"{peak['flops_per_second'] / 1e9:.5g} GFLOP/s on all devices",
        ),
        row(
            "memory",
            f"{memory['peak_bytes'] / 2**20:.4g} MiB a device ({memory['peak_is']})",
        ),
        row("compilation", f"{record['compile_seconds']:.3g} s"),
    ]
    if "process_bytes" in memory:
        size = f"{memory['process_bytes'] / 2**20:.4g} MiB at most"
        lines.insert(-1, row("process", size))
    return "\n".join(lines)


def compiled(run: Trainer, shapes: dict) -> tuple[Compiled, float]:
    """Compile a run's step; return it and the seconds of lowering and compiling."""
    number = jax.ShapeDtypeStruct((), np.int32)
    began = time.perf_counter()
    program = run.step.lower(run.shape, run.fixed, shapes, number, run.seed).compile()
    return program, time.perf_counter() - began


def on_one_batch(
    run: Trainer, program: Compiled, steps: int
) -> tuple[TrainState, list[float]]:
    """Take steps on one batch that stays on the device; return state and seconds."""
    with contextlib.closing(prefetch(run.batches(0, 1), run.mesh)) as batches:
        _, _, batch = next(batches)
    # A step rejects a batch drawn for another step number.
    numbers = [
        devices.put_replicated(np.int32(i), run.mesh) for i in range(WARM_UP + steps)
    ]
    jax.block_until_ready((batch, numbers))
    again = ((i, number, batch) for i, number in enumerate(numbers))
    state, run.fixed = run.initial(run.seed)
    state, seconds, _ = _take(run, program, state, again)
    return state, seconds[WARM_UP:]


def with_pipeline(
    run: Trainer, program: Compiled, state: TrainState, steps: int
) -> tuple[list[float], list[float]]:
    """Take steps as in training; return the seconds of each, and of its wait for input.

    Workers deliver one batch each in turn. Batches prepared in advance are not timed;
    the timed steps are whole rounds of the workers.
    """
    start, workers = int(state.step), max(1, run.config.get("workers", 0))
    ready, timed = WARM_UP + 2 * workers, -(-steps // workers) * workers
    batches = prefetch(run.batches(start, start + ready + timed), run.mesh)
    with contextlib.closing(batches):
        _, seconds, waits = _take(run, program, state, batches)
    return seconds[ready:], waits[ready:]


def _take(
    run: Trainer, program: Compiled, state: TrainState, batches: Iterator
) -> tuple[TrainState, list[float], list[float]]:
    """Take a step with each batch; return seconds of each, and of waiting for a batch.

    As in training, one step runs while the host waits for the next batch.
    """
    seconds, waits, pending = [], [], None
    began = time.perf_counter()
    while (item := next(batches, None)) is not None:
        waits.append(time.perf_counter() - began)
        _, number, batch = item
        state, values = program(state, run.fixed, batch, number, run.seed)
        jax.block_until_ready(pending)
        pending = values["healthy"]
        now = time.perf_counter()
        seconds.append(now - began)
        began = now
    jax.block_until_ready(state)
    return state, seconds, waits


def memory(program: Compiled) -> dict[str, Any]:
    """Return a device's peak memory, measured or else estimated by the compiler."""
    sizes = account(program)
    counters = [device.memory_stats() for device in jax.local_devices()]
    if all(stats and "peak_bytes_in_use" in stats for stats in counters):
        peak = max(stats["peak_bytes_in_use"] for stats in counters)
        return {
            "peak_bytes": peak,
            "peak_is": "the most in use, as the device counts",
            "compiled_bytes": sizes,
        }
    result = {
        "peak_bytes": held(sizes),
        "peak_is": "temporaries, arguments and outputs, as compiled",
        "compiled_bytes": sizes,
    }
    if jax.default_backend() == "cpu":
        result["process_bytes"] = _most_resident()
    return result


def account(program: Compiled) -> dict[str, int]:
    """Return the compiler's estimate of memory on one device, in bytes."""
    sizes: Any = program.memory_analysis()
    return {
        "temporaries": sizes.temp_size_in_bytes,
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "shared_by_arguments_and_outputs": sizes.alias_size_in_bytes,
    }


def held(sizes: dict[str, int]) -> int:
    """Return the total of an `account`, in bytes."""
    return sum(sizes.values()) - 2 * sizes["shared_by_arguments_and_outputs"]


def _most_resident() -> int:
    """The peak resident memory of this process, in bytes."""
    import resource  # Unix only

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(low), float(median), float(high)
