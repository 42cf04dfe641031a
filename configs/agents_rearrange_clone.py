"""A policy of TextRearrange by imitation of the solver, for PPO to start from.

    python -m agents.prepare llm
    python -m agents.prepare --env rearrange:train --name rearrange --episodes 2000
    python -m polyview.main --config configs/agents_rearrange_clone.py \\
        --workdir runs/clone

Arguments: data, the demonstrations; body, model, layers and adapter as in
configs/agents_rearrange.py; steps, batch_size (episodes), rate, seed.
Hardware: two laptop cores. Rates are in docs/rearrange.md.
"""

from agents import parts as own
from polyview.config import parts
from polyview.config.overrides import parse_arguments


def get_config(argument: str = "") -> dict:
    """Sizes and rates are ours."""
    args = parse_arguments(
        argument,
        data="rearrange",
        body="frozen",
        model="smollm2_135m",
        layers=4,
        adapter="pred",
        steps=1000,
        batch_size=16,
        rate=1e-3,
        seed=0,
    )
    model, init, views = own.rearranging(
        args["body"], args["model"], args["layers"], args["adapter"]
    )
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
        "source": own.held(args["data"], "train"),
        "views": views | {"whole": True},
        "model": model,
        "init": init or None,
        "objective": {"target": "agents.clone:Cloning"},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 1e-4,
            "warm_up": 0.05,
        },
        "evaluations": {
            "splits": own.splits(views, ["train", "train_validation"], 100)
        },
    }
