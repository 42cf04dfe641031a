"""Slices of a batch give the same step; accumulated parts average their losses."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import Mesh

from benchmarks.collectives import collective_bytes
from polyview import devices
from polyview.errors import InputError
from polyview.model import abstract_module, merge_module, split_module
from polyview.nn.heads import Projector
from polyview.nn.mlp import Mlp
from polyview.nn.towers import Tower, Towers
from polyview.nn.vit import ViT
from polyview.objectives.contrastive import Contrastive, geometric
from polyview.training import microbatch, optimizer
from polyview.training.step import create_state, make_step
from polyview.training.trainer import Trainer

ROWS = 16
OBJECTIVE = Contrastive(partial(geometric, temperature=0.2))


def model(encoder, dtype, photometry=None, **head):
    types = {"dtype": dtype, "param_dtype": dtype}
    tower = partial(
        Tower,
        encoder=partial(encoder, **types),
        projector=partial(Projector, hidden=(16,), out=8, **types, **head),
        photometry=photometry,
        mean=0.5,
        std=0.25,
    )
    return partial(Towers, {"image": tower})


def noise(images: jax.Array, keys: jax.Array) -> jax.Array:
    """A minimal photometry: the noise of row i depends only on keys[i]."""
    brightness = jax.vmap(jax.random.uniform)(keys)
    return images * brightness[:, None, None, None, None]


def vit(dtype, **options):
    encoder = partial(ViT, width=16, depth=1, heads=2, patch=4, image=8)
    return model(encoder, dtype, norm="none", **options)


def mlp(**head):
    return model(partial(Mlp, inputs=8 * 8 * 3), jnp.float64, **head)


def images(m: int) -> dict:
    random = np.random.default_rng(0)
    return {
        "views": {"image": random.integers(0, 256, (ROWS, m, 8, 8, 3), np.uint8)},
        "present": {"image": np.ones((ROWS, m), bool)},
        "index": random.permutation(1000)[:ROWS],
    }


def vectors(m: int) -> dict:
    batch = images(m)
    flat = batch["views"]["image"].reshape(ROWS, m, -1) / 255
    return batch | {"views": {"image": flat}}


def sgd():
    """SGD; after one step its momentum equals the gradient."""
    made = optimizer.sgd(
        steps=10,
        batch_size=2,
        learning_rate=lambda b: 0.01,
        weight_decay=0.0,
        warm_up=0.0,
    )
    return made.transformation


@cache
def initial(make_module, decay):
    """The first state and the fixed weights; the same program for every mesh."""
    create = partial(create_state, make_module, sgd(), target_decay=decay)
    return jax.device_get(jax.jit(create)(np.uint32(0)))


def compiled(make_module, batch, mesh, objective=OBJECTIVE, decay=None, **division):
    """`run(steps)` -> (loss, state) of each step; and the compiled step."""
    seed = devices.put_replicated(np.uint32(0), mesh)
    create = partial(create_state, make_module, sgd(), target_decay=decay)
    shardings = devices.of_state(jax.eval_shape(create, seed), mesh)
    rows, whole = devices.rows(mesh), devices.replicated(mesh)
    graph, *_ = abstract_module(make_module)
    take = jax.jit(
        make_step(graph, objective, sgd(), decay, **division),
        in_shardings=(*shardings, rows, whole, whole),
        out_shardings=(shardings[0], whole),
    )
    batch = devices.put(batch, mesh)
    with jax.set_mesh(mesh):
        state, fixed = jax.eval_shape(create, seed)
        program = take.lower(state, fixed, batch, jnp.int32(0), seed).compile()

    def run(steps: int):
        state, fixed = jax.device_put(initial(make_module, decay), shardings)
        results = []
        for number in range(steps):
            number = devices.put_replicated(np.int32(number), mesh)
            state, values = program(state, fixed, batch, number, seed)
            assert values["healthy"]
            results.append(jax.device_get((values["loss"], state)))
        return results

    return run, program


def mesh_of(data: int, fsdp: int) -> Mesh:
    grid = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(grid, devices.AXES)


def assert_equal(found, expected, tolerance: float) -> None:
    """Compare arrays to a tolerance relative to the largest element, or to 1 if that is
    zero up to rounding."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        largest = np.abs(b).max(initial=0)
        scale = largest if largest > 1e-12 else 1
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("m, shape", [(2, (4, 1)), (4, (2, 2))])
def test_slices_do_not_change_float64_steps(x64, monkeypatch, m, shape):
    """Loss, gradient and state of 3 steps equal those on one device without slices;
    no views travel between devices. The next tests slice on one device."""
    monkeypatch.setattr(devices, "SMALLEST_SPLIT", 256)
    make_module = mlp(norm="none") if m == 2 else vit(jnp.float64)
    batch = vectors(m) if m == 2 else images(m)
    run, _ = compiled(make_module, batch, mesh_of(1, 1))
    plain = run(3)
    weights = sum(x.nbytes for x in jax.tree.leaves(plain[0][1].params))
    run, program = compiled(make_module, batch, mesh_of(*shape), slices=4)
    assert_equal(run(3), plain, 1e-9)
    sent = collective_bytes(program.as_text())
    assert sent["all-to-all"] == sent["collective-permute"] == 0
    gathered = sent["all-gather"] - (weights if shape[1] > 1 else 0)
    assert gathered < batch["views"]["image"].nbytes


def test_slices_do_not_change_float32_steps():
    """Nor the noise, which depends on a row's index."""
    make_module, batch = vit(jnp.float32, photometry=noise), images(2)
    plain, _ = compiled(make_module, batch, mesh_of(1, 1))
    sliced, _ = compiled(make_module, batch, mesh_of(1, 1), slices=8)
    assert_equal(sliced(3), plain(3), 1e-5)


def towards_the_target(module, target_module, batch, key):
    """An objective that calls the module twice, and its moving average once."""
    online = module(batch, key=key, train=True)["image"].z
    again = module(batch, key=jax.random.fold_in(key, 1), train=True)["image"].z
    target = target_module(batch, key=key, train=False)["image"].z
    return jnp.mean((online - target) ** 2) + jnp.mean((online + again) ** 2), {}


def test_any_objective_can_be_sliced_with_its_target(x64):
    batch = vectors(2)
    make_module = mlp(norm="none")
    results = []
    for slices in (1, 2):
        run, _ = compiled(
            make_module, batch, mesh_of(1, 1), towards_the_target, 0.5, slices=slices
        )
        results.append(run(3))
    assert_equal(results[1], results[0], 1e-9)


def test_slices_reduce_memory(optimized):
    encoder = partial(ViT, width=32, depth=1, heads=2, patch=2, image=8)
    make_module = model(encoder, jnp.float32, norm="none")
    whole, sliced = (
        compiled(make_module, images(4), mesh_of(1, 1), slices=slices)[1]
        .memory_analysis()
        .temp_size_in_bytes
        for slices in (1, 8)
    )
    assert sliced < whole / 4


def test_batch_statistics_with_slices_are_refused(digits):
    config = digits(batch_size=16)
    config.microbatch = 8
    run = Trainer(config)
    with jax.set_mesh(run.mesh):
        with pytest.raises(InputError, match="BatchNorm.*norm='none'"):
            run.trace()


def test_frozen_statistics_can_be_sliced(digits):
    """A frozen ResNet with a linear layer, in the trainer, with one slice or two."""
    states = []
    for rows in (None, 8):
        config = digits(batch_size=16)
        config.microbatch = rows
        config.model.towers.image.frozen = True
        config.model.towers.image.projector = {
            "partial": "polyview.nn.heads:Linear",
            "out": 10,
        }
        config.objective = {"target": "polyview.objectives.supervised:Classification"}
        run = Trainer(config)
        with jax.set_mesh(run.mesh):
            _, batch = next(iter(run.batches(0)))
            state, fixed = run.initial(run.seed)
            batch = devices.put(batch, run.mesh)
            states.append(run.step(state, fixed, batch, jnp.int32(0), run.seed)[0])
    assert run.slices == 2
    assert_equal(jax.device_get(states[1]), jax.device_get(states[0]), 1e-5)


@pytest.mark.parametrize(
    ("division", "words"),
    [
        ({"microbatch": 10}, "batch_size=96 is not a multiple of microbatch=10"),
        ({"microbatch": 192}, "not a multiple of microbatch=192"),
        ({"microbatch": 12}, "microbatch=12 does not divide among 8 .* multiple of 8"),
        ({"accumulate": 5}, "batch_size=96 is not a multiple of accumulate=5"),
        ({"accumulate": 8}, "batch_size=96 / accumulate=8 .* multiple of 64"),
        ({"accumulate": 2, "microbatch": 48}, "keep one"),
    ],
)
def test_an_uneven_division_is_refused(division, words):
    config = ml_collections.ConfigDict({"batch_size": 96, **division})
    with pytest.raises(InputError, match=words):
        microbatch.division(config, devices=8)


def test_accumulation_averages_the_losses_of_its_parts(x64):
    """Each part has its own negatives; BatchNorm sees the parts in turn. Any mesh."""
    make_module, batch, parts = mlp(), vectors(2), 2
    one, _ = compiled(make_module, batch, mesh_of(1, 1), parts=parts)
    four, _ = compiled(make_module, batch, mesh_of(4, 1), parts=parts)
    results = one(1)
    assert_equal(four(1), results, 1e-9)
    loss, state = results[0]

    graph, *_ = abstract_module(make_module)
    start, _ = initial(make_module, None)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(jnp.uint32(0)), 1), 0)
    statistics, losses, gradients = start.statistics, [], []

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def gradient_of(params, statistics, part):
        module = merge_module(graph, params, statistics)
        value, _ = OBJECTIVE(module, None, part, key)
        return value, split_module(module).statistics

    for number in range(parts):
        part = jax.tree.map(lambda x: x[number::parts], batch)  # noqa: B023
        (value, statistics), gradient = gradient_of(start.params, statistics, part)
        losses.append(value)
        gradients.append(gradient)
    mean = jax.tree.map(lambda *parts: sum(parts) / len(parts), *gradients)
    assert_equal(loss, np.mean(losses), 1e-9)
    assert_equal(state.statistics, jax.device_get(statistics), 1e-9)
    momentum = [
        x for x in jax.tree.leaves(state.optimizer) if np.ndim(x) or x.dtype == float
    ]
    assert_equal(momentum, jax.device_get(jax.tree.leaves(mean)), 1e-9)


def test_banner_counts_the_negatives_of_a_part(digits):
    config = digits("views=3", batch_size=48)
    config.accumulate = 2
    run = Trainer(config)
    run.shapes = {"views": {"image": np.zeros((48, 3, 8, 8, 1))}}
    output = "\n".join(run.banner(run.shape, 0).values())
    assert f"up to {(24 - 1) * 3} views of other samples" in output
    assert "2 parts of 24 samples" in output
