"""EfficientNet-Lite0 with ImageNet weights: features of your photographs.

    python -m polyview.prepare efficientnet_lite0
    python -m polyview.import_weights --weights data/weights/SHA256.safetensors \\
        --config configs/efficientnet.py --workdir runs/efficientnet
    python -m polyview.embed --run runs/efficientnet --input photos --output x.parquet

`prepare` prints the name of the file. The weights can be trained further, without
labels, on your own images (`polyview.prepare folder`):

    python -m polyview.main --config configs/efficientnet.py:data=mine \\
        --config.init_from=runs/efficientnet --workdir runs/further

Arguments: data, the prepared data set of the evaluation and of training, in colour;
views; objective; batch (fixed | growing).
Hardware: two laptop cores for features (30 images a second), a GPU for training.
Expected result of training: not yet measured.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments

SIZE = 224


def get_config(argument: str = "") -> dict:
    """Images as the weights were trained on; what belongs to training is ours.

    Resizing is bicubic; TensorFlow's was bilinear.
    """
    args = parse_arguments(
        argument, data="cifar10", views=4, objective="geometric", batch="fixed"
    )
    train, test = (parts.source(args["data"], split) for split in ("train", "test"))
    return {
        "seed": 0,
        "steps": None,
        "epochs": 5,
        "batch_size": parts.unique_samples(args["batch"], args["views"], 128),
        "log_every": 20,
        "checkpoint_every": 500,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 4,
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": parts.generated(
            args["views"], "RandomResizedCrop", size=SIZE, scale=(0.2, 1.0), flip=0.5
        ),
        "model": parts.image_model(
            encoder={
                "partial": "polyview.nn.efficientnet:efficientnet_lite0",
                "remat": "none",
            },
            projector={
                "partial": "polyview.nn.heads:Projector",
                "hidden": (512,),
                "out": 128,
            },
            photometry={
                "target": "polyview.nn.photometry:Photometry",
                "strength": 0.5,
            },
            mean=(127 / 255,) * 3,  # of the release, as are the deviation and the crop
            std=(128 / 255,) * 3,
        ),
        "objective": parts.contrastive(args["objective"], temperature=0.2),
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(1e-4),
            "weight_decay": 1e-4,
            "warm_up": 0.1,
        },
        "evaluations": {"frozen": parts.frozen(train, test, size=SIZE, fraction=0.875)},
    }
