"""Text encoders ignore padding, and predictions ignore missing views."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.nn.fusion import LateFusion
from polyview.nn.heads import ConcatenatedCritic, Linear, MutualInformationHead
from polyview.nn.text import ConvText, TextTransformer, TokenSet
from polyview.nn.towers import Tower

SMALL = {"vocabulary": 30, "width": 8, "features": 12}
ENCODERS = {
    "set": partial(TokenSet, **SMALL),
    "conv": partial(ConvText, **SMALL),
    "transformer": partial(TextTransformer, **SMALL, length=16, heads=2),
}


def tokens(n=3, words=5, length=9, seed=0):
    numbers = np.random.default_rng(seed).integers(1, 30, (n, words)).astype(np.int32)
    return jnp.asarray(np.pad(numbers, ((0, 0), (0, length - words))))


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_does_not_change_features(name):
    encoder = ENCODERS[name](rngs=nnx.Rngs(0))
    h, local, real = encoder(tokens(length=8), train=True)
    longer, more, really = encoder(tokens(length=16), train=True)
    np.testing.assert_allclose(longer, h, atol=1e-6)
    count = real.shape[1]
    np.testing.assert_array_equal(really[:, :count], real)
    assert not really[:, count:].any()
    np.testing.assert_allclose(
        np.where(real[..., None], more[:, :count], 0),
        np.where(real[..., None], local, 0),
        atol=1e-6,
    )
    other, *_ = encoder(tokens(length=8, seed=1), train=True)
    assert abs(np.array(other - h)).max() > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_a_row_of_only_padding_has_finite_features_and_gradient(name):
    graph, params = nnx.split(ENCODERS[name](rngs=nnx.Rngs(0)))

    def loss(params):
        h, local, real = nnx.merge(graph, params)(tokens().at[1].set(0), train=True)
        assert real.shape == local.shape[:2]
        return (h**2).sum() + jnp.where(real[..., None], local, 0).sum()

    for leaf in jax.tree.leaves(jax.grad(loss)(params)):
        assert np.isfinite(leaf).all()


def test_word_order_matters_except_to_the_set_encoder():
    x = tokens(words=6, length=6)
    for name, make in ENCODERS.items():
        encoder = make(rngs=nnx.Rngs(0))
        h, turned = (encoder(t, train=False)[0] for t in (x, x[:, ::-1]))
        same = abs(np.array(h - turned)).max() < 1e-5
        assert same == (name == "set"), name


def test_a_strided_window_is_real_where_it_holds_a_word():
    encoder = ConvText(**SMALL, strides=(2, 2), rngs=nnx.Rngs(0))
    _, local, real = encoder(tokens(words=5, length=12), train=False)
    assert local.shape == (3, 3, 8)
    np.testing.assert_array_equal(real[0], [True, True, False])


def test_tokens_must_be_integers():
    with pytest.raises(ValueError, match="not integers"):
        ENCODERS["set"](rngs=nnx.Rngs(0))(tokens().astype(float), train=False)


def fused(**changes):
    head = partial(MutualInformationHead, out=5)

    def tower(name):
        return partial(Tower, encoder=ENCODERS[name], projector=head, local=head)

    options = {
        "towers": {"a": tower("set"), "b": tower("conv")},
        "heads": {"y": partial(Linear, out=3)},
        "alone": True,
    }
    module = LateFusion(**options | changes, rngs=nnx.Rngs(0))
    weights = module.heads["y"].linear.kernel  # initialised to zero
    weights[...] = jax.random.normal(jax.random.key(1), weights.shape)
    return module


def batch(**present):
    views = {"a": tokens()[:, None], "b": tokens(seed=2)[:, None]}
    masks = {name: jnp.asarray(mask)[:, None] for name, mask in present.items()}
    return {"views": views, "present": masks, "index": jnp.arange(3)}


def test_prediction_uses_the_mean_of_present_views():
    module = fused()
    whole = module(batch(a=[True] * 3, b=[True] * 3), key=None, train=False)
    some = module(
        batch(a=[True, True, False], b=[True, False, False]), key=None, train=False
    )
    a, b = (np.array(whole[name].h[:, 0]) for name in "ab")
    head = np.array(module.heads["y"].linear.kernel[...])
    expected = np.stack([(a[0] + b[0]) / 2, a[1], np.zeros(12)]) @ head
    np.testing.assert_allclose(some["y"].z[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(whole["y"].z[:, 1], a @ head, atol=1e-5)
    np.testing.assert_allclose(whole["y"].z[:, 2], b @ head, atol=1e-5)
    assert whole["a"].z.shape == (3, 1, 5)
    assert whole["a"].local.shape == (3, 1, 9, 5) and whole["a"].real.shape == (3, 1, 9)


def test_kept_mask_restricts_the_prediction_only():
    module = fused(alone=False)
    full = batch(a=[True] * 3, b=[True] * 3)
    kept = full | {"kept": {"a": jnp.ones((3, 1), bool), "b": jnp.zeros((3, 1), bool)}}
    result = module(kept, key=None, train=False)
    alone = module(batch(a=[True] * 3, b=[False] * 3), key=None, train=False)
    np.testing.assert_array_equal(result["y"].z, alone["y"].z)
    np.testing.assert_array_equal(
        result["b"].z, module(full, key=None, train=False)["b"].z
    )


def test_many_masks_predict_as_each_mask_alone():
    module, full = fused(), batch(a=[True] * 3, b=[True, True, False])
    choices = np.array([[True, False], [False, True], [True, True]])
    many = {
        n: np.broadcast_to(choices[:, i, None], (3, 3, 1)) for i, n in enumerate("ab")
    }
    together = module(full | {"kept": many}, key=None, train=False)["y"].z
    assert together.shape == (3, 5, 3)  # and each view alone
    for number in range(3):
        kept = {name: mask[:, number] for name, mask in many.items()}
        alone = module(full | {"kept": kept}, key=None, train=False)["y"].z
        np.testing.assert_allclose(together[:, number], alone[:, 0], atol=1e-6)
        np.testing.assert_allclose(together[:, 3:], alone[:, 1:], atol=1e-6)


def test_contents_of_a_missing_view_are_ignored():
    module = fused()
    given = batch(a=[True, False, True], b=[True, True, False])
    garbage = {
        **given,
        "views": {n: v.at[...].set(v) for n, v in given["views"].items()},
    }
    garbage["views"]["a"] = garbage["views"]["a"].at[1].set(29)
    garbage["views"]["b"] = garbage["views"]["b"].at[2].set(7)
    for name, expected in module(given, key=None, train=True).items():
        other = module(garbage, key=None, train=True)[name]
        np.testing.assert_array_equal(other.z, expected.z)


def test_unequal_widths_and_duplicate_names_are_refused():
    with pytest.raises(ValueError, match="differ"):
        wide = partial(TokenSet, vocabulary=30, width=8, features=13)
        head = partial(MutualInformationHead, out=5)
        other = partial(Tower, encoder=wide, projector=head)
        tower = partial(Tower, encoder=ENCODERS["set"], projector=head)
        fused(towers={"a": tower, "b": other})
    with pytest.raises(ValueError, match="a modality and a target"):
        fused(heads={"a": partial(Linear, out=3), "y": partial(Linear, out=3)})


def test_the_critic_is_an_mlp_on_both_vectors():
    critic = ConcatenatedCritic(features=4, hidden=6, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    anchors, candidates = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 1, 4))
    scores = critic(jnp.asarray(anchors), jnp.asarray(candidates))
    first = np.concatenate([critic.anchor.kernel[...], critic.candidate.kernel[...]])
    for a, c, p, q in np.ndindex(2, 5, 1, 3):
        both = np.concatenate([anchors[a, q], candidates[c, p]])
        hidden = np.maximum(both @ first + np.array(critic.anchor.bias[...]), 0)
        expected = hidden @ np.array(critic.last.kernel[...])[:, 0]
        np.testing.assert_allclose(scores[a, c, p, q], expected, rtol=1e-4, atol=1e-5)
