"""A U-Net reads any subset of the sequences and ignores missing ones."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.nn.fusion import readable
from polyview.nn.unet import Decoder, EarlyFusion, Encoder, Hemis, moments

SEQUENCES = ("t1", "t1ce", "t2", "flair")
SUBSETS = np.array(list(product([False, True], repeat=4)))  # the first is empty
FORM = {"sequences": SEQUENCES, "classes": 4, "widths": (4, 6)}
MODELS = [partial(Hemis, units=5), EarlyFusion]


def filled(build):
    """A module with parameters from numpy: initialisers compile once per shape."""
    graph, state = nnx.split(nnx.eval_shape(build))
    rng = np.random.default_rng(0)

    def fill(x):
        mean, deviation = 1, 0.1
        if x.ndim > 1:
            mean, deviation = 0, np.prod(x.shape[:-1]) ** -0.5
        return jnp.asarray(rng.normal(mean, deviation, x.shape), x.dtype)

    return nnx.merge(graph, jax.tree.map(fill, state))


def make(model, **options):
    return filled(lambda: model(**FORM | options, rngs=nnx.Rngs(0)))


@partial(jax.jit, static_argnames="graph")
def call(graph, state, batch):
    return nnx.merge(graph, state, copy=True)(batch, key=None, train=True)


def run(module, batch):
    return call(*nnx.split(module), batch)


def by_sequence(present):
    return {s: present[:, i : i + 1] for i, s in enumerate(SEQUENCES)}


def scans(present):
    """A batch row for each row of `present: bool[b, 4]`; every present view is kept."""
    rng = np.random.default_rng(0)
    views = rng.normal(size=(4, len(present), 1, 8, 12, 1)).astype(np.float32)
    return {
        "views": dict(zip(SEQUENCES, views, strict=True)),
        "present": by_sequence(present),
        "kept": by_sequence(present),
    }


@pytest.mark.parametrize("model", MODELS)
def test_every_subset_gives_finite_features(model):
    """Includes the empty one and bfloat16; features are always float32."""
    results = []
    for dtype in (jnp.float32, jnp.bfloat16):
        features = run(make(model, dtype=dtype), scans(SUBSETS))
        leaves = jax.tree.leaves(features)
        assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in leaves)
        mask = features.pop("mask")
        assert mask.z.shape == (16, 1, 8, 12, 4) and mask.local is None
        assert len(np.unique(np.asarray(mask.z).reshape(16, -1), axis=0)) == 16
        if model is EarlyFusion:
            assert mask.h.shape == (16, 1, 6) and features == {}
        else:
            assert mask.h.shape == (16, 1, 2 * 6)
            assert features.keys() == set(SEQUENCES)
        for one in features.values():
            assert one.z.shape == (16, 1, 5) and one.h.shape == (16, 1, 6)
            assert one.local.shape == (16, 1, 4 * 6, 5)
        results.append(mask.z)
    difference = jnp.linalg.norm(results[0] - results[1])
    assert 0 < difference < 0.05 * jnp.linalg.norm(results[0])


@pytest.mark.parametrize("model", MODELS)
def test_contents_of_a_missing_sequence_are_ignored(model):
    """Features and gradients do not change, and its own gradient is zero."""
    batch = scans(SUBSETS)
    graph, state = nnx.split(make(model))

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def step(state, views):
        features = call(graph, state, batch | {"views": views})
        total = (features["mask"].z ** 3).mean()
        for s in features.keys() - {"mask"}:
            # Like an objective, ignore missing sequences.
            present = batch["present"][s][..., None]
            total += jnp.where(present, features[s].z ** 3, 0).mean()
            total += jnp.where(present[..., None], features[s].local ** 3, 0).mean()
        return total, features

    first = step(state, batch["views"])
    for fill in (0, 1e4, np.nan):
        other = {
            s: np.where(batch["present"][s][..., None, None, None], v, np.float32(fill))
            for s, v in batch["views"].items()
        }
        jax.tree.map(np.testing.assert_array_equal, first, step(state, other))
    (value, _), (_, by_views) = first
    assert np.isfinite(value)
    for s in SEQUENCES:
        size = np.abs(by_views[s]).max((1, 2, 3, 4))
        present = batch["present"][s][:, 0]
        assert (size[present] > 0).all() and (size[~present] == 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_fusion_reads_kept_and_encoders_read_all_present_sequences(model):
    present = np.ones((16, 4), bool)
    present[3, 0] = False
    batch, module = scans(present), make(model)
    kept = by_sequence(SUBSETS) | {"t1": np.ones((16, 1), bool)}
    # A missing sequence cannot be kept.
    assert not readable(batch | {"kept": kept}, ["t1"])[3].any()
    del (absent := dict(batch))["kept"]
    np.testing.assert_array_equal(
        readable(absent, ["t1"])[:, 0], batch["present"]["t1"]
    )

    both = {s: kept[s] & batch["present"][s] for s in SEQUENCES}
    whole = run(module, batch)
    dropped = run(module, batch | {"kept": kept})
    alone = run(module, batch | {"present": both, "kept": both})
    np.testing.assert_array_equal(dropped["mask"].z, alone["mask"].z)
    assert not np.allclose(dropped["mask"].z, whole["mask"].z)
    for s in whole.keys() - {"mask"}:
        jax.tree.map(np.testing.assert_array_equal, dropped[s], whole[s])
        assert not np.allclose(dropped[s].z, alone[s].z) or s == "t1"


@pytest.mark.parametrize("model", MODELS)
def test_many_masks_predict_as_each_mask_alone(model):
    batch, module = scans(np.ones((3, 4), bool)), make(model)
    many = {
        s: np.broadcast_to(SUBSETS[:, i : i + 1], (3, 16, 1))
        for i, s in enumerate(SEQUENCES)
    }
    together = run(module, batch | {"kept": many})["mask"]
    for number in (0, 5, 15):
        kept = {s: many[s][:, number] for s in SEQUENCES}
        alone = run(module, batch | {"kept": kept})["mask"]
        np.testing.assert_allclose(together.z[:, number], alone.z[:, 0], atol=1e-5)
        np.testing.assert_allclose(together.h[:, number], alone.h[:, 0], atol=1e-5)


def test_moments_use_only_present_sequences():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4, 3, 2, 5)).astype(np.float32)
    masked = np.where(SUBSETS[..., None, None, None], x, np.float32(np.nan))
    result = np.asarray(moments(masked, SUBSETS))
    assert result.shape == (16, 3, 2, 10)
    for row, of_row, present in zip(result, x, SUBSETS, strict=True):
        some, count = of_row[present], present.sum()
        mean = some.mean(0) if count else np.zeros((3, 2, 5))
        variance = some.var(0, ddof=1) if count > 1 else np.zeros((3, 2, 5))
        np.testing.assert_allclose(row[..., :5], mean, atol=1e-6)
        np.testing.assert_allclose(row[..., 5:], variance, atol=1e-5)
    order = np.array([2, 0, 3, 1])
    turned = moments(x[:, order], SUBSETS[:, order])
    np.testing.assert_allclose(turned, result, atol=1e-6)


def test_fusion_ignores_the_order_of_the_sequences():
    """Each keeps its encoder; the order of channels would matter."""
    module, batch = make(Hemis), scans(SUBSETS)
    turned = make(Hemis, sequences=SEQUENCES[::-1])
    nnx.update(turned, nnx.state(module))
    np.testing.assert_allclose(
        run(turned, batch)["mask"].z, run(module, batch)["mask"].z, atol=1e-4
    )


def test_each_sequence_has_its_own_encoder():
    """One image gives different features for each sequence it is given as."""
    batch = scans(np.eye(16, 4, dtype=bool))
    one = batch["views"]["t1"][:1].repeat(16, 0)
    z = run(make(Hemis), batch | {"views": dict.fromkeys(SEQUENCES, one)})["mask"].z
    assert not any(np.allclose(z[i], z[j]) for i in range(4) for j in range(i))


def test_decoder_uses_every_level():
    widths = (4, 6, 8)
    encoder = filled(lambda: Encoder(2, widths, rngs=nnx.Rngs(0)))
    shapes = nnx.eval_shape(encoder, jnp.zeros((1, 8, 12, 2)))
    assert [x.shape for x in shapes] == [(1, 8, 12, 4), (1, 4, 6, 6), (1, 2, 3, 8)]
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=x.shape).astype(np.float32) for x in shapes]
    decode = nnx.jit(filled(lambda: Decoder(widths, widths, 3, rngs=nnx.Rngs(0))))
    whole = decode(maps)
    assert whole.shape == (1, 8, 12, 3)
    for level in range(3):
        without = [x * np.float32(i != level) for i, x in enumerate(maps)]
        assert not np.allclose(decode(without), whole, atol=1e-3)


def test_invalid_options_and_shapes_are_errors():
    for options, says in (
        ({"sequences": ()}, "empty"),
        ({"sequences": ("t1", "t1")}, "twice"),
        ({"task": "t2"}, "'t2'"),
        ({"widths": (4,)}, "two levels"),
    ):
        for model in (Hemis, EarlyFusion):
            with pytest.raises(ValueError, match=says):
                make(model, **options)
    batch = scans(SUBSETS)
    odd = {s: v[:, :, :7] for s, v in batch["views"].items()}
    with pytest.raises(ValueError, match="multiples of 2"):
        make(Hemis)(batch | {"views": odd}, key=None, train=False)
    two = {s: v.repeat(2, 1) for s, v in batch["views"].items()}
    with pytest.raises(ValueError, match="not 2"):
        make(EarlyFusion)(batch | {"views": two}, key=None, train=False)
