"""The one checkpoint format: `<folder>/<step>/{state, config, digest}`.

`state` is a flat dict of arrays, written by Orbax, named by their path in the state
("params.towers.image.encoder..."). `config` is the run's config. `digest` holds a
checksum of every array, because Orbax restores a flipped bit without an error, names
the files of the fixed weights, and has the settings of JAX that change a run's numbers.
Nothing is ever unpickled.
"""

import contextlib
import functools
import gc
import inspect
import itertools
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from polyview.config.text import from_json, text_digest
from polyview.errors import InputError
from polyview.files import LONGEST_JSON
from polyview.runs.checksum import checksums, flatten

log = logging.getLogger(__name__)

# Settings of JAX with which the same config draws other numbers.
SETTINGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
)


class Damaged(Exception):
    """A checkpoint cannot be read in full; the message says what is wrong with it."""


class Checkpoints:
    """The checkpoints of one folder, saved in the background."""

    def __init__(self, folder: str | Path, keep: int = 3):
        """keep: number of newest checkpoints kept, at least 2: one may be damaged."""
        if keep < 2:
            raise InputError(f"keep={keep}: keep at least 2 checkpoints")
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        _hush()
        self._unread: tuple[Path, dict[str, Any]] | None = None
        with self._writing():
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a disk error of this save, or the last, into an InputError."""
        try:
            yield
        except Exception as error:  # from Orbax's threads: an OSError or its own
            kept = saved_steps(self.folder)
            again = f"step {kept[-1]}" if kept else "step 0"
            raise InputError(
                f"cannot write a checkpoint into {self.folder} ({_reason(error)}); "
                f"fix that and run the same command again: it resumes from {again}"
            ) from error

    def save(
        self, step: int, state: Any, config_text: str, fixed: Sequence[dict] = ()
    ) -> None:
        """Save a state under its step; return once the arrays are copied.

        fixed: record of the weights outside the state; see `polyview.runs.weights`.
        """
        self.wait()
        arrays = flatten(state)
        digest = {
            "config": text_digest(config_text),
            "state": checksums(arrays),
            "fixed": list(fixed),
            "settings": _settings(),
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
        smallest = min(arrays, key=lambda name: arrays[name].size)
        self._unread = self.folder / str(step), {smallest: _shape(arrays[smallest])}

    def newest(self) -> int | None:
        """Return the newest step that was completely written, or None."""
        self.wait()
        return self._manager.latest_step()

    def restore_newest(self, template: Any) -> tuple[int, Any] | None:
        """Return (step, state) of the newest undamaged checkpoint, or None.

        template: a state of arrays or shapes with shardings. A damaged checkpoint is
        moved to `<folder>/../damaged/<step>`, with one warning, and the one before it
        is used. Raises InputError if one cannot be read now, if it was saved with other
        `SETTINGS`, and if all are damaged: weeks of work must not silently start again
        from step 0.
        """
        while (step := self.newest()) is not None:
            try:
                state = read_state(self.folder / str(step), template)
                _check_settings(self.folder / str(step))
                return step, state
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
            # Not `rename`: the folder of checkpoints may be a link to another disk.
            shutil.move(self.folder / str(step), free)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

    def wait(self) -> None:
        """Wait until every save is on the disk, and was found there.

        Raises InputError otherwise: a run must not continue without checkpoints.
        """
        with self._writing():
            self._manager.wait_until_finished()
        if self._unread is not None:
            (folder, array), self._unread = self._unread, None
            try:
                _read_arrays(folder / "state", array)
            except Damaged as damage:
                raise InputError(
                    f"cannot read back what was written into {folder}: {damage}; "
                    "choose another --workdir, on another disk"
                ) from damage

    def close(self) -> None:
        """Finish the pending save, and close."""
        try:
            self.wait()
        finally:
            with self._writing():
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; a disk error must not replace the error of a step."""
        try:
            self.close()
        except InputError as failed:
            if error is None or isinstance(error, InputError):
                raise
            log.warning("%s", failed)


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    sharding = getattr(array, "sharding", None)  # absent: an array of the host
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def saved_steps(folder: str | Path) -> list[int]:
    """Return the steps of a folder's checkpoints, in order, damaged ones included."""
    names = (path.name for path in Path(folder).glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def read_config(folder: str | Path) -> ConfigDict:
    """Return the config inside a checkpoint `<folder>`, as data: nothing is built.

    Raises Damaged if it cannot be read or does not match its digest.
    """
    text = _read_item(folder, "config").get("config")
    if not isinstance(text, str):
        raise Damaged("its config is not text")
    if text_digest(text) != _read_item(folder, "digest").get("config"):
        raise Damaged("its config does not match its digest")
    try:
        return from_json(text)
    except InputError as error:
        raise Damaged(str(error)) from error


def fixed_record(folder: str | Path) -> list[dict] | None:
    """Return the record of a checkpoint's fixed weights; None for version 0.1, whose
    state holds them. Raises Damaged for a malformed record."""
    record = _read_item(folder, "digest").get("fixed")
    fields = ("sha256", "at", "from", "source")
    if record is not None and not (
        isinstance(record, list)
        and all(
            isinstance(entry, dict)
            and all(isinstance(entry.get(field), str) for field in fields)
            and isinstance(entry.get("first", []), list)
            for entry in record
        )
    ):
        raise Damaged("its record of fixed weights is malformed")
    return record


def _settings() -> dict[str, Any]:
    names = (name for name in SETTINGS if hasattr(jax.config, name))
    return {name: getattr(jax.config, name) for name in names}


def _check_settings(folder: Path) -> None:
    """Raise InputError if JAX has other settings than when a checkpoint was saved."""
    saved = _read_item(folder, "digest").get("settings")
    saved = saved if isinstance(saved, dict) else {}  # absent in version 0.2
    for name, now in _settings().items():
        if (was := saved.get(name, now)) != now:
            raise InputError(
                f"checkpoint {folder} was saved with {name.upper()}={was}, now it is "
                f"{now}: other numbers would be drawn; set {name.upper()}={was}"
            )


def read_state(folder: str | Path, template: Any) -> Any:
    """Return the arrays that `template` names, in its shapes, types and shardings.

    template: any part of a state, such as `{"params": {...}}`; leaves are arrays or
    `jax.ShapeDtypeStruct`s. All processes of a run must call it; if one fails, all
    fail. Raises Damaged if the content of a file is wrong or an array does not match
    its checksum; InputError if the checkpoint holds another model, or cannot be read
    now because a disk is unavailable or memory is short.
    """
    folder, wanted = Path(folder).absolute(), flatten(template)
    expected: dict[str, list] = {}
    arrays: dict[str, jax.Array] = {}
    failed: Damaged | InputError | None = None
    try:
        expected = _expected(folder, wanted)
        arrays = _read_arrays(folder / "state", wanted)
    except (Damaged, InputError) as error:
        failed = error
    _agree(folder, failed)
    actual = checksums(arrays)
    wrong = [name for name in wanted if actual[name] != expected[name]]
    if wrong:
        raise Damaged(
            f"{wrong[0]} does not match its checksum ({len(wrong)} arrays in all)"
        )
    structure = jax.tree.structure(template)
    return jax.tree.unflatten(structure, [arrays[name] for name in wanted])


def _agree(folder: Path, failed: Damaged | InputError | None) -> None:
    """Raise the error of this process, or of another one.

    The next operation is collective: a process that continued alone would hang.
    """
    worst = 0 if failed is None else 1 if isinstance(failed, Damaged) else 2
    if jax.process_count() > 1:
        worst = int(multihost_utils.process_allgather(np.int32(worst)).max())
    if worst == 1:
        raise failed or Damaged("another process cannot read it")
    if worst == 2:
        if isinstance(failed, InputError):
            raise failed
        raise InputError(f"checkpoint {folder}: another process cannot read it")


def _expected(folder: Path, wanted: dict[str, Any]) -> dict[str, list]:
    """Return the digest's entries of the arrays, checked against the wanted shapes."""
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
            raise Damaged(f"its digest has no shape and type for {name}")
        if (saved := expected[name][:2]) != kind:
            wide, advice = "64'" in f"{saved}", ""
            if saved[:1] == kind[:1] and wide != ("64'" in f"{kind}"):
                advice = f"; set JAX_ENABLE_X64={int(wide)}, as when it was saved"
            raise InputError(
                f"checkpoint {folder}: {name} is {saved}, not {kind}{advice}"
            )
    return expected


def _read_arrays(folder: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
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
    except Exception as error:  # Orbax raises bare Exceptions with long texts
        failed = _what_failed(folder, "its arrays cannot be read", error)
    gc.collect()  # end the other reads now, which the error keeps alive
    raise failed


def _what_failed(folder: Path, what: str, error: Exception) -> Damaged | InputError:
    """Return Damaged, or InputError if the files cannot be read to their end.

    Only a file that was fully read and is wrong counts as damaged. Otherwise an
    unavailable disk, missing permissions or a lack of memory would set aside one intact
    checkpoint after another.
    """
    why = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in why:
        return InputError(f"too little memory to read {folder} ({_first_line(error)})")

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
            f"{folder} cannot be read now ({unread.strerror}); fix that and run the "
            "same command again, or move that checkpoint away to resume without it"
        )
    return Damaged(f"{what} ({_first_line(error)})")


def _check_kind(path: Path) -> None:
    """Raise ValueError for a pipe or a device: reading it could block for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path.name} is not a regular file")


@functools.cache
def _hush() -> None:
    """Silence Orbax's stray thread messages after a failed read or write.

    Other reads outlive their event loop: their threads print that it is closed, and
    coroutines are dropped with the error inside. The raised error is also logged with
    its traceback each time it is passed on.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not record.exc_info)
    show = sys.unraisablehook

    def hook(stray: "sys.UnraisableHookArgs") -> None:
        closed = str(stray.exc_value) == "Event loop is closed"
        if not closed and not inspect.iscoroutine(stray.object):
            show(stray)

    sys.unraisablehook = hook


def _read_item(folder: str | Path, name: str) -> dict:
    path = Path(folder).absolute() / name
    try:
        for part in path.iterdir():
            _check_kind(part)
            if part.stat().st_size > LONGEST_JSON:
                raise ValueError(f"it is longer than {LONGEST_JSON} bytes")
        item = ocp.JsonCheckpointHandler().restore(path)
    except Exception as error:  # Orbax can raise anything for a damaged file
        raise _what_failed(path, f"its {name} cannot be read", error) from error
    if not isinstance(item, dict):
        raise Damaged(f"its {name} is not a JSON object")
    return item


def _reason(error: Exception) -> str:
    """Extract the system's message from the long text of an Orbax error."""
    message = re.search(r"([^:\n]+) \[os_error_code", str(error))
    return message[1].strip() if message else _first_line(error)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:120] if text else ''}"
