"""A small SGI for two CPU cores: the config of `make demo-sgi`.

    POLYVIEW_DATA=runs/demo_sgi/data python -m sgi.prepare --game pong --steps 30000
    POLYVIEW_DATA=runs/demo_sgi/data python -m polyview.main \
        --config configs/sgi_demo.py:game=pong --workdir runs/demo_sgi/pong

Arguments: game, seed. Numbers that differ from configs/sgi_pretrain.py are ours, chosen
on the probes' validation episodes in Pong so that a few minutes suffice. More steps at
this learning rate do not help: probes read the ball best between steps 250 and 750. In
so few steps the inverse model stays at chance, and cosines between projections approach
1: the probe scores do not represent SGI at full length.
"""

from pathlib import Path

from polyview.config.file import load_config
from polyview.config.overrides import parse_arguments

PRETRAIN = Path(__file__).with_name("sgi_pretrain.py")


def get_config(argument: str = "") -> dict:
    args = parse_arguments(argument, game="pong", seed=0)
    config = load_config(f"{PRETRAIN}:size=tiny,game={args['game']}").to_dict()
    config["model"]["encoder"]["widths"] = (12, 24, 24)
    config["model"]["hidden"] = 256
    # In so few steps the official 1e-4 and 1.5e-4 hardly change the weights.
    config["optimizer"]["learning_rate"]["base"] = 3e-3
    config["optimizer"]["epsilon"] = 1e-8
    return config | {
        "seed": args["seed"],
        "steps": 300,
        "epochs": None,
        "batch_size": 32,
        "log_every": 25,
        "checkpoint_every": 300,
    }
