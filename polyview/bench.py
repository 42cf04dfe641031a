"""Measure the cost of a config on this machine: rate, MFU, input wait, memory.

    python -m polyview.bench --config configs/x.py [--steps 30] [--output bench.json]

`polyview.training.cost` defines the measures.
"""

import json
import os
from pathlib import Path

from polyview import cli, errors, files
from polyview.config.file import load_config
from polyview.config.overrides import parse_flags
from polyview.config.schema import check_config
from polyview.errors import InputError
from polyview.terminal import say


def main() -> None:
    """Read the command line, measure, print the table and write the JSON file."""
    parser = cli.Parser(
        prog="python -m polyview.bench",
        description=cli.first_line(__doc__),
        epilog="Override any config key: --config.key=value, --config.group.key=value.",
    )
    parser.add_argument("--config", metavar="FILE.py[:key=value,...]", required=True)
    parser.add_argument("--steps", type=int, default=30, help="steps to measure")
    parser.add_argument(
        "--output", metavar="FILE.json", type=Path, default=Path("bench.json")
    )
    cli.add_distributed(parser)
    flags, rest = parser.parse_known_args()
    # Compile anew: the seconds of that are part of the record.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
    with cli.starting(flags):
        config = load_config(flags.config, parse_flags(rest, known=vars(flags)))
        check_config(config)
        if flags.steps < 1:
            raise InputError(f"--steps {flags.steps}: it must be 1 or more")
        cli.check_output(flags.output)
    # JAX is imported late, so that usage errors do not wait for it.
    from polyview import hosts
    from polyview.training import cost

    record = cost.measure(config, flags.steps)
    if hosts.is_first_process():
        say(cost.table(record))
        text = json.dumps(record, indent=1) + "\n"
        files.write_whole(flags.output, text.encode())
        say(f"{flags.output} written")


if __name__ == "__main__":
    errors.run(main)
