"""The named mesh of devices, and the sharding of each array on it.

Two axes: the rows of a batch are split over both, `data` and `fsdp`; large parameters
are split over `fsdp` and replicated over `data`. Axis types are Auto: the compiler
inserts the collectives; a loss with explicit collectives reads the ambient mesh.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polyview.errors import InputError

AXES = ("data", "fsdp")
SMALLEST_SPLIT = 2**16  # elements; below, a copy is cheaper than a gather (ours)


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Return the `data` x `fsdp` mesh of all devices; data=-1 takes all that are left.

    Raises InputError if data x fsdp is not the number of devices.
    """
    devices = jax.device_count()
    if fsdp < 1 or (data < 1 and data != -1):
        raise InputError(f"mesh data={data}, fsdp={fsdp}: give 1 or more, or data=-1")
    if data == -1 and devices % fsdp == 0:
        data = devices // fsdp
    if data * fsdp != devices:
        raise InputError(
            f"mesh data={data} x fsdp={fsdp} does not match the {devices} devices of "
            f"JAX; set --config.mesh.data=-1, and mesh.fsdp to a divisor of {devices}"
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def of_state(state: Any, mesh: Mesh) -> Any:
    """Return a sharding for each leaf of a state (arrays or their shapes).

    A leaf of at least `SMALLEST_SPLIT` elements is split over `fsdp` along its longest
    divisible axis; every other leaf is replicated.
    """
    parts = mesh.shape["fsdp"]

    def of_leaf(leaf: Any) -> NamedSharding:
        axes = [a for a, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < SMALLEST_SPLIT or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda a: leaf.shape[a])
        spec: list[str | None] = [None] * leaf.ndim
        spec[longest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(of_leaf, state)


def quickly_compiled() -> dict[str, Any]:
    """Return the compiler options of a program that runs once, such as an initialiser.

    On a CPU, optimising it takes longer than it saves; elsewhere, the defaults.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_backend_optimization_level": 0}


def put(batch: Any, mesh: Mesh) -> Any:
    """Turn this host's rows `[b/hosts, ...]` into global arrays `[b, ...]`."""
    sharding = rows(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Copy host values, which must be equal on every process, to every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def whole_on_host(arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Copy arrays of any sharding, in full, to the host of every process."""

    def on_host(array: Any) -> np.ndarray:
        if not array.is_fully_addressable:
            everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
            array = jax.jit(lambda x: x, out_shardings=everywhere)(array)
        return np.asarray(array)

    return {name: on_host(array) for name, array in arrays.items()}


def splits_weights() -> bool:
    """Whether the ambient mesh splits large weights over several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get("fsdp", 1) > 1


@jax.custom_vjp
def gather(weight: jax.Array) -> jax.Array:
    """Return a split weight in full on every device of the ambient mesh.

    A step gathers each weight where it is read (fully sharded data parallelism;
    Rajbhandari et al. 2020). Otherwise the compiler gathers activations where those of
    a slice are smaller. Gradients may stay split.
    """
    return _whole(weight)


def _whole(weight: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, PartitionSpec())


gather.defvjp(lambda weight: (_whole(weight), None), lambda _, cotangent: (cotangent,))


def all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Policy for `jax.checkpoint`: the backward pass gathers weights again."""
    return primitive.name != "sharding_constraint"
