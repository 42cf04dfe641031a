"""Demonstrations on disk: array_record files and a manifest. One record an episode:

    instruction  str, the task in words
    task         int, the number of the level or task
    seed         int, of the world's reset
    actions      float32[t, a] in the box of the world, or int64[t] for numbered ones
    state        float32[t + 1, d]         what was observed: one or more of these, as
    grid         uint8[t + 1, 7, 7, 3]     the world has them. Row i is what action i
    image        uint8[t + 1, h, w, 3]     answers; the last is what all led to

The splits are train, validation and test. No two episodes of a task, in whatever split,
begin from the same seed.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from agents.environments.worlds import World
from polyview.data.prepare import records
from polyview.data.prepare.moments import Moments
from polyview.data.sources.manifest import read_manifest
from polyview.data.sources.protocol import class_task, default_data_dir
from polyview.errors import InputError

SPLITS = ("train", "validation", "test")
VERSION = "1.0.0"  # of the data
LICENCE = "generated; this project's (Apache-2.0)"
OBSERVED: dict[str, type] = {"state": np.float32, "grid": np.uint8, "image": np.uint8}
QUANTILES = (0.01, 0.99)  # of the actions of train, as `low` and `high`

_log = logging.getLogger(__name__)


def write(
    directory: Path,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    world: str,
    tasks: Sequence[str],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    observations: Mapping[str, Sequence[int]],
    action: Mapping[str, Any],
    source: str,
    failed: Mapping[str, int] | None = None,
) -> None:
    """Write demonstrations and their manifest, all or nothing.

    Args:
      directory: folder of the data set; it must not exist.
      splits: the episodes of each split, train among them; see the module.
      world: the kind of world, such as babyai.
      tasks: the full name of each task, by its number.
      settings: how they were made; see `polyview.data.prepare.records:check_same`.
      versions: of the packages that were played in, the world's own first.
      observations: {field: shape of a step}, for one or more of `OBSERVED`.
      action: {"names": [...]} of numbered actions, else {"size": a, "box": [low,
        high]}.
      source: for the manifest.
      failed: how many failures of the expert were dropped in each split; it may grow
        while episodes are read.

    Raises InputError for an episode that `check` refuses, and for a second episode of a
    task from the same seed; then nothing is written.
    """
    provenance: dict[str, Any] = {
        "world": world,
        "tasks": list(tasks),
        "settings": dict(settings),
        "versions": dict(versions),
        "observations": {name: list(shape) for name, shape in observations.items()},
        "action": dict(action),
        "longest": 0,
        "counts": {},
        "failed": {},
    }
    wrong = _wrong(provenance) or "train" not in splits and "no split is called train"
    if wrong:
        raise InputError(f"{directory} cannot be written: {wrong}")
    statistics: dict[str, Any] = {}
    begun: set[tuple[int, int]] = set()
    failures = {} if failed is None else failed  # it may be empty yet, and grow
    records.write(
        directory,
        {
            split: _Split(split, episodes, provenance, statistics, begun, failures)
            for split, episodes in splits.items()
        },
        version=VERSION,
        targets={"task": class_task(tasks)},
        source=source,
        licence=LICENCE,
        # Complete by the time the manifest is written, as the statistics.
        provenance=provenance,
        statistics=statistics,
    )


def action_of(room: World) -> dict[str, Any]:
    """Return what `write` takes as the action of a world."""
    if room.box is None:
        return {"names": list(room.actions or ())}
    size, low, high = room.box
    return {"size": size, "box": [low, high]}


def describe(name: str, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Return the provenance of demonstrations, and statistics of their states.

        world, tasks      the kind of world; full names of the tasks, by number
        settings          how they were made
        versions          of packages: {"minigrid": "3.2.0"}
        observations      {field: shape of a step}
        action            {"names": [...]} of numbered actions, or {"size", "box": [low,
                          high], "low": [...], "high": [...], "distinct"} of continuous
                          ones: quantiles of each dimension over train, and how many
                          different actions there are
        longest           the most actions of an episode of any split
        counts            of train: episodes, steps, failed (dropped)
        failed            of each split, the failures that were dropped
        statistics        {"state": {"mean", "std"}} over train, where there are states

    Raises InputError if they do not exist, or if their manifest is damaged.
    """
    directory = Path(data_dir or default_data_dir()) / name
    if not (directory / "manifest.json").is_file():
        raise InputError(
            f"no demonstrations '{name}' in {directory.parent.absolute()}; run: python "
            f"-m agents.prepare --env WORLD:TASK --name {name}"
        )
    manifest = read_manifest(directory)
    provenance = manifest.get("provenance")
    if not isinstance(provenance, dict) or not {"world", "tasks"} <= set(provenance):
        raise InputError(f"{directory} holds no demonstrations, but other data")
    wrong = _wrong(provenance) or _incomplete(provenance)
    names = manifest["targets"].get("task", {}).get("names")
    if not wrong and names != provenance["tasks"]:
        wrong = f"its tasks are {provenance['tasks']}, and also {names}"
    if wrong:
        raise InputError(f"{directory} is damaged: {wrong}")
    return {**provenance, "statistics": manifest.get("statistics", {})}


def check(
    episode: Mapping[str, Any], provenance: Mapping[str, Any], where: str
) -> None:
    """Raise InputError if an episode does not fit its provenance; see the module.

    That is, for a missing or another field, another shape or type, a number that is not
    finite, an action that is none or outside the box, an unknown task, and an episode
    without an action.
    """
    observations, action = provenance["observations"], provenance["action"]
    fields = {"instruction", "task", "seed", "actions", *observations}
    if set(episode) != fields:
        raise InputError(
            f"{where} has the fields {', '.join(sorted(episode))}; give "
            f"{', '.join(sorted(fields))}"
        )
    if type(episode["instruction"]) is not str or not episode["instruction"].strip():
        raise InputError(f"{where} has no instruction: {episode['instruction']!r}")
    tasks = len(provenance["tasks"])
    if type(episode["task"]) is not int or not 0 <= episode["task"] < tasks:
        raise InputError(
            f"{where}: there is no task {episode['task']}, only 0 .. {tasks - 1}"
        )
    if type(episode["seed"]) is not int or episode["seed"] < 0:
        raise InputError(f"{where}: its seed is {episode['seed']!r}; give 0 or more")
    length = len(np.atleast_1d(episode["actions"]))
    if not length:
        raise InputError(f"{where} has no action; give 1 or more")
    kinds: dict[str, tuple[type, tuple[int, ...]]] = {
        name: (OBSERVED[name], (length + 1, *shape))
        for name, shape in observations.items()
    }
    numbered = "names" in action
    kinds["actions"] = (
        (np.int64, (length,)) if numbered else (np.float32, (length, action["size"]))
    )
    for name, (kind, shape) in kinds.items():
        values = np.asarray(episode[name])
        if values.shape != shape or values.dtype != kind:
            raise InputError(
                f"{where}: {name} is {values.dtype}{list(values.shape)}, not "
                f"{np.dtype(kind)}{list(shape)}"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{where}: {name} has a number that is not finite")
    low, high = (0, len(action["names"]) - 1) if numbered else action["box"]
    actions = np.asarray(episode["actions"])
    outside = (actions < low) | (actions > high)
    if outside.any():
        bounds = f"{low} .. {high}" if numbered else f"the box [{low:g}, {high:g}]"
        raise InputError(
            f"{where}: an action of {actions[outside][0]} is outside {bounds}"
        )


def check_versions(provenance: Mapping[str, Any]) -> None:
    """Raise InputError if the installed world differs from that of demonstrations.

    For those who act in the world: it may look and behave otherwise than what was
    learnt. Of another version of a package below it, such as a simulator, is warned.
    """
    for number, (package, recorded) in enumerate(provenance["versions"].items()):
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise InputError(
                f"{package} {recorded}, in which these demonstrations were played, is "
                f"not installed: pip install {package}=={recorded}"
            ) from None
        if installed == recorded:
            continue
        found = f"played in {package} {recorded}, but {installed} is installed"
        if number == 0:
            raise InputError(
                f"these demonstrations were {found}: pip install "
                f"{package}=={recorded}, or record them again"
            )
        _log.warning("demonstrations were %s: results may differ", found)


def installed(versions: Mapping[str, str]) -> dict[str, str]:
    """Return those of {package: version} whose package is installed, in any version."""
    known = {name.lower() for d in metadata.distributions() if (name := d.name)}
    return {n: version for n, version in versions.items() if n.lower() in known}


def _wrong(provenance: Mapping[str, Any]) -> str:
    """Return what is wrong with what a provenance says of the world; "" if nothing."""
    texts = {"world": str, "tasks": list, "settings": dict, "versions": dict}
    for key, kind in {**texts, "observations": dict, "action": dict}.items():
        if type(provenance.get(key)) is not kind:
            return f"its {key} is {provenance.get(key)!r}"
    tasks, action = provenance["tasks"], provenance["action"]
    if not _are_texts(tasks) or len(set(tasks)) < len(tasks):
        return f"its tasks are {tasks}"
    versions = [*provenance["versions"], *provenance["versions"].values()]
    if not _are_texts(versions):
        return f"its versions are {provenance['versions']}"
    shapes = provenance["observations"]
    if not shapes or not all(
        name in OBSERVED
        and type(shape) is list
        and all(type(n) is int and n > 0 for n in shape)
        for name, shape in shapes.items()
    ):
        return f"its observations are {shapes}, and {', '.join(OBSERVED)} are known"
    if "names" in action:
        good = type(action["names"]) is list and _are_texts(action["names"])
    else:
        size, box = action.get("size"), action.get("box")
        good = type(size) is int and size > 0 and _are_numbers(box, 2)
        good = good and box[0] < box[1]
    return "" if good else f"its action is {action}"


def _incomplete(provenance: Mapping[str, Any]) -> str:
    """Return what is wrong with what `write` adds to a provenance; "" if nothing."""
    action, counts = provenance["action"], provenance.get("counts")
    if type(provenance.get("longest")) is not int or provenance["longest"] < 1:
        return f"its longest episode has {provenance.get('longest')} actions"
    known = {"episodes", "steps", "failed"}
    if type(counts) is not dict or not all(type(counts.get(k)) is int for k in known):
        return f"its counts are {counts}"
    if type(provenance.get("failed")) is not dict:
        return f"its failures are {provenance.get('failed')}"
    if "names" not in action:
        for key in ("low", "high"):
            if not _are_numbers(action.get(key), action["size"]):
                return f"the {key} of its actions is {action.get(key)}"
    return ""


def _are_texts(values: Sequence[Any]) -> bool:
    return bool(values) and all(type(value) is str and value for value in values)


def _are_numbers(values: Any, count: int) -> bool:
    return (
        type(values) is list
        and len(values) == count
        and all(type(v) in (int, float) and np.isfinite(v) for v in values)
    )


@dataclass
class _Split:
    """Checked episodes of a split, and what they add to the manifest."""

    name: str
    episodes: Iterable[Mapping[str, Any]]
    provenance: dict[str, Any]
    statistics: dict[str, Any]
    begun: set[tuple[int, int]]  # task and seed of each episode so far, of all splits
    failed: Mapping[str, int]
    unit = " episodes"

    def __len__(self) -> int:
        return len(self.episodes)  # type: ignore[arg-type]  # tqdm copes without

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        actions: list[np.ndarray] = []
        states = Moments()
        for number, episode in enumerate(self.episodes):
            where = f"{self.name} {number}"
            check(episode, self.provenance, where)
            start = episode["task"], episode["seed"]
            if start in self.begun:
                raise InputError(
                    f"{where}: task {start[0]} has two episodes from seed {start[1]}"
                )
            self.begun.add(start)
            length = len(episode["actions"])
            self.provenance["longest"] = max(self.provenance["longest"], length)
            if self.name == "train":
                actions.append(episode["actions"])
                if "state" in episode:
                    states.add(episode["state"])
            yield episode
        failures = self.failed.get(self.name, 0)
        self.provenance["failed"][self.name] = failures
        if actions:
            every = np.concatenate(actions)
            self.provenance["counts"].update(
                episodes=len(actions), steps=len(every), failed=failures
            )
            if "names" not in self.provenance["action"]:
                low, high = np.quantile(every.astype(np.float64), QUANTILES, 0)
                self.provenance["action"] |= {
                    "low": low.tolist(),
                    "high": high.tolist(),
                    "distinct": len(np.unique(every, axis=0)),
                }
            if "state" in self.provenance["observations"]:
                found = {"mean": states.mean.tolist(), "std": states.std.tolist()}
                self.statistics["state"] = found
