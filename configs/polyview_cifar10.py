"""Poly-view learning on CIFAR-10 with a ResNet-18.

    python -m polyview.prepare cifar10
    python -m polyview.main --config configs/polyview_cifar10.py --workdir runs/cifar10

Arguments: objective, views, batch (fixed | growing), dtype, param_dtype, as in
`configs/polyview_cifar10.py:objective=geometric,views=4,batch=growing`.
Hardware: one GPU. Expected result: not yet measured.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments


def get_config(argument: str = "") -> dict:
    """Follows the multi-view baselines of Koromilas et al. 2025 (their released
    CIFAR-10 config) unless a line says otherwise."""
    args = parse_arguments(
        argument,
        objective="geometric",
        views=4,
        batch="fixed",
        dtype="float32",
        param_dtype="float32",
    )
    train = parts.source("cifar10", "train")
    test = parts.source("cifar10", "test")
    return {
        "seed": 0,
        "steps": 39_062,  # about 200 epochs of two views at 256 samples
        "epochs": None,
        # Unique samples, global; 256 at two views.
        "batch_size": parts.unique_samples(args["batch"], args["views"], 256),
        "log_every": 100,
        "checkpoint_every": 2000,
        "evaluate_every": 10_000,
        "keep": 3,
        "workers": 4,
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": parts.generated(
            args["views"], "RandomResizedCrop", size=32, scale=(0.08, 1.0), flip=0.5
        ),
        "model": parts.image_model(
            encoder={
                "partial": "polyview.nn.resnet:resnet18",
                # As in Chen et al. 2020 for CIFAR-10 (appendix B.9).
                "stem": "small",
            },
            projector={
                "partial": "polyview.nn.heads:Projector",
                "hidden": (512,),
                "out": 128,
            },
            # No blur on CIFAR-10 (Chen et al. 2020, appendix B.9).
            photometry={
                "target": "polyview.nn.photometry:Photometry",
                "strength": 0.5,
                "blur_chance": 0.0,
            },
            mean=(0.4914, 0.4822, 0.4465),  # of the training images
            std=(0.2470, 0.2435, 0.2616),
            dtype=args["dtype"],
            param_dtype=args["param_dtype"],
        ),
        "objective": parts.contrastive(args["objective"], temperature=0.5),
        "optimizer": {
            "partial": "polyview.training.optimizer:sgd",
            # 1.0 at 256 samples; the linear rule for other batches is ours.
            "learning_rate": {
                "partial": "polyview.training.optimizer:linear",
                "base": 1.0,
                "per": 256,
            },
            "momentum": 0.9,
            "weight_decay": 1e-6,
            "warm_up": 0.01,
        },
        "evaluations": {"frozen": parts.frozen(train, test, size=32, fraction=1.0)},
    }
