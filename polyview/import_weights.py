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
from polyview.config.text import to_json
from polyview.errors import InputError


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
    check(flags.weights, flags.workdir)
    config = load_config(flags.config, overrides)
    check_config(config)
    print(import_weights(flags.weights, config, flags.workdir, flags.modality))


def check(weights: Path, workdir: Path) -> None:
    """Raise InputError for what cannot be read or written, before anything is."""
    if not weights.is_file():
        raise InputError(f"--weights {weights} is not a file")
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} is a run already; choose another --workdir")


def import_weights(
    weights: Path, config, workdir: Path, modality: str = "image"
) -> str:
    """Write a run whose encoder is the file's, and return a line that says so.

    Raises InputError for a file that cannot be read, is no safetensors, or does not
    hold the arrays of the config's encoder and none beside them.
    """
    import jax

    from polyview.runs.checkpoint import Checkpoints
    from polyview.runs.init import Entry, lay_over
    from polyview.runs.load import untrained_model
    from polyview.runs.weights import keep_fixed
    from polyview.runs.workdir import claim_workdir

    check(weights, workdir)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    model = untrained_model(config, one, trust=None)
    entry = Entry(f"towers.{modality}.encoder", str(weights), "")
    laid = lay_over([entry], model.module, model.parts[1:])
    params, statistics, fixed = laid.parts
    state = {"params": params, "statistics": statistics}
    claim_workdir(workdir, config)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        record = keep_fixed(workdir, fixed, laid.referenced, f"{weights.name}")
        checkpoints.save(0, state, to_json(config), record)
    return f"{workdir}: step 0, {laid}; its projector is untrained"


if __name__ == "__main__":
    errors.run(main)
