"""SGI's agent: Rainbow with SPR, from a pre-trained network (Schwarzer et al. 2021).

    python -m sgi.prepare --game pong
    python -m polyview.main --config configs/sgi_pretrain.py:game=pong --workdir runs/a
    python -m sgi.finetune --config configs/sgi_finetune.py:game=pong --workdir runs/b \
        --config.init_from=runs/a

Arguments: game, as ale-py or gymnasium spells it; size (tiny, S, M or L), as in the
pre-trained run; start (pretrained or scratch): scratch takes no init_from, has one
learning rate and clips gradients; double: True is double Q-learning, as released (the
release names no such key, but its scripts/run.py starts from rlpyt's config `ernbw`,
which sets it), False the plain maximum of C51, the default of rlpyt's algorithm; dtype,
param_dtype. All seeds play side by side in one process.
Hardware: one GPU, with 0.7 GB of replay memory a seed; size=tiny on two CPU cores. Time
and scores: not yet measured.
Numbers without a source are from the official code, github.com/mila-iqia/SGI.
"""

from polyview.config.overrides import parse_arguments
from polyview.errors import InputError, nearest
from sgi import parts
from sgi.atari import Game

RATES = {
    "pretrained": {"encoder": 1e-6, "first": 3e-5, "rest": 1e-4, "clip": None},
    "scratch": {"encoder": 1e-4, "first": 1e-4, "rest": 1e-4, "clip": 10.0},
}


def get_config(argument: str = "") -> dict:
    args = parse_arguments(
        argument,
        game="pong",
        size="M",
        start="pretrained",
        double=True,
        dtype="float32",
        param_dtype="float32",
    )
    if args["start"] not in RATES:
        raise InputError(f"start={args['start']}{nearest(args['start'], RATES)}")
    game = Game(args["game"])
    return {
        "game": game.name,
        "start": args["start"],
        "init_from": None,
        "seed": 0,  # the first agent's; the others count up from it
        "seeds": 10,
        "steps": 100_000,  # four frames each
        "random_steps": 2000,
        "updates_per_step": 2,
        "batch_size": 32,
        "n_step": 10,
        "discount": 0.99,
        "priority": {"alpha": 0.5, "beta": (0.4, 1.0)},  # beta: first and last
        "log_every": 500,  # ours, as are the next two
        "checkpoint_every": 10_000,
        "evaluate_every": 0,  # at the end only
        "keep": 2,
        "model": parts.network(
            args["size"],
            len(game.actions),
            sigma=0.5,
            dtype=args["dtype"],
            param_dtype=args["param_dtype"],
        ),
        "target_decay": 0.99,
        "objective": {
            "target": "sgi.agent:Rainbow",
            "spr": 5.0,
            "jumps": 5,
            "double": args["double"],
        },
        "optimizer": {
            "partial": "sgi.agent:grouped_adam",
            **RATES[args["start"]],
            "epsilon": 1.5e-4,
        },
        "evaluation": {
            "target": "sgi.score_episodes:Evaluation",
            "episodes": 100,
            "epsilon": 0.001,
            "cap": 27_000,  # steps: half an hour of play
        },
    }
