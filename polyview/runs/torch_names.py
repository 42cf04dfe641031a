"""The names and axes that our encoders' arrays have in PyTorch libraries.

"torchvision" and "timm" are the state dictionaries of the models of torchvision 0.29
and timm 1.0, without a classifier; "safetensors" keeps our own names and axes. A layout
lists our array, its name in the layout, and how its axes move:

    Place(ours, theirs, to_theirs, to_ours)
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from flax import nnx

from polyview.errors import InputError
from polyview.nn.resnet import ResNet
from polyview.nn.vit import ViT, sincos
from polyview.runs.prefixes import COUNTER, both_names, is_beside

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_RESNET = {"conv": "conv1", "norm": "bn1"}
_RESNET |= {f"norm{n}": f"bn{n}" for n in (1, 2, 3)}
_SHORTCUT = {"conv": "downsample.0", "norm": "downsample.1"}
_VIT = {
    "timm": {
        "cls": "cls_token",
        "position": "pos_embed",
        "embed": "patch_embed.proj",
        "blocks": "blocks.{}",
        "qkv": "attn.qkv",
        "out": "attn.proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    "torchvision": {
        "cls": "class_token",
        "position": "encoder.pos_embedding",
        "embed": "conv_proj",
        "blocks": "encoder.layers.encoder_layer_{}",
        "norm": "encoder.ln",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "qkv": "self_attention.in_proj",
        "out": "self_attention.out_proj",
        "up": "mlp.0",
        "down": "mlp.3",
    },
}


class Place(NamedTuple):
    """The name and axes of one of our arrays in another layout."""

    ours: str
    theirs: str
    to_theirs: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray], np.ndarray]


def places(
    encoder: nnx.Module, shapes: Mapping[str, tuple], layout: str
) -> list[Place]:
    """Return the places of an encoder's arrays in a layout.

    shapes: of the arrays by name, as "blocks.0.conv1.kernel". Raises InputError if the
    layout has no form for the encoder.
    """
    if layout == "safetensors":
        return [Place(name, name, np.asarray, np.asarray) for name in shapes]
    if isinstance(encoder, ResNet):
        name_of = partial(_resnet_name, _stages(encoder))
    elif isinstance(encoder, ViT):
        name_of = partial(_vit_name, _VIT[layout])
    else:
        raise InputError(
            f"{layout} has no form for an encoder of {type(encoder).__name__}, only "
            "for ResNets and ViTs; any encoder has one in --format safetensors"
        )
    return [
        Place(name, name_of(name), *_axes(name, len(shape), encoder))
        for name, shape in shapes.items()
    ]


def to_theirs(
    encoder: nnx.Module, arrays: Mapping[str, np.ndarray], layout: str
) -> dict[str, np.ndarray]:
    """Return our arrays as a state dictionary of the layout, in float32.

    Fixed positions of a ViT become the library's learned positions. Raises InputError
    as `places` does.
    """
    arrays = dict(arrays)
    if isinstance(encoder, ViT) and encoder.position is None:
        if layout != "safetensors":
            arrays["position"] = fixed_positions(encoder)
    shapes = {name: array.shape for name, array in arrays.items()}
    state = {
        place.theirs: np.ascontiguousarray(
            place.to_theirs(arrays[place.ours]), np.float32
        )
        for place in places(encoder, shapes, layout)
    }
    if layout != "safetensors":
        for name in [n for n in state if n.endswith("running_mean")]:
            counter = f"{name.rpartition('.')[0]}.{COUNTER}"
            state[counter] = np.zeros((), np.int64)
    return state


def to_ours(
    encoder: nnx.Module,
    shapes: Mapping[str, tuple],
    theirs: Mapping[str, np.ndarray],
    spare: Iterable[str] = (),
) -> tuple[str, dict[str, np.ndarray]]:
    """Return the layout of a state dictionary, and its arrays as the encoder's.

    A classifier is left out; learned positions of a ViT keep their own number. spare:
    our names of arrays that may be absent, and that are not returned. Raises InputError
    if an array is absent, has another shape, or has no place in this encoder: another
    model would give other features.
    """
    layout, spare = layout_of(theirs), set(spare)
    wanted = places(encoder, shapes, layout)
    names = {place.theirs for place in wanted}
    theirs = {n: a for n, a in theirs.items() if n in names or not is_beside(n)}
    ours, given = {}, list(theirs)
    for place in wanted:
        array = theirs.pop(place.theirs, None)
        if place.ours in spare:
            continue
        if array is None:
            raise InputError(
                f"the file has no {place.theirs!r}, which this encoder needs ({layout} "
                "layout): another encoder? "
                f"{both_names([p.theirs for p in wanted], given)}"
            )
        if array.ndim != len(np.shape(place.to_theirs(np.zeros(shapes[place.ours])))):
            raise InputError(f"the file's {place.theirs} is {array.shape}: not ours")
        if not np.isfinite(array).all():
            raise InputError(f"the file's {place.theirs} is not finite")
        moved = place.to_ours(array)
        positions = isinstance(encoder, ViT) and place.ours == "position"
        if moved.shape != tuple(shapes[place.ours]) and not positions:
            raise InputError(
                f"the file's {place.theirs} is {array.shape}; this encoder's "
                f"{place.ours} is {tuple(shapes[place.ours])}: another size?"
            )
        ours[place.ours] = moved
    if theirs:
        raise InputError(
            f"the file has {len(theirs)} arrays without a place in this encoder, as "
            f"{min(theirs)!r}: it belongs to another model, or name what may be left "
            "out: --leave PATTERN (in a config, `leave` in `init`)"
        )
    return layout, ours


def layout_of(names: Iterable[str]) -> str:
    """Return the layout of a state dictionary with these names, prefixed or not."""
    ends = tuple(f".{name}" for name in names)

    def any_is(*marks: str) -> bool:
        return any(end.endswith(tuple(f".{mark}" for mark in marks)) for end in ends)

    if any_is("class_token", "conv_proj.weight"):
        return "torchvision"
    if any_is("conv1.weight", "patch_embed.proj.weight", "cls_token"):
        return "timm"  # also torchvision's ResNets: the names are the same
    return "safetensors"


def fixed_positions(encoder: ViT) -> np.ndarray:
    """Return the positions of a ViT that learns none, float32[1, tokens, width]."""
    grid = np.asarray(sincos(encoder.side, encoder.features))
    cls = np.zeros((1, int(encoder.cls is not None), encoder.features), grid.dtype)
    return np.concatenate([cls, grid], axis=1)


def _stages(encoder: ResNet) -> list[str]:
    """Return the library's name of each block: "layer1.0", ..."""
    widths = [block.features for block in encoder.blocks]
    stage = {width: number for number, width in enumerate(sorted(set(widths)), 1)}
    return [
        f"layer{stage[width]}.{place - widths.index(width)}"
        for place, width in enumerate(widths)
    ]


def _resnet_name(blocks: list[str], name: str) -> str:
    *path, leaf = name.split(".")
    if path[0] != "blocks":
        return f"{_RESNET[path[0]]}.{_LEAVES[leaf]}"
    block, rest = blocks[int(path[1])], path[2:]
    if rest[0] == "shortcut":
        return f"{block}.{_SHORTCUT[rest[1]]}.{_LEAVES[leaf]}"
    return f"{block}.{_RESNET.get(rest[0], rest[0])}.{_LEAVES[leaf]}"


def _vit_name(names: Mapping[str, str], name: str) -> str:
    head, *rest = name.split(".")
    if not rest:
        return names[head]
    *path, leaf = rest
    theirs = names.get(head, head)
    if head == "blocks":
        theirs = f"{theirs.format(path[0])}.{names.get(path[1], path[1])}"
    # torchvision's joint projection is a bare pair of parameters.
    joint = theirs.endswith("in_proj")
    return f"{theirs}{'_' if joint else '.'}{_LEAVES[leaf]}"


def _axes(name: str, dimensions: int, encoder: Any) -> tuple[Callable, Callable]:
    """Return the functions that move an array's axes to a library's, and back."""
    if name == "embed.kernel":
        form = "(h w c) o", "o c h w"
        size = {"h": encoder.patch, "w": encoder.patch}
        return (
            lambda x: rearrange(x, f"{form[0]} -> {form[1]}", **size),
            lambda x: rearrange(x, f"{form[1]} -> {form[0]}"),
        )
    if name.endswith("kernel") and dimensions == 4:  # h w in out <-> out in h w
        return (lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0))
    if name.endswith("kernel"):
        return np.transpose, np.transpose
    return np.asarray, np.asarray
