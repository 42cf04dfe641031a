"""Load the network of one agent from a run, and play with it.

The counterpart of `polyview.runs.load` for runs that hold several seeds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

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
from sgi.network import Network
from sgi.playing import Policy


def load(run: str | Path, seed: int = 0, at: int | None = None) -> Loaded:
    """Return the network of a run's newest undamaged checkpoint, or of step `at`.

    `seed` selects the agent of a fine-tuned run; a pre-trained run has one network.
    Raises InputError if there is no such checkpoint or seed.
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
        params, statistics, fixed = jax.tree.map(
            lambda one: one.update(shape=(seeds, *one.shape), sharding=sharding),
            parts[1:],
        )
        all_seeds = read_parts(folder, params, statistics, fixed, within="train")
        arrays = jax.tree.map(lambda x: x[seed], all_seeds)
        return Loaded(config, number, Parts(parts.graph, *arrays))

    return newest_checkpoint(run, at, read)


def greedy(model: Loaded) -> Policy:
    """Return the policy that takes the best action, without noise."""
    graph, *arrays = model.parts

    @jax.jit
    def best(arrays: Sequence[dict], stack: jax.Array) -> jax.Array:
        module = cast(Network, merge_module(graph, *arrays))
        key = jax.random.key(0)  # without effect, as epsilon is 0
        return act(module, stack[None], noise=None, epsilon=0.0, key=key)[0]

    def policy(stack: np.ndarray, rng: np.random.Generator) -> int:
        del rng
        return int(best(arrays, np.moveaxis(stack, 0, -1)))

    return policy
