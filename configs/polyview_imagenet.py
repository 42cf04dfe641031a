"""Poly-view learning on ImageNet with a ResNet-50 or a ViT at 224 px.

    python -m polyview.prepare imagenet2012 --manual_dir DIR_OF_THE_TWO_TARS
    python -m polyview.main --config configs/polyview_imagenet.py --workdir runs/in1k

Arguments: encoder (resnet50 | vit_s | vit_b), objective, views, batch (fixed |
growing), dtype, param_dtype, as in `configs/polyview_imagenet.py:views=8,batch=fixed`;
data, the name of your own images (`polyview.prepare folder`), instead of ImageNet.
SimCLR is `objective=nt_xent,views=2`. batch=fixed keeps 2 x 4096 views a step, for any
number of views a sample; batch=growing keeps 4096 samples. Hardware: a pod slice or 8
GPUs; see the README. Expected result: not yet measured.

If memory is short, try in order of increasing cost: remat=dots, then remat=blocks (see
`polyview.nn.rematerialisation`); `--config.mesh.fsdp=8` for the state; microbatch=512
(see `polyview.training.microbatch`), which requires a ViT and norm=none, that is, no
BatchNorm in the projector; last accumulate=4, which changes the loss.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError, nearest


def get_config(argument: str = "") -> dict:
    """Follows SimCLR (Chen et al. 2020, as released) unless a line says otherwise.

    The learning rate of the poly-view paper is not public. Ours scales with the unique
    samples; sweeping it is left to the user.
    """
    args = parse_arguments(
        argument,
        data="",
        encoder="resnet50",
        objective="geometric",
        views=8,
        batch="fixed",
        dtype="bfloat16",
        param_dtype="float32",
        norm="batch",
        remat="none",
        microbatch=None,
        accumulate=1,
    )
    epochs = 128  # the unit of relative compute of Shidani et al. 2024
    if args["data"]:
        train = parts.source(args["data"], "train")
        test = parts.source(args["data"], "test")
    else:
        train = {
            "target": "polyview.data.sources.tfds:Tfds",
            "name": "imagenet2012",
            "split": "train",
        }
        test = {**train, "split": "validation"}
    return {
        "seed": 0,
        "steps": None,
        "epochs": epochs,
        # Unique samples, global; 4096 at two views.
        "batch_size": parts.unique_samples(args["batch"], args["views"], 4096),
        "microbatch": args["microbatch"],
        "accumulate": args["accumulate"],
        "log_every": 100,
        "checkpoint_every": 1000,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 16,
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": parts.generated(
            args["views"], "RandomResizedCrop", size=224, scale=(0.08, 1.0), flip=0.5
        ),
        "model": parts.image_model(
            encoder={**encoder(args["encoder"]), "remat": args["remat"]},
            projector={
                "partial": "polyview.nn.heads:Projector",
                "hidden": (2048,),
                "out": 128,
                "norm": args["norm"],
            },
            photometry={"target": "polyview.nn.photometry:Photometry"},
            mean=(0.485, 0.456, 0.406),  # torchvision's for ImageNet
            std=(0.229, 0.224, 0.225),
            dtype=args["dtype"],
            param_dtype=args["param_dtype"],
        ),
        "objective": parts.contrastive(args["objective"], temperature=0.1),
        "optimizer": optimizer(args["encoder"], epochs),
        "evaluations": {"frozen": parts.frozen(train, test, size=224, fraction=0.875)},
    }


def encoder(name: str) -> dict:
    """Return the spec of a named encoder."""
    encoders = {
        "resnet50": {"partial": "polyview.nn.resnet:resnet50", "zero_scale": True},
        "vit_s": {"partial": "polyview.nn.vit:vit_s", "patch": 16, "image": 224},
        "vit_b": {"partial": "polyview.nn.vit:vit_b", "patch": 16, "image": 224},
    }
    if name not in encoders:
        raise InputError(f"encoder={name!r}{nearest(name, encoders)}")
    return encoders[name]


def optimizer(name: str, epochs: int) -> dict:
    """Return LARS for a ResNet; for a ViT, AdamW as in MoCo v3 (Chen et al. 2021)."""
    linear = {"partial": "polyview.training.optimizer:linear", "per": 256}
    if name == "resnet50":
        return {
            "partial": "polyview.training.optimizer:lars",
            "learning_rate": {**linear, "base": 0.3},
            "weight_decay": 1e-6,
            "warm_up": 10 / epochs,  # 10 epochs
        }
    return {
        "partial": "polyview.training.optimizer:adamw",
        "learning_rate": {**linear, "base": 1.5e-4},
        "weight_decay": 0.1,
        "warm_up": 40 / 300,  # 40 of 300 epochs
    }
