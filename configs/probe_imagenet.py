"""The linear probe of a trained encoder on ImageNet, with augmentation, by the trainer.

    python -m polyview.main --config configs/probe_imagenet.py --workdir runs/probe \
        --config.init_from=runs/in1k

Arguments: encoder (resnet50 | vit_s | vit_b), the one of the run, and dtype,
param_dtype. The encoder is frozen, its BatchNorm included. Without init_from the
encoder is untrained: the reference that any probe should be compared with. It resumes,
logs and checkpoints like any run; top-1 of the validation split is written at its end.
Hardware: one GPU or more. Expected result: not yet measured.
"""

from pathlib import Path

from polyview import config as configs
from polyview import recipes


def get_config(argument: str = "") -> dict:
    """SimCLR's linear evaluation (Chen et al. 2020, as released)."""
    args = configs.arguments(
        argument, encoder="resnet50", dtype="bfloat16", param_dtype="float32"
    )
    train = {
        "target": "polyview.data.source:Tfds",
        "name": "imagenet2012",
        "split": "train",
    }
    pretraining = Path(__file__).parent / "polyview_imagenet.py"
    config = configs.load(f"{pretraining}:encoder={args['encoder']}")
    encoder = config.model.towers.image.encoder.to_dict()
    epochs = 90
    return {
        "seed": 0,
        "steps": None,
        "epochs": epochs,
        "init_from": None,
        "batch_size": 4096,
        "log_every": 100,
        "checkpoint_every": 1000,
        "evaluate_every": 10_000,  # and at the end
        "keep": 3,
        "workers": 16,
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": recipes.generated(
            1, "RandomResizedCrop", size=224, scale=(0.08, 1.0), flip=0.5
        ),
        "model": recipes.image_model(
            encoder=encoder,
            projector={"partial": "polyview.nn.heads:Linear", "out": 1000},
            photometry=None,
            mean=(0.485, 0.456, 0.406),  # torchvision's, of ImageNet
            std=(0.229, 0.224, 0.225),
            dtype=args["dtype"],
            param_dtype=args["param_dtype"],
            frozen=True,
        ),
        "objective": {"target": "polyview.objectives.supervised:Classification"},
        "optimizer": {
            "partial": "polyview.optimizer:sgd",
            "learning_rate": {
                "partial": "polyview.optimizer:linear",
                "base": 0.1,
                "per": 256,
            },
            "weight_decay": 0.0,
            "warm_up": 0.0,
        },
        "evaluation": {
            "target": "polyview.evaluation.accuracy:Accuracy",
            "test": {**train, "split": "validation"},
            "modality": "image",
            "label": "label",
            "batch_size": 500,
            "views": recipes.generated(1, "ResizeCenterCrop", size=224, fraction=0.875),
        },
    }
