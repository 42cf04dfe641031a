"""A language model's body that acts, by imitation of demonstrations.

    python -m agents.prepare llm
    python -m agents.prepare --env babyai:GoToLocal
    python -m polyview.main --config \\
        configs/agents_policy.py:data=babyai_gotolocal,adapter=semlang \\
        --workdir runs/semlang

Action space adapters of Szot et al. 2024: pred, uniform, vq and rvq for continuous
actions; pred, lang and semlang for numbered ones. The body is fixed, with low-rank
adapters; bridges and adapter are trained with these. The evaluation lets the policy
act.

Arguments: data, demonstrations; adapter; tokenizer, for vq and rvq, a run of
configs/agents_tokenizer.py; model, a prepared language model, or nothing: then no
instruction is read; layers, its first ones; body, "llm", or "scratch" for a small
trained one; rank of the low-rank adapters; observations, fields joined by +; vision, a
run whose encoder of images is taken; span, the steps that the policy sees;
length, room for an instruction, in tokens; demonstrations, how many of train to use, 0
for all; steps, batch_size, rate; episodes of the evaluation, of each task; split,
"validation" or "test", of the seeds of its episodes.
Hardware: one laptop core, 10 minutes with four layers. Rates are in docs/agents.md.
"""

from agents import parts as own
from agents import recording
from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError


def get_config(argument: str = "") -> dict:
    """Sizes and rates are ours but for the rank and alpha of the low-rank adapters."""
    args = parse_arguments(
        argument,
        data="babyai_gotolocal",
        adapter="pred",
        tokenizer="",
        model="smollm2_135m",
        layers=4,
        body="llm",
        rank=8,
        observations="",
        vision="",
        span=1,
        length=16,
        demonstrations=0,
        steps=1500,
        batch_size=16,
        rate=1e-3,
        episodes=100,
        split="validation",
    )
    data, name = args["data"], args["model"]
    described = recording.describe(data)
    adapter, init = own.adapter(args["adapter"], data, name, args["tokenizer"])
    body, laid = own.imitating(args["body"], name, args["layers"], args["rank"])
    init = laid | init
    bridges, seen = own.bridges(data, args["observations"], args["vision"])
    count = described["counts"]["episodes"]
    if not 0 <= args["demonstrations"] <= count:
        raise InputError(f"demonstrations={args['demonstrations']}; give 0 to {count}")
    split = f"train[:{args['demonstrations']}]" if args["demonstrations"] else "train"
    views = {
        "target": "agents.data:Context",
        "observations": list(bridges),
        "span": args["span"],
        "draws": 8 if args["span"] == 1 else 1,
        "text": own.tokenizer(name) if name else None,
        "length": args["length"],
    }
    return {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        "batch_size": args["batch_size"],  # episodes: eight times as many actions
        "log_every": 50,
        "checkpoint_every": args["steps"],
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": own.held(data, split),
        "views": views,
        "model": {
            "partial": "agents.policy:Policy",
            "body": body,
            "bridges": bridges,
            "adapter": adapter,
            "span": args["span"],
        },
        "init": (init | seen) or None,
        "objective": {"target": "agents.clone:Cloning"},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 1e-4,
            "warm_up": 0.05,
        },
        "evaluations": {
            "success": {
                "target": "agents.evaluation.success:Success",
                "worlds": described["tasks"],
                "views": views,
                "episodes": args["episodes"],
                "limit": 0,  # the world's own
                "split": args["split"],
                "versions": described["versions"],
                "pixels": described["observations"].get("image", [0])[0],
            }
        },
    }
