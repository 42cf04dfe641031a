"""Train a policy that acts, by reinforcement learning.

python -m agents.train --config configs/agents_rearrange.py --workdir runs/llarp
"""

from pathlib import Path

from polyview import cli, errors
from polyview.config.file import load_config
from polyview.config.overrides import parse_flags
from polyview.errors import InputError
from polyview.runs.workdir import check_workdir


def main() -> None:
    """Parse the command line and train; see `--help`."""
    parser = cli.Parser(
        prog="python -m agents.train",
        description="Train a policy in its environments. To resume, run the same "
        "command again.",
        epilog="Set any config key by --config.key=value or --config.group.key=value. "
        "Exit status: 0 finished, 2 bad input, 3 not finite, 75 saved after SIGTERM.",
    )
    parser.add_argument("--config", metavar="FILE.py[:key=value,...]")
    parser.add_argument("--workdir", metavar="DIR", required=True, type=Path)
    parser.add_argument(
        "--replay", action="store_true", help="replay the step that was dumped in DIR"
    )
    cli.add_trust(parser)
    cli.add_distributed(parser)
    flags, rest = parser.parse_known_args()
    overrides = parse_flags(rest, known=vars(flags))
    if flags.replay == (flags.config is not None):
        raise InputError("give either --config FILE.py or --replay")
    with cli.starting(flags):
        if not flags.replay:
            config = load_config(flags.config, overrides)
            check_workdir(flags.workdir, config)
    # These import JAX, so a wrong command line is reported before.
    from polyview import hosts
    from polyview.rl.learner import PolicyLearner
    from polyview.training.nonfinite import replay_run
    from polyview.training.train import train

    if flags.replay:
        replay_run(PolicyLearner, flags.workdir, tuple(flags.trust))
        return
    with hosts.together():
        learner = PolicyLearner(config)
    train(learner, flags.workdir)


if __name__ == "__main__":
    errors.run(main)
