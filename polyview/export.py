"""Export an encoder for PyTorch libraries, checked against them -> safetensors.

    python -m polyview.export --run runs/a --format timm --output a.safetensors

Formats: safetensors (our names and axes), torchvision, timm (state dictionaries of
their models, without a classifier). Before anything is written, the file's content is
loaded again, and the features of some images must agree to 1e-4 of the largest.
"""

from pathlib import Path

from polyview import cli, errors
from polyview.errors import fits_together
from polyview.files import check_new

FORMATS = ("safetensors", "torchvision", "timm")


def main() -> None:
    """Read the command line and export; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.export", description=cli.first_line(__doc__)
    )
    parser.add_argument("--run", metavar="DIR", required=True, type=Path)
    cli.add_checkpoint(parser)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument(
        "--output", metavar="FILE.safetensors", required=True, type=Path
    )
    parser.add_argument(
        "--input",
        metavar="FOLDER|NAME[:SPLIT]|config.KEY",
        help="rows to compare features on (default: the evaluation's test split)",
    )
    parser.add_argument("--modality", help="if the model has several")
    flags = parser.parse_args()
    check_new(flags.output, (".safetensors",))
    cli.check_output(flags.output)
    # JAX is imported late, so that usage errors do not wait for it.
    from polyview.runs.exporting import export

    cli.check_jax()
    with fits_together(f"{flags.run} and --format {flags.format}"):
        line = export(
            flags.run,
            flags.format,
            flags.output,
            step=flags.step,
            data=flags.input,
            modality=flags.modality,
            trust=tuple(flags.trust),
            weights=flags.weights,
        )
    print(line)


if __name__ == "__main__":
    errors.run(main)
