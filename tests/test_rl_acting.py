"""What acts is what is judged, in rows of episodes, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from polyview.config import parts
from polyview.errors import InputError
from polyview.rl import acting
from polyview.rl.learner import PolicyLearner
from polyview.training.train import train
from tests.acting_worlds import Told

BODY = {
    "partial": "agents.llm.llama:Body",
    "layers": 2,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "hidden": 48,
    "vocabulary": 40,
}
STATE = {"partial": "agents.bridges:State", "mean": [0.0] * 3, "std": [1.0] * 3}
PRED = {"partial": "agents.adapters:Categorical", "actions": 4, "hidden": 16}
WORDS = {
    "partial": "agents.adapters:Words",
    "strings": [[5, 6], [5], [5, 7], [8]],
    "end": 2,
}


def policy(**options):
    return {
        "partial": "agents.policy:Policy",
        "body": BODY,
        "bridges": {"state": {**STATE, "hidden": 16}},
        "adapter": PRED,
        "span": 5,
        "critic": {"hidden": 16},
        "episodes": 7,
        **options,
    }


def simple(kind="Reactive"):
    return {
        "partial": f"polyview.rl.actors:{kind}",
        "encoders": {"state": {"partial": "polyview.rl.actors:Dense", "size": 3}},
        "actions": 4,
        "width": 16,
        "critic": {"hidden": 16},
    }


ACTORS = {
    "pred": policy(),
    "pred, actions not told": policy(tells=False),
    "words": policy(adapter=WORDS),
    "words, actions not told": policy(adapter=WORDS, tells=False),
    "one step": policy(span=1),
    "trained body": policy(body={**BODY, "frozen": False}),
    "adapters of the body": policy(body={**BODY, "lora": {"rank": 2, "alpha": 4.0}}),
    "GRU": simple("Recurrent"),
}


def config(model, **own):
    made = {
        "seed": 3,
        "steps": 3,
        "rows": 8,
        "rollout": 6,
        "passes": 2,
        "minibatches": 1,
        "discount": 0.9,
        "trace": 0.8,
        "log_every": 1,
        "checkpoint_every": 1,
        "environment": {"target": "tests.acting_worlds:Told"},
        "model": model,
        "objective": {"target": "polyview.rl.ppo:PPO"},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": parts.constant_rate(3e-3),
            "weight_decay": 0.0,
            "warm_up": 0.0,
        },
        "mesh": {"data": -1, "fsdp": 1},
    }
    return ConfigDict({**made, **own})


def after(learner, steps):
    """Return the state after steps, and the metrics of each."""
    with jax.set_mesh(learner.mesh):
        state, found = learner.create(None), []
        for number in range(steps):
            state, metrics = learner.take(state, np.int32(number))
            found.append({k: np.asarray(v).item() for k, v in metrics.items()})
    return state, found


@pytest.mark.parametrize("name", ACTORS)
def test_what_acts_is_what_is_judged(name, monkeypatch):
    monkeypatch.setattr("polyview.rl.learner.keep_fixed", lambda *_: [])
    learner = PolicyLearner(config(ACTORS[name]))
    _, metrics = after(learner, 3)
    assert all(one["healthy"] for one in metrics)
    # After the first step the policy has changed, and episodes go on across steps.
    assert max(one["first_ratio"] for one in metrics) < 1e-5
    assert all(one["divergence"] != 0 for one in metrics)
    assert 0.5 < metrics[-1]["learnt"] < 1
