"""Shared by all commands: flags, one-line errors, joining the other processes."""

import argparse
import ast
import contextlib
import importlib
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from polyview import errors, hosts
from polyview.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser that raises errors as `InputError`s of one line.

    Flags cannot be abbreviated, so that a mistyped flag never matches another.
    """

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)
        self.add_argument(  # `errors.run` reads it before any parser does
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print the full traceback of an error",
        )

    def parse_args(
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse; for an unknown flag, raise InputError with the nearest known flag."""
        flags, rest = self.parse_known_args(args, namespace)
        if rest:
            known = [word for word in self._option_string_actions if word[:2] == "--"]
            hint = nearest(rest[0].split("=")[0], known)
            raise InputError(f"unknown argument {rest[0]!r}{hint}")
        return flags

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the whole usage."""
        raise InputError(f"{message}; see {self.prog} --help")


def first_line(text: str | None) -> str:
    """Return the first line of a module's docstring, which `python -OO` strips."""
    return (text or "").partition("\n")[0]


def choose(package: str, names: tuple[str, ...]) -> None:
    """Run the command of `package` that the first argument names (the entry point of an
    installed program). Ends the process with the command's status."""
    errors.run(lambda: _choose(package, names))


def _choose(package: str, names: tuple[str, ...]) -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print(f"usage: {package} COMMAND ...; each has --help\n")
        wide = max(map(len, names))
        for name in names:
            source = resources.files(package).joinpath(f"{name}.py").read_bytes()
            text = ast.get_docstring(ast.parse(source)) or ""
            print(f"  {name:{wide}} {text.splitlines()[0]}")
        return
    if name not in names:
        near = nearest(name, names)
        raise InputError(f"{package} has no command {name!r}{near}")
    del sys.argv[1]
    importlib.import_module(f"{package}.{name}").main()


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select a checkpoint and its fixed weights, and --trust."""
    parser.add_argument("--step", type=int, help="checkpoint to read (default: newest)")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        nargs="+",
        default=[],
        type=Path,
        help="files of the fixed weights that the checkpoint lists by sha256",
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust: packages that the config of an untrusted run may call."""
    parser.add_argument(
        "--trust",
        metavar="PACKAGE",
        nargs="*",
        default=[],
        help="packages, besides this project's, that the run's config may call",
    )


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Add the flags that connect the processes of a run."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of this run",
    )
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of process 0, if not detected"
    )
    parser.add_argument("--processes", type=int, help="number of processes")
    parser.add_argument("--process", type=int, help="index of this process, from 0")
    parser.add_argument(
        "--heartbeat",
        metavar="SECONDS",
        type=int,
        help="silence after which a process counts as dead and all stop (100); at the "
        "start, three times as long",
    )


def check_output(path: Path) -> None:
    """Raise InputError if a file cannot be created, before the work for it is done.

    Its folder must exist.
    """
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: its folder does not exist")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--output {path}: its folder cannot be written to")


def cache_compiled() -> None:
    """Keep compiled programs in the user's cache folder; call before JAX is imported.

    `JAX_COMPILATION_CACHE_DIR` names another folder; if it is empty, or if the user's
    folder cannot be written to, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = _own_cache()
    # JAX's default of 1 second leaves out most programs of a small run.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _own_cache() -> str:
    home = os.environ.get("XDG_CACHE_HOME", "")  # a relative path is to be ignored
    try:
        parent = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
        folder = parent / "polyview"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""


@contextlib.contextmanager
def starting(flags: argparse.Namespace) -> Iterator[None]:
    """Check the input in the block, which needs no JAX, then start as `start` does.

    With --distributed start first, and fail on every process if one fails: the others
    would wait in vain for a process whose input is bad.
    """
    if flags.distributed:
        start(flags)
        with hosts.together():
            yield
    else:  # usage errors do not wait for JAX
        yield
        start(flags)


def start(flags: argparse.Namespace) -> None:
    """Keep compiled programs and freed memory; with --distributed, join the others.

    Call before JAX is imported. Under Slurm, Open MPI, Kubernetes and on TPU pods JAX
    needs no further flags. Raises InputError for a bad flag, or if JAX finds no cluster
    or cannot join it; ends the program if the other processes do not join.
    """
    cache_compiled()
    hosts.keep_freed_memory()
    if not flags.distributed:
        for name in ("coordinator", "processes", "process", "heartbeat"):
            if getattr(flags, name) is not None:
                raise InputError(f"--{name} requires --distributed")
        check_jax()
        return
    if flags.coordinator is not None:
        port = re.fullmatch(r".+:(\d{1,5})", flags.coordinator)
        if not port or not 0 < int(port[1]) < 2**16:
            raise InputError(
                f"--coordinator {flags.coordinator} is not HOST:PORT, like node0:1234"
            )
    heartbeat = 100 if flags.heartbeat is None else flags.heartbeat
    if heartbeat < 1:
        raise InputError(f"--heartbeat is {heartbeat}; give 1 second or more")
    jax = _import_jax()
    patience = JOIN * heartbeat
    waiting = threading.Timer(patience, _give_up, [patience])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            flags.coordinator,
            flags.processes,
            flags.process,
            # After this JAX aborts, with a page of stack frames.
            initialization_timeout=int(patience) + 60,
            heartbeat_timeout_seconds=heartbeat,
        )
    except ValueError as error:
        raise InputError(
            f"--distributed found no cluster ({error}); give --coordinator HOST:PORT "
            "--processes N --process I"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"--distributed could not join the others ({str(error).splitlines()[0]}); "
            "start all processes with the same --coordinator and --processes"
        ) from error
    finally:
        waiting.cancel()
    check_jax()


JOIN = 3  # heartbeats that a process waits for the others: by default 300 s, as in JAX


def _give_up(patience: float) -> None:
    """End the program, whose main thread is inside JAX."""
    print(
        f"error: --distributed: not all processes joined in {patience:g} s; see the "
        "output of the others, and start all with the same --coordinator and "
        f"--processes, or wait longer: {JOIN} times --heartbeat",
        file=sys.stderr,
        flush=True,
    )
    os._exit(InputError.status)


def _import_jax() -> Any:
    """Import JAX. Raises InputError for an environment variable that it refuses."""
    try:
        import jax  # late, so that usage errors do not wait for it
    except ValueError as error:
        raise InputError(f"JAX cannot start: {error}; correct or unset it") from error
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise InputError(
            "JAX_DISABLE_JIT is set, but steps must be compiled; unset it (to look "
            "inside a step, use jax.debug.print)"
        )
    for name in ("", "_host_to_device", "_device_to_host", "_device_to_device"):
        name = f"jax_transfer_guard{name}"
        if str(getattr(jax.config, name)).startswith("disallow"):
            raise InputError(
                f"{name.upper()}={getattr(jax.config, name)} would forbid copying the "
                "first state and the data; unset it (steps are guarded in any case)"
            )
    return jax


def check_jax() -> None:
    """Raise InputError if JAX finds no device of the platform that is asked for."""
    jax = _import_jax()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        why = str(error).partition(" (set JAX_PLATFORMS")[0] or "it finds no device"
        if "Could not determine process_index" in why:  # no device, and so no process
            raise InputError(
                "JAX has no device: JAX_NUM_CPU_DEVICES (or XLA_FLAGS) asks for none; "
                "give 1 or more, or unset it"
            ) from error
        raise InputError(
            f"JAX cannot use JAX_PLATFORMS={asked!r}: {why.splitlines()[0]}; unset it, "
            "or install JAX for that device (docs/quickstart.md)"
        ) from error
