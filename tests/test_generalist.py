"""One policy of several domains: each learns and acts as a policy of its own would."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agents.adapters import Categorical, Tokens
from agents.bridges import State
from agents.clone import Cloning, MixedCloning, PlayAndClone
from agents.generalist import Generalist
from agents.llm.llama import Body
from agents.tokenizers.uniform import Uniform
from polyview import devices
from polyview.data.mixture import of_domain
from polyview.errors import InputError, OutOfRange
from polyview.model import Model, merge_module, split_module
from polyview.rl.critic import Critic
from polyview.rl.joined import Joined
from polyview.rl.ppo import PPO
from polyview.rl.rows import HostRows
from polyview.runs.checksum import flatten
from polyview.runs.load import model_at

BODY = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "hidden": 24}


def tokenizer(*, rngs):
    return Uniform(low=[-1.0] * 3, high=[1.0] * 3, codes=4)


CRITIC = {"hidden": 8, "rate": 0.1}
BRIDGES = {
    name: partial(State, mean=[0.0] * size, std=[1.0] * size, hidden=8)
    for name, size in (("two", 2), ("three", 3))
}
ADAPTERS = {
    "few": partial(Categorical, actions=3, hidden=8),
    "many": partial(Categorical, actions=5, hidden=8),
    "codes": partial(Tokens, tokenizer=tokenizer),
}
DOMAINS = {
    "b": {"bridges": {"state": "two"}, "adapter": "few", "critic": CRITIC},
    "a": {"bridges": {"state": "three"}, "adapter": "many", "critic": CRITIC},
    "maze": {"bridges": {"state": "two"}, "adapter": "codes", "size": 2},
}
SHARES = {"a": 2, "b": 1, "maze": 1}


def made(playing=("a", "b"), domains=None, **options):
    def with_options(parts):
        return {name: partial(part, **options) for name, part in parts.items()}

    return Generalist(
        body=partial(Body, **BODY, vocabulary=40, frozen=False, **options),
        bridges=with_options(BRIDGES),
        adapters=with_options(ADAPTERS),
        domains=DOMAINS if domains is None else domains,
        playing=playing,
        rngs=nnx.Rngs(0),
    )


def views(rng, name, n):
    size = {"a": 3, "b": 2, "maze": 2}[name]
    text = rng.integers(0, 40, (n, 1, 3)).astype(np.int32)
    return {"text": text, "state": rng.normal(size=(n, 2, size)).astype(np.float32)}


def actions(rng, name, n):
    if name in ("a", "b"):
        return rng.integers(0, 3, (n, 2)).astype(np.int32)
    return rng.uniform(-1, 1, (n, 2, 2)).astype(np.float32)


def mixed(rng, rows):
    """Return a batch whose rows are of the domains that are named."""
    names = sorted(DOMAINS)
    batch = {"views": {}, "present": {}, "targets": {}}
    batch["targets"]["domain"] = np.array([names.index(row) for row in rows])
    for name in names:
        here = np.array([row == name for row in rows])
        for key, value in views(rng, name, len(rows)).items():
            own = here.reshape(-1, *(1,) * (value.ndim - 1))
            batch["views"][f"{name}/{key}"] = np.where(own, value, 0)
            batch["present"][f"{name}/{key}"] = np.repeat(
                here[:, None], value.shape[1], 1
            )
        batch["targets"][f"{name}/action"] = actions(rng, name, len(rows))
    return batch


ROWS = ["a", "maze", "b", "a", "a", "b", "a", "maze"]


def test_domains_share_what_they_name_and_keep_their_own():
    model = made()
    names = [*flatten(split_module(model).params)]
    own = {name.split(".")[2] for name in names if name.startswith("policies.")}
    assert own == {"critic"}
    assert {name.split(".")[0] for name in names} >= {"body", "bridges", "adapters"}
    assert model.policies["a"].body is model.policies["maze"].body
    assert model.policies["maze"].adapter.inner is model.adapters["codes"]
    assert model.policies["a"].bridges["state"] is model.bridges["three"]


def test_the_loss_of_a_mixture_is_that_of_each_domain_alone(rng):
    model, batch = made(), mixed(rng, ROWS)
    names = sorted(DOMAINS)
    key = jax.random.key(0)
    loss, told = jax.jit(lambda b: MixedCloning(SHARES)(model, None, b, key))(batch)
    expected = []
    for name in names:
        at = [row for row, own in enumerate(ROWS) if own == name]
        own = jax.tree.map(lambda x, at=at: x[np.array(at)], of_domain(batch, name))
        alone, _ = Cloning()(model.policies[name], None, own, key)
        np.testing.assert_allclose(told[f"{name}/loss"], alone, rtol=2e-5)
        expected.append(alone)
    np.testing.assert_allclose(loss, np.sum(expected), rtol=2e-5)
    weights = {"a": 3.0, "maze": 0.0}
    weighed, _ = jax.jit(lambda b: MixedCloning(SHARES, weights)(model, None, b, key))(
        batch
    )
    by_hand = 3 * expected[0] + expected[1]
    np.testing.assert_allclose(weighed, by_hand, rtol=2e-5)


def test_rows_of_others_change_nothing_and_too_many_rows_are_seen(rng):
    model, batch = made(), mixed(rng, ROWS)
    clone, key = MixedCloning(SHARES), jax.random.key(0)
    loss, _ = clone(model, None, batch, key)
    other = {part: dict(values) for part, values in batch.items()}
    here = batch["targets"]["domain"] == 2  # the maze
    there = other["views"]["maze/state"]
    other["views"]["maze/state"] = np.where(here[:, None, None], there, 7.0)
    np.testing.assert_array_equal(clone(model, None, other, key)[0], loss)
    crowded = mixed(rng, ["a"] * 6 + ["b", "maze"])
    assert np.isnan(clone(model, None, crowded, key)[0])


def test_a_mixture_of_other_domains_is_refused(rng):
    batch = mixed(rng, ROWS)
    with pytest.raises(InputError, match="the mixture has the domains a, b"):
        MixedCloning({"a": 1, "b": 1})(made(), None, batch, jax.random.key(0))
    for refused, message in (
        (MixedCloning(SHARES, {"c": 1.0}), "objective.weights: c; available: a, b"),
        (MixedCloning(SHARES, {"a": 0.0, "b": 0.0, "maze": 0.0}), "are all 0"),
        (MixedCloning(SHARES | {"b": 0.1}), "b has 0.26 rows of a batch of 8"),
    ):
        with pytest.raises(InputError, match=message):
            refused(made(), None, batch, jax.random.key(0))
    with pytest.raises(InputError, match="set microbatch to None"):
        MixedCloning(SHARES)({}, None, batch, jax.random.key(0))
    with pytest.raises(InputError, match="no twoo; did you mean 'two'"):
        bad = {"b": {"bridges": {"state": "twoo"}, "adapter": "few"}}
        made(domains=bad, playing=())
    with pytest.raises(InputError, match="cannot be padded to 3"):
        made(domains={"maze": DOMAINS["maze"] | {"size": 4}}, playing=())
    with pytest.raises(InputError, match="playing=c"):
        made(playing=("c",))


def test_a_padded_action_is_cut_to_its_own_numbers(rng):
    model = made()
    policy, plain = model.policies["maze"], model.adapters["codes"]
    own = rng.uniform(-1, 1, (4, 2)).astype(np.float32)
    longer = np.concatenate([own, np.zeros((4, 1), np.float32)], 1)
    tokens = policy.adapter.encode(own).parts
    np.testing.assert_array_equal(tokens, plain.encode(longer).parts)
    decoded = policy.adapter.decode([tokens[:, place] for place in range(3)])
    assert decoded.shape == (4, 2)
    np.testing.assert_allclose(decoded, own, atol=0.25 + 1e-6)  # half of a bin


def play_of(rng, n, t=2):
    """Return rows of play of a and b, which take turns."""
    shown = {}
    for name in ("a", "b"):
        for key, value in views(rng, name, n).items():
            shown[f"{name}/{key}"] = np.repeat(value, t, 1) if key == "text" else value
    flags = np.ones((n, t), bool)
    taken = rng.integers(0, 3, (n, t)).astype(np.int32)
    return {"views": shown, "first": flags, "real": flags, "actions": taken}


def test_each_row_is_played_and_judged_by_its_own_domain(rng):
    model = made()
    play = play_of(rng, 6)
    now = {name: value[:, 0] for name, value in play["views"].items()}
    past = jax.tree.map(lambda x: x[:, :0], play)
    key = jax.random.key(4)

    @jax.jit
    def acted(play, now, past):
        memory = model.recall(past, now)
        _, found = model.act(memory, now, np.ones(6, bool), key)
        return found, model.judge(play)

    found, judged = acted(play, now, past)
    assert found.action.shape == (6,)
    for number, name in enumerate(("a", "b")):
        policy = model_at(Model(split_module(model), None), f"policies.{name}")
        own = {
            key.partition("/")[2]: value[number::2]
            for key, value in now.items()
            if key.startswith(f"{name}/")
        }
        blank = {part: x[number::2] for part, x in past.items() if part != "views"}
        blank["views"] = {key: value[:, None][:, :0] for key, value in own.items()}
        memory = policy.call("recall", blank, own)
        drawn = jax.random.fold_in(key, number)
        _, alone = policy.call("act", memory, own, np.ones(3, bool), drawn)
        np.testing.assert_array_equal(found.action[number::2], alone.action)
        np.testing.assert_allclose(found.value[number::2], alone.value, rtol=1e-5)
        mine = {part: x[number::2] for part, x in play.items() if part != "views"}
        mine["views"] = {
            key.partition("/")[2]: value[number::2]
            for key, value in play["views"].items()
            if key.startswith(f"{name}/")
        }
        whole = model.policies[name].judge(mine)
        np.testing.assert_allclose(
            judged.log_prob[number::2], whole.log_prob, rtol=1e-5
        )


def test_values_alone_read_what_is_privileged(rng):
    of = {"bridges": {"state": "three"}, "adapter": "many", "critic": CRITIC}
    domains = {"a": {**of, "privileged": {"secret": "two"}}}
    policy = made(playing=["a"], domains=domains).policies["a"]
    state, first = rng.normal(size=(4, 3)), jnp.ones(4, bool)
    views = {"state": state, "secret": rng.normal(size=(4, 2))}
    views = {name: jnp.asarray(x, jnp.float32) for name, x in views.items()}
    memory = policy.body.empty_cache(4, 8)
    key = jax.random.key(0)
    told, other, untold = (
        policy.act(memory, seen, first, key)[1]
        for seen in (
            views,
            views | {"secret": -views["secret"]},
            {"state": views["state"]},
        )
    )
    for acted in (other, untold):
        np.testing.assert_array_equal(told.action, acted.action)
        np.testing.assert_array_equal(told.log_prob, acted.log_prob)
    assert (told.value != other.value).all() and not untold.value.any()
    play = {
        "views": {name: x[:, None] for name, x in views.items()},
        "first": first[:, None],
        "real": first[:, None],
        "actions": told.action[:, None],
    }
    judged = policy.judge(play)
    np.testing.assert_allclose(judged.value[:, 0], told.value, atol=1e-6)
    del play["views"]["secret"]
    with pytest.raises(InputError, match="no 'secret', which a bridge reads"):
        policy.judge(play)
    with pytest.raises(InputError, match="privileged is what values read"):
        made(domains={"a": domains["a"] | {"critic": None}}, playing=["a"])


def test_values_of_each_domain_have_their_own_scale(rng):
    model = made()
    returns = rng.normal(size=(8, 5)).astype(np.float32)
    returns[1::2] *= 100  # of b
    mask = np.ones((8, 5), bool)
    mask[3] = False
    model.critic.adapt(jnp.asarray(returns), jnp.asarray(mask))
    for number, name in enumerate(("a", "b")):
        alone = Critic(16, **CRITIC, rngs=nnx.Rngs(0))
        alone.adapt(jnp.asarray(returns[number::2]), jnp.asarray(mask[number::2]))
        own = model.policies[name].critic
        np.testing.assert_allclose(own.mean[...], alone.mean[...], rtol=1e-6)
        np.testing.assert_allclose(own.deviation, alone.deviation, rtol=1e-6)
    normal = model.critic.normalised(jnp.asarray(returns))
    np.testing.assert_allclose(model.critic.restored(normal), returns, rtol=1e-4)
    assert np.abs(normal[1::2]).max() < 20


def test_playing_and_cloning_add_up(rng):
    model, batch = made(), mixed(rng, ROWS)
    n, t = 4, 2
    of_play = {
        "play": play_of(rng, n, t),
        "taken": np.ones((n, t), bool),
        **{
            name: rng.normal(size=(n, t)).astype(np.float32)
            for name in ("advantages", "returns", "values", "log_prob")
        },
    }
    key, ppo = jax.random.key(0), PPO()
    expected = 0.0
    for number, name in enumerate(("a", "b")):
        own = jax.tree.map(lambda x, at=number: x[at::2], of_play)
        own["play"]["views"] = {
            key.partition("/")[2]: value
            for key, value in own["play"]["views"].items()
            if key.startswith(f"{name}/")
        }
        expected += ppo(model.policies[name], None, own, key)[0]
    clone = MixedCloning(SHARES)
    alone, _ = PlayAndClone(ppo, clone, 0.0)(model, None, of_play, key)
    np.testing.assert_allclose(alone, expected, rtol=2e-5)
    whole, told = PlayAndClone(ppo, clone, 0.1)(
        model, None, of_play | {"beside": batch}, key
    )
    own = clone(model, None, batch, key)[0]
    np.testing.assert_allclose(whole, expected + 0.1 * own, rtol=2e-5)
    assert {"a/entropy", "b/entropy", "cloning/maze/loss"} <= told.keys()
    with pytest.raises(InputError, match="give the config key beside"):
        PlayAndClone(ppo, clone, 0.1)(model, None, of_play, key)


def test_the_loss_is_the_same_on_eight_devices(rng, x64):
    double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    graph, *arrays = split_module(made(**double))
    batch = mixed(rng, ROWS * 4)
    mesh = devices.make_mesh()

    def gradient(parts, batch):
        def loss(params):
            module = merge_module(graph, params, *parts[1:])
            return MixedCloning(SHARES)(module, None, batch, jax.random.key(0))[0]

        return jax.value_and_grad(loss)(parts[0])

    one = jax.jit(gradient)(arrays, batch)
    with jax.sharding.set_mesh(mesh):
        spread = devices.put(batch, mesh)
        eight = jax.jit(gradient)(devices.put_replicated(arrays, mesh), spread)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


class Single:
    """An environment that shows its seed and its steps."""

    versions = {"numpy": "1"}

    def __init__(self, name, actions, limit):
        self.name, self.actions, self.limit = name, actions, limit
        self.shapes = {"state": ((2,), np.float32)}

    def _shown(self):
        return {"state": np.array([self.seed % 1000, self.steps], np.float32)}

    def reset(self, seed):
        self.seed, self.steps = seed, 0
        return self._shown()

    def step(self, action):
        self.steps += 1
        return self._shown(), float(action), self.steps == 3, False, action == 1

    def fingerprint(self):
        return np.full(32, self.steps, np.uint8)


def rows(name, actions, limit):
    def make(count, seed, first):
        return HostRows(lambda: Single(name, actions, limit), count, seed, first=first)

    return make


BOTH = {"b": rows("b", 2, 4), "a": rows("a", 3, 5)}


def test_rows_of_environments_take_turns_and_come_back():
    both = Joined(BOTH, 6, 11, scales={"b": 100})
    alone = {
        name: BOTH[name](count=3, seed=22 + number, first=0)
        for number, name in enumerate(("a", "b"))
    }
    assert (both.actions, both.limit, both.groups) == (3, 5, 2)
    step, own = both.begin(), {name: each.begin() for name, each in alone.items()}
    rng = np.random.default_rng(0)
    for number in range(6):
        for place, name in enumerate(("a", "b")):
            mine = step.observation[f"{name}/state"]
            np.testing.assert_array_equal(
                mine[place::2], own[name].observation["state"]
            )
            assert not mine[1 - place :: 2].any()
            scale = 100 if name == "b" else 1
            np.testing.assert_array_equal(
                step.reward[place::2], scale * own[name].reward
            )
            np.testing.assert_array_equal(
                step.terminated[place::2], own[name].terminated
            )
        if number == 4:
            again = Joined(BOTH, 6, 11, scales={"b": 100})
            restored = again.restore(both.saved())
            for a, b in zip(
                jax.tree.leaves(restored), jax.tree.leaves(step), strict=True
            ):
                np.testing.assert_array_equal(a, b)
        taken = rng.integers(0, 2, 6)
        step = both.step(taken)
        own = {
            name: alone[name].step(taken[place::2])
            for place, name in enumerate(("a", "b"))
        }


def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(InputError, match="5 rows from 0 cannot be shared by 2"):
        Joined(BOTH, 5, 0)
    with pytest.raises(InputError, match="scales names c"):
        Joined(BOTH, 4, 0, scales={"c": 2.0})
    with pytest.raises(OutOfRange, match=r"scales=\[-1.0\]"):
        Joined(BOTH, 4, 0, scales={"b": -1.0})
