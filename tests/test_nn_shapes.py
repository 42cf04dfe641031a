"""Encoders have the published sizes and their features the documented shapes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.nn.heads import Identity, Projector
from polyview.nn.resnet import Basic, Bottleneck, resnet18, resnet50, resnet_tiny
from polyview.nn.vit import sincos, vit_b, vit_s


def parameters(make) -> int:
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize(
    "make, count",
    [
        (resnet18, 11_176_512),  # torchvision, less the classifier
        (resnet50, 23_508_032),
        (vit_s, 21_665_664),  # timm vit_small_patch16_224
        (vit_b, 85_798_656),  # timm vit_base_patch16_224
        (partial(vit_s, position="sincos"), 21_665_664 - 197 * 384),
        (partial(vit_s, pool="mean"), 21_665_664 - 2 * 384),
        # SimCLR: no bias before a BatchNorm, and none in the last BatchNorm.
        (partial(Projector, 2048), 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128),
        (partial(Projector, 8, hidden=(), out=3, last_norm=False), 8 * 3 + 3),
        (partial(Identity, 8), 0),
    ],
)
def test_parameter_counts_match_the_published_ones(make, count):
    assert parameters(make) == count


@pytest.mark.parametrize(
    "make, image, positions",
    [
        (partial(resnet18, stem="imagenet"), (64, 64, 3), 4),
        (partial(resnet18, stem="small"), (32, 32, 3), 16),
        (partial(resnet50, stem="imagenet"), (33, 33, 3), 4),
        (resnet_tiny, (28, 28, 1), 16),
        (partial(vit_s, image=32, patch=8), (32, 32, 3), 16),
        (partial(vit_s, image=32, patch=8, pool="mean"), (32, 32, 3), 16),
    ],
)
def test_features_have_the_documented_shapes(make, image, positions):
    def features():
        module = make(rngs=nnx.Rngs(0))
        h, local = module(jnp.zeros((2, *image)), train=True)
        return h, local, jnp.zeros(module.features)

    h, local, reference = jax.eval_shape(features)
    assert h.shape == (2, *reference.shape)
    assert local.shape == (2, positions, *reference.shape)


def test_strided_convolutions_pad_like_torch():
    """The asymmetric 'SAME' padding would shift the window by a pixel."""
    conv = resnet_tiny(width=1, rngs=nnx.Rngs(0)).blocks[1].conv1
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 1)).astype(np.float32)
    padded = np.pad(x[0, :, :, 0], 1)
    kernel = np.asarray(conv.kernel[...])[:, :, 0]
    expected = [
        [
            np.tensordot(padded[i : i + 3, j : j + 3], kernel, ((0, 1), (0, 1)))
            for j in (0, 2, 4)
        ]
        for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(conv(x)[0], expected, atol=1e-5)


def test_zero_scale_makes_a_fresh_block_its_shortcut():
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 8))
    for block, width in ((Basic, 8), (Bottleneck, 2)):
        block = block(8, width, 1, zero_scale=True, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(block(x, train=True), x)


def test_attention_equals_its_equation():
    vit = vit_s(image=8, patch=4, depth=1, width=12, heads=3, rngs=nnx.Rngs(0))
    block = vit.blocks[0]
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, 12)))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + 1e-6
        )

    q, k, v = np.split(norm(x) @ np.asarray(block.qkv.kernel[...]), 3, axis=-1)
    heads = []
    for part in np.split(np.arange(12), 3):
        score = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(4)
        weight = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
        heads.append(weight @ v[..., part])
    y = x + np.concatenate(heads, -1) @ np.asarray(block.out.kernel[...])
    hidden = norm(y) @ np.asarray(block.up.kernel[...])
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
    expected = y + hidden @ np.asarray(block.down.kernel[...])
    np.testing.assert_allclose(block(x), expected, atol=2e-5)


def test_patches_and_positions_are_in_row_major_order():
    """Patch (row, column) and its position have the index row * side + column."""
    vit = vit_s(
        image=8, patch=4, depth=0, width=16, heads=1, pool="mean", rngs=nnx.Rngs(0)
    )
    vit.position[...] = jnp.zeros_like(vit.position[...])
    x = jnp.zeros((1, 8, 8, 3)).at[:, 4:, :4].set(1)
    _, local = vit(x, train=False)
    np.testing.assert_array_equal(jnp.abs(local[0]).sum(-1) > 0, [0, 0, 1, 0])
    position = sincos(2, 16)[0]
    np.testing.assert_allclose(position[2, 8:], position[1, :8], atol=1e-7)
    np.testing.assert_allclose(position[2, :8], position[0, :8], atol=1e-7)


@pytest.mark.parametrize("make", [resnet_tiny, partial(vit_s, image=32, depth=1)])
@pytest.mark.parametrize(
    "images", [((32, 32, 3), jnp.float32), ((2, 32, 32, 3), jnp.uint8)], ids=str
)
def test_one_image_or_bytes_are_refused(make, images):
    """[h, w, c] would be taken for h images, and bytes for numbers up to 255."""

    def features():
        return make(in_channels=3, rngs=nnx.Rngs(0))(jnp.zeros(*images), train=False)

    with pytest.raises(ValueError, match=r"float\[n, h, w, c\], not"):
        nnx.eval_shape(features)


def test_unknown_options_are_errors():
    with pytest.raises(ValueError, match="stem"):
        resnet18(stem="cifar", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="pool"):
        vit_s(pool="max", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="patch"):
        vit_s(image=30, rngs=nnx.Rngs(0))
