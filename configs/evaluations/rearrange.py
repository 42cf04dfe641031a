"""Success in the splits of TextRearrange, of a policy that was cloned or has played.

    python -m polyview.evaluate --run runs/llarp \\
        --evaluation configs/evaluations/rearrange.py:split=all,episodes=1000

Arguments: split, names joined by +, or "all" (`agents.rearrange.tasks:SPLITS`);
episodes of each; seeds, "validation" or "test": where fewer than the 1,000 episodes of
a split are played, they are others.
"""

from agents import parts
from agents.rearrange.tasks import SPLITS
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError, nearest


def get_evaluations(argument: str, run: dict) -> dict:
    """Return one evaluation, with a world for each split."""
    args = parse_arguments(argument, split="all", episodes=200, seeds="test")
    names = list(SPLITS) if args["split"] == "all" else args["split"].split("+")
    for name in names:
        if name not in SPLITS:
            raise InputError(f"split={args['split']}{nearest(name, SPLITS)}")
    own = (run.get("evaluations") or {}).get("splits")
    if own is None:
        raise InputError(
            "this run is none of configs/agents_rearrange.py or "
            "configs/agents_rearrange_clone.py"
        )
    made = parts.splits(own["views"], names, args["episodes"])
    return {"rearrange": made | {"split": args["seeds"]}}
