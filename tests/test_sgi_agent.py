"""The agent's loss, update, learning rates, initialisation and actions."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from polyview.config.spec import build
from polyview.config.text import to_json
from polyview.errors import InputError
from polyview.model import abstract_module, merge_module, split_module
from polyview.nn.norm import BatchNorm
from polyview.runs import checkpoint, init
from polyview.training.step import TrainState, begin_with, create_state, make_step
from sgi import agent, pretrain
from sgi import load as loading
from sgi.agent import Keys, Rainbow, act, grouped_adam, transfer_map
from sgi.encoders import Residual
from sgi.network import Network

SUPPORT = np.linspace(-10, 10, 51)
ACTIONS = 3
JUMPS = 5
HURRY = {"xla_backend_optimization_level": 0}


class Short(Residual):
    """An encoder of one block, to compile less; it has what each block has."""

    STRIDES = (12,)


MODEL = {
    "partial": "sgi.network:Network",
    "actions": ACTIONS,
    "encoder": {"partial": "test_sgi_agent:Short", "blocks": 1, "widths": (8,)},
    "hidden": 16,
    "sigma": 0.5,
    "image": 24,
}


def network(**options):
    return build(MODEL | options)


def optimizer(clip=None, encoder=1e-3, first=1e-3, rest=1e-3):
    rates = {"encoder": encoder, "first": first, "rest": rest}
    return grouped_adam(steps=1, batch_size=1, clip=clip, **rates).transformation


def batches(*shape, image=24, seed=0):
    """Batches like those of a buffer; the last axis of `shape` is the batch rows."""
    rng = np.random.default_rng(seed)

    def frames(count):
        grey = rng.integers(0, 256, (*shape, count, image // 4, image // 4), np.uint8)
        return np.kron(grey, np.ones((4, 4), np.uint8))

    weight = rng.uniform(0.2, 1, shape)
    return {
        "views": {"frames": frames(4 + JUMPS), "next": frames(4)},
        "present": {
            "frames": np.ones((*shape, 4 + JUMPS), bool),
            "next": np.ones((*shape, 4), bool),
        },
        "targets": {
            "action": rng.integers(0, ACTIONS, (*shape, JUMPS)).astype(np.int32),
            "terminal": rng.random((*shape, JUMPS + 1)) < 0.15,
            "return": rng.normal(size=shape).astype(np.float32) * 3,
            "discount": np.where(rng.random(shape) < 0.3, 0, 0.9).astype(np.float32),
            "weight": (weight / weight.max(-1, keepdims=True)).astype(np.float32),
        },
        "index": rng.integers(0, 1000, shape).astype(np.int32),
    }


# The loss, compared with loops.


class Toy:
    """A network that uses the mean brightness of each frame of a stack as latent.

    Its head scales the returns of the actions by noise drawn from the key.
    """

    history = 4
    actions = ACTIONS

    def __init__(self, gain, xp=jnp):
        self.gain, self.xp, self.head = gain, xp, ToyHead(gain, xp)

    def encode(self, stacks, *, train):
        return self.gain * stacks.mean((1, 2), keepdims=True)

    def transition(self, latent, action, *, train):
        assert train
        return self.xp.roll(latent, 1, -1) + 0.3 * action[:, None, None, None]

    def project(self, latents, *, train, head):
        assert train
        flat = head.project(latents.reshape(-1, *latents.shape[-3:]))
        return flat.reshape(*latents.shape[:-3], -1)

    def predict(self, projections):
        return self.gain * projections[..., ::-1] + 0.1


class ToyHead:
    def __init__(self, gain, xp):
        self.gain, self.xp = gain, xp

    def __call__(self, latent, *, key):
        noise = 0.0 if key is None else shift(key)
        means = 3 * self.gain * latent.reshape(len(latent), 4)[:, :ACTIONS, None] ** 2
        # The noise changes the order of the actions, and so the best action.
        order = 1 + noise * self.xp.asarray([1.0, -2.0, 0.5])[None, :, None]
        spread = (self.xp.asarray(SUPPORT)[None, None] - means * order) ** 2
        return -spread / 20

    def project(self, latent):
        flat = latent.reshape(len(latent), -1)
        return self.xp.concatenate([flat, self.gain * flat**2], -1)


def shift(key):
    """The noise drawn from a key, for the network and for the loops."""
    if isinstance(key, float):
        return key
    return jax.random.uniform(key, (), float, -1, 1)


def unit(x):
    return x / max(np.linalg.norm(x), 1e-3)


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def slow_row(frames, after, targets, online, frozen, average, noise):
    """C51's loss, its divergence and SPR's loss of one row, from their formulas.

    `frozen` is the network that makes the target; no gradient flows through it. noise:
    of the prediction, of the choice of an action, of its return.
    """

    def stack(images, k=0):
        return np.moveaxis(images[k : k + 4], 0, -1)[None]

    next_latent = frozen.encode(stack(after), train=True)
    choices = frozen.head(next_latent, key=noise[1])[0]
    best = np.argmax([np.exp(log_softmax(row)) @ SUPPORT for row in choices])
    returns = np.exp(log_softmax(frozen.head(next_latent, key=noise[2])[0, best]))
    target = np.zeros(51)
    for mass, atom in zip(returns, SUPPORT, strict=True):
        place = np.clip(targets["return"] + targets["discount"] * atom, -10, 10)
        target += mass * np.maximum(1 - abs((place + 10) / 0.4 - np.arange(51)), 0)
    z = online.encode(stack(frames), train=True)
    log_p = log_softmax(online.head(z, key=noise[0])[0, targets["action"][0]])
    entropy = -target @ log_p
    target = np.maximum(target, 1e-6)
    divergence = np.clip(target @ (np.log(target) - log_p), 1e-6, 1e6)

    spr = 0
    for k in range(1, JUMPS + 1):
        z = online.transition(z, targets["action"][k - 1 : k], train=True)
        if targets["terminal"][:k].any():
            break
        y = online.predict(online.head.project(z))[0]
        u = average.head.project(average.encode(stack(frames, k), train=True))[0]
        spr += ((unit(y) - unit(u)) ** 2).sum() / JUMPS
    return entropy, divergence, spr


def slow_losses(batch, key, gain, frozen, average, double=True):
    keys = Keys(*jax.random.split(key, 4))
    own, fresh = (float(shift(k)) for k in (keys.head, keys.bootstrap))
    noise = own, own if double else fresh, fresh
    toys = [Toy(g, np) for g in (gain, frozen, average)]
    rows = [
        slow_row(
            batch["views"]["frames"][i],
            batch["views"]["next"][i],
            {name: column[i] for name, column in batch["targets"].items()},
            *toys,
            noise,
        )
        for i in range(len(batch["index"]))
    ]
    return np.array(rows).T


@pytest.mark.parametrize("weight, double", [(0.0, False), (5.0, True)])
def test_loss_matches_loops_over_rows(monkeypatch, x64, weight, double):
    """With spr=0 it is only C51's cross-entropy, weighted by the replay weights."""
    monkeypatch.setattr(pretrain, "Network", Toy)
    monkeypatch.setattr(agent, "copied", lambda toy: toy)  # it keeps no statistics
    monkeypatch.setattr(pretrain, "augment", lambda stacks, _: stacks.astype(float))
    rng, batch = np.random.default_rng(1), batches(24)
    for name, frames in batch["views"].items():
        grey = rng.uniform(0, 1.5, frames.shape[:2])[..., None, None]
        batch["views"][name] = np.broadcast_to(grey, frames.shape)
    key = jax.random.key(3)
    objective = Rainbow(spr=weight, double=double)

    @partial(jax.jit, compiler_options=HURRY)
    def value_and_gradient(gain, batch):
        value = partial(objective, target_module=Toy(1.2), batch=batch, key=key)
        return jax.value_and_grad(lambda g: value(Toy(g)), has_aux=True)(gain)

    (loss, metrics), gradient = value_and_gradient(1.0, batch)
    entropy, divergence, spr = slow_losses(batch, key, 1.0, 1.0, 1.2, double)
    other, *_ = slow_losses(batch, key, 1.0, 1.0, 1.2, not double)
    assert abs(entropy - other).max() > 0.01, "both choose the same actions"
    importance = batch["targets"]["weight"]
    assert float(loss) == pytest.approx((importance * (entropy + weight * spr)).mean())
    np.testing.assert_allclose(metrics["priority"], divergence, rtol=1e-7)
    assert float(metrics["distributional"]) == pytest.approx(entropy.mean())
    assert float(metrics["error"]) == pytest.approx(divergence.mean())
    if weight:
        assert float(metrics["spr"]) == pytest.approx(spr.mean())
        assert 0 < np.count_nonzero(batch["targets"]["terminal"].any(1)) < 24
    assert ("spr" in metrics) == bool(weight)

    def total(gain):
        entropy, _, spr = slow_losses(batch, key, gain, 1.0, 1.2, double)
        return (importance * (entropy + weight * spr)).mean()

    slope = (total(1 + 1e-5) - total(1 - 1e-5)) / 2e-5
    assert float(gradient) == pytest.approx(slope, rel=1e-6)


def test_the_bootstrap_has_its_own_noise(monkeypatch):
    """The prediction and the action choice share one draw; the return has another, with
    which the action is chosen too if `double` is False."""
    monkeypatch.setattr(pretrain, "Network", Toy)

    monkeypatch.setattr(agent, "copied", lambda toy: toy)

    def keys_of(double, batch):
        asked, toy = [], Toy(1.0)

        def head(latent, *, key):
            asked.append(jax.random.key_data(key))
            return ToyHead(1.0, jnp)(latent, key=key)

        toy.head = head
        Rainbow(spr=0.0, double=double)(toy, toy, batch, jax.random.key(0))
        return asked

    def drawn(double):
        keys = jax.jit(partial(keys_of, double), compiler_options=HURRY)(batches(2))
        return [tuple(key.tolist()) for key in keys]

    prediction, value, choice = drawn(double=True)
    assert prediction == choice != value
    assert drawn(double=False) == [prediction, value]


class Normed(nnx.Module):
    """Normalises the mean brightness of a stack's frames, and keeps its statistics."""

    history, actions = 4, ACTIONS

    def __init__(self):
        self.norm = BatchNorm(4, rngs=None)

    def encode(self, stacks, *, train):
        return self.norm(stacks.mean((1, 2), keepdims=True), train=train)

    def head(self, latent, *, key):
        return latent.reshape(-1, 4)[:, :ACTIONS, None] * jnp.asarray(
            SUPPORT[None, None]
        )


def test_all_views_of_a_batch_are_normalised_together():
    views = np.random.default_rng(0).uniform(size=(6, 3, 8, 8, 4))
    views[:, 1] *= 5  # alone, it would be normalised to the size of the others

    @partial(jax.jit, compiler_options=HURRY)
    def encoded(views):
        return pretrain.encode_all(Normed(), views)

    light = views.mean((2, 3))
    expected = (light - light.mean((0, 1))) / np.sqrt(light.var((0, 1)) + 1e-5)
    found = encoded(views)[:, :, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("double", [True, False])
def test_only_double_q_learning_keeps_the_statistics_of_the_bootstrap(
    monkeypatch, double
):
    """In the official code, the network itself reads x_{t+n} only to choose."""
    monkeypatch.setattr(pretrain, "Network", Normed)
    monkeypatch.setattr(pretrain, "augment", lambda stacks, _: stacks / 255)

    @partial(jax.jit, compiler_options=HURRY)
    def statistics(batch):
        module = Normed()
        Rainbow(spr=0.0, double=double)(module, Normed(), batch, jax.random.key(0))
        return module.norm.mean[...]

    batch = batches(8)
    expected = np.zeros(4)
    for name in ("frames", "next")[: 1 + double]:
        stack = batch["views"][name][:, :4]
        expected = 0.9 * expected + 0.1 * stack.mean((0, 2, 3)) / 255
    np.testing.assert_allclose(statistics(batch), expected, rtol=1e-5)


def test_invalid_fine_tuning_is_refused():
    with pytest.raises(ValueError, match="jumps=0"):
        Rainbow(jumps=0)
    with pytest.raises(ValueError, match="double='no'"):
        Rainbow(double="no")
    with pytest.raises(InputError, match="target_decay"):
        Rainbow()(object.__new__(Network), None, batches(2), None)


# The update of one agent and of several.


SEEDS = 3


@pytest.fixture(scope="module")
def start():
    """The states of three agents before their first step."""
    create = partial(create_state, network(), optimizer(clip=10.0), target_decay=0.99)
    seeds = jnp.arange(SEEDS, dtype=jnp.uint32)
    return jax.jit(jax.vmap(create), compiler_options=HURRY)(seeds)[0]


@pytest.fixture(scope="module")
def graph():
    return abstract_module(network())[0]


def without_fixed(take, state, *inputs):
    """A step of a model without fixed weights."""
    return take(state, {}, *inputs)


def of_seed(tree, seed):
    return jax.tree.map(lambda x: x[seed], tree)


@pytest.mark.slow
def test_agents_trained_together_match_each_trained_alone(start, graph):
    take = make_step(graph, Rainbow(jumps=2), optimizer(clip=10.0), 0.99)
    take = partial(without_fixed, take)
    update = jax.jit(take, compiler_options=HURRY)
    take = jax.vmap(take, in_axes=(0, 0, None, 0))
    several = jax.jit(take, compiler_options=HURRY)
    steps, seeds = 6, np.arange(SEEDS, dtype=np.uint32)
    play = batches(steps, SEEDS, 8)
    together, losses = start, []
    for number in range(steps):
        together, metrics = several(together, of_seed(play, number), number, seeds)
        losses.append(metrics["loss"])
    for seed in range(SEEDS):
        state = of_seed(start, seed)
        for number in range(steps):
            batch = of_seed(of_seed(play, number), seed)
            state, metrics = update(state, batch, number, seeds[seed])
            expected = float(losses[number][seed])
            assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
        joint = checkpoint.flatten(of_seed(together, seed))
        for name, leaf in checkpoint.flatten(state).items():
            # Gradients are larger than weights, and so are their rounding errors.
            near = 1e-4 if name.startswith("optimizer") else 1e-5
            np.testing.assert_allclose(
                joint[name], leaf, atol=near, rtol=0, err_msg=name
            )
        assert bool(metrics["healthy"]) and metrics["priority"].shape == (8,)
    moved = abs(
        together.params["head"]["value1"]["kernel"]
        - start.params["head"]["value1"]["kernel"]
    )
    assert moved.max() > 5e-3, "the agents did not learn"
    assert np.ptp(np.asarray(losses[0])) > 1e-2, "the agents are identical"


def test_order_of_statistics_average_and_update(start, graph):
    """Running statistics see the stack, then the stack n steps later. After the update,
    the average takes in 1 % of both; its own forward pass changes nothing.

    The optimiser, of which nothing is claimed here, is the smallest.
    """
    start, batch = of_seed(start, 0), of_seed(batches(SEEDS, 8), 0)
    made = optax.sgd(1.0)
    start = replace(start, optimizer=made.init(start.params))
    take = partial(without_fixed, make_step(graph, Rainbow(jumps=1), made, 0.99))
    # The average starts from other values, so that its update is visible.
    other = jax.tree.map(lambda x: x + 0.1, start.target)

    def encoded(params, statistics):
        module = merge_module(graph, params, statistics)
        noise = jax.random.fold_in(jax.random.key(0), 1)
        keys = Keys(*jax.random.split(jax.random.fold_in(noise, 0), 4))
        views = batch["views"]
        stacks = [views["frames"][:, :4], views["next"]]
        stacks = jnp.moveaxis(jnp.stack(stacks, 1), 2, -1)
        augmented = pretrain.augment(stacks, jax.random.split(keys.own_views, 8))
        for k in range(2):
            module.encode(augmented[:, k], train=True)
        return split_module(module).statistics["encoder"]

    @partial(jax.jit, compiler_options=HURRY)
    def run(state, batch):
        after, _ = take(state, batch, 0, np.uint32(0))
        return after, encoded(state.params, state.statistics)

    after, expected = run(replace(start, target=other), batch)
    expected = checkpoint.flatten(expected)
    updated = checkpoint.flatten(after.statistics["encoder"])
    for name, leaf in expected.items():
        np.testing.assert_allclose(updated[name], leaf, atol=1e-5, err_msg=name)
    for part in ("params", "statistics"):
        mixed = jax.tree.map(
            lambda old, new: 0.99 * old + 0.01 * new, other[part], getattr(after, part)
        )
        for name, leaf in checkpoint.flatten(mixed).items():
            average = checkpoint.flatten(after.target[part])[name]
            np.testing.assert_allclose(average, leaf, atol=1e-6, err_msg=name)
    # Parameters that the loss does not read stay; all others move.
    before, moved = checkpoint.flatten(start.params), set()
    for name, leaf in checkpoint.flatten(after.params).items():
        part = name.partition(".")[0]
        if part != "encoder":  # its branches start closed, with scale zero
            unread = part in ("goal_head", "inverse")
            assert np.array_equal(leaf, before[name]) == unread, name
        elif not np.array_equal(leaf, before[name]):
            moved.add(name.rpartition(".")[2])
    assert {"kernel", "scale"} <= moved, moved


# Learning rates.


def expected_rate(name):
    if name.startswith("encoder."):
        return 1e-6
    first = ("head.advantage1.", "head.value1.")
    if name.startswith((*first, *(f"goal_head.{f}" for f in first))):
        return 3e-5
    assert name.startswith(
        (
            "transition.",
            "predictor.",
            "inverse.",
            "goal_head.conditioner.",
            "head.advantage2.",
            "head.value2.",
            "goal_head.head.advantage2.",
            "goal_head.head.value2.",
        )
    ), f"{name} has no expected rate"
    return 1e-4


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "standardised"])
def shapes(request):
    """Parameters and statistics of the network, as shapes."""
    parts = abstract_module(network(standardise=request.param))
    return parts.params, parts.statistics


def constant(tree, value):
    return jax.tree.map(lambda s: np.full(s.shape, value, s.dtype), tree)


def first_update(made, params, gradients):
    """An optimiser's update from its first gradients, and its state."""

    def update(params, gradients):
        return made.update(gradients, made.init(params), params)

    return jax.device_get(jax.jit(update, compiler_options=HURRY)(params, gradients))


@pytest.fixture(scope="module")
def weights():
    """The shapes of the parameters, which standardisation does not change."""
    return abstract_module(network()).params


def test_every_leaf_moves_at_the_rate_of_its_group(weights):
    params, gradients = constant(weights, 0.0), constant(weights, -2.0)
    made = optimizer(encoder=1e-6, first=3e-5, rest=1e-4)
    updates, _ = first_update(made, params, gradients)
    names = checkpoint.flatten(updates)
    for name, update in names.items():
        # Adam's first step equals the rate, except for epsilon.
        rate = expected_rate(name) * 2 / (2 + 1.5e-4)
        np.testing.assert_allclose(update, rate, rtol=1e-5, err_msg=name)
    rates = {expected_rate(name) for name in names}
    assert rates == {1e-6, 3e-5, 1e-4} and len(names) > 50
    schedule = grouped_adam(
        steps=1, batch_size=1, encoder=1e-6, first=3e-5, rest=1e-4
    ).schedule
    assert float(schedule(0)) == float(schedule(99)) == pytest.approx(1e-4)


def test_gradients_are_clipped_only_without_pre_training(weights):
    params, gradients = constant(weights, 0.0), constant(weights, 3.0)

    def moments(clip):
        _, (_, adam, _) = first_update(optimizer(clip), params, gradients)
        return jax.tree.map(lambda m: np.asarray(m) / 0.1, adam.mu)

    def norm(part):
        return np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(part)))

    clipped, whole = moments(10.0), moments(None)
    together = [clipped[name] for name in ("encoder", "head", "goal_head")]
    assert norm(together) == pytest.approx(10, rel=1e-4)
    assert norm(clipped["transition"]) == pytest.approx(10, rel=1e-4)
    for part in (clipped["predictor"], clipped["inverse"], whole):
        for leaf in jax.tree.leaves(part):
            np.testing.assert_allclose(leaf, 3, rtol=1e-5)


# Initialisation from a pre-trained network.


def numbered(tree, start):
    """The tree with different numbers in each leaf."""
    leaves, structure = jax.tree.flatten(tree)
    made = [
        np.arange(start + i, start + i + s.size, dtype=np.float32).reshape(s.shape)
        for i, s in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, made)


@pytest.fixture
def template(shapes):
    params, statistics = (numbered(tree, 1e5) for tree in shapes)
    target = {"params": params, "statistics": statistics}
    return TrainState(np.int32(0), params, statistics, {"mu": params}, target)


@pytest.fixture
def transfer(shapes, monkeypatch):
    """`transfer(state, *donor)` -> the state initialised from the donor network."""

    def transfer(state, *donor):
        given = {k: v for tree in donor for k, v in checkpoint.flatten(tree).items()}
        monkeypatch.setattr(
            init, "load", lambda *_, **__: SimpleNamespace(arrays=given)
        )
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        template = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
        )
        standardise = "standardise" in shapes[1]
        entries = init.entries_of(
            {"init": transfer_map("a run", standardise=standardise)}
        )
        laid = init.lay_over(entries, None, (*template, {}))
        params, statistics, _ = laid.over((state.params, state.statistics, {}))
        return begin_with(state, params, statistics)

    return transfer


def test_transfer_copies_all_but_the_agents_own_parameters(shapes, template, transfer):
    donor = [numbered(tree, 0) for tree in shapes]
    state = transfer(template, *donor)
    fresh = checkpoint.flatten(template.params)
    given = checkpoint.flatten(donor[0])
    seen = {"first": 0, "own": 0, "sigma": 0, "same": 0}
    for name, leaf in checkpoint.flatten(state.params).items():
        *module, last = name.split(".")
        if last.endswith("sigma"):
            kind, expected = "sigma", fresh[name]
        elif name.startswith(("head.advantage1", "head.value1")):
            kind, expected = "first", given[f"goal_head.{name}"]
        elif name.startswith(("head.advantage2", "head.value2")):
            kind, expected = "own", fresh[name]
        else:
            kind, expected = "same", given[name]
        seen[kind] += 1
        np.testing.assert_array_equal(leaf, expected, err_msg=name)
    assert seen["first"] == 4 and seen["own"] == 4 and seen["sigma"] == 16
    jax.tree.map(np.testing.assert_array_equal, state.statistics, donor[1])
    average = {"params": state.params, "statistics": state.statistics}
    jax.tree.map(np.testing.assert_array_equal, state.target, average)
    assert state.optimizer is template.optimizer and int(state.step) == 0


def test_several_seeds_start_from_one_network(shapes, template, transfer):
    donor = [numbered(tree, 0) for tree in shapes]
    many = jax.tree.map(lambda x: np.stack([x, x + 1]), template)
    state = transfer(many, *donor)
    jax.tree.map(
        np.testing.assert_array_equal, of_seed(state, 0), transfer(template, *donor)
    )
    kernel = state.params["head"]["value2"]["kernel"]
    np.testing.assert_array_equal(kernel[1] - kernel[0], 1)


def test_sigmas_start_at_half_over_the_root_of_the_width(start):
    """The agent's own initial values; the sigmas of a pre-trained donor are 0."""
    for name, leaf in checkpoint.flatten(start.params).items():
        if name.endswith("sigma"):
            size = leaf.shape[1]  # inputs of a kernel, outputs of a bias
            np.testing.assert_allclose(leaf, 0.5 / size**0.5, rtol=1e-6)


def test_another_network_is_refused(shapes, template, transfer):
    donor = [numbered(tree, 0) for tree in shapes]
    wider = abstract_module(network(hidden=32))[1:3]
    with pytest.raises(InputError, match=r"run has shape \(64,\), .* has \(32,\)"):
        transfer(template, *(numbered(tree, 0) for tree in wider))
    del donor[0]["encoder"], donor[1]["encoder"]
    with pytest.raises(InputError, match="a run has nothing at 'encoder'"):
        transfer(template, *donor)


# Acting.


@pytest.fixture(scope="module")
def acting(start, graph):
    """`actions(stacks, noise, epsilon, key)` of a network, compiled."""
    params, statistics = of_seed(start.params, 0), of_seed(start.statistics, 0)

    def actions(stacks, noise, epsilon, key):
        module = merge_module(graph, params, statistics)
        before = jax.tree.leaves(split_module(module).statistics)
        chosen = act(module, stacks, noise=noise, epsilon=epsilon, key=key)
        # Acting writes no statistics: the arrays are the same objects.
        kept = zip(
            jax.tree.leaves(split_module(module).statistics), before, strict=True
        )
        assert all(a is b for a, b in kept)
        return chosen

    return jax.jit(actions, compiler_options=HURRY)


def stacks(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 24, 24, 4), np.uint8)


def test_epsilon_one_is_uniform(acting):
    images, keys = stacks(64), jax.random.split(jax.random.key(0), 47)
    drawn = [acting(images, None, 1.0, key) for key in keys]
    assert all(d.dtype == jnp.int32 and d.shape == (64,) for d in drawn)
    n, actions = 47 * 64, np.concatenate(drawn)
    counts = np.bincount(actions, minlength=ACTIONS)
    assert len(counts) == ACTIONS
    assert ((counts - n / 3) ** 2 / (n / 3)).sum() < 13.8  # 1 in 1000


def test_epsilon_zero_is_greedy_and_deterministic(acting):
    n = 64
    images = stacks(n)
    first, second = (acting(images, None, 0.0, jax.random.key(k)) for k in (0, 1))
    np.testing.assert_array_equal(first, second)
    assert len(set(first.tolist())) > 1, "the network always prefers one action"
    half = [acting(images, None, 0.5, jax.random.key(k)) for k in range(40)]
    other = np.mean([np.asarray(h) != np.asarray(first) for h in half])
    assert other == pytest.approx(0.5 * 2 / 3, abs=0.05)
    # Statistics are fixed, so an action does not depend on the other images.
    for beside in (images[::-1], np.repeat(images[:1], n, axis=0)):
        others = np.concatenate([images[:1], beside[1:]])
        assert acting(others, None, 0.0, jax.random.key(0))[0] == first[0]


def test_noise_makes_the_agent_explore(acting):
    images, key = stacks(64), jax.random.key(0)
    still = np.asarray(acting(images, None, 0.0, key))
    drawn = [np.asarray(acting(images, k, 0.0, key)) for k in jax.random.split(key, 30)]
    again = acting(images, jax.random.split(key, 30)[0], 0.0, key)
    np.testing.assert_array_equal(drawn[0], again)
    different = np.mean([d != still for d in drawn])
    assert 0.05 < different < 0.95
    # Choices change between draws in most rows, not only in a few.
    assert (np.ptp(drawn, axis=0) > 0).mean() > 0.5


def test_the_greedy_action_has_the_highest_expected_return():
    toy = Toy(1.0)
    images = stacks(50)
    toy.encode = lambda x, train: jnp.asarray(x).astype(float).mean((1, 2)) / 255
    toy.head = lambda latent, key: (
        jax.nn.one_hot((latent[:, :ACTIONS] * 50).astype(int), 51) * 9.0
    )
    choose = partial(act, toy, noise=None, epsilon=0.0, key=jax.random.key(0))
    actions = jax.jit(choose, compiler_options=HURRY)(images)
    place = (images.mean((1, 2))[:, :ACTIONS] / 255 * 50).astype(int)
    for action, row in zip(actions, place, strict=True):
        assert row[action] == row.max()


# Loading.


def saved(folder, config, state):
    kept = checkpoint.Checkpoints(folder / "checkpoints")
    kept.save(7, state, to_json(ConfigDict(config)))
    kept.close()


def test_one_of_several_agents_is_loaded(tmp_path):
    small = {"partial": "sgi.encoders:Nature", "widths": (2, 2, 2)}
    model = MODEL | {"encoder": small, "image": 36, "hidden": 2}
    shapes = abstract_module(build(model))[1:3]
    parts = [numbered(tree, 0) for tree in shapes]
    many = jax.tree.map(lambda x: np.stack([x, x + 0.5]), parts)
    names = "params", "statistics"
    config = {"seeds": 2, "model": model}
    saved(tmp_path, config, {"train": dict(zip(names, many, strict=True))})
    for seed in range(2):
        loaded = loading.load(tmp_path, seed)
        assert loaded.step == 7 and loaded.config.seeds == 2
        jax.tree.map(
            np.testing.assert_array_equal,
            [loaded.parts.params, loaded.parts.statistics],
            of_seed(many, seed),
        )
    assert isinstance(loaded.module, Network)
    with pytest.raises(InputError, match="no seed 2; it has 0 to 1"):
        loading.load(tmp_path, 2)
    with pytest.raises(InputError, match="no checkpoint of step 3"):
        loading.load(tmp_path, at=3)


def test_a_pre_trained_network_is_loaded_like_any_run(tmp_path, monkeypatch):
    saved(tmp_path, {"model": MODEL}, {"params": {"x": np.zeros(1)}})
    monkeypatch.setattr(
        loading, "read_model", lambda folder, number: (folder.name, number)
    )
    assert loading.load(tmp_path) == ("7", 7)
