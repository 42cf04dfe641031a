"""How the program stops: one or two lines and an exit status, never a traceback."""

import contextlib
import difflib
import math
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from polyview.terminal import printable


class Stop(Exception):
    """Ends the program with a message for the user and an exit status.

    A message may quote untrusted input. Beyond 2,000 characters its middle is left out;
    control characters are escaped.
    """

    status = 1

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= 2000 else f"{text[:1500]} ... {text[-450:]}"


class InputError(Stop):
    """The user's input is wrong; the message says what, where, and what to do."""

    status = 2


class NonFiniteError(Stop):
    """A loss, gradient or state is not finite; the state before it was dumped."""

    status = 3


class Preempted(Stop):
    """The system stopped the run; the same command resumes its last checkpoint."""

    status = 75  # EX_TEMPFAIL: run the same command again


class OutOfRange(ValueError):
    """A number is outside its allowed range."""


HUGE = 2**31 - 1  # steps are counted in 32 bits
TINY = 1e-9  # lower bound of a number that must be above zero


def check_range(low: float, high: float = math.inf, **numbers: Any) -> None:
    """Raise OutOfRange if a number, or one in a list, is not in [low, high].

    An int as `low` requires integers. None and values that are not Python scalars, such
    as traced arrays, pass.
    """
    whole = isinstance(low, int)
    for name, value in numbers.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None or not isinstance(number, bool | int | float | str):
                continue
            kinds = (int,) if whole else (int, float)
            if isinstance(number, bool) or not isinstance(number, kinds):
                kind = "an integer" if whole else "a number"
                raise OutOfRange(f"{name}={value!r}: expected {kind}")
            if not number >= low:
                least = "more than 0" if low == TINY else f"{low} or more"
                raise OutOfRange(f"{name}={value}: it must be {least}")
            if number > high:
                raise OutOfRange(f"{name}={value}: it must be {high} or less")


def place(error: BaseException) -> str:
    """Return the file:line of an error: its innermost frame outside libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    shown = [f for f in frames if not _is_library(f.filename)] or frames
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    return f"{Path(shown[-1].filename).name}:{shown[-1].lineno}" if shown else "nowhere"


def _is_library(filename: str) -> bool:
    parts = Path(filename).parts
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or filename.startswith(("<", sysconfig.get_path("stdlib")))
    )


@contextlib.contextmanager
def fits_together(what: str) -> Iterator[None]:
    """Report any failure of a config or an untrusted file as an InputError of one line.

    Untrusted input can fail in any way. The line names the innermost frame outside
    libraries, so that users can find bugs of their own. Errors of devices, the system
    and other processes propagate. what: the inputs, for the message.
    """
    try:
        yield
    except (Stop, OSError):
        raise
    except Exception as error:
        if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError", "Damaged"):
            raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, KeyError):
            line = f"there is no {line}"
        kind = "" if type(error) is ValueError else f"{type(error).__name__}, "
        line += f" ({kind}{place(error)})"
        raise InputError(f"these do not fit together ({what}): {line}") from error


def nearest(name: str, names: Iterable[str]) -> str:
    """Return '; did you mean ...?' for a mistyped name, or a list of the names."""
    names = [str(n) for n in names]
    match = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; available: {', '.join(sorted(names))}" if names else ""


def run(main: Callable[[], None]) -> None:
    """Run a command; a `Stop` becomes a message on stderr and an exit status.

    So does an OSError from anywhere, such as a path without permission or a full disk.
    `--traceback` anywhere on the command line also prints the traceback of a `Stop`.
    """
    whole = "--traceback" in sys.argv[1:]
    if whole:
        sys.argv.remove("--traceback")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for characters that the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except Stop as stop:
        if whole:
            traceback.print_exception(stop)
        print(f"{'error: ' if stop.status < 75 else ''}{stop}", file=sys.stderr)
        _leave(stop.status)
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        with contextlib.suppress(OSError):
            print(
                f"error: {InputError(f'{where}{error.strerror or error}')}",
                file=sys.stderr,
            )
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(InputError.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if "Gloo" not in str(error):
            raise
        why = str(error).splitlines()[0]
        print(
            f"error: another process of this run is gone ({why}); start all processes "
            "again with the same command: the run resumes from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(Preempted.status)  # a normal exit would wait for the lost process


def _leave(status: int) -> NoReturn:
    """Exit without waiting long for threads: after a failed save they can block one
    another for minutes."""

    def soon() -> None:
        threading.main_thread().join()
        time.sleep(2)
        os._exit(status)

    try:
        threading.Thread(target=soon, daemon=True).start()
    except RuntimeError:  # the limit of threads is reached
        os._exit(status)
    sys.exit(status)
