"""Record play of an Atari game, or import the files of the DQN Replay data set.

    python -m sgi.prepare --game pong
    python -m sgi.prepare --game pong --name pong_m --agent runs/b@20000 runs/b
    python -m sgi.prepare --game pong --name pong_m --import FOLDER \\
        --checkpoints 1,25,50

Play is uniformly random, or that of agents which `sgi.finetune` trained, each for an
equal share of the steps: of early, middle and late checkpoints, say. All give one
format (see `sgi.recording`). A recording that is there already is checked and left
alone; an interrupted one leaves no trace under its name.
"""

import argparse
import itertools
import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from polyview import errors
from polyview.cli import Parser
from polyview.data.prepare import records
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError
from sgi import dqn_replay, recording
from sgi.atari import FRAME_SKIP, NOOPS, SIZE, Game
from sgi.playing import EpsilonGreedy, Policy, Uniform, play

PREPROCESSING = {
    "frame_skip": FRAME_SKIP,
    "maximum_of_frames": 2,
    "colour": "grey",
    "resize": "cv2.INTER_AREA",
    "size": [SIZE, SIZE],
}


def main(arguments: list[str] | None = None) -> None:
    """Prepare the recording that the command line describes."""
    options = _parse(arguments)
    game = Game(options.game, sticky=options.sticky, seed=options.seed)
    if options.folders is None:
        name, prepare, asked = _record(options, game)
    else:
        name, prepare, asked = _import(options, game)
    name = options.name or name
    directory = options.data_dir / name
    there = records.prepared(directory)
    if there:
        _check_same(directory, name, asked, options.data_dir)
    else:
        prepare(directory)
    counts = recording.describe(name, options.data_dir)["counts"]
    print(
        f"{directory} {'is there already' if there else 'written'}: "
        f"{counts['steps']:,} steps, {counts['episodes']:,} episodes"
        + (f", mean return {counts['mean_return']:.1f}" if counts["finished"] else "")
    )
    if options.export is not None:
        dqn_replay.export(
            recording.read(name, data_dir=options.data_dir), options.export
        )
        print(f"{options.export} written: checkpoint 1 in the layout of DQN Replay")


def _record(options: argparse.Namespace, game: Game):
    asked = {
        "game": game.name,
        "policy": "agent" if options.agent else "random",
        "steps": options.steps,
        "sticky": options.sticky,
        "noops": options.noops,
        "seed": options.seed,
    }
    policies = _policies(options, game)
    if options.agent:
        asked["agents"] = list(policies)
        asked |= {"agent_seed": options.agent_seed, "epsilon": options.epsilon}

    def prepare(directory: Path) -> None:
        rng = np.random.default_rng(options.seed)
        ends = np.linspace(0, options.steps, len(policies) + 1).astype(int)
        steps = itertools.chain.from_iterable(
            play(game, policy, int(count), rng, options.noops)
            for policy, count in zip(policies.values(), np.diff(ends), strict=True)
        )
        source = f"recorded with ale-py {metadata.version('ale-py')}"
        _write(directory, steps, options.steps, asked, game, source)

    return f"{game.name}_{asked['policy']}", prepare, asked


def _policies(options: argparse.Namespace, game: Game) -> dict[str, Policy]:
    """Who plays, in turn; agents by run and step, also where that is the newest."""
    count = len(game.actions)
    if not options.agent:
        return {"random": Uniform(count)}
    from sgi.load import greedy, load  # play at random needs no JAX

    def policy(name: str) -> tuple[str, Policy]:
        run, at, step = name.rpartition("@") if "@" in name else (name, "", "")
        if at and not step.isdecimal():
            raise InputError(f"--agent {name}: write RUN or RUN@STEP")
        model = load(run, seed=options.agent_seed, at=int(step) if at else None)
        if model.config.get("game") != game.name:
            raise InputError(f"--agent {run} does not play {game.name}")
        mixed = EpsilonGreedy(greedy(model), options.epsilon, count)
        return f"{run}@{model.step}", mixed

    policies = dict(map(policy, options.agent))
    if len(policies) < len(options.agent):
        raise InputError("--agent names a checkpoint twice; each plays once")
    return policies


def _import(options: argparse.Namespace, game: Game):
    found = [
        files
        for folder in options.folders
        for files in dqn_replay.find(folder, options.checkpoints)
    ]
    top = os.path.commonpath([folder.absolute() for folder in options.folders])
    names = [os.path.relpath(path, top) for files in found for path in files.values()]
    # Dopamine's defaults, with which the data set was made.
    asked = {"game": game.name, "policy": "DQN", "sticky": 0.25, "files": names}

    def prepare(directory: Path) -> None:
        parts = [dqn_replay.Checkpoint(files, len(game.actions)) for files in found]
        steps, count = itertools.chain(*parts), sum(map(len, parts))
        _write(directory, steps, count, asked, game, dqn_replay.SOURCE)

    return f"{game.name}_dqn", prepare, asked


def _write(
    directory: Path,
    steps: Iterable[recording.Step],
    count: int,
    asked: dict[str, Any],
    game: Game,
    source: str,
) -> None:
    recording.write(
        directory,
        steps,
        count,
        source=source,
        licence="the screens are the game's",
        provenance={
            **asked,
            "actions": game.actions,
            "preprocessing": PREPROCESSING,
        },
    )


def _check_same(directory: Path, name: str, asked: dict, data_dir: Path) -> None:
    """Refuse to take a recording for another that was asked for."""
    there = recording.describe(name, data_dir)
    for key, value in asked.items():
        if there.get(key) != value:
            raise InputError(
                f"{directory} was prepared with {key} {there.get(key)}, not {value}; "
                "give another --name, or remove it"
            )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sgi.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--game", required=True, help="such as pong, breakout, ms_pacman")
    add("--steps", type=int, help="of four frames (default: 100,000)")
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--agent",
        nargs="+",
        metavar="RUN[@STEP]",
        help="runs of sgi.finetune that play in turn (default: play is random)",
    )
    who.add_argument(
        "--import",
        dest="folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders of DQN Replay files, as of several runs",
    )
    add("--agent_seed", type=int, help="which of a run's (default: 0)")
    add(
        "--epsilon",
        type=float,
        help="how often an agent acts at random instead (default: 0.1)",
    )
    add("--sticky", type=float, help="probability (default: 0.25)")
    add("--noops", type=int, help="at a start, at most (default: 30)")
    add("--seed", type=int, help="of the policy and the game (default: 0)")
    add("--checkpoints", type=_numbers, help="import only these of a folder: 1,25,50")
    add(
        "--export",
        type=Path,
        metavar="DIR",
        help="a new folder: also write DQN Replay files",
    )
    add(
        "--name", help="of the recording (default: GAME_random, GAME_agent or GAME_dqn)"
    )
    add(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="holds the data sets (default: $POLYVIEW_DATA, else ./data)",
    )
    options = parser.parse_args(arguments)
    _complete(options)
    if options.steps < 1:
        raise InputError(f"--steps is {options.steps}; give 1 or more")
    if not 0 <= options.sticky < 1:
        raise InputError(f"--sticky is {options.sticky}, not a probability below 1")
    if not 0 <= options.epsilon <= 1:
        raise InputError(f"--epsilon is {options.epsilon}, not a probability")
    if not 0 <= options.noops <= NOOPS:
        raise InputError(f"--noops is {options.noops}; give 0 to {NOOPS}")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; give 0 or more")
    if options.name and Path(options.name).name != options.name:
        raise InputError(f"--name {options.name} is a path; give --data_dir beside it")
    return options


def _complete(options: argparse.Namespace) -> None:
    """Refuse options that would do nothing, and give the others their defaults."""
    of_play = {"steps": 100_000, "sticky": 0.25, "noops": NOOPS, "seed": 0}
    of_agents = {"agent_seed": 0, "epsilon": 0.1}
    idle = {"--agent": of_agents} if not options.agent else {}
    if options.folders is None:
        idle["--import"] = {"checkpoints": None}
    else:
        idle["play, not --import"] = of_play
    for use, names in idle.items():
        for name in names:
            if getattr(options, name) is not None:
                raise InputError(f"--{name} is of {use}; leave it out")
    for name, value in (of_play | of_agents).items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not as 1,25,50") from None


if __name__ == "__main__":
    errors.run(main)
