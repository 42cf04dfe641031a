"""Export an encoder for PyTorch libraries, checked against them -> safetensors.

    python -m polyview.export --run runs/a --format timm --output a.safetensors

Formats: safetensors (our names and axes), torchvision, timm (state dictionaries of
their models, without a classifier). Before anything is written the file's content is
loaded again, by the library where it is one's format, and the features of some images
are compared: they must agree to 1e-4 of the largest. How to make the model, and what
images go through first (size, mean, deviation), stands in the file's metadata, under
"polyview".
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from polyview import cli, errors, files
from polyview.config.spec import build
from polyview.config.trust import allow_list
from polyview.errors import InputError, fits_together

FORMATS = ("safetensors", "torchvision", "timm")
TOLERANCE = 1e-4  # of the largest feature
IMAGES = 8


class Peer(NamedTuple):
    """A model that an exported file is for, in its library.

    call and arguments make it; `features(content, x)` are those of the images
    x float32[n, h, w, c] when it is filled from a file's content: float32[n, d].
    """

    version: str
    call: str
    arguments: dict[str, Any]
    features: Callable


def main() -> None:
    """Read the command line and export; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", metavar="DIR", required=True, type=Path)
    cli.add_checkpoint(parser)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument(
        "--output", metavar="FILE.safetensors", required=True, type=Path
    )
    parser.add_argument(
        "--input",
        metavar="FOLDER|NAME[:SPLIT]",
        help="images to compare features on (the test split of the run's evaluation)",
    )
    parser.add_argument("--modality", help="where the model has several")
    flags = parser.parse_args()
    check(flags.output)
    with fits_together(f"{flags.run} and --format {flags.format}"):
        said = export(
            flags.run,
            flags.format,
            flags.output,
            step=flags.step,
            of=flags.input,
            modality=flags.modality,
            trust=tuple(flags.trust),
        )
    print(said)


def check(output: Path) -> None:
    """Raise InputError for an output that cannot be made, before anything is read."""
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} must end in .safetensors")
    if output.exists():
        raise InputError(f"{output} is there already; remove it, or name another")
    cli.check_output(output)


def export(
    run: Path,
    layout: str,
    output: Path,
    *,
    step: int | None = None,
    of: str | None = None,
    modality: str | None = None,
    trust: tuple[str, ...] = (),
) -> str:
    """Write the encoder of a run, and return a line that says so.

    Raises InputError for a run without a checkpoint, an encoder that the library has
    no model for, a library that is not installed, images that cannot be read, and
    features that differ: then nothing is written.
    """
    import jax
    import numpy as np
    from safetensors.numpy import save

    from polyview.runs import torch_names
    from polyview.runs.load import encoder_of, load

    check(output)
    model = in_float32(load(run, step, trust=trust), trust)
    if model.config.get("evaluation") is None:
        raise InputError(f"the config of {run} has no 'evaluation' to see images by")
    modality = modality or model.config.evaluation.get("modality", "image")
    arrays = {
        name: np.asarray(array, np.float32)
        for name, array in encoder_of(model, modality).items()
    }
    tower = model.module.towers[modality]
    theirs = torch_names.to_theirs(tower.encoder, arrays, layout)
    peer = peer_of(layout, model, modality)
    images, views = images_of(model.config, of, modality, trust)
    x = normalised(images, tower)
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(tower.encoder(x, train=False)[0], np.float32)
    about = {
        "run": run.name,
        "step": model.step,
        "model": {"call": peer.call, "arguments": peer.arguments},
        "features": ours.shape[1],
        "input": {
            "views": views,
            "range": "0 to 1" if images.dtype == np.uint8 else "as the views are",
            "mean": list(tower.mean),
            "std": list(tower.std),
        },
    }
    content = save(theirs, {"format": "pt", "polyview": json.dumps(about)})
    difference = float(np.abs(peer.features(content, x) - ours).max())
    largest = float(np.abs(ours).max())
    if not largest > 0:
        raise InputError("all features are zero; nothing is written")
    if not difference <= TOLERANCE * largest:
        raise InputError(
            f"features of {peer.version} differ by {difference:.2g} where the largest "
            f"is {largest:.2g}; nothing is written"
        )
    files.write_whole(output, content)
    said = ", ".join(f"{name}={value!r}" for name, value in peer.arguments.items())
    return (
        f"{output}: step {model.step}, for {peer.call}({said}); features of {len(x)} "
        f"images agree with {peer.version}, to {difference / largest:.1g} of the "
        "largest"
    )


def in_float32(model, trust: tuple[str, ...]):
    """The model with encoders that compute in float32, whatever trained them."""
    from polyview.runs.load import shapes_of

    config = copy.deepcopy(model.config)
    for tower in config.model.get("towers", {}).values():
        if "dtype" in tower.encoder:
            tower.encoder.dtype = "float32"
    graph = shapes_of(config, trust).parts.graph
    return model._replace(config=config, parts=model.parts._replace(graph=graph))


def images_of(config, of: str | None, modality: str, trust: tuple[str, ...]):
    """Views uint8 or float [n, h, w, c] of the first images, and how they were made."""
    from polyview.data import pipeline
    from polyview.embed import source_of, views_of

    if of is None:
        trusted = allow_list(trust)
        source = build(config.evaluation.test, trusted, where="evaluation.test")
    else:
        source = source_of(of)
    views = views_of(config, source, trust)
    batch = next(pipeline.ordered(source, views, batch_size=IMAGES))
    there = batch["present"][modality][:, 0] & (batch["index"] >= 0)
    if not there.any():
        raise InputError(f"none of the first {IMAGES} images of {source!r} can be read")
    return batch["views"][modality][there, 0], repr(views)


def normalised(images, tower):
    """What the encoder sees, float32: as `polyview.nn.towers:Tower` makes it."""
    import numpy as np

    unit = 255 if images.dtype == np.uint8 else 1
    mean, std = (np.asarray(n, np.float32) for n in (tower.mean, tower.std))
    return (images.astype(np.float32) / unit - mean) / std


def peer_of(layout: str, model, modality: str) -> Peer:
    """The model that a file of this layout is for. Raises InputError for none."""
    encoder = model.module.towers[modality].encoder
    if layout == "safetensors":
        return _ourselves(model, modality)
    try:
        import torch

        library = __import__(layout)
    except ImportError as error:
        raise InputError(
            f"--format {layout} is checked against {layout}, which cannot be imported "
            f"({error}); install it: pip install '.[export]' where this project lies"
        ) from error
    call, arguments, classifier = _call(layout, encoder)
    function = library
    for name in call.split(".")[1:]:
        function = getattr(function, name)

    def features(content, x):
        from safetensors.torch import load

        network = function(**arguments)
        if classifier:
            setattr(network, classifier, torch.nn.Identity())
        network.load_state_dict(load(content))
        network.eval()
        with torch.no_grad():
            images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
            return network(images).numpy()

    return Peer(f"{layout} {library.__version__}", call, arguments, features)


def _ourselves(model, modality: str) -> Peer:
    """Our own encoder, made from its spec and filled from the file."""
    from polyview.runs import torch_names
    from polyview.runs.load import encoder_of, with_arrays
    from polyview.runs.weights import joined

    def features(content, x):
        import jax
        import numpy as np
        from safetensors.numpy import load as load_arrays

        there = encoder_of(model, modality)
        shapes = {name: array.shape for name, array in there.items()}
        _, arrays = torch_names.to_ours(
            model.module.towers[modality].encoder, shapes, load_arrays(content)
        )
        path = f"towers.{modality}.encoder"
        filled = with_arrays(model, {joined(path, n): a for n, a in arrays.items()})
        encoder = filled.module.towers[modality].encoder
        with jax.default_matmul_precision("highest"):
            return np.asarray(encoder(x, train=False)[0])

    spec = model.config.model.towers[modality].encoder.to_dict()
    return Peer("polyview", spec.pop("partial"), spec, features)


# By blocks and features of the stages.
_RESNETS = {
    ((3, 4, 6, 3), (256, 512, 1024, 2048)): "resnet50",
    ((2, 2, 2, 2), (64, 128, 256, 512)): "resnet18",
}


def _call(layout: str, encoder) -> tuple[str, dict[str, Any], str]:
    """How the library makes this encoder: a name, arguments, and the attribute that
    holds the classifier, which is taken off ("" where none is made).

    Raises InputError where the library has no such model.
    """
    from polyview.nn.resnet import ResNet

    timm = layout == "timm"
    if isinstance(encoder, ResNet):
        widths = [block.features for block in encoder.blocks]
        stages = tuple(dict.fromkeys(widths))
        depths = tuple(widths.count(width) for width in stages)
        form = depths, stages
        channels = encoder.conv.kernel.shape[2]
        if form not in _RESNETS or not encoder.pool or not (timm or channels == 3):
            raise InputError(
                f"{layout} has no ResNet of {depths} blocks of {stages} features with "
                f"this stem and {channels} channels; use --format safetensors"
            )
        if not timm:
            return f"torchvision.models.{_RESNETS[form]}", {}, "fc"
        name = f"timm.models.{_RESNETS[form]}"
        return name, {"num_classes": 0, "in_chans": channels}, ""
    channels = encoder.embed.kernel.shape[0] // encoder.patch**2
    image, patch = encoder.side * encoder.patch, encoder.patch
    width, depth, heads = encoder.features, len(encoder.blocks), encoder.blocks[0].heads
    if timm:
        form = {"img_size": image, "patch_size": patch, "in_chans": channels}
        form |= {"embed_dim": width, "depth": depth, "num_heads": heads}
        cls = encoder.cls is not None
        form |= {"class_token": cls, "global_pool": "token" if cls else "avg"}
        form |= {"fc_norm": False, "num_classes": 0}
        return "timm.models.VisionTransformer", form, ""
    if encoder.cls is None or channels != 3:
        raise InputError(
            "torchvision's ViT has a class token and 3 channels, this encoder has not; "
            "use --format timm or safetensors"
        )
    form = {"image_size": image, "patch_size": patch, "num_layers": depth}
    form |= {"num_heads": heads, "hidden_dim": width, "mlp_dim": 4 * width}
    return "torchvision.models.VisionTransformer", form, "heads"


if __name__ == "__main__":
    errors.run(main)
