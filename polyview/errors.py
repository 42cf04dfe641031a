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

from polyview.terminal import printable


class Stop(Exception):
    """The program ends here, with a message for the user and an exit status.

    It quotes what was given, however long that is and whoever gave it: of more than
    2,000 letters the middle is left out, and what would steer a terminal is spelt out.
    """

    status = 1

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= 2000 else f"{text[:1500]} ... {text[-450:]}"


class InputError(Stop):
    """What the user gave is wrong; the message says what, where, and what to do."""

    status = 2


class NonFiniteError(Stop):
    """A loss, gradient or state is not finite; the state before it is in a dump."""

    status = 3


class Preempted(Stop):
    """The run was told to end (SIGTERM), saved its state, and can be resumed."""

    status = 75  # EX_TEMPFAIL: run the same command again


class OutOfRange(ValueError):
    """A number is outside the range that what takes it asks for."""


HUGE = 2**31 - 1  # steps are counted in 32 bits
TINY = 1e-9  # the lowest value of what must be above zero


def check_range(low: float, high: float = math.inf, **numbers) -> None:
    """Raise OutOfRange for a number, or one of several, that is not in [low, high].

    A `low` that is an int asks for whole numbers. What is no Python number, as an array
    that is traced, passes.
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
    """Where an error is from, as file:line: its innermost frame outside libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _is_library(f.filename)]
    at = (own or frames or [None])[-1]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    return f"{Path(at.filename).name}:{at.lineno}" if at else "nowhere"


def _is_library(filename: str) -> bool:
    parts = Path(filename).parts
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or filename.startswith(("<", sysconfig.get_path("stdlib")))
    )


@contextlib.contextmanager
def fits_together(what: str) -> Iterator[None]:
    """Turn what goes wrong with a config, or with an untrusted file, into one line.

    Untrusted input can fail in any way; the line names the innermost frame outside
    libraries, so that a user's own bug keeps its place. Errors of devices, of the
    system and of other processes propagate.
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
    """Return '; did you mean ...?' for a mistyped name, or the names there are."""
    names = [str(n) for n in names]
    match = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; there are: {', '.join(sorted(names))}" if names else ""


def run(main: Callable[[], None]) -> None:
    """Run a command line; a `Stop` becomes its message on stderr and its status.

    So does what the system refuses, wherever it does: a path that may not be looked at,
    a log on a full disk. `--traceback` anywhere in the command line prints all of it.
    """
    whole = "--traceback" in sys.argv[1:]
    if whole:
        sys.argv.remove("--traceback")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # letters that the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except Stop as stop:
        if whole:
            traceback.print_exception(stop)
        print(f"{'error: ' if stop.status < 75 else ''}{stop}", file=sys.stderr)
        _leave(stop.status)
    except BrokenPipeError:  # nobody reads on, as behind `| head`
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
            f"error: another process of this run is gone ({why}); start all of them "
            "again by the same command: it goes on from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(Preempted.status)  # to leave politely is to wait for who is gone


def _leave(status: int) -> None:
    """Exit, without waiting long for threads: those of a save that failed wait for one
    another for minutes."""

    def soon() -> None:
        threading.main_thread().join()
        time.sleep(2)
        os._exit(status)

    threading.Thread(target=soon, daemon=True).start()
    sys.exit(status)
