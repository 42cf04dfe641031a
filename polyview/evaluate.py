"""Evaluate checkpoints of runs -> `RUN/eval/<step>-<name>.json`, with figures.

    python -m polyview.evaluate --run runs/a [--references | --watch]
    python -m polyview.evaluate --run runs/a --evaluation configs/evaluations/frozen.py

Without --evaluation the run's own evaluations are used. Their keys may be overridden,
as in --config.evaluations.frozen.knn.k=5; the result records it.
"""

from pathlib import Path

from polyview import cli, errors, files
from polyview.config.overrides import parse_flags
from polyview.errors import InputError, fits_together
from polyview.runs.workdir import check_run


def main() -> None:
    """Read the command line and evaluate; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.evaluate", description=cli.first_line(__doc__)
    )
    add = parser.add_argument
    add("--run", metavar="DIR", required=True, nargs="+", type=Path)
    cli.add_checkpoint(parser)
    add(
        "--evaluation",
        metavar="FILE.py[:key=value,...]",
        help="use the evaluations of this file instead of the run's own",
    )
    add(
        "--watch",
        action="store_true",
        help="evaluate each new checkpoint without a result, up to the last",
    )
    add("--pause", type=float, default=10, help="polling interval for --watch (s)")
    add("--on", metavar="NAME", help="use another prepared data set with labels")
    add(
        "--references",
        action="store_true",
        help="also evaluate raw pixels and the untrained encoder, in the same way",
    )
    cli.add_distributed(parser)
    flags, rest = parser.parse_known_args()
    overrides = parse_flags(rest, known=vars(flags))
    several = len(flags.run) > 1 or flags.step is not None or flags.references
    with cli.starting(flags):
        if flags.watch and several:
            raise InputError("--watch takes one run, without --step and --references")
        if not 0 < flags.pause < 1e6:
            raise InputError(
                f"--pause is {flags.pause}; give a number of seconds above 0"
            )
        for run in flags.run:
            if not flags.watch:
                check_run(run, {} if flags.evaluation else overrides)
            files.check_folder(run / "eval")
    # JAX is imported late, so that usage errors do not wait for it.
    from polyview.runs.evaluating import Asked, evaluate, watch

    asked = Asked(
        file=flags.evaluation,
        references=flags.references,
        on=flags.on,
        overrides=overrides,
        trust=tuple(flags.trust),
        weights=flags.weights,
    )
    for run in flags.run:
        with fits_together(f"{run} and the requested evaluations"):
            if flags.watch:
                watch(run, asked, pause=flags.pause)
            else:
                evaluate(run, flags.step, asked)


if __name__ == "__main__":
    errors.run(main)
