"""Make a run of another library's encoder, to be evaluated like any -> a run directory.

    python -m polyview.import_weights --weights resnet50.safetensors \\
        --config configs/polyview_imagenet.py:encoder=resnet50 --workdir runs/theirs

Reads ResNets and ViTs as torchvision and timm name their arrays, and what
`polyview.export` wrote; a classifier in the file is left out. The config says which
encoder it is and how images are normalised and evaluated. The run has one checkpoint,
of step 0; its projector is untrained. Only safetensors are read: a pickle can run code.
"""

from pathlib import Path

from polyview import cli, errors
from polyview.config.file import load_config
from polyview.config.overrides import parse_flags
from polyview.config.schema import check_config
from polyview.errors import InputError
from polyview.runs.workdir import check_unused


def main() -> None:
    """Read the command line and import; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.import_weights",
        description=__doc__.splitlines()[0],
        epilog="Any key of the config: --config.key=value, --config.group.key=value.",
    )
    parser.add_argument(
        "--weights", metavar="FILE.safetensors", required=True, type=Path
    )
    parser.add_argument("--config", metavar="FILE.py[:key=value,...]", required=True)
    parser.add_argument("--workdir", metavar="DIR", required=True, type=Path)
    parser.add_argument("--modality", default="image", help="the encoder it is (image)")
    flags, rest = parser.parse_known_args()
    overrides = parse_flags(rest, known=vars(flags))
    if not flags.weights.is_file():
        raise InputError(f"--weights {flags.weights} is not a file")
    config = load_config(flags.config, overrides)
    check_config(config)
    check_unused(flags.workdir)
    # JAX is imported here, after the mistakes that need none of it.
    from polyview.runs.importing import import_weights

    print(import_weights(flags.weights, config, flags.workdir, flags.modality))


if __name__ == "__main__":
    errors.run(main)
