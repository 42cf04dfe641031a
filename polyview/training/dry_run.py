"""A dry run: build everything, compile one step, print sizes, write nothing."""

import json

import jax
from ml_collections import ConfigDict

from polyview import hosts
from polyview.config.text import dotted, to_json
from polyview.terminal import say
from polyview.training.cost import account, compiled, held
from polyview.training.trainer import Trainer


def dry_run(config: ConfigDict) -> None:
    """Print the banner of a run and the memory of one step; write nothing.

    The step is compiled for the devices of this machine, as in the run itself. Raises
    InputError for a config that cannot run.
    """
    run = Trainer(config)
    with jax.set_mesh(run.mesh):
        shapes = run.shapes = run.trace()
        run.read_donors()
        if hosts.is_first_process():
            for name, text in run.banner(run.shape, 0).items():
                say(f"{name:>14}  {text}")
        program, seconds = compiled(run, shapes)
    if not hosts.is_first_process():
        return
    sizes = account(program)
    state, fixed = (
        sum(map(_bytes_on_a_device, jax.tree.leaves(tree)))
        for tree in (run.shape, run.fixed)
    )
    batch = sum(
        x.size * x.dtype.itemsize // run.mesh.size for x in jax.tree.leaves(shapes)
    )
    lines = {
        "memory": f"{_mib(held(sizes))} a device, as compiled in {seconds:.0f} s",
        "of it": f"state {_mib(state)}, fixed {_mib(fixed)}, a batch {_mib(batch)} "
        f"(three more are queued), temporaries {_mib(sizes['temporaries'])}",
    }
    room = hosts.memory()
    if room is not None and held(sizes) > room:
        lines["too much"] = f"a device here has {_mib(room)}; {_remedy(config)}"
    for name, text in lines.items():
        say(f"{name:>14}  {text}")


def _remedy(config: ConfigDict) -> str:
    """Return the keys of a config that lower its memory most, as flags."""
    keys = dotted(json.loads(to_json(config)))
    batch = max(2, config.batch_size // 4)
    flags = [f"--config.batch_size={batch}"]
    if isinstance(m := keys.get("views.m"), int) and m > 3:
        flags.append(f"--config.views.m={m // 2}")
    flags += [f"--config.{key}=blocks" for key in keys if key.endswith("encoder.remat")]
    if len(flags) < 3:
        flags.append("--config.accumulate=4 (smaller batches in turn)")
    return "try " + ", ".join(flags[:3])


def _bytes_on_a_device(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)
    return jax.ShapeDtypeStruct(shape, leaf.dtype).size * leaf.dtype.itemsize


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
