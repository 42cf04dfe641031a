"""SupCon with labels, and the losses of `contrastive` on batches with missing views."""

from dataclasses import replace
from functools import partial
from math import exp, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_objectives_negatives import gradient_program, largest_array

from polyview.config import parts
from polyview.config.spec import build
from polyview.errors import InputError
from polyview.nn.towers import Features
from polyview.objectives import contrastive
from polyview.objectives.crossmodal import mean_over_anchors
from polyview.objectives.negatives import log_negatives
from polyview.objectives.positives import anchors

TEMPERATURE = 0.3
LABELS = np.array([7, -1, 7, 0, -1, 0, 7, 3, 5, 5, 3, 3, 9, 0, 7, 7])  # -1: unknown


def batch_of(b=16, m=3, d=4):
    """Embeddings, weights of losses, masks: sample 0 has no view and sample 1 one."""
    rng = np.random.default_rng(0)
    present = rng.random((b, m)) < 0.75
    present[0], present[1] = False, [True] + [False] * (m - 1)
    return rng.normal(size=(b, m, d)), rng.normal(size=(b, m)), present


def supcon_loops(z, labels, present, weights):
    """Each loss and the gradient of their weighted sum, one score at a time."""
    shape, (b, m, d) = z.shape, z.shape
    sample, view = np.divmod(np.arange(b * m), m)
    length = np.linalg.norm(z, axis=-1).reshape(-1)
    u, there = z.reshape(-1, d) / length[:, None], present.reshape(-1)
    losses, slope = np.zeros(b * m), np.zeros((b * m, d))

    def same_class(r, q):
        mine, theirs = labels[sample[r]], labels[sample[q]]
        return sample[r] == sample[q] or (mine == theirs and mine >= 0)

    for r in range(b * m):
        others = [q for q in range(b * m) if there[r] and there[q] and q != r]
        positives = [q for q in others if same_class(r, q)]
        if not positives:
            continue
        e = {q: exp(u[r] @ u[q] / TEMPERATURE) for q in others}
        share = {q: e[q] / sum(e.values()) for q in others}
        losses[r] = -sum(log(share[q]) for q in positives) / len(positives)
        for q in others:
            w = share[q] - (q in positives) / len(positives)
            w *= weights[sample[r], view[r]] / TEMPERATURE
            slope[r] += w * u[q]
            slope[q] += w * u[r]
    across = (slope * u).sum(1, keepdims=True) * u
    gradient = (slope - across) / length[:, None]
    return losses.reshape(b, m), gradient.reshape(shape)


@pytest.mark.parametrize(
    ("devices", "exchange"), [(1, "gather"), (2, "gather"), (8, "ring")]
)
def test_labelled_supcon_matches_the_loops_on_any_devices(devices, exchange, x64):
    z, weights, present = batch_of()
    negatives = partial(log_negatives, exchange=exchange, tile=7)

    def values_and_gradient(z, labels, present, weights):
        options = {"temperature": TEMPERATURE, "negatives": negatives}
        loss = partial(contrastive.supcon, labels=labels, present=present, **options)
        losses, pullback = jax.vjp(loss, z)
        return losses, pullback(weights)[0], anchors(present, labels)

    mesh = mesh_of(devices)
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    garbage = np.where(present[..., None], z, np.nan)
    given = jax.device_put((garbage, LABELS, present, weights), rows)
    with jax.set_mesh(mesh):
        losses, gradient, valid = jax.jit(values_and_gradient)(*given)
    expected, slope = supcon_loops(z, LABELS, present, weights)
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(valid, expected != 0)
    # A sample's only view is an anchor if its class has another sample.
    only = np.array(valid)[present & (present.sum(1, keepdims=True) == 1)]
    assert only.any() and not only.all()


def mesh_of(devices):
    types = (AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), types, devices=jax.devices()[:devices])


def test_compiled_labelled_supcon_is_linear_in_the_batch():
    """No array of a device holds more than the features of all rows, and some more.

    Optimised, the program needs the same memory, but longer to compile.
    """

    def loss(z, **options):
        labels = jnp.arange(len(z)) % 37
        return contrastive.supcon(z, labels, **options)

    text, memory = gradient_program(2, 512, "gather", loss)
    elements, array = largest_array(text)
    assert elements <= 512 * 4 * (16 + 4), array
    assert gradient_program(2, 1024, "gather", loss)[1] < 2.2 * memory


def masked_loops(name, z, present):
    """The formulas over present views: one loss an anchor, or one a sample."""
    b, m, _ = z.shape
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    views = [[a for a in range(m) if present[i, a]] for i in range(b)]

    def e(i, a, j, g):
        return exp(z[i, a] @ z[j, g] / TEMPERATURE)

    def others(i, a, among):
        rest = [j for j in range(b) if j != i]
        return sum(e(i, a, j, g) for j in rest for g in views[j] if g in among)

    def of_anchor(i, a):
        positives = [c for c in views[i] if c != a]
        ratios = []
        for c in positives:
            p = e(i, a, i, c)
            n = others(i, a, [a, c] if name == "multi_crop" else range(m))
            own = sum(e(i, a, i, g) for g in positives) if name == "supcon" else p
            ratios.append(p / (own + n))
        return -np.mean(np.log(ratios)) if a in views[i] and positives else 0

    def of_sample(i):
        pairs = [e(i, a, i, c) for a in views[i] for c in views[i] if a != c]
        if not pairs:
            return 0
        if name == "mv_infonce":
            everything = sum(pairs) + sum(others(i, a, range(m)) for a in views[i])
            return -log(sum(pairs) / everything)
        within = np.prod([others(i, a, [a]) or 1 for a in views[i]])
        return -log(sum(pairs) / 2 / within)

    if name.startswith("mv_"):
        return np.array([of_sample(i) for i in range(b)])
    return np.array([[of_anchor(i, a) for a in range(m)] for i in range(b)])


MASKED = {
    name: partial(getattr(contrastive, name), temperature=TEMPERATURE)
    for name in ("multi_crop", "supcon", "mv_infonce", "mv_dhel")
}


def test_no_loss_sees_a_missing_view(x64):
    """Values, gradients and means; the losses with an estimate of information are in
    test_objectives_crossmodal."""
    z, _, present = batch_of(b=6)
    present[2:, 2] = False  # nobody else has the last view of sample 2
    present[2], present[3] = True, [True, True, False]
    garbage = np.where(present[..., None], z, np.nan)

    @jax.jit
    def results(z, present):
        found = {}
        for name, loss in MASKED.items():
            losses, pullback = jax.vjp(partial(loss, present=present), z)
            gradient = pullback(jnp.ones_like(losses))[0]
            found[name] = losses, gradient, mean_over_anchors(losses, present)
        return found

    for name, (losses, *_) in results(z, there := np.ones_like(present)).items():
        expected = masked_loops(name, z, there)
        np.testing.assert_allclose(losses, expected, rtol=1e-9, err_msg=name)
    for name, (losses, gradient, mean) in results(garbage, present).items():
        expected = masked_loops(name, z, present)
        np.testing.assert_allclose(losses, expected, 1e-9, 1e-12, err_msg=name)
        np.testing.assert_allclose(mean, expected[expected != 0].mean(), rtol=1e-9)
        np.testing.assert_array_equal(gradient[~present], 0)
        assert np.isfinite(gradient).all() and gradient[2].any(), name

    def program(loss):
        loss = partial(loss, temperature=TEMPERATURE, present=present[:, :2])
        return str(jax.make_jaxpr(loss)(z[:, :2]))

    assert program(contrastive.nt_xent) == program(contrastive.geometric)


def test_the_objective_passes_the_labels_that_its_config_names():
    objective = build(parts.contrastive("supcon_labels", temperature=TEMPERATURE))
    assert objective.loss.func is contrastive.supcon and objective.bound is None
    z, _, present = batch_of()
    features = {"image": Features(z=jnp.asarray(z), h=z, local=None)}
    batch = {
        "present": {"image": np.ones_like(present)},
        "targets": {"label": LABELS},
    }

    def call(batch):
        seen = replace(
            objective, loss=lambda z, labels: labels[:, None] + 0 * z[..., 0]
        )
        return seen(lambda *_, **__: features, None, batch, None)[0]

    np.testing.assert_allclose(call(batch), LABELS.mean())
    with pytest.raises(InputError, match=r"labels is 'label', .*\['species'\]"):
        call(batch | {"targets": {"species": LABELS}})


@pytest.mark.parametrize(
    "labels", [np.zeros(5, int), np.zeros((6, 2), int), np.ones(6)]
)
def test_labels_that_are_no_class_a_sample_are_refused(labels):
    z, *_ = batch_of(b=6)
    with pytest.raises(ValueError, match=r"labels are .*; give int\[6\]"):
        jax.eval_shape(partial(contrastive.supcon, temperature=0.3), z, labels)


@pytest.mark.parametrize("wrong", [-0.1, np.array(-0.1), jnp.zeros(()), np.ones(3)])
@pytest.mark.parametrize("name", MASKED)
def test_a_temperature_is_one_number_above_zero(name, wrong):
    with pytest.raises(ValueError, match="temperature"):
        getattr(contrastive, name)(jnp.ones((4, 2, 3)), temperature=wrong)
