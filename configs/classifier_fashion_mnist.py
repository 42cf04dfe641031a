"""A classifier of Fashion-MNIST with dropout, to measure how reliable its answers are.

    python -m polyview.prepare fashion_mnist
    python -m polyview.main \\
        --config configs/classifier_fashion_mnist.py:classes=0-7,label_noise=.2 \\
        --workdir runs/classifier
    python -m polyview.evaluate --run runs/classifier \\
        --evaluation configs/evaluations/reliability.py:ood=noise+inverted+digits

Arguments: classes to train on, as 0-7 (the others are then foreign); label_noise, the
share of training labels that are wrong; rows of the training split to train on, of all
classes; width of the last layer; dropout; weight_decay; steps.
Hardware: one laptop core, half a minute. Scores of reliability: docs/reliability.md.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError

SIZE = 28


def get_config(argument: str = "") -> dict:
    """All numbers are ours."""
    args = parse_arguments(
        argument,
        classes="0-9",
        label_noise=0.0,
        rows=5000,
        width=512,
        dropout=0.5,
        weight_decay=5e-4,
        steps=800,
    )
    keep = numbers(args["classes"])
    test = some(parts.source("fashion_mnist", "test"), keep)
    train = some(parts.source("fashion_mnist", f"train[:{args['rows']}]"), keep)
    if args["label_noise"]:
        train = {
            "target": "polyview.data.sources.classes:NoisyLabels",
            "source": train,
            "share": args["label_noise"],
        }
    whole = parts.generated(1, "ResizeCenterCrop", size=SIZE, fraction=1.0)
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        "batch_size": 128,
        "log_every": 100,
        "checkpoint_every": args["steps"],
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": whole,
        "model": parts.image_model(
            encoder={
                "partial": "polyview.nn.mlp:ReluMlp",
                "size": SIZE,
                "in_channels": 1,
                "widths": (256, args["width"]),
                "dropout": args["dropout"],
            },
            projector={"partial": "polyview.nn.heads:Linear", "out": len(keep)},
            photometry=None,
            mean=0.2860,  # of the training images
            std=0.3530,
        ),
        "objective": {"target": f"{parts.OBJECTIVES}.supervised:Classification"},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(1e-3),
            "weight_decay": args["weight_decay"],
            "warm_up": 0.05,
        },
        "evaluations": {
            "accuracy": {
                "target": "polyview.evaluation.accuracy:Accuracy",
                "test": test,
                "modality": "image",
                "label": "label",
                "batch_size": 500,
                "views": whole,
            }
        },
    }


def numbers(text: str) -> list[int]:
    """Return the numbers of "0-7" or of "0+2+5"."""
    try:
        ranges = [word.split("-") for word in text.split("+")]
        return [n for r in ranges for n in range(int(r[0]), int(r[-1]) + 1)]
    except ValueError:
        raise InputError(
            f"classes={text}: write a range, as 0-7, or numbers joined by +"
        ) from None


def some(source: dict, keep: list[int]) -> dict:
    """Return the rows of some of the ten classes of a source."""
    if keep == list(range(10)):
        return source
    return {
        "target": "polyview.data.sources.classes:SomeClasses",
        "source": source,
        "keep": keep,
    }
