"""A loss is computed on the global batch, whatever the number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from polyview.objectives import contrastive
from polyview.objectives.bounds import strict_bound

LOSSES = {
    "geometric": contrastive.geometric,
    "arithmetic": contrastive.arithmetic,
    "sufficient_statistics": contrastive.sufficient_statistics,
    "multi_crop": contrastive.multi_crop,
    "supcon": contrastive.supcon,
    "mv_infonce": contrastive.mv_infonce,
    "mv_dhel": contrastive.mv_dhel,
    "strict": partial(strict_bound, aggregation="geometric"),
}


def mesh_of(*shape):
    axes = ("data", "fsdp")[: len(shape)]
    devices = jax.devices()[: np.prod(shape)]
    types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, axes, axis_types=types, devices=devices)


def values_and_gradients(z, weights):
    """Losses, and the gradient of their sum weighted differently for every anchor."""
    results = {}
    for name, loss in LOSSES.items():
        losses, pullback = jax.vjp(partial(loss, temperature=0.3), z)
        cotangent = weights if losses.ndim == 2 else weights[:, 0]
        results[name] = losses, pullback(cotangent)[0]
    return results


def test_losses_and_gradients_do_not_depend_on_the_devices(x64):
    """Every loss on one mesh of both axes; other meshes: test_objectives_negatives."""
    rng = np.random.default_rng(0)
    z, weights = rng.normal(size=(16, 3, 6)), rng.normal(size=(16, 3))
    expected = jax.jit(values_and_gradients)(z, weights)
    mesh = mesh_of(2, 4)
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    with jax.set_mesh(mesh):
        actual = jax.jit(values_and_gradients)(*jax.device_put((z, weights), rows))
    for name in LOSSES:
        for want, got in zip(expected[name], actual[name], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11, err_msg=name)


def test_an_indivisible_batch_is_an_error():
    with jax.set_mesh(mesh_of(2, 2)):
        with pytest.raises(ValueError, match="6 samples .* 4 devices"):
            contrastive.geometric(jnp.ones((6, 2, 3)), temperature=0.1)
