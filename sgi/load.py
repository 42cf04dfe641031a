"""From the path of a run to the network of one agent, and to a policy that plays by it.

What `polyview.runs.load` is for runs of one model, for runs that hold several seeds.
"""

from pathlib import Path

import jax
import numpy as np

from polyview.errors import InputError, check_range
from polyview.model import Parts, abstract_module, merge_module
from polyview.runs import checkpoint
from polyview.runs.load import (
    Loaded,
    model_of,
    newest_checkpoint,
    read_model,
    read_parts,
)
from sgi.agent import act
from sgi.playing import Policy


def load(run: str | Path, seed: int = 0, at: int | None = None) -> Loaded:
    """The network of a run's newest undamaged checkpoint, or of step `at`.

    Of a pre-trained run, or of one of the seeds of a fine-tuned run. Raises InputError
    when there is no such checkpoint or seed.
    """

    def read(folder: Path, number: int) -> Loaded:
        config = checkpoint.read_config(folder)
        seeds = config.get("seeds")
        if seeds is None:
            return read_model(folder, number)
        check_range(1, 1000, seeds=seeds)
        if not 0 <= seed < seeds:
            raise InputError(f"{run} has no seed {seed}; it has 0 to {seeds - 1}")
        parts = abstract_module(model_of(config))
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        template = jax.tree.map(
            lambda one: one.update(shape=(seeds, *one.shape), sharding=sharding),
            parts[1:],
        )
        found = read_parts(folder, *template, within="train")
        arrays = jax.tree.map(lambda x: x[seed], found)
        return Loaded(config, number, Parts(parts.graph, *arrays))

    return newest_checkpoint(run, at, read)


def greedy(model: Loaded) -> Policy:
    """The policy that takes the best action, without noise, one stack at a time."""

    graph, *arrays = model.parts

    @jax.jit
    def best(arrays, stack):
        module = merge_module(graph, *arrays)
        key = jax.random.key(0)  # of no use where epsilon is 0
        return act(module, stack[None], noise=None, epsilon=0.0, key=key)[0]

    def policy(stack: np.ndarray, rng: np.random.Generator) -> int:
        del rng
        return int(best(arrays, np.moveaxis(stack, 0, -1)))

    return policy
