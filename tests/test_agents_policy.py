"""A policy acts as it was trained: one sequence, whole or by parts from a cache."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agents.adapters import Categorical, Regression, Tokens, Words
from agents.bridges import Grid, Image, State
from agents.clone import Cloning
from agents.llm.llama import Body
from agents.policy import Policy
from agents.tokenizers.residual import ResidualVQ
from agents.tokenizers.uniform import Uniform
from polyview.errors import InputError
from polyview.model import split_module
from polyview.nn.heads import Identity
from polyview.nn.small_conv import SmallConv
from polyview.nn.towers import Tower
from polyview.runs.checksum import flatten

BODY = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 48}
RANGE = {"low": [-1.0, -2.0], "high": [1.0, 2.0]}
STRINGS = [[5, 6], [5], [5, 7], [8]]  # one begins others
CONTINUOUS, NUMBERED = (2,), ()


def body(*, rngs):
    lora = {"rank": 2, "alpha": 4.0}
    return Body(**BODY, vocabulary=40, lora=lora, rngs=rngs)


def state(width, *, rngs):
    return State(width, mean=[0.0] * 3, std=[1.0] * 3, hidden=16, rngs=rngs)


def regression(width, *, rngs):
    return Regression(width, **RANGE, hidden=8, rngs=rngs)


def categorical(width, *, rngs):
    return Categorical(width, actions=4, hidden=8, rngs=rngs)


def words(width, *, rngs):
    return Words(width, strings=STRINGS, end=2, rngs=rngs)


def tokens(width, *, rngs):
    def tokenizer(*, rngs):
        return Uniform(**RANGE, codes=3)

    return Tokens(width, tokenizer=tokenizer, rngs=rngs)


ADAPTERS = {
    regression: CONTINUOUS,
    tokens: CONTINUOUS,
    categorical: NUMBERED,
    words: NUMBERED,
}


def made(adapter, span=1, seed=0):
    policy = Policy(
        body=body,
        bridges={"state": state},
        adapter=adapter,
        span=span,
        rngs=nnx.Rngs(seed),
    )
    # Adapters of a body begin as nothing; a test must see them.
    for own in policy.body.lora.values():
        own.b[...] = 0.3 * jax.random.normal(jax.random.key(1), own.b.shape)
    return policy


def batch_of(rng, b, m, shape, length=6):
    text = rng.integers(0, 40, (b, 1, length)).astype(np.int32)
    text[0, 0, 3:] = -1
    numbered = shape == NUMBERED
    actions = rng.integers(0, 4, (b, m)) if numbered else rng.normal(size=(b, m, 2))
    present = np.ones((b, m), bool)
    return {
        "views": {"text": text, "state": rng.normal(size=(b, m, 3)).astype(np.float32)},
        "present": {"text": np.ones((b, 1), bool), "state": present},
        "targets": {"action": actions.astype(np.int32 if numbered else np.float32)},
    }


def losses(policy, batch):
    return jax.jit(lambda b: policy.loss(b, None, False)[0])(batch)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.__name__)
def test_steps_that_share_an_instruction_are_asked_alone(adapter, rng):
    policy = made(adapter)
    loss = jax.jit(lambda b: policy.loss(b, None, False)[0])
    batch = batch_of(rng, 2, 3, ADAPTERS[adapter])
    together = loss(batch)
    for step in range(3):
        alone = {
            part: {
                name: x if name == "text" else x[:, step : step + 1]
                for name, x in batch[part].items()
            }
            for part in ("views", "present", "targets")
        }
        np.testing.assert_allclose(together[:, step], loss(alone)[:, 0], rtol=2e-5)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.__name__)
def test_a_step_sees_the_steps_before_it_and_no_later_one(adapter, rng):
    policy = made(adapter, span=3)
    loss = jax.jit(lambda b: policy.loss(b, None, False)[0])
    batch = batch_of(rng, 2, 3, ADAPTERS[adapter])
    base = loss(batch)
    for step, part in itertools.product(range(3), ("views", "targets")):
        changed = jax.tree.map(np.copy, batch)
        name = "state" if part == "views" else "action"
        changed[part][name][:, step] = changed[part][name][:, step] * 0.5 + 1
        if ADAPTERS[adapter] == NUMBERED and part == "targets":
            changed[part][name][:, step] = (batch[part][name][:, step] + 1) % 4
        moved = np.abs(loss(changed) - base).max(0) > 1e-6
        assert not moved[:step].any()
        assert moved[step + (part == "targets") :].all()


@pytest.mark.parametrize("span", [1, 3])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: a.__name__)
def test_acting_from_a_cache_takes_what_training_finds_likeliest(adapter, span, rng):
    policy = made(adapter, span)
    batch = batch_of(rng, 4, span, ADAPTERS[adapter])
    present = batch["present"]["state"]
    if span > 1:
        present[1:3, 0] = present[2, 1] = False  # episodes that have just begun
    for name in ("views", "targets"):
        for key, x in batch[name].items():
            if key != "text":
                x[~present] = 0
    text = batch["views"]["text"][:, 0]
    views = {"state": batch["views"]["state"]}
    taken = batch["targets"]["action"].copy()
    taken[:, -1] = 1  # not read
    now = jax.tree.map(jnp.asarray, {"state": views["state"][:, -1], "text": text})
    past = {
        "views": {"state": views["state"][:, :-1]},
        "real": present[:, :-1],
        "actions": taken[:, :-1],
    }
    cache = jax.jit(policy.recall)(past, now)
    first = jnp.zeros(4, bool)
    act = jax.jit(lambda key: policy.act(cache, now, first, key)[1].action)
    acted = np.asarray(act(None))
    if adapter is regression:
        candidates = acted[None]
    elif adapter is tokens:
        each = np.array(list(itertools.product([-2 / 3, 0, 2 / 3], repeat=2)))
        candidates = np.broadcast_to((each * [1, 2])[:, None], (9, 4, 2))
    else:
        candidates = np.broadcast_to(np.arange(4)[:, None], (4, 4))
    loss = jax.jit(lambda b: policy.loss(b, None, False)[0])
    found = []
    for candidate in candidates:
        batch["targets"]["action"][:, -1] = candidate
        found.append(np.asarray(loss(batch))[:, -1])
    found = np.stack(found)
    if adapter is regression:  # its error at the action that it takes is zero
        np.testing.assert_allclose(found, 0, atol=1e-9)
        return
    np.testing.assert_allclose(np.exp(-found).sum(0), 1, rtol=1e-5)
    # Greedy by parts: the first part of the likeliest kind, then the next.
    assert acted.shape == candidates.shape[1:]
    drawn = [np.asarray(act(jax.random.key(seed))) for seed in range(3)]
    assert any((one != acted).any() for one in drawn)
    if adapter is categorical:
        np.testing.assert_array_equal(acted, found.argmin(0))
    if adapter is tokens:
        close = np.abs(candidates - acted[None]).sum(-1).argmin(0)
        first = np.exp(-found).reshape(3, 3, 4)
        best = first.sum(1).argmax(0)
        second = first[best, :, np.arange(4)].argmax(-1)
        np.testing.assert_array_equal(close, best * 3 + second)
    if adapter is words:
        # Token 5 begins the first three; of these the likeliest.
        chance = np.exp(-found)
        begun = chance[:3].sum(0) > chance[3]
        wanted = np.where(begun, chance[:3].argmax(0), 3)
        np.testing.assert_array_equal(acted, wanted)


def test_padding_of_an_instruction_changes_nothing(rng):
    policy = made(categorical)
    batch = batch_of(rng, 2, 2, NUMBERED)
    base = losses(policy, batch)
    text = batch["views"]["text"]
    batch["views"]["text"] = np.pad(text, [(0, 0), (0, 0), (0, 5)], constant_values=-1)
    np.testing.assert_allclose(losses(policy, batch), base, rtol=1e-5)


def test_cloning_takes_the_mean_over_present_steps(rng):
    policy = made(categorical, span=3)
    batch = batch_of(rng, 2, 3, NUMBERED)
    batch["present"]["state"][0, :2] = False
    found, metrics = Cloning()(policy, None, batch, jax.random.key(0))
    every = policy.loss(batch, None, False)[0]
    wanted = np.asarray(every)[batch["present"]["state"]].mean()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert 0 <= float(metrics["accuracy"]) <= 1


def test_only_bridges_adapters_and_low_rank_parts_are_trained():
    def residual(width, *, rngs):
        def tokenizer(*, rngs):
            sizes = {"codebooks": 2, "codes": 4, "width": 8, "dim": 4}
            return ResidualVQ(**RANGE, **sizes, rngs=rngs)

        return Tokens(width, tokenizer=tokenizer, rngs=rngs)

    parts = split_module(made(residual))
    trained, fixed = flatten(parts.params), flatten(parts.fixed)
    assert not flatten(parts.statistics)
    assert {name.split(".")[0] for name in trained} == {"body", "bridges", "adapter"}
    assert all(".lora." in name for name in trained if name.startswith("body"))
    assert any(name.startswith("adapter.tokenizer") for name in fixed)
    assert not any("tokenizer" in name for name in trained)


@pytest.mark.parametrize("whole", [True, False])
def test_a_grid_is_embedded_cell_by_cell_and_refuses_unknown_codes(whole, rng):
    sizes = {"shape": (2, 3, 2), "codes": 5, "features": 4, "hidden": 6}
    bridge = Grid(8, **sizes, whole=whole, rngs=nnx.Rngs(0))
    bridge.scale[...] = 0.1 * bridge.scale[...]
    x = rng.integers(0, 5, (3, 2, 3, 2)).astype(np.uint8)
    table = np.asarray(bridge.table[...])
    cells = np.zeros((3, 2, 3, 4))
    for n, h, w in itertools.product(range(3), range(2), range(3)):
        cells[n, h, w] = table[0, x[n, h, w, 0]] + table[1, x[n, h, w, 1]]
    rows = cells.reshape(3, bridge.count, -1)
    assert bridge.count == (1 if whole else 2)
    for number in range(bridge.count):
        own = rows[:, number] + (
            0 if whole else np.asarray(bridge.place[...])[:, number]
        )
        wanted = bridge._bridged(jnp.asarray(own, jnp.float32))[:, 0]
        np.testing.assert_allclose(bridge(x)[:, number], wanted, rtol=1e-5)
    assert np.isnan(np.asarray(bridge(np.full_like(x, 5)))).all()
    with pytest.raises(InputError, match="grids are"):
        bridge(x[:, :1])


def test_an_image_is_read_by_latents_from_the_map_of_a_tower(rng):
    def tower(*, rngs):
        return Tower(
            encoder=lambda *, rngs: SmallConv(
                size=16, in_channels=3, features=8, rngs=rngs
            ),
            projector=lambda width, *, rngs: Identity(width, rngs=rngs),
            local=True,
            frozen=True,
            rngs=rngs,
        )

    bridge = Image(8, tower=tower, tokens=3, features=8, rngs=nnx.Rngs(0))
    images = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    found = bridge(jnp.asarray(images))
    assert found.shape == (2, 3, 8) and bridge.count == 3
    assert np.abs(np.asarray(found[0] - found[1])).max() > 1e-4
    assert not any("encoder" in name for name in flatten(split_module(bridge).params))


class Pixels(nnx.Module):
    """Its map is the pixels."""

    features = 3

    def __init__(self, *, rngs):
        pass

    def __call__(self, x, *, train, key=None):
        local = x.reshape(len(x), -1, 3)
        return local.mean(1), local


def test_an_image_tells_where_things_are(rng):
    def tower(*, rngs):
        return Tower(encoder=Pixels, projector=Identity, local=True, rngs=rngs)

    bridge = Image(8, tower=tower, tokens=3, features=8, rngs=nnx.Rngs(0))
    images = rng.integers(0, 256, (1, 4, 4, 3)).astype(np.uint8)
    turned = images.transpose(0, 2, 1, 3)  # the same pixels at other places
    found = bridge(jnp.asarray(np.concatenate([images, turned])))
    assert np.abs(np.asarray(found[0] - found[1])).max() > 1e-4
    with pytest.raises(InputError, match="8 places, and is not square"):
        bridge(jnp.asarray(images[:, :2]))


def test_a_state_is_standardised_and_a_token_has_the_scale_of_a_word(rng):
    told = State(8, mean=[3.0, -1.0], std=[2.0, 0.5], hidden=4, rngs=nnx.Rngs(0))
    plain = State(8, mean=[0.0, 0.0], std=[1.0, 1.0], hidden=4, rngs=nnx.Rngs(0))
    x = rng.normal(size=(4, 2)).astype(np.float32)
    spread, centre = np.float32([[2, 0.5]]), np.float32([[3, -1]])
    np.testing.assert_allclose(told(x * spread + centre), plain(x), atol=1e-5)
    tokens = np.asarray(plain(x))
    np.testing.assert_allclose(np.sqrt(np.square(tokens).mean(-1)), 0.1, rtol=1e-2)


def test_each_place_of_an_action_has_rows_of_its_own_unless_shared():
    def of(shared):
        def uniform(*, rngs):
            return Uniform(**RANGE, codes=3)

        return Tokens(8, tokenizer=uniform, shared=shared, rngs=nnx.Rngs(0))

    code = jnp.array([1])
    apart, shared = of(False), of(True)
    assert (apart.embed(None, code, 0) != apart.embed(None, code, 1)).any()
    np.testing.assert_array_equal(
        shared.embed(None, code, 0), shared.embed(None, code, 1)
    )
    x = jax.random.normal(jax.random.key(0), (1, 8))
    own = [apart.coded.scores(x, place) for place in (0, 1)]
    assert (own[0] != own[1]).any()
    assert apart.coded.head.kernel.shape == (8, 6)
    assert shared.coded.head.kernel.shape == (8, 3)


def test_a_regression_tells_its_error_a_dimension_and_acts_within_the_range(rng):
    adapter = Regression(8, **RANGE, hidden=4, rngs=nnx.Rngs(0))
    adapter.head.down.bias[...] = jnp.array([5.0, 0.5])
    adapter.head.down.kernel[...] = jnp.zeros((4, 2))
    hidden = jnp.zeros((1, 1, 8))
    loss, metrics = adapter.loss(None, hidden, jnp.array([[1.0, -4.0]]))
    np.testing.assert_allclose(loss, [(4**2 + 1.5**2) / 2])
    np.testing.assert_allclose(metrics["clipped"], [0.5])
    part = adapter.choose(None, hidden[:, 0], [], None, None)
    np.testing.assert_allclose(adapter.decode([part]), [[1.0, 1.0]])


def test_only_legal_actions_are_taken():
    adapter = Categorical(8, actions=4, hidden=4, rngs=nnx.Rngs(0))
    hidden = jax.random.normal(jax.random.key(0), (50, 8))
    legal = np.arange(4)[None] == np.arange(50)[:, None] % 4
    for key in (None, jax.random.key(1)):
        found = adapter.choose(None, hidden, [], key, legal)
        np.testing.assert_array_equal(found, np.arange(50) % 4)


def test_more_tokens_than_the_context_are_refused(rng):
    policy = made(categorical, span=3)
    policy.body.context = 10
    with pytest.raises(InputError, match="are 12 tokens.*context is 10"):
        policy.loss(batch_of(rng, 2, 3, NUMBERED), None, False)
    with pytest.raises(InputError, match="lower span or length"):
        policy.recall({}, {"text": np.zeros((1, 6), np.int32)})
    with pytest.raises(InputError, match="the views have 4"):
        policy.loss(batch_of(rng, 2, 4, NUMBERED), None, False)


def test_states_that_never_change_are_left_out(rng):
    bridge = State(
        8, mean=[0.0, 5.0, 1.0], std=[1.0, 0.0, 2.0], hidden=4, rngs=nnx.Rngs(0)
    )
    x = rng.normal(size=(4, 3)).astype(np.float32)
    other = x + np.array([[0, 9, 0]], np.float32)
    np.testing.assert_array_equal(bridge(x), bridge(other))
    with pytest.raises(InputError, match="states are"):
        bridge(x[:, :2])


def test_the_softmax_over_the_vocabulary_gives_less_to_legal_words(rng):
    def loose(width, *, rngs):
        return Words(width, strings=STRINGS, end=2, constrained=False, rngs=rngs)

    batch = batch_of(rng, 2, 2, NUMBERED)
    assert (losses(made(loose), batch) > losses(made(words), batch)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["views"].pop("state"), "no 'state'"),
        (lambda b: b["targets"].update(action=b["targets"]["action"][:, :2]), "span"),
    ],
    ids=["observation", "span"],
)
def test_views_that_do_not_fit_are_refused(change, message, rng):
    policy = made(categorical, span=3)
    batch = batch_of(rng, 2, 3, NUMBERED)
    change(batch)
    batch["present"]["state"] = batch["present"]["state"][
        :, : batch["targets"]["action"].shape[1]
    ]
    with pytest.raises(InputError, match=message):
        policy.loss(batch, None, False)
