"""What the command lines share: one-line answers, and joining the other processes."""

import argparse
import ast
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path

from polyview import errors
from polyview.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s of one line.

    Flags are not to be abbreviated: a mistyped one would pass for another.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)
        self.add_argument(  # read by `errors.run`, before any parser
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print the whole traceback of an error",
        )

    def parse_args(self, args=None, namespace=None):
        """Parse; an unknown flag is answered with the nearest there is."""
        flags, rest = self.parse_known_args(args, namespace)
        if rest:
            known = [word for word in self._option_string_actions if word[:2] == "--"]
            hint = nearest(rest[0].split("=")[0], known)
            raise InputError(f"unknown argument {rest[0]!r}{hint}")
        return flags

    def error(self, message: str) -> None:
        """Raise instead of printing the whole usage."""
        raise InputError(f"{message}; see {self.prog} --help")


def choose(package: str, names: tuple[str, ...]) -> None:
    """Run the command of a package that the first argument names: what its installed
    program does. Ends the process with the command's status."""
    errors.run(lambda: _choose(package, names))


def _choose(package: str, names: tuple[str, ...]) -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print(f"usage: {package} COMMAND ...; each has --help\n")
        for name in names:
            path = Path(importlib.util.find_spec(f"{package}.{name}").origin)
            text = ast.get_docstring(ast.parse(path.read_bytes()))
            print(f"  {name:9} {text.splitlines()[0]}")
        return
    if name not in names:
        near = nearest(name, names)
        raise InputError(f"{package} has no command {name!r}{near}")
    del sys.argv[1]
    importlib.import_module(f"{package}.{name}").main()


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which checkpoint is read, and what it may name."""
    parser.add_argument("--step", type=int, help="a checkpoint other than the newest")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        nargs="+",
        default=[],
        type=Path,
        help="files of fixed weights that the checkpoint names by their sha256",
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the flag for what the config of an untrusted run may name."""
    parser.add_argument(
        "--trust",
        metavar="PACKAGE",
        nargs="*",
        default=[],
        help="packages, beside this project's, that the config of a run may name",
    )


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """Add the flags by which several processes find one another."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of this run",
    )
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where JAX cannot know it"
    )
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which one this is, from 0")
    parser.add_argument(
        "--heartbeat",
        metavar="SECONDS",
        type=int,
        help="after how long a silent process counts as dead, and all end (100)",
    )


def check_output(path: Path) -> None:
    """Raise InputError for a file that cannot be made, before the work for it is done.

    Its folder must be there.
    """
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: its folder does not exist")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--output {path}: its folder cannot be written to")


def start(flags: argparse.Namespace) -> None:
    """Join the other processes, if asked to; call before any device is touched.

    Without more flags JAX finds them itself under Slurm, Open MPI, Kubernetes and on
    TPU pods. Raises InputError when it finds no cluster.
    """
    if not flags.distributed:
        for name in ("coordinator", "processes", "process", "heartbeat"):
            if getattr(flags, name) is not None:
                raise InputError(f"--{name} requires a cluster: add --distributed")
        return
    if flags.coordinator is not None:
        port = re.fullmatch(r".+:(\d{1,5})", flags.coordinator)
        if not port or not 0 < int(port[1]) < 2**16:
            raise InputError(
                f"--coordinator {flags.coordinator} is not HOST:PORT, as node0:1234"
            )
    heartbeat = 100 if flags.heartbeat is None else flags.heartbeat
    if heartbeat < 1:
        raise InputError(f"--heartbeat is {heartbeat}; give 1 second or more")
    import jax  # a mistyped flag is answered without it

    try:
        jax.distributed.initialize(
            flags.coordinator,
            flags.processes,
            flags.process,
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
            "start all of them with one --coordinator and --processes"
        ) from error
