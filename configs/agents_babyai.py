"""A policy of a level of BabyAI, by PPO.

    python -m agents.prepare llm
    python -m agents.train --config configs/agents_babyai.py:level=GoToObj \\
        --workdir runs/goto

The level is played by envpool where it is installed (pip install '.[envpool]'), and
else by minigrid (fast=False), in `processes`.

Arguments: level; body, as in configs/agents_rearrange.py, by default "moment" (a bag of
words and the grid, without memory); model, whose tokens are read; layers, adapter;
steps of the environments, in thousands; rows; rate; fast; processes; seed.
Hardware: two laptop cores. Rates are in docs/agents.md.
"""

from agents import parts as own
from agents.environments.worlds import world
from polyview.config import parts
from polyview.config.overrides import parse_arguments

ROLLOUT = 32
ROOM = 16  # tokens of an instruction


def get_config(argument: str = "") -> dict:
    """Sizes and rates are ours, those of PPO of Schulman et al. 2017."""
    args = parse_arguments(
        argument,
        level="GoToObj",
        body="moment",
        model="smollm2_135m",
        layers=4,
        adapter="pred",
        thousand=100,
        rows=64,
        rate=1e-3,
        fast=True,
        processes=0,
        seed=0,
    )
    name = f"babyai:{args['level']}"
    played = world(name)
    grid = {
        "partial": "agents.bridges:Grid",
        "shape": list(played.shapes["grid"]),
        "codes": 16,
        "features": 8,
        "whole": True,
        "hidden": 128,
    }
    memory = args["body"] not in ("moment",)
    model, init = own.actor(
        args["body"],
        played.actions or (),
        {"grid": grid},
        played.limit + 1 if memory else 1,
        name=args["model"],
        layers=args["layers"],
        adapter=args["adapter"],
        critic={"hidden": 128},
        wide=128,
    )
    steps = max(args["thousand"] * 1000 // (args["rows"] * ROLLOUT), 1)
    views = {
        "target": "agents.data:Context",
        "observations": ["grid"],
        "span": played.limit + 1 if memory else 1,
        "text": own.tokenizer(args["model"]),
        "length": ROOM,
    }
    environment = {"name": name, "text": views["text"], "length": ROOM}
    if args["fast"]:
        environment["partial"] = "agents.environments.envpool:EnvPool"
        environment["most"] = steps * ROLLOUT
    else:
        environment["partial"] = "agents.environments.rows:rows"
        environment["processes"] = args["processes"]
    return {
        "seed": args["seed"],
        "steps": steps,
        "epochs": None,
        "rows": args["rows"],
        "rollout": ROLLOUT,
        "passes": 4,
        "minibatches": 4,
        "discount": 0.99,
        "trace": 0.95,
        "log_every": 10,
        "checkpoint_every": 50,
        "evaluate_every": 0,
        "keep": 2,
        "mesh": {"data": -1, "fsdp": 1},
        "environment": environment,
        "views": views,
        "model": model,
        "init": init or None,
        "objective": {"target": "polyview.rl.ppo:PPO", "entropy_weight": 0.01},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 0.0,
            "warm_up": 0.0,
            "epsilon": 1e-5,
            "clip": 0.5,
        },
        "evaluations": {
            "success": {
                "target": "agents.evaluation.success:Success",
                "worlds": [name],
                "views": views,
                "episodes": 100,
            }
        },
    }
