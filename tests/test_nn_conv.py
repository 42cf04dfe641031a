"""Every form of a convolution equals XLA's, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from polyview.nn import conv
from polyview.nn.conv import Conv, convolve

LAYOUT = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC")}


def with_gradients(function, x, kernel, direction):
    """The values of a convolution, and its gradients for x and the kernel."""

    @jax.jit
    def all_three(x, kernel):
        values, pullback = jax.vjp(function, x, kernel)
        return values, *pullback(direction)

    return all_three(x, kernel)


CASES = [
    # Size of the map, kernel, stride, padding.
    ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((4, 4), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((9, 7), (1, 1), (1, 1), ((0, 0), (0, 0))),
    ((9, 7), (1, 1), (2, 2), ((0, 0), (0, 0))),
    ((11, 10), (4, 4), (4, 4), ((0, 0), (0, 0))),
    ((13, 12), (8, 8), (4, 4), ((2, 2), (2, 2))),
    ((12, 12), (4, 2), (2, 1), ((1, 0), (0, 2))),
    ((20, 20), (7, 7), (2, 2), ((3, 3), (3, 3))),
    ((18, 18), (3, 3), (1, 1), "SAME"),
    ((7, 9), (3, 3), (2, 2), "SAME"),
    ((7, 9), (3, 2), (2, 1), "VALID"),
    ((9,), (3,), (2,), ((1, 1),)),
    ((9,), (3,), (1,), "SAME"),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_gradients_are_those_of_xla(
    size, kernel, stride, padding, dtype, x64, rng
):
    x = jnp.asarray(rng.normal(size=(3, *size, 5)), dtype)
    weights = jnp.asarray(rng.normal(size=(*kernel, 5, 6)), dtype)
    options = {"dimension_numbers": LAYOUT[x.ndim]}
    want = lax.conv_general_dilated(x, weights, stride, padding, **options)
    direction = jnp.asarray(rng.normal(size=want.shape), dtype)

    def by(function):
        def convolved(x, weights):
            return function(x, weights, stride, padding, **options)

        return with_gradients(convolved, x, weights, direction)

    near = 1e-6 if dtype == "float32" else 1e-12
    expected = by(lax.conv_general_dilated)
    for have, want in zip(by(convolve), expected, strict=True):
        assert have.dtype == want.dtype
        assert abs(have - want).max() <= near * abs(want).max()


@pytest.mark.parametrize("channels", [5, 9])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3)])
def test_slices_of_a_batch_change_no_value(stride, channels, x64, rng, monkeypatch):
    x = jnp.asarray(rng.normal(size=(16, 9, 8, channels)))
    kernel = jnp.asarray(rng.normal(size=(4, 4, channels, 6)))
    pads = ((1, 1), (1, 1))
    options = {"dimension_numbers": LAYOUT[4]}

    def convolved(x, kernel):
        return convolve(x, kernel, stride, pads, **options)

    direction = jnp.asarray(rng.normal(size=convolved(x, kernel).shape))
    expected = with_gradients(
        lambda x, kernel: lax.conv_general_dilated(x, kernel, stride, pads, **options),
        x,
        kernel,
        direction,
    )
    for name in ("LARGE", "MANY_ROWS", "SLICE"):
        monkeypatch.setattr(conv, name, 1)
    assert conv.slices(x.shape, kernel.shape, stride, pads) > 1
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    for place in (None, rows):
        arrays = jax.device_put((x, direction), place)
        found = with_gradients(convolved, arrays[0], kernel, arrays[1])
        for have, want in zip(found, expected, strict=True):
            assert abs(have - want).max() <= 1e-12 * abs(want).max()


def test_slices_in_bfloat16_are_summed_in_float32(rng, monkeypatch):
    for name in ("LARGE", "MANY_ROWS", "SLICE"):
        monkeypatch.setattr(conv, name, 1)
    x = rng.normal(size=(499, 7, 7, 32)).astype(np.float32) + 1  # a slice an image
    kernel, pads = np.zeros((3, 3, 32, 32), np.float32), ((1, 1), (1, 1))

    def gradient(x, kernel):
        def total(kernel):
            values = convolve(x, kernel, (1, 1), pads, dimension_numbers=LAYOUT[4])
            return values.astype("float32").sum()

        return jax.jit(jax.grad(total))(kernel)

    exact = gradient(jnp.asarray(x), jnp.asarray(kernel))
    rough = gradient(jnp.asarray(x, "bfloat16"), jnp.asarray(kernel, "bfloat16"))
    assert abs(rough.astype("float32") - exact).max() < 0.01 * abs(exact).max()


def test_the_slices_of_a_batch_are_its_divisors():
    def slices(x, kernel, **options):
        return conv.slices(x, kernel, (1, 1), ((1, 1), (1, 1)), **options)

    assert slices((512, 7, 7, 64), (3, 3, 64, 64)) == 16
    assert slices((512, 7, 7, 64), (3, 3, 64, 64), fewest=513) == 1
    assert slices((26, 32, 32, 64), (3, 3, 64, 64)) == 26
    assert slices((512, 2, 2, 512), (3, 3, 512, 512)) == 4
    assert slices((32, 16, 16, 64), (3, 3, 64, 64)) == 1
    assert slices((512, 56, 56, 64), (1, 1, 64, 64)) == 1


def test_several_networks_at_once_equal_each_alone(x64, rng):
    x, kernels = rng.normal(size=(3, 2, 8, 8, 4)), rng.normal(size=(3, 4, 4, 4, 5))
    pads = ((1, 1), (1, 1))

    def loss(x, kernel):
        return (convolve(x, kernel, (2, 2), pads) ** 2).sum()

    together = jax.vmap(jax.grad(loss, (0, 1)))(x, kernels)
    for row in range(3):
        alone = jax.grad(loss, (0, 1))(x[row], kernels[row])
        for have, want in zip(together, alone, strict=True):
            np.testing.assert_allclose(have[row], want, rtol=1e-12, atol=1e-12)


def test_rare_convolutions_and_other_platforms_take_xla(monkeypatch):
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    options = {"dimension_numbers": LAYOUT[4]}

    def primitives(kernel=kernel, **more):
        def run(x, kernel):
            return convolve(x, kernel, (1, 1), "SAME", **options | more)

        return str(jax.make_jaxpr(run)(x, kernel))

    assert "custom_vjp" in primitives()
    assert "custom_vjp" not in primitives(rhs_dilation=(2, 2))
    assert "custom_vjp" not in primitives(precision="highest")
    grouped = {"kernel": jnp.ones((3, 3, 1, 4)), "feature_group_count": 4}
    assert "custom_vjp" not in primitives(**grouped)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "custom_vjp" not in primitives()


def test_small_maps_and_single_pixels_are_products():
    def chosen(x, kernel, stride=1):
        pad = kernel[0] // 2
        return conv.forms(x, kernel, (stride, stride), ((pad, pad), (pad, pad)))

    assert chosen((9, 2, 2, 8), (3, 3, 8, 8)).forward is conv.product
    assert chosen((9, 8, 8, 8), (3, 3, 8, 8)).forward is conv.xla
    assert chosen((9999, 8, 8, 64), (3, 3, 64, 8)).forward is conv.product
    assert chosen((999, 32, 32, 64), (3, 3, 64, 8)).forward is conv.xla
    assert chosen((9, 56, 56, 8), (1, 1, 8, 8)).input is conv.product
    assert chosen((9, 8, 8, 8), (3, 3, 8, 8)).input is conv.product
    assert chosen((9, 56, 56, 8), (3, 3, 8, 8)).input is conv.xla
    assert chosen((9, 56, 56, 8), (3, 3, 8, 8), stride=2).input is conv.product
    assert chosen((9, 56, 56, 8), (3, 3, 8, 8)).kernel is conv.by_tap
    assert chosen((9, 56, 56, 3), (3, 3, 3, 8)).kernel is conv.of_patches
    assert chosen((9, 4, 4, 8), (3, 3, 8, 8)).kernel is conv.of_patches


def test_a_layer_has_the_names_and_values_of_nnx(rng):
    from flax import nnx

    sizes, options = (3, 4, (3, 3)), {"strides": 2, "padding": 1}
    ours = Conv(*sizes, **options, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(*sizes, **options, rngs=nnx.Rngs(0))
    x = rng.normal(size=(2, 9, 9, 3)).astype(np.float32)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    states = (nnx.to_pure_dict(nnx.state(layer)) for layer in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, *states)
