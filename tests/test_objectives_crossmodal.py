"""Estimators and terms match their formulas and ignore missing views."""

from functools import partial
from itertools import permutations, product
from math import exp, log, log1p

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from polyview.errors import InputError
from polyview.nn.towers import Features
from polyview.objectives import bounds, contrastive, crossmodal, supervised
from polyview.objectives.crossmodal import (
    CrossModal,
    cosine,
    kept,
    scaled_dot,
    views_of,
)
from polyview.objectives.positives import anchors

ESTIMATORS = {
    "jensen_shannon": jax.jit(bounds.jensen_shannon),
    "nwj": jax.jit(bounds.nwj),
    "donsker_varadhan": jax.jit(bounds.donsker_varadhan),
    "info_nce": jax.jit(bounds.info_nce),
}


def loops(name, s, positive, negative):
    """Loss and bound, one score at a time."""
    a, c, p, q = s.shape
    marked = {
        True: [e for e in product(*map(range, s.shape)) if positive[e]],
        False: [e for e in product(*map(range, s.shape)) if negative[e]],
    }

    def over_pairs(value, entries):
        pairs = {}
        for e in entries:
            pairs.setdefault(e[:2], []).append(value(e))
        return np.mean([np.mean(values) for values in pairs.values()])

    if name == "jensen_shannon":
        loss = over_pairs(lambda e: log1p(exp(s[e])) - log(2), marked[False])
        loss -= over_pairs(lambda e: log(2) - log1p(exp(-s[e])), marked[True])
        return loss, -loss
    if name == "nwj":
        loss = over_pairs(lambda e: exp(s[e] - 1), marked[False])
        loss -= over_pairs(lambda e: s[e], marked[True])
        return loss, -loss
    if name == "donsker_varadhan":
        loss = log(np.mean([exp(s[e]) for e in marked[False]]))
        loss -= over_pairs(lambda e: s[e], marked[True])
        return loss, -loss

    def others(e):
        return [exp(s[f]) for f in marked[False] if f[0] == e[0] and f[3] == e[3]]

    entries = [e for e in marked[True] if others(e)]
    ratio = {e: -log(exp(s[e]) / (exp(s[e]) + sum(others(e)))) for e in entries}
    bound = {e: log(1 + len(others(e))) - ratio[e] for e in entries}
    return over_pairs(ratio.get, entries), over_pairs(bound.get, entries)


def masks(b, p, q, seed=0, whole=False):
    """Pairs of a batch with missing anchors and candidates, padding and studies."""
    rng = np.random.default_rng(seed)
    valid = np.ones((b, b, p, q), bool)
    same = np.eye(b, dtype=bool)
    if not whole:
        valid &= (rng.random((b, 1, 1, 1)) < 0.7) & (rng.random((1, b, 1, 1)) < 0.7)
        valid &= rng.random((1, b, p, 1)) < 0.7
        study = rng.integers(b // 2, size=b)
        same = study[:, None] == study[None]
    itself = np.eye(b, dtype=bool)[..., None, None]
    return valid & itself, valid & ~same[..., None, None]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("whole", [True, False])
def test_estimators_match_their_formulas(name, whole, x64):
    for seed, (b, p, q) in enumerate([(6, 1, 1), (6, 3, 2), (5, 2, 3)]):
        s = np.random.default_rng(seed).normal(size=(b, b, p, q))
        marked = masks(b, p, q, seed + 1, whole)
        result = ESTIMATORS[name](jnp.asarray(s), *map(jnp.asarray, marked))
        np.testing.assert_allclose(result, loops(name, s, *marked), rtol=1e-10)


def test_uninformative_scores_give_the_chance_values(x64):
    b, p, q = 5, 3, 2
    zeros, marked = jnp.zeros((b, b, p, q)), masks(b, p, q, whole=True)
    losses = {name: f(zeros, *marked)[0] for name, f in ESTIMATORS.items()}
    np.testing.assert_allclose(losses["jensen_shannon"], 0, atol=1e-12)
    np.testing.assert_allclose(losses["donsker_varadhan"], 0, atol=1e-12)
    np.testing.assert_allclose(losses["nwj"], exp(-1))
    np.testing.assert_allclose(losses["info_nce"], log(1 + (b - 1) * p))
    sure = jnp.where(jnp.eye(b, dtype=bool)[..., None, None], 50.0, -50.0) + zeros
    np.testing.assert_allclose(
        bounds.jensen_shannon(sure, *marked).loss, -2 * log(2), atol=1e-12
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_positives_or_no_negatives_give_zero_loss_and_gradient(name):
    scores = jnp.ones((3, 3, 2, 1))
    marked = masks(3, 2, 1, whole=True)
    nothing = np.zeros_like(marked[0])
    for positive, negative in [(marked[0], nothing), (nothing, marked[1])]:
        loss_of = lambda s, p=positive, n=negative: ESTIMATORS[name](s, p, n).loss  # noqa: E731
        loss, gradient = jax.value_and_grad(loss_of)(scores)
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)


def test_bounds_stay_below_the_mutual_information_of_gaussians():
    """The critic is optimal, the pairs are fresh with correlation r; in nats."""
    b, r, batches = 256, 0.9, 40
    information = -log(1 - r**2) / 2
    marked = masks(b, 1, 1, whole=True)

    def ratio(x, y):  # log p(y | x) / p(y)
        return (
            -log(1 - r**2) / 2
            - (y[None] - r * x[:, None]) ** 2 / (2 * (1 - r**2))
            + y[None] ** 2 / 2
        )

    estimates = {name: [] for name in ESTIMATORS if name != "jensen_shannon"}
    rng = np.random.default_rng(0)
    for _ in range(batches):
        x, noise = rng.normal(size=(2, b))
        scores = jnp.asarray(ratio(x, r * x + (1 - r**2) ** 0.5 * noise))
        for name, bound in estimates.items():
            best = scores + 1 if name == "nwj" else scores
            bound.append(ESTIMATORS[name](best[..., None, None], *marked).bound)
    for name, bound in estimates.items():
        error = np.std(bound) / batches**0.5
        assert np.mean(bound) < information + 3 * error, name
        assert np.mean(bound) > 0.9 * information, name


def batch_of(b=6, seed=0, d=4, p=3, missing=True, **modalities):
    """Features and masks of modalities u and v of 1 and 2 views."""
    rng = np.random.default_rng(seed)
    counts = modalities or {"u": 1, "v": 2}
    features, present = {}, {}
    for name, m in counts.items():
        present[name] = rng.random((b, m)) < (0.7 if missing else 1.1)
        features[name] = Features(
            z=rng.normal(size=(b, m, d)),
            h=rng.normal(size=(b, m, d)),
            local=rng.normal(size=(b, m, p, d)),
            real=(rng.random((b, m, p)) < 0.8) if missing else None,
        )
    return jax.tree.map(jnp.asarray, (features, present))


def one_term(
    name, features, present, estimator=bounds.info_nce, critic=scaled_dot, **kw
):
    kw.setdefault("index", jnp.arange(len(jax.tree.leaves(present)[0])))

    @jax.jit
    def term(features, present):
        return crossmodal.term(
            name,
            views_of(features, present),
            estimator=estimator,
            critic=critic,
            key=jax.random.key(0),
            **kw,
        )

    return term(features, present)


def test_critics_match_their_formulas(x64):
    rng = np.random.default_rng(0)
    g, local = rng.normal(size=(3, 2, 5)), 30 * rng.normal(size=(4, 6, 5))
    dots = np.einsum("aqd,cpd->acpq", g, local)
    scored = scaled_dot(g, local)
    np.testing.assert_allclose(scored.raw, dots / 5**0.5)
    np.testing.assert_allclose(scored.scores, 20 * np.tanh(dots / 5**0.5 / 20))
    lengths = np.einsum(
        "aq,cp->acpq", np.linalg.norm(g, axis=-1), np.linalg.norm(local, axis=-1)
    )
    result = cosine(g, local, temperature=0.5).scores
    np.testing.assert_allclose(result, dots / lengths / 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["XX", "RR"])
def test_a_term_is_the_mean_over_ordered_pairs_of_views(name, x64):
    features, present = batch_of(u=1, v=1, w=1)
    whole = one_term(name, features, present)
    pairs = [
        one_term(name, *({k: part[k] for k in pair} for part in (features, present)))
        for pair in [("u", "v"), ("u", "w"), ("v", "w")]
    ]  # each is the mean over both orders
    np.testing.assert_allclose(whole, np.mean(pairs, 0), rtol=1e-10)


def test_xx_compares_a_global_vector_with_the_other_local_map(x64):
    features, present = batch_of(u=1, v=1, missing=False)
    result = one_term("XX", features, present, critic=partial(scaled_dot, penalty=0.0))
    expected = []
    for a, c in permutations("uv"):
        z, local = features[a].z[:, 0], features[c].local[:, 0]
        raw = np.einsum("ad,cpd->acp", z, local)[..., None] / 2  # sqrt(d)
        scores = 20 * np.tanh(raw / 20)
        expected.append(loops("info_nce", scores, *masks(6, 3, 1, whole=True)))
    np.testing.assert_allclose(result, np.mean(expected, 0), rtol=1e-10)


def test_cr_and_cc_match_their_definitions(x64):
    features, present = batch_of(u=1, v=1, missing=False)
    critic = partial(scaled_dot, penalty=0.0)
    expected = {"CR": [], "CC": []}
    views = views_of(features, present)
    for number, view in enumerate(views):
        key = jax.random.fold_in(jax.random.key(0), number)
        one, _ = crossmodal.drawn(view, 1, key, jnp.arange(6))
        other = views[1 - number]
        for name, anchor, local in (
            ("CR", view.z, view.local),
            ("CC", one[:, 0], other.local),
        ):
            raw = np.einsum("ad,cpd->acp", anchor, local)[..., None] / 2  # sqrt(d)
            scores = 20 * np.tanh(raw / 20)
            loss = loops("info_nce", scores, *masks(6, 3, 1, whole=True))
            expected[name].append(loss)
    for name, losses in expected.items():
        result = one_term(name, features, present, critic=critic)
        np.testing.assert_allclose(result, np.mean(losses, 0), rtol=1e-10)


def test_penalty_is_on_the_raw_scores_of_compared_pairs(x64):
    features, present = batch_of(u=1, v=1)
    loss = [
        one_term("RR", features, present, critic=partial(scaled_dot, penalty=w)).loss
        for w in (0.0, 0.04)
    ]
    compared = np.array(present["u"] & present["v"].T)  # either view is the anchor
    raw = np.array(features["u"].z[:, 0] @ features["v"].z[:, 0].T) / 2
    np.testing.assert_allclose(loss[1] - loss[0], 0.04 * (raw[compared] ** 2).mean())


def test_info_nce_of_two_global_vectors_is_the_clip_loss(x64):
    features, present = batch_of(u=1, v=1, missing=False)
    critic = partial(cosine, temperature=0.2)
    result = one_term("RR", features, present, critic=critic).loss
    x, y = (np.array(features[n].z[:, 0]) for n in "uv")
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    logits = np.exp(x @ y.T / 0.2)
    rows, columns = (np.diag(logits) / logits.sum(axis) for axis in (1, 0))
    np.testing.assert_allclose(result, -(np.log(rows) + np.log(columns)).mean() / 2)


def test_rows_of_one_study_are_never_negatives(x64):
    features, present = batch_of(u=1, v=1, missing=False)
    alone = one_term(
        "RR", *(jax.tree.map(lambda x: x[:3], t) for t in (features, present))
    )
    doubled = jax.tree.map(
        lambda x: jnp.concatenate([x[:3], x[:3]]), (features, present)
    )
    study = jnp.arange(6) % 3
    same = study[:, None] == study[None]
    result = one_term("RR", *doubled, same=same)
    # Each row has its two negatives twice and its duplicate never.
    other = one_term("RR", *doubled)
    assert result.loss < other.loss
    s = [np.array(x[:, 0]) for x in (features["u"].z[:3], features["v"].z[:3])]
    expected = []
    for x, y in permutations(s):
        scores = np.exp(20 * np.tanh(x @ y.T / 2 / 20))
        own = np.diag(scores)
        expected.append(-np.log(own / (own + 2 * (scores.sum(1) - own))).mean())
    raw = np.average((s[0] @ s[1].T / 2) ** 2, weights=2 - np.eye(3))
    np.testing.assert_allclose(result.loss, np.mean(expected) + 0.04 * raw)
    assert alone.loss < result.loss


def test_positions_are_drawn_uniformly_from_the_real_ones():
    p = 4
    real = jnp.array([[True, False, True, True], [False] * 4])
    local = jnp.broadcast_to(jnp.arange(p, dtype=float)[None, :, None], (2, p, 1))
    view = crossmodal.View("a", jnp.zeros((2, 1)), local, jnp.ones(2, bool), real)
    drawn, valid = crossmodal.drawn(view, 3000, jax.random.key(0), jnp.arange(2))
    counts = np.bincount(np.array(drawn[0, :, 0], int), minlength=p)
    assert counts[1] == 0 and (abs(counts[[0, 2, 3]] - 1000) < 100).all()
    assert valid[0].all() and not valid[1].any()


def test_dropping_never_removes_the_last_view():
    b = 4000
    rng = np.random.default_rng(0)
    present = {"a": rng.random((b, 2)) < 0.7, "b": rng.random((b, 1)) < 0.7}
    given = np.concatenate([present["a"], present["b"]], 1)
    masks = kept(
        jax.tree.map(jnp.asarray, present), 0.5, jax.random.key(1), jnp.arange(b)
    )
    stays = np.concatenate([masks["a"], masks["b"]], 1)
    assert not (stays & ~given).any()
    np.testing.assert_array_equal(stays.any(1), given.any(1))
    # Of three views, one is restored if all are dropped: 1/2 + 1/8 / 3.
    complete = given.all(1)
    assert abs(stays[complete].mean() - (1 / 2 + 1 / 24)) < 0.02
    again = kept(
        jax.tree.map(lambda x: jnp.asarray(x[::-1]), present),
        0.5,
        jax.random.key(1),
        jnp.arange(b)[::-1],
    )
    np.testing.assert_array_equal(again["a"][::-1], masks["a"])  # by index only


TERMS = {"CR": 0.3, "XX": 0.5, "RR": 0.7, "CC": 0.9}
GEOMETRIC = partial(contrastive.geometric, temperature=0.3)


class Fixed:
    """A model that returns the features it was given, and logits from the mean."""

    def __init__(self, features):
        self.features = features

    def __call__(self, batch, *, key, train):
        kept = jnp.concatenate([batch["kept"][n] for n in sorted(self.features)], 1)
        h = jnp.concatenate([self.features[n].h for n in sorted(self.features)], 1)
        mean = jnp.where(kept[..., None], h, 0).sum(1, keepdims=True)
        z = jnp.concatenate([mean, h], 1)
        return dict(self.features) | {"y": Features(z=z, h=z, local=None)}


def loss_of(features, present, labels, estimator="info_nce", **changes):
    options = {
        "tasks": {"y": supervised.cross_entropy},
        "alone_weight": 0.5,
        "terms": TERMS,
        "estimator": ESTIMATORS[estimator],
        "polyview": GEOMETRIC,
        "polyview_weight": 0.2,
        "train_drop_prob": 0.4,
    }
    objective = CrossModal(**options | changes)
    b = len(labels)
    batch = {"present": present, "targets": {"y": labels}, "index": jnp.arange(b)}
    return objective(Fixed(features), None, batch, jax.random.key(3))


@pytest.mark.parametrize(
    ("estimator", "positions"),
    [*((name, None) for name in ESTIMATORS), ("info_nce", 2)],
)
def test_missing_views_do_not_change_loss_or_gradient(estimator, positions):
    features, present = batch_of()
    labels = jnp.arange(6) % 4

    def loss_only(features):
        return loss_of(features, present, labels, estimator, positions=positions)[0]

    compiled = jax.jit(jax.value_and_grad(loss_only, allow_int=True))
    loss, gradient = compiled(features)
    assert np.isfinite(loss)
    other = {}
    for name, part in features.items():
        given = present[name]
        change = lambda x, t=given: jnp.where(  # noqa: E731
            t.reshape(*t.shape, *[1] * (x.ndim - 2)), x, 7 * x + 100
        )
        other[name] = part._replace(
            **{k: change(getattr(part, k)) for k in ("z", "local")}
        )
        for field in ("z", "local"):
            by_field = np.array(getattr(gradient[name], field))
            np.testing.assert_array_equal(by_field[~np.array(given)], 0)
            assert np.isfinite(by_field).all() and by_field.any()
    np.testing.assert_array_equal(compiled(other)[0], loss)


def test_loss_is_the_weighted_sum_of_its_terms(x64):
    features, present = batch_of(missing=False)
    labels = jnp.arange(6) % 4
    whole_batch = jax.jit(partial(loss_of, train_drop_prob=0.0))
    loss, terms = whole_batch(features, present, labels)
    terms.pop("features")
    whole = terms["task/y"] + 0.2 * terms["polyview"]
    whole += sum(weight * terms[name] for name, weight in TERMS.items())
    np.testing.assert_allclose(loss, whole, rtol=1e-12)
    z = jnp.concatenate([features[n].z for n in "uv"], 1)
    np.testing.assert_allclose(terms["polyview"], GEOMETRIC(z).mean(), rtol=1e-10)
    h = jnp.concatenate([features[n].h for n in "uv"], 1)
    together, alone = h.sum(1, keepdims=True), h
    expected = supervised.cross_entropy(together, labels).mean()
    expected += 0.5 * supervised.cross_entropy(alone, labels).mean()
    np.testing.assert_allclose(terms["task/y"], expected, rtol=1e-12)


def test_eight_devices_give_the_same_objective(x64):
    features, present = batch_of(b=8)
    labels = jnp.arange(8) % 4
    compiled = jax.jit(
        jax.value_and_grad(lambda *a: loss_of(*a)[0], argnums=0, allow_int=True)
    )
    expected = compiled(features, present, labels)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), (AxisType.Auto,))):
        rows = NamedSharding(jax.sharding.get_mesh(), PartitionSpec("data"))
        result = compiled(*jax.device_put((features, present, labels), rows))
    for want, got in zip(*map(jax.tree.leaves, (expected, result)), strict=True):
        if want.dtype == np.float64:
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


LOSSES = {
    "geometric": contrastive.geometric,
    "arithmetic": contrastive.arithmetic,
    "sufficient": contrastive.sufficient_statistics,
}


def masked_loops(name, z, present, temperature):
    """The poly-view formulas over the present views."""
    b, m, _ = z.shape
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    views = [[a for a in range(m) if present[i, a]] for i in range(b)]
    losses = np.zeros((b, m))

    def e(u, v):
        return exp(u @ v / temperature)

    def rest(i, a):
        mean = np.mean([z[i, g] for g in views[i] if g != a], 0)
        return mean / np.linalg.norm(mean)

    for i in range(b):
        for a in views[i]:
            positives = [c for c in views[i] if c != a]
            if not positives:
                continue
            if name == "sufficient":
                p = e(z[i, a], rest(i, a))
                n = sum(
                    e(z[i, a], rest(j, g))
                    for j in range(b)
                    for g in views[j]
                    if j != i and len(views[j]) > 1
                )
                losses[i, a] = -log(p / (p + n))
                continue
            n = sum(e(z[i, a], z[j, g]) for j in range(b) for g in views[j] if j != i)
            ratios = [e(z[i, a], z[i, c]) for c in positives]
            ratios = [p / (p + n) for p in ratios]
            if name == "geometric":
                losses[i, a] = -np.mean(np.log(ratios))
            else:
                losses[i, a] = -log(np.mean(ratios))
    return losses


def test_each_mean_counts_what_is_observed(x64):
    features, present = batch_of()
    present = {name: given.at[0].set(False) for name, given in present.items()}
    labels = jnp.arange(6) % 4
    compiled = jax.jit(partial(loss_of, terms={}, train_drop_prob=0.0))
    loss, metrics = compiled(features, present, labels)
    view = np.concatenate([present[name] for name in "uv"], 1)
    h = np.concatenate([features[name].h for name in "uv"], 1)

    def cross_entropy(logits, label):
        return log(sum(map(exp, logits))) - logits[label]

    rows = range(len(labels))
    together = [
        cross_entropy(h[i][view[i]].sum(0), labels[i]) for i in rows if view[i].any()
    ]
    alone = [
        cross_entropy(h[i, a], labels[i]) for i, a in zip(*view.nonzero(), strict=True)
    ]
    task = np.mean(together) + 0.5 * np.mean(alone)
    np.testing.assert_allclose(metrics["task/y"], task, rtol=1e-9)

    z = np.concatenate([features[name].z for name in "uv"], 1)
    losses = masked_loops("geometric", z, view, 0.3)
    valid = view & (view.sum(1, keepdims=True) > 1)
    np.testing.assert_allclose(metrics["polyview"], losses[valid].mean(), rtol=1e-9)
    others = {i: valid.sum() - valid[i].sum() for i in rows}
    bounds_of_anchors = [
        log1p(others[i]) - losses[i, a] for i, a in zip(*valid.nonzero(), strict=True)
    ]
    np.testing.assert_allclose(
        metrics["bound/polyview"], np.mean(bounds_of_anchors), rtol=1e-9
    )
    np.testing.assert_allclose(loss, task + 0.2 * metrics["polyview"], rtol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_poly_view_losses_ignore_masked_views(name, x64):
    rng = np.random.default_rng(0)
    z, present = rng.normal(size=(6, 4, 3)), rng.random((6, 4)) < 0.75
    present[0], present[1] = False, [True, False, False, False]
    garbage = np.where(present[..., None], z, np.nan)

    @jax.jit
    def values_and_gradient(z, present):
        loss = partial(LOSSES[name], temperature=0.3, present=present)
        losses, pullback = jax.vjp(loss, z)
        return losses, pullback(jnp.ones_like(losses))[0]

    losses, gradient = map(np.array, values_and_gradient(garbage, present))
    expected = masked_loops(name, z, present, 0.3)
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-12)
    assert (losses[np.array(anchors(present))] > 0).all()
    np.testing.assert_array_equal(gradient[~present], 0)
    assert np.isfinite(gradient).all()
    whole = np.ones_like(present)
    losses, _ = values_and_gradient(z, whole)
    np.testing.assert_allclose(losses, masked_loops(name, z, whole, 0.3), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": {"XY": 1.0}}, "'XY'; there are CR, XX"),
        ({"terms": {"XX": 1.0}, "train_drop_prob": 1.0}, "below 1"),
        ({"terms": {"XX": 0.0}}, "no task and no term"),
        ({"terms": {"XX": -1.0}}, "terms.XX is -1.0, not 0 or more"),
        ({"polyview_weight": 0.1}, "polyview is None"),
        ({"terms": {"XX": 1.0}, "positions": 0}, "positions is 0"),
        (
            {"polyview": GEOMETRIC, "polyview_weight": 0.1, "study": "patient"},
            "views of one example",
        ),
    ],
)
def test_an_invalid_objective_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        CrossModal(**options)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "squared_error"])
def test_a_head_and_target_of_different_widths_are_refused(name):
    loss = getattr(supervised, name)
    with pytest.raises(InputError, match="head has 1 outputs, the target 3"):
        loss(jnp.zeros((2, 1, 1)), jnp.zeros((2, 3)))


def test_a_label_out_of_range_gives_nan():
    logits, masks = jnp.zeros((2, 1, 3)), jnp.zeros((2, 1, 4, 4, 3))
    for wrong in (-1, 3):
        labels = jnp.array([2, wrong])
        loss = supervised.cross_entropy(logits, labels)[:, 0]
        assert np.isfinite(loss[0]) and np.isnan(loss[1])
        mask = jnp.zeros((2, 4, 4), int).at[1, 2, 3].set(wrong)
        loss = supervised.dice_and_cross_entropy(masks, mask)[:, 0]
        assert np.isfinite(loss[0]) and np.isnan(loss[1])


def test_a_repeated_row_is_not_its_own_negative(x64):
    features, present = batch_of(u=1, v=1)
    index = jnp.arange(len(present["u"])).at[1].set(0)
    twice = one_term("RR", features, present, index=index)
    masked = one_term("RR", features, present, same=index[:, None] == index[None])
    np.testing.assert_allclose(twice.loss, masked.loss, rtol=1e-12)
    assert abs(twice.loss - one_term("RR", features, present).loss) > 1e-3


def test_an_invalid_term_is_refused():
    features, present = batch_of(u=1)
    with pytest.raises(ValueError, match="there is one"):
        one_term("XX", features, present)
    features["u"] = features["u"]._replace(local=None)
    with pytest.raises(ValueError, match="u has none"):
        one_term("CR", features, present)
    features, present = batch_of(u=1, v=1)
    narrow = features["u"].local[..., :2]
    features["u"] = features["u"]._replace(local=narrow)
    with pytest.raises(ValueError, match="compares . features with 2: give"):
        one_term("XX", features, present)
