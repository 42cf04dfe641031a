"""Poly-view learning on Fashion-MNIST, small enough for two CPU cores: the demo.

    python -m polyview.prepare fashion_mnist
    python -m polyview.main --config configs/polyview_fashion_mnist.py --workdir runs/a

Arguments: objective, views, batch (fixed | growing), dtype, param_dtype, as in
`configs/polyview_fashion_mnist.py:objective=nt_xent,views=2`: SimCLR with four times
the unique samples and the same total number of views.
Hardware: two laptop cores or one small GPU; a run takes minutes. Measured: see the
results of the demo in the README.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments


def get_config(argument: str = "") -> dict:
    """Numbers without a source are ours."""
    args = parse_arguments(
        argument,
        objective="geometric",
        views=8,
        batch="fixed",
        dtype="float32",
        param_dtype="float32",
    )
    train = parts.source("fashion_mnist", "train")
    test = parts.source("fashion_mnist", "test")
    return {
        "seed": 0,
        "steps": 1000,
        "epochs": None,
        # Unique samples, global: 512 views a step when batch=fixed.
        "batch_size": parts.unique_samples(args["batch"], args["views"], 256),
        "log_every": 20,
        "checkpoint_every": 500,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": parts.generated(
            args["views"], "RandomResizedCrop", size=28, scale=(0.2, 1.0), flip=0.5
        ),
        "model": parts.image_model(
            encoder={
                "partial": "polyview.nn.resnet:resnet_tiny",
                "in_channels": 1,
            },
            projector={
                "partial": "polyview.nn.heads:Projector",
                "hidden": (256,),
                "out": 64,
            },
            # Half of SimCLR's strength, as for CIFAR-10 (Chen et al. 2020, appendix
            # B.9).
            photometry={
                "target": "polyview.nn.photometry:Photometry",
                "brightness": 0.4,
                "contrast": 0.4,
                "blur_chance": 0.0,
            },
            mean=0.2860,  # of the training images
            std=0.3530,
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
        "evaluations": {"frozen": parts.frozen(train, test, size=28, fraction=1.0)},
    }
