"""One policy for several domains, from demonstrations: the first stage of GEA.

    python -m agents.prepare llm
    python -m agents.prepare --env babyai:GoToLocal --pixels 64 --name local
    python -m agents.prepare --env dvf.navigation:KnownGoals --pixels 64 --name maze
    python -m polyview.main --config configs/agents_tokenizer.py:data=maze \\
        --workdir runs/codes
    python -m polyview.main --workdir runs/gea --config \\
        configs/gea_supervised.py:data=local+maze,tokenizer=runs/codes,vision=RUN

A body acts in all domains (Szot et al. 2025): numbered actions are words, continuous
ones the codes of one tokenizer, images pass one encoder, and each batch has an exact
share of each domain. `configs/gea_online.py` plays on from here.

Arguments: data, the domains, data sets joined by +; weights, their shares of a batch,
numbers joined by + in that order (alike); body, "llm" with low-rank adapters or
"scratch", a small one that is trained; model, a prepared language model; layers, its
first ones; rank; words, of numbered actions, "semlang", "lang" or "pred"; tokenizer,
a run; vision, a run whose encoder sees images; seeing, "frozen", "trained",
"random_trained" or "random_frozen" (the run's weights, or random ones); pixels, images
are resized to; observations, names joined by + (images alone); room, tokens of an
instruction; share of each domain's demonstrations; steps; batch_size, episodes; rate;
episodes of the evaluation; split, "validation" to choose by, "test" once; seed.
Hardware: two laptop cores. Rates are in docs/gea.md.
"""

from agents import domains, recording
from agents import parts as own
from polyview.config import parts
from polyview.config.overrides import parse_arguments


def get_config(argument: str = "") -> dict:
    """Sizes and rates are ours; the paper trains 7 billion weights for 75,000 steps."""
    args = parse_arguments(
        argument,
        data="babyai_gotolocal+metaworld_reach_v3",
        weights="",
        body="llm",
        model="smollm2_135m",
        layers=4,
        rank=8,
        words="semlang",
        tokenizer="",
        vision="",
        seeing="frozen",
        pixels=64,
        observations="image",
        room=24,
        share=1.0,
        steps=1500,
        batch_size=32,
        rate=1e-3,
        episodes=100,
        split="validation",
        seed=0,
    )
    names, model = domains.named(args["data"]), args["model"]
    body, init = own.imitating(args["body"], model, args["layers"], args["rank"])
    bridges, seen_by, of_bridges = domains.seen(
        names, args["observations"], args["vision"], args["seeing"], args["pixels"]
    )
    adapters, options, of_adapters = domains.adapters(
        names, args["words"], args["tokenizer"], model
    )
    prompts = domains.prompts({n: recording.describe(n)["world"] for n in names})
    views = {
        name: domains.views([*seen_by[name]], prompts[name], model, args["room"])
        for name in names
    }
    shares = domains.weights(args["weights"], names)
    source, mixed = domains.mixture(names, args["share"], shares, views)
    return {
        "seed": args["seed"],
        "steps": args["steps"],
        "epochs": None,
        "batch_size": args["batch_size"],  # episodes: four times as many actions
        "log_every": 50,
        "checkpoint_every": args["steps"],
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": source,
        "views": mixed,
        "model": {
            "partial": "agents.generalist:Generalist",
            "body": body,
            "bridges": bridges,
            "adapters": adapters,
            "domains": {
                name: {"bridges": seen_by[name], **options[name]} for name in names
            },
            "playing": [],
        },
        "init": (init | of_bridges | of_adapters) or None,
        "objective": {
            "target": "agents.clone:MixedCloning",
            "shares": shares,
            "weights": dict.fromkeys(names, 1.0),
        },
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 1e-4,
            "warm_up": 0.1,
        },
        "evaluations": domains.successes(views, args["episodes"], args["split"]),
    }
