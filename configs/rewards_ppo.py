"""A policy of BabyAI that learns from a reward network beside the level's own reward.

    python -m agents.train --config configs/rewards_ppo.py:reward=runs/reward \\
        --workdir runs/shaped

`reward` is a run of configs/rewards_distil.py; its network is fixed, and its scale is
what the run's evaluation says of the training pairs. The level, and what captions
mention, are those of the pairs. All else is as in configs/agents_babyai.py, which
learns from the level's reward alone.

Arguments: reward; form, "potential" (leaves the best policy what it is), "thresholded"
(above a quantile of the reward, divided by a power of how often the episode has shown
the same) or "raw"; quantile; power; weight of what is made of the reward, extrinsic of
the level's own; level, if another than that of the pairs; body, "moment" or "gru";
steps of the environments, in thousands; rows; rate; fast; processes; seed.
Hardware: two laptop cores.
"""

from typing import Any

import agents_babyai

from agents import parts as own
from agents.feedback import pairs
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError


def get_config(argument: str = "") -> dict:
    """Quantile .5 and power 3 are those of the code of Klissarov et al. 2024."""
    args = parse_arguments(
        argument,
        reward="",
        form="potential",
        quantile=0.5,
        power=3.0,
        weight=0.1,
        extrinsic=1.0,
        level="",
        body="moment",
        model="smollm2_135m",
        thousand=100,
        rows=64,
        rate=1e-3,
        fast=True,
        processes=0,
        seed=0,
    )
    run = args["reward"]
    if not run:
        raise InputError("give reward=RUN, a run of configs/rewards_distil.py")
    if args["body"] not in ("moment", "gru"):
        raise InputError(f"body={args['body']!r}; give moment or gru")
    rewarding, scale = own.scale_of(run)
    described = pairs.describe(_part(run, rewarding, "source.name", str))
    level = args["level"] or _level(described)
    same = ("body", "model", "thousand", "rows", "rate", "fast", "processes", "seed")
    given = ",".join(f"{key}={args[key]}" for key in same)
    made = agents_babyai.get_config(f"level={level},{given}")
    if made["views"]["text"] != _part(run, rewarding, "views.text", dict):
        raise InputError(
            f"{run} reads the tokens of another language model than model="
            f"{args['model']}; give its own"
        )
    shown = _part(run, rewarding, "views.observations", list)
    if len(shown) != 1:
        raise InputError(
            f"{run} reads {len(shown)} observations; train one that reads 1"
        )
    if shown == ["caption"]:
        made["environment"] |= {
            "caption": True,
            "caption_length": _part(run, rewarding, "views.room", int),
            "goal_only": described["settings"].get("goal_only", False),
        }
    made["model"] = {
        "partial": "agents.feedback.shaping:Rewarded",
        "actor": made["model"],
        "reward": rewarding["model"],
    }
    made["init"] = {"reward": {"from": run, "path": ""}}
    made["shaping"] = own.shaping(
        args["form"],
        scale,
        quantile=args["quantile"],
        weight=args["weight"],
        extrinsic=args["extrinsic"],
        discount=made["discount"],
        power=args["power"],
        counted=shown[0],
    )
    return made


def _part(run: str, config: dict, key: str, kind: type) -> Any:
    """Return a part of a run's config. Raises InputError if it is of another kind."""
    found: Any = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, kind):
        raise InputError(
            f"{run} is damaged: its config has no {key}; train it again: "
            "configs/rewards_distil.py"
        )
    return found


def _level(described: dict) -> str:
    """Return the level of pairs."""
    tasks = described["tasks"]
    kind, _, level = tasks[0].partition(":")
    if len(tasks) > 1 or kind != "babyai":
        raise InputError(f"the pairs are of {', '.join(tasks)}; name one: level=GoTo")
    return level
