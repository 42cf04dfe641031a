"""The models, of other libraries and of this one, that an exported file is for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from polyview.errors import InputError
from polyview.nn.resnet import ResNet
from polyview.nn.vit import ViT
from polyview.runs import torch_names
from polyview.runs.load import Loaded, encoder_of, with_arrays
from polyview.runs.weights import moved


class Peer(NamedTuple):
    """A library's model that an exported file is for.

    call, arguments: how the library makes it. `features(content, x)` fills it from a
    file's content and returns its features, float32[n, d], of images x
    float32[n, h, w, c].
    """

    version: str
    call: str
    arguments: dict[str, Any]
    features: Callable[[bytes, np.ndarray], np.ndarray]


def peer_of(layout: str, model: Loaded, modality: str) -> Peer:
    """Return the model that a file of this layout is for; InputError if none."""
    module: Any = model.module  # of a class that the config names
    encoder = module.towers[modality].encoder
    if layout == "safetensors":
        return _ourselves(model, modality)
    try:
        import torch

        library = __import__(layout)
    except ImportError as error:
        raise InputError(
            f"--format {layout} is checked against {layout}, which cannot be imported "
            f"({error}); install it: pip install '.[export]' in this project's folder"
        ) from error
    call, arguments, classifier = _call(layout, encoder)
    function: Any = library
    for name in call.split(".")[1:]:
        function = getattr(function, name)

    def features(content: bytes, x: np.ndarray) -> np.ndarray:
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


def _ourselves(model: Loaded, modality: str) -> Peer:
    """Return our own encoder, made from its spec and filled from the file."""

    def features(content: bytes, x: np.ndarray) -> np.ndarray:
        module: Any = model.module
        own = module.towers[modality].encoder
        named = encoder_of(model, modality).items()
        shapes = {name: array.shape for name, array in named}
        loaded = safetensors.numpy.load(content)
        _, arrays = torch_names.to_ours(own, shapes, loaded)
        path = f"towers.{modality}.encoder"
        filled = with_arrays(model, {moved(n, "", path): a for n, a in arrays.items()})
        module = filled.module
        encoder = module.towers[modality].encoder
        with jax.default_matmul_precision("highest"):
            return np.asarray(encoder(x, train=False)[0])

    spec = model.config.model.towers[modality].encoder.to_dict()
    return Peer("polyview", spec.pop("partial"), spec, features)


# {(blocks of each stage, features of each stage): name}
_RESNETS = {
    ((3, 4, 6, 3), (256, 512, 1024, 2048)): "resnet50",
    ((2, 2, 2, 2), (64, 128, 256, 512)): "resnet18",
}


def _call(layout: str, encoder: ResNet | ViT) -> tuple[str, dict[str, Any], str]:
    """Return how the library makes this encoder: a name, its arguments, and the
    attribute of the classifier to remove ("" if there is none).

    Raises InputError if the library has no such model.
    """
    timm = layout == "timm"
    if isinstance(encoder, ResNet):
        widths = [block.features for block in encoder.blocks]
        stages = tuple(dict.fromkeys(widths))
        depths = tuple(widths.count(width) for width in stages)
        shape = depths, stages
        channels = encoder.conv.kernel.shape[2]
        if shape not in _RESNETS or not encoder.pool or not (timm or channels == 3):
            raise InputError(
                f"{layout} has no ResNet of {depths} blocks of {stages} features with "
                f"this stem and {channels} channels; use --format safetensors"
            )
        if not timm:
            return f"torchvision.models.{_RESNETS[shape]}", {}, "fc"
        name = f"timm.models.{_RESNETS[shape]}"
        return name, {"num_classes": 0, "in_chans": channels}, ""
    channels = encoder.embed.kernel.shape[0] // encoder.patch**2
    image, patch = encoder.side * encoder.patch, encoder.patch
    width, depth, heads = encoder.features, len(encoder.blocks), encoder.blocks[0].heads
    if timm:
        form: dict[str, Any] = {"img_size": image, "patch_size": patch}
        form |= {"in_chans": channels, "embed_dim": width}
        form |= {"depth": depth, "num_heads": heads}
        cls = encoder.cls is not None
        form |= {"class_token": cls, "global_pool": "token" if cls else "avg"}
        form |= {"fc_norm": False, "num_classes": 0}
        return "timm.models.VisionTransformer", form, ""
    if encoder.cls is None or channels != 3:
        raise InputError(
            "torchvision's ViT has a class token and 3 channels; this encoder has "
            "not; use --format timm or safetensors"
        )
    form = {"image_size": image, "patch_size": patch, "num_layers": depth}
    form |= {"num_heads": heads, "hidden_dim": width, "mlp_dim": 4 * width}
    return "torchvision.models.VisionTransformer", form, "heads"
