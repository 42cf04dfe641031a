"""Record episodes of several policies in a maze, and the futures that are true of them.

    python -m dvf.prepare --help

shows examples. For the format see `dvf.recording`.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvf import players, recording
from dvf.players import GoalPlayer
from dvf.worlds import ACTION, BOX, STATE, WORLDS, World, at_rest, world
from polyview import errors
from polyview.cli import Parser
from polyview.data.prepare import records
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError, nearest

DESCRIPTION = f"""
Record episodes of several policies in a maze, and the futures that are true of them.

    python -m dvf.prepare --env point
    python -m dvf.prepare --env pointmaze_medium
    python -m dvf.prepare --env point --name mixed --players qualities --policies 5
    python -m dvf.prepare --env antmaze_medium --episodes 160 --starts 5 --rollouts 4 \\
        --horizon 100 --places 1

Worlds: {", ".join(WORLDS)}.
PointMaze and AntMaze need gymnasium-robotics: pip install '.[dvf]'. Ants are a hundred
times slower than points.

Players head for a goal each (goals), or all for one, with a growing share of random
actions from none to all (qualities). They share the episodes, which begin at rest
anywhere. From states that such play visits, roll-outs give the true futures of each
policy, and of each policy after four uniform first actions, at half the starts. Others,
at most four each, begin at rest at places all over the maze, for maps of values. The
seed alone decides what is recorded. Existing episodes are checked and left unchanged;
an interrupted recording leaves nothing under its name.
"""

PLAYERS = ("goals", "qualities")
_ACTIONS = 4  # first actions per start
_BODIES = 256  # that move at once; it decides which random numbers a body gets
_MOST_ROLLOUTS = 1000  # all of one start move at once
_SPLITS = (*recording.EPISODES, *recording.TRUTH, recording.MAP)
_PLACES = 2  # of a map, along the side of a cell
_MAP_ROLLOUTS = 4  # at most: a map shows many places
_OF_TRUTH = {"starts": 20, "rollouts": 16, "horizon": 150}


def main(arguments: list[str] | None = None) -> None:
    """Prepare the episodes that the command line asks for; see `--help`."""
    options = _parse(arguments)
    name = options.name or options.env
    directory = options.data_dir / name
    names = ("env", "episodes", "length", "players", "policies", "noise", "seed")
    settings = {name: getattr(options, name) for name in (*names, *_OF_TRUTH)}
    exists = records.prepared(directory)
    begun = time.perf_counter()
    steps = 0
    if exists:
        found = recording.describe(name, options.data_dir).get("settings")
        # Unless asked for, a map may be missing: earlier versions recorded none.
        asked = {} if options.places is None else {"places": options.places}
        records.check_same(directory, found, settings | asked)
    else:
        if options.places is None:
            options.places = 0 if options.no_truth else _PLACES
        recorded = settings | {"places": options.places}
        steps = _record(directory, options, recorded)
    seconds = time.perf_counter() - begun
    described = recording.describe(name, options.data_dir)
    counts, lost = described["counts"], described["lost"]
    print(
        f"{directory} {'already exists' if exists else 'written'}: "
        f"{counts['episodes']:,} episodes, {counts['states']:,} states, "
        f"{lost['share']:.1%} of pairs lost at discount {lost['discount']}"
        + ("" if exists else f"; {steps / seconds:,.0f} steps/s, {seconds:.1f} s")
    )


def _record(
    directory: Path, options: argparse.Namespace, settings: dict[str, Any]
) -> int:
    """Record and write all splits; return the number of steps that were made."""
    room = _Counted(world(options.env))
    acting = _players(options, room)
    splits: dict[str, recording.Examples] = {}
    for number, split in enumerate(_SPLITS):
        # A stream of its own, so that no split depends on the size of another.
        stream = np.random.SeedSequence(options.seed, spawn_key=(number,))
        if split in recording.EPISODES:
            count = options.episodes
            if split == "validation":
                count = -(-count // 8)
            splits[split] = _Episodes(room, acting, stream, count, options.length)
        elif split == recording.MAP:
            if options.places:
                places = room.rest(room.maze.places(options.places))
                shape = (min(options.rollouts, _MAP_ROLLOUTS), options.horizon)
                starts = places.astype(np.float32)
                splits[split] = _Futures(room, acting, stream, starts, shape)
        elif not options.no_truth:
            actions = _ACTIONS if split.startswith("actions") else 0
            count = -(-options.starts // 2) if actions else options.starts
            shape = (options.rollouts, options.horizon)
            visited = _Visited(room, acting, count, options.length)
            splits[split] = _Futures(room, acting, stream, visited, shape, actions)
    maze = room.maze
    recording.write(
        directory,
        splits,
        policies=[player.name for player in acting],
        source=f"recorded with python -m dvf.prepare --env {options.env}",
        provenance={
            "world": room.name,
            "settings": settings,
            "origin": room.origin,
            "maze": {"rows": maze.rows, "cell": maze.cell, "centre": [*maze.centre]},
            "players": [player.describe() for player in acting],
            "state": list(room.state),
            "rest": room.rest(np.zeros((1, 2)))[0].tolist(),
            "action": list(ACTION),
            "box": list(BOX),
            "first_actions": 0 if options.no_truth else _ACTIONS,
        },
    )
    return room.steps


def _players(options: argparse.Namespace, room: World) -> list[GoalPlayer]:
    if options.players == "goals":
        found = players.players(room.maze, options.policies, options.noise)
    else:
        goal = players.players(room.maze, 1)[0].goal
        shares = np.linspace(0, 1, options.policies).round(6).tolist()
        pairs = [(options.noise, share) for share in shares]
        found = players.qualities(room.maze, goal, pairs)
    if room.state == STATE:
        return found
    return [Walker(own.maze, own.goal, own.noise, own.random) for own in found]


class Walker(GoalPlayer):
    """A player that sees place and velocity, of states that have more numbers."""

    def actions(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return float64[n, 2], where to walk. states: float64[n, d]."""
        return super().actions(states[:, : len(STATE)], rng)


class _Counted:
    """A world that counts the steps of its bodies."""

    def __init__(self, inner: World):
        self.maze, self.name, self.origin = inner.maze, inner.name, inner.origin
        self.state, self.margin, self.rest = inner.state, inner.margin, inner.rest
        self.begin, self._step, self.steps = inner.begin, inner.step, 0

    def step(self, actions: np.ndarray) -> np.ndarray:
        self.steps += len(actions)
        return self._step(actions)


@dataclass(frozen=True)
class _Episodes:
    """Episodes that begin at rest, policies in turn."""

    world: World
    players: list[GoalPlayer]
    stream: np.random.SeedSequence
    count: int
    length: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(self.stream)
        for first in range(0, self.count, _BODIES):
            numbers = np.arange(first, min(first + _BODIES, self.count))
            policy = numbers % len(self.players)
            states, actions = players.play(
                self.world,
                self.players,
                policy,
                at_rest(self.world, rng, len(numbers)),
                self.length - 1,
                rng,
            )
            for row in range(len(numbers)):
                yield {
                    "states": states[row],
                    "policy": int(policy[row]),
                    "actions": actions[row],
                    "terminal": False,
                }


@dataclass(frozen=True)
class _Visited:
    """Starts that play visits. length: of the episodes that lead there."""

    world: World
    players: list[GoalPlayer]
    count: int
    length: int

    def __len__(self) -> int:
        return self.count

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Return float32[n, d]: the state at a uniform time of an episode each."""
        found = []
        for begin in range(0, self.count, _BODIES):
            count = min(_BODIES, self.count - begin)
            policy = rng.integers(len(self.players), size=count)
            states, _ = players.play(
                self.world,
                self.players,
                policy,
                at_rest(self.world, rng, count),
                self.length - 1,
                rng,
            )
            times = rng.integers(self.length, size=count)
            found.append(states[np.arange(count), times])
        return np.concatenate(found)


@dataclass(frozen=True)
class _Futures:
    """Roll-outs of every policy from starts: states, or those that play visits.

    rollouts: their number and their length. actions: uniform first actions per start, 0
    to let the policy choose it.
    """

    world: World
    players: list[GoalPlayer]
    stream: np.random.SeedSequence
    starts: np.ndarray | _Visited
    rollouts: tuple[int, int]
    actions: int = 0

    def __len__(self) -> int:
        return len(self.starts) * len(self.players) * max(self.actions, 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(self.stream)
        starts = self.starts
        states = starts.drawn(rng) if isinstance(starts, _Visited) else starts
        forced = rng.uniform(*BOX, (len(states), max(self.actions, 1), len(ACTION)))
        forced = forced.astype(np.float32)
        repeats, horizon = self.rollouts
        rows = max(_BODIES // repeats, 1)
        shape = (len(states), len(self.players), max(self.actions, 1))
        for begin in range(0, len(self), rows):
            here = np.arange(begin, min(begin + rows, len(self)))
            start, policy, action = np.unravel_index(here, shape)
            first = forced[start, action] if self.actions else None
            passed, _ = players.play(
                self.world,
                self.players,
                policy.repeat(repeats),
                states[start].repeat(repeats, 0),
                horizon,
                rng,
                None if first is None else first.repeat(repeats, 0),
            )
            futures = passed[:, 1:].reshape(len(here), repeats, horizon, -1)
            for row in range(len(here)):
                example = {
                    "state": states[start[row]],
                    "policy": int(policy[row]),
                    "start": int(start[row]),
                    "futures": futures[row],
                }
                yield example if first is None else {**example, "action": first[row]}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m dvf.prepare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--env", required=True, metavar="WORLD", help="the world; see above")
    add("--episodes", type=int, default=640, help="for training (640); and an eighth")
    add("--length", type=int, default=200, help="states of an episode (200)")
    add("--players", default="goals", help="goals or qualities (goals)")
    add("--policies", type=int, default=8, help="number of players (8)")
    add("--noise", type=float, default=1.0, help="deviation on actions (1.0)")
    add("--starts", type=int, help="start states of each split of futures (20)")
    add("--rollouts", type=int, help="roll-outs per start and policy (16)")
    add("--horizon", type=int, help="steps of a roll-out (150)")
    add("--places", type=int, help="of maps, along a cell's side (2; 0: no maps)")
    add("--no_truth", action="store_true", help="record no futures")
    add("--name", help="name of the data set (default: that of the world)")
    add("--seed", type=int, default=0, help="decides what is recorded (0)")
    add(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="folder of the data sets (default: $POLYVIEW_DATA, else ./data)",
    )
    options = parser.parse_args(arguments)
    _complete(options)
    return options


def _complete(options: argparse.Namespace) -> None:
    """Fill in defaults; raise InputError for what cannot be recorded."""
    for name, default in _OF_TRUTH.items():
        if options.no_truth and getattr(options, name) is not None:
            raise InputError(f"--{name} only applies without --no_truth; leave it out")
        if not options.no_truth and getattr(options, name) is None:
            setattr(options, name, default)
    if options.places is not None and options.places < 0:
        raise InputError(f"--places is {options.places}; give 0 or more")
    if options.no_truth and options.places:
        raise InputError("--places only applies without --no_truth; leave it out")
    if options.env not in WORLDS:
        raise InputError(
            f"--env {options.env} is no world{nearest(options.env, WORLDS)}"
        )
    if options.players not in PLAYERS:
        raise InputError(
            f"--players {options.players} is unknown{nearest(options.players, PLAYERS)}"
        )
    least = {"length": 2, "seed": 0}
    for name in ("episodes", "length", "policies", "seed", *_OF_TRUTH):
        number, low = getattr(options, name), least.get(name, 1)
        if number is not None and number < low:
            raise InputError(f"--{name} is {number}; give {low} or more")
    if options.rollouts is not None and options.rollouts > _MOST_ROLLOUTS:
        raise InputError(
            f"--rollouts is {options.rollouts}; give {_MOST_ROLLOUTS} or less"
        )
    if not 0 <= options.noise < np.inf:
        raise InputError(f"--noise is {options.noise}; give 0 or more")
    if options.name and Path(options.name).name != options.name:
        raise InputError(
            f"--name {options.name} is a path; give its folder as --data_dir"
        )


if __name__ == "__main__":
    errors.run(main)
