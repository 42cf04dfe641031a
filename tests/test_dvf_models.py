"""Models of the future, what they are trained on, and a chain learnt end to end."""

import dataclasses
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dvf import tabular
from dvf.acting import Imitation, Policy
from dvf.condition import Condition, Scale
from dvf.futures import pairs
from dvf.objectives import Contrast, Denoising, TemporalDifference
from dvf.occupancy import ContrastiveOccupancy, DiffusionOccupancy
from dvf.policies import Numbered, Observed
from dvf.rewards import Column, Discs
from dvf.value import FromFutures, Values
from polyview.config.trust import allow_list
from polyview.data.later import offsets
from polyview.errors import InputError, OutOfRange
from polyview.model import Model
from polyview.nn.denoiser import MlpDenoiser
from polyview.objectives.diffusion import Diffusion, Flow, cosine
from polyview.runs.load import load
from polyview.training.step import create_state, make_step
from polyview.training.train import train
from polyview.training.trainer import Trainer
from tests.test_resume import saved_arrays, stop_at

P = np.array([[0.9, 0.1], [0.3, 0.7]])
MEAN, STD = (1.0, -2.0, 0.5), (2.0, 0.5, 1.0)


def mesh_of_8():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def on_8(tree):
    """Rows on eight devices, one of each after the other."""
    return jax.device_put(tree, NamedSharding(mesh_of_8(), PartitionSpec("data")))


def numpy_layers(layers, x):
    """Linear layers with SiLU between them, in float64."""
    for number, layer in enumerate(layers):
        kernel, bias = (np.asarray(p[...], float) for p in (layer.kernel, layer.bias))
        x = x @ kernel + bias
        if number < len(layers) - 1:
            x = x / (1 + np.exp(-x))
    return x


# --------------------------------------------------------------- condition


def slow_condition(state, offset, policy, action, features=16, longest=1000):
    told = list((state - np.array(MEAN)) / np.array(STD))
    count = features // 2
    place = np.log(min(max(offset, 1), longest)) / np.log(longest)
    periods = [0.25 * 16 ** (i / (count - 1)) for i in range(count)] if count else []
    told += [np.sin(2 * np.pi * f * place) for f in periods]
    told += [np.cos(2 * np.pi * f * place) for f in periods]
    return np.array([*told, *policy, *action])


@pytest.mark.parametrize("features", [0, 4, 16])
@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize("actions", [0, 2])
def test_the_condition_against_a_loop(rng, features, count, actions):
    condition = Condition(
        scale=Scale(MEAN, STD),
        policies=Numbered(count) if count else None,
        actions=actions,
        offset_features=features,
    )
    state = rng.standard_normal((6, 3)).astype(np.float32)
    action = rng.standard_normal((6, 2)).astype(np.float32)
    offset = np.array([1, 2, 30, 999, 1000, 5])
    number = np.array([0, 3, 1, 2, 0, 3])
    told = condition.of_policy(number)
    assert (told is None) == (count == 0)
    found = condition(state, offset, told, action if actions else None)
    assert found.shape == (6, condition.width) and found.dtype == jnp.float32
    for row in range(6):
        indicator = np.eye(count)[number[row]] if count else []
        own = action[row] if actions else []
        expected = slow_condition(state[row], offset[row], indicator, own, features)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_offsets_are_told_apart_up_to_the_longest():
    condition = Condition(scale=Scale(MEAN, STD), longest=200.0)
    state = np.zeros((202, 3), np.float32)
    found = np.asarray(condition(state, np.arange(202), None, None))
    np.testing.assert_array_equal(found[0], found[1])  # there is none below 1
    np.testing.assert_array_equal(found[200], found[201])
    apart = abs(found[1:201, None] - found[None, 1:201]).max(-1)
    assert (apart[~np.eye(200, dtype=bool)] > 1e-3).all()


def test_an_unknown_policy_is_an_indicator_of_zeros():
    found = Numbered(3)(jnp.array([-1, 0, 2, 3, 99]))
    expected = [[0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(OutOfRange, match="count"):
        Numbered(1)


def test_an_observed_policy_against_a_loop(rng):
    """The mean over time of a network of states and changes."""
    seen = Observed(mean=MEAN, std=STD, hidden=(8,), width=5, rngs=nnx.Rngs(0))
    rollouts = rng.standard_normal((2, 6, 3)).astype(np.float32)
    found = seen(jnp.asarray(rollouts))
    assert found.shape == (2, seen.width)
    for row in range(2):
        scaled = [(s - np.array(MEAN)) / np.array(STD) for s in rollouts[row]]
        outputs = [
            numpy_layers(seen.layers, np.concatenate([now, after - now]))
            for now, after in zip(scaled, scaled[1:], strict=False)
        ]
        np.testing.assert_allclose(found[row], np.mean(outputs, 0), atol=1e-5)
    with pytest.raises(InputError, match="roll-out of 1 states shows no change"):
        seen(jnp.zeros((2, 1, 3)))
    batch = {"views": {"rollout": rollouts}, "targets": {"policy": np.zeros(2, int)}}
    assert seen.of(batch) is rollouts
    assert Numbered(2).of(batch) is batch["targets"]["policy"]
    nothing: dict = {"views": {}, "targets": {}}
    assert seen.of(nothing) is None and Numbered(2).of(nothing) is None


def test_a_condition_refuses_what_is_missing_or_of_another_size():
    one = {"scale": Scale(MEAN, STD)}
    state, offset = np.zeros((4, 3), np.float32), np.ones(4, int)
    condition = Condition(**one, policies=Numbered(2), actions=2)
    with pytest.raises(InputError, match="which policy acted; add 'policy'"):
        condition.of_policy(None)
    for action, has in ((None, "none"), (np.zeros((4, 3)), r"shape \(4, 3\)")):
        with pytest.raises(InputError, match=rf"\[n, 2\], and there are .*{has}"):
            condition(state, offset, None, action)
    with pytest.raises(InputError, match=r"shape \(4, 2\), the model takes \[n, 3\]"):
        condition(state[:, :2], offset, None, None)
    with pytest.raises(InputError, match="give an even number"):
        Condition(**one, offset_features=3)
    for wrong in ({"longest": 1.0}, {"actions": -1}, {"offset_features": -2}):
        with pytest.raises(OutOfRange, match=next(iter(wrong))):
            Condition(**one, **wrong)


def test_a_scale_and_back(rng):
    scale = Scale(MEAN, STD)
    states = jnp.asarray(rng.standard_normal((50, 3)) * 100, jnp.float32)
    apart = scale.apart(states)
    expected = (np.asarray(states) - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(apart, expected, 1e-5)
    np.testing.assert_allclose(scale.together(apart), states, atol=1e-4)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0, 0.0), (1.0, 0.0)),
        ((0.0,), (-1.0,)),
        ((0.0,), (float("nan"),)),
        ((float("nan"),), (1.0,)),
        ((0.0, 0.0), (1.0,)),
        ((), ()),
        (np.zeros(2), np.zeros(2)),
        ((0.0,), (np.float32(0),)),
    ],
)
def test_a_dimension_that_is_constant_is_refused(mean, std):
    with pytest.raises((InputError, OutOfRange), match="std|mean"):
        Scale(mean, std)


# --------------------------------------------------------------- occupancy


@pytest.mark.parametrize(("g", "most"), [(0.9, None), (0.9, 12), (0.97, None), (0, 3)])
def test_offsets_of_futures_follow_the_law_of_the_views(rng, g, most):
    """Chi-square of 20,000 draws of the views; futures' own counts are exact."""
    count = 20_000
    estimate = FromFutures(g, samples=count, most=most)
    asked = []
    model = SimpleNamespace(call=lambda name, *given: asked.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        estimate(model, np.zeros((2, 1), np.float32), None, None, None)
    drawn = asked[0][1]
    assert drawn.dtype == np.int32 and drawn.shape == (128, count) and drawn.min() == 1
    longest = most or 60
    law = np.array([(1 - g) * g ** (k - 1) for k in range(1, longest)])
    law = np.append(law, 1 - law.sum())  # the tail at `most`, or all beyond
    law = law[law > 0]
    for row in drawn[:2]:
        counts = np.bincount(np.minimum(row, longest) - 1, minlength=len(law))
        assert abs(counts - count * law).max() < 2  # one at each end of a share
    if g:
        assert (drawn[0] != drawn[1]).any()
    views = offsets(rng, count, g, most)
    counts = np.bincount(np.minimum(views, longest) - 1, minlength=len(law))
    assert len(counts) == len(law)
    chi = ((counts - count * law) ** 2 / (count * law)).sum()
    free = len(law) - 1
    # Wilson & Hilferty: p > 1e-3 is less than 3.09 deviations of a cube root.
    if free:
        root, spread = 1 - 2 / (9 * free), (2 / (9 * free)) ** 0.5
        assert (chi / free) ** (1 / 3) < root + 3.09 * spread
    else:
        assert chi == 0


def few_steps(name):
    if name == "flow":
        return Flow(sample_steps=4)
    return Diffusion(cosine(20), sample_steps=4, clip=3.0)


def diffusion_model(process="ddpm", mean=MEAN, std=STD, **options):
    """A model with weights drawn at random, also those of the last layer."""
    options = {"policies": partial(Numbered, 3), "actions": 2} | options
    model = DiffusionOccupancy(
        mean=mean,
        std=std,
        process=few_steps(process) if isinstance(process, str) else process,
        denoiser=partial(MlpDenoiser, hidden=(16,)),
        rngs=nnx.Rngs(3),
        **options,
    )
    last = model.denoiser.last.kernel
    last[...] = 0.5 * jax.random.normal(jax.random.key(0), last.shape)
    return model


@nnx.jit
def sampled(model, *given):
    return model.sample(*given)


def contrastive_model(**options):
    options = {"policies": partial(Numbered, 3), "actions": 2} | options
    return ContrastiveOccupancy(
        mean=MEAN,
        std=STD,
        width=6,
        hidden=(8,),
        rngs=nnx.Rngs(0),
        **options,
    )


def queried(rng, n=8):
    return (
        jnp.asarray(rng.standard_normal((n, 3)), jnp.float32),
        jnp.asarray(np.arange(n) % 3),
        jnp.asarray(rng.standard_normal((n, 2)), jnp.float32),
    )


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_futures_of_a_row_depend_on_key_and_index_alone(rng, process):
    """Alone, in another order and twice, with fewer of them, on one device or eight."""
    graph, state = nnx.split(diffusion_model(process))

    @jax.jit
    def sample(rows, index, key=None):
        key = jax.random.key(5) if key is None else key
        now, *told = rows
        offset = 1 + index % 7
        return nnx.merge(graph, state).sample(now, offset, *told, None, key, index)

    rows, index = queried(rng), jnp.arange(80).reshape(8, 10)
    whole = sample(rows, index)
    assert whole.states.shape == (8, 10, 3)
    np.testing.assert_allclose(whole.weights, 0.1)
    rows_drawn = np.asarray(whole.states).reshape(80, 3).round(3)
    assert len(np.unique(rows_drawn, axis=0)) > 70
    order = np.array([5, 0, 0, 7, 3, 2, 1, 6])
    some = tuple(part[order] for part in rows)
    near = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    near(sample(some, index[order]).states, whole.states[order])
    alone = tuple(part[6:7] for part in rows)
    near(sample(alone, index[6:7, 3:5]).states[0], whole.states[6, 3:5])
    many = sample(*on_8((rows, index)))
    assert len(many.states.sharding.device_set) == 8
    near(many.states, whole.states)
    other = sample(rows, index, jax.random.key(6)).states
    assert (abs(other - whole.states).max(-1) > 1e-3).mean() > 0.9


def test_futures_are_in_the_units_of_the_data(rng):
    """Of data shifted and stretched, they are the same, shifted and stretched."""
    state, policy, action = queried(rng)
    index, key = jnp.arange(24).reshape(8, 3), jax.random.key(0)
    offset = 1 + index
    plain = diffusion_model(mean=(0.0,) * 3, std=(1.0,) * 3)
    own = diffusion_model()
    expected = sampled(plain, state, offset, policy, action, None, key, index).states
    there = state * jnp.array([STD]) + jnp.array([MEAN])
    found = sampled(own, there, offset, policy, action, None, key, index).states
    expected = np.asarray(expected) * np.array(STD) + np.array(MEAN)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["diffusion", "contrastive"])
def test_futures_depend_on_what_a_model_is_told_and_on_nothing_else(rng, kind):
    # Flow is not clipped, and no future stands where the clip puts it.
    flow = partial(diffusion_model, "flow")
    make = flow if kind == "diffusion" else contrastive_model
    state, policy, action = queried(rng)
    candidates = jnp.asarray(rng.standard_normal((5, 3)), jnp.float32)

    def futures(model, policy=policy, action=action):
        index = jnp.arange(8)[:, None]
        key = jax.random.key(0)
        drawn = sampled(model, state, index + 1, policy, action, candidates, key, index)
        return drawn.states if kind == "diffusion" else drawn.weights

    told = make()
    base = futures(told)
    assert (abs(futures(told, action=-action) - base).reshape(8, -1).max(1) > 0).all()
    others = abs(futures(told, policy=(policy + 1) % 3) - base)
    assert (others.reshape(8, -1).max(1) > 0).all()
    untold = make(policies=None, actions=0)
    base = futures(untold, action=None)
    np.testing.assert_array_equal(base, futures(untold, policy=None, action=None))
    np.testing.assert_array_equal(base, futures(untold, policy + 1, None))
    with pytest.raises(InputError, match="not told actions"):
        futures(untold)
    with pytest.raises(InputError, match="which policy acted"):
        futures(told, policy=None)
    with pytest.raises(InputError, match="takes actions"):
        futures(told, action=None)


def test_a_marginal_model_ignores_the_offset(rng):
    for features in (0, 16):
        condition = diffusion_model(offset_features=features).condition
        state, policy, action = queried(rng)
        told = condition.of_policy(policy)
        near, far = (condition(state, jnp.full(8, k), told, action) for k in (1, 40))
        assert (near.shape[1] == 3 + 3 + 2 + features) and (
            bool((near == far).all()) == (features == 0)
        )
        compared = contrastive_model(offset_features=features)
        near, far = (
            compared.log_ratio(state, jnp.full(8, k), policy, action, state)
            for k in (1, 40)
        )
        assert bool((near == far).all()) == (features == 0)


def slow_log_ratio(model, state, offset, policy, action, later):
    told = slow_condition(state, offset, np.eye(3)[policy], action)
    now = numpy_layers(model.of_now.layers, told) / 6**0.5
    scaled = (later - np.array(MEAN)) / np.array(STD)
    return now @ numpy_layers(model.of_later.layers, scaled)


def test_log_ratios_against_a_loop(rng):
    model = contrastive_model()
    state, policy, action = queried(rng)
    later = rng.standard_normal((5, 3)).astype(np.float32)
    offset = np.array([1, 2, 3, 5, 8, 13, 100, 2000])
    found = model.log_ratio(state, offset, policy, action, later)
    assert found.shape == (8, 5)
    for row in range(8):
        for c in range(5):
            expected = slow_log_ratio(
                model, state[row], offset[row], policy[row], action[row], later[c]
            )
            np.testing.assert_allclose(found[row, c], expected, atol=1e-4)


def test_weights_of_candidates_against_a_loop_over_offsets(rng):
    model = contrastive_model()
    state, policy, action = queried(rng)
    candidates = rng.standard_normal((7, 3)).astype(np.float32)
    key, index = jax.random.key(0), jnp.zeros((8, 1), jnp.int32)
    offset = rng.integers(1, 40, (8, 5))
    given = model, state, offset, policy, action, candidates
    found = sampled(*given, key, index)
    np.testing.assert_array_equal(found.states, np.tile(candidates, (8, 1, 1)))
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)
    other = sampled(*given, jax.random.key(1), index + 9)
    np.testing.assert_array_equal(found.weights, other.weights)
    for row in range(8):
        weights = np.zeros(7)
        for k in offset[row]:
            logs = np.array(
                [
                    slow_log_ratio(model, state[row], k, policy[row], action[row], c)
                    for c in candidates
                ]
            )
            weights += np.exp(logs) / np.exp(logs).sum() / 5
        np.testing.assert_allclose(found.weights[row], weights, atol=1e-5)


def test_a_model_that_compares_needs_candidates(rng):
    state, *told = queried(rng)
    index = jnp.ones((8, 1), jnp.int32)
    with pytest.raises(InputError, match="candidates"):
        contrastive_model().sample(state, index, *told, None, jax.random.key(0), index)
    with pytest.raises(InputError, match=r"offset has shape \(8, 1\)"):
        diffusion_model().sample(
            state, index, *told, None, jax.random.key(0), jnp.ones((8, 2), jnp.int32)
        )


@pytest.mark.parametrize("wrong", [{"width": 0}, {"hidden": (8, 0)}])
def test_sizes_outside_their_range_are_refused(wrong):
    with pytest.raises(OutOfRange, match=next(iter(wrong))):
        ContrastiveOccupancy(mean=MEAN, std=STD, rngs=nnx.Rngs(0), **wrong)


@pytest.mark.parametrize(
    "wrong", [{"discount": 1.0}, {"most": 0}, {"samples": 1}, {"discount": -0.1}]
)
def test_futures_outside_their_range_are_refused(wrong):
    with pytest.raises(OutOfRange, match=next(iter(wrong))):
        FromFutures(**{"discount": 0.9, **wrong})


# -------------------------------------------------------------- objectives


def batch_of(rng, b=4, m=4, lost=5, one_step=False):
    """A batch of `Later` views with policy and action; `lost` pairs are missing."""
    real = np.ones(b * m, bool)
    real[rng.permutation(b * m)[:lost]] = False
    real = real.reshape(b, m)

    def zeroed(rows):
        return np.where(real[..., None], rows, 0).astype(np.float32)

    offset = np.ones((b, m), np.int32) if one_step else rng.integers(1, 9, (b, m))
    views = {
        "state": zeroed(rng.standard_normal((b, m, 3))),
        "later": zeroed(rng.standard_normal((b, m, 3))),
        "action": zeroed(rng.standard_normal((b, m, 2))),
    }
    return {
        "views": views,
        "present": {name: real.copy() for name in views},
        "targets": {"offset": offset.astype(np.int32), "policy": np.arange(b) % 3},
        "index": np.arange(50, 50 + b, dtype=np.int32),
    }


def value_model(rewards=2, hidden=(8,), seed=0, policies=True):
    return Values(
        mean=MEAN,
        std=STD,
        rewards=rewards,
        hidden=hidden,
        policies=partial(Numbered, 3) if policies else None,
        rngs=nnx.Rngs(seed),
    )


def objectives():
    temporal = TemporalDifference(Column([0, 2]), 0.9)
    return [
        pytest.param(Denoising(), diffusion_model, False, id="ddpm"),
        pytest.param(Denoising(), partial(diffusion_model, "flow"), False, id="flow"),
        pytest.param(Contrast(), contrastive_model, False, id="contrast"),
        pytest.param(temporal, value_model, True, id="temporal"),
    ]


def graded(objective, model, target=None):
    """Compiled `(batch, key) -> loss, gradient` of a model."""
    graph, params = nnx.split(model)

    @jax.jit
    def found(batch):
        def loss(params):
            key = jax.random.key(0)
            return objective(nnx.merge(graph, params), target, batch, key)[0]

        return jax.value_and_grad(loss)(params)

    return found


@pytest.mark.parametrize(("objective", "make", "one_step"), objectives())
def test_missing_pairs_count_nowhere(rng, objective, make, one_step):
    """Whatever stands in their place: the same loss and gradient, bit for bit; and on
    eight devices as on one."""
    model, target = make(), make() if one_step else None
    found = graded(objective, model, target)
    batch = batch_of(rng, b=8, one_step=one_step)
    loss, gradient = found(batch)
    lost = ~batch["present"]["later"]
    assert np.isfinite(loss) and loss != 0
    with jax.set_mesh(mesh_of_8()):
        many = graded(objective, model, target)(on_8(batch))
    for want, got in zip(*map(jax.tree.leaves, ((loss, gradient), many)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-6)

    for name in ("state", "later", "action"):
        batch["views"][name][lost] = 7 * rng.standard_normal()
    batch["targets"]["offset"][lost] = 3
    other, other_gradient = found(batch)
    assert loss == other
    jax.tree.map(np.testing.assert_array_equal, gradient, other_gradient)
    # Another pair that is there does count.
    batch["views"]["later"][~lost] += 0.1
    assert found(batch)[0] != loss
    # Without any pair there is nothing to learn.
    nothing, gradient = found(batch_of(rng, b=8, lost=32, one_step=one_step))
    assert nothing == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


@dataclasses.dataclass(frozen=True)
class Told:
    """A process whose loss tells what it was given."""

    def loss(self, denoise, x, condition, key, index):
        return x.sum(1) + 10 * condition.sum(1) + 100 * index


def test_denoising_gives_each_pair_its_own_numbers(rng):
    """The later state in units of the deviation, the condition, a number of its own."""
    model, batch = diffusion_model(Told()), batch_of(rng)
    loss, metrics = Denoising()(model, None, batch, jax.random.key(0))
    terms = []
    for e in range(4):
        for j in range(4):
            if batch["present"]["later"][e, j]:
                rows = {name: view[e, j] for name, view in batch["views"].items()}
                told = slow_condition(
                    rows["state"],
                    batch["targets"]["offset"][e, j],
                    np.eye(3)[batch["targets"]["policy"][e]],
                    rows["action"],
                )
                later = (rows["later"] - np.array(MEAN)) / np.array(STD)
                number = batch["index"][e] * 4 + j
                terms.append(later.sum() + 10 * told.sum() + 100 * number)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(metrics["present"], len(terms) / 16)


@pytest.mark.parametrize("process", ["ddpm", "flow"])
def test_pairs_of_one_episode_draw_different_noise(rng, process):
    model = diffusion_model(process)
    batch = batch_of(rng, lost=0)
    for part in (batch["views"], batch["targets"]):
        for name, rows in part.items():
            part[name] = np.broadcast_to(rows[:1], rows.shape).copy()
            if part[name].ndim > 1:  # all pairs are equal
                part[name] = np.broadcast_to(rows[:1, :1], rows.shape).copy()
    rows = pairs(batch, model.condition)
    assert len(np.unique(rows.number)) == 16
    losses_of = nnx.jit(lambda model, rows, key: model.losses(rows, key))
    losses = np.asarray(losses_of(model, rows, jax.random.key(0)))
    assert len(np.unique(losses)) == 16
    # An episode draws the same wherever it stands in the batch, each step anew.
    swapped = batch | {"index": batch["index"][::-1]}
    again = np.asarray(
        losses_of(model, pairs(swapped, model.condition), jax.random.key(0))
    )
    np.testing.assert_allclose(again.reshape(4, 4)[::-1], losses.reshape(4, 4), 1e-5)
    other = np.asarray(losses_of(model, rows, jax.random.key(1)))
    assert (other != losses).all()


@pytest.mark.parametrize("name", ["state", "later", "offset"])
def test_a_batch_of_other_views_is_refused(rng, name):
    batch = batch_of(rng)
    for part in ("views", "targets"):
        batch[part].pop(name, None)
    with pytest.raises(InputError, match=f"no '{name}', only .*later:Later"):
        pairs(batch, diffusion_model().condition)


def test_a_batch_that_does_not_say_who_acted_is_refused(rng):
    batch = batch_of(rng)
    del batch["targets"]["policy"]
    with pytest.raises(InputError, match="add 'policy' to views.targets"):
        pairs(batch, diffusion_model().condition)


def test_temporal_difference_against_a_loop(rng):
    """Pairs of other offsets than 1 are left out, as missing ones are."""
    model, target, batch = value_model(), value_model(seed=1), batch_of(rng)
    batch["targets"]["offset"] = rng.integers(1, 3, (4, 4)).astype(np.int32)
    objective = TemporalDifference(Column([0, 2]), 0.9)
    loss, metrics = objective(model, target, batch, jax.random.key(0))

    def worth(module, state, policy):
        scaled = (state - np.array(MEAN)) / np.array(STD)
        return numpy_layers(
            module.layers.layers, np.concatenate([scaled, np.eye(3)[policy]])
        )

    terms = []
    for e in range(4):
        for j in range(4):
            one = batch["targets"]["offset"][e, j] == 1
            if batch["present"]["later"][e, j] and one:
                now, after = (batch["views"][v][e, j] for v in ("state", "later"))
                policy = batch["targets"]["policy"][e]
                wanted = 0.9 * (after[[0, 2]] + worth(target, after, policy))
                terms.append(np.mean((worth(model, now, policy) - wanted) ** 2))
    assert 2 < len(terms) < 11
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(metrics["present"], len(terms) / 16)
    with pytest.raises(InputError, match="target_decay"):
        objective(model, None, batch, jax.random.key(0))


def test_values_of_another_number_of_rewards_are_refused(rng):
    """One value must not be spread over many rewards."""
    batch = batch_of(rng, one_step=True)
    objective = TemporalDifference(Column([0, 1, 2]), 0.9)
    for rewards in (1, 2):
        model = value_model(rewards=rewards)
        with pytest.raises(InputError, match="rewards"):
            objective(model, model, batch, jax.random.key(0))


def two_states(count=10):
    """All steps of the chain P in their true proportions, as one batch."""
    looks = np.array([[-1.0], [1.0]], np.float32)
    now = np.repeat([0, 1], count)
    after = np.concatenate([[0] * 9 + [1], [0] * 3 + [1] * 7])
    return {
        "views": {"state": looks[now][:, None], "later": looks[after][:, None]},
        "present": {"later": np.ones((2 * count, 1), bool)},
        "targets": {"offset": np.ones((2 * count, 1), np.int32)},
        "index": np.arange(2 * count, dtype=np.int32),
    }


def table_of_values(rngs):
    """A value for each of two states: without hidden layers, a line through both."""
    return Values(mean=(0.0,), std=(1.0,), rewards=1, hidden=(), rngs=rngs)


def test_temporal_difference_ends_at_the_exact_values():
    """Trained by the engine's own step; the gradient passes by the target."""
    g, objective = 0.8, TemporalDifference(Discs([[1.0]], 0.5), 0.8)
    exact = g / (1 - g) * tabular.occupancy(P, g)[:, 1]
    graph, _ = nnx.split(table_of_values(nnx.Rngs(0)))
    optimizer, seed = optax.sgd(0.3), jnp.uint32(0)
    state, fixed = create_state(table_of_values, optimizer, seed, 0.5)
    step = jax.jit(make_step(graph, objective, optimizer, 0.5))
    batch = two_states()

    def told(params):
        kernel, bias = (params["layers"]["layers"][0][k] for k in ("kernel", "bias"))
        return np.array([float(bias[0] - kernel[0, 0]), float(bias[0] + kernel[0, 0])])

    # One step by hand: the derivative of (V - target)^2 for a constant target.
    before, target = told(state.params), told(state.target["params"])
    down = np.zeros(2)
    for s in (0, 1):
        wanted = g * (P[s] @ (np.array([0.0, 1.0]) + target))
        slope = 2 * (before[s] - wanted) / 2  # half of all pairs begin in s
        sign = -1 if s == 0 else 1
        down += slope * np.array([1 + sign * -1, 1 + sign])
    state, _ = step(state, fixed, batch, jnp.int32(0), seed)
    np.testing.assert_allclose(told(state.params), before - 0.3 * down, atol=1e-5)
    for number in range(1, 150):
        state, metrics = step(state, fixed, batch, jnp.int32(number), seed)
    assert bool(metrics["healthy"])
    np.testing.assert_allclose(told(state.params), exact, rtol=1e-3)


def test_contrast_is_at_its_best_where_products_are_log_ratios():
    """The expected loss over all batches of two pairs is flat there, and only there."""
    rho = tabular.occupancy(P, 0.9)
    joint = rho * np.array([[0.5], [0.5]])  # of a state and a later one
    ratio = np.log(rho / joint.sum(0))
    looks = np.array([-1.0, 1.0], np.float32)

    def loss(table, batch):
        def encodings(rows):
            now = (rows.state[:, :1] > 0).astype(int)[:, 0]
            return table[now], jax.nn.one_hot((rows.later[:, 0] > 0).astype(int), 2)

        model = SimpleNamespace(
            encodings=encodings, condition=SimpleNamespace(policies=None, of_policy=id)
        )
        model.condition.of_policy = lambda policy: None
        return Contrast()(model, None, batch, jax.random.key(0))[0]

    gradient = jax.jit(jax.grad(loss))
    outcomes = [(s, after) for s in (0, 1) for after in (0, 1)]

    def expected(table):
        total = np.zeros((2, 2))
        for one in outcomes:
            for other in outcomes:
                states = looks[[[one[0]], [other[0]]]][..., None]
                later = looks[[[one[1]], [other[1]]]][..., None]
                batch = {
                    "views": {"state": states, "later": later},
                    "present": {"later": np.ones((2, 1), bool)},
                    "targets": {"offset": np.ones((2, 1), np.int32)},
                    "index": np.arange(2, dtype=np.int32),
                }
                chance = joint[one] * joint[other]
                total += chance * np.asarray(gradient(jnp.asarray(table), batch))
        return total

    assert abs(expected(ratio.astype(np.float32))).max() < 1e-6
    for other in (0 * ratio, 2 * ratio, np.log(P / P.mean(0))):
        assert abs(expected(other.astype(np.float32))).max() > 1e-3


# ------------------------------------------------------------------ acting


def imitated(rng, b=2, m=5):
    return {
        "views": {
            "state": rng.standard_normal((b, m, 3)).astype(np.float32),
            "action": rng.standard_normal((b, m, 2)).astype(np.float32),
        },
        "targets": {"weight": rng.random((b, m)).astype(np.float32)},
    }


def test_imitation_against_a_loop(rng):
    policy = Policy(mean=MEAN, std=STD, actions=2, hidden=(8,), rngs=nnx.Rngs(0))
    batch = imitated(rng)
    batch["targets"]["weight"][0, 1:3] = 0
    found = graded(Imitation(), policy)
    loss, gradient = found(batch)
    total = size = 0.0
    for e in range(2):
        for j in range(5):
            scaled = (batch["views"]["state"][e, j] - np.array(MEAN)) / np.array(STD)
            told = numpy_layers(policy.layers.layers, scaled)
            np.testing.assert_allclose(
                policy.act(batch["views"]["state"][e, j : j + 1])[0], told, atol=1e-5
            )
            weight = batch["targets"]["weight"][e, j]
            total += weight * ((told - batch["views"]["action"][e, j]) ** 2).sum()
            size += weight
    np.testing.assert_allclose(loss, total / size, rtol=1e-5)
    # An action of weight 0 counts nowhere.
    batch["views"]["action"][0, 1:3] += 5
    again, again_gradient = found(batch)
    assert loss == again
    jax.tree.map(np.testing.assert_array_equal, gradient, again_gradient)


def test_the_best_imitation_of_a_state_is_the_weighted_mean(rng):
    batch = imitated(rng)
    batch["views"]["state"][:] = 0.5
    weights = batch["targets"]["weight"][..., None]
    mean = (weights * batch["views"]["action"]).sum((0, 1)) / weights.sum()
    policy = Policy(mean=MEAN, std=STD, actions=2, hidden=(4,), rngs=nnx.Rngs(0))
    last = policy.layers.layers[-1]
    last.kernel[...] = jnp.zeros_like(last.kernel[...])
    last.bias[...] = jnp.asarray(mean)
    _, gradient = graded(Imitation(), policy)(batch)
    assert all(abs(leaf).max() < 1e-5 for leaf in jax.tree.leaves(gradient))


def test_imitation_refuses_batches_that_do_not_fit(rng):
    policy = Policy(mean=MEAN, std=STD, actions=3, hidden=(4,), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="3 numbers an action, the data 2"):
        Imitation()(policy, None, imitated(rng), jax.random.key(0))
    for part, name in (("views", "action"), ("targets", "weight")):
        batch = imitated(rng)
        del batch[part][name]
        with pytest.raises(InputError, match="dvf.transitions:Transitions"):
            Imitation()(policy, None, batch, jax.random.key(0))


def test_what_a_config_of_dvf_names_may_be_loaded():
    """Else a run of a policy could be trained, and never evaluated."""
    allowed = allow_list()
    for target in (
        "dvf.acting:Policy",
        "dvf.acting:Imitation",
        "dvf.evaluation.play:Returns",
        "dvf.objectives:Denoising",
        "dvf.occupancy:DiffusionOccupancy",
        "dvf.policies:Numbered",
        "dvf.transitions:Transitions",
        "dvf.rewards:Discs",
        "dvf.worlds:world",
        "polyview.data.later:Later",
        "polyview.objectives.diffusion:Diffusion",
    ):
        module = target.partition(":")[0]
        parents = {target, module} | {
            module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)
        }
        assert parents & allowed, target


# ------------------------------------------------------- the two-state chain

CHAIN = ConfigDict(
    {
        "seed": 0,
        "steps": 400,
        "epochs": None,
        "batch_size": 8,
        "log_every": 400,
        "checkpoint_every": 380,
        "evaluate_every": 0,
        "keep": 3,
        "workers": 0,
        "mesh": {"data": -1, "fsdp": 1},
        "source": {
            "target": "dvf.tabular:Walks",
            "transition": P.tolist(),
            "places": [[-1.0], [1.0]],
            "episodes": 1500,
            "steps": 60,
        },
        "views": {"target": "polyview.data.later:Later", "m": 128, "discount": 0.8},
        "model": {
            "partial": "dvf.occupancy:DiffusionOccupancy",
            "mean": (-0.5,),
            "std": (0.87,),
            # In few steps, with the best of networks, what is rare comes out rarer.
            "process": {
                "target": "polyview.objectives.diffusion:Flow",
                "sample_steps": 40,
            },
            "denoiser": {
                "partial": "polyview.nn.denoiser:MlpDenoiser",
                "hidden": (32, 32),
            },
        },
        "objective": {"target": "dvf.objectives:Denoising"},
        "optimizer": {
            "partial": "polyview.training.optimizer:adamw",
            "learning_rate": {
                "partial": "polyview.training.optimizer:constant",
                "base": 1e-2,
            },
            "weight_decay": 0.0,
            "warm_up": 0.02,
        },
    }
)


def test_a_chain_is_learnt_and_a_resumed_run_equals_it(tmp_path, optimized):
    """V of a reward in one state is within 5 % of the exact one, from both states."""
    train(Trainer(CHAIN), tmp_path / "whole")
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    model = Model(load(tmp_path / "whole").parts, one)
    states = np.array([[-1.0], [1.0]], np.float32)
    estimate = FromFutures(0.8, samples=12_000, rows=2)
    told = estimate(model, states, None, None, Discs([[-1.0], [1.0]], 1.0))
    exact = 4 * tabular.occupancy(P, 0.8)
    np.testing.assert_allclose(told.mean, exact, rtol=0.05)
    assert (told.standard_error < 0.02 * exact).all()

    # Stopped after 380 steps.
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    stop_at(tmp_path / "stopped", 380)
    train(Trainer(CHAIN), tmp_path / "stopped")
    ends = [saved_arrays(tmp_path / name, 400) for name in ("whole", "stopped")]
    assert ends[0].keys() == ends[1].keys()
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], err_msg=name)
