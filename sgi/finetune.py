"""Fine-tune agents in a game, several seeds side by side in one process.

    python -m sgi.finetune --config configs/sgi_finetune.py:game=pong --workdir DIR \\
        --config.init_from=runs/a
"""

from pathlib import Path

from polyview import cli, errors
from polyview.config.file import load_config
from polyview.config.overrides import parse_flags
from polyview.errors import InputError


def main() -> None:
    """Parse the command line and fine-tune; see `--help`."""
    parser = cli.Parser(
        prog="python -m sgi.finetune",
        description="Fine-tune agents in a game, from a pre-trained run or from "
        "scratch. To resume, run the same command again.",
        epilog="Set any config key by --config.key=value or --config.group.key=value, "
        "such as --config.init_from=RUN, --config.seeds=10, --config.steps=100000. "
        "Exit status: 0 finished, 2 bad input, 3 not finite, 75 saved after SIGTERM.",
    )
    parser.add_argument("--config", metavar="FILE.py[:key=value,...]")
    parser.add_argument("--workdir", metavar="DIR", required=True, type=Path)
    parser.add_argument(
        "--replay", action="store_true", help="replay the step that was dumped in DIR"
    )
    cli.add_trust(parser)
    flags, rest = parser.parse_known_args()
    overrides = parse_flags(rest, known=vars(flags))
    if flags.replay == (flags.config is not None):
        raise InputError("give either --config FILE.py or --replay")
    if not flags.replay:
        config = load_config(flags.config, overrides)

    # These import JAX, so a wrong command line is reported before.
    from polyview.training.nonfinite import replay_run
    from polyview.training.train import train
    from sgi.learner import Player

    cli.check_jax()
    if flags.replay:
        replay_run(Player, flags.workdir, tuple(flags.trust))
    else:
        train(Player(config), flags.workdir)


if __name__ == "__main__":
    errors.run(main)
