"""A U-Net reads any subset of the sequences, and nothing of those that are missing."""

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
    """A module whose parameters are numpy's: initialisers compile for each shape."""
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
    """A row for each row of `present: bool[b, 4]`, all of what is there kept."""
    rng = np.random.default_rng(0)
    views = rng.normal(size=(4, len(present), 1, 8, 12, 1)).astype(np.float32)
    return {
        "views": dict(zip(SEQUENCES, views, strict=True)),
        "present": by_sequence(present),
        "kept": by_sequence(present),
    }


@pytest.mark.parametrize("model", MODELS)
def test_all_subsets_give_finite_features_of_their_shapes(model):
    """The empty one too; in bfloat16 as in float32, where features are float32."""
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
def test_what_stands_in_a_missing_sequence_changes_nothing(model):
    """Neither features nor gradients, and the gradient to it is zero."""
    batch = scans(SUBSETS)
    graph, state = nnx.split(make(model))

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def step(state, views):
        features = call(graph, state, batch | {"views": views})
        total = (features["mask"].z ** 3).mean()
        for s in features.keys() - {"mask"}:
            # As an objective does it: a missing sequence has no part.
            there = batch["present"][s][..., None]
            total += jnp.where(there, features[s].z ** 3, 0).mean()
            total += jnp.where(there[..., None], features[s].local ** 3, 0).mean()
        return total, features

    first = step(state, batch["views"])
    for what in (0, 1e4, np.nan):
        other = {
            s: np.where(batch["present"][s][..., None, None, None], v, np.float32(what))
            for s, v in batch["views"].items()
        }
        jax.tree.map(np.testing.assert_array_equal, first, step(state, other))
    (value, _), (_, by_views) = first
    assert np.isfinite(value)
    for s in SEQUENCES:
        size = np.abs(by_views[s]).max((1, 2, 3, 4))
        there = batch["present"][s][:, 0]
        assert (size[there] > 0).all() and (size[~there] == 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_the_fusion_reads_what_is_kept_and_the_encoders_all_that_is_there(model):
    there = np.ones((16, 4), bool)
    there[3, 0] = False
    batch, module = scans(there), make(model)
    kept = by_sequence(SUBSETS) | {"t1": np.ones((16, 1), bool)}
    # It is not there to be kept.
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
def test_many_predictions_are_those_of_one_choice_each(model):
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


def test_moments_are_those_of_the_sequences_that_are_there():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4, 3, 2, 5)).astype(np.float32)
    masked = np.where(SUBSETS[..., None, None, None], x, np.float32(np.nan))
    found = np.asarray(moments(masked, SUBSETS))
    assert found.shape == (16, 3, 2, 10)
    for row, of_row, there in zip(found, x, SUBSETS, strict=True):
        some, count = of_row[there], there.sum()
        mean = some.mean(0) if count else np.zeros((3, 2, 5))
        variance = some.var(0, ddof=1) if count > 1 else np.zeros((3, 2, 5))
        np.testing.assert_allclose(row[..., :5], mean, atol=1e-6)
        np.testing.assert_allclose(row[..., 5:], variance, atol=1e-5)
    order = np.array([2, 0, 3, 1])
    turned = moments(x[:, order], SUBSETS[:, order])
    np.testing.assert_allclose(turned, found, atol=1e-6)


def test_the_order_in_which_sequences_are_listed_is_nothing_to_the_fusion():
    """With the encoders carried along; to channels it would be."""
    module, batch = make(Hemis), scans(SUBSETS)
    turned = make(Hemis, sequences=SEQUENCES[::-1])
    nnx.update(turned, nnx.state(module))
    np.testing.assert_allclose(
        run(turned, batch)["mask"].z, run(module, batch)["mask"].z, atol=1e-4
    )


def test_each_sequence_has_its_own_encoder():
    """One image, given as each sequence in turn, is not the same image."""
    batch = scans(np.eye(16, 4, dtype=bool))
    one = batch["views"]["t1"][:1].repeat(16, 0)
    z = run(make(Hemis), batch | {"views": dict.fromkeys(SEQUENCES, one)})["mask"].z
    assert not any(np.allclose(z[i], z[j]) for i in range(4) for j in range(i))


def test_each_level_reaches_the_decoder():
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


def test_forms_that_cannot_be_are_errors():
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
