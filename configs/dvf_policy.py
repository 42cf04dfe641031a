"""A policy that imitates recorded actions, those that gained most the most.

    python -m dvf.weigh --run runs/dvf --data pointmaze_medium --goal 2.5,2.5 \\
        --name pointmaze_weighted
    python -m polyview.main --config configs/dvf_policy.py:data=pointmaze_weighted \\
        --workdir runs/policy

Advantage-weighted regression (Peng et al. 2019), with values that a model of the future
gives for a goal that was chosen after its training. The evaluation lets the policy act.

Arguments: data, episodes with actions; world that they are from; temperature, in
deviations of the advantages, and 0 for behaviour cloning; goal, X+Y of the evaluation
(by default the goal that the data are weighed by); steps.
Hardware: one laptop core, seconds. Returns are in docs/dvf.md.
"""

import dvf.parts
from dvf import recording
from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError


def get_config(argument: str = "") -> dict:
    """All numbers are ours."""
    args = parse_arguments(
        argument,
        data="pointmaze_weighted",
        temperature=1.0,
        goal="",
        discount=0.97,
        steps=3000,
    )
    data, temperature = args["data"], args["temperature"]
    described = recording.describe(data)
    weighed = described.get("weighed")
    views = {"target": "dvf.transitions:Transitions", "m": 16}
    if temperature:
        if weighed is None:
            raise InputError(
                f"the actions of {data} have no advantages: run python -m dvf.weigh "
                "first, or take temperature=0"
            )
        scale = described["statistics"]["advantages"]["std"] * temperature
        views |= {"advantages": "advantages", "scale": scale}
    goal = args["goal"] and [float(x) for x in args["goal"].split("+")]
    goal = goal or (weighed and weighed["goal"])
    if not goal:
        raise InputError(f"{data} has no goal; give one: goal=2.5+2.5")
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        "batch_size": 16,  # episodes: 256 actions
        "log_every": 250,
        "checkpoint_every": args["steps"],
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": dvf.parts.episodes(data),
        "views": views,
        "model": {
            "partial": "dvf.acting:Policy",
            **dvf.parts.scale(data),
            "actions": len(described["action"]),
        },
        "objective": {"target": "dvf.acting:Imitation"},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(1e-3),
            "weight_decay": 0.0,
            "warm_up": 0.02,
        },
        "evaluations": {
            "play": {
                "target": "dvf.evaluation.play:Returns",
                "world": {"target": "dvf.worlds:world", "name": described["world"]},
                "reward": {"target": "dvf.rewards:Discs", "centres": [goal]},
                "discount": args["discount"],
            }
        },
    }
