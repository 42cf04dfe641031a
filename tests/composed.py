"""A config of two packages: poly-view training of SGI's encoder on recorded play."""

from polyview.config import parts
from polyview.config.overrides import parse_arguments

ENCODER = {"partial": "sgi.encoders:Nature", "widths": (8, 16, 16)}


def get_config(argument: str = "") -> dict:
    """Two stacks of frames, three steps apart, are the views of one sample."""
    args = parse_arguments(argument, name="play")
    return {
        "seed": 0,
        "steps": 3,
        "epochs": None,
        "batch_size": 16,
        "log_every": 1,
        "checkpoint_every": 3,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": {"target": "sgi.replay:Replay", "name": args["name"], "ahead": 3},
        "views": {"target": "sgi.replay:Stacks", "offsets": (0, 3)},
        "model": {
            "partial": "polyview.nn.towers:Towers",
            "towers": {
                "frames": {
                    "partial": "polyview.nn.towers:Tower",
                    "encoder": {"partial": "sgi.encoders:Pooled", "encoder": ENCODER},
                    "projector": {
                        "partial": "polyview.nn.heads:Projector",
                        "hidden": (32,),
                        "out": 16,
                    },
                }
            },
        },
        "objective": parts.contrastive("geometric", 0.2) | {"modality": "frames"},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(1e-3),
            "weight_decay": 1e-4,
            "warm_up": 0.0,
        },
    }
