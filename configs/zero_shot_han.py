"""Zero-shot learning from scratch: Han characters that no font showed in training.

    python -m polyview.prepare han
    python -m polyview.main --config configs/zero_shot_han.py --workdir runs/han
    python -m polyview.evaluate --run runs/han --references

A class is a character of two parts, as 江 of 氵 and 工; its attributes are the parts,
each at its place; unseen characters combine parts of seen ones. An encoder is trained
on seen characters (Sylvain et al. 2020), then frozen, and a linear map from its
features to attributes classifies unseen ones.

Arguments: method (cmdim | dim | amdim | ae | vae | aae | supcon | supervised |
attributes | local), local (none | labels | attributes), weight of the local loss,
steps, size in pixels.
Hardware: two laptop cores, minutes. Accuracies are in docs/zero_shot.md.
"""

from polyview.config import parts, zero_shot
from polyview.config.overrides import parse_arguments
from polyview.data.prepare.han import NEW_FONTS, TRAIN_FONTS

CLASSES, ATTRIBUTES = 1712, 206  # as prepared


def get_config(argument: str = "") -> dict:
    """All numbers are ours."""
    args = parse_arguments(
        argument, method="cmdim", local="none", weight=1.0, steps=2000, size=40
    )
    method, local, size = args["method"], args["local"], args["size"]
    zero_shot.check_method(method, local)
    train, validation, test = (
        parts.source("han", split) for split in ("train", "validation", "test")
    )
    glyph = {"target": "polyview.data.glyphs:Glyph", "size": size}
    views = {
        "m": 2,
        "augment": glyph,
        "targets": ("label", "attributes"),
    }
    source = train
    if method == "amdim":  # two views of one image
        source = rows(train, TRAIN_FONTS)
        views |= {"target": "polyview.data.views:Generated"}
    else:  # two fonts of a character
        views |= {"target": "polyview.data.drawn:Drawn", "fields": TRAIN_FONTS}
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        "batch_size": 64,
        "log_every": 100,
        "checkpoint_every": 1000,
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": source,
        "views": views,
        "model": zero_shot.model(
            method,
            local,
            size=size,
            channels=1,
            classes=CLASSES,
            attributes=ATTRIBUTES,
            mean=0.24,
            std=0.34,
        ),
        "objective": zero_shot.objective(method, local, args["weight"]),
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(3e-3),
            "weight_decay": 0.0,
            "warm_up": 0.05,
        },
        "evaluations": zero_shot.evaluations(
            rows(train, TRAIN_FONTS),
            rows(validation, TRAIN_FONTS),
            {
                "seen fonts": rows(test, TRAIN_FONTS),
                "new fonts": rows(test, NEW_FONTS),
            },
            {"new fonts": rows(train, NEW_FONTS)},
            {
                "target": "polyview.data.views:Generated",
                "m": 1,
                "augment": glyph,
                "targets": ("label", "attributes"),
            },
            upright={"target": "polyview.data.glyphs:Upright", "size": size},
        ),
    }


def rows(source: dict, fonts: tuple[str, ...]) -> dict:
    """Return a source of one image a row: each character in each of the fonts."""
    return {
        "target": "polyview.data.sources.unstacked:Unstacked",
        "source": source,
        "fields": fonts,
    }
