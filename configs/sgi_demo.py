"""A small SGI for two CPU cores: the config of `make demo-sgi`.

    POLYVIEW_DATA=runs/demo_sgi/data python -m sgi.prepare --game seaquest
    POLYVIEW_DATA=runs/demo_sgi/data python -m polyview.main \
        --config configs/sgi_demo.py --workdir runs/demo_sgi/seaquest

Arguments: game, seed. Numbers that differ from configs/sgi_pretrain.py are ours, chosen
in Breakout and Seaquest, one seed. Options of ours let the inverse model learn in so
few steps: see docs/sgi.md, "Beyond the paper".
"""

from pathlib import Path

from polyview.config.file import load_config
from polyview.config.overrides import parse_arguments

PRETRAIN = Path(__file__).with_name("sgi_pretrain.py")


def get_config(argument: str = "") -> dict:
    args = parse_arguments(argument, game="seaquest", seed=0)
    config = load_config(f"{PRETRAIN}:size=S,game={args['game']}").to_dict()
    config["model"]["encoder"]["widths"] = (16, 32, 32)
    config["model"]["hidden"] = 256
    config["model"]["standardise"] = True
    config["objective"] |= {"inverse_sees": "online", "augmentation": "none"}
    # In so few steps the official 1e-4 and 1.5e-4 hardly change the weights. With an
    # epsilon of 1e-8 more units of the encoder die.
    config["optimizer"]["learning_rate"]["base"] = 1e-3
    config["optimizer"]["schedule"] = "cosine"
    config["optimizer"]["epsilon"] = 1e-5
    return config | {
        "seed": args["seed"],
        "steps": 1000,
        "epochs": None,
        "batch_size": 32,
        "log_every": 25,
        "checkpoint_every": 1000,
    }
