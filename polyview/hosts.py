"""The processes of a run, and the machine of each.

Only the functions that need JAX import it; the others need not wait for it.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyview.errors import InputError


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, 128 MiB an arena; call once, at the start.

    XLA allocates the arrays of each step anew. glibc gives what is freed back to the
    system at once, and to fault it in again took a third of the time of a step of a
    small model. `MALLOC_TOP_PAD_` in the environment comes first; other C libraries
    than glibc are left as they are.
    """
    if "MALLOC_TOP_PAD_" in os.environ or platform.libc_ver()[0] != "glibc":
        return
    top_pad = -2  # M_TOP_PAD of malloc.h
    ctypes.CDLL(None).mallopt(top_pad, 2**27)


def is_first_process() -> bool:
    """Whether this is the one process that writes logs and prints."""
    import jax

    return jax.process_index() == 0


def of_first_process(number: int) -> int:
    """Return the first process's `number` on every process."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def wait_for_all(what: str) -> None:
    """Wait until every process of the run has reached the point named `what`."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise an error in the block on every process, as InputError on the others.

    What follows is collective: a process that continued alone would wait for minutes.
    Every process must enter the block, and nothing in it may be collective.
    """
    import jax
    import numpy as np

    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        own = np.zeros(2000, np.uint8)
        text = "" if failed is None else str(failed) or type(failed).__name__
        letters = text.encode(errors="replace")[: own.size]
        own[: len(letters)] = np.frombuffer(letters, np.uint8)
        everywhere = multihost_utils.process_allgather(own)
        if failed is None and (stopped := np.flatnonzero(everywhere.any(1))).size:
            first = stopped[0]
            why = everywhere[first].tobytes().rstrip(b"\0").decode(errors="replace")
            raise InputError(f"process {first} stops, and so do all: {why}")
    if failed is not None:
        raise failed


def check_equal(what: str, text: str) -> None:
    """Raise InputError on every process if the processes do not have the same text.

    A run whose processes see different data or configs would hang in a collective.
    """
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    everywhere = multihost_utils.process_allgather(own)
    if differing := np.flatnonzero((everywhere != everywhere[0]).any(1)).tolist():
        raise InputError(
            f"process {differing[0]} has another {what} than process 0 (this is "
            f"process {jax.process_index()}: {text:.200}); give all the same"
        )


def machine() -> dict[str, Any]:
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


def memory() -> int | None:
    """Return the bytes of memory of a device here, or None if they are not known.

    Devices of a CPU share the machine's memory, or what its container may use.
    """
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() != "cpu":
        return None
    return main_memory() // jax.local_device_count()


def main_memory() -> int:
    """Return the bytes of the machine's memory, or what its container may use."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # no control group, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def check_memory(size: int, what: str, remedy: str) -> None:
    """Raise InputError if `what`, of `size` bytes on a device, is more than it has.

    Call it before anything is allocated: the system would end the process.
    """
    if (room := memory()) is not None and size > room:
        raise InputError(
            f"{what} takes {size / 2**30:,.1f} GiB, a device here has "
            f"{room / 2**30:,.1f}; {remedy}"
        )


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: in a cgroup, not all cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the name of the processor, as far as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.machine()
