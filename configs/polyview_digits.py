"""Poly-view learning on 8x8 digits: a run of seconds, for trying things out.

    python -m polyview.prepare digits
    python -m polyview.main --config configs/polyview_digits.py --workdir runs/digits

Arguments: objective, views, batch (fixed | growing), dtype, param_dtype, as in
`configs/polyview_digits.py:objective=arithmetic,views=4`.
Hardware: one laptop core. Measured, one seed, test accuracy of linear probe / kNN:
96.9 / 93.6, untrained encoder 81.9 / 79.7. Raw pixels reach 97.2 / 98.3: this is a run
to try things with, not one that learns features worth having.
"""

from polyview import config as configs
from polyview import recipes


def get_config(argument: str = "") -> dict:
    """All numbers are ours, chosen to run in seconds."""
    args = configs.arguments(
        argument,
        objective="geometric",
        views=4,
        batch="fixed",
        dtype="float32",
        param_dtype="float32",
    )
    return {
        "seed": 0,
        "steps": 300,
        "epochs": None,
        # Unique samples, global.
        "batch_size": recipes.unique_samples(args["batch"], args["views"], 64),
        "log_every": 20,
        "checkpoint_every": 100,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": recipes.source("digits", "train"),
        "views": recipes.generated(
            args["views"], "RandomResizedCrop", size=8, scale=(0.3, 1.0), flip=0.0
        ),
        "model": recipes.image_model(
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
        "objective": recipes.contrastive(args["objective"], temperature=0.2),
        "optimizer": {
            "partial": "polyview.optimizer:adamw",
            "learning_rate": {"partial": "polyview.optimizer:constant", "base": 3e-3},
            "weight_decay": 1e-4,
            "warm_up": 0.1,
        },
        "evaluation": recipes.evaluation(
            recipes.source("digits", "train"),
            recipes.source("digits", "test"),
            size=8,
            fraction=1.0,
        ),
    }
