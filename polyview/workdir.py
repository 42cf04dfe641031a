"""The directory of a run belongs to one config, which lies in it as config.json.

What can be said of it without JAX is said without: a mistake should not wait for it.
"""

from collections.abc import Mapping
from pathlib import Path

from polyview import config as configs
from polyview import files
from polyview.errors import InputError


def claim(workdir: Path, config) -> None:
    """Write the config into a new workdir, or compare it with the one in an old.

    Raises InputError when the workdir belongs to another config or cannot be written.
    """
    from polyview import mesh as meshes

    path = workdir / "config.json"
    check(workdir, config)
    if not path.exists() and meshes.is_first_process():
        files.write_whole(path, configs.to_json(config).encode())
    meshes.wait_for_all("claim")
    check(workdir, config)


def check(workdir: Path, config) -> None:
    """Raise InputError where a workdir is a file, or belongs to another config."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir} is a file; name a folder, or a new one")
    if not (workdir / "config.json").exists():
        return
    if changes := configs.difference(read_config(workdir), config):
        raise InputError(
            f"{workdir} is a run of another config ({'; '.join(changes[:3])}); "
            "choose another --workdir, or go back to that config"
        )


def read_config(workdir: Path):
    """The config of a run. Raises InputError when there is none that can be read."""
    path = workdir / "config.json"
    try:
        return configs.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{workdir} is not a run: {path.name}: {why}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}; choose another --workdir") from error


def check_run(run: Path, overrides: Mapping[str, str] | None = None) -> None:
    """Raise InputError for a run without a checkpoint, or keys its config has not."""
    if not has_checkpoint(run):
        raise InputError(
            f"{run} has no checkpoint to load (looked in {run / 'checkpoints'})"
        )
    if (run / "config.json").exists():  # a checkpoint can do without
        configs.override(read_config(run), overrides or {})


def has_checkpoint(run: Path) -> bool:
    """Whether a run has any checkpoint, be it a damaged one."""
    return any(path.name.isdecimal() for path in (run / "checkpoints").glob("*"))
