"""What acts is what is judged, in rows of episodes, on any number of devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from polyview.config import parts
from polyview.errors import InputError, NonFiniteError
from polyview.rl import acting
from polyview.rl.learner import PolicyLearner
from polyview.runs.load import load
from polyview.training.nonfinite import replay_run
from polyview.training.train import train
from tests.acting_worlds import Told

ACTOR = "polyview.rl.actors"
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
        "partial": f"{ACTOR}:{kind}",
        "encoders": {"state": {"partial": f"{ACTOR}:Dense", "size": 3}},
        "actions": 4,
        "width": 16,
        "critic": {"hidden": 16},
    }


ACTORS = {
    "words, actions not told": policy(adapter=WORDS, tells=False),
    "one step, two episodes a row": policy(span=1, episodes=2),
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
            state, metrics = learner.take(state, (np.int32(number), ()))
            found.append({k: np.asarray(v).item() for k, v in metrics.items()})
    return state, found


@pytest.fixture(autouse=True)
def alone(on_devices):
    """See one device: several share two cores, and wait for each other."""
    on_devices(1)


@pytest.fixture
def unsaved(monkeypatch):
    """Fixed weights are written nowhere."""
    monkeypatch.setattr("polyview.runs.init.keep_fixed", lambda *_: [])


@pytest.mark.parametrize("name", ACTORS)
def test_what_acts_is_what_is_judged(name, unsaved):
    learner = PolicyLearner(config(ACTORS[name]))
    _, metrics = after(learner, 3)
    assert all(one["healthy"] for one in metrics)
    # After the first step the policy has changed, and episodes go on across steps.
    assert max(one["first_ratio"] for one in metrics) < 1e-5
    assert all(one["divergence"] != 0 for one in metrics)
    # Steps of more episodes than a row may have are not learnt from.
    few = "two episodes" in name
    assert (0.3 if few else 0.6) < metrics[-1]["learnt"] < (0.8 if few else 1)


@pytest.mark.parametrize(
    "name",
    ["GRU", pytest.param("words, actions not told", marks=pytest.mark.slow)],
)
def test_devices_change_nothing(name, unsaved, x64, on_devices):
    wide = {"dtype": "float64", "param_dtype": "float64"}
    model = ACTORS[name]
    if "body" in model:
        model = {**model, "body": {**BODY, **wide}}
        model["bridges"] = {"state": {**model["bridges"]["state"], **wide}}
        model["critic"] = {"hidden": 16, **wide}
    else:
        model = {**model, **wide}
        model["encoders"] = {"state": {**model["encoders"]["state"], **wide}}
        model["critic"] = {"hidden": 16}
    found = {}
    for count in (1, 2, 8):
        on_devices(count)
        learner = PolicyLearner(config(model))
        state, metrics = after(learner, 3)
        found[count] = [*map(np.asarray, jax.tree.leaves(state.train.params))]
        found[count] += [np.array([*one.values()]) for one in metrics]
    for count in (2, 8):
        for one, several in zip(found[1], found[count], strict=True):
            np.testing.assert_allclose(several, one, rtol=1e-6, atol=1e-9)


HOST = {
    "partial": "polyview.rl.rows:HostRows",
    "make": {"partial": "polyview.rl.rows:Gymnasium", "name": "CartPole-v1"},
}


def test_rows_on_the_host_learn_as_those_on_the_device_do(unsaved):
    model = simple() | {"actions": 2}
    model["encoders"] = {"state": {"partial": f"{ACTOR}:Dense", "size": 4}}
    own = {"environment": HOST}
    learner = PolicyLearner(config(model, **own, rollout=32, steps=30))
    _, metrics = after(learner, 25)
    assert max(one["first_ratio"] for one in metrics) < 1e-6
    assert metrics[-1]["length"] > 1.3 * metrics[0]["length"]
    assert 0.9 < metrics[0]["learnt"] < 1  # last states are shown, and not acted in


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_run_that_is_stopped_goes_on_exactly(where, tmp_path):
    model = simple("Recurrent" if where == "device" else "Reactive")
    own = {}
    if where == "host":
        model |= {"actions": 2}
        model["encoders"] = {"state": {"partial": f"{ACTOR}:Dense", "size": 4}}
        own = {"environment": HOST}
    whole = config(model, **own, steps=4)
    state = train(PolicyLearner(whole), tmp_path / "whole")
    learner = PolicyLearner(whole)
    taken = learner.take

    def stopping(state, inputs):
        if int(inputs[0]) == 2:
            raise KeyboardInterrupt
        return taken(state, inputs)

    learner.take = stopping
    with pytest.raises(KeyboardInterrupt):
        train(learner, tmp_path / "parts")
    resumed = train(PolicyLearner(whole), tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_episodes_are_numbered_from_the_first_real_step():
    first = jnp.array([[0, 1, 0, 1, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], bool)
    real = jnp.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
    found = acting.episode_numbers({"first": first, "real": real})
    np.testing.assert_array_equal(
        np.where(real, found, -1),
        [[-1, -1, -1, 0, 0], [0, 0, 1, 1, 2], [-1, -1, 0, 0, 0]],
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": 3}, "one of steps and epochs"),
        ({"target_decay": 0.9}, "'target_decay' has no meaning here"),
        ({"mesh": {"data": 2}}, "data=2.*does not match the 1 devices"),
        ({"minibatches": 3}, "minibatches=3 does not divide rows=8"),
        ({"model": policy(span=3)}, "up to 4 steps.*sees 3: give model.span=5, or 1"),
        ({"model": simple() | {"actions": 3}}, "model has 3 actions.*environment 4"),
        ({"model": policy(critic=None)}, "it has no critic"),
        ({"model": BODY | {"vocabulary": 4}}, "is no actor.*it has no act"),
        ({"discount": 1.5}, "discount=1.5"),
    ],
)
def test_what_does_not_fit_is_told(change, text):
    with pytest.raises(InputError, match=text):
        PolicyLearner(config(**{"model": policy()} | change))


class Wild(Told):
    """Shows what is not finite in the third step."""

    def observe(self, state):
        shown = super().observe(state)
        numbers = jnp.where(state.steps > 1, jnp.nan, shown["state"])
        return {**shown, "state": numbers}


class WildRow:
    """The same on the host: a number that counts, and then is not finite."""

    actions, limit, shapes = 4, 9, {"state": ((3,), np.float32)}
    name, versions = "wild", {"numpy": np.__version__}

    def reset(self, seed):
        self.steps = 0
        return {"state": np.zeros(3, np.float32)}

    def step(self, action):
        self.steps += 1
        shown = np.full(3, np.nan if self.steps > 6 else self.steps, np.float32)
        return {"state": shown}, 0.0, False, self.steps == 9, False

    def fingerprint(self):
        return np.full(32, self.steps, np.uint8)


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_step_that_is_not_finite_is_dumped_as_it_was_before(where, tmp_path, capsys):
    at = "tests.test_rl_acting"
    world = {"target": f"{at}:Wild"}
    if where == "host":
        row = {"partial": f"{at}:WildRow"}
        world = {"partial": "polyview.rl.rows:HostRows", "make": row}
    model = simple() | {"actions": 4}
    own = config(model, environment=world, rollout=1 if where == "device" else 4)
    own.steps, own.minibatches = 9, 2
    with pytest.raises(NonFiniteError) as told:
        train(PolicyLearner(own), tmp_path / "run")
    number = int(re.search(r"step (\d+) is not finite", str(told.value))[1])
    capsys.readouterr()
    replay_run(PolicyLearner, tmp_path / "run", ("tests", "polyview"))
    found = capsys.readouterr().out
    assert f"step {number}, repeated" in found
    assert re.search(r"loss nan", found) and "healthy 0" in found
    saved = load(tmp_path / "run", trust=("tests",))
    assert saved.step < number


def test_rows_must_fill_the_devices(on_devices):
    on_devices(8)
    with pytest.raises(InputError, match="rows=6 in 1 minibatches.*over 8 devices"):
        PolicyLearner(config(simple(), rows=6))


def test_a_numbered_policy_is_needed():
    word = {"low": [-1.0], "high": [1.0], "hidden": 8}
    model = policy(adapter={"partial": "agents.adapters:Regression", **word})
    with pytest.raises(InputError, match="only numbered actions"):
        PolicyLearner(config(model))


def test_a_context_holds_the_steps_of_the_current_episode_alone():
    first = jnp.array([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    past = acting.Past({}, first, jnp.zeros(first.shape, jnp.int32))
    shown = acting.Shown({}, jnp.array([False, False]), None)
    real = acting.rows_of(past, shown)["real"]
    # Nothing is known to belong to an episode whose beginning is not in sight.
    np.testing.assert_array_equal(real, [[0, 0, 0, 0, 1, 1], [0] * 6])
    new = acting.Shown({}, jnp.array([True, True]), None)
    assert not acting.rows_of(past, new)["real"].any()


def test_a_row_begins_its_next_episode_after_the_last_state_was_shown():
    world, key, rows = Told(limit=2), jax.random.key(0), jnp.arange(3, dtype=jnp.int32)
    here, step = acting.begin(world, key, rows)
    shown, seen = acting.shown_of(step, jnp.ones(3, bool)), []
    wrong = (here.state.word + 1) % 4
    for _ in range(4):
        seen.append((shown, step))
        here, step = acting.step(world, key, rows, here, wrong)
        shown = acting.shown_of(step, shown.over)
    assert [bool(one.first.all()) for one, _ in seen] == [True, False, False, True]
    assert [bool(one.over.all()) for one, _ in seen] == [False, False, True, False]
    np.testing.assert_array_equal(here.episode, 1)
    # A row's episodes do not depend on the rows beside it.
    alone, _ = acting.begin(world, key, rows[1:2])
    other, _ = acting.begin(world, key, rows)
    assert alone.state.word[0] == other.state.word[1]
