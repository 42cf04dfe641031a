"""The one checkpoint format: `<folder>/<step>/{state, config, digest}`.

`state` is a flat dict of arrays, written by Orbax, named by their path in the state
("params.towers.image.encoder..."). `config` is the run's config. `digest` holds a
checksum of every array, since Orbax alone restores a flipped bit without a word, and
names the files of the fixed weights. Nothing is ever unpickled.
"""

import contextlib
import functools
import gc
import inspect
import itertools
import logging
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from polyview.config.text import from_json, text_digest
from polyview.errors import InputError
from polyview.files import LONGEST_JSON
from polyview.runs.checksum import checksums, flatten

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A checkpoint cannot be read whole; the message says what is wrong with it."""


class Checkpoints:
    """The checkpoints of one folder; saving happens in the background."""

    def __init__(self, folder: str | Path, keep: int = 3):
        """keep: how many of the newest stay, at least 2, so that one may be damaged."""
        if keep < 2:
            raise InputError(f"keep={keep}: keep at least 2 checkpoints")
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        _hush()
        with self._writing():
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    @contextlib.contextmanager
    def _writing(self):
        """Turn what a disk does to a save, this or the last, into a line."""
        try:
            yield
        except Exception as error:  # of Orbax's threads: an OSError, or one of its own
            kept = saved_steps(self.folder)
            again = f"step {kept[-1]}" if kept else "the start"
            raise InputError(
                f"cannot write a checkpoint into {self.folder} ({_reason(error)}); "
                f"mend that and run the same command again: it goes on from {again}"
            ) from error

    def save(
        self, step: int, state, config_text: str, fixed: Sequence[dict] = ()
    ) -> None:
        """Save a state under its step; returns once the arrays are copied.

        fixed: where the weights are that are no part of the state; see
        `polyview.runs.weights`.
        """
        arrays = flatten(state)
        digest = {
            "config": text_digest(config_text),
            "state": checksums(arrays),
            "fixed": list(fixed),
        }
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays),
                    config=ocp.args.JsonSave({"config": config_text}),
                    digest=ocp.args.JsonSave(digest),
                ),
            )

    def newest(self) -> int | None:
        """The newest step that was completely written, or None."""
        self.wait()
        return self._manager.latest_step()

    def restore_newest(self, template):
        """Return (step, state) of the newest undamaged checkpoint, or None.

        template: a state of arrays or shapes with shardings. A damaged checkpoint is
        set aside under `<folder>/../damaged/<step>`, with one warning, and the one
        before it is used. Raises InputError for one that cannot be read now, and when
        all there were are damaged: weeks of work do not start anew unasked.
        """
        while (step := self.newest()) is not None:
            try:
                return step, read_state(self.folder / str(step), template)
            except Damaged as damage:
                log.warning(
                    "checkpoint %s skipped: %s", self.folder / str(step), damage
                )
                self._set_aside(step)
        aside = self.folder.parent / "damaged"
        if damaged := saved_steps(aside):
            raise InputError(
                f"every checkpoint of {self.folder} is damaged (steps {damaged}, now "
                f"in {aside}); remove that folder to start from step 0"
            )
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self.folder.parent / "damaged"
            if aside.is_symlink():
                raise InputError(f"{aside} is a link; remove it and run again")
            aside.mkdir(exist_ok=True)
            free = aside / str(step)
            for number in itertools.count(2):
                if not free.exists():
                    break
                free = aside / f"{step}_{number}"
            (self.folder / str(step)).rename(free)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

    def wait(self) -> None:
        """Return when everything saved is on the disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish what is being written, and stop."""
        with self._writing():
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Close; what the disk does then is not said in place of a step's failure."""
        try:
            self.close()
        except InputError as failed:
            if error is None or isinstance(error, InputError):
                raise
            log.warning("%s", failed)


def saved_steps(folder: str | Path) -> list[int]:
    """The steps that have a checkpoint in a folder, in order; damaged ones included."""
    names = (path.name for path in Path(folder).glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def read_config(folder: str | Path):
    """Return the config inside a checkpoint `<folder>`, as data: nothing is built.

    Raises Damaged when it cannot be read or does not match its digest.
    """
    text = _read_item(folder, "config").get("config")
    if not isinstance(text, str):
        raise Damaged("its config is no text")
    if text_digest(text) != _read_item(folder, "digest").get("config"):
        raise Damaged("its config does not match its digest")
    try:
        return from_json(text)
    except InputError as error:
        raise Damaged(str(error)) from error


def fixed_record(folder: str | Path) -> list[dict] | None:
    """Return where the fixed weights of a checkpoint are; None in one of version 0.1,
    whose state holds them. Raises Damaged for a record of another form."""
    record = _read_item(folder, "digest").get("fixed")
    fields = ("sha256", "at", "from", "source")
    if record is not None and not (
        isinstance(record, list)
        and all(
            isinstance(entry, dict)
            and all(isinstance(entry.get(field), str) for field in fields)
            for entry in record
        )
    ):
        raise Damaged("its record of fixed weights is none")
    return record


def read_state(folder: str | Path, template):
    """Return the arrays that `template` names, in its shapes, types and shardings.

    template: any part of a state, such as `{"params": {...}}`; leaves are arrays or
    `jax.ShapeDtypeStruct`s. All processes of a run call it, and one's failure is all
    others'. Raises Damaged when the content of a file is wrong or an array does not
    match its checksum; InputError when the checkpoint holds another model, or cannot be
    read now, as where a disk is away or memory is short.
    """
    folder, wanted = Path(folder).absolute(), flatten(template)
    expected, arrays, failed = {}, {}, None
    try:
        expected = _expected(folder, wanted)
        arrays = _read_arrays(folder / "state", wanted)
    except (Damaged, InputError) as error:
        failed = error
    _agree(folder, failed)
    found = checksums(arrays)
    wrong = [name for name in wanted if found[name] != expected[name]]
    if wrong:
        raise Damaged(
            f"{wrong[0]} does not match its checksum ({len(wrong)} arrays in all)"
        )
    structure = jax.tree.structure(template)
    return jax.tree.unflatten(structure, [arrays[name] for name in wanted])


def _agree(folder: Path, failed: Damaged | InputError | None) -> None:
    """Raise what went wrong here, or that something did in another process.

    What follows is done by all of them together: one that went on alone would wait.
    """
    worst = 0 if failed is None else 1 if isinstance(failed, Damaged) else 2
    if jax.process_count() > 1:
        worst = int(multihost_utils.process_allgather(np.int32(worst)).max())
    if worst == 1:
        raise failed or Damaged("another process cannot read it")
    if worst == 2:
        if isinstance(failed, InputError):
            raise failed
        raise InputError(f"another process cannot read checkpoint {folder}; see there")


def _expected(folder: Path, wanted: dict) -> dict[str, list]:
    """What the digest says of the arrays, held to the shapes that are wanted."""
    expected = _read_item(folder, "digest").get("state")
    if not isinstance(expected, dict):
        raise Damaged("its digest lists no arrays")
    for name, leaf in wanted.items():
        if name not in expected:
            raise InputError(
                f"checkpoint {folder} has no array {name!r}: another model?"
            )
        kind = [list(leaf.shape), str(leaf.dtype)]
        if not isinstance(expected[name], list):
            raise Damaged(f"its digest does not say what {name} is")
        if expected[name][:2] != kind:
            raise InputError(
                f"checkpoint {folder}: {name} is {expected[name][:2]}, not {kind}"
            )
    return expected


def _read_arrays(folder: Path, wanted: dict) -> dict[str, jax.Array]:
    _hush()
    try:
        for path in folder.rglob("*"):
            _check_kind(path)
        return ocp.PyTreeCheckpointHandler().restore(
            folder,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    except Exception as error:  # Orbax raises bare Exceptions, with a page of text
        failed = _what_failed(folder, "its arrays cannot be read", error)
    gc.collect()  # the other reads, which the error holds, end while it is quiet
    raise failed


def _what_failed(folder: Path, what: str, error: Exception) -> Damaged | InputError:
    """Damage, unless what is there could not be looked at.

    Only what was read to its end and is wrong is damaged. A disk that is away, rights
    that are missing or memory that is short would else set aside one whole checkpoint
    after the other.
    """
    why = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in why:
        return InputError(f"no memory to read {folder} into ({_first_line(error)})")

    def unreadable(error: OSError) -> None:
        raise error

    try:
        for base, _, names in os.walk(folder, onerror=unreadable):
            for path in filter(Path.is_file, (Path(base, name) for name in names)):
                with path.open("rb") as file:
                    while file.read(2**24):
                        pass
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as unread:
        return InputError(
            f"{folder} cannot be read now ({unread.strerror}); mend that and run the "
            "same command again, or move that checkpoint away to go on without it"
        )
    return Damaged(f"{what} ({_first_line(error)})")


def _check_kind(path: Path) -> None:
    """Raise ValueError for a pipe or a device: it would be waited for, for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path.name} is no file")


@functools.cache
def _hush() -> None:
    """Keep from the screen what Orbax leaves behind where a read or a write failed.

    Other reads go on without the loop that waited for them: their threads print that
    it is closed, and coroutines are thrown away with the error in them. What is raised
    is also logged, each time it is passed on, with its traceback.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not record.exc_info)
    show = sys.unraisablehook

    def hook(found) -> None:
        closed = str(found.exc_value) == "Event loop is closed"
        if not closed and not inspect.iscoroutine(found.object):
            show(found)

    sys.unraisablehook = hook


def _read_item(folder: str | Path, name: str) -> dict:
    path = Path(folder).absolute() / name
    try:
        for part in path.iterdir():
            _check_kind(part)
            if part.stat().st_size > LONGEST_JSON:
                raise ValueError(f"it is longer than {LONGEST_JSON} bytes")
        found = ocp.JsonCheckpointHandler().restore(path)
    except Exception as error:  # whatever a damaged file makes of Orbax
        raise _what_failed(path, f"its {name} cannot be read", error) from error
    if not isinstance(found, dict):
        raise Damaged(f"its {name} is not an object of keys")
    return found


def _reason(error: Exception) -> str:
    """What the system said, in the pages that Orbax makes of it."""
    said = re.search(r"([^:\n]+) \[os_error_code", str(error))
    return said[1].strip() if said else _first_line(error)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:120] if text else ''}"
