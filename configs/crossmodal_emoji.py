"""Emoji: one concept drawn by four vendors, plus its name; predict from any view.

    python -m polyview.prepare emoji
    python -m polyview.main --config configs/crossmodal_emoji.py --workdir runs/emoji
    python -m polyview.evaluate --run runs/emoji

Arguments: method (supervised | intra | clip | siglip | cmim | polyview), weight of its
terms, temperature (fixed | learnt, of clip; siglip always learns its own), drop (chance
that a prediction leaves out each view), steps, split (test | validation). A learnt
temperature comes with the tiled loss, whose memory is linear in the batch.
The drawings share one encoder: they are four views of the modality "image".
Hardware: two laptop cores, minutes. Measured (`python -m benchmarks.missing emoji`,
subgroup accuracy from one drawing, test split, three seeds): .151 with method=polyview,
.154 clip, .125 cmim, .113 supervised, .071 supervised with drop=0.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError, nearest

VENDORS = ("noto", "twemoji", "openmoji", "fluent")
SIZE = 32  # pixels of a view, half the prepared size
WORDS, LENGTH = 2048, 24  # as prepared
GROUPS, SUBGROUPS = 9, 96


def get_config(argument: str = "") -> dict:
    """All numbers are ours."""
    args = parse_arguments(
        argument,
        method="polyview",
        weight=1.0,
        temperature="fixed",
        drop=0.5,
        split="test",
        steps=300,
    )
    method, temperature = args["method"], args["temperature"]
    if method not in (known := [*parts.TERMS, "siglip"]):
        raise InputError(f"method={method!r}{nearest(method, known)}")
    if temperature not in ("fixed", "learnt") or (
        temperature == "learnt" and method not in ("clip", "siglip")
    ):
        raise InputError(
            f"temperature={temperature} with method={method}: it is fixed, or learnt "
            "with method=clip; method=siglip always learns it"
        )
    learnt = method == "siglip" or temperature == "learnt"
    train, test = (parts.source("emoji", split) for split in ("train", args["split"]))
    whole = views("ResizeCenterCrop", fraction=1.0)
    frozen = parts.frozen(train, test, size=SIZE, fraction=1.0)
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        "batch_size": 128,
        "log_every": 50,
        "checkpoint_every": 200,
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": views("RandomResizedCrop", scale=(0.5, 1.0), flip=0.5),
        "model": {
            "partial": "polyview.nn.fusion:LateFusion",
            "towers": {
                "image": parts.tower(
                    {
                        "partial": "polyview.nn.resnet:resnet_tiny",
                        "width": 64,
                        "in_channels": 3,
                    },
                    out=64,
                    photometry={
                        "target": "polyview.nn.photometry:Photometry",
                        "strength": 0.5,
                        "blur_chance": 0.0,
                    },
                    mean=0.8,  # roughly the mean of drawings on white
                    std=0.3,
                ),
                "text": parts.tower(
                    {
                        "partial": "polyview.nn.text:TokenSet",
                        "vocabulary": WORDS,
                        "width": 64,
                        "features": 128,
                    },
                    out=64,
                ),
            },
            "heads": {
                "group": {"partial": "polyview.nn.heads:Linear", "out": GROUPS},
                "subgroup": {"partial": "polyview.nn.heads:Linear", "out": SUBGROUPS},
            },
            "alone": False,
            "critic": parts.learnt_scale(method) if learnt else None,
        },
        "objective": parts.cross_modal(
            "supervised" if learnt else method,
            {"group": "cross_entropy", "subgroup": "cross_entropy"},
            weight=args["weight"],
            estimator="info_nce",
            drop=args["drop"],
            positions=4,  # out of 16 of a drawing, or up to 24 words
        )
        | (parts.paired(method, args["weight"]) if learnt else {}),
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(2e-3),
            "weight_decay": 1e-2,
            "warm_up": 0.1,
        },
        "evaluations": {
            "missing": {
                "target": "polyview.evaluation.missing:MissingModalities",
                "test": test,
                "views": whole,
                "targets": ("group", "subgroup"),
                "retrieval": True,
                "batch_size": 500,
            },
            # kNN and a probe on the mean of the four drawings' representations.
            "frozen": frozen | {"views": whole, "label": "group"},
        },
    }


def views(augment: str, **options) -> dict:
    """Return views of two modalities: the four drawings, and the name."""
    return parts.observed(
        fields={"image": VENDORS, "text": ("text",)},
        shapes={"image": (SIZE, SIZE, 3), "text": (LENGTH,)},
        dtypes={"text": "int32"},
        targets=("group", "subgroup"),
        augments={
            "image": {
                "target": f"polyview.data.augment:{augment}",
                "size": SIZE,
                **options,
            }
        },
    )
