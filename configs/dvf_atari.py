"""Values in recorded Atari play, in the latent space of an SGI encoder.

    python -m sgi.latents --run runs/breakout --recording breakout_random \\
        --name breakout_latents
    python -m polyview.main --config configs/dvf_atari.py:data=breakout_latents \\
        --workdir runs/atari
    python -m polyview.evaluate --run runs/atari

A model of the latents that come later, learnt without rewards and without actions
(Mazoure et al. 2023). The evaluation compares values of the game's variables, such as
the place of the ball, and of the score, with what the recording shows.

Arguments: data, the name of the latents; method (ddpm | velocity | flow | infonce);
offset, whether the model is told how far ahead; steps; discount. The discount of .97
looks 33 steps ahead, two seconds of play: a sixth of an episode of random play of
Breakout, where 18 % of the pairs end beyond the last state. With .99 it is 45 %.
Hardware: one laptop core, minutes. Accuracies are in docs/dvf.md.
"""

import dvf.parts
from dvf import recording
from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError


def get_config(argument: str = "") -> dict:
    """All numbers are ours."""
    args = parse_arguments(
        argument,
        data="breakout_latents",
        method="ddpm",
        offset=True,
        steps=10_000,
        discount=0.97,
    )
    data, method, discount = args["data"], args["method"], args["discount"]
    dvf.parts.check_method(method)
    if method == "td":
        raise InputError(
            "method='td' needs rewards in training, and these are read from the states "
            "afterwards; the evaluation has a regression to compare with"
        )
    model, objective = dvf.parts.future(method)
    model |= dvf.parts.scale(data)
    model["offset_features"] = 16 if args["offset"] else 0
    variables = recording.describe(data).get("variables", [])
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        "batch_size": 16,  # episodes: 256 pairs
        "log_every": 250,
        "checkpoint_every": args["steps"],
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": dvf.parts.episodes(data),
        "views": {
            "target": "polyview.data.later:Later",
            "m": 16,  # pairs of each episode
            "discount": discount,
        },
        "model": model,
        "objective": objective,
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(1e-3),
            "weight_decay": 0.0,
            "warm_up": 0.02,
        },
        "evaluations": dvf.parts.recorded(data, variables, method, discount, "test"),
    }
