"""The pole on a cart, by PPO: the smallest problem of reinforcement learning.

    python -m agents.train --config configs/ppo_cartpole.py --workdir runs/cartpole

The environment runs on the device; host=True plays Gymnasium's CartPole-v1 on the host
(pip install gymnasium), in `processes` beside this one. Both are the same equations.

Arguments: host; processes; rows; thousand, steps of the environments; width; rate;
seed. Hardware: two laptop cores.
"""

from polyview.config import parts
from polyview.config.overrides import parse_arguments

ACTORS = "polyview.rl.actors"
ROLLOUT, NUMBERS, ACTIONS = 128, 4, 2


def get_config(argument: str = "") -> dict:
    """Numbers are those of CleanRL's `ppo.py` (Huang et al. 2022), rows=4 there.

    What differs: the first two layers serve actions and values alike, so values are
    on a scale of their own (else their large errors drown what actions need); the layer
    of values has SiLU; the rate falls by half a cosine, not by a line; a minibatch is
    whole rows of play, not steps of all rows; the last state of an episode that was cut
    off keeps its value.
    """
    args = parse_arguments(
        argument,
        host=False,
        processes=0,
        rows=8,
        thousand=500,
        width=64,
        rate=2.5e-4,
        seed=0,
    )
    environment: dict = {"target": "polyview.rl.cartpole:CartPole"}
    if args["host"]:
        environment = {
            "partial": "polyview.rl.rows:HostRows",
            "make": {"partial": "polyview.rl.rows:Gymnasium", "name": "CartPole-v1"},
            "processes": args["processes"],
        }
    return {
        "seed": args["seed"],
        "steps": max(args["thousand"] * 1000 // (args["rows"] * ROLLOUT), 1),
        "epochs": None,
        "rows": args["rows"],
        "rollout": ROLLOUT,
        "passes": 4,
        "minibatches": 4,
        "discount": 0.99,
        "trace": 0.95,
        "log_every": 10,
        "checkpoint_every": 10_000,
        "keep": 2,
        "mesh": {"data": -1, "fsdp": 1},
        "environment": environment,
        "model": {
            "partial": f"{ACTORS}:Reactive",
            "encoders": {"state": {"partial": f"{ACTORS}:Dense", "size": NUMBERS}},
            "actions": ACTIONS,
            "width": args["width"],
            "critic": {"hidden": args["width"], "rate": 0.02},
        },
        "objective": {
            "target": "polyview.rl.ppo:PPO",
            "clip": 0.2,
            "value_weight": 0.5,
            "entropy_weight": 0.01,
            "value_loss": "larger",
            "value_clip": 0.2,
        },
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 0.0,
            "warm_up": 0.0,
            "epsilon": 1e-5,
            "clip": 0.5,
        },
    }
