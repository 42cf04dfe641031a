"""Devices: the named mesh, and where each array lives on it.

Two axes: rows of a batch are split over both, `data` and `fsdp`; large parameters are
split over `fsdp` and copied over `data`. Axis types are Auto: the compiler inserts the
collectives, and a loss that wants them by hand reads the ambient mesh.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polyview.errors import InputError

AXES = ("data", "fsdp")
# Below this many elements a parameter is cheaper to copy than to gather (ours).
SMALLEST_SPLIT = 2**16


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Return the mesh of all devices, `data` x `fsdp`; -1 means all that are left.

    Raises InputError when the two do not multiply to the number of devices.
    """
    devices = jax.device_count()
    if fsdp < 1 or (data < 1 and data != -1):
        raise InputError(
            f"mesh data={data}, fsdp={fsdp}: give 1 or more (data may be -1)"
        )
    if data == -1 and devices % fsdp == 0:
        data = devices // fsdp
    if data * fsdp != devices:
        raise InputError(
            f"mesh data={data} x fsdp={fsdp} are not the {devices} devices of JAX; set "
            "--config.mesh.data=-1 and --config.mesh.fsdp to a divisor of that number"
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def of_state(state, mesh: Mesh):
    """Return a sharding for each leaf of a state (arrays or their shapes).

    A leaf of at least `SMALLEST_SPLIT` elements is split over `fsdp` along its longest
    axis that divides; every other leaf is replicated.
    """
    parts = mesh.shape["fsdp"]

    def of_leaf(leaf):
        axes = [a for a, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < SMALLEST_SPLIT or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda a: leaf.shape[a])
        spec = [None] * leaf.ndim
        spec[longest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(of_leaf, state)


def put(batch, mesh: Mesh):
    """Turn this host's rows `[b/hosts, ...]` into global arrays `[b, ...]`."""
    sharding = rows(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def put_replicated(tree, mesh: Mesh):
    """Copy host values, equal on every process, whole to every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def whole_on_host(arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Copy arrays, however they are sharded, whole to the host of every process."""

    def on_host(array: jax.Array) -> np.ndarray:
        if not array.is_fully_addressable:
            everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
            array = jax.jit(lambda x: x, out_shardings=everywhere)(array)
        return np.asarray(array)

    return {name: on_host(array) for name, array in arrays.items()}


def splits_weights() -> bool:
    """Whether the mesh in scope splits large weights over several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get("fsdp", 1) > 1


@jax.custom_vjp
def gather(weight: jax.Array) -> jax.Array:
    """Return a split weight whole on every device of the mesh in scope.

    A step gathers each weight where it is read (fully sharded data parallelism;
    Rajbhandari et al. 2020): left alone, the compiler gathers activations instead where
    those of a slice are smaller. Gradients are free to stay split.
    """
    return _whole(weight)


def _whole(weight: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, PartitionSpec())


gather.defvjp(lambda weight: (_whole(weight), None), lambda _, cotangent: (cotangent,))


def all_but_gathered(primitive, *_, **__) -> bool:
    """The policy for `jax.checkpoint` by which the backward pass gathers again."""
    return primitive.name != "sharding_constraint"
