"""The directory of a run belongs to one config, which lies in it as config.json."""

from pathlib import Path

from polyview import config as configs
from polyview import mesh as meshes
from polyview.errors import InputError
from polyview.evaluation import protocol


def claim(workdir: Path, config) -> None:
    """Write the config into a new workdir, or compare it with the one in an old.

    Raises InputError when the workdir belongs to another config or cannot be written.
    """
    path = workdir / "config.json"
    if not path.exists() and meshes.is_first_process():
        protocol.write_whole(path, configs.to_json(config).encode())
    meshes.wait_for_all("claim")
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
        raise InputError(f"{workdir} is not a run: {path.name}: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}; choose another --workdir") from error
