"""Recorded episodes on disk, and futures from given states: array_record, a manifest.

    train, validation       episodes; see `polyview.data.prepare.episodes`
    values_*                futures of the policy, and start int
    actions_*               the same, and action float32[a]
    values_map              futures from places all over the maze, at rest

Futures are what a policy will see from a state, and with `action`, what it will see if
this is the first action. These two have the splits `_validation` and `_test`. `start`
is the number of the start, the same for all policies.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvf.maze import Maze
from polyview.data.prepare import episodes
from polyview.data.prepare.episodes import Examples
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError

EPISODES = ("train", "validation")
TRUTH = ("values_validation", "values_test", "actions_validation", "actions_test")
MAP = "values_map"
VERSION = "1.0.0"  # of the data
LICENCE = "generated; this project's (Apache-2.0)"


def write(
    directory: Path,
    splits: Mapping[str, Examples],
    *,
    policies: Sequence[str],
    source: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write episodes and futures and their manifest, all or nothing.

    Arguments and errors are those of `polyview.data.prepare.episodes:write`; the
    provenance has world, maze ("rows", "cell", "centre") and players as well.
    """
    episodes.write(
        directory,
        splits,
        policies=policies,
        source=source,
        licence=LICENCE,
        version=VERSION,
        provenance=provenance,
        futures=set(splits) - set(EPISODES),
    )


def describe(name: str, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Return the provenance of recorded episodes: world, maze, players, counts ...

    `statistics` of the states, mean and deviation, and `policies`, their number, are
    added to it. Episodes that were not played in a maze have neither world, maze nor
    players.

    Raises InputError if they do not exist, or if their manifest is damaged.
    """
    directory = Path(data_dir or default_data_dir()) / name
    if not (directory / "manifest.json").is_file():
        raise InputError(
            f"no recorded episodes '{name}' in {directory.parent.absolute()}; run: "
            f"python -m dvf.prepare --env {name}, or with --name {name}; Atari play "
            f"comes from python -m sgi.latents --name {name}"
        )
    provenance = episodes.describe(directory)
    known = {"world": str, "maze": dict, "players": list}
    present = known.keys() & provenance
    if present and not all(
        type(provenance.get(key)) is kind for key, kind in known.items()
    ):
        raise InputError(f"{directory} holds no recorded episodes, but other data")
    return provenance


def maze_of(provenance: Mapping[str, Any]) -> Maze:
    """Return the maze that was played in. Raises InputError if it is no maze."""
    if "maze" not in provenance:
        raise InputError("these episodes were not played in a maze; record others")
    maze = provenance["maze"]
    try:
        return Maze(maze["rows"], maze["cell"], maze["centre"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the maze of these episodes is damaged: {error}") from None
