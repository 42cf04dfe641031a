"""How the program stops: one or two lines and an exit status, never a traceback."""

import contextlib
import difflib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


class Stop(Exception):
    """The program ends here, with a message for the user and an exit status.

    It quotes what was given, however long that is and whoever gave it: of more than
    2,000 letters the middle is left out, and what would steer a terminal is spelt out.
    """

    status = 1

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= 2000 else f"{text[:1500]} ... {text[-450:]}"


def printable(text: str) -> str:
    """The text with all but letters, spaces and line ends spelt out, as \\x1b."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class InputError(Stop):
    """What the user gave is wrong; the message says what, where, and what to do."""

    status = 2


class NonFiniteError(Stop):
    """A loss, gradient or state is not finite; the state before it is in a dump."""

    status = 3


class Preempted(Stop):
    """The run was told to end (SIGTERM), saved its state, and can be resumed."""

    status = 75  # EX_TEMPFAIL: run the same command again


@contextlib.contextmanager
def fits_together(what: str) -> Iterator[None]:
    """Turn what goes wrong with a config, or a stranger's file, into one line.

    Whatever it is: who wrote them can have put anything in the place of anything. What
    a device, a disk or another process does passes through.
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
        elif not isinstance(error, ValueError):  # those speak for themselves
            import traceback

            at = traceback.extract_tb(error.__traceback__)[-1]
            line += f" ({type(error).__name__}, {Path(at.filename).name}:{at.lineno})"
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
    a log on a full disk.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # letters that the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except Stop as stop:
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
