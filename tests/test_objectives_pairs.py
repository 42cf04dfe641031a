"""CLIP and SigLIP match their formulas, on any devices, in memory linear in b."""

from functools import partial
from math import exp, log, log1p

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_objectives_crossmodal import batch_of

from benchmarks.collectives import largest_array
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.errors import InputError
from polyview.model import merge_module, split_module
from polyview.nn.critics import CosineCritic
from polyview.nn.towers import Towers
from polyview.objectives import crossmodal
from polyview.objectives.crossmodal import CrossModal, cosine
from polyview.objectives.pairs import Pairs, clip, siglip

SCALE, BIAS = 3.0, -1.5
LOSSES = {"clip": (clip, (SCALE,)), "siglip": (siglip, (SCALE, BIAS))}


def rows_of(b=16, d=5):
    """Two views of b samples, weights, masks and groups: sample 0 is not there."""
    rng = np.random.default_rng(0)
    common = 1.5 * rng.normal(size=(b, d))
    x, y = (common + rng.normal(size=(b, d)) for _ in range(2))
    present = rng.random(b) < 0.8
    present[0] = False
    group = np.array([4, 4, 9, -1, 9, -1, *range(20, 20 + b - 6)])
    return x, y, rng.normal(size=b), present, group


def loops(name, x, y, weights, present, group):
    """Losses, what is found, and the gradients of the weighted sum, pair by pair."""
    lengths = [np.linalg.norm(side, axis=1) for side in (x, y)]
    u, v = x / lengths[0][:, None], y / lengths[1][:, None]
    rows = [i for i in range(len(x)) if present[i]]
    s = {(i, j): SCALE * u[i] @ v[j] for i in rows for j in rows}
    s = {
        pair: score + (BIAS if name == "siglip" else 0)
        for pair, score in s.items()
        if pair[0] == pair[1] or group[pair[0]] != group[pair[1]] or group[pair[0]] < 0
    }
    losses, found, slope = np.zeros(len(x)), np.zeros(len(x)), dict.fromkeys(s, 0.0)
    for i in rows:
        ours = [(i, j) for j in rows if (i, j) in s]
        theirs = [(j, i) for j in rows if (j, i) in s]
        for side in (ours, theirs):
            found[i] += max(side, key=s.get) == (i, i)
            total = sum(exp(s[pair]) for pair in side)
            if name == "clip":
                losses[i] -= log(exp(s[i, i]) / total) / 2
                for pair in side:
                    share = exp(s[pair]) / total - (pair == (i, i))
                    slope[pair] += weights[i] * share / 2
        if name == "siglip":
            for pair in ours:
                sign = 1 if pair == (i, i) else -1
                losses[i] += log1p(exp(-sign * s[pair]))
                slope[pair] -= weights[i] * sign / (1 + exp(sign * s[pair]))
    du, dv, scale = np.zeros_like(u), np.zeros_like(v), 0.0
    for (i, j), w in slope.items():
        du[i] += SCALE * w * v[j]
        dv[j] += SCALE * w * u[i]
        scale += w * u[i] @ v[j]
    gradients = [
        (d - (d * unit).sum(1, keepdims=True) * unit) / length[:, None]
        for d, unit, length in zip((du, dv), (u, v), lengths, strict=True)
    ]
    numbers = [scale, sum(slope.values())][: 2 if name == "siglip" else 1]
    return losses, found / 2, [*gradients, *numbers]


def mesh_of(devices):
    types = (AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), types, devices=jax.devices()[:devices])


@pytest.mark.parametrize(
    ("devices", "exchange", "tile"),
    [(1, "gather", 6), (2, "gather", 3), (8, "ring", 1)],  # of 16, 8 and 2 rows
)
def test_losses_and_gradients_match_the_loops_on_any_devices(
    devices, exchange, tile, x64
):
    x, y, weights, present, group = rows_of()

    def values_and_gradients(x, y, weights, present, group):
        options = {"present": present, "group": group}
        options |= {"exchange": exchange, "tile": tile}
        results = {}
        for name, (loss, numbers) in LOSSES.items():
            matched, pullback = jax.vjp(partial(loss, **options), x, y, *numbers)
            results[name] = *matched, pullback(matched._replace(losses=weights))
        return results

    mesh = mesh_of(devices)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    missing = ~present[:, None]
    x_there, y_there = np.where(missing, np.nan, x), np.where(missing, np.inf, y)
    given = jax.device_put((x_there, y_there, weights, present, group), rows)
    with jax.set_mesh(mesh):
        results = jax.jit(values_and_gradients)(*given)
    for name, (losses, found, gradients) in results.items():
        wanted, retrieved, slopes = loops(name, x, y, weights, present, group)
        np.testing.assert_allclose(losses, wanted, 1e-9, 1e-12, err_msg=name)
        np.testing.assert_array_equal(found, retrieved)
        assert 0.1 < retrieved.mean() < 0.9
        for have, want in zip(gradients, slopes, strict=True):
            np.testing.assert_allclose(have, want, 1e-9, 1e-11, err_msg=name)


def test_a_large_scale_does_not_overflow_float32():
    """At CLIP's limit of 100 the exponentials of scores would."""
    x, y, *_ = (side.astype(np.float32) for side in rows_of())
    x[4:6] = x[3] + np.float32([[0.01], [-0.02]]) * x[:2]
    y[3:6] = x[3:6]  # scores of nearly 100 with each other

    @jax.jit
    def results(x, y):
        def total(x, y):
            one, two = clip(x, y, 100.0), siglip(x, y, 100.0, -10.0)
            return one.losses.sum(), two.losses

        return jax.value_and_grad(total, (0, 1), has_aux=True)(x, y)

    (value, sigmoid), gradients = results(x, y)
    u, v = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    scores = 100 * u.astype(np.float64) @ v.T
    shares = [np.diag(scores) - np.logaddexp.reduce(scores, axis) for axis in (0, 1)]
    np.testing.assert_allclose(value, -np.sum(shares) / 2, rtol=1e-4)
    signs = 2 * np.eye(len(x)) - 1
    expected = np.logaddexp(0, -signs * (scores - 10)).sum(1)
    np.testing.assert_allclose(sigmoid, expected, rtol=1e-4)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


class Model:
    """A model that returns the features it was given, with a critic."""

    def __init__(self, features=None, **numbers):
        self.features = features
        self.critic = CosineCritic(**numbers, rngs=nnx.Rngs(0))

    def __call__(self, batch, *, key, train):
        return dict(self.features)


def gradient_program(b, devices=2, d=16):
    """Both losses over pairs of views, with gradients: their text and their memory."""
    mesh = mesh_of(devices)
    rows = NamedSharding(mesh, PartitionSpec(None, "data"))
    both = (
        (Pairs(partial(clip, exchange="gather", tile=8)), Model()),
        (Pairs(partial(siglip, exchange="ring", tile=8)), Model(bias=-10.0)),
    )

    def total(z):
        mask = jnp.ones(b, bool)
        views = [
            crossmodal.View(n, x, None, mask, None)
            for n, x in zip("uvw", z, strict=True)
        ]
        parts = (pairs.of_views(model, views, jnp.arange(b)) for pairs, model in both)
        return sum(loss for loss, _ in parts)

    with jax.set_mesh(mesh):
        z = jax.ShapeDtypeStruct((3, b, d), jnp.float32, sharding=rows)
        compiled = jax.jit(jax.value_and_grad(total), out_shardings=(None, rows))
        compiled = compiled.lower(z).compile()
    return compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes


def test_compiled_program_is_linear_in_the_batch():
    """Optimised, it needs the same memory, but longer to compile."""
    text, memory = gradient_program(512)
    elements, array = largest_array(text)
    assert elements <= 3 * 512 * 16, array  # the rows of all views
    assert gradient_program(1024)[1] < 2.2 * memory


def test_every_two_views_of_a_batch_are_compared(x64):
    """Each pair of views over the samples that have both; a row stands twice."""
    features, present = batch_of(u=1, v=2)
    index = jnp.array([0, 1, 1, 2, 3, 4])
    batch = {"present": present, "index": index}
    study = {"present": present, "targets": {"study": index}, "index": jnp.arange(6)}
    model = Model(features, scale=SCALE, param_dtype=jnp.float64)

    @jax.jit
    def results():
        among = [None, ("v", "u"), ("v", "v")]
        found = [Pairs(clip, names)(model, None, batch, None) for names in among]
        options = {"pairs": Pairs(clip), "pairs_weight": 0.5, "study": "study"}
        added = CrossModal(**options)(model, None, study, jax.random.key(0))
        return found, added

    found, (whole, terms) = results()
    z, there = (
        np.concatenate([part[n] for n in "uv"], 1)
        for part in ({name: of.z for name, of in features.items()}, present)
    )
    expected = {}
    for a, c in [(0, 1), (0, 2), (1, 2)]:
        both = there[:, a] & there[:, c]
        parts = loops("clip", z[:, a], z[:, c], np.ones(6), both, np.array(index))
        expected[a, c] = [part.sum() / both.sum() for part in parts[:2]]
    among = [(0, 1), (0, 2), (1, 2)], [(0, 1), (0, 2)], [(1, 2)]
    for (loss, metrics), pairs in zip(found, among, strict=True):
        wanted = np.mean([expected[pair] for pair in pairs], 0)
        np.testing.assert_allclose([loss, metrics["retrieval"]], wanted, rtol=1e-9)
        np.testing.assert_allclose(metrics["scale"], SCALE)
    np.testing.assert_allclose(whole, 0.5 * found[0][0], rtol=1e-12)
    np.testing.assert_allclose(terms["pairs"], found[0][0], rtol=1e-12)


def test_what_cannot_be_compared_is_refused():
    features, present = batch_of(u=1, v=1)
    batch = {"present": present, "index": jnp.arange(6)}
    with pytest.raises(InputError, match="no learnt scale; set model.critic"):
        Pairs(clip)(lambda *_, **__: features, None, batch, None)
    with pytest.raises(InputError, match="compares u and text, but .* views u, v"):
        Pairs(clip, ("u", "text"))(Model(features), None, batch, None)
    with pytest.raises(InputError, match="pairs_weight is set, but objective.pairs"):
        CrossModal(pairs_weight=1.0)
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"\[b, d\] both, not \(4, 3\) and \(2, 3\)"):
        clip(x, x[:2], 1.0)
    for scale in (0, -1.0, np.array(-1.0), jnp.array(float("nan")), np.ones(4)):
        with pytest.raises(ValueError, match="scale"):
            siglip(x, x, scale, 0.0)
    with pytest.raises(ValueError, match="temperature=0.0: it must be more than 0"):
        cosine(x[None], x[None], temperature=jnp.zeros(()))


def test_a_critic_learns_its_numbers(x64):
    rng = np.random.default_rng(0)
    anchors, candidates = rng.normal(size=(3, 2, 5)), rng.normal(size=(4, 1, 5))
    critic = CosineCritic(scale=4.0, bias=-2.0, param_dtype=jnp.float64, rngs=None)
    lengths = [np.linalg.norm(v, axis=-1) for v in (anchors, candidates)]
    cosines = np.einsum("aqd,cpd->acpq", anchors, candidates)
    cosines /= np.einsum("aq,cp->acpq", *lengths)
    scores = jax.jit(critic.__call__)(anchors, candidates)
    np.testing.assert_allclose(scores, 4 * cosines - 2)
    made = Towers({}, critic=partial(CosineCritic, bias=0.0), rngs=nnx.Rngs(0))
    params = split_module(made).params["critic"]
    assert set(params) == {"log_scale", "bias"}
    np.testing.assert_allclose(np.exp(params["log_scale"]), 1 / 0.07)

    limited = split_module(CosineCritic(rngs=None))

    @jax.jit
    @jax.value_and_grad
    def scale(log_scale, sign):
        critic = merge_module(limited.graph, {"log_scale": log_scale}, {})
        return sign * critic.numbers()["scale"]

    for sign in (1.0, -1.0):
        np.testing.assert_allclose(scale(np.log(99.0), sign), [99 * sign] * 2)
        # Beyond the limit a gradient counts only if a step against it leads back.
        expected = [100 * sign, 100 * (sign > 0)]
        np.testing.assert_allclose(scale(np.log(110.0), sign), expected)


@pytest.mark.parametrize(
    ("argument", "loss", "numbers"),
    [
        ("method=siglip", siglip, {"scale": 10.0, "bias": -10.0}),
        ("method=clip,temperature=learnt", clip, {"scale": 1 / 0.07}),
    ],
)
def test_the_emoji_recipe_learns_a_scale(argument, loss, numbers):
    config = load_config(f"configs/crossmodal_emoji.py:{argument},weight=0.5")
    objective = build(config.objective)
    assert objective.pairs.loss.func is loss and objective.pairs_weight == 0.5
    assert not any(objective.terms.values()) and objective.tasks
    critic = build(config.model.critic)(rngs=nnx.Rngs(0))
    assert critic.numbers() == pytest.approx(numbers)
    assert critic.most == (None if loss is siglip else 100.0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("method=siglp", "did you mean 'siglip'"),
        ("method=cmim,temperature=learnt", "learnt with method=clip"),
        ("method=clip,temperature=warm", "temperature=warm"),
    ],
)
def test_the_emoji_recipe_refuses_what_it_has_not(argument, message):
    with pytest.raises(InputError, match=message):
        load_config(f"configs/crossmodal_emoji.py:{argument}")
