"""Fine-tune an agent in its game, several seeds side by side in one process.

    python -m sgi.finetune --config configs/sgi_finetune.py:game=pong --workdir DIR \\
        --config.init_from=runs/a
"""

from pathlib import Path

from polyview import cli, errors
from polyview.config.file import load_config
from polyview.config.overrides import parse_flags
from polyview.errors import InputError


def main() -> None:
    """Read the command line and fine-tune; see `--help`."""
    parser = cli.Parser(
        prog="python -m sgi.finetune",
        description="Fine-tune agents in their game, from a pre-trained run or from "
        "scratch; the same command again resumes it.",
        epilog="Any key of the config: --config.key=value, --config.group.key=value, "
        "such as --config.init_from=RUN, --config.seeds=10, --config.steps=100000. "
        "Status: 0 finished, 2 bad input, 3 not finite, 75 saved after SIGTERM.",
    )
    parser.add_argument("--config", metavar="FILE.py[:key=value,...]")
    parser.add_argument("--workdir", metavar="DIR", required=True, type=Path)
    parser.add_argument(
        "--replay", action="store_true", help="take the dumped step of DIR once more"
    )
    cli.add_trust(parser)
    flags, rest = parser.parse_known_args()
    overrides = parse_flags(rest, known=vars(flags))
    if flags.replay == (flags.config is not None):
        raise InputError("give --config FILE.py, or --replay without it")
    if not flags.replay:
        config = load_config(flags.config, overrides)

    # JAX is imported here, after the mistakes that need none of it.
    from polyview.training.nonfinite import replay_run
    from polyview.training.train import train
    from sgi.learner import Player

    if flags.replay:
        replay_run(Player, flags.workdir, tuple(flags.trust))
    else:
        train(Player(config), flags.workdir)


if __name__ == "__main__":
    errors.run(main)
