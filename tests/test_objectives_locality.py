"""Deep InfoMax and losses of positions match their definitions, taken one by one."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from polyview.errors import InputError, OutOfRange
from polyview.nn.towers import Features
from polyview.objectives import bounds, locality
from polyview.objectives.crossmodal import CrossModal, cosine, scaled_dot
from polyview.objectives.locality import Locality, WithLocal
from polyview.objectives.supervised import (
    Attributes,
    Classification,
    squared_error,
)

ESTIMATORS = {"info_nce": bounds.info_nce, "jensen_shannon": bounds.jensen_shannon}
KINDS = ("own", "other_views", "class")


def batch_of(b=7, m=2, p=2, d=2, missing=True):
    """Features and a batch: a row twice, two of unknown class, missing views."""
    rng = np.random.default_rng(0)
    present = np.ones((b, m), bool)
    index, labels = np.arange(b) + 10, np.arange(b) % 3
    if missing:
        present[0, -1] = present[6:] = False
        index[2] = index[1]
        labels[:7] = [0, 1, 1, -1, 0, -1, 0]
    features = {
        "image": Features(
            z=rng.normal(size=(b, m, d)),
            h=rng.normal(size=(b, m, d)),
            local=rng.normal(size=(b, m, p, d)),
            real=(rng.random((b, m, p)) < 0.8) if missing else None,
        ),
        "label": Features(z=rng.normal(size=(b, m, 3)), h=None, local=None),
        "attributes": Features(z=rng.normal(size=(b, m, 4)), h=None, local=None),
        "local_label": Features(z=rng.normal(size=(b, m, p, 3)), h=None, local=None),
        "local_attributes": Features(
            z=rng.normal(size=(b, m, p, 4)), h=None, local=None
        ),
    }
    batch = {
        "present": {"image": present},
        "index": index,
        "targets": {"label": labels, "attributes": rng.integers(2, size=(b, 4))},
    }
    return jax.tree.map(jnp.asarray, (features, batch))


class Fixed:
    """A module that returns the features it was given, and counts its passes."""

    def __init__(self, features):
        self.features, self.passes = features, 0

    def __call__(self, batch, *, key, train):
        self.passes += 1
        return dict(self.features)


def value(objective, features, batch, module=None):
    """Loss and metrics, compiled; `module` gets the features first."""
    module = module or Fixed({})

    @jax.jit
    def compiled(features, batch, key):
        module.features = features
        return objective(module, None, batch, key)

    return compiled(features, batch, jax.random.key(0))


def run(objective, features, batch):
    """Loss, metrics and the gradient with respect to z and local."""

    def loss_of(z, local, features, batch):
        image = features["image"]._replace(z=z, local=local)
        loss, metrics = value(objective, features | {"image": image}, batch)
        return loss, {k: v for k, v in metrics.items() if k != "features"}

    graded = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True))
    image = features["image"]
    return graded(image.z, image.local, features, batch)


def loops(kind, estimator, z, local, features, batch):
    """Loss and bound, pair by pair, of z[b, m, d] and local[b, m, p, d]."""
    b, m, p, d = local.shape
    present, index = np.array(batch["present"]["image"]), np.array(batch["index"])
    labels = np.array(batch["targets"]["label"])
    real = features["image"].real
    real = np.ones((b, m, p), bool) if real is None else np.array(real)
    images = [(i, a) for i, a in product(range(b), range(m)) if present[i, a]]

    def same_class(i, j):
        return i == j or (labels[i] == labels[j] and labels[i] >= 0)

    def positive(one, other):
        if kind == "own":
            return one == other
        if kind == "other_views":
            return one[0] == other[0] and one[1] != other[1]
        return same_class(one[0], other[0])

    def negative(one, other):
        related = index[one[0]] == index[other[0]]
        return not (related or (kind == "class" and same_class(one[0], other[0])))

    raw = {
        (one, other): [
            (z[one] * local[other][q]).sum() / d**0.5
            for q in range(p)
            if real[other][q]
        ]
        for one, other in product(images, images)
        if positive(one, other) or negative(one, other)
    }
    scores = {pair: [20 * np.tanh(r / 20) for r in raw[pair]] for pair in raw}
    squares = [r * r for own in raw.values() for r in own]
    penalty = 0.04 * sum(squares) / len(squares)

    def mean(values):
        values = [sum(own) / len(own) for own in values if len(own)]
        return sum(values) / len(values)

    chosen = [pair for pair in scores if positive(*pair)]
    others = [pair for pair in scores if negative(*pair)]
    if estimator == "jensen_shannon":
        loss = mean([[np.log(1 + np.exp(s)) for s in scores[pair]] for pair in others])
        loss += mean(
            [[np.log(1 + np.exp(-s)) for s in scores[pair]] for pair in chosen]
        )
        loss -= 2 * np.log(2)
        return loss + penalty, -loss
    of_anchor = {
        one: [np.exp(s) for pair in others if pair[0] == one for s in scores[pair]]
        for one in images
    }
    losses = {
        pair: [-np.log(np.exp(s) / (np.exp(s) + sum(of_anchor[pair[0]]))) for s in own]
        for pair, own in scores.items()
        if positive(*pair)
    }
    bound = [
        [np.log(1 + len(of_anchor[pair[0]])) - loss for loss in own]
        for pair, own in losses.items()
    ]
    return mean(losses.values()) + penalty, mean(bound)


def complex_step(function, *arrays):
    """The gradient of an analytic function, exact up to rounding."""
    gradients = []
    for number, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            moved = [a.astype(complex) for a in arrays]
            moved[number][place] += 1e-30j
            gradient[place] = function(*moved).imag / 1e-30
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_match_their_definition(kind, estimator, x64):
    """Also with missing views that hold NaN, padding, a row twice, unknown classes."""
    features, batch = batch_of()
    image = features["image"]
    missing = ~batch["present"]["image"][..., None]
    garbage = image._replace(
        z=jnp.where(missing, jnp.nan, image.z),
        local=jnp.where(missing[..., None], jnp.nan, image.local),
    )
    objective = Locality(kind, ESTIMATORS[estimator])
    (loss, metrics), gradients = run(objective, features | {"image": garbage}, batch)
    z, local = np.array(image.z), np.array(image.local)
    expected = loops(kind, estimator, z, local, features, batch)
    np.testing.assert_allclose((loss, metrics["bound"]), expected, rtol=1e-9)
    slow = complex_step(
        lambda z, local: loops(kind, estimator, z, local, features, batch)[0], z, local
    )
    for want, got in zip(slow, gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_cmdim_of_one_image_a_class_is_dim(x64):
    features, batch = batch_of(b=6, m=1, missing=False)
    batch["targets"]["label"] = jnp.array([4, 2, 0, 1, 3, 9])
    dim, cmdim = (run(Locality(kind), features, batch) for kind in ("own", "class"))
    for one, other in zip(*map(jax.tree.leaves, (dim, cmdim)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    assert cmdim[0][1]["positives"] == 1  # says that no class had a second image
    # A second image of a class is a positive, and no negative.
    batch["targets"]["label"] = jnp.array([4, 2, 0, 1, 4, 9])
    (loss, metrics), _ = run(Locality("class"), features, batch)
    assert abs(loss - dim[0][0]) > 1e-3
    np.testing.assert_allclose(metrics["positives"], (6 + 2) / 6)
    np.testing.assert_allclose(metrics["negatives"], (30 - 2) / 6)


def test_dim_is_the_term_within_views_of_crossmodal(x64):
    features, batch = batch_of(m=1)
    (loss, metrics), gradients = run(Locality("own"), features, batch)
    term = CrossModal(terms={"CR": 1.0})
    (other, _), expected = run(term, features, batch)
    np.testing.assert_allclose(loss, other, rtol=1e-12)
    for want, got in zip(expected, gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_a_critic_of_ones_own_is_used(x64):
    features, batch = batch_of(missing=False)
    bound = {}
    for critic in (scaled_dot, partial(cosine, temperature=0.2)):
        bound[critic] = run(Locality("own", critic=critic), features, batch)[0][1]
    z, local = features["image"].z, features["image"].local
    z, local = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, local))
    z, local = (x.reshape(14, *x.shape[2:]) for x in (z, local))
    scores = np.exp(np.einsum("ad,cpd->acp", z, local) / 0.2)
    losses = []
    for a, q in product(range(14), range(2)):
        others = sum(scores[a, c].sum() for c in range(14) if c // 2 != a // 2)
        losses.append(-np.log(scores[a, a, q] / (scores[a, a, q] + others)))
    np.testing.assert_allclose(bound[critic]["loss"], np.mean(losses), rtol=1e-9)


LOCAL = {"label": locality.local_labels, "attributes": locality.local_attributes}


def test_devices_do_not_change_values_or_gradients(x64):
    features, batch = batch_of(b=8)
    batch["present"]["image"] = batch["present"]["image"].at[6, 1].set(True)
    objectives = [Locality("class", estimator) for estimator in ESTIMATORS.values()]

    @jax.jit
    def compiled(features, batch):
        return [run(objective, features, batch) for objective in objectives]

    expected = compiled(features, batch)
    for count in (2, 8):
        mesh = jax.make_mesh(
            (count,), ("data",), (AxisType.Auto,), devices=jax.devices()[:count]
        )
        with jax.set_mesh(mesh):
            rows = NamedSharding(mesh, PartitionSpec("data"))
            result = compiled(*jax.device_put((features, batch), rows))
        for want, got in zip(*map(jax.tree.leaves, (expected, result)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def slow_local(loss, x, target, counted):
    """Losses of positions, and their gradient by hand: probability - truth."""
    losses, gradient = np.zeros(x.shape[:2]), np.zeros_like(x)
    for i, a, q in zip(*counted.nonzero(), strict=True):
        one, share = x[i, a, q], 1 / counted[i, a].sum()
        if loss is locality.local_labels:
            likely = np.exp(one) / np.exp(one).sum()
            own, slope = -np.log(likely[target[i]]), likely.copy()
            slope[target[i]] -= 1
        elif loss is locality.local_attributes:
            sure = 1 / (1 + np.exp(-one))
            own = -np.mean(np.log(np.where(target[i] == 1, sure, 1 - sure)))
            slope = (sure - target[i]) / len(one)
        else:
            own = np.mean((one - target[i]) ** 2)
            slope = 2 * (one - target[i]) / len(one)
        losses[i, a] += own * share
        gradient[i, a, q] = slope * share
    return losses, gradient


def test_local_losses_match_their_definition(x64):
    rng = np.random.default_rng(1)
    b, m, p = 3, 2, 4
    real = rng.random((b, m, p)) < 0.7
    real[0, 0] = False  # nothing but padding
    targets = {
        locality.local_labels: rng.integers(3, size=b),
        locality.local_attributes: rng.integers(2, size=(b, 3)),
        locality.local_values: rng.normal(size=(b, 3)),
    }
    x = rng.normal(size=(b, m, p, 3))

    @jax.jit
    def compiled(x):
        results = []
        for (loss, target), mask in product(targets.items(), (None, real)):
            losses, pullback = jax.vjp(
                lambda x, f=loss, t=target, r=mask: f(x, t, real=r), x
            )
            results.append((losses, pullback(jnp.ones_like(losses))[0]))
        return results

    cases = product(targets.items(), (np.ones_like(real), real))
    for result, ((loss, target), counted) in zip(compiled(x), cases, strict=True):
        expected = slow_local(loss, x, target, counted)
        for want, got in zip(expected, result, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)


def test_with_local_encodes_once_and_adds_the_losses_of_positions(x64):
    features, batch = batch_of()
    batch["targets"]["label"] = jnp.arange(7) % 3
    present = np.array(batch["present"]["image"])
    garbage = {
        name: part._replace(
            z=jnp.where(present.reshape(7, 2, *[1] * (part.z.ndim - 2)), part.z, np.nan)
        )
        for name, part in features.items()
    }
    own = {}
    for target, loss in LOCAL.items():
        outputs = features[f"local_{target}"].z
        losses = jax.jit(loss)(outputs, batch["targets"][target])
        own[target] = np.mean(np.array(losses)[present])
    inner = Locality("class")
    module = Fixed({})
    objective = WithLocal(inner, LOCAL, weight=0.3)
    loss, metrics = value(objective, garbage, batch, module)
    assert module.passes == 1
    model, told = value(inner, features, batch)
    np.testing.assert_allclose(loss, model + 0.3 * sum(own.values()), rtol=1e-12)
    np.testing.assert_allclose(metrics["model"], model, rtol=1e-12)
    for target in LOCAL:
        np.testing.assert_allclose(metrics[f"local/{target}"], own[target], rtol=1e-12)
    assert metrics["loss"] == loss and metrics["positives"] == told["positives"]
    module = Fixed({})
    alone = WithLocal(None, LOCAL, weight=0.3)
    loss, metrics = value(alone, garbage, batch, module)
    assert module.passes == 1 and set(metrics["features"]) == {"image"}
    np.testing.assert_allclose(loss, 0.3 * sum(own.values()), rtol=1e-12)

    def loss_of(z):
        part = garbage["local_label"]._replace(z=z)
        return value(alone, garbage | {"local_label": part}, batch)[0]

    gradient = jax.grad(loss_of)(garbage["local_label"].z)
    np.testing.assert_array_equal((gradient != 0).all((2, 3)), present)
    assert np.isfinite(gradient).all()


def test_objectives_say_what_they_predict_and_compare():
    objective = WithLocal(Attributes(), {"label": locality.local_labels})
    assert objective.outputs == {"label": "local_label", "attributes": "attributes"}
    assert objective.negatives(8, 2) == 0
    assert WithLocal(Locality(), LOCAL).negatives(8, 2) == 14
    supervised = WithLocal(Classification(modality="label"), LOCAL)
    assert supervised.outputs["label"] == "label"


@pytest.mark.parametrize("loss", [None, squared_error])
def test_attributes_match_their_definition(loss, x64):
    features, batch = batch_of()
    present, z = np.array(batch["present"]["image"]), features["attributes"].z
    objective = Attributes() if loss is None else Attributes(loss=loss)
    garbage = jnp.where(present[..., None], z, jnp.nan)

    def loss_of(z):
        part = features["attributes"]._replace(z=z)
        return value(objective, features | {"attributes": part}, batch)[0]

    loss_now, gradient = jax.value_and_grad(loss_of)(garbage)
    losses, slope = [], np.zeros(z.shape)
    for i, a in zip(*present.nonzero(), strict=True):
        x, y = np.array(z[i, a]), np.array(batch["targets"]["attributes"][i])
        if loss is None:
            losses.append(np.mean(np.log(1 + np.exp(x)) - x * y))
            slope[i, a] = (1 / (1 + np.exp(-x)) - y) / 4 / present.sum()
        else:
            losses.append(np.mean((x - y) ** 2))
            slope[i, a] = 2 * (x - y) / 4 / present.sum()
    np.testing.assert_allclose(loss_now, np.mean(losses), rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-15)


def without(part, name):
    return {key: one for key, one in part.items() if key != name}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Locality("classes"), "'classes'; did you mean 'class'"),
        (lambda: WithLocal(Locality(), {}), "objective.local is empty"),
    ],
)
def test_an_invalid_objective_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_negative_weight_is_refused():
    with pytest.raises(OutOfRange, match="weight=-1.0"):
        WithLocal(None, LOCAL, weight=-1.0)


def test_what_does_not_fit_is_an_error():
    features, batch = batch_of(missing=False)
    unlabelled = batch | {"targets": {}}
    image = features["image"]
    one = jax.tree.map(lambda x: x[:1], (features, batch))
    single = jax.tree.map(lambda x: x[:, :1], features)
    single = single, batch | {"present": {"image": batch["present"]["image"][:, :1]}}
    cases = [
        (Locality(), {"image": image._replace(local=None)}, batch, "local_projector"),
        (Locality("class"), features, unlabelled, "objective.label is 'label'"),
        (Locality(), *one, "a batch of one sample"),
        (Locality("other_views"), *single, "views.m to 2"),
        (WithLocal(None, LOCAL), features, unlabelled, "has the targets"),
        (
            WithLocal(None, LOCAL),
            without(features, "local_label"),
            batch,
            "model.local_heads.label",
        ),
        (
            Attributes(),
            without(features, "attributes"),
            batch,
            "model.heads.attributes",
        ),
        (Attributes(target="x"), features, batch, "objective.target is 'x'"),
    ]
    for objective, own, given, message in cases:
        with pytest.raises(InputError, match=message):
            value(objective, own, given)
    narrow = {"image": image._replace(z=image.z[..., :1])}
    with pytest.raises(ValueError, match="compares 1 features with 2"):
        value(Locality(), narrow, batch)
    wide = jnp.zeros((7, 2, 2, 7))
    with pytest.raises(InputError, match="7 outputs, the target 4"):
        locality.local_attributes(wide, batch["targets"]["attributes"])
    with pytest.raises(ValueError, match='"class" needs the labels'):
        locality.compared("class", jnp.ones((2, 1), bool), jnp.arange(2))
