"""What the loss of a worker process means, in a line."""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from polyview.errors import InputError, Preempted

_AGAIN = "run the same command again: it resumes from its last checkpoint"


@contextlib.contextmanager
def explained(source: Any) -> Iterator[None]:
    """Say what to do if worker processes cannot start, or are lost.

    Raises Preempted where the machine is the cause, InputError where the source cannot
    be sent to a worker. Errors of the source itself propagate.
    """
    try:
        yield
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise Preempted(
            "the system killed a process that makes batches, most often for lack of "
            f"memory ({str(error).partition('.')[0]}); give it more memory or fewer "
            f"`workers`, and {_AGAIN}"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Preempted(
            "/dev/shm is too small for the batches of worker processes; enlarge it (in "
            f"a container: --shm-size=8g) or set --config.workers=0, and {_AGAIN}"
        ) from error
    except Exception as error:
        if not any("pickled" in note for note in getattr(error, "__notes__", [])):
            raise
        raise InputError(
            f"{source!r} or its views cannot be sent to worker processes ({error}); "
            "leave out open files and locks, or set --config.workers=0"
        ) from error
