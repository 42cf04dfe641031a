"""Pairs of moments on disk, to be judged: array_record files and a manifest.

One record a pair:

    pair         int, its number, another for each pair of all splits
    instruction  str, the task in words, the same for both moments
    task         int, the number of the level or task
    caption_1    str, what the first moment shows in words, and caption_2
    value        float64[2], the true values of both; see `agents.feedback.walks`
    episode      int64[2], the seeds of both episodes; one twice for a pair within one
    time         int64[2], steps since the beginning of the episode
    state, grid or image    [2, ...], what was observed; one or more of these

The splits are train, validation and test, and no episode is in two of them. Which of
the two moments comes first is drawn.
"""

import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.demonstrate import seeds
from agents.environments.captions import captioner
from agents.environments.worlds import World, kind_of, world
from agents.feedback.walks import Moment, Walk, walk
from agents.recording import LICENCE, OBSERVED, SPLITS, action_of
from polyview.data.prepare import records
from polyview.data.prepare.moments import Moments
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.manifest import read_manifest
from polyview.data.sources.protocol import (
    CorruptRecord,
    class_task,
    default_data_dir,
)
from polyview.errors import InputError, OutOfRange, check_range

VERSION = "1.0.0"  # of the data
APART = 3  # steps between the two moments of one episode, at least; of Wordle, 1
COUNTS = ("pairs", "across", "episodes", "equal", "short", "unknown")
# Of a record, beside what was observed.
_FIELDS = frozenset(
    "pair instruction task caption_1 caption_2 value episode time".split()
)
_PATIENCE = 200  # episodes one after the other without a pair, before it is given up
_KEPT = 8  # moments of one instruction that are kept, for pairs across episodes


def source(name: str, split: str = "train") -> dict[str, Any]:
    """Return the spec of a split of pairs, as a `Source` of records."""
    target = "polyview.data.sources.array_record:ArrayRecord"
    return {"target": target, "name": name, "split": split}


def read(
    name: str, split: str = "train", data_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Return all pairs of a split; see the module.

    Raises InputError if they do not exist or are damaged.
    """
    describe(name, data_dir)
    source = ArrayRecord(name, split, data_dir)
    try:
        found = source.__getitems__(range(len(source)))
        for number, record in enumerate(found):
            if lacks := sorted(_FIELDS - record.keys()):
                raise CorruptRecord(f"record {number} has no {lacks[0]}")
    except CorruptRecord as error:
        raise InputError(
            f"pairs '{name}', split {split}, are damaged ({error}); remove the folder, "
            "and prepare again"
        ) from None
    return found


def describe(name: str, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Return how pairs were made.

        world, tasks      the kind of world; full names of the tasks, by number
        settings          among them goal_only, random, across
        versions          of packages: {"minigrid": "3.2.0"}
        observations      {field: shape of a moment}
        action            {"names": [...]} of numbered actions, or {"size", "box"}
        counts            of each split: pairs; across, those of two episodes; episodes,
                          those that were played; what was dropped of them: equal, pairs
                          of equal captions; short, episodes without two moments far
                          enough apart; unknown, without a moment of known value
        statistics        {"state": {"mean", "std"}} over train, where there are states
        digest            SHA-256 of the manifest without the name of its folder

    Raises InputError if they do not exist, or if their manifest is damaged.
    """
    directory = Path(data_dir or default_data_dir()) / name
    if not (directory / "manifest.json").is_file():
        raise InputError(
            f"no pairs '{name}' in {directory.parent.absolute()}; run: python -m "
            f"agents.prepare --pairs WORLD:TASK --name {name}"
        )
    manifest = read_manifest(directory)
    provenance = manifest.get("provenance")
    if not isinstance(provenance, dict) or provenance.get("holds") != "pairs":
        raise InputError(f"{directory} holds no pairs, but other data")
    wrong = _wrong(provenance)
    if wrong:
        raise InputError(f"{directory} is damaged: {wrong}")
    content = {key: value for key, value in manifest.items() if key != "name"}
    text = json.dumps(content, sort_keys=True)
    return {
        **provenance,
        "statistics": manifest.get("statistics", {}),
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def _wrong(provenance: Mapping[str, Any]) -> str:
    """Return what is wrong with a provenance; "" if nothing."""
    kinds = {"world": str, "tasks": list, "settings": dict, "versions": dict}
    for key, kind in {**kinds, "observations": dict, "counts": dict}.items():
        if type(provenance.get(key)) is not kind:
            return f"its {key} is {provenance.get(key)!r}"
    tasks = provenance["tasks"]
    if not tasks or not all(isinstance(task, str) for task in tasks):
        return f"its tasks are {tasks}"
    for name, shape in provenance["observations"].items():
        if name not in OBSERVED or type(shape) is not list:
            return f"its observations are {provenance['observations']}"
    return ""


def prepare(
    names: Sequence[str],
    directory: Path,
    *,
    n: int = 5000,
    validation: int = 500,
    test: int = 500,
    goal_only: bool = False,
    random: float = 0.2,
    across: float = 0.0,
    each: int = 1,
    apart: int | None = None,
    pixels: int | None = None,
    seed: int = 0,
) -> str:
    """Play, pair and write moments of one or more tasks of a world; return a summary.

    Args:
      names: such as babyai:GoToLocal, all of one kind of world. Tasks take turns.
      directory: of the data set. If it exists it is left unchanged.
      n, validation, test: pairs of each task and split.
      goal_only: see `agents.environments.captions:babyai`.
      random: see `agents.feedback.walks:walk`.
      across: the share of pairs that take their moments from two episodes with the same
        instruction.
      each: the most pairs of an episode.
      apart: steps between two moments of one episode, at least; by default `APART`.
      pixels: the size of images; None records none.
      seed: decides what is played and drawn.

    Pairs of equal captions are dropped and counted. Raises InputError for names that do
    not go together or have no captions, numbers out of range, fewer pairs than are
    asked for, and an existing data set of other settings.
    """
    counts = dict(zip(SPLITS, (n, validation, test), strict=True))
    try:
        check_range(1, 10_000_000, n=n, validation=validation, test=test)
        check_range(0.0, 1.0, random=random, across=across)
        check_range(0, seed=seed, pixels=pixels)
        check_range(1, 1000, each=each, apart=apart)
    except OutOfRange as error:
        raise InputError(f"{error}; correct the command") from None
    kind = kind_of(names, "pair")
    apart = apart or (1 if kind == "wordle" else APART)
    settings = {
        "pairs": list(names),
        "n": n,
        "validation": validation,
        "test": test,
        "goal_only": goal_only,
        "random": random,
        "across": across,
        "each": each,
        "apart": apart,
        "pixels": pixels or 0,
        "seed": seed,
    }
    begun = time.perf_counter()
    exists = records.prepared(directory)
    if exists:
        found = describe(directory.name, directory.parent).get("settings")
        records.check_same(directory, found, settings)
    else:
        _record(directory, names, counts, settings)
    seconds = time.perf_counter() - begun
    made = describe(directory.name, directory.parent)["counts"]
    every = {key: sum(split[key] for split in made.values()) for key in made["train"]}
    dropped = f"{every['equal']:,} draws of equal captions dropped"
    return (
        f"{directory} {'is there already' if exists else 'written'}: "
        f"{every['pairs']:,} pairs, {made['train']['pairs']:,} for training, of "
        f"{every['episodes']:,} episodes; {dropped}"
        + ("" if exists else f"; {every['pairs'] / seconds:,.1f} pairs/s")
    )


def _record(
    directory: Path,
    names: Sequence[str],
    counts: Mapping[str, int],
    settings: Mapping[str, Any],
) -> None:
    captions = [captioner(name, settings["goal_only"]) for name in names]
    rooms = [world(name, pixels=settings["pixels"]) for name in names]
    room = rooms[0]
    provenance: dict[str, Any] = {
        "holds": "pairs",
        "world": room.kind,
        "tasks": list(names),
        "settings": dict(settings),
        "versions": dict(room.versions),
        "observations": {name: list(shape) for name, shape in room.shapes.items()},
        "action": action_of(room),
        "counts": {},
    }
    statistics: dict[str, Any] = {}
    keys = ("random", "across", "each", "apart", "seed")
    first, splits = 0, {}
    for number, (split, count) in enumerate(counts.items()):
        tasks = [
            Pairs(
                one,
                caption,
                count,
                task=task,
                split=number,
                **{key: settings[key] for key in keys},
            )
            for task, (one, caption) in enumerate(zip(rooms, captions, strict=True))
        ]
        splits[split] = _Turns(split, first, tasks, provenance, statistics)
        first += count * len(rooms)
    records.write(
        directory,
        splits,
        version=VERSION,
        targets={"task": class_task(names)},
        source=f"played with python -m agents.prepare --pairs {' '.join(names)}",
        licence=LICENCE,
        # Complete by the time the manifest is written, as the statistics.
        provenance=provenance,
        statistics=statistics,
    )


class _Told(NamedTuple):
    """A moment, and where it is from."""

    seed: int
    time: int
    moment: Moment


@dataclass
class Pairs:
    """`count` pairs of moments of a world; see `prepare`.

    Attributes:
      split: its number, 0 to 2, which decides the seeds of episodes.
      counts: of what was made and dropped so far; see `describe`.

    Raises InputError after 200 episodes in a row without a pair.
    """

    room: World
    caption: Callable[[World], str]
    count: int
    task: int = 0
    split: int = 0
    random: float = 0.2
    across: float = 0.0
    each: int = 1
    apart: int = APART
    seed: int = 0
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(COUNTS, 0), init=False
    )

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = np.random.SeedSequence(self.seed, spawn_key=(self.split, self.task, 1))
        rng = np.random.default_rng(stream)
        kept: dict[str, deque[_Told]] = {}
        barren = 0
        for seed in seeds(self.seed, self.split, self.task):
            if self.counts["pairs"] == self.count:
                return
            made = self._of_episode(seed, rng, kept)
            yield from made
            barren = 0 if made else barren + 1
            if barren == _PATIENCE:
                raise InputError(self._why())

    def _of_episode(
        self, seed: int, rng: np.random.Generator, kept: dict[str, deque[_Told]]
    ) -> list[dict[str, Any]]:
        """Play an episode, and return its pairs."""
        played = walk(
            self.room, seed, caption=self.caption, task=self.task, random=self.random
        )
        self.counts["episodes"] += 1
        known = [
            _Told(seed, time, moment)
            for time, moment in enumerate(played.moments)
            if np.isfinite(moment.value)
        ]
        if not known:
            self.counts["unknown"] += 1
            return []
        within = [
            (one, other)
            for one, other in itertools.combinations(known, 2)
            if other.time - one.time >= self.apart
        ]
        self.counts["short"] += not within
        others = kept.setdefault(played.instruction, deque(maxlen=_KEPT))
        across = (
            [(_drawn(known, rng), other) for other in others] if self.across else []
        )
        found = []
        for _ in range(self.each):
            between = self._across(bool(across), bool(within))
            options = across if between else within
            if between is None:
                break
            two = options.pop(int(rng.random() * len(options)))
            if two[0].moment.caption == two[1].moment.caption:
                self.counts["equal"] += 1
                continue
            self.counts["pairs"] += 1
            self.counts["across"] += between
            found.append(self._record(played, two if rng.random() < 0.5 else two[::-1]))
        if self.across:
            others.append(_drawn(known, rng))
        return found

    def _across(self, across: bool, within: bool) -> bool | None:
        """Return whether the next pair is across episodes; None if there is none.

        across, within: whether there are such.
        """
        every = round(self.across * self.count)
        left = every - self.counts["across"]
        others = self.count - every - (self.counts["pairs"] - self.counts["across"])
        across, within = across and left > 0, within and others > 0
        if across and within:
            return left * (self.count - every) >= others * every  # the kind that lags
        return across if across or within else None

    def _record(self, played: Walk, two: Sequence[_Told]) -> dict[str, Any]:
        moments = [one.moment for one in two]
        return {
            "instruction": played.instruction,
            "task": self.task,
            "caption_1": moments[0].caption,
            "caption_2": moments[1].caption,
            "value": np.array([one.value for one in moments], np.float64),
            "episode": np.array([one.seed for one in two], np.int64),
            "time": np.array([one.time for one in two], np.int64),
            **{
                name: np.stack([one.observation[name] for one in moments])
                for name in self.room.shapes
            },
        }

    def _why(self) -> str:
        counts = self.counts
        share = ", or a smaller share across episodes" if self.across else ""
        return (
            f"{self.room.name}: {_PATIENCE} episodes in a row gave no pair, after "
            f"{counts['pairs']:,} of {self.count:,}. Of all {counts['episodes']:,}, "
            f"{counts['short']:,} have no two moments {self.apart} steps apart, and "
            f"{counts['unknown']:,} no known value; {counts['equal']:,} pairs had "
            f"equal captions. Ask for fewer pairs, or less apart{share}"
        )


def _drawn(options: Sequence[_Told], rng: np.random.Generator) -> _Told:
    return options[int(rng.random() * len(options))]


@dataclass(frozen=True)
class _Turns:
    """Numbered pairs of several tasks, which take turns."""

    split: str
    first: int  # number of a pair
    tasks: list[Pairs]
    provenance: dict[str, Any]
    statistics: dict[str, Any]
    unit = " pairs"

    def __len__(self) -> int:
        return sum(map(len, self.tasks))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        states = Moments()
        turns = itertools.chain.from_iterable(zip(*self.tasks, strict=True))
        for number, pair in enumerate(turns, self.first):
            yield {"pair": number, **pair}
            if "state" in pair:
                states.add(pair["state"])
        self.provenance["counts"][self.split] = {
            key: sum(task.counts[key] for task in self.tasks) for key in COUNTS
        }
        if self.split == "train" and "state" in self.provenance["observations"]:
            self.statistics["state"] = {
                "mean": states.mean.tolist(),
                "std": states.std.tolist(),
            }
