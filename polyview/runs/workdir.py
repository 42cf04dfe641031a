"""The directory of a run belongs to one config, which lies in it as config.json.

What can be said of it without JAX is said without: a mistake should not wait for it.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from polyview import files
from polyview.config.overrides import apply_overrides
from polyview.config.schema import changed_keys
from polyview.config.text import from_json, to_json
from polyview.config.trust import current_name, targets
from polyview.errors import InputError

PATIENCE = 120  # seconds: a lock on NFS outlives a host that died by about 90


@contextlib.contextmanager
def claimed_workdir(workdir: Path, config) -> Iterator[None]:
    """`claim` a workdir, and keep other programs from training in it at the same time.

    Their saves would destroy one another. One that ends lets go, however it ends; one
    that is starting waits for it, as for a job that is requeued while the old one
    dies. Where the file system knows no locks, nothing is kept. Raises InputError as
    `claim` does, and where the other one stays.
    """
    from polyview import hosts
    from polyview.terminal import say

    with contextlib.ExitStack() as stack:
        if hosts.is_first_process():
            with contextlib.suppress(OSError):  # what is written next will say it
                workdir.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
                lock = os.open(workdir / ".lock", flags, 0o666)
                stack.callback(os.close, lock)
                until = time.monotonic() + PATIENCE
                while not _locked(lock):
                    if time.monotonic() > until:
                        raise InputError(
                            f"another process trains in {workdir}; stop it, or choose "
                            "another --workdir"
                        )
                    say(f"{workdir}: waiting for another process to end")
                    time.sleep(min(10, PATIENCE))
        claim_workdir(workdir, config)
        yield


def _locked(lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def claim_workdir(workdir: Path, config) -> None:
    """Write the config into a new workdir, or compare it with the one in an old.

    Raises InputError when the workdir belongs to another config or cannot be written.
    """
    from polyview import hosts

    path = workdir / "config.json"
    check_workdir(workdir, config)
    if not path.exists() and hosts.is_first_process():
        files.write_whole(path, to_json(config).encode())
    hosts.wait_for_all("claim")
    check_workdir(workdir, config)


def check_workdir(workdir: Path, config) -> None:
    """Raise InputError where a workdir is a file, or belongs to another config."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir} is a file; name a folder, or a new one")
    if not (workdir / "config.json").exists():
        return
    old = read_config(workdir)
    if any(current_name(str(name)) != name for _, name in targets(old)):
        raise InputError(
            f"{workdir} is a run of version 0.1: it can be evaluated, embedded, "
            "exported and begun with (init), but not resumed; choose another --workdir"
        )
    if changes := changed_keys(old, config):
        raise InputError(
            f"{workdir} is a run of another config ({'; '.join(changes[:3])}); "
            "choose another --workdir, or go back to that config"
        )


def check_unused(workdir: Path) -> None:
    """Raise InputError where a workdir holds a run already."""
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} is a run already; choose another --workdir")


def read_config(workdir: Path):
    """The config of a run. Raises InputError when there is none that can be read."""
    path = workdir / "config.json"
    try:
        return from_json(files.read_bounded(path).decode())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{workdir} is not a run: {path.name}: {why}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}; choose another --workdir") from error


def check_run(run: Path, overrides: Mapping[str, str] | None = None) -> None:
    """Raise InputError for a run without a checkpoint, or keys its config has not."""
    if not has_checkpoint(run):
        raise InputError(
            f"{run} has no checkpoint to load (looked in {run / 'checkpoints'})"
        )
    if (run / "config.json").exists():  # a checkpoint can do without
        apply_overrides(read_config(run), overrides or {})


def has_checkpoint(run: Path) -> bool:
    """Whether a run has any checkpoint, be it a damaged one."""
    return any(path.name.isdecimal() for path in (run / "checkpoints").glob("*"))
