"""Zero-shot learning from scratch: generated images of two coloured shapes.

    python -m polyview.main --config configs/zero_shot_parts.py:method=cmdim \\
        --workdir runs/parts
    python -m polyview.evaluate --run runs/parts --references

A class is a pair of parts, such as a red ring and a blue cross; unseen classes pair
parts of seen ones in another way. Images are drawn when the run starts: nothing is to
be prepared. It is small enough to compare all methods of Sylvain et al. 2020.

Arguments: method (cmdim | dim | amdim | ae | vae | aae | supcon | supervised |
attributes | local), local (none | labels | attributes), weight of the local loss,
steps.
Hardware: one laptop core, minutes. Accuracies are in docs/zero_shot.md.
"""

from polyview.config import parts, zero_shot
from polyview.config.overrides import parse_arguments

CLASSES, ATTRIBUTES, SIZE = 60, 20, 32


def get_config(argument: str = "") -> dict:
    """All numbers are ours."""
    args = parse_arguments(
        argument, method="cmdim", local="none", weight=1.0, steps=2000
    )
    method, local = args["method"], args["local"]
    zero_shot.check_method(method, local)
    train = images("train")
    whole = {
        "target": "polyview.data.augment:ResizeCenterCrop",
        "size": SIZE,
        "fraction": 1.0,
    }
    source = train
    views = {"m": 2, "augment": whole, "targets": ("label", "attributes")}
    if method == "amdim":  # two views of one image
        crop = {
            "target": "polyview.data.augment:RandomResizedCrop",
            "size": SIZE,
            "scale": (0.5, 1.0),
            "flip": 0.5,
        }
        views |= {"target": "polyview.data.views:Generated", "augment": crop}
    else:  # two images of a class
        source = {"target": "polyview.data.sources.by_class:ByClass", "source": train}
        views |= {"target": "polyview.data.drawn:Drawn"}
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        "batch_size": 32,
        "log_every": 100,
        "checkpoint_every": 2000,
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": source,
        "views": views,
        "model": zero_shot.model(
            method,
            local,
            size=SIZE,
            channels=3,
            classes=CLASSES,
            attributes=ATTRIBUTES,
            mean=0.5,
            std=0.25,
        ),
        "objective": zero_shot.objective(method, local, args["weight"]),
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(8e-3),
            "weight_decay": 0.0,
            "warm_up": 0.05,
        },
        "evaluations": zero_shot.evaluations(
            {**train, "size": 6400},  # 200 a class fit the classifiers
            images("validation"),
            {"new images": images("test")},
            {"new images": images("seen_test")},
            {**views, "target": "polyview.data.views:Generated", "m": 1}
            | {"augment": whole},
        ),
    }


def images(split: str) -> dict:
    """Return the source of a split."""
    return {"target": "polyview.data.parts:Parts", "split": split}
