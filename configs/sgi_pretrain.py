"""SGI: an Atari encoder from recorded play, without rewards (Schwarzer et al. 2021).

    python -m sgi.prepare --game pong
    python -m polyview.main --config configs/sgi_pretrain.py:game=pong --workdir runs/a

Arguments: game; size (tiny, S, M or L); mix, the recording to learn from: R is play at
random (`GAME_random`), M and W are the recordings named `GAME_m` and `GAME_w`, for
the paper's from the DQN Replay data set, if you have its files:

    python -m sgi.prepare --game pong --name pong_m --import DIR --checkpoints 1,25,50

objective: sgi, or cloning, the baseline that copies the actions; dtype, param_dtype.
Hardware: one GPU; size=tiny on two CPU cores. Time and scores: not yet measured.
Numbers without a source are those of the official code, github.com/mila-iqia/SGI.
"""

from polyview import config as configs
from polyview.errors import InputError
from sgi import recording

SIZES = {
    "tiny": {"blocks": 1, "expand": 2, "widths": (8, 16, 16)},  # ours, for a CPU
    "S": {"widths": (32, 64, 64)},
    "M": {"blocks": 3, "expand": 2, "widths": (32, 64, 64)},
    "L": {"blocks": 5, "expand": 4, "widths": (48, 96, 96)},
}
MIXES = {"R": "random", "M": "m", "W": "w"}
WEIGHTS = {
    "sgi": {"spr": 1.0, "goal": 1.0, "inverse": 1.0, "cloning": 0.0},
    "cloning": {"spr": 0.0, "goal": 0.0, "inverse": 0.0, "cloning": 1.0},
}


def get_config(argument: str = "") -> dict:
    args = configs.arguments(
        argument,
        game="pong",
        mix="R",
        size="M",
        objective="sgi",
        dtype="float32",
        param_dtype="float32",
    )
    for key, known in ("mix", MIXES), ("size", SIZES), ("objective", WEIGHTS):
        if args[key] not in known:
            raise InputError(f"{key}={args[key]}{configs.nearest(args[key], known)}")
    name = f"{args['game']}_{MIXES[args['mix']]}"
    encoder = {"partial": "sgi.networks:Residual", "depthwise": "shifts"}  # or "lax"
    if args["size"] == "S":
        encoder = {"partial": "sgi.networks:Nature"}
    return {
        "seed": 0,
        "steps": None,
        "epochs": 10 if args["size"] == "L" else 20,
        "batch_size": 256,
        "log_every": 100,
        "checkpoint_every": 2500,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 0,  # another process would hold the recording once more
        "mesh": {"data": -1, "fsdp": 1},
        "source": {
            "target": "sgi.replay:Replay",
            "name": name,
            "split": "train",
            "ahead": 49,
        },
        "views": {
            "target": "sgi.replay:Window",
            "jumps": 5,
            "history": 4,
            "goal": (2, 49),
        },
        "model": {
            "partial": "sgi.networks:Network",
            # The game's own action set, as it was recorded.
            "actions": len(recording.describe(name)["actions"]),
            "encoder": {**encoder, **SIZES[args["size"]]},
            "hidden": 64 if args["size"] == "tiny" else 512,
            "sigma": 0.0,
            "film_value_from": "advantage",  # "value" is the evident intent
            "history": 4,
            "image": 84,
            "dtype": args["dtype"],
            "param_dtype": args["param_dtype"],
        },
        "target_decay": 0.99,
        "objective": {
            "target": "sgi.pretrain:Pretrain",
            **WEIGHTS[args["objective"]],
            "jumps": 5,
            "discount": 0.99,
            "goal_noise": 0.5,
            "goal_permutation": 0.2,
            "distance_scale": 5.0,
            "reward_scale": 10.0,
            "window_terminals": "correct",  # the official code's: "upstream"
            "goal_noise_scale": "upstream",  # or "unit": as strong as it looks
        },
        "optimizer": {
            "partial": "sgi.pretrain:adam",
            "learning_rate": {"partial": "polyview.optimizer:constant", "base": 1e-4},
            "epsilon": 1.5e-4,
            "clip": 10.0,
        },
        "evaluation": None,
    }
