"""The directory of a run, which belongs to one config and to the data it began with:
its config.json and data.json.

Most checks need no JAX, so that usage errors do not wait for its import.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from polyview import files
from polyview.config.overrides import apply_overrides
from polyview.config.schema import changed_keys
from polyview.config.spec import build
from polyview.config.text import from_json, to_json
from polyview.config.trust import current_name, targets
from polyview.data.sources.protocol import identity
from polyview.errors import InputError

PATIENCE = 120  # seconds; a lock on NFS outlives a dead host by about 90


@contextlib.contextmanager
def claimed_workdir(
    workdir: Path, config: ConfigDict, data: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Claim a workdir, and lock it so that no other process trains in it.

    Two processes would destroy each other's checkpoints. The lock ends with its process
    in any case. A new process waits for it, as when a job is requeued while the old one
    dies. On a file system without locks nothing is locked. Raises InputError as
    `claim_workdir` does, and if the other process does not end.
    """
    from polyview import hosts
    from polyview.terminal import say

    with contextlib.ExitStack() as stack:
        # An OSError is reported by the next write.
        with hosts.together(), contextlib.suppress(OSError):
            if hosts.is_first_process():
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
        claim_workdir(workdir, config, data)
        yield


def _locked(lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def claim_workdir(
    workdir: Path, config: ConfigDict, data: Mapping[str, Any] | None = None
) -> None:
    """Write the config and the data into a new workdir, or compare them with an old's.

    data: {name: {"rows": ..., "digest": ...}}; see `training.learner.Learner`. A
    workdir without a checkpoint is new.

    Raises InputError if the workdir belongs to another config or to other data, or
    cannot be written.
    """
    from polyview import hosts

    texts = {"config.json": to_json(config), "data.json": json.dumps(data or {})}
    with hosts.together():
        check_workdir(workdir, config)
        new = not has_run(workdir)
        for name, text in texts.items():
            if hosts.is_first_process() and (new or not (workdir / name).exists()):
                files.write_whole(workdir / name, text.encode())
    with hosts.together():
        check_workdir(workdir, config)
        _check_data(workdir, data or {})


def _check_data(workdir: Path, data: Mapping[str, Any]) -> None:
    """Raise InputError if a run has begun with other data."""
    try:
        old = files.read_json(workdir / "data.json")
        before = {name: (old[name]["rows"], old[name]["digest"]) for name in old}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{workdir / 'data.json'} cannot be read: {error}") from None
    for name, now in data.items():
        found = now["rows"], now["digest"]
        (rows, digest), (rows_now, digest_now) = before.get(name, found), found
        if (rows, digest) != found:
            raise InputError(
                f"{workdir} has begun with other data: its {name} had {rows:,} rows "
                f"({digest!s:.12}), now {rows_now:,} ({digest_now!s:.12}); bring the "
                "former data back, or choose another --workdir"
            )


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Raise InputError if a workdir or its folder of checkpoints is a file or a link to
    nothing, or if the workdir belongs to another config."""
    paths = f"{workdir.absolute()} {os.path.realpath(workdir)}"
    if wrong := [c for c in "[]*?" if c in paths]:
        raise InputError(
            f"--workdir {workdir.absolute()} has {wrong[0]!r} in its path, where "
            "checkpoints would not be found again; choose a path without [ ] * ?"
        )
    for path in (workdir, workdir / "checkpoints"):
        if path.is_symlink() and not path.exists():
            raise InputError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; mount "
                "or create that folder, remove the link, or choose another --workdir"
            )
        if path.exists() and not path.is_dir():
            raise InputError(
                f"{path} is a file; name a folder, or a new one: --workdir"
            )
    if not (workdir / "config.json").exists() or not has_run(workdir):
        return
    old = read_config(workdir)
    if any(current_name(str(name)) != name for _, name in targets(old)):
        raise InputError(
            f"{workdir} is a run of version 0.1: it can be evaluated, embedded, "
            "exported and used as donor (init), but not resumed; name another --workdir"
        )
    if changes := changed_keys(old, config):
        source = config.get("source")
        if source and source == old.get("source") and (workdir / "data.json").exists():
            # A config may take numbers from its data: these, not it, have changed.
            _check_data(workdir, {"source": identity(build(source, where="source"))})
        raise InputError(
            f"{workdir} is a run of another config ({'; '.join(changes[:3])}); "
            "choose another --workdir, or go back to that config"
        )


def check_unused(workdir: Path) -> None:
    """Raise InputError if a workdir already holds a run."""
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} already holds a run; choose another --workdir")


def read_config(workdir: Path) -> ConfigDict:
    """Return the config of a run. Raises InputError if there is no readable one."""
    path = workdir / "config.json"
    try:
        return from_json(files.read_bounded(path).decode())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{workdir} is not a run: {path.name}: {why}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}; choose another --workdir") from error


def check_run(run: Path, overrides: Mapping[str, str] | None = None) -> None:
    """Raise InputError if a run lacks a checkpoint, or its config an overridden key."""
    if not has_checkpoint(run):
        raise InputError(
            f"{run} has no checkpoint to load (looked in {run / 'checkpoints'})"
        )
    if (run / "config.json").exists():  # optional: each checkpoint has its own
        apply_overrides(read_config(run), overrides or {})


def has_run(workdir: Path) -> bool:
    """Whether a workdir holds more than a start without a checkpoint."""
    return has_checkpoint(workdir) or _has_steps(workdir / "damaged")


def has_checkpoint(run: Path) -> bool:
    """Whether a run has any checkpoint, damaged or not."""
    return _has_steps(run / "checkpoints")


def _has_steps(folder: Path) -> bool:
    return any(path.name.isdecimal() for path in folder.glob("*"))
