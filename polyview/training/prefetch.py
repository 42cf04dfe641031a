"""Transfer of batches to the devices, some steps ahead."""

import queue
import threading
from collections.abc import Generator, Iterator

import numpy as np
from jax.sharding import Mesh

from polyview.devices import put, put_replicated


def prefetch(batches: Iterator, mesh: Mesh, ahead: int = 2) -> Generator[tuple]:
    """Yield `(step, step on the devices, batch on the devices)`, `ahead` batches early.

    A thread reads and transfers while the devices compute. Its errors are raised here.
    """
    done = object()
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def offer(item: object) -> bool:
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
        except BaseException as error:  # the consumer raises it
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
