"""Parts of the zero-shot recipes: encoders to compare, as specs; nothing is built here.

Every method trains one encoder, the same for all, on seen classes alone. `local` adds
what each position of the encoder's early map predicts: the label or the attributes.
"""

from collections.abc import Mapping
from typing import Any

from polyview.config import parts
from polyview.errors import InputError, nearest

NN, OBJECTIVES = "polyview.nn", parts.OBJECTIVES
FEATURES = 128  # of every method, since the TRE ratio compares equal dimensions only
# Method: what a view's positives are, for those that compare a map with a vector.
POSITIVES = {"dim": "own", "amdim": "other_views", "cmdim": "class"}
METHODS = (
    *("ae", "vae", "aae", *POSITIVES, "supcon", "supervised", "attributes"),
    "local",  # the local losses alone
)
LOCAL = ("none", "labels", "attributes")


def check_method(method: str, local: str) -> None:
    """Raise InputError for an unknown method or local loss, or for no loss at all."""
    if method not in METHODS:
        raise InputError(f"method={method!r}{nearest(method, METHODS)}")
    if local not in LOCAL:
        raise InputError(f"local={local!r}{nearest(local, LOCAL)}")
    if method == "local" and local == "none":
        raise InputError("method=local needs local=labels or local=attributes")


def model(
    method: str,
    local: str,
    *,
    size: int,
    channels: int,
    classes: int,
    attributes: int,
    mean: float,
    std: float,
) -> dict:
    """Return the encoder with the heads that a method and its local losses need."""
    projector: dict[str, Any] = {"partial": f"{NN}.heads:Identity"}
    local_projector, heads = None, {}
    if method in POSITIVES:
        head = f"{NN}.heads:MutualInformationHead"
        projector = local_projector = {"partial": head, "hidden": 128, "out": 64}
    if method == "supcon":
        # Khosla et al. 2020, section 3.1: one hidden layer as wide as h, and 128.
        projector = {
            "partial": f"{NN}.heads:Projector",
            "hidden": (FEATURES,),
            "out": 128,
            "norm": "none",
        }
    if method == "supervised":
        heads["label"] = _linear(classes)
    if method == "attributes":
        heads["attributes"] = _linear(attributes)
    if method == "vae":
        heads["log_variance"] = _linear(FEATURES)
    of_positions = {
        "none": {},
        "labels": {"label": _linear(classes)},
        "attributes": {"attributes": _linear(attributes)},
    }
    shape = (size, size, channels)
    discriminator = {
        "partial": f"{NN}.heads:Projector",
        "hidden": (256, 256),
        "out": 1,
        "norm": "none",
    }
    return {
        "partial": f"{NN}.readouts:Readouts",
        "towers": {
            "image": {
                "partial": f"{NN}.towers:Tower",
                "encoder": {
                    "partial": f"{NN}.small_conv:SmallConv",
                    "size": size,
                    "in_channels": channels,
                    "features": FEATURES,
                },
                "projector": projector,
                "mean": mean,
                "std": std,
                "local": True,
            }
        },
        "local_projector": local_projector,
        "heads": heads,
        "local_heads": of_positions[local],
        "decoder": (
            {"partial": f"{NN}.decoder:Decoder", "shape": shape}
            if method in ("ae", "vae", "aae")
            else None
        ),
        "discriminator": discriminator if method == "aae" else None,
    }


def _linear(out: int) -> dict:
    return {"partial": f"{NN}.heads:Linear", "out": out}


def objective(method: str, local: str, weight: float) -> dict:
    """Return a method's objective; weight: of its local loss, in all but `local`."""
    supervised = f"{OBJECTIVES}.supervised"
    reconstruction = f"{OBJECTIVES}.reconstruction"
    made: dict[str, dict[str, Any]] = {
        "ae": {"target": f"{reconstruction}:Autoencoder"},
        # The deviation of a normalised pixel and the weight are ours.
        "vae": {"target": f"{reconstruction}:VAE", "deviation": 0.5},
        "aae": {"target": f"{reconstruction}:AAE", "weight": 0.1},
        "supcon": parts.contrastive("supcon_labels", temperature=0.1),
        "supervised": {"target": f"{supervised}:Classification", "modality": "label"},
        "attributes": {"target": f"{supervised}:Attributes"},
        **{name: _locality(positives) for name, positives in POSITIVES.items()},
    }
    if local == "none":
        return made[method]
    target, loss = {
        "labels": ("label", "local_labels"),
        "attributes": ("attributes", "local_attributes"),
    }[local]
    return {
        "target": f"{OBJECTIVES}.locality:WithLocal",
        "objective": made.get(method),
        "local": {target: {"partial": f"{OBJECTIVES}.locality:{loss}"}},
        "weight": 1.0 if method == "local" else weight,
    }


def _locality(positives: str) -> dict:
    return {
        "target": f"{OBJECTIVES}.locality:Locality",
        "positives": positives,
        "estimator": {"partial": f"{OBJECTIVES}.bounds:info_nce"},
        "critic": {
            "partial": f"{OBJECTIVES}.crossmodal:scaled_dot",
            "clip": 20.0,
            "penalty": 0.04,
        },
    }


def evaluations(
    train: Mapping,
    validation: Mapping,
    unseen: Mapping[str, Mapping],
    seen: Mapping[str, Mapping],
    views: Mapping,
    *,
    upright: Mapping | None = None,
    dimensions: int | None = None,
    path: str = "towers.image.encoder",
    seed: int = 0,
) -> dict[str, dict]:
    """Return the evaluations of a run: unseen classes, the TRE ratio, and evidence.

    unseen: {name: source of unseen classes}. seen: {name: source of other images of the
    seen classes}, for the generalised task. pretraining: what the encoder was trained
    on, which must hold no unseen class. upright: how to show an image on which boxes of
    parts hold, for the evidence; None without boxes. path: of the encoder whose map the
    evidence reads. dimensions: of principal components, for the TRE ratio.
    """
    shared = {"train": train, "views": views, "seed": seed}
    folder = "polyview.evaluation"
    made: dict[str, dict] = {
        "zero_shot_attributes": {
            "target": f"{folder}.attributes:AttributeZeroShot",
            "validation": validation,
            "unseen": unseen,
            "seen": seen,
            **shared,
        },
        "compositionality": {
            "target": f"{folder}.compositionality:Compositionality",
            "unseen": unseen,
            "dimensions": dimensions,
            **shared,
        },
    }
    if upright is not None:
        targets = ("label", "attributes", "boxes", "parts")
        made["evidence"] = {
            "target": f"{folder}.evidence:Evidence",
            "test": next(iter(unseen.values())),
            "upright": {**views, "augment": upright, "targets": targets},
            "path": path,
            **shared,
        }
    return made
