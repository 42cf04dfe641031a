"""Denoisers compute what NumPy does, row by row, and start at zero."""

from functools import partial
from math import cos, erf, pi, sin

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.errors import InputError, OutOfRange
from polyview.nn.denoiser import MlpDenoiser, PerceiverDenoiser, fourier

FEATURES, CONDITION, ROWS = 3, 2, 4
SIZES = {"features": FEATURES, "condition": CONDITION, "frequencies": 2}
MLP = partial(MlpDenoiser, **SIZES | {"hidden": (6, 5)})
PERCEIVER = partial(PerceiverDenoiser, **SIZES, latents=4, width=8, blocks=1, heads=2)
BOTH = pytest.mark.parametrize("make", [MLP, PERCEIVER], ids=["mlp", "perceiver"])


def filled(make, dtype=np.float32):
    """A denoiser with noise in all parameters: no zero hides a mistake."""
    graph, params = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(7)
    leaves = [0.5 * rng.normal(size=x.shape) for x in leaves]
    leaves = [jnp.asarray(x, dtype) for x in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


@jax.jit
def call(denoiser, x, time, condition):
    """Compiled as a whole: one by one, operations take ten times as long to compile."""
    return denoiser(x, time, condition)


def inputs(rng, rows=ROWS, features=FEATURES, condition=CONDITION):
    x, c = rng.normal(size=(rows, features)), rng.normal(size=(rows, condition))
    return [jnp.asarray(a, jnp.float32) for a in (x, rng.random(rows), c)]


def waves(number, count, lowest=0.25, highest=32.0):
    ratio = (highest / lowest) ** (1 / max(count - 1, 1))
    angles = [2 * pi * lowest * ratio**k * number for k in range(count)]
    return [*map(sin, angles), *map(cos, angles)]


def test_fourier_features_are_sines_and_cosines_of_a_geometric_series(rng):
    values = np.float32([0, 0.1, 0.7, 1, -3])
    made = fourier(jnp.asarray(values), 4, 0.5, 4.0)
    slow = [waves(float(v), 4, 0.5, 4.0) for v in values]
    np.testing.assert_allclose(made, slow, atol=1e-5)
    one = fourier(jnp.asarray(values), 1, 0.5, 4.0)
    np.testing.assert_allclose(
        one, [waves(float(v), 1, 0.5) for v in values], atol=1e-5
    )
    # Half precision would turn the angles of close times into the same.
    half = jnp.asarray(values, jnp.bfloat16)
    assert fourier(half, 2, 0.5, 4.0).dtype == jnp.float32
    for wrong in ((0, 1.0, 2.0), (2, 0.0, 2.0), (2, 2.0, 1.0)):
        with pytest.raises(OutOfRange):
            fourier(jnp.asarray(values), *wrong)


def of(layer, x):
    y = x @ np.asarray(layer.kernel[...], np.float64)
    return y if layer.bias is None else y + np.asarray(layer.bias[...], np.float64)


def normed(norm, x):
    middle = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return middle * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])


def gelu(x):
    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def test_the_mlp_is_that_of_numpy(rng):
    denoiser = filled(MLP)
    x, time, condition = inputs(rng)
    at = [waves(float(t), 2) for t in time]
    h = np.concatenate([np.asarray(a, np.float64) for a in (x, condition, at)], 1)
    assert len(denoiser.layers) == 2
    for layer in denoiser.layers:
        h = of(layer, h)
        h = h / (1 + np.exp(-h))
    made = call(denoiser, x, time, condition)
    np.testing.assert_allclose(made, of(denoiser.last, h), atol=2e-5)


def attended(queries, keys, values, heads):
    """One row: softmax(q k / sqrt(size)) v by explicit sums."""
    mixed = np.zeros_like(queries)
    size = queries.shape[1] // heads
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for i, query in enumerate(queries[:, own]):
            scores = [sum(query * key) / size**0.5 for key in keys[:, own]]
            weights = np.exp(scores) / sum(np.exp(scores))
            for weight, value in zip(weights, values[:, own], strict=True):
                mixed[i, own] += weight * value
    return mixed


def crossed(block, x, others):
    read = normed(block.others, others)
    query = of(block.query, normed(block.norm1, x))
    mixed = attended(query, of(block.key, read), of(block.value, read), block.heads)
    x = x + of(block.out, mixed)
    return x + of(block.down, gelu(of(block.up, normed(block.norm2, x))))


def itself(block, x):
    query, key, value = np.split(of(block.qkv, normed(block.norm1, x)), 3, axis=1)
    x = x + of(block.out, attended(query, key, value, block.heads))
    return x + of(block.down, gelu(of(block.up, normed(block.norm2, x))))


@pytest.mark.parametrize(
    "sizes",
    [{}, {"features": 1, "condition": 0, "blocks": 2, "latents": 1}],
    ids=["usual", "least"],
)
def test_the_perceiver_is_that_of_slow_loops(rng, sizes):
    denoiser = filled(partial(PERCEIVER, **sizes))
    features, c = denoiser.features, denoiser.condition
    x, time, condition = inputs(rng, ROWS, features, c)
    made = call(denoiser, x, time, condition)
    assert made.shape == (ROWS, features)
    kernel = np.asarray(denoiser.of_number.kernel[...], np.float64)[0]
    for row in range(ROWS):
        tokens = [float(number) * kernel for number in x[row]]
        tokens.append(of(denoiser.of_time, np.array(waves(float(time[row]), 2))))
        if c:
            seen = np.asarray(condition[row], np.float64)
            tokens.append(of(denoiser.of_condition, seen))
        tokens = np.stack(tokens) + np.asarray(denoiser.position[...], np.float64)[0]
        z = np.asarray(denoiser.latents[...], np.float64)[0]
        z = crossed(denoiser.read, z, tokens)
        for block in denoiser.blocks:
            z = itself(block, z)
        y = crossed(denoiser.write, tokens[:features], z)
        y = of(denoiser.last, normed(denoiser.norm, y))[:, 0]
        np.testing.assert_allclose(made[row], y, rtol=1e-4, atol=1e-4)


@BOTH
def test_the_output_is_zero_at_first_and_has_the_shape_of_x(make, rng):
    made = jax.jit(lambda *given: make(rngs=nnx.Rngs(0))(*given))(*inputs(rng))
    assert made.shape == (ROWS, FEATURES) and made.dtype == jnp.float32
    assert (np.asarray(made) == 0).all()


@BOTH
def test_a_row_depends_on_itself_alone_and_on_all_of_its_numbers(make, rng):
    denoiser, given = filled(make), inputs(rng)
    plain = np.asarray(call(denoiser, *given))
    for which, value in enumerate(given):
        for place in np.ndindex(value.shape[1:]):
            changed = list(given)
            changed[which] = value.at[(1, *place)].add(2.3)
            made = np.asarray(call(denoiser, *changed))
            assert (np.abs(made - plain)[1] > 1e-5).all()
            np.testing.assert_array_equal(np.delete(made, 1, 0), np.delete(plain, 1, 0))


def test_numbers_of_the_perceiver_are_told_apart_by_their_position(rng):
    denoiser = filled(PERCEIVER)
    x, time, condition = inputs(rng)
    order = np.array([2, 0, 1])

    def difference():
        turned = np.asarray(call(denoiser, x[:, order], time, condition))
        plain = np.asarray(call(denoiser, x, time, condition))
        return np.abs(turned - plain[:, order]).max()

    assert difference() > 1e-2
    # With the same position for all numbers, they would be a set.
    position = np.array(denoiser.position[...])
    position[:, :FEATURES] = position[:, :1]
    denoiser.position[...] = jnp.asarray(position)
    assert difference() < 1e-5


def test_the_perceiver_sees_at_first_how_large_a_number_is():
    """Its norm of a token must leave more than the sign."""

    @jax.jit
    def seen(numbers):
        denoiser = PERCEIVER(width=64, rngs=nnx.Rngs(0))
        tokens = denoiser.of_number(numbers) + denoiser.position[...][0, :1]
        return denoiser.read.others(tokens)

    tokens = np.asarray(seen(jnp.asarray([[0.1], [1.0], [2.0]])))
    near, far = (np.linalg.norm(tokens[0] - tokens[i]) for i in (1, 2))
    assert near > 2 and far > 1.2 * near


@BOTH
def test_gradients_reach_every_parameter_of_a_compiled_step(make, rng):
    graph, params = nnx.split(filled(make))
    given = inputs(rng)

    @jax.jit
    def step(params, given):
        def loss(params):
            made = nnx.merge(graph, params)(*given)
            return (made**2).mean(), made

        return jax.grad(loss, has_aux=True)(params)

    slopes, made = step(params, given)
    paths = jax.tree_util.tree_leaves_with_path(slopes)
    assert len(paths) == len(jax.tree.leaves(params)) > 5
    for path, slope in paths:
        where = jax.tree_util.keystr(path)
        assert np.isfinite(slope).all(), where
        # The same number added to all keys cancels in the softmax; 'qkv' has others.
        silent = "key" in where and "bias" in where
        assert silent or np.abs(slope).max() > 1e-6, where
    plain = call(nnx.merge(graph, params), *given)
    np.testing.assert_allclose(made, plain, rtol=1e-4, atol=1e-5)


@BOTH
def test_half_precision_is_near_and_keeps_float32_parameters(make, rng):
    abstract = nnx.eval_shape(lambda: make(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert {x.dtype for x in jax.tree.leaves(abstract)} == {jnp.dtype(jnp.float32)}
    half, given = filled(partial(make, dtype=jnp.bfloat16)), inputs(rng)
    exact, made = (np.asarray(call(d, *given)) for d in (filled(make), half))
    assert made.dtype == np.float32
    assert 1e-5 < np.abs(made - exact).max() / np.abs(exact).max() < 0.05


def test_double_precision_stays_double(x64, rng):
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    given = [jnp.asarray(a, jnp.float64) for a in inputs(rng)]
    denoiser = filled(partial(MLP, **options), np.float64)
    made = call(denoiser, *given)
    x, time, condition = map(np.asarray, given)
    h = np.concatenate([x, condition, [waves(float(t), 2) for t in time]], 1)
    for layer in denoiser.layers:
        h = of(layer, h)
        h = h / (1 + np.exp(-h))
    np.testing.assert_allclose(made, of(denoiser.last, h), rtol=1e-12)


@BOTH
def test_inputs_of_another_shape_are_refused(make, rng):
    denoiser = filled(make)
    x, time, condition = inputs(rng)
    for wrong in (
        (x[:, :2], time, condition),
        (x, time[:, None], condition),
        (x, time[:1], condition),
        (x, time, condition[:, :1]),
        (x, time, condition[:1]),
    ):
        with pytest.raises(InputError, match=r"takes x\[n, 3\], time\[n\] and cond"):
            denoiser(*wrong)


def test_sizes_out_of_range_are_refused():
    for make, name, value in (
        (MLP, "features", 0),
        (MLP, "condition", -1),
        (MLP, "hidden", (4, 0)),
        (MLP, "frequencies", 0),
        *((PERCEIVER, n, 0) for n in ("features", "latents", "width", "heads")),
        (PERCEIVER, "frequencies", 0),
        (PERCEIVER, "condition", -1),
        (PERCEIVER, "blocks", -1),
    ):
        with pytest.raises(OutOfRange, match=name):
            make(**{name: value}, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="width=8 is not a multiple of heads=3"):
        PERCEIVER(heads=3, rngs=nnx.Rngs(0))
