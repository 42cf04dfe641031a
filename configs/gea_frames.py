"""An encoder of the frames of demonstrations without their actions, by poly-view.

    python -m polyview.main --config configs/gea_frames.py:data=local+maze \\
        --workdir runs/frames

The views of a sample are frames of an episode that are near in time, each cropped anew.
All domains have the same share of a batch. `configs/gea_supervised.py:vision=RUN` takes
the encoder.

Arguments: data, data sets with images joined by +; objective; views; within, steps that
frames are apart at most, to each side of a moment; pixels; steps; batch_size, episodes;
rate; seed.
Hardware: one laptop core, minutes. What it brings is in docs/gea.md.
"""

from agents import domains
from polyview.config import parts
from polyview.config.overrides import parse_arguments


def get_config(argument: str = "") -> dict:
    """All numbers are ours.

    Colours are left as they are: instructions name them.
    """
    args = parse_arguments(
        argument,
        data="babyai_gotolocal",
        objective="geometric",
        views=4,
        within=2,
        pixels=64,
        steps=1500,
        batch_size=48,
        rate=3e-3,
        seed=0,
    )
    names = domains.named(args["data"])
    source, _ = domains.mixture(names, 1.0, domains.weights("", names), {})
    crop = {
        "target": "polyview.data.augment:RandomResizedCrop",
        "size": args["pixels"],
        "scale": (0.5, 1.0),
        "flip": 0.0,  # instructions name sides
    }
    return {
        "seed": args["seed"],
        "steps": args["steps"],
        "epochs": None,
        "batch_size": args["batch_size"],
        "log_every": 50,
        "checkpoint_every": args["steps"],
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": source,
        "views": {
            "target": "polyview.data.mixture:Alike",
            "views": {
                "target": "agents.data:Frames",
                "m": args["views"],
                "augment": crop,
                "within": args["within"],
            },
        },
        "model": parts.image_model(
            # No statistics of the batch, so that a policy can train it from random
            # weights too, for comparison.
            encoder={
                "partial": "polyview.nn.small_conv:SmallConv",
                "size": args["pixels"],
                "in_channels": 3,
                "widths": (32, 64, 64, 128),
            },
            projector={
                "partial": "polyview.nn.heads:Projector",
                "hidden": (128,),
                "out": 64,
            },
            photometry=None,
            mean=0.5,
            std=0.25,
        ),
        "objective": parts.contrastive(args["objective"], temperature=0.2),
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 1e-4,
            "warm_up": 0.1,
        },
    }
