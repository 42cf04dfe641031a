"""MoCo's loss and queue, against loops; the same on any devices and after a resume."""

import dataclasses
import functools
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_checkpoint import restore
from test_microbatch import compiled, mesh_of, noise, sgd

from polyview import devices
from polyview.errors import InputError
from polyview.nn.heads import Identity
from polyview.nn.norm import BatchNorm
from polyview.nn.queue import Queue, QueueTowers
from polyview.nn.towers import Tower
from polyview.objectives.momentum import MoCo
from polyview.runs import checkpoint
from polyview.training.step import TrainState, create_state
from polyview.training.trainer import Trainer

ROWS, SIZE, DECAY, TEMPERATURE = 8, 12, 0.8, 0.5
SEED = np.uint32(3)
OBJECTIVE = MoCo(temperature=TEMPERATURE, modality="x")


class Encoder(nnx.Module):
    """A product with a matrix and a BatchNorm, on the pixels of 1 x 3 images."""

    features = 2

    def __init__(self, *, rngs):
        self.matrix = nnx.Param(jax.random.normal(rngs.params(), (3, 2), jnp.float64))
        types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        self.norm = BatchNorm(2, **types, rngs=rngs)

    def __call__(self, x, *, train, key=None):
        h = self.norm(x[:, 0, :, 0] @ self.matrix[...], train=train)
        return h, h[:, None]


def make_module(*, rngs):
    tower = partial(Tower, encoder=Encoder, projector=Identity, photometry=noise)
    queue = partial(Queue, size=SIZE, features=2, param_dtype=jnp.float64)
    return QueueTowers({"x": tower}, queue=queue, rngs=rngs)


def batch() -> dict:
    random = np.random.default_rng(0)
    return {
        "views": {"x": random.random((ROWS, 2, 1, 3, 1))},
        "present": {"x": np.ones((ROWS, 2), bool)},
        "index": random.permutation(100)[:ROWS],
    }


def first_state() -> TrainState:
    """The state before the first step, with numbers from numpy."""
    create = partial(create_state, make_module, sgd(), target_decay=DECAY)
    state, _ = jax.eval_shape(create, jnp.uint32(0))
    random = np.random.default_rng(1)

    def drawn(shape):
        return 0.5 + random.random(shape.shape)

    params, statistics = (
        jax.tree.map(drawn, part) for part in (state.params, state.statistics)
    )
    keys = random.normal(size=(SIZE, 2))
    statistics["queue"]["keys"] = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    return dataclasses.replace(
        jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), state),
        params=params,
        statistics=statistics,
        target=jax.tree.map(np.copy, {"params": params, "statistics": statistics}),
    )


@functools.cache
def step_on(devices_used: int):
    """`take(state, number)` -> (state, metrics), on that many devices."""
    mesh = mesh_of(devices_used, 1)
    _, program = compiled(make_module, batch(), mesh, OBJECTIVE, DECAY)
    rows, whole = devices.put(batch(), mesh), partial(devices.put_replicated, mesh=mesh)

    def take(state, number):
        return program(whole(state), {}, rows, whole(np.int32(number)), whole(SEED))

    return take


class Loop:
    """The same steps, in numpy, sample by sample and key by key."""

    def __init__(self, state: TrainState):
        own, norm = state.params["towers"]["x"]["encoder"], "norm"
        moments = state.statistics["towers"]["x"]["encoder"][norm]
        self.weights = {"matrix": own["matrix"], **own[norm]}
        self.moments = {name: moments[name] for name in ("mean", "var")}
        self.target = {**self.weights, **self.moments}
        self.velocity = {name: np.zeros_like(w) for name, w in self.weights.items()}
        self.queue = [row for row in state.statistics["queue"]["keys"]]

    def embed(self, weights, x, moments):
        y = x @ weights["matrix"]
        y = (y - moments["mean"]) / np.sqrt(moments["var"] + 1e-5)
        z = weights["scale"] * y + weights["bias"]
        return [row / np.linalg.norm(row) for row in z]

    def loss(self, weights, x, keys):
        y = x @ weights["matrix"]
        queries = self.embed(weights, x, {"mean": y.mean(0), "var": y.var(0)})
        total = 0.0
        for query, key in zip(queries, keys, strict=True):
            own = np.exp(query @ key / TEMPERATURE)
            others = sum(np.exp(query @ old / TEMPERATURE) for old in self.queue)
            total -= np.log(own / (own + others))
        return total / len(keys)

    def slope(self, name, at, x, keys):
        """The derivative of the loss by one weight, as a difference quotient."""
        sides = []
        for by in (1e-5, -1e-5):
            moved = self.weights[name].copy()
            moved[at] += by
            sides.append(self.loss({**self.weights, name: moved}, x, keys))
        return (sides[0] - sides[1]) / 2e-5

    def step(self, number) -> float:
        views = batch()["views"]["x"].reshape(ROWS, 2, 3)
        x, other = (views[:, i] * brightness(number, i)[:, None] for i in (0, 1))
        keys = self.embed(self.target, other, self.target)
        loss = self.loss(self.weights, x, keys)
        gradient = {
            name: np.array(
                [self.slope(name, at, x, keys) for at in np.ndindex(w.shape)]
            ).reshape(w.shape)
            for name, w in self.weights.items()
        }
        y = x @ self.weights["matrix"]
        now = {"mean": y.mean(0), "var": y.var(0, ddof=1)}
        for name in self.moments:
            self.moments[name] = 0.9 * self.moments[name] + 0.1 * now[name]
        rate = 0.01 * (1 + np.cos(np.pi * number / 10)) / 2
        for name in self.weights:
            self.velocity[name] = 0.9 * self.velocity[name] + gradient[name]
            self.weights[name] = self.weights[name] - rate * self.velocity[name]
        self.queue = (keys + self.queue)[:SIZE]
        for name, value in {**self.weights, **self.moments}.items():
            self.target[name] = DECAY * self.target[name] + (1 - DECAY) * value
        return loss


def brightness(number, view):
    """What `noise` multiplies a row by: another number for the query and its key."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), 1), number)
    key = jax.random.fold_in(jax.random.split(key)[view], zlib.crc32(b"x"))
    keys = [jax.random.fold_in(key, i) for i in batch()["index"]]
    return np.array([jax.random.uniform(k) for k in keys])


@pytest.mark.parametrize("count", [1, 8])
def test_steps_equal_loops_over_samples_and_keys(count, x64):
    """Three steps: the queue of 12 drops the oldest keys of batches of 8."""
    state, take = first_state(), step_on(count)
    loop = Loop(state)
    for number in range(3):
        state, values = take(state, number)
        np.testing.assert_allclose(values["loss"], loop.step(number), rtol=1e-9)
        found = state.statistics["queue"]["keys"]
        np.testing.assert_allclose(found, loop.queue, atol=1e-8)
    own = state.params["towers"]["x"]["encoder"]
    np.testing.assert_allclose(own["matrix"], loop.weights["matrix"], atol=1e-8)
    assert values["healthy"]


def test_a_resumed_queue_is_the_one_that_was_saved(x64, tmp_path):
    take = step_on(1)
    state, _ = take(first_state(), 0)
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(1, state, "{}")
    checkpoints.close()
    expected, _ = take(state, 1)
    _, restored = restore(tmp_path / "checkpoints", state)
    found, _ = take(restored, 1)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_queue_refuses_keys_that_do_not_fit():
    queue = Queue(size=3, features=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jnp.linalg.norm(queue.keys[...], axis=1), 1, rtol=1e-6)
    for keys, why in (
        (jnp.ones((4, 2)), "size=3 cannot .*set model.queue.size to 4 or more"),
        (jnp.ones((1, 3)), "features=2 cannot .*set model.queue.features=3"),
    ):
        with pytest.raises(InputError, match=why):
            queue.push(keys)


def two_towers(config) -> None:
    with config.unlocked():
        config.model.towers.twin = config.model.towers.image


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: None, ""),
        (
            lambda c: c.model.queue.update(size=7),
            "^a queue of size=7 cannot take the 8",
        ),
        (lambda c: c.model.queue.update(features=5), "set model.queue.features=32"),
        (
            lambda c: c.objective.update(modality="text"),
            "objective.modality='text', but",
        ),
        (two_towers, "^MoCo trains one tower.* model.towers has image, twin; keep one"),
        (
            lambda c: c.views.update(m=4),
            "^MoCo takes m = 2 views, not 4; set views.m=2",
        ),
        (
            lambda c: c.update(target_decay=None),
            "MoCo needs a target_decay, such as 0.",
        ),
    ],
)
def test_the_config_traces_and_its_mistakes_are_named(digits, change, why):
    config = digits("objective=moco,views=2")
    change(config)
    trainer = Trainer(config)
    if not why:
        trainer.trace()
        return
    with pytest.raises(InputError, match=why):
        trainer.trace()
