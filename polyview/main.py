"""Train what a config describes: flags -> config -> `train.run(config, workdir)`."""

from pathlib import Path

from polyview import command, errors
from polyview import config as configs
from polyview import workdir as workdirs
from polyview.errors import InputError


def main() -> None:
    """Read the command line and train; see `--help`."""
    parser = command.Parser(
        prog="python -m polyview.main",
        description="Train what a config describes; the same command again resumes it.",
        epilog="Any key of the config: --config.key=value, --config.group.key=value. "
        "Status: 0 finished, 2 bad input, 3 not finite, 75 saved after SIGTERM.",
    )
    parser.add_argument("--config", metavar="FILE.py[:key=value,...]")
    parser.add_argument("--workdir", metavar="DIR")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--replay", action="store_true", help="take the dumped step of DIR once more"
    )
    instead.add_argument(
        "--list",
        nargs="?",
        const="configs",
        metavar="FOLDER",
        help="print the configs of a folder (configs), each with its first line",
    )
    instead.add_argument(
        "--print-config", action="store_true", help="print the config as JSON"
    )
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="build all, compile a step, print sizes and memory; write nothing",
    )
    command.add_trust(parser)
    command.add_distributed(parser)
    flags, rest = parser.parse_known_args()
    if flags.list:
        print("\n".join(configs.listed(Path(flags.list))))
        return
    overrides = configs.overrides(rest, known=vars(flags))
    if flags.replay and (flags.config is not None or overrides):
        raise InputError("--replay reads the config of --workdir: leave out --config")
    if flags.trust and not flags.replay:
        raise InputError("--trust is of --replay; your own --config is trusted")
    if not flags.replay:
        if flags.config is None:
            raise InputError("give --config FILE.py (or --replay); --list names some")
        config = configs.load(flags.config, overrides)
        configs.check(config)
        if flags.print_config:
            print(configs.to_json(config))
            return
    if flags.workdir is None and not flags.dry_run:
        raise InputError("give --workdir DIR")

    if not (flags.replay or flags.dry_run):
        workdirs.check(Path(flags.workdir), config)
        donor = config.get("init_from")
        if donor is not None and not workdirs.has_checkpoint(Path(flags.workdir)):
            workdirs.check_run(Path(donor))
    command.start(flags)
    from polyview import train  # and JAX: after the mistakes that need none of it

    if flags.replay:
        train.replay(flags.workdir, tuple(flags.trust))
    elif flags.dry_run:
        from polyview.dry_run import dry_run

        dry_run(config)
    else:
        train.run(config, flags.workdir)


if __name__ == "__main__":
    errors.run(main)
