"""Gaussian views with known mutual information (Shidani et al. 2024).

    python -m polyview.main --config configs/polyview_gaussian.py --workdir runs/a

Arguments: objective (geometric, arithmetic, sufficient_statistics or multi_crop),
views, batch_size, steps, deviation (standard deviation of the noise; the factor's is
1), seed. Each step draws new samples; one CPU core is enough. `benchmarks/gaussian.py`
trains all objectives and compares their bounds with the closed form.
"""

from ml_collections import ConfigDict

from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError, nearest

OBJECTIVES = ("multi_crop", "geometric", "arithmetic", "sufficient_statistics")


def get_config(argument=""):
    given = parse_arguments(
        argument,
        objective="geometric",
        views=4,
        batch_size=128,
        steps=2500,
        deviation=0.5,
        seed=0,
    )
    name = given["objective"]
    if name not in OBJECTIVES:
        raise InputError(f"objective={name} is unknown{nearest(name, OBJECTIVES)}")
    # A bound on mutual information needs unbounded scores, so no unit vectors.
    loss = {
        "partial": f"polyview.objectives.contrastive:{name}",
        "temperature": 1.0,
        "normalize": False,
    }
    if name == "sufficient_statistics":
        loss["renormalize"] = False
    bound = "pairwise_bound" if name == "multi_crop" else "mutual_information_bound"
    return ConfigDict(
        {
            "seed": given["seed"],
            "steps": given["steps"],
            "epochs": None,
            "batch_size": given["batch_size"],
            "log_every": 100,
            "checkpoint_every": given["steps"],
            "evaluate_every": 0,
            "workers": 0,
            "mesh": {"data": -1, "fsdp": 1},
            "source": {
                "target": "polyview.data.gaussian:Factors",
                "size": given["steps"] * given["batch_size"],
                "seed": given["seed"],
            },
            "views": {
                "target": "polyview.data.gaussian:Readings",
                "m": given["views"],
                "deviation": given["deviation"],
            },
            "model": {
                "partial": "polyview.nn.towers:Towers",
                "towers": {
                    "x": {
                        "partial": "polyview.nn.towers:Tower",
                        "encoder": {"partial": "polyview.nn.mlp:Mlp", "inputs": 1},
                        "projector": {"partial": "polyview.nn.heads:Identity"},
                        "mean": 0.0,
                        "std": 1.0,
                    }
                },
            },
            "objective": {
                "target": "polyview.objectives.contrastive:Contrastive",
                "loss": loss,
                "modality": "x",
                "bound": {"partial": f"polyview.objectives.bounds:{bound}"},
            },
            "optimizer": {
                "partial": "polyview.training.optimizer:adamw",
                "learning_rate": parts.constant_rate(3e-3),
                "weight_decay": 0.0,
                "warm_up": 0.0,
            },
            "evaluations": None,
        }
    )
