"""Record play of an Atari game, or import files of the DQN Replay data set.

    python -m sgi.prepare --help

shows examples. All ways give one format; see `sgi.recording`.
"""

import argparse
import itertools
import os
from collections.abc import Callable, Iterable
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

DESCRIPTION = """
Record play of an Atari game, or import files of the DQN Replay data set.

    python -m sgi.prepare --game pong
    python -m sgi.prepare --game pong --name pong_m --agent runs/b@20000 runs/b
    python -m sgi.prepare --game pong --name pong_m --import FOLDER \\
        --checkpoints 1,25,50

Play is uniformly random, or by agents trained with `sgi.finetune`, each for an equal
share of the steps: early, middle and late checkpoints, say. All give one format. An
existing recording is checked and left unchanged; an interrupted one leaves nothing
under its name.
"""

# The recording's default name, the function that writes it to a folder, its settings.
Plan = tuple[str, Callable[[Path], None], dict[str, Any]]

PREPROCESSING = {
    "frame_skip": FRAME_SKIP,
    "maximum_of_frames": 2,
    "colour": "grey",
    "resize": "cv2.INTER_AREA",
    "size": [SIZE, SIZE],
}


def main(arguments: list[str] | None = None) -> None:
    """Prepare the recording that the command line asks for; see `--help`."""
    options = _parse(arguments)
    game = Game(options.game, sticky=options.sticky, seed=options.seed)
    if options.folders is None:
        name, prepare, settings = _record(options, game)
    else:
        name, prepare, settings = _import(options, game)
    name = options.name or name
    directory = options.data_dir / name
    exists = records.prepared(directory)
    if exists:
        found = recording.describe(name, options.data_dir)
        records.check_same(directory, found, settings)
    else:
        prepare(directory)
    counts = recording.describe(name, options.data_dir)["counts"]
    print(
        f"{directory} {'already exists' if exists else 'written'}: "
        f"{counts['steps']:,} steps, {counts['episodes']:,} episodes"
        + (f", mean return {counts['mean_return']:.1f}" if counts["finished"] else "")
    )
    if options.export is not None:
        dqn_replay.export(
            recording.read(name, data_dir=options.data_dir), options.export
        )
        print(f"{options.export} written: checkpoint 1 in the layout of DQN Replay")


def _record(options: argparse.Namespace, game: Game) -> Plan:
    settings = {
        "game": game.name,
        "policy": "agent" if options.agent else "random",
        "steps": options.steps,
        "sticky": options.sticky,
        "noops": options.noops,
        "seed": options.seed,
    }
    policies = _policies(options, game)
    if options.agent:
        settings["agents"] = list(policies)
        settings |= {"agent_seed": options.agent_seed, "epsilon": options.epsilon}

    def prepare(directory: Path) -> None:
        rng = np.random.default_rng(options.seed)
        ends = np.linspace(0, options.steps, len(policies) + 1).astype(int)
        steps = itertools.chain.from_iterable(
            play(game, policy, int(count), rng, options.noops)
            for policy, count in zip(policies.values(), np.diff(ends), strict=True)
        )
        source = f"recorded with ale-py {metadata.version('ale-py')}"
        _write(directory, steps, options.steps, settings, game, source)

    return f"{game.name}_{settings['policy']}", prepare, settings


def _policies(options: argparse.Namespace, game: Game) -> dict[str, Policy]:
    """Return the policies in order of play; agents are named RUN@STEP throughout."""
    count = len(game.actions)
    if not options.agent:
        return {"random": Uniform(count)}
    from sgi.load import greedy, load  # imports JAX, which random play does not need

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
        raise InputError("--agent names a checkpoint twice; name each once")
    return policies


def _import(options: argparse.Namespace, game: Game) -> Plan:
    sources = [
        files
        for folder in options.folders
        for files in dqn_replay.find(folder, options.checkpoints)
    ]
    paths = [os.path.realpath(path) for files in sources for path in files.values()]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise InputError(f"--import takes {twice[0]} twice; name each file once")
    top = os.path.commonpath([folder.absolute() for folder in options.folders])
    names = [os.path.relpath(path, top) for files in sources for path in files.values()]
    # The data set was recorded with Dopamine's defaults.
    settings = {"game": game.name, "policy": "DQN", "sticky": 0.25, "files": names}

    def prepare(directory: Path) -> None:
        parts = [dqn_replay.Checkpoint(files, len(game.actions)) for files in sources]
        steps, count = itertools.chain(*parts), sum(map(len, parts))
        _write(directory, steps, count, settings, game, dqn_replay.SOURCE)

    return f"{game.name}_dqn", prepare, settings


def _write(
    directory: Path,
    steps: Iterable[recording.Step],
    count: int,
    settings: dict[str, Any],
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
            **settings,
            "actions": game.actions,
            "preprocessing": PREPROCESSING,
        },
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sgi.prepare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--game", required=True, help="such as pong, MsPacman or ALE/Pong-v5")
    add("--steps", type=int, help="steps of four frames (default: 100,000)")
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--agent",
        nargs="+",
        metavar="RUN[@STEP]",
        help="runs of sgi.finetune that play in turn (default: random play)",
    )
    who.add_argument(
        "--import",
        dest="folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders of DQN Replay files, such as one per run",
    )
    add("--agent_seed", type=int, help="which seed of a run plays (default: 0)")
    add(
        "--epsilon",
        type=float,
        help="probability that an agent acts at random (default: 0.1)",
    )
    add(
        "--sticky",
        type=float,
        help="probability that the last action repeats (default: 0.25)",
    )
    add("--noops", type=int, help="most no-op frames at a game's start (default: 30)")
    add("--seed", type=int, help="seed of the policy and the game (default: 0)")
    add(
        "--checkpoints",
        type=_numbers,
        help="import only these checkpoints of each folder, such as 1,25,50",
    )
    add(
        "--export",
        type=Path,
        metavar="DIR",
        help="also write DQN Replay files to this new folder",
    )
    add(
        "--name",
        help="name of the recording (default: GAME_random, GAME_agent or GAME_dqn)",
    )
    add(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="folder of the data sets (default: $POLYVIEW_DATA, else ./data)",
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
        raise InputError(
            f"--name {options.name} is a path; give its folder as --data_dir"
        )
    return options


def _complete(options: argparse.Namespace) -> None:
    """Reject options that have no effect here, and fill in defaults."""
    of_play = {"steps": 100_000, "sticky": 0.25, "noops": NOOPS, "seed": 0}
    of_agents = {"agent_seed": 0, "epsilon": 0.1}
    idle: dict[str, Iterable[str]] = {}
    if not options.agent:
        idle["with --agent"] = of_agents
    if options.folders is None:
        idle["with --import"] = ["checkpoints"]
    else:
        idle["without --import"] = of_play
    for use, names in idle.items():
        for name in names:
            if getattr(options, name) is not None:
                raise InputError(f"--{name} only applies {use}; leave it out")
    for name, value in (of_play | of_agents).items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a list of numbers such as 1,25,50"
        ) from None


if __name__ == "__main__":
    errors.run(main)
