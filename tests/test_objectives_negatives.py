"""Tiled negatives equal the plain sum, in linear memory, on any mesh."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.collectives import collective_bytes, largest_array
from polyview.objectives import contrastive
from polyview.objectives.negatives import log_negatives, log_negatives_by_view


def plain(anchors, candidates, weights, temperature):
    """Values and both gradients of sum(weights * values), in float64 numpy."""
    anchors, candidates = (np.asarray(x, np.float64) for x in (anchors, candidates))
    scores = np.einsum("imd,jnd->imjn", anchors, candidates) / temperature
    b = len(anchors)
    scores[np.arange(b), :, np.arange(b)] = -np.inf
    top = scores.max((2, 3), keepdims=True)
    values = (top + np.log(np.exp(scores - top).sum((2, 3), keepdims=True)))[..., 0, 0]
    w = weights[:, :, None, None] * np.exp(scores - values[:, :, None, None])
    return (
        values,
        np.einsum("imjn,jnd->imd", w, candidates) / temperature,
        np.einsum("imjn,imd->jnd", w, anchors) / temperature,
    )


def ours(anchors, candidates, weights, **options):
    """The same from `log_negatives`; one gradient if there are no candidates."""

    @jax.jit
    def values_and_gradients(weights, *pair):
        values, pullback = jax.vjp(partial(log_negatives, **options), *pair)
        return values, *pullback(jnp.asarray(weights, values.dtype))

    pair = (anchors,) if candidates is None else (anchors, candidates)
    return values_and_gradients(weights, *pair)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rows_like(kind, rng, b, m, d=16):
    """Embeddings of unit length, of one kind."""
    if kind == "random":
        return unit(rng.normal(size=(b, m, d)))
    if kind == "collapsed":
        return np.broadcast_to(unit(rng.normal(size=d)), (b, m, d)).copy()
    pair = unit(rng.normal(size=(b // 2, m, d)))  # "near duplicates" of other samples
    return unit(np.concatenate([pair, pair + 1e-3 * rng.normal(size=pair.shape)]))


@pytest.mark.parametrize("kind", ["random", "collapsed", "near duplicates"])
@pytest.mark.parametrize("among", [True, False], ids=["among themselves", "of others"])
def test_float32_tiles_match_the_float64_sum(kind, among):
    rng = np.random.default_rng(0)
    anchors = rows_like(kind, rng, 24, 3).astype(np.float32)
    candidates = anchors if among else rows_like(kind, rng, 24, 2).astype(np.float32)
    weights = rng.uniform(0.5, 1.5, size=(24, 3)).astype(np.float32)
    function = jax.jit(partial(ours, tile=17), static_argnames="largest")
    for temperature, bounded in [
        *((temperature, False) for temperature in (0.01, 0.05, 0.1, 0.5)),
        *((temperature, True) for temperature in (0.01, 0.025, 0.5)),
    ]:
        value, *gradients = plain(anchors, candidates, weights, temperature)
        given_ = None if among else candidates
        options = {"temperature": temperature}
        if bounded:  # below a temperature of 0.025 it is not used
            options["largest"] = 1 / temperature
        got, *got_gradients = function(anchors, given_, weights, **options)
        np.testing.assert_allclose(got, value, rtol=1e-5)
        if among:
            gradients = [sum(gradients)]
        for want, gradient in zip(gradients, got_gradients, strict=True):
            scale = np.abs(want).max()
            # A score has an error of some units in the last place; for a score of
            # 1 / temperature, the exponential multiplies it by 1 / temperature.
            tolerance = 1e-5 * max(1, 0.05 / temperature)
            np.testing.assert_allclose(
                gradient, want, rtol=tolerance, atol=tolerance * scale
            )


@given(
    b=st.integers(2, 9),
    m=st.integers(1, 4),
    n=st.integers(0, 4),  # 0: negatives among the anchors
    d=st.integers(1, 5),
    tile=st.integers(1, 40),
    largest=st.sampled_from([None, 40.0]),  # float64 has room for larger scores
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape_and_tile_match_the_plain_sum(b, m, n, d, tile, largest):
    rng = np.random.default_rng(0)
    anchors, weights = rng.normal(size=(b, m, d)), rng.normal(size=(b, m))
    candidates = rng.normal(size=(b, n, d)) if n else anchors
    value, *gradients = plain(anchors, candidates, weights, temperature=0.3)
    with jax.enable_x64(True):
        options = {"temperature": 0.3, "tile": tile, "largest": largest}
        got = ours(anchors, candidates if n else None, weights, **options)
    expected = (value, *(gradients if n else [sum(gradients)]))
    for want, have in zip(expected, got, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-11, atol=1e-12)


def test_scores_beyond_the_range_of_exp_are_safe():
    rng = np.random.default_rng(0)
    anchors = 60 * rng.normal(size=(6, 2, 8))  # scores of many thousands, of both signs
    weights = np.ones((6, 2))
    for candidates in (None, 60 * rng.normal(size=(6, 2, 8))):
        others = anchors if candidates is None else candidates
        value, *gradients = plain(anchors, others, weights, 0.1)
        as32 = [None if x is None else np.float32(x) for x in (anchors, candidates)]
        got, *got_gradients = ours(*as32, weights, temperature=0.1, tile=5)
        np.testing.assert_allclose(got, value, rtol=1e-6)
        assert all(np.isfinite(g).all() for g in got_gradients)


@pytest.mark.parametrize("shift", [0, 3], ids=["random", "nearly collapsed"])
def test_bfloat16_rows_give_the_float32_value(shift):
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(32, 4, 64)) + shift).astype(jnp.bfloat16)
    weights = rng.uniform(0.5, 1.5, size=(32, 4))
    value, left, right = plain(rows, rows, weights, 0.1)
    want = left + right
    for candidates in None, rows:
        got, gradient = ours(rows, candidates, weights, temperature=0.1, tile=50)[:2]
        assert got.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(got, value, rtol=2e-6)  # bfloat16 sums: 1e-2
    gradient = ours(rows, None, weights, temperature=0.1, tile=50)[1]
    np.testing.assert_allclose(
        np.float32(gradient), want, rtol=0.02, atol=0.01 * np.abs(want).max()
    )


def test_products_of_bfloat16_rows_are_summed_in_float32():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(32, 4, 64)).astype(jnp.bfloat16).astype(np.float32) / 8
    value, *_ = plain(rows, rows, np.ones((32, 4)), 1.0)
    got = log_negatives(rows, temperature=1.0, tile=50, dtype="bfloat16")
    np.testing.assert_allclose(got, value, rtol=2e-6)
    rough = log_negatives(rows, temperature=0.7, tile=50, dtype="bfloat16")
    fine = log_negatives(rows, temperature=0.7, tile=50)
    assert 1e-6 < np.abs(rough / fine - 1).max() < 1e-2


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("among", [True, False], ids=["among themselves", "of others"])
def test_gradients_of_bfloat16_rows_are_summed_in_float32(devices, among):
    """Many tiles add to each gradient."""
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(64, 4, 64)) + 1).astype(np.float32)
    candidates = None if among else rows[::-1].copy()
    weights = rng.uniform(0.5, 1.5, size=(64, 4)).astype(np.float32)
    others = rows if among else candidates
    _, *want = plain(rows, others, weights, 0.1)
    want = [sum(want)] if among else want
    pair = (rows,) if among else (rows, candidates)

    def gradients(*pair):
        both = *pair, *[None] * (2 - len(pair))
        options = {"temperature": 0.1, "dtype": "bfloat16", "tile": 8}
        return ours(*both, weights, **options)[1:]

    with jax.set_mesh(mesh_of(devices)):
        found = jax.jit(gradients)(*pair)
    for have, expected in zip(found, want, strict=True):
        error = np.sqrt(np.mean((have - expected) ** 2) / np.mean(expected**2))
        assert error < 4e-3


def test_the_temperature_has_a_gradient(x64):
    z = np.random.default_rng(0).normal(size=(5, 2, 3))

    def total(temperature, negatives):
        return negatives(z, temperature=temperature).sum()

    step = 1e-6
    for candidates in (None, z):
        f = partial(total, negatives=partial(log_negatives, candidates=candidates))
        slope = (f(0.4 + step) - f(0.4 - step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(f)(0.4), slope, rtol=1e-6)


def test_candidate_views_add_up(x64):
    rng = np.random.default_rng(0)
    anchors, candidates = rng.normal(size=(5, 3, 4)), rng.normal(size=(5, 2, 4))
    by_view = log_negatives_by_view(anchors, candidates, temperature=0.5)
    assert by_view.shape == (5, 3, 2)
    for g in range(2):
        alone, *_ = plain(anchors, candidates[:, g : g + 1], np.ones((5, 3)), 0.5)
        np.testing.assert_allclose(by_view[..., g], alone, rtol=1e-12)


def mesh_of(*shape):
    axes = ("data", "fsdp")[: len(shape)]
    devices = jax.devices()[: np.prod(shape)]
    types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, axes, axis_types=types, devices=devices)


def on(mesh, function):
    """`function`, jitted and applied to rows split over the mesh."""
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.jit(function, in_shardings=rows, out_shardings=rows)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("among", [True, False], ids=["among themselves", "of others"])
@pytest.mark.parametrize(
    # 12 rows a device. tile=5: three tiles of 4 rows, compared one by one. tile=9: the
    # same, compared five at a time. tile=40: one, compared with all. Other candidates
    # have half as many columns; their last tile may hold a row of padding.
    ("shape", "tile", "largest"),
    [
        ((2,), 5, None),
        ((3,), 9, 40),
        ((5,), 7, None),
        ((2, 2), 9, None),
        ((2, 4), 5, 40),
        ((8,), 40, 40),
    ],
    ids=str,
)
def test_every_exchange_matches_the_plain_sum_on_every_mesh(
    exchange, among, shape, tile, largest, x64
):
    rng = np.random.default_rng(1)
    b = 3 * int(np.prod(shape))
    z, t = rng.normal(size=(2, b, 4, 3))
    t, weights = t[:, :2], rng.normal(size=(b, 4))
    value, *gradients = plain(z, z if among else t, weights, temperature=0.3)
    expected = (value, *([sum(gradients)] if among else gradients))
    mesh = mesh_of(*shape)
    options = {"temperature": 0.3, "exchange": exchange, "tile": tile}
    options["largest"] = largest
    with jax.set_mesh(mesh):
        if among:
            f = on(mesh, lambda z, weights: ours(z, None, weights, **options))
            got = f(z, weights)
        else:
            got = on(mesh, partial(ours, **options))(z, t, weights)
    for want, have in zip(expected, got, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("among", [True, False], ids=["among themselves", "of others"])
def test_a_low_temperature_is_safe_on_a_mesh(exchange, among):
    """Scores reach 100, so their exponentials overflow float32."""
    rng = np.random.default_rng(0)
    z = rows_like("near duplicates", rng, 16, 3).astype(np.float32)
    t = z if among else rows_like("near duplicates", rng, 16, 2).astype(np.float32)
    value, *_ = plain(z, t, np.ones((16, 3)), 0.01)
    options = {"temperature": 0.01, "exchange": exchange, "tile": 4}
    with jax.set_mesh(mesh_of(4)):
        got, *gradients = on(
            mesh_of(4),
            lambda z, t: ours(z, None if among else t, np.ones((16, 3)), **options),
        )(z, t)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def gradient_program(devices, b, exchange, loss, m=4, d=16, tile=4):
    """The compiled text of a loss and its gradient on some devices, and its memory."""
    negatives = partial(log_negatives, exchange=exchange, tile=tile)

    def total(z):
        return loss(z, temperature=0.1, negatives=negatives).mean()

    mesh = mesh_of(devices)
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    with jax.set_mesh(mesh):
        z = jax.ShapeDtypeStruct((b, m, d), jnp.float32, sharding=rows)
        compiled = jax.jit(jax.value_and_grad(total), out_shardings=(None, rows))
        compiled = compiled.lower(z).compile()
    return compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize(
    "loss",
    [
        contrastive.geometric,
        contrastive.sufficient_statistics,
        contrastive.multi_crop,
        contrastive.mv_dhel,
    ],
)
def test_compiled_program_is_linear_in_the_batch(exchange, loss, optimized):
    b, m, d, devices = 512, 4, 16, 4
    text, memory = gradient_program(devices, b, exchange, loss)
    rows = b * m
    elements, array = largest_array(text)
    # No array has (b m)^2 or (b m / devices) (b m) elements. The largest holds all rows
    # (ring: one device's rows), with the features and a few more numbers per row.
    assert elements <= rows * (d + m) // (devices if exchange == "ring" else 1), array
    sent = sum(collective_bytes(text).values())
    assert 0 < sent < 8 * rows * d * 4
    # Twice the rows cost twice the traffic and memory, not four times.
    more_text, more_memory = gradient_program(devices, 2 * b, exchange, loss)
    assert sum(collective_bytes(more_text).values()) < 2.1 * sent
    assert more_memory < 2.3 * memory


def test_ring_memory_per_device_is_constant_in_the_device_count(optimized):
    few, many = (
        gradient_program(n, 128 * n, "ring", contrastive.geometric)[1] for n in (4, 8)
    )
    gathered = gradient_program(8, 128 * 8, "gather", contrastive.geometric)[1]
    assert many < 1.1 * few < gathered


def test_backward_pass_keeps_only_rows_and_one_number_per_anchor():
    z = jnp.ones((40, 4, 16))
    _, pullback = jax.vjp(partial(log_negatives, temperature=0.1, tile=8), z)
    kept = sum(x.size for x in jax.tree.leaves(pullback))
    assert kept <= z.size + 40 * 4 + 1


def test_products_request_full_precision():
    """Accelerators would round float32 to fewer bits; a CPU shows no difference."""

    def total(z, y):
        return (
            log_negatives(z, temperature=0.1).sum()
            + log_negatives(z, y, temperature=0.1).sum()
        )

    z = jnp.ones((4, 2, 3))
    text = jax.jit(jax.grad(total)).lower(z, z).as_text()
    products = re.findall(r"dot_general.*", text)
    assert len(products) >= 6
    assert all("HIGHEST, HIGHEST" in product for product in products)


def test_invalid_batches_are_refused():
    z = jnp.ones((4, 2, 3))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")
    inside = jax.shard_map(
        partial(log_negatives, temperature=0.1),
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
    )
    with pytest.raises(ValueError, match="shard_map over data"):
        inside(z)
    with pytest.raises(ValueError, match="b = 1 has none"):
        log_negatives(z[:1], temperature=0.1)
    with pytest.raises(ValueError, match="candidates of 3"):
        log_negatives(z, z[:3], temperature=0.1)
    for temperature in (-0.1, np.float32(-0.1), 0, float("nan"), np.array([0.1, 0.2])):
        with pytest.raises(ValueError, match="temperature"):
            log_negatives(z, temperature=temperature)
        with pytest.raises(ValueError, match="temperature"):
            log_negatives_by_view(z, z, temperature=temperature)
    with pytest.raises(ValueError, match="dtype is int8"):
        log_negatives(z, temperature=0.1, dtype="int8")
    with pytest.raises(ValueError, match="tile is 0"):
        log_negatives(z, temperature=0.1, tile=0)
    with pytest.raises(ValueError, match="gather"):
        log_negatives(z, temperature=0.1, exchange="tree")
