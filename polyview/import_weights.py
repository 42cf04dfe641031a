"""Make a run of another library's encoder, to be evaluated like any -> a run directory.

    python -m polyview.adopt --weights resnet50.safetensors \\
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
from polyview.config.text import to_json
from polyview.errors import InputError

# How files of torch.save begin: a zip archive, or a bare pickle.
_PICKLES = (b"PK\x03\x04", b"\x80")


def main() -> None:
    """Read the command line and adopt; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.adopt",
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
    check(flags.weights, flags.workdir)
    config = load_config(flags.config, overrides)
    check_config(config)
    print(adopt(flags.weights, config, flags.workdir, flags.modality))


def check(weights: Path, workdir: Path) -> None:
    """Raise InputError for what cannot be read or written, before anything is."""
    if not weights.is_file():
        raise InputError(f"--weights {weights} is not a file")
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} is a run already; choose another --workdir")


def adopt(weights: Path, config, workdir: Path, modality: str = "image") -> str:
    """Write a run whose encoder is the file's, and return a line that says so.

    Raises InputError for a file that cannot be read, is no safetensors, or does not
    hold the arrays of the config's encoder and none beside them.
    """
    import jax

    from polyview.runs import torch_names
    from polyview.runs.checkpoint import Checkpoints
    from polyview.runs.load import encoder_of, shapes_of, untrained_model, with_encoder
    from polyview.runs.workdir import claim_workdir

    check(weights, workdir)
    theirs = read(weights)
    model = shapes_of(config, trust=None)
    shapes = {name: array.shape for name, array in encoder_of(model, modality).items()}
    encoder = model.module.towers[modality].encoder
    try:
        layout, arrays = torch_names.to_ours(encoder, shapes, theirs)
    except InputError as error:
        raise InputError(f"{weights} does not fit the config: {error}") from error
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    model = untrained_model(config, one, trust=None)
    model = with_encoder(model, modality, arrays, f"file {weights}")
    state = {"params": model.params, "statistics": model.statistics}
    claim_workdir(workdir, config)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(0, state, to_json(config))
    return (
        f"{workdir}: step 0, {len(arrays)} arrays of {weights} ({layout} layout); its "
        "projector is untrained"
    )


def read(weights: Path) -> dict:
    """The arrays of a file by name; raises InputError where it is no safetensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(weights)
    except (SafetensorError, OSError, KeyError) as error:
        with weights.open("rb") as file:
            pickled = file.read(4).startswith(_PICKLES)
        advice = (
            ": it seems a pickle of torch.save, which can run code; where you trust "
            "it, convert it: safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), 'x.safetensors')"
        )
        raise InputError(
            f"{weights} is no safetensors file{advice if pickled else f' ({error})'}"
        ) from error


if __name__ == "__main__":
    errors.run(main)
