"""SGI: an Atari encoder from recorded play, without rewards (Schwarzer et al. 2021).

    python -m sgi.prepare --game pong
    python -m polyview.main --config configs/sgi_pretrain.py:game=pong --workdir runs/a

Arguments: game, as ale-py or gymnasium spells it; size (tiny, S, M or L); objective:
sgi, or cloning, the baseline that copies the actions; dtype, param_dtype; mix, the
recording to train on: R is random play (`GAME_random`), the others are agents' play.
The paper's mixes are parts of the DQN Replay data set, if you have its files:

    M   --game pong --name pong_m --import DIR --checkpoints 1,25,50
    ML  --game pong --name pong_ml --import DIR --checkpoints 1,5,10,15,20,25
    W   --game pong --name pong_w --import RUN1 RUN2 RUN3 RUN4 RUN5 --checkpoints 1

after `python -m sgi.prepare`; SGI-M/L is `mix=ML,size=L`, the others have size M. You
can record your own agent under the same name instead: `--agent RUN@STEP RUN@STEP ...`.
Evaluation reads play from another seed: the inverse model's accuracy, and probes of the
game's variables if they are known:

    python -m sgi.prepare --game pong --steps 20000 --seed 1 --name pong_probe
    python -m polyview.evaluate --run runs/a --references

Hardware: one GPU; size=tiny on two CPU cores. Time and scores: not yet measured.
Numbers without a source are from the official code, github.com/mila-iqia/SGI.
"""

from polyview.config import parts as config_parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError, nearest
from sgi import parts, recording
from sgi.games import canonical_name
from sgi.ram import ADDRESSES

# Recordings and epochs; the paper's R was not released, and its 20 epochs are ours.
MIXES = {"R": ("random", 20), "M": ("m", 20), "ML": ("ml", 10), "W": ("w", 20)}
WEIGHTS = {
    "sgi": {"spr": 1.0, "goal": 1.0, "inverse": 1.0, "cloning": 0.0},
    "cloning": {"spr": 0.0, "goal": 0.0, "inverse": 0.0, "cloning": 1.0},
}


def get_config(argument: str = "") -> dict:
    args = parse_arguments(
        argument,
        game="pong",
        mix="R",
        size="M",
        objective="sgi",
        dtype="float32",
        param_dtype="float32",
    )
    for key, known in ("mix", MIXES), ("objective", WEIGHTS):
        if args[key] not in known:
            raise InputError(f"{key}={args[key]}{nearest(args[key], known)}")
    game = canonical_name(args["game"])
    suffix, epochs = MIXES[args["mix"]]
    name = f"{game}_{suffix}"
    play = recording.describe(name)
    if args["mix"] != "R" and play.get("policy") == "random":
        raise InputError(
            f"{name} is random play; mix={args['mix']} requires agents' play"
        )
    held = {
        "recording": f"{game}_probe",
        "every": 2,
        "validation": 0.2,
        "test": 0.2,
        "batch_size": 100,
    }
    evaluations = {}
    if args["objective"] == "sgi":
        actions = {"target": "sgi.actions:Actions", "states": 200}
        evaluations["actions"] = actions | held
    if game in ADDRESSES:
        variables = {
            "target": "sgi.probes:Variables",
            "strengths": tuple(10.0**power for power in range(-8, -1)),
            "entropy": 0.6,  # Anand et al. 2019
        }
        evaluations["variables"] = variables | held
    return {
        "seed": 0,
        "steps": None,
        "epochs": epochs,
        "batch_size": 256,
        "log_every": 100,
        "checkpoint_every": 2500,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 0,  # each worker process would load the recording again
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
        "model": parts.network(
            args["size"],
            # The game's own action set, as recorded.
            len(play["actions"]),
            sigma=0.0,
            dtype=args["dtype"],
            param_dtype=args["param_dtype"],
        ),
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
            "goal_noise_scale": "upstream",  # or "unit": latents scaled to length 1
            # The paper's values. Ours: "online"; "windows" or "none".
            "inverse_sees": "average",
            "augmentation": "stacks",
        },
        "optimizer": {
            "partial": "sgi.pretrain:adam",
            "learning_rate": config_parts.constant_rate(1e-4),
            "schedule": "constant",  # ours: "cosine"
            "epsilon": 1.5e-4,
            "clip": 10.0,
        },
        "evaluations": evaluations or None,
    }
