"""LLaRP: a language model that acts, by reinforcement learning in TextRearrange.

    python -m agents.prepare llm
    python -m agents.train --config configs/agents_rearrange.py:body=frozen,layers=4 \\
        --workdir runs/llarp

A fixed language model reads an instruction and what was seen, and bridge, action head
and values are trained by PPO (Szot et al. 2024). Start from imitation with
start=RUN, a run of configs/agents_rearrange_clone.py with the same arguments.

Arguments: body, "frozen", "lora", "trained" or "random" (the same shape from random
weights, all trained or none), or "gru" (no body: a bag of words, and a GRU); model, a
prepared language model, whose tokens all of them read; layers, its first ones; adapter,
"pred", "lang" or "semlang"; start, a run to begin from; million, steps of the
environments in millions; rows, environments side by side; rate; penalty of invalid
skills; seed.
Hardware: two laptop cores. Rates are in docs/rearrange.md.
"""

from agents import parts as own
from polyview.config import parts
from polyview.config.overrides import parse_arguments

ROLLOUT = 64


def get_config(argument: str = "") -> dict:
    """Constants of PPO are those of LLaRP's code but where they are said to be ours."""
    args = parse_arguments(
        argument,
        body="frozen",
        model="smollm2_135m",
        layers=4,
        adapter="pred",
        start="",
        million=2.0,
        rows=32,
        rate=3e-4,
        penalty=0.0,
        seed=0,
    )
    model, init, views = own.rearranging(
        args["body"], args["model"], args["layers"], args["adapter"]
    )
    if args["start"]:
        init = {"": {"from": args["start"], "path": ""}}
    text = {"text": views["text"], "length": views["length"]}
    steps = max(int(args["million"] * 1e6) // (args["rows"] * ROLLOUT), 1)
    return {
        "seed": args["seed"],
        "steps": steps,
        "epochs": None,
        "rows": args["rows"],
        "rollout": ROLLOUT,  # 32 in LLaRP, whose episodes have as many steps as ours
        "passes": 2,
        "minibatches": 8,
        "discount": 0.99,
        "trace": 0.95,
        "log_every": 10,
        "checkpoint_every": 50,
        "evaluate_every": 0,
        "keep": 2,
        "mesh": {"data": -1, "fsdp": 1},
        "environment": {
            "target": "agents.rearrange.environment:Rearrange",
            "split": "train",
            "invalid_penalty": args["penalty"],
            **text,
        },
        "views": views,
        "model": model,
        "init": init or None,
        "objective": {
            "target": "polyview.rl.ppo:PPO",
            "clip": 0.2,
            "value_weight": 0.5,
            "entropy_weight": 0.01,
            "standardise": False,
        },
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 0.0,  # ours
            "warm_up": 0.0,
            "minimum": 1.0,  # no schedule
            "epsilon": 1e-5,
            "clip": 0.2,
        },
        "evaluations": {
            "splits": own.splits(views, ["train", "train_validation"], 100)
        },
    }
