"""The processes of a run, and the machine each is on.

JAX is imported by what asks it: the rest answers without that second.
"""

import os
import platform
from pathlib import Path


def is_first_process() -> bool:
    """True on the one process that writes logs and prints."""
    import jax

    return jax.process_index() == 0


def of_first_process(number: int) -> int:
    """The number that the first process has, on all of them."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def wait_for_all(what: str) -> None:
    """Return when every process of the run has come to the place named `what`."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def machine() -> dict:
    """Describe the machine for a record of a run: processor, devices, cores."""
    import jax

    return {
        "cpu": processor(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": cores(),
        "jax": jax.__version__,
    }


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: not all that there are, in a cgroup
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The name of the machine's processor, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.machine()
