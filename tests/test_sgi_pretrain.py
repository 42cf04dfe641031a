"""SGI's objective compares the right time steps, on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polyview import devices
from polyview.errors import InputError
from polyview.model import abstract_module, merge_module, split_module
from polyview.training import optimizer
from polyview.training.step import create_state, make_step
from sgi import pretrain
from sgi.encoders import Residual
from sgi.network import Network
from sgi.pretrain import Pretrain, augment, stacked

pytestmark = pytest.mark.usefixtures("x64")
SUPPORT = np.linspace(-10, 10, 51)
ACTIONS = 3
HURRY = {"xla_backend_optimization_level": 0}


def windows(b, *, image=24, jumps=5, seed=0):
    """Play with a bright square moved by the actions, from a random start per row."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, ACTIONS, (b, 3 + jumps))
    start = rng.integers(6, image - 12, (b, 1))
    places = np.concatenate([start, start + np.cumsum(actions - 1, 1)], 1)
    walls = rng.integers(0, 200, (b, 1, image // 4, image // 4), np.uint8)
    frames = np.kron(walls, np.ones((1, 4 + jumps, 4, 4), np.uint8))
    for i, t in np.ndindex(b, 4 + jumps):
        place = np.clip(places[i, t], 0, image - 6)
        frames[i, t, place : place + 6, 4:10] = 220
    return {
        "views": {"frames": frames, "goal": frames[:, -4:].copy()},
        "present": {
            "frames": np.ones((b, 4 + jumps), bool),
            "goal": np.ones((b, 4), bool),
        },
        "targets": {
            "action": actions[:, 3:].astype(np.int32),
            "terminal": rng.random((b, jumps + 1)) < 0.1,
            "reward": np.zeros((b, jumps), np.float32),
        },
        "index": np.arange(b) + 50,
    }


def test_stacks_hold_the_frames_up_to_each_step():
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 5, 6), np.uint8)
    stacks = np.asarray(stacked(frames, 4))
    assert stacks.shape == (2, 6, 5, 6, 4)
    for k in range(6):
        for age in range(4):
            np.testing.assert_array_equal(stacks[:, k, ..., age], frames[:, k + age])


def test_augmentation_shifts_and_scales_a_whole_stack_at_once():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (60, 5, 8, 9, 4), np.uint8)
    keys = jax.random.split(jax.random.key(0), 60)
    augmented = np.asarray(jax.jit(augment)(images, keys))
    draws = []
    for image, stack in zip(
        images.reshape(-1, 8, 9, 4), augmented.reshape(-1, 8, 9, 4), strict=True
    ):
        padded = np.pad(image / 255, ((4, 4), (4, 4), (0, 0)), mode="edge")
        for y, x in np.ndindex(9, 9):
            ratio = stack / padded[y : y + 8, x : x + 9]
            if np.ptp(ratio) < 1e-9:
                draws.append((y, x, ratio.mean()))
                break
    y, x, factor = np.array(draws).T
    assert len(draws) == 300, "not every augmented stack is a shift of its stack"
    for offsets in (y, x):
        counts = np.bincount(offsets.astype(int), minlength=9)
        assert ((counts - 300 / 9) ** 2 / (300 / 9)).sum() < 26.1  # 1 in 1000
    assert factor.min() == pytest.approx(0.9) and factor.max() == pytest.approx(1.1)
    assert factor.std() == pytest.approx(0.05 * 0.96, rel=0.1)  # of a clipped normal
    again = jax.jit(augment)(images[::-1], keys[::-1])  # noise depends on the row's key
    np.testing.assert_array_equal(augmented, again[::-1])


@pytest.mark.parametrize("draws", ["windows", "none"])
def test_stacks_of_a_window_share_a_draw_or_have_none(draws):
    images = np.random.default_rng(0).integers(1, 256, (6, 1, 8, 9, 4), np.uint8)
    images = np.repeat(images, 3, axis=1)
    keys = jax.random.split(jax.random.key(0), 6)
    augmented = np.asarray(jax.jit(augment, static_argnums=2)(images, keys, draws))
    for later in (1, 2):
        np.testing.assert_array_equal(augmented[:, later], augmented[:, 0])
    alone = jax.jit(augment)(images[:, :1], keys)
    expected = images[:, :1] / 255 if draws == "none" else alone
    np.testing.assert_allclose(augmented[:, :1], expected, rtol=1e-12)
    assert augmented.dtype == alone.dtype


def test_both_networks_see_the_one_draw_of_a_window(monkeypatch):
    """With "stacks" and "none", each has keys of its own, as before."""
    monkeypatch.setattr(pretrain, "Network", Toy)
    for draws in ("stacks", "windows"):
        forms = []

        @jax.jit  # only the keys are computed
        def keys_of(batch, draws=draws, forms=forms):
            seen = []

            def watched(stacks, keys, draws):
                seen.append(jax.random.key_data(keys))
                forms.append(draws)
                return stacks.astype(float)

            monkeypatch.setattr(pretrain, "augment", watched)
            objective = Pretrain(augmentation=draws)
            objective(Toy(1, 0), Toy(1, 0), batch, jax.random.key(0))
            return seen

        own, average = keys_of(windows(2))
        assert forms == [draws, draws]
        assert np.array_equal(own, average) == (draws == "windows")


def test_unknown_forms_are_refused():
    for wrong in ({"augmentation": "window"}, {"inverse_sees": "both"}):
        with pytest.raises(ValueError, match="is not one of"):
            Pretrain(**wrong)


class Toy:
    """A network that uses the mean brightness of each frame of a stack as latent.

    `turn` makes its heads prefer other actions; `xp` is jax.numpy, or numpy for the
    loops.
    """

    history, actions = 4, ACTIONS

    def __init__(self, gain: float, turn: int, xp=jnp):
        self.gain, self.turn, self.xp = gain, turn, xp

    def encode(self, stacks, *, train):
        assert train
        return self.gain * stacks.mean((1, 2), keepdims=True)

    def transition(self, latent, action, *, train):
        return self.xp.roll(latent, 1, -1) + 0.3 * action[:, None, None, None]

    def project(self, latents, *, train):
        assert train
        flat = latents.reshape(*latents.shape[:-3], -1)
        return self.xp.concatenate([flat, flat**2], -1)

    def predict(self, projections):
        return projections[..., ::-1]

    def inverse(self, before, after):
        both = (before * after).sum(-1)
        return self.xp.stack([before[..., 0], after[..., 1], both], -1)

    def goal_head(self, latent, goal, *, key):
        return self.head(latent + self.gain * goal, key=key)

    def head(self, latent, *, key):
        means = self.xp.roll(latent.reshape(len(latent), 4), self.turn, -1)
        means = 3 * self.gain * means[:, :ACTIONS, None]
        return -((self.xp.asarray(SUPPORT)[None, None] - means) ** 2) / 20


def unit(x):
    return x / max(np.linalg.norm(x), 1e-3)


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def far(u, v):
    return 1 - np.exp(-5 * ((unit(u) - unit(v)) ** 2).sum())


def expected_returns(logits):
    return np.array([np.exp(log_softmax(row)) @ SUPPORT for row in logits])


def slow_losses(frames, goal, actions, ended, online, average, form, sees):
    """The losses of one window, step by step, from their formulas."""

    def project(network, latent):
        return network.project(latent, train=True)

    def stack(k):
        return np.moveaxis(frames[k : k + 4], 0, -1)[None]

    spr = inverse = 0
    z = [online.encode(stack(0), train=True)]
    for k in range(5):
        z.append(online.transition(z[k], actions[k : k + 1], train=True))
    u = [average.encode(stack(k), train=True) for k in range(6)]
    for k in range(1, 6):
        y, t = online.predict(project(online, z[k]))[0], project(average, u[k])[0]
        steps = range(k) if form == "correct" else range(1, min(k + 2, 6))
        if not any(ended[s] for s in steps):
            spr += ((unit(y) - unit(t)) ** 2).sum() / 5
    for k in range(5):
        if form == "upstream" or not any(ended[: k + 1]):
            before, after = project(online, z[k]), project(average, u[k + 1])
            if sees == "online":
                seen = [online.encode(stack(at), train=True) for at in (k, k + 1)]
                before, after = (project(online, latent) for latent in seen)
            logits = online.inverse(before, after)
            inverse -= log_softmax(logits[0])[actions[k]] / 5

    goal = average.encode(np.moveaxis(goal, 0, -1)[None], train=True)
    goal = unit(goal.ravel()).reshape(goal.shape)
    goal = (goal - goal.min()) / (goal.max() - goal.min() + 1e-5)
    reward = 10 * (far(u[0].ravel(), goal.ravel()) - far(u[1].ravel(), goal.ravel()))
    if form == "correct":
        reward *= not ended[0]
        discount = 0.99 * (not ended[0])
    else:
        reward *= 0.99 * (not ended[1])
        discount = 0.99 * (not ended[1] and not ended[2])
    after = online.encode(stack(1), train=True)
    best = expected_returns(online.goal_head(after, goal, key=None)[0]).argmax()
    after = average.encode(stack(1), train=True)
    returns = np.exp(log_softmax(average.goal_head(after, goal, key=None)[0, best]))
    log_p = log_softmax(online.goal_head(z[0], goal, key=None)[0, actions[0]])
    loss = 0
    for mass, atom in zip(returns, SUPPORT, strict=True):
        place = (np.clip(reward + discount * atom, -10, 10) + 10) / 0.4
        loss -= mass * (np.maximum(1 - abs(place - np.arange(51)), 0) @ log_p)
    policy = log_softmax(expected_returns(online.head(z[0], key=None)[0]))
    return {
        "spr": spr,
        "inverse": inverse,
        "goal": loss,
        "cloning": -policy[actions[0]],
    }


@pytest.mark.parametrize(
    ("form", "sees"),
    [("correct", "average"), ("upstream", "average"), ("correct", "online")],
)
def test_losses_match_loops_over_windows(monkeypatch, form, sees):
    """There is no noise; the toy networks only distinguish time steps."""
    monkeypatch.setattr(pretrain, "Network", Toy)
    monkeypatch.setattr(pretrain, "augment", lambda x, *_: x.astype(float))
    rng, b = np.random.default_rng(1), 12
    batch = windows(b)
    for name, frames in batch["views"].items():
        grey = rng.integers(0, 4, frames.shape[:2])[..., None, None]
        batch["views"][name] = np.broadcast_to(grey, frames.shape)
    batch["targets"]["terminal"] = rng.random((b, 6)) < 0.2
    weights = {"spr": 1.0, "goal": 1.0, "inverse": 3.0, "cloning": 0.5}
    quiet = {"goal_noise": 0.0, "goal_permutation": 0.0}
    objective = Pretrain(**weights, **quiet, window_terminals=form, inverse_sees=sees)
    loss, metrics = jax.jit(
        lambda batch: objective(Toy(1.0, 0), Toy(1.2, 1), batch, jax.random.key(0)),
        compiler_options=HURRY,
    )(batch)
    slow = [
        slow_losses(*row, Toy(1.0, 0, np), Toy(1.2, 1, np), form, sees)
        for row in zip(
            *(batch["views"][name] for name in ("frames", "goal")),
            *(batch["targets"][name] for name in ("action", "terminal")),
            strict=True,
        )
    ]
    total = 0
    for name, weight in weights.items():
        expected = np.mean([row[name] for row in slow])
        assert float(metrics[name]) == pytest.approx(expected, rel=1e-9), name
        total += weight * expected
    assert float(loss) == pytest.approx(total, rel=1e-9)
    assert metrics["features"]["frames"].z.shape == (b, 1, 8)


def test_noise_scale_and_permutation_change_the_goals(monkeypatch):
    """Tests only that the options are applied; test_sgi_losses tests their effect."""
    monkeypatch.setattr(pretrain, "Network", Toy)
    batch = windows(16)

    quiet = {"goal_noise": 0.0, "goal_permutation": 0.0}
    noisy = quiet | {"goal_noise": 0.5}
    forms = [
        quiet,
        noisy,
        noisy | {"goal_noise_scale": "unit"},
        quiet | {"goal_permutation": 1.0},
        quiet | {"goal_noise_scale": "unit"},
    ]

    @partial(jax.jit, compiler_options=HURRY)  # one program, which shares their views
    def goals(batch):
        toys, key = (Toy(1.0, 0), Toy(1.2, 1)), jax.random.key(0)
        objectives = [Pretrain(spr=0, inverse=0, **form) for form in forms]
        return [objective(*toys, batch, key)[0] for objective in objectives]

    *losses, silent = map(float, goals(batch))
    assert silent == pytest.approx(losses[0])
    assert np.diff(np.sort(losses)).min() > 1e-4, losses


@pytest.mark.parametrize(
    ("weights", "reported"),
    [
        ({"goal": 0, "inverse": 0}, {"spr", "spr_now"}),
        ({"spr": 0, "inverse": 0}, {"goal", "goal_error"}),
        ({"spr": 0, "goal": 0}, {"inverse", "inverse_accuracy"}),
        (
            {"spr": 0, "goal": 0, "inverse_sees": "online"},
            {"inverse", "inverse_accuracy"},
        ),
        ({"spr": 0, "goal": 0, "inverse": 0, "cloning": 1}, {"cloning"}),
    ],
)
def test_a_loss_of_weight_zero_is_not_computed(monkeypatch, weights, reported):
    monkeypatch.setattr(pretrain, "Network", Toy)
    batch = windows(2)
    loss, metrics = jax.eval_shape(
        lambda batch: Pretrain(**weights)(
            Toy(1, 0), Toy(1, 0), batch, jax.random.key(0)
        ),
        batch,
    )
    assert loss.shape == ()
    levels = {name for name in metrics if name.endswith("_chance")}
    assert {name.removesuffix("_chance") for name in levels} <= reported
    assert set(metrics) - levels == reported | {"cosine", "features"}


def test_chance_is_the_value_of_guesses():
    terms = {"spr": None, "inverse": None, "goal": None, "cloning": None}
    levels = pretrain.chances(terms, actions=6)
    unit = jnp.eye(2)[:, None]
    apart = pretrain.losses.self_prediction(unit[:1], unit[1:])
    assert levels["spr_chance"] == levels["spr_now_chance"] == apart.item()
    guesses = -np.log(np.full(6, 1 / 6)).mean()
    for name in ("inverse_chance", "cloning_chance"):
        assert levels[name] == pytest.approx(guesses)
    assert levels["inverse_accuracy_chance"] == pytest.approx(1 / 6)
    equal = jnp.full((1, 51), jnp.log(1 / 51))
    own, _ = pretrain.distributional.loss_and_divergence(equal, jnp.eye(51)[:1])
    assert levels["goal_chance"] == pytest.approx(own.item())


def network(**options):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    encoder = partial(Residual, blocks=1, widths=(8, 16, 16))
    return Network(
        actions=ACTIONS, hidden=32, image=24, encoder=encoder, **wide, **options
    )


def test_a_standardised_projection_ignores_what_a_step_shares():
    """Each step of a window has statistics of its own, and the first is remembered."""
    parts = abstract_module(partial(network, standardise=True))
    graph, fixed, rng = parts.graph, parts.fixed, np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape) / 8, parts.params)
    statistics = jax.tree.map(lambda s: np.zeros(s.shape), parts.statistics)
    statistics["standardise"]["var"] += 1
    side, channels, b = 2, 16, 7
    latents = rng.random((b, 5, side, side, channels))

    @partial(jax.jit, compiler_options=HURRY)
    def project(latents, statistics):
        module = merge_module(graph, params, statistics, fixed)
        projected = module.project(latents, train=True)
        later = module.project(latents, train=False)
        return projected, later, split_module(module).statistics["standardise"]

    def head(rows):
        head = jax.tree.map(np.asarray, params["goal_head"]["head"])
        layers = (head[name] for name in ("advantage1", "value1"))
        return np.concatenate([rows @ x["kernel"] + x["bias"] for x in layers], -1)

    projected, later, running = project(latents, statistics)
    flat = latents.reshape(b, 5, -1)
    for step in range(5):
        rows = (flat[:, step] - flat[:, step].mean(0)) / np.sqrt(
            flat[:, step].var(0) + 1e-5
        )
        np.testing.assert_allclose(projected[:, step], head(rows), rtol=1e-6, atol=1e-9)
    mean, var = 0.1 * flat[:, 0].mean(0), 0.9 + 0.1 * flat[:, 0].var(0)
    np.testing.assert_allclose(running["mean"], mean, rtol=1e-9)
    np.testing.assert_allclose(running["var"], var, rtol=1e-9)
    rows = (flat - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(later, head(rows), rtol=1e-6, atol=1e-9)
    shared = np.random.default_rng(1).random(latents.shape[1:])
    moved, *_ = project(latents + shared, statistics)
    np.testing.assert_allclose(moved, projected, atol=1e-6)


def on(count, take, state, batch):
    """`step(state, number) -> (state, metrics)` on `count` devices, and its state."""
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:count]).reshape(count, 1), devices.AXES
    )
    whole, rows = devices.replicated(mesh), devices.rows(mesh)
    state, batch = devices.put_replicated(state, mesh), devices.put(batch, mesh)
    number, seed = devices.put_replicated((np.int32(0), np.uint32(0)), mesh)
    shardings = {
        "in_shardings": (whole, rows, whole, whole),
        "out_shardings": (whole, whole),
    }
    with jax.set_mesh(mesh):
        lowered = jax.jit(take, **shardings).lower(state, batch, number, seed)
        run = lowered.compile(compiler_options=HURRY)
    return (
        lambda state, n: run(state, batch, devices.put_replicated(n, mesh), seed),
        state,
    )


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


OWN = {"inverse_sees": "online", "augmentation": "none"}  # beyond the paper


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["official", "with options of ours"])
def test_training_avoids_collapse_and_is_equal_on_four_devices(own):
    transformation, batch = optax.adam(1e-2), windows(8, seed=3)
    module = partial(network, standardise=own)
    graph, *_ = abstract_module(module)
    make = partial(create_state, module, transformation, target_decay=0.99)
    start, fixed = jax.jit(make, compiler_options=HURRY)(jnp.uint32(0))
    objective = Pretrain(cloning=1.0, **(OWN if own else {}))
    step = make_step(graph, objective, transformation, 0.99)

    def take(state, batch, number, seed):
        return step(state, fixed, batch, number, seed)

    run, state = on(1, take, start, batch)
    first, metrics = run(state, np.int32(0))
    total = sum(float(metrics[n]) for n in ("spr", "goal", "inverse", "cloning"))
    assert float(metrics["loss"]) == pytest.approx(total)
    # A step reads the average of the weights before it. Afterwards the average, of
    # parameters and statistics alike, has moved 1 % towards the new state.
    for part in ("params", "statistics"):
        before, after = getattr(start, part), getattr(first, part)
        average = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, before, after)
        for a, b in zip(leaves(first.target[part]), leaves(average), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
        changed = zip(leaves(before), leaves(after), strict=True)
        assert any((a != b).any() for a, b in changed)

    history, current = [metrics], first
    for number in range(1, 60):
        current, metrics = run(current, np.int32(number))
        history.append(metrics)
    for name in ("loss", "spr", "inverse", "goal_error"):
        last = np.mean([float(m[name]) for m in history[-5:]])
        assert last < 0.8 * float(history[0][name]), name
    assert float(metrics["cosine"]) < 0.99
    assert bool(metrics["healthy"])

    run, state = on(4, take, start, batch)
    spread, metrics = run(state, np.int32(0))
    for name, value in history[0].items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-9, err_msg=name)
    for part in ("statistics", "target"):
        result, expected = (leaves(getattr(s, part)) for s in (spread, first))
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


def test_gradients_are_clipped_by_group():
    rule = partial(optimizer.constant, base=1e-3)
    made = pretrain.adam(steps=1, batch_size=1, learning_rate=rule, clip=10.0)
    names = "encoder", "head", "goal_head", "transition", "predictor", "inverse"
    params = {name: {"kernel": jnp.ones((3, 4))} for name in names}
    gradients = {name: {"kernel": jnp.full((3, 4), 9.0)} for name in names}
    state = made.transformation.init(params)
    updates, state = made.transformation.update(gradients, state, params)
    mean = {k: v["kernel"] / 0.1 for k, v in state[1][0].mu.items()}
    together = np.concatenate([mean[n] for n in ("encoder", "head", "goal_head")])
    assert np.linalg.norm(together) == pytest.approx(10)
    assert np.linalg.norm(mean["transition"]) == pytest.approx(10)
    for name in ("predictor", "inverse"):
        np.testing.assert_allclose(mean[name], 9.0)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert float(made.schedule(7)) == 1e-3


def test_the_learning_rate_is_constant_or_falls_by_half_a_cosine():
    rule = partial(optimizer.constant, base=1e-3)

    def changes(schedule: str) -> np.ndarray:
        made = pretrain.adam(
            steps=10, batch_size=1, learning_rate=rule, schedule=schedule, epsilon=0.0
        )
        weight = {"inverse": jnp.ones(1)}
        state = made.transformation.init(weight)
        sizes = []
        for _ in range(10):
            update, state = made.transformation.update(weight, state, weight)
            sizes.append(-update["inverse"].item())  # Adam's is the rate itself
        return np.array(sizes)

    np.testing.assert_allclose(changes("constant"), 1e-3, rtol=1e-5)
    cosine = (1 + np.cos(np.pi * np.arange(10) / 10)) / 2
    np.testing.assert_allclose(changes("cosine"), 1e-3 * cosine, rtol=1e-5)
    with pytest.raises(ValueError, match="schedule='linear'"):
        changes("linear")


def test_invalid_pre_training_is_refused():
    batch, key = windows(2), jax.random.key(0)
    module = network.__get__  # any function, as passed to an objective under microbatch
    with pytest.raises(InputError, match="microbatch"):
        Pretrain()(module, module, batch, key)
    with pytest.raises(InputError, match="target_decay"):
        pretrain.check(object.__new__(Network), None)
    with pytest.raises(ValueError, match="jumps=0"):
        Pretrain(jumps=0)
