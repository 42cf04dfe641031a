"""A policy that imitates recorded actions, those that gained most the most.

    python -m dvf.weigh --run runs/dvf --data pointmaze_medium --goal 2.5,2.5 \\
        --name pointmaze_weighted
    python -m polyview.main --config configs/dvf_policy.py:data=pointmaze_weighted \\
        --workdir runs/policy

Advantage-weighted regression (Peng et al. 2019), with values that a model of the future
gives for a goal that was chosen after its training. The evaluation lets the policy act.

Arguments: data, episodes of a maze, with actions; temperature, in deviations of the
advantages, and 0 for behaviour cloning; goal, X+Y of the evaluation, radius and
discount (by default those that the data are weighed by, else none, 0.5 and 0.97);
steps.
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
        radius=0.0,
        discount=0.0,
        steps=3000,
    )
    data, temperature = args["data"], args["temperature"]
    described = recording.describe(data)
    weighed = described.get("weighed", {})
    if "world" not in described:
        raise InputError(f"{data} was not played in a maze, where a policy could act")
    views = {"target": "dvf.transitions:Transitions", "m": 16}
    if temperature:
        if not weighed:
            raise InputError(
                f"the actions of {data} have no advantages: run python -m dvf.weigh "
                "first, or take temperature=0"
            )
        scale = described["statistics"]["advantages"]["std"] * temperature
        views |= {"advantages": "advantages", "scale": scale}
    goal = place(args["goal"]) if args["goal"] else weighed.get("goal")
    if not goal:
        raise InputError(f"{data} has no goal; give one: goal=2.5+2.5")
    radius = args["radius"] or weighed.get("radius", 0.5)
    discount = args["discount"] or weighed.get("discount", 0.97)
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
                "reward": {
                    "target": "dvf.rewards:Discs",
                    "centres": [goal],
                    "radius": radius,
                },
                "discount": discount,
            }
        },
    }


def place(text: str) -> list[float]:
    """Return x and y of "2.5+-1"."""
    try:
        x, y = (float(number) for number in text.split("+"))
    except ValueError:
        raise InputError(f"goal={text}: write a place, as goal=2.5+-1") from None
    return [x, y]
