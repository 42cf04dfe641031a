"""Rematerialisation, bfloat16 and FSDP save memory and keep the numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_microbatch import assert_equal, compiled, images, mesh_of, model, sgd

from benchmarks.collectives import collective_bytes
from polyview import devices
from polyview.model import merge_module, split_module
from polyview.nn import vit
from polyview.nn.resnet import Basic, ResNet
from polyview.nn.vit import ViT, vit_b
from polyview.training.step import create_state
from polyview.training.trainer import Trainer

# This pass of XLA for CPU removes the barrier between a computation and its repetition,
# so that both are merged. Without it the barrier is kept, as on GPU and TPU.
BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


RESNET = partial(ResNet, stages=(2, 2), widths=(16, 32), block=Basic, stem="small")
VIT = partial(ViT, width=32, depth=4, heads=2, patch=2, image=8)


@pytest.mark.parametrize(
    ("make", "shape", "blocks", "dots"),
    [(RESNET, (8, 32, 32, 3), 0.7, 0.95), (VIT, (32, 8, 8, 3), 0.4, 0.6)],
    ids=["resnet", "vit"],
)
def test_rematerialisation_keeps_results_and_saves_memory(
    make, shape, blocks, dots, optimized
):
    """Values, gradients and the BatchNorm statistics written inside a block."""
    x = jax.random.normal(jax.random.key(0), shape)
    results, memory = {}, {}
    for remat in ("none", "blocks", "dots"):
        parts = split_module(make(remat=remat, rngs=nnx.Rngs(0)))

        def loss_of(params, statistics, graph=parts[0]):
            module = merge_module(graph, params, statistics)
            h, local = module(x, train=True)
            loss = jnp.mean(h**2) + jnp.mean(local**3)
            return loss, split_module(module).statistics

        gradient_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
        arrays = parts.params, parts.statistics
        program = gradient_of.lower(*arrays).compile(BARRIERS)
        results[remat] = jax.device_get(program(*arrays))
        memory[remat] = program.memory_analysis().temp_size_in_bytes
    assert_equal(results["blocks"], results["none"], 1e-5)
    assert_equal(results["dots"], results["none"], 1e-5)
    assert memory["blocks"] < blocks * memory["none"]
    assert memory["blocks"] < memory["dots"] < dots * memory["none"]


def test_an_unknown_remat_policy_is_an_error():
    with pytest.raises(ValueError, match="remat='block' is not one of"):
        vit.ViT(width=8, depth=1, heads=1, remat="block", rngs=nnx.Rngs(0))


def test_bfloat16_computation_keeps_a_float32_state(digits):
    """Parameters, statistics, optimiser state and loss stay float32, and the loss
    agrees with float32 to a few digits."""
    run = Trainer(digits("dtype=bfloat16", batch_size=16))
    exact = Trainer(digits("dtype=float32", batch_size=16))
    _, batch = next(iter(run.batches(0)))

    @jax.jit
    def exact_loss(state, batch):
        module = merge_module(exact.abstract.graph, state.params, state.statistics)
        return exact.objective(module, None, batch, None)[0]

    with jax.set_mesh(run.mesh):
        batch = devices.put(batch, run.mesh)
        state, fixed = run.initial(run.seed)
        expected = exact_loss(state, batch)
        inputs = (state, fixed, batch, jnp.int32(0), run.seed)
        text = run.step.lower(*inputs).as_text()
        state, values = run.step(*inputs)
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert products and all(line.endswith("bf16>") for line in products)
    types = {x.dtype for x in jax.tree.leaves(state)}
    assert types == {np.dtype("float32"), np.dtype("int32")}
    assert values["loss"].dtype == jnp.float32
    np.testing.assert_allclose(values["loss"], expected, rtol=2e-2)


@pytest.mark.parametrize("shape", [(1, 4), (2, 4)])
def test_a_device_holds_a_quarter_of_a_large_state(shape):
    """A quarter of a ViT-B's parameters and of their optimiser state."""
    make_module = model(vit_b, jnp.float32)
    create = partial(create_state, make_module, sgd())
    state, _ = jax.eval_shape(create, jnp.uint32(0))
    shardings = devices.of_state(state, mesh_of(*shape))
    for part in ("params", "optimizer"):
        leaves = jax.tree.leaves(getattr(state, part))
        held = [
            np.prod(sharding.shard_shape(leaf.shape))
            for leaf, sharding in zip(
                leaves, jax.tree.leaves(getattr(shardings, part)), strict=True
            )
        ]
        assert 0.25 <= sum(held) / sum(leaf.size for leaf in leaves) < 0.255


def test_backward_pass_gathers_each_block_again():
    """In both passes, a block's weights are gathered only while it computes."""
    module = ViT(width=32, depth=3, heads=2, patch=4, image=8, rngs=nnx.Rngs(0))
    graph, *arrays = split_module(module)

    def loss_of(params, rest):
        h, _ = merge_module(graph, params, *rest)(jnp.ones((2, 8, 8, 3)), train=True)
        return jnp.mean(h**2)

    with jax.set_mesh(mesh_of(1, 8)):
        gradient = jax.make_jaxpr(jax.grad(loss_of))(arrays[0], arrays[1:])

    def gathers(jaxpr) -> int:
        """Number of gathers of query-key-value kernels."""
        number = 0
        for equation in jaxpr.eqns:
            constrained = equation.primitive.name == "sharding_constraint"
            number += constrained and equation.outvars[0].aval.shape == (32, 96)
            for inner in equation.params.values():
                inner = getattr(inner, "jaxpr", inner)
                number += gathers(inner) if hasattr(inner, "eqns") else 0
        return number

    assert gathers(gradient.jaxpr) == 2 * 3


def test_sharded_parameters_give_the_same_step(x64, monkeypatch):
    """A ViT on 2 x 4 devices equals one device to 1e-9. Each pass gathers each weight
    once; of the activations, only embeddings are gathered, for the loss. A slice has so
    few rows that the compiler, without constraints, would gather the rows instead."""
    monkeypatch.setattr(devices, "SMALLEST_SPLIT", 512)
    encoder = partial(ViT, width=32, depth=1, heads=2, patch=4, image=8)
    make_module, batch = model(encoder, jnp.float64, norm="none"), images(2)
    plain = compiled(make_module, batch, mesh_of(1, 1))[0](2)
    weights = sum(x.nbytes for x in jax.tree.leaves(plain[0][1].params) if x.size > 511)
    embeddings = 16 * 2 * 8 * 8
    for slices in (1, 2):
        run, program = compiled(make_module, batch, mesh_of(2, 4), slices=slices)
        assert_equal(run(2), plain, 1e-9)
        sent = collective_bytes(program.as_text())
        assert sent["all-to-all"] == sent["collective-permute"] == 0
        assert weights < sent["all-gather"] < 2 * (weights + embeddings)
