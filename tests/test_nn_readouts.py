"""A small encoder, its mirror image, and what is read from one tower."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.config import parts
from polyview.config.spec import build
from polyview.errors import InputError
from polyview.nn.decoder import Decoder, Doubled
from polyview.nn.heads import Identity, Linear, Projector
from polyview.nn.readouts import Readouts
from polyview.nn.small_conv import SmallConv
from polyview.nn.towers import Tower
from polyview.objectives import locality
from polyview.objectives.locality import Locality, WithLocal
from polyview.objectives.reconstruction import AAE, VAE, Autoencoder
from polyview.objectives.supervised import Attributes, Classification
from polyview.training.trainer import healths

SMALL = partial(SmallConv, size=8, widths=(4, 6, 8), features=5)
WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def made(**changes):
    projector = partial(Projector, hidden=(7,), out=3, norm="none")
    tower = {"encoder": SMALL, "projector": projector, "local": True}
    options = {
        "towers": {"image": partial(Tower, **tower, mean=0.3, std=0.5)},
        "local_projector": projector,
        "heads": {"label": partial(Linear, out=4), "v": partial(Linear, out=5)},
        "local_heads": {"label": partial(Linear, out=4)},
        "decoder": partial(Decoder, shape=(8, 8, 1), widths=(6, 4)),
        "discriminator": partial(Linear, out=1),
    }
    options |= changes
    return Readouts(**options, rngs=nnx.Rngs(0))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "views": {"image": rng.integers(256, size=(4, 2, 8, 8, 1)).astype(np.uint8)},
        "present": {"image": np.array([[1, 1], [1, 0], [0, 0], [1, 1]], bool)},
        "targets": {
            "label": np.array([0, 1, 0, 3]),
            "v": rng.integers(2, size=(4, 5)),
        },
        "index": np.array([3, 1, 41, 5]),
    }


@partial(jax.jit, static_argnames=("graph", "train"))
def run(graph, state, batch, key, train):
    return nnx.merge(graph, state, copy=True)(batch, key=key, train=train)


def slow_conv(x, kernel, stride):
    """A convolution of x[h, w, c] with a margin of one pixel, output by output."""
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    size = kernel.shape[0]
    outputs = [(side - size) // stride + 1 for side in x.shape[:2]]
    y = np.zeros((*outputs, kernel.shape[-1]))
    for i, j in np.ndindex(*outputs):
        patch = x[i * stride : i * stride + size, j * stride : j * stride + size]
        y[i, j] = np.einsum("abc,abcd->d", patch, kernel)
    return y


@pytest.mark.parametrize("size", [8, 9])
def test_small_conv_matches_its_definition(size, x64):
    encoder = SMALL(size=size, in_channels=2, **WIDE, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, size, size, 2))
    h, local = jax.jit(partial(encoder, train=True))(x)
    for row, image in enumerate(x):
        maps = []
        for conv, norm in zip(encoder.layers, encoder.norms, strict=True):
            image = slow_conv(image, np.array(conv.kernel[...]), 2)
            image -= image.mean(-1, keepdims=True)
            image /= np.sqrt(image.var(-1, keepdims=True) + norm.epsilon)
            image = np.maximum(image, 0)
            maps.append(image)
        expected = image.ravel() @ np.array(encoder.dense.kernel[...])
        np.testing.assert_allclose(h[row], expected, rtol=1e-9)
        np.testing.assert_allclose(local[row], maps[1].reshape(-1, 6), rtol=1e-9)
    assert encoder.features == 5 and encoder.local_features == 6


def test_small_conv_has_the_size_it_says():
    module = nnx.eval_shape(lambda: SmallConv(size=40, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 359_888
    x = jax.ShapeDtypeStruct((2, 40, 40, 1), jnp.float32)
    h, local = jax.eval_shape(lambda m, x: m(x, train=True), module, x)
    assert h.shape == (2, 128) and local.shape == (2, 100, 48)


def test_a_position_of_the_local_map_sees_8_x_8_pixels():
    encoder = SmallConv(size=24, widths=(4, 6, 8), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 24, 24, 1))
    loss = lambda x: encoder(x, train=True)[1][0, 2 * 6 + 3].sum()  # noqa: E731
    seen = jax.jit(jax.grad(loss))(x)
    rows, columns = np.nonzero(np.array(seen[0, :, :, 0]))
    assert np.ptp(rows) == np.ptp(columns) == 7


def test_doubled_is_a_transposed_convolution(x64):
    """Each pixel of the input stamps 4x4 pixels of the output, two apart."""
    layer = Doubled(3, 2, **WIDE, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.array([0.5, -1.0])
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 3))
    taps = np.array(layer.conv.kernel[...]).reshape(2, 2, 3, 2, 2, 2)
    stamp = np.zeros((4, 4, 3, 2))
    for s, t, i, j in np.ndindex(2, 2, 2, 2):  # tap (s, t), pixel (i, j) of its block
        stamp[2 * (1 - s) + i, 2 * (1 - t) + j] = taps[s, t, :, i, j]
    expected = np.zeros((2, 8, 10, 2))  # with a margin of one pixel
    for n, i, j in np.ndindex(*x.shape[:3]):
        own = np.einsum("c,abcd->abd", x[n, i, j], stamp)
        expected[n, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += own
    expected = expected[:, 1:-1, 1:-1] + [0.5, -1.0]
    np.testing.assert_allclose(jax.jit(layer)(x), expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(40, 40, 1), (28, 33, 3), (8, 8, 1), (1, 5, 2)])
def test_a_decoder_makes_images_of_its_shape(shape):
    def images():
        decoder = Decoder(5, shape=shape, rngs=nnx.Rngs(0))
        return decoder(jnp.zeros((2, 5)), train=True)

    assert jax.eval_shape(images).shape == (2, *shape)


def test_readouts_keep_rows_and_views(batch):
    module = made()
    # Linear heads begin at zero.
    for head in (*module.heads.values(), *module.local_heads.values()):
        kernel = head.linear.kernel
        kernel[...] = jnp.arange(kernel.size, dtype=float).reshape(kernel.shape) / 10

    @jax.jit
    def whole(batch):
        features = module(batch, key=None, train=False)
        h = features["image"].h
        return features, {
            "normalised": module.normalised(batch),
            "decoder": module.decode(h),
            "discriminator": module.discriminate(h),
        }

    @jax.jit
    def alone(view):
        """The parts of one view of one row."""
        x = (view[None].astype(float) / 255 - 0.3) / 0.5
        tower = module.towers["image"]
        h, raw = tower.encoder(x, train=False)
        return {
            "normalised": x,
            "h": h,
            "z": tower.projector(h, train=False),
            "local": module.local_projector(raw, train=False),
            "label": module.heads["label"](h, train=False),
            "local_label": module.local_heads["label"](raw, train=False),
            "decoder": module.decoder(h, train=False),
            "discriminator": module.discriminator(h, train=False)[:, 0],
        }

    features, decoded = whole(batch)
    assert set(features) == {"image", "label", "v", "local_label"}
    image = features["image"]
    found = decoded | {n: features[n].z for n in ("label", "local_label")}
    found |= {"h": image.h, "z": image.z, "local": image.local}
    assert image.h.shape == (4, 2, 5) and image.local.shape == (4, 2, 4, 3)
    for name, expected in alone(batch["views"]["image"][0, 1]).items():
        assert found[name].shape == (4, 2, *expected.shape[1:])
        np.testing.assert_allclose(
            found[name][0, 1], expected[0], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_what_a_missing_view_holds_does_not_matter(batch):
    graph, state = nnx.split(made())
    views = batch["views"]["image"] / np.float32(255)
    missing = ~batch["present"]["image"][..., None, None, None]
    results = []
    for content in (0.5, np.nan):
        given = {"image": np.where(missing, np.float32(content), views)}
        results.append(run(graph, state, batch | {"views": given}, None, train=False))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
    given = batch | {"views": {"image": np.where(missing, np.float32(np.nan), views)}}
    assert np.isfinite(made().normalised(given)).all()


def test_normalised_views_are_what_the_encoder_sees(batch):
    class Echo(nnx.Module):
        features = local_features = 128

        def __init__(self, *, rngs):
            pass

        def __call__(self, x, *, train, key=None):
            return x.reshape(len(x), -1), x.reshape(len(x), 1, -1)

    options = {"encoder": Echo, "projector": Identity, "local": True}
    tower = partial(Tower, **options, mean=(0.1, 0.4), std=(0.2, 2.0))
    module = made(towers={"image": tower})
    two = np.concatenate([batch["views"]["image"]] * 2, -1)
    for views in (two, two / np.float32(255)):
        given = batch | {"views": {"image": views}}
        h = module(given, key=None, train=False)["image"].h
        np.testing.assert_allclose(
            module.normalised(given).reshape(4, 2, -1), h, rtol=1e-6
        )


def test_a_model_without_parts_says_so(batch):
    bare = made(local_projector=None, decoder=None, discriminator=None)
    features = jax.eval_shape(lambda: bare(batch, key=None, train=False))
    assert features["image"].local is None
    h = jnp.zeros((4, 2, 5))
    with pytest.raises(InputError, match="set model.decoder"):
        bare.decode(h)
    with pytest.raises(InputError, match="set model.discriminator"):
        bare.discriminate(h)
    with pytest.raises(InputError, match="set its out to 1"):
        made(discriminator=partial(Linear, out=2)).discriminate(h)
    tower = partial(Tower, encoder=SMALL, projector=Identity)
    with pytest.raises(InputError, match="towers.image.local must be True"):
        made(towers={"image": tower})
    with pytest.raises(InputError, match=r"\['a', 'b'\]: name one tower"):
        made(towers=dict.fromkeys("ab", tower))
    for changes in ({"heads": {"image": Linear}}, {"heads": {"local_label": Linear}}):
        with pytest.raises(ValueError, match="names two"):
            made(**changes)
    with pytest.raises(ValueError, match="images are 9 x 8, but the encoder's size=8"):
        SMALL(rngs=nnx.Rngs(0))(jnp.zeros((1, 9, 8, 1)), train=True)
    with pytest.raises(ValueError, match="two or more"):
        SmallConv(size=8, widths=(4,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="height, width and channels"):
        Decoder(5, shape=(8, 8), rngs=nnx.Rngs(0))


LOCAL = {"label": locality.local_labels}
SUPCON = build(parts.contrastive("supcon_labels", temperature=0.1))
OBJECTIVES = {
    "DIM": Locality(),
    "AMDIM": Locality("other_views"),
    "CMDIM and labels": WithLocal(Locality("class"), LOCAL),
    "local labels": WithLocal(None, LOCAL),
    "labels": WithLocal(Classification(modality="label"), LOCAL),
    "attributes": Attributes(target="v"),
    "AE": Autoencoder(),
    "AE and labels": WithLocal(Autoencoder(), LOCAL),
    "SupCon and labels": WithLocal(SUPCON, LOCAL),
    "VAE": VAE(log_variance="v"),
    "AAE": AAE(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_reads_them(name, batch):
    def graded(batch, key):
        graph, params, rest = nnx.split(made(), nnx.Param, ...)

        def loss_of(params):
            module = nnx.merge(graph, params, rest, copy=True)
            loss, metrics = OBJECTIVES[name](module, None, batch, key)
            features = metrics.pop("features")
            return loss, metrics | healths(features)  # as the trainer logs them

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    (loss, metrics), _ = jax.eval_shape(graded, batch, jax.random.key(0))
    assert all(part.shape == () for part in (loss, *metrics.values()))
