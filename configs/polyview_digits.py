"""Poly-view learning on 8x8 digits: a run takes seconds, for trying things out.

    python -m polyview.prepare digits
    python -m polyview.main --config configs/polyview_digits.py --workdir runs/digits

Arguments: objective, views, batch (fixed | growing), dtype, param_dtype, as in
`configs/polyview_digits.py:objective=arithmetic,views=4`. objective=moco,views=2 has a
queue of negatives from a moving average of the model.
Hardware: one laptop core. Measured with one seed, test accuracy of linear probe / kNN:
96.9 / 93.6; untrained encoder 81.9 / 79.7. Raw pixels reach 97.2 / 98.3, so the learned
features are not useful in themselves.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments


def get_config(argument: str = "") -> dict:
    """All numbers are ours, chosen to run in seconds."""
    args = parse_arguments(
        argument,
        objective="geometric",
        views=4,
        batch="fixed",
        dtype="float32",
        param_dtype="float32",
    )
    config = {
        "seed": 0,
        "steps": 300,
        "epochs": None,
        # Unique samples, global.
        "batch_size": parts.unique_samples(args["batch"], args["views"], 64),
        "log_every": 20,
        "checkpoint_every": 100,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": parts.source("digits", "train"),
        "views": parts.generated(
            args["views"], "RandomResizedCrop", size=8, scale=(0.3, 1.0), flip=0.0
        ),
        "model": parts.image_model(
            encoder={
                "partial": "polyview.nn.resnet:resnet_tiny",
                "width": 16,
                "stem": "small",
                "in_channels": 1,
            },
            projector={
                "partial": "polyview.nn.heads:Projector",
                "hidden": (64,),
                "out": 32,
            },
            photometry=None,
            mean=0.306,  # of the training images
            std=0.376,
            dtype=args["dtype"],
            param_dtype=args["param_dtype"],
        ),
        "objective": parts.contrastive(args["objective"], temperature=0.2),
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(3e-3),
            "weight_decay": 1e-4,
            "warm_up": 0.1,
        },
        "evaluations": {
            "frozen": parts.frozen(
                parts.source("digits", "train"),
                parts.source("digits", "test"),
                size=8,
                fraction=1.0,
            )
        },
    }
    return with_queue(config) if args["objective"] == "moco" else config


def with_queue(config: dict) -> dict:
    """MoCo (He et al. 2020) at the temperature of its version 2 (Chen et al. 2020)."""
    model = {
        **config["model"],
        "partial": "polyview.nn.queue:QueueTowers",
        "queue": {"partial": "polyview.nn.queue:Queue", "size": 512, "features": 32},
    }
    objective = {
        "target": "polyview.objectives.momentum:MoCo",
        "temperature": 0.2,
        "modality": "image",
    }
    # 0.999 in the paper, of 200 epochs; these are 300 steps.
    decay = {"target_decay": 0.99}
    return {**config, "model": model, "objective": objective, **decay}
