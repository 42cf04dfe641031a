"""Devices: the named mesh, and where each array lives on it.

Two axes: rows of a batch are split over both, `data` and `fsdp`; large parameters are
split over `fsdp` and copied over `data`. Axis types are Auto: the compiler inserts the
collectives, and a loss that wants them by hand reads the ambient mesh.
"""

import queue
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polyview import metrics
from polyview.errors import InputError

AXES = ("data", "fsdp")
# Below this many elements a parameter is cheaper to copy than to gather (ours).
SMALLEST_SPLIT = 2**16


def make(data: int = -1, fsdp: int = 1) -> Mesh:
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


def prefetch(batches: Iterator, mesh: Mesh, ahead: int = 2) -> Iterator:
    """Yield `(step, step on the devices, batch on the devices)`, `ahead` in advance.

    A thread reads and transfers, so that the devices never wait for either; its errors
    are raised here.
    """
    done = object()
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def offer(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step, batch in batches:
                number = put_replicated(np.int32(step), mesh)
                if not offer((step, number, put(batch, mesh))):
                    return
            offer(done)
        except BaseException as error:  # handed to the consumer, which raises it
            offer(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def is_first_process() -> bool:
    """True on the one process that writes logs and prints."""
    return jax.process_index() == 0


def of_first_process(number: int) -> int:
    """The number that the first process has, on all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def wait_for_all(what: str) -> None:
    """Return when every process of the run has come to the place named `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def machine() -> dict:
    """Describe the machine for a record of a run: processor, devices, cores."""
    return {
        "cpu": metrics.processor(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": metrics.cores(),
        "jax": jax.__version__,
    }
