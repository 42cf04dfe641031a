"""Photometry matches torchvision per view, independently of the rest of the batch."""

import colorsys
import itertools
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from polyview.errors import InputError
from polyview.nn import photometry
from polyview.nn.photometry import Photometry


@pytest.fixture
def images():
    return np.random.default_rng(0).random((24, 2, 24, 22, 3))


def grey(image):
    return image @ [0.2989, 0.587, 0.114]


def brightness(image, f):
    return np.clip(f * image, 0, 1)


def contrast(image, f):
    return np.clip(f * image + (1 - f) * grey(image).mean(), 0, 1)


def saturation(image, f):
    return np.clip(f * image + (1 - f) * grey(image)[..., None], 0, 1)


def hue(image, turn):
    out = np.empty_like(image)
    for at in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*image[at])
        out[at] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    return out


def blur(image, sigma, radius):
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    pad = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    out = np.zeros_like(image)
    for i, j in np.ndindex(kernel.shape):
        out += kernel[i, j] * pad[i : i + image.shape[0], j : j + image.shape[1]]
    return out


def planes(images):
    return jnp.moveaxis(jnp.asarray(images), -1, 0)


def test_jitter_applies_its_operations_in_every_order(x64, images):
    orders = list(itertools.permutations(range(4)))
    assert len(orders) == len(images)
    rng = np.random.default_rng(1)
    factor, turn = rng.uniform(0.2, 1.8, (24, 3)), rng.uniform(-0.2, 0.2, 24)
    result = photometry.jitter(
        planes(images[:, 0]), jnp.argsort(jnp.array(orders), 1), factor, jnp.array(turn)
    )
    for i, order in enumerate(orders):
        operations = [
            partial(brightness, f=factor[i, 0]),
            partial(contrast, f=factor[i, 1]),
            partial(saturation, f=factor[i, 2]),
            partial(hue, turn=turn[i]),
        ]
        expected = images[i, 0]
        for operation in order:
            expected = operations[operation](expected)
        np.testing.assert_allclose(
            np.moveaxis(result[:, i], 0, -1), expected, atol=1e-9
        )


def test_blur_is_a_gaussian_with_reflected_borders(x64, images):
    sigma = np.linspace(0, 2, 24)
    result = photometry.blur(planes(images[:, 0]), jnp.array(sigma), radius=3)
    np.testing.assert_array_equal(np.moveaxis(result[:, 0], 0, -1), images[0, 0])
    for i in range(1, 24):
        expected = blur(images[i, 0], sigma[i], 3)
        np.testing.assert_allclose(
            np.moveaxis(result[:, i], 0, -1), expected, atol=1e-9
        )


def test_a_view_applies_its_drawn_operations_in_order(x64, images):
    noise = Photometry(solarise_chance=0.5)
    keys = jax.random.split(jax.random.key(0), 24)
    result = noise(images, keys)
    for i, a in np.ndindex(24, 2):
        draw = noise.draw(jax.random.fold_in(keys[i], a))
        expected = images[i, a]
        operations = [
            partial(brightness, f=draw.factor[0]),
            partial(contrast, f=draw.factor[1]),
            partial(saturation, f=draw.factor[2]),
            partial(hue, turn=float(draw.turn)),
        ]
        for operation in np.argsort(draw.priority):
            expected = operations[operation](expected)
        if draw.grey:
            expected = np.repeat(grey(expected)[..., None], 3, -1)
        if draw.sigma > 0:
            expected = blur(expected, float(draw.sigma), 1)
        if draw.solarise:
            expected = np.where(expected >= 0.5, 1 - expected, expected)
        np.testing.assert_allclose(result[i, a], expected, atol=1e-9)


def test_grey_images_match_their_colour_images(x64, images):
    """One channel gives the result of three equal channels, at lower cost."""
    keys = jax.random.split(jax.random.key(0), 24)
    one = images[..., :1]
    # The luma weights sum to 0.9999, so the luma of a grey image differs slightly.
    np.testing.assert_allclose(
        Photometry(grey_chance=0)(one, keys),
        Photometry(grey_chance=0)(np.repeat(one, 3, -1), keys)[..., :1],
        atol=1e-3,
    )


def test_noise_has_the_documented_distribution():
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    draw = jax.vmap(Photometry(strength=0.5, solarise_chance=0.1).draw)(keys)
    jittered = np.asarray(draw.turn != 0)
    blurred = np.asarray(draw.sigma > 0)

    def close(values, mean, deviation):
        assert abs(np.mean(values) - mean) < 5 * deviation / np.sqrt(len(values))

    close(jittered, 0.8, 0.4)
    close(draw.grey, 0.2, 0.4)
    close(blurred, 0.5, 0.5)
    close(draw.solarise, 0.1, 0.3)
    for operation in range(3):
        factor = np.asarray(draw.factor[:, operation])
        assert (factor[~jittered] == 1).all()
        assert factor.min() >= 0.6 and factor.max() <= 1.4
        close(factor[jittered], 1, 0.8 / np.sqrt(12))
        close((factor[jittered] - 1) ** 2, 0.4**2 / 3, 0.4**2 * np.sqrt(4 / 45))
    assert abs(draw.turn).max() <= 0.1
    close(abs(draw.turn[jittered]), 0.05, 0.1 / np.sqrt(12))
    close(draw.sigma[blurred], 1.05, 1.9 / np.sqrt(12))
    orders = np.argsort(np.asarray(draw.priority), 1) @ [64, 16, 4, 1]
    counts = np.unique(orders, return_counts=True)[1]
    assert len(counts) == 24 and abs(counts - n / 24).max() < 5 * np.sqrt(n / 24)


def test_full_strength_stays_in_the_unit_interval(images):
    result = Photometry()(
        images.astype(np.float32), jax.random.split(jax.random.key(1), 24)
    )
    assert result.min() >= 0 and result.max() <= 1


def test_zero_probabilities_give_the_identity(images):
    images = images.astype(np.float32)
    noise = Photometry(jitter_chance=0, grey_chance=0, blur_chance=0)
    keys = jax.random.split(jax.random.key(0), 24)
    np.testing.assert_array_equal(noise(images, keys), images)


def test_uint8_equals_floats_divided_by_255(images):
    raw = (255 * images).astype(np.uint8)
    keys = jax.random.split(jax.random.key(0), 24)
    floats = raw.astype(np.float32) / 255
    np.testing.assert_allclose(
        Photometry()(raw, keys), Photometry()(floats, keys), atol=1e-5
    )
    few = floats.astype(jnp.bfloat16)
    np.testing.assert_array_equal(
        Photometry()(few, keys), Photometry()(few.astype(np.float32), keys)
    )


@pytest.mark.parametrize("views_of_a_chunk", [5, 48])
def test_a_view_does_not_depend_on_its_batch(images, monkeypatch, views_of_a_chunk):
    """Nor does it depend on the device count, the other views or the chunk size."""
    images = images.astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 24)
    whole = Photometry(solarise_chance=0.2)(images, keys)
    monkeypatch.setattr(photometry, "CHUNK", views_of_a_chunk * images[0, 0].size)

    @jax.jit
    def noise(images, keys):
        return Photometry(solarise_chance=0.2)(images, keys)

    some = np.array([5, 17, 2])
    np.testing.assert_allclose(noise(images[some], keys[some]), whole[some], atol=1e-5)
    np.testing.assert_allclose(noise(images[:, :1], keys), whole[:, :1], atol=1e-5)

    mesh = jax.make_mesh(
        (4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        compiled = noise.lower(*jax.device_put((images, keys), rows)).compile()
    sharded = compiled(*jax.device_put((images, keys), rows))
    np.testing.assert_allclose(sharded, whole, atol=1e-5)
    assert sharded.sharding.is_equivalent_to(rows, 5)
    text = compiled.as_text()
    collectives = "all-gather", "all-reduce", "all-to-all", "collective-permute"
    assert not any(name in text for name in collectives)


@pytest.fixture
def transforms():
    """torchvision's transforms, where they are installed: `pip install '.[peer]'`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of their imports are not ours
        return pytest.importorskip("torchvision.transforms")


def same(ours, theirs):
    """Fail if a test at level 1 / 1,000 tells the two samples' distributions apart."""
    return stats.ks_2samp(ours, theirs).pvalue > 1e-3


# At strength 1.5 some factors would be negative if they were not clipped.
@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_jitter_parameters_are_distributed_as_torchvisions(transforms, strength):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    n = 5000
    noise = Photometry(strength=strength, jitter_chance=1.0)
    draw = jax.vmap(noise.draw)(jax.random.split(jax.random.key(1), n))
    v = strength * 0.8
    jitter = transforms.ColorJitter(v, v, v, strength * 0.2)
    ranges = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    order, *values = zip(*(jitter.get_params(*ranges) for _ in range(n)), strict=True)
    for ours, theirs in zip((*draw.factor.T, draw.turn), values, strict=True):
        assert same(ours, theirs)

    every = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    theirs = [every[tuple(one.tolist())] for one in order]
    ours = [every[tuple(one)] for one in np.argsort(draw.priority, 1).tolist()]
    counts = [np.bincount(one, minlength=24) for one in (ours, theirs)]
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    assert stats.chisquare(counts[0]).pvalue > 1e-3


def test_blur_and_probabilities_are_distributed_as_torchvisions(transforms):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    n = 5000
    noise = Photometry(solarise_chance=0.1)
    draw = jax.vmap(noise.draw)(jax.random.split(jax.random.key(2), n))
    blurred = np.asarray(draw.sigma > 0)
    blur = transforms.GaussianBlur(23, noise.sigma)
    assert same(draw.sigma[blurred], [blur.get_params(*blur.sigma) for _ in range(n)])

    image = torch.tensor([0.9, 0.5, 0.6])[:, None, None]

    def share(transform):
        return sum(not torch.equal(transform(image), image) for _ in range(n)) / n

    for ours, transform in (
        (draw.turn != 0, transforms.RandomApply([torch.neg], p=noise.jitter_chance)),
        (draw.grey, transforms.RandomGrayscale(p=noise.grey_chance)),
        (blurred, transforms.RandomApply([torch.neg], p=noise.blur_chance)),
        (draw.solarise, transforms.RandomSolarize(0.5, p=noise.solarise_chance)),
    ):
        # The difference of two shares of n has a deviation below sqrt(2/(4n)) = 0.01.
        assert abs(np.mean(ours) - share(transform)) < 0.03


def test_views_match_torchvision_with_the_same_parameters(transforms):
    """Each operation alone, and all operations of a view in their drawn order."""
    torch = pytest.importorskip("torch")
    f = transforms.functional
    images = np.random.default_rng(3).random((24, 1, 64, 60, 3), np.float32)
    keys = jax.random.split(jax.random.key(3), 24)
    noise = Photometry(solarise_chance=0.5)
    draw = jax.vmap(lambda key: noise.draw(jax.random.fold_in(key, 0)))(keys)
    result = noise(images, keys)
    operations = [f.adjust_brightness, f.adjust_contrast, f.adjust_saturation]
    operations.append(f.adjust_hue)
    ones, zeros = jnp.ones((24, 3)), jnp.zeros(24)
    alone = [
        photometry.jitter(
            planes(images[:, 0]),
            draw.priority,
            ones.at[:, at].set(draw.factor[:, at]) if at < 3 else ones,
            draw.turn if at == 3 else zeros,
        )
        for at in range(4)
    ]
    blurred = photometry.blur(planes(images[:, 0]), draw.sigma, radius=3)
    result, draw, alone, blurred = jax.device_get((result, draw, alone, blurred))
    for i in range(24):
        values = *draw.factor[i].tolist(), draw.turn[i].item()
        image = torch.from_numpy(images[i, 0]).permute(2, 0, 1)

        def equal(ours, theirs):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)

        for at, operation in enumerate(operations):
            equal(alone[at][:, i], operation(image, values[at]))
        grey = f.rgb_to_grayscale(image, 3)
        equal(photometry.luma(planes(images[:, 0]))[0, i], grey[0])
        if draw.sigma[i] > 0:
            equal(blurred[:, i], f.gaussian_blur(image, 7, draw.sigma[i].item()))

        for at in np.argsort(draw.priority[i]):
            image = operations[at](image, values[at])
        if draw.grey[i]:
            image = f.rgb_to_grayscale(image, 3)
        if draw.sigma[i] > 0:
            image = f.gaussian_blur(image, 7, draw.sigma[i].item())
        ours = np.moveaxis(result[i, 0], -1, 0)
        if draw.solarise[i]:
            image = f.solarize(image, 0.5)
            # Rounding may move a pixel across the threshold.
            clear = abs(image.numpy() - 0.5) > 1e-4
            ours, image = ours[clear], image[torch.from_numpy(clear)]
        equal(ours, image)


def test_unsupported_channel_counts_are_refused():
    with pytest.raises(InputError, match="2"):
        Photometry()(jnp.zeros((1, 1, 8, 8, 2)), jax.random.split(jax.random.key(0), 1))


def test_images_narrower_than_the_blur_kernel_are_refused():
    narrow, keys = jnp.zeros((1, 1, 60, 3, 3)), jax.random.split(jax.random.key(0), 1)
    with pytest.raises(InputError, match="60 x 3, narrower than its kernel"):
        Photometry()(narrow, keys)
    assert Photometry(blur_chance=0.0)(narrow, keys).shape == narrow.shape
