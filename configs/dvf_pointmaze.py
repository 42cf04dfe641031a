"""The diffused value function: where a policy will be, learnt without rewards.

    python -m dvf.prepare --env pointmaze_medium
    python -m polyview.main --config configs/dvf_pointmaze.py --workdir runs/dvf
    python -m polyview.evaluate --run runs/dvf

Mazoure et al. 2023: a model of the states that come later, given state, offset and
policy, from which the value of any reward follows without further training. The
evaluations compare values for 20 rewards, and the choice of a policy by them, with
roll-outs that the command above recorded from the same states.

Arguments: data, the name of recorded episodes; method (ddpm | velocity | flow | infonce
| td); offset, whether the model is told how far ahead; steps; discount; actions, the
size of the action that a Q value is conditioned on (0: none); policy (number |
rollout), by what a policy is told; rewards; most, the largest offset, in training and
of values (0: none).
Hardware: one laptop core, a minute. Correlation of values with roll-outs: .975 on test
starts, mean of five seeds (docs/dvf.md).
"""

import dvf.parts
from polyview.config import parts
from polyview.config.overrides import parse_arguments
from polyview.errors import InputError


def get_config(argument: str = "") -> dict:
    """The paper's own numbers are not published: all are ours.

    Width, rate and batch are the best of four settings a method, by the correlation of
    values on the validation split (`python -m benchmarks.dvf tune`).
    """
    args = parse_arguments(
        argument,
        data="pointmaze_medium",
        method="ddpm",
        offset=True,
        steps=10_000,
        discount=0.97,
        actions=0,
        policy="number",
        rewards=20,
        most=0,
    )
    data, method, discount = args["data"], args["method"], args["discount"]
    dvf.parts.check_method(method)
    dvf.parts.check_horizon(data, discount)
    most = args["most"] or None
    if method == "td" and (args["actions"] or most):
        raise InputError(
            "method=td learns values of states, one step at a time: leave out actions "
            "and most"
        )
    count = dvf.parts.policies(data)
    reward = dvf.parts.discs(data, args["rewards"], seed=0)
    scale = dvf.parts.scale(data)
    policies = {"partial": "dvf.policies:Numbered", "count": count}
    if args["policy"] == "rollout":
        policies = {"partial": "dvf.policies:Observed", **scale}
    elif args["policy"] != "number":
        raise InputError(f"policy={args['policy']!r}: write number or rollout")
    model = {**scale, "policies": policies if count > 1 else None}
    told = {
        "actions": args["actions"],
        "offset_features": 16 if args["offset"] else 0,
    }
    views = {
        "target": "polyview.data.later:Later",
        "m": 16,  # pairs of each episode
        "discount": discount,
        "actions": "actions" if args["actions"] else None,
        "targets": ("policy",),
    }
    if most is not None:
        views["most"] = most
    source, target_decay = dvf.parts.episodes(data), None
    if args["policy"] == "rollout":
        views = {"target": "dvf.rollouts:WithRollout", "later": views}
        source = dvf.parts.by_policy(source)
    if method == "td":
        model |= {"partial": "dvf.value:Values", "rewards": args["rewards"]}
        objective = {
            "target": "dvf.objectives:TemporalDifference",
            "reward": reward,
            "discount": discount,
        }
        views.get("later", views)["discount"] = 0.0  # one step
        target_decay = 0.99
    else:
        drawn, objective = dvf.parts.future(method)
        model |= drawn | told
    rollouts = args["policy"] == "rollout"
    evaluations = dvf.parts.evaluations(
        data,
        method,
        discount,
        reward,
        rollouts=rollouts,
        actions=args["actions"] > 0,
        most=most,
    )
    if method != "td" and not args["actions"]:
        evaluations |= dvf.parts.maps(data, method, discount, reward, rollouts, most)
    config = {
        "seed": 0,
        "steps": args["steps"],
        "epochs": None,
        # Episodes: 256 pairs, and 1,024 to compare with one another.
        "batch_size": 64 if method == "infonce" else 16,
        "log_every": 250,
        "checkpoint_every": 10_000,
        "evaluate_every": 0,
        "keep": 2,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": source,
        "views": views,
        "model": model,
        "objective": objective,
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(3e-3),
            "weight_decay": 0.0,
            "warm_up": 0.02,
        },
        "evaluations": evaluations,
    }
    return config | ({"target_decay": target_decay} if target_decay else {})
