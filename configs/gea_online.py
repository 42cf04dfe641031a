"""One policy for several domains plays on from demonstrations: the second stage of GEA.

    python -m agents.train --workdir runs/gea_online --config \\
        configs/gea_online.py:start=runs/gea,play=local

PPO in the domains that are played, and a tenth of the loss of cloning in all domains,
in each step (Szot et al. 2025). Values of each domain have their own scale (PopArt),
and one weight of the entropy serves all: it is divided by that of all legal actions.

Arguments: start, a run of configs/gea_supervised.py; scratch, True to begin from the
weights that it began from, not those that it learnt; play, domains joined by +; clone,
the weight of cloning; thousand, steps of the environments; rows, environments side by
side; rate; fast, BabyAI by envpool where it is installed; processes of other worlds;
popart, False for values on the scale of returns; privileged, observations joined by +
that values read and actions do not, such as grid; scales, what rewards are multiplied
by, numbers joined by + in the order of play; seed.
Hardware: two laptop cores. Rates are in docs/gea.md.
"""

from agents import domains
from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError

ROLLOUT = 32


def get_config(argument: str = "") -> dict:
    """Weight and terms are those of the paper; sizes and rates are ours."""
    args = parse_arguments(
        argument,
        start="runs/gea",
        scratch=False,
        play="babyai_gotolocal",
        clone=0.1,
        thousand=100,
        rows=32,
        rate=3e-4,
        fast=False,
        processes=0,
        popart=True,
        privileged="",
        scales="",
        seed=0,
    )
    for key in ("thousand", "rows"):
        if args[key] < 1:
            raise InputError(f"{key}={args[key]}; give 1 or more")
    begun = domains.begun_from(args["start"])
    playing = domains.named(args["play"])
    model = {**begun["model"], "playing": sorted(playing)}
    if not args["popart"]:
        model["domains"] = {
            name: {**of, "critic": {**of["critic"], "rate": 0.0}}
            if "critic" in of
            else of
            for name, of in model["domains"].items()
        }
    told = sorted(playing) if args["privileged"] else []
    model = domains.informed(model, told, args["privileged"])
    views, minibatches = begun["views"]["views"], 4
    steps = max(args["thousand"] * 1000 // (args["rows"] * ROLLOUT), 1)
    environments = {
        name: domains.rows(
            name, views, args["fast"], args["processes"], steps * ROLLOUT
        )
        for name in playing
    }
    found = {
        "seed": args["seed"],
        "steps": steps,
        "epochs": None,
        "rows": args["rows"],
        "rollout": ROLLOUT,
        "passes": 2,
        "minibatches": minibatches,
        "discount": 0.99,
        "trace": 0.95,
        "log_every": 10,
        "checkpoint_every": 50,
        "evaluate_every": 0,
        "keep": 2,
        "mesh": {"data": -1, "fsdp": 1},
        "environment": {
            "partial": "polyview.rl.joined:Joined",
            "environments": environments,
            "scales": domains.weights(args["scales"], playing),
        },
        "model": model,
        "init": begun["init"]
        if args["scratch"]
        else domains.learnt(args["start"], informed=told),
        "objective": {
            "target": "agents.clone:PlayAndClone",
            "play": {
                "target": "polyview.rl.ppo:PPO",
                "entropy_weight": 0.01,
                "relative_entropy": True,
            },
            "clone": begun["objective"],
            "weight": args["clone"],
        },
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 0.0,
            "warm_up": 0.0,
            "minimum": 1.0,  # no schedule
            "epsilon": 1e-5,
            "clip": 0.5,
        },
        "evaluations": begun["evaluations"],
    }
    if args["clone"]:
        # The fewest episodes with one of each domain; in the paper, 2 samples a device.
        # On several devices, set a multiple of their number.
        found["beside"] = {
            "source": begun["source"],
            "views": begun["views"],
            "batch_size": domains.fewest(begun["objective"]["shares"]),
        }
    return found
