"""A step is a pure function of its arguments and never keeps a NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from polyview.data import pipeline
from polyview.model import abstract_module
from polyview.training import optimizer
from polyview.training.step import create_state, make_step
from polyview.training.trainer import Trainer


def prepared(config):
    """The run of a config, its initial state and first batch, on the devices."""
    from polyview import devices

    run = Trainer(config)
    _, batch = next(iter(run.batches(0)))
    state, run.fixed = run.initial(run.seed)
    return run, state, devices.put(batch, run.mesh)


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_one_batch_is_overfitted_from_chance_loss(digits):
    config = digits("views=2", steps=60)
    config.optimizer.learning_rate.base = 1e-2
    config.objective.loss.temperature = 0.5
    run, state, batch = prepared(config)
    losses = []
    with jax.set_mesh(run.mesh):
        for number in range(60):
            state, values = run.step(
                state, run.fixed, batch, jnp.int32(number), run.seed
            )
            losses.append(float(values["loss"]))
    # A fresh model's scores are not all equal, so its loss is only near chance.
    assert losses[0] == pytest.approx(np.log(8 * 2 - 2 + 1), abs=0.5)
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_is_deterministic_given_its_seed(digits):
    config = digits("views=2")
    run, state, batch = prepared(config)
    plain = jax.jit(
        make_step(run.abstract.graph, run.objective, run.optimizer.transformation)
    )
    with jax.set_mesh(run.mesh):
        one, _ = plain(state, run.fixed, batch, jnp.int32(0), run.seed)
        two, _ = plain(state, run.fixed, batch, jnp.int32(0), run.seed)
        other, _ = run.initial(jnp.uint32(1))
    for a, b in zip(leaves(one), leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = zip(leaves(state.params), leaves(other.params), strict=True)
    assert any(not np.array_equal(a, b) for a, b in kernels)


def transformation_of(make):
    """An optimiser's transformation at rate 0.1, without decay or warm-up."""
    made = make(
        steps=10,
        batch_size=2,
        learning_rate=lambda b: 0.1,
        weight_decay=0.0,
        warm_up=0.0,
    )
    return made.transformation


def test_noise_differs_between_steps_and_seeds():
    """An objective that returns noise from its key; each step and seed differs."""

    def noise(module, target, batch, key):
        return 0.0 * module(batch, key=key, train=True)["x"].sum(), {
            "noise": jax.random.normal(key)
        }

    made = transformation_of(optimizer.sgd)
    graph, *_ = abstract_module(Line)
    take = jax.jit(make_step(graph, noise, made))
    batch = {"views": {"x": jnp.ones((2, 1))}, "index": jnp.arange(2)}
    values_seen = []
    for seed in (0, 1):
        state, _ = create_state(Line, made, jnp.uint32(seed))
        values_seen.append(float(state.params["w"]))
        for number in range(3):
            state, values = take(state, {}, batch, jnp.int32(number), jnp.uint32(seed))
            values_seen.append(float(values["noise"]))
    assert len(set(values_seen)) == 8


class Line(nnx.Module):
    """y = w * x, the smallest module with the interface of Towers."""

    def __init__(self, *, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), ()))

    def __call__(self, batch, *, key, train):
        return {"x": self.w[...] * batch["views"]["x"]}


def square(module, target, batch, key):
    return jnp.mean(module(batch, key=key, train=True)["x"] ** 2), {}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_nonfinite_step_keeps_the_state_and_blocks_later_steps(bad):
    made = transformation_of(optimizer.adamw)
    graph, *_ = abstract_module(Line)
    take = jax.jit(make_step(graph, square, made))
    seed = jnp.uint32(0)
    start, _ = create_state(Line, made, seed)
    good = {"views": {"x": jnp.ones((2, 1))}, "index": jnp.arange(2)}
    poisoned = {"views": {"x": jnp.full((2, 1), bad)}, "index": jnp.arange(2)}

    state, values = take(start, {}, good, jnp.int32(0), seed)
    assert values["healthy"] and int(state.step) == 1
    kept, values = take(state, {}, poisoned, jnp.int32(1), seed)
    assert not values["healthy"]
    after, values = take(kept, {}, good, jnp.int32(2), seed)
    assert not values["healthy"], "a step must not follow a refused step"
    for a, b in zip(leaves(state), leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_overflow_of_the_update_alone_is_flagged():
    """Then the new state is returned; the caller must not save it."""
    made = optax.sgd(1e38)
    graph, *_ = abstract_module(Line)
    take = jax.jit(make_step(graph, square, made))
    seed = jnp.uint32(0)
    start, _ = create_state(Line, made, seed)
    large = {"views": {"x": jnp.full((2, 1), 100.0)}, "index": jnp.arange(2)}
    state, values = take(start, {}, large, jnp.int32(0), seed)
    assert np.isfinite(values["loss"]) and not values["healthy"]
    assert not np.isfinite(state.params["w"])


def test_target_is_the_moving_average_of_the_parameters():
    made = transformation_of(optimizer.sgd)
    graph, *_ = abstract_module(Line)
    take = jax.jit(make_step(graph, square, made, target_decay=0.9))
    seed = jnp.uint32(3)
    state, _ = create_state(Line, made, seed, target_decay=0.9)
    batch = {"views": {"x": jnp.ones((2, 1))}, "index": jnp.arange(2)}
    expected = float(state.params["w"])
    for number in range(3):
        state, _ = take(state, {}, batch, jnp.int32(number), seed)
        expected = 0.9 * expected + 0.1 * float(state.params["w"])
    assert float(state.target["params"]["w"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("steps", "shapes"),
    [
        (4, [(2, 4)]),
        pytest.param(20, [(8, 1), (2, 4)], marks=pytest.mark.slow),
    ],
)
def test_every_mesh_gives_the_same_training(digits, steps, shapes, monkeypatch, x64):
    """float64 steps on one and on 8 devices, parameters split over the second axis."""
    from polyview import devices

    monkeypatch.setattr(devices, "SMALLEST_SPLIT", 16)
    config = digits("views=2,param_dtype=float64,dtype=float64", steps=steps)
    batches = None
    results = []
    for shape in ((1, 1), *shapes):
        grid = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        mesh = jax.sharding.Mesh(grid, devices.AXES)
        monkeypatch.setattr(devices, "make_mesh", lambda mesh=mesh, **_: mesh)
        run = Trainer(config)
        batches = batches or list(
            pipeline.batches(run.source, run.views, seed=0, batch_size=8, steps=steps)
        )
        with jax.set_mesh(mesh):
            state, fixed = run.initial(run.seed)
            losses = []
            for number, batch in batches:
                state, values = run.step(
                    state, fixed, devices.put(batch, mesh), jnp.int32(number), run.seed
                )
                losses.append(float(values["loss"]))
        results.append((losses, leaves(state.params)))
    split = [p.sharding.spec for p in jax.tree.leaves(state.params)]
    assert any("fsdp" in spec for spec in split)
    for losses, params in results[1:]:
        np.testing.assert_allclose(losses, results[0][0], rtol=1e-9)
        for a, b in zip(params, results[0][1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
