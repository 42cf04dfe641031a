"""A small SGI for two CPU cores: what `make demo-sgi` trains.

    POLYVIEW_DATA=runs/demo_sgi/data python -m sgi.prepare --game pong --steps 30000
    POLYVIEW_DATA=runs/demo_sgi/data python -m polyview.main \
        --config configs/sgi_demo.py:game=pong --workdir runs/demo_sgi/pong

Arguments: game, seed. What differs from configs/sgi_pretrain.py is ours, chosen in Pong
by the probes' validation episodes so that a few minutes suffice.
"""

from pathlib import Path

from polyview import config as configs

PRETRAIN = Path(__file__).with_name("sgi_pretrain.py")


def get_config(argument: str = "") -> dict:
    args = configs.arguments(argument, game="pong", seed=0)
    config = configs.load(f"{PRETRAIN}:size=tiny,game={args['game']}").to_dict()
    config["model"]["encoder"]["widths"] = (16, 32, 32)
    config["model"]["hidden"] = 256
    # In so few steps the official 1e-4 and 1.5e-4 hardly move anything.
    config["optimizer"]["learning_rate"]["base"] = 3e-3
    config["optimizer"]["epsilon"] = 1e-8
    return config | {
        "seed": args["seed"],
        "steps": 1000,
        "epochs": None,
        "batch_size": 32,
        "log_every": 50,
        "checkpoint_every": 1000,
    }
