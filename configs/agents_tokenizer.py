"""A tokenizer of continuous actions: a residual VQ-VAE, trained by a run of its own.

    python -m agents.prepare --env metaworld
    python -m polyview.main --config configs/agents_tokenizer.py:data=metaworld \\
        --workdir runs/tokenizer

A policy takes it from the run, with weights that no step changes. With codebooks=1 it
is a VQ-VAE. The evaluation shows residual k-means of the same size beside it.

With data=A+B one tokenizer serves the actions of several worlds, as in GEA (Szot et al.
2025): shorter ones get zeros after them, and each world has the same share of a batch.

Arguments: data, demonstrations with continuous actions; codebooks and codes of each;
dim of a code, 0 for twice as many as an action has numbers; width of the networks;
steps; split of the evaluation, "validation" to choose by, "test" once.
Hardware: one laptop core, minutes.
"""

from agents import domains
from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError


def get_config(argument: str = "") -> dict:
    """All numbers are ours, chosen on Meta-World's scripted experts.

    Szot et al. 2024 have 2 x 512 codes of dimension 1024.
    """
    args = parse_arguments(
        argument,
        data="metaworld",
        codebooks=2,
        codes=256,
        dim=0,
        width=256,
        steps=3000,
        split="validation",
    )
    several = "+" in args["data"]
    names = domains.named(args["data"]) if several else [args["data"]]
    low, high, distinct = domains.ranges(names)
    if distinct is not None and args["codes"] > distinct:
        raise InputError(
            f"codes={args['codes']}, and {args['data']} has only {distinct} different "
            "actions; take fewer codes"
        )
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        # Episodes: 4,096 actions, of which the first batch decides where codes begin.
        # 1,024 are quicker, and end a tenth above.
        "batch_size": 64,
        "log_every": 250,
        "checkpoint_every": args["steps"],
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        **domains.actions(names, len(low)),
        "model": {
            "partial": "agents.tokenizers.residual:ResidualVQ",
            "low": tuple(low),
            "high": tuple(high),
            "codebooks": args["codebooks"],
            "codes": args["codes"],
            "width": args["width"],
            "dim": args["dim"] or 2 * len(low),
            "depth": 2,
            "decay": 0.99,
            "threshold": 0.02,
        },
        "objective": {
            "target": "agents.tokenizers.training:Quantisation",
            "commitment": 0.1,  # at 1, the error was half as large again
        },
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(3e-3),
            "weight_decay": 1e-4,
            "warm_up": 0.1,
        },
        "evaluations": {
            "tokens" if len(names) == 1 else f"tokens_{name}": {
                "target": "agents.evaluation.tokens:Tokens",
                "test": domains.padded(
                    parts.source(name, args["split"]), names, len(low)
                ),
                "train": domains.padded(parts.source(name, "train"), names, len(low)),
                "codes": args["codes"],
            }
            for name in names
        },
    }
