"""Train the run that a config describes."""

from pathlib import Path

from polyview import cli, errors, hosts
from polyview.config.file import list_configs, load_config
from polyview.config.overrides import parse_flags
from polyview.config.schema import check_config
from polyview.config.text import to_json
from polyview.errors import InputError
from polyview.runs.workdir import check_workdir


def main() -> None:
    """Read the command line and train; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.main",
        description="Train the run of a config; the same command resumes it.",
        epilog="Override a config key: --config.key=value, --config.group.key=value. "
        "Status: 0 finished, 2 bad input, 3 not finite, 75 saved after SIGTERM.",
    )
    parser.add_argument("--config", metavar="FILE.py[:key=value,...]")
    parser.add_argument("--workdir", metavar="DIR", type=Path)
    instead = parser.add_mutually_exclusive_group().add_argument
    instead("--replay", action="store_true", help="repeat the dumped step of DIR")
    instead(
        "--list",
        nargs="?",
        const="configs",
        metavar="FOLDER",
        help="list the configs of a folder (configs), with their first lines",
    )
    instead("--print-config", action="store_true", help="print the config as JSON")
    instead(
        "--dry-run",
        action="store_true",
        help="build all, compile a step, print sizes and memory; write nothing",
    )
    cli.add_trust(parser)
    cli.add_distributed(parser)
    flags, rest = parser.parse_known_args()
    if flags.list:
        print("\n".join(list_configs(Path(flags.list))))
        return
    overrides = parse_flags(rest, known=vars(flags))
    if flags.replay and (flags.config is not None or overrides):
        raise InputError("--replay reads the config of --workdir: leave out --config")
    if flags.trust and not flags.replay:
        raise InputError("--trust requires --replay: your own --config is trusted")
    if not (flags.replay or flags.config):
        raise InputError("give --config FILE.py (or --replay); --list shows some")
    if flags.print_config:
        check_config(config := load_config(flags.config, overrides))
        print(to_json(config))
        return
    with cli.starting(flags):
        if not flags.replay:
            check_config(config := load_config(flags.config, overrides))
        if not (flags.workdir or flags.dry_run):
            raise InputError("give --workdir DIR")
        if not (flags.replay or flags.dry_run):
            check_workdir(flags.workdir, config)
    # JAX is imported late, so that usage errors do not wait for it.
    from polyview.training.dry_run import dry_run
    from polyview.training.nonfinite import replay_run
    from polyview.training.train import train
    from polyview.training.trainer import Trainer

    if flags.replay:
        replay_run(Trainer, flags.workdir, tuple(flags.trust))
    elif flags.dry_run:
        dry_run(config)
    else:
        with hosts.together():
            trainer = Trainer(config)
        train(trainer, flags.workdir)


if __name__ == "__main__":
    errors.run(main)
