"""Embed a data set or a folder of images, one row each, in order -> npz or parquet.

    python -m polyview.embed --run runs/a --input fashion_mnist:test --output x.npz
    python -m polyview.embed --run runs/a --input photos/ --output x.parquet
    python -m polyview.embed --run runs/a --input config.source --output x.npz

Images get the views of the run's evaluation: whole and central. `id` is the file's path
below the folder or the row number, `embedding` is float32[n, d], `TARGET` (as `label`)
is there for each target of the data but masks, `TARGET_name` if its classes have names
(several are joined by `|`, none is ""), and `about` gives the run, step, views and
names. Unreadable files have no row. With several modalities, `embedding_NAME` is NaN
where `present_NAME` is False. After an interruption the same command resumes.
"""

from pathlib import Path

from polyview import cli, errors, hosts
from polyview.errors import InputError, fits_together
from polyview.files import check_new
from polyview.runs.workdir import check_run


def main() -> None:
    """Read the command line and embed; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.embed", description=cli.first_line(__doc__)
    )
    parser.add_argument("--run", metavar="DIR", required=True, type=Path)
    cli.add_checkpoint(parser)
    parser.add_argument(
        "--input",
        metavar="FOLDER|NAME[:SPLIT]|config.KEY",
        required=True,
        help="folder of images, prepared data set (default split: test), or the source "
        "at a key of the run's config, as config.evaluations.frozen.test",
    )
    parser.add_argument(
        "--output", metavar="FILE.npz|FILE.parquet", required=True, type=Path
    )
    parser.add_argument(
        "--features",
        choices=("h", "z"),
        default="h",
        help="the representation (h), or the projection that the loss compares (z)",
    )
    parser.add_argument(
        "--modality",
        metavar="NAME",
        nargs="+",
        help="one, or several for a column each",
    )
    parser.add_argument("--batch_size", type=int, default=256, help="global batch size")
    cli.add_distributed(parser)
    flags = parser.parse_args()
    with cli.starting(flags):
        check_new(flags.output, (".npz", ".parquet"))
        if flags.batch_size < 1:
            raise InputError(f"--batch_size is {flags.batch_size}; give 1 or more")
        check_run(flags.run)
    # JAX is imported late, so that usage errors do not wait for it.
    from polyview.runs.embedding import embed

    with fits_together(f"{flags.run} and {flags.input}"):
        line = embed(
            flags.run,
            flags.input,
            flags.output,
            step=flags.step,
            features=flags.features,
            modality=flags.modality,
            batch_size=flags.batch_size,
            trust=tuple(flags.trust),
            weights=flags.weights,
        )
    if hosts.is_first_process():
        print(line)


if __name__ == "__main__":
    errors.run(main)
