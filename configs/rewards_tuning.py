"""A language model that is fine-tuned on texts of a world.

    python -m agents.prepare llm
    python -m polyview.main --config configs/rewards_tuning.py:task=captions \\
        --workdir runs/captions
    python -m agents.ask --run runs/captions --env babyai:GoToObj --what next

What it forgot is in runs/captions/eval: perplexity of plain text, with its adapters and
without.

Arguments: task, "captions" (a caption and an action, then the next caption) or "policy"
(a caption, then the expert's action); env, a world with captions; permute, a seed that
gives the actions of BabyAI other effects; goal_only, captions that leave out all but
the goal's objects; model, and layers, the first blocks (0: all); rank; episodes of the
world; steps, batch_size, rate; length and room, for a text and for its answer, in
tokens; plain, a file or a folder of plain text; seed.
Hardware: two laptop cores with 4 layers. Figures are in docs/rewards.md.
"""

from agents import parts as own
from agents.llm import prepared
from polyview.config import parts
from polyview.config.overrides import parse_arguments


def get_config(argument: str = "") -> dict:
    """Sizes and rates are ours; alpha is that of LLaRP (Szot et al. 2024)."""
    args = parse_arguments(
        argument,
        task="captions",
        env="babyai:GoToObj",
        permute=-1,
        goal_only=False,
        model="smollm2_135m",
        layers=0,
        rank=8,
        episodes=300,
        steps=200,
        batch_size=8,
        rate=1e-3,
        length=128,
        room=48,
        plain="docs",
        seed=0,
    )
    about = prepared.describe(args["model"])
    lora = own.LORA | {"rank": args["rank"]}
    text = own.tokenizer(args["model"])
    views = {
        "target": "agents.feedback.tuning:Answered",
        "text": text,
        "length": args["length"],
        "room": args["room"],
        "end": about["special"]["end"],
    }
    source = {
        "target": "agents.feedback.texts:Texts",
        "env": args["env"],
        "task": args["task"],
        "episodes": args["episodes"],
        "permute": args["permute"] if args["permute"] >= 0 else None,
        "goal_only": args["goal_only"],
        "seed": args["seed"],
    }
    return {
        "seed": args["seed"],
        "steps": args["steps"],
        "epochs": None,
        "batch_size": args["batch_size"],
        "log_every": 10,
        "checkpoint_every": args["steps"],
        "evaluate_every": args["steps"],
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": source,
        "views": views,
        "model": {
            "partial": "agents.feedback.tuning:Tuned",
            "body": own.body(args["model"], args["layers"] or None, lora),
            "end": about["special"]["end"],
        },
        "init": own.body_weights(args["model"]),
        "objective": {"target": "agents.feedback.tuning:AnswerLoss"},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(args["rate"]),
            "weight_decay": 0.0,
            "warm_up": 0.05,
        },
        "evaluations": {
            "perplexity": {
                "target": "agents.feedback.tuning:Perplexity",
                "plain": args["plain"],
                "text": text,
                "source": source | {"split": "validation", "episodes": 50},
                "views": views,
                "most": 64,
                "answers": 64,
            }
        },
    }
