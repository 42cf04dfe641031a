"""SGI's network has the published size and matches slow loops."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.config.trust import allow_list, import_target
from polyview.model import abstract_module, merge_module, split_module
from sgi.encoders import Nature, Residual, depthwise
from sgi.heads import NoisyLinear
from sgi.network import Network, renormalise

pytestmark = pytest.mark.usefixtures("x64")
WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
ENCODERS = {
    "S": partial(Nature),
    "M": partial(Residual),
    "L": partial(Residual, blocks=5, expand=4, widths=(48, 96, 96)),
}
tiny = partial(
    Network,
    actions=3,
    hidden=16,
    image=24,
    encoder=partial(Residual, blocks=1, widths=(4, 6, 5)),
    **WIDE,
)


def fast(function, *arguments):
    """The result of a function, compiled without optimisation to save time."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=options)(*arguments)


@pytest.fixture(scope="module")
def network():
    """A small network with only random arrays, as plain dicts."""
    with jax.enable_x64(True):
        graph, params, statistics, _ = abstract_module(tiny)
    rng = np.random.default_rng(0)
    params, statistics = jax.tree.map(
        lambda s: rng.normal(size=s.shape) / math.sqrt(max(s.shape, default=1)),
        (params, statistics),
    )
    statistics = jax.tree.map(np.abs, statistics)
    return graph, params, statistics


@pytest.mark.parametrize(
    ("size", "encoder", "four", "eighteen"),
    [
        ("S", 77_984, 28.17, 29.65),
        ("M", 136_472, 28.23, 29.71),
        ("L", 893_104, 42.20, 43.68),
    ],
)
def test_parameter_counts_are_the_published_ones(size, encoder, four, eighteen):
    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    for actions, millions in ((4, four), (18, eighteen)):
        make = partial(Network, actions=actions, encoder=ENCODERS[size])
        params = abstract_module(make).params
        assert count(params["encoder"]) == encoder
        assert round(count(params) / 1e6, 2) == millions


@pytest.mark.parametrize(("size", "stride"), [(12, 3), (7, 2), (8, 1), (8, 2)])
def test_depthwise_shifts_match_the_grouped_convolution(size, stride):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, size, size, 5)), rng.normal(size=(3, 3, 5))

    def value_and_gradient(form):
        def loss(x, kernel):
            y = depthwise(x, kernel, stride=stride, form=form)
            return jnp.sum(jnp.sin(y)), y

        return fast(jax.value_and_grad(loss, (0, 1), has_aux=True), x, kernel)

    result = jax.tree.leaves(value_and_gradient("shifts"))
    expected = jax.tree.leaves(value_and_gradient("lax"))
    for a, b in zip(result, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    with pytest.raises(ValueError, match="form"):
        depthwise(x, kernel, form="loops")


def convolution(x, kernel, bias, stride=1, padding=0):
    """Convolve `x[n, h, w, c]`, `kernel[k, k, c, features]` in loops over outputs."""
    n, h, w, _ = x.shape
    k = len(kernel)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    high, wide = ((s + 2 * padding - k) // stride + 1 for s in (h, w))
    y = np.zeros((n, high, wide, kernel.shape[-1]))
    for i, j in np.ndindex(high, wide):
        patch = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
        y[:, i, j] = np.tensordot(patch, kernel, 3) + bias
    return y


def norm(x, p, s):
    deviation = np.sqrt(s["var"] + 1e-5)
    return (x - s["mean"]) / deviation * p["scale"] + p["bias"]


def onto_unit(x):
    low, high = (f(x, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return (x - low) / (high - low + 1e-5)


def relu(x):
    return np.maximum(x, 0)


def slow_block(x, p, s, stride):
    """An inverted residual block, written from its description."""
    y = convolution(x, p["up"]["kernel"], p["up"]["bias"])
    y = relu(norm(y, p["norm1"], s["norm1"]))
    channels = y.shape[-1]
    kernel = np.zeros((3, 3, channels, channels))
    for c in range(channels):
        kernel[:, :, c, c] = p["depthwise"]["kernel"][:, :, c]
    y = convolution(y, kernel, p["depthwise"]["bias"], stride, padding=1)
    y = relu(norm(y, p["norm2"], s["norm2"]))
    y = convolution(y, p["down"]["kernel"], p["down"]["bias"])
    y = norm(y, p["norm3"], s["norm3"])
    short = p["shortcut"]
    return y + convolution(x, short["kernel"], short["bias"], stride)


def slow_latent(images, params, statistics):
    x = images / 255
    for number, stride in enumerate((3, 2, 2)):
        p, s = (t["encoder"]["blocks"][number] for t in (params, statistics))
        x = slow_block(x, p, s, stride)
    return onto_unit(x)


def test_latent_and_transition_match_loops(network):
    graph, params, statistics = network
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (2, 9, 24, 24), np.uint8)
    actions = np.array([2, 0])

    def compute(frames):
        module = merge_module(graph, params, statistics)
        read = module({"views": {"frames": frames}}, key=None, train=False)["frames"]
        latent = read.h.reshape(2, 2, 2, 5)
        after = module.transition(latent, actions, train=False)
        return read, after

    read, after = fast(compute, frames)
    latent = slow_latent(np.moveaxis(frames[:, :4], 1, -1), params, statistics)
    np.testing.assert_allclose(read.h[:, 0], latent.reshape(2, -1), rtol=1e-9)
    first = params["goal_head"]["head"]
    projected = [
        latent.reshape(2, -1) @ first[name]["kernel"] + first[name]["bias"]
        for name in ("advantage1", "value1")
    ]
    np.testing.assert_allclose(read.z[:, 0], np.concatenate(projected, -1), rtol=1e-9)

    p, s = params["transition"], statistics["transition"]
    hot = np.zeros((2, 2, 2, 3))
    hot[0, ..., 2], hot[1, ..., 0] = 1, 1
    x = np.concatenate([latent, hot], -1)
    x = relu(convolution(x, p["first"]["kernel"], p["first"]["bias"], padding=1))
    x = norm(x, p["norm"], s["norm"])  # after the activation
    x = relu(convolution(x, p["last"]["kernel"], p["last"]["bias"], padding=1))
    np.testing.assert_allclose(after, onto_unit(x), rtol=1e-9)


def test_a_fresh_encoder_equals_its_shortcuts_alone():
    make = partial(Residual, blocks=1, widths=(4, 6, 5), **WIDE)
    x = np.random.default_rng(0).random((2, 12, 12, 4))

    def compute(x):
        module = make(rngs=nnx.Rngs(0))
        return split_module(module)[1], module(x, train=True)

    params, result = jax.tree.map(np.asarray, fast(compute, x))
    for block, stride in zip(params["blocks"].values(), (3, 2, 2), strict=True):
        x = convolution(
            x, block["shortcut"]["kernel"], block["shortcut"]["bias"], stride
        )
    np.testing.assert_allclose(result, x, rtol=1e-9)


def test_initial_values_match_the_official_code():
    encoder = partial(Residual, blocks=2)
    make = partial(Network, actions=6, hidden=64, encoder=encoder)

    def read():
        """The parameters that are read below; the others are not drawn."""
        params = split_module(make(rngs=nnx.Rngs(0), sigma=0.5))[1]
        blocks = params["encoder"]["blocks"]
        return {
            "blocks": {4: blocks[4]["shortcut"], 5: blocks[5]},
            "transition": params["transition"]["last"],
            "predictor": params["predictor"],
            "inverse": params["inverse"]["first"],
            "head": params["head"]["advantage1"],
            "conditioner": params["goal_head"]["conditioner"]["last"],
        }

    with jax.enable_x64(False):
        params = fast(read)

    def deviation(x):
        return pytest.approx(float(np.std(x)), rel=0.1)

    blocks = params["blocks"]
    small = 6**-0.25
    assert small * (2 / 128) ** 0.5 == deviation(blocks[5]["up"]["kernel"])
    assert small * (2 / (128 * 9)) ** 0.5 == deviation(blocks[5]["depthwise"]["kernel"])
    assert small * (2 / 64) ** 0.5 == deviation(blocks[5]["down"]["kernel"])
    assert (2 / (64 * 4)) ** 0.5 == deviation(blocks[4]["kernel"])
    for layer, inputs in (
        (params["transition"], 64 * 9),
        (params["predictor"], 128),
        (params["inverse"], 256),
        (params["head"], 3136),
        (params["conditioner"], 6272),
    ):
        for name in ("kernel", "bias"):
            bound = abs(np.asarray(layer[name])).max() * inputs**0.5
            assert 0.9 < bound <= 1, (name, inputs)
    assert 0.9 < abs(np.asarray(blocks[5]["depthwise"]["bias"])).max() * 3 <= 1
    noisy = params["head"]
    np.testing.assert_allclose(noisy["kernel_sigma"], 0.5 / 3136**0.5)
    np.testing.assert_allclose(noisy["bias_sigma"], 0.5 / 64**0.5)


def test_renormalised_rows_span_0_to_1_and_constant_rows_are_zero():
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 2)) * 9
    y = np.array(renormalise(x))
    np.testing.assert_allclose(y, onto_unit(x), rtol=1e-12)
    value, gradient = jax.value_and_grad(lambda x: renormalise(x).sum())(
        np.full((1, 6), 3.0)
    )
    assert value == 0 and np.isfinite(gradient).all()


def test_unsupported_image_sizes_and_options_are_refused():
    with pytest.raises(ValueError, match="multiple of 12"):
        abstract_module(partial(tiny, image=80))
    with pytest.raises(ValueError, match="too small"):
        abstract_module(partial(tiny, image=24, encoder=Nature))
    with pytest.raises(ValueError, match="film_value_from"):
        abstract_module(partial(tiny, film_value_from="goal"))


def test_noise_is_one_factorised_draw_for_all_rows():
    make = partial(NoisyLinear, 20, 30, sigma=0.5, **WIDE)
    layer = make(rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 20))
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    np.testing.assert_allclose(layer(x, key=None), x @ kernel + bias)

    keys = jax.random.split(jax.random.key(1), 4000)
    inputs = np.concatenate([np.zeros((1, 20)), np.eye(20)])
    noisy = np.asarray(fast(jax.vmap(lambda key: layer(inputs, key=key)), keys))
    b = noisy[:, 0] - bias
    w = noisy[:, 1:] - noisy[:, :1] - kernel
    # The kernel's noise is a rank-one matrix; one factor is the noise of the bias.
    ratio = w[0] / b[0]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape))
    # Var sign(e) sqrt|e| = E|e| = sqrt(2 / pi); for the product of two, 2 / pi.
    each = (2 / math.pi) ** 0.5
    assert b.std() == pytest.approx(0.5 / 30**0.5 * each**0.5, rel=0.02)
    assert w.std() == pytest.approx(0.5 / 20**0.5 * each, rel=0.02)
    assert abs(b.mean()) < 0.01 * b.std() and abs(w.mean()) < 0.01 * w.std()


def test_zero_sigmas_still_have_gradients():
    make = partial(NoisyLinear, 20, 30, sigma=0.0, **WIDE)
    graph, params, statistics, _ = split_module(make(rngs=nnx.Rngs(0)))
    x, key = np.ones((2, 20)), jax.random.key(0)

    def loss(params):
        return jnp.sum(merge_module(graph, params, statistics)(x, key=key) ** 2)

    gradient = fast(jax.grad(loss), params)
    assert abs(gradient["kernel_sigma"]).min() > 0
    assert abs(gradient["bias_sigma"]).min() > 0


def slow_logits(head, advantage, value):
    """Duelling logits of one row from both hidden layers: [actions, atoms]."""
    a = advantage @ head["advantage2"]["kernel"] + head["advantage2"]["bias"]
    a = a.reshape(3, 51)
    v = value @ head["value2"]["kernel"] + head["value2"]["bias"]
    return np.stack([v + a[action] - a.mean(0) for action in range(3)])


def test_a_head_adds_value_and_centred_advantage(network):
    graph, params, statistics = network
    latent = np.random.default_rng(2).random((4, 2, 2, 5))

    def compute(latent):
        module = merge_module(graph, params, statistics)
        return module.head(latent, key=None), module.head.project(latent)

    result, _ = fast(compute, latent)
    p = params["head"]
    for row, logits in zip(latent.reshape(4, -1), result, strict=True):
        hidden = [
            relu(row @ p[name]["kernel"] + p[name]["bias"])
            for name in ("advantage1", "value1")
        ]
        np.testing.assert_allclose(logits, slow_logits(p, *hidden), rtol=1e-9)

    # The head scales the latent's gradient by 1 / sqrt(2); the projection does not.
    direction = np.random.default_rng(3).normal(size=latent.shape)

    def along(which):
        def value(t):
            return (compute(latent + t * direction)[which] ** 2).sum()

        slope = (value(1e-6) - value(-1e-6)) / 2e-6
        return slope, fast(jax.grad(lambda x: (compute(x)[which] ** 2).sum()), latent)

    for which, scale in ((0, 2**-0.5), (1, 1.0)):
        slope, gradient = along(which)
        result = float((gradient * direction).sum())
        assert result == pytest.approx(scale * float(slope), rel=1e-5)


@pytest.mark.parametrize("source", ["advantage", "value"])
def test_a_goal_scales_and_shifts_the_hidden_layers(network, source):
    _, params, statistics = network
    graph = abstract_module(partial(tiny, film_value_from=source))[0]
    latent, goal = np.random.default_rng(2).random((2, 4, 2, 2, 5))

    def compute(params):
        module = merge_module(graph, params, statistics)
        logits = module.goal_head(latent, goal, key=None)
        return (logits**2).sum(), logits

    gradient, result = fast(jax.grad(compute, has_aux=True), params)
    p, c = (params["goal_head"][name] for name in ("head", "conditioner"))
    x = relu(convolution(goal, c["first"]["kernel"], c["first"]["bias"], padding=1))
    x = relu(convolution(x, c["second"]["kernel"], c["second"]["bias"], padding=1))
    film = x.reshape(4, -1) @ c["last"]["kernel"] + c["last"]["bias"]
    for row, numbers, logits in zip(latent.reshape(4, -1), film, result, strict=True):
        shift_a, scale_a, shift_v, scale_v = numbers.reshape(4, 16)
        advantage, value = (
            relu(row @ p[name]["kernel"] + p[name]["bias"])
            for name in ("advantage1", "value1")
        )
        advantage = advantage * scale_a + shift_a
        value = (advantage if source == "advantage" else value) * scale_v + shift_v
        np.testing.assert_allclose(logits, slow_logits(p, advantage, value), rtol=1e-9)

    # As in the official code, the value's own first layer then gets no gradient.
    own = abs(gradient["goal_head"]["head"]["value1"]["kernel"]).max()
    assert (own == 0) == (source == "advantage")


def test_targets_of_version_0_1_checkpoints_still_resolve():
    moved = {
        "Residual": Residual,
        "Nature": Nature,
        "depthwise": depthwise,
        "NoisyLinear": NoisyLinear,
        "Network": Network,
        "renormalise": renormalise,
    }
    for name, target in moved.items():
        old = f"sgi.networks:{name}"
        assert import_target(old, allow_list(), "config.model") is target
