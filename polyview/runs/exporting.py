"""An encoder as a file for PyTorch libraries, checked against them -> safetensors.

Before anything is written, the content is loaded again (by the library, if the layout
is a library's) and the features of some images are compared. The file's metadata, under
"polyview", gives the call that makes the model and the preprocessing of images (size,
mean, deviation).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save

from polyview import files
from polyview.config.spec import build
from polyview.config.text import from_json, to_json
from polyview.config.trust import allow_list
from polyview.data import pipeline
from polyview.errors import InputError
from polyview.runs import torch_names
from polyview.runs.encoding import (
    check_modalities,
    source_of,
    viewed_modality,
    viewing,
    views_of,
)
from polyview.runs.load import Loaded, encoder_of, load, shapes_of
from polyview.runs.peers import peer_of

TOLERANCE = 1e-4  # relative to the largest feature
IMAGES = 8


def export(
    run: Path,
    layout: str,
    output: Path,
    *,
    step: int | None = None,
    data: str | None = None,
    modality: str | None = None,
    trust: tuple[str, ...] = (),
    weights: Sequence[Path] = (),
) -> str:
    """Write the encoder of a run, and return a summary line.

    data: a folder of images, or NAME[:SPLIT], to compare features on. weights: files of
    fixed weights that the checkpoint lists by digest. Raises InputError, and writes
    nothing, for a run without a checkpoint, an encoder that the library has no model
    for, a library that is not installed, unreadable images, and features that differ.
    """
    files.check_new(output, (".safetensors",))
    model = load(run, step, trust=trust, weights=weights)
    if not model.config.model.get("towers"):
        raise InputError(
            f"{run}: its model ({model.config.model.get('partial')}) has no towers, so "
            "no encoder of its own to export; another run takes its weights from the "
            f"run itself: --config.init={run}"
        )
    model = in_float32(model, trust)
    modality = modality or viewed_modality(model.config)
    arrays = {
        name: np.asarray(array, np.float32)
        for name, array in encoder_of(model, modality).items()
    }
    module: Any = model.module  # of a class that the config names
    tower = module.towers[modality]
    theirs = torch_names.to_theirs(tower.encoder, arrays, layout)
    peer = peer_of(layout, model, modality)
    images, views = images_of(model.config, data, modality, trust)
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
    arguments = ", ".join(f"{n}={value!r}" for n, value in peer.arguments.items())
    return (
        f"{output}: step {model.step}, for {peer.call}({arguments}); features of "
        f"{len(x)} images agree with {peer.version}, to {difference / largest:.1g} of "
        "the largest"
    )


def in_float32(model: Loaded, trust: tuple[str, ...]) -> Loaded:
    """Return the model with its encoders set to compute in float32."""
    config = from_json(to_json(model.config))
    for tower in config.model.get("towers", {}).values():
        if "dtype" in tower.encoder:
            tower.encoder.dtype = "float32"
    graph = shapes_of(config, trust).parts.graph
    return replace(model, config=config, parts=model.parts._replace(graph=graph))


def images_of(
    config: ConfigDict, data: str | None, modality: str, trust: tuple[str, ...]
) -> tuple[np.ndarray, str]:
    """Return views [n, h, w, c], uint8 or float, of the first images, and their recipe.

    Without `data` the evaluation's test split is used. Raises InputError if there is
    none, and if no image can be read.
    """
    field = None
    if data is not None:
        source, field = source_of(data, config, trust)
    elif (test := viewing(config).get("test")) is not None:
        source = build(test, allow_list(trust), where="evaluation.test")
    else:
        raise InputError("the run's evaluation has no test split; give --input")
    views = views_of(config, field, modality, trust)
    check_modalities(config, views, source, [modality])
    batch = next(pipeline.ordered(source, views, batch_size=IMAGES))
    present = batch["present"][modality][:, 0] & (batch["index"] >= 0)
    if not present.any():
        raise InputError(f"none of the first {IMAGES} images of {source!r} can be read")
    return batch["views"][modality][present, 0], repr(views)


def normalised(images: np.ndarray, tower: Any) -> np.ndarray:
    """Return the encoder's input as `polyview.nn.towers:Tower` makes it.

    float32, except tokens, which are integers and stay as they are.
    """
    if images.dtype != np.uint8 and images.dtype.kind in "iu":
        return images
    unit = 255 if images.dtype == np.uint8 else 1
    mean, std = (np.asarray(n, np.float32) for n in (tower.mean, tower.std))
    return (images.astype(np.float32) / unit - mean) / std
