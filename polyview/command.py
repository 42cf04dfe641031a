"""What the command lines share: one-line answers, and joining the other processes."""

import argparse
import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from polyview import config as configs
from polyview import errors
from polyview.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s of one line.

    Flags are not to be abbreviated: a mistyped one would pass for another.
    """

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

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
        near = configs.nearest(name, names)
        raise InputError(f"{package} has no command {name!r}{near}")
    del sys.argv[1]
    importlib.import_module(f"{package}.{name}").main()


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which checkpoint is read, and what it may name."""
    parser.add_argument("--step", type=int, help="a checkpoint other than the newest")
    parser.add_argument(
        "--trust",
        metavar="PACKAGE",
        nargs="*",
        default=[],
        help="packages, beside this project's, that a checkpoint's config may name",
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


def start(flags: argparse.Namespace) -> None:
    """Join the other processes, if asked to; call before any device is touched.

    Without more flags JAX finds them itself under Slurm, Open MPI, Kubernetes and on
    TPU pods. Raises InputError when it finds no cluster.
    """
    if not flags.distributed:
        return
    import jax  # a mistyped flag is answered without it

    try:
        jax.distributed.initialize(flags.coordinator, flags.processes, flags.process)
    except ValueError as error:
        raise InputError(
            f"--distributed found no cluster ({error}); give --coordinator HOST:PORT "
            "--processes N --process I"
        ) from error
