"""Play experts in worlds, and record the episodes in which they succeed.

The expert of BabyAI is minigrid's bot, which knows the whole level; those of Meta-World
are its scripted policies, functions of the observed state; that of TextRearrange is a
script that knows the whole room; that of Wordle knows the words, not the hidden one.
Worlds of other packages bring their own. None draws a random number. Noise may be added
to continuous actions, and is then part of what is recorded.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agents import recording
from agents.environments.worlds import Observation, World, kind_of, parse, world
from polyview.data.prepare import records
from polyview.errors import InputError


class Expert(Protocol):
    """Says what to do; `taken` is the last action, if it was not the one it said."""

    def __call__(self, observation: Observation, taken: Any = None) -> Any: ...


FIRST_SEED = 2**22  # of recorded episodes: what evaluates may use those below
_PATIENCE = 50  # failures one after the other, before an expert is given up


def expert(room: World) -> Expert:
    """Return the expert of a world for the episode that has just begun in it.

    Raises InputError for a world without one.
    """
    own = getattr(room, "expert", None)  # not of the protocol: a world may lack it
    if own is not None:
        return own()
    known = {
        "babyai": _bot,
        "metaworld": _script,
        "rearrange": _solver,
        "wordle": _guesser,
    }
    if room.kind not in known:
        raise InputError(f"{room.name} has no expert; give its class a method expert()")
    return known[room.kind](room)


class Failed(Exception):
    """The expert does not know what to do."""


def _bot(room: World) -> Expert:
    from minigrid.utils.baby_ai_bot import BabyAIBot

    from agents.environments.babyai import ACTIONS

    done = ACTIONS.index("done")
    bot = BabyAIBot(room.environment)

    def act(observation: Observation, taken: Any = None) -> int:
        try:
            action = int(bot.replan(taken))
        except Exception as error:  # it fails in many ways, of which none is documented
            raise Failed from error
        if action == done:  # its plan is at an end, and it would say so for ever
            raise Failed
        return action

    return act


def _script(room: World) -> Expert:
    from metaworld.policies import ENV_POLICY_MAP

    made: Any = ENV_POLICY_MAP[parse(room.name)[1]]
    policy = made()

    def act(observation: Observation, taken: Any = None) -> np.ndarray:
        with warnings.catch_warnings(action="ignore"):  # that actions get clipped
            action = policy.get_action(observation["state"].astype(np.float64))
        return np.clip(action, -1, 1).astype(np.float32)

    return act


def _solver(room: World) -> Expert:
    # One that sees all would show no search, and leave a policy lost.
    return lambda observation, taken=None: room.environment.solve(search=True)


def _guesser(room: World) -> Expert:
    return lambda observation, taken=None: room.environment.solve()


def demonstrate(
    room: World, seed: int, *, task: int = 0, noise: float = 0.0
) -> dict[str, Any] | None:
    """Play one episode by its expert; return its record, None if it did not succeed.

    For the record see `agents.recording`. noise: the deviation of what is added to
    continuous actions, which are then clipped to the box. All follows from the seed.
    """
    observation = room.reset(seed)
    act = expert(room)
    rng = np.random.default_rng((seed, 2))
    seen, actions = [observation], []
    for _ in range(room.limit):
        try:
            action = act(observation)
        except Failed:
            return None
        if noise and room.box:
            action = action + noise * rng.standard_normal(action.shape)
            action = np.clip(action, *room.box[1:]).astype(np.float32)
        outcome = room.step(action)
        observation = room.arrived
        seen.append(observation)
        actions.append(action)
        if outcome.finished is not None or room.success:
            break
    if not room.success:
        return None
    kind = np.int64 if room.box is None else np.float32
    return {
        "instruction": seen[0]["instruction"],
        "task": task,
        "seed": seed,
        "actions": np.array(actions, kind),
        **{name: np.stack([step[name] for step in seen]) for name in room.shapes},
    }


@dataclass
class Demonstrations:
    """`count` successes of an expert in a world; failures are dropped and counted.

    Attributes:
      seeds: of the episodes, one after the other, as many as are needed.
      task, noise: see `demonstrate`.
      failed: the episodes that were dropped so far.

    Raises InputError if the expert fails 50 times in a row.
    """

    room: World
    count: int
    seeds: Iterator[int]
    task: int = 0
    noise: float = 0.0
    failed: int = field(default=0, init=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.count):
            for _ in range(_PATIENCE):
                episode = demonstrate(
                    self.room, next(self.seeds), task=self.task, noise=self.noise
                )
                if episode is not None:
                    break
                self.failed += 1
            else:
                raise InputError(
                    f"the expert of {self.room.name} failed {_PATIENCE} times in a "
                    "row: it cannot solve it; take another"
                    + (", or less noise" if self.noise else "")
                )
            yield episode


def demonstrations(
    name: str, count: int, seeds: Iterator[int], *, pixels: int = 0, noise: float = 0.0
) -> Demonstrations:
    """Return the demonstrations of a world by its name; see `Demonstrations`."""
    return Demonstrations(world(name, pixels=pixels), count, seeds, noise=noise)


def seeds(seed: int, split: int, task: int) -> Iterator[int]:
    """Yield seeds of episodes, without end and none twice, from 2**22 to 2**31.

    Those of the splits 0 .. 2 are disjoint: the remainder by 3 is the split.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, task)))
    used: set[int] = set()
    while True:
        drawn = 3 * int(rng.integers(-(-FIRST_SEED // 3), 2**31 // 3)) + split
        if drawn not in used:
            used.add(drawn)
            yield drawn


def prepare(
    names: Sequence[str],
    directory: Path,
    *,
    episodes: int = 1000,
    validation: int = 100,
    test: int = 100,
    pixels: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> str:
    """Record demonstrations of one or more tasks of a world, and return a summary.

    Args:
      names: such as babyai:GoToLocal, all of one world, as the user typed them: what
        they name is imported. Tasks take turns in each split, so that any part of it
        has about as many episodes of each.
      directory: of the data set. If it exists it is left unchanged.
      episodes, validation, test: the number of successes of each task and split.
      pixels: the size of images; None records none.
      noise: see `demonstrate`.
      seed: decides what is recorded.

    Raises InputError for names that do not go together, numbers out of range, an expert
    that does not succeed, and an existing data set of other settings.
    """
    counts = dict(zip(recording.SPLITS, (episodes, validation, test), strict=True))
    pixels = pixels or 0
    _check(names, counts, pixels, noise, seed)
    settings = {
        "env": list(names),
        "episodes": episodes,
        "validation": validation,
        "test": test,
        "pixels": pixels,
        "noise": noise,
        "seed": seed,
    }
    begun = time.perf_counter()
    exists = records.prepared(directory)
    if exists:
        found = recording.describe(directory.name, directory.parent).get("settings")
        records.check_same(directory, found, settings)
    else:
        _record(directory, names, counts, settings)
    seconds = time.perf_counter() - begun
    described = recording.describe(directory.name, directory.parent)
    failed = sum(described["failed"].values())
    played = sum(counts.values()) * len(names) + failed
    return (
        f"{directory} {'is there already' if exists else 'written'}: "
        f"{described['counts']['episodes']:,} episodes, "
        f"{described['counts']['steps']:,} steps for training, the longest of "
        f"{described['longest']}; the expert failed in {failed} of {played:,}"
        + ("" if exists else f"; {played / seconds:,.1f} episodes/s, {seconds:.1f} s")
    )


def _record(
    directory: Path,
    names: Sequence[str],
    counts: dict[str, int],
    settings: dict[str, Any],
) -> None:
    rooms = [world(name, pixels=settings["pixels"], typed=True) for name in names]
    room = rooms[0]
    if room.box is None and settings["noise"]:
        raise InputError(f"{room.name} has numbered actions; leave out the noise")
    failed: dict[str, int] = {}
    recording.write(
        directory,
        {
            split: _Turns(
                split,
                [
                    Demonstrations(
                        room,
                        count,
                        seeds(settings["seed"], number, task),
                        task,
                        settings["noise"],
                    )
                    for task, room in enumerate(rooms)
                ],
                failed,
            )
            for number, (split, count) in enumerate(counts.items())
        },
        world=room.kind,
        tasks=names,
        settings=settings,
        versions=room.versions,
        observations=room.shapes,
        action=recording.action_of(room),
        source=f"recorded with python -m agents.prepare --env {' '.join(names)}",
        failed=failed,
    )


@dataclass(frozen=True)
class _Turns:
    """Demonstrations of several tasks, which take turns."""

    split: str
    tasks: list[Demonstrations]
    failed: dict[str, int]

    def __len__(self) -> int:
        return sum(map(len, self.tasks))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for turn in zip(*self.tasks, strict=True):
            yield from turn
        self.failed[self.split] = sum(task.failed for task in self.tasks)


def _check(
    names: Sequence[str],
    counts: dict[str, int],
    pixels: int,
    noise: float,
    seed: int,
) -> None:
    """Raise InputError for what cannot be recorded."""
    kind_of(names, "record")
    for what, number, least in (
        *((f"number of episodes for {split}", n, 1) for split, n in counts.items()),
        ("size of images", pixels, 0),
        ("noise", noise, 0),
        ("seed", seed, 0),
    ):
        if not least <= number < np.inf:
            raise InputError(f"the {what} is {number}; give {least} or more")
