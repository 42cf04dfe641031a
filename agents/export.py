"""Export the language model's body of a run, as PEFT or transformers read it.

    python -m agents.export --run runs/a --output adapter
    python -m agents.export --run runs/a --output merged --merge
    python -m agents.prepare llm --weights merged --name merged

Without --merge: the low-rank adapters, as `peft.PeftModel.from_pretrained(base, DIR)`
reads them. With it: the whole body, with the adapters folded into its kernels, in a
folder as the hub keeps it. Bridges and heads of a policy are no part of either.
"""

import argparse
from pathlib import Path

from polyview import cli, errors
from polyview.errors import InputError, fits_together


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and export; see `--help`."""
    flags = _parse(arguments)
    if flags.output.exists():
        raise InputError(f"{flags.output} already exists; remove it, or name another")
    cli.check_output(flags.output)
    # JAX is imported late, so that usage errors do not wait for it.
    from agents.llm.peft import export

    cli.check_jax()
    with fits_together(f"{flags.run} and --output {flags.output}"):
        line = export(
            flags.run,
            flags.output,
            merge=flags.merge,
            at=flags.at,
            step=flags.step,
            trust=tuple(flags.trust),
            weights=flags.weights,
        )
    print(line)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m agents.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", metavar="DIR", required=True, type=Path)
    cli.add_checkpoint(parser)
    add("--output", metavar="DIR", required=True, type=Path, help="a new folder")
    add("--merge", action="store_true", help="write the whole body, adapters folded in")
    add(
        "--at",
        metavar="PATH",
        help="of the body in the model, if it has several",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    errors.run(main)
