"""Turn another library's encoder into a run, for evaluation -> a run directory.

    python -m polyview.import_weights --weights resnet50.safetensors \\
        --config configs/polyview_imagenet.py:encoder=resnet50 --workdir runs/theirs

Reads ResNets and ViTs with the array names of torchvision or timm, and files of
`polyview.export`, also below a common prefix of names. The summary names what is left
out, as a classifier. The config gives the encoder's architecture and how images are
normalised and evaluated; learned positions are resized to its image size. The run has
one checkpoint, of step 0; its projector is untrained. Only safetensors are read: a
pickle can run code.
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
        description=cli.first_line(__doc__),
        epilog="Override any config key: --config.key=value, --config.group.key=value.",
    )
    parser.add_argument(
        "--weights", metavar="FILE.safetensors", required=True, type=Path
    )
    parser.add_argument("--config", metavar="FILE.py[:key=value,...]", required=True)
    parser.add_argument("--workdir", metavar="DIR", required=True, type=Path)
    parser.add_argument("--modality", default="image", help="(default: image)")
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        default="",
        help="start of the encoder's names, if the file holds several encoders, as "
        "module.encoder_q",
    )
    parser.add_argument(
        "--leave",
        metavar="PATTERN",
        nargs="+",
        default=[],
        help="names to leave out, as 'embedding_net.*'; classifiers, heads and queues "
        "are left out anyway",
    )
    flags, rest = parser.parse_known_args()
    overrides = parse_flags(rest, known=vars(flags))
    if not flags.weights.is_file():
        raise InputError(f"--weights {flags.weights} is not a file")
    config = load_config(flags.config, overrides)
    check_config(config)
    check_unused(flags.workdir)
    # JAX is imported late, so that usage errors do not wait for it.
    from polyview.runs.importing import import_weights

    cli.check_jax()
    line = import_weights(
        flags.weights,
        config,
        flags.workdir,
        flags.modality,
        prefix=flags.prefix,
        leave=flags.leave,
    )
    print(line)


if __name__ == "__main__":
    errors.run(main)
