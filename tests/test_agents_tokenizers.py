"""Tokenizers of actions: against loops, and within the bounds that they promise."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from agents import recording
from agents.evaluation.tokens import Tokens
from agents.tokenizers import residual
from agents.tokenizers.residual import ResidualVQ
from agents.tokenizers.text import Strings, digit_names
from agents.tokenizers.training import Actions, Quantisation
from agents.tokenizers.uniform import Range, Uniform
from polyview.config.file import load_config
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError, OutOfRange
from polyview.model import (
    abstract_module,
    initialise_module,
    merge_module,
    split_module,
)
from polyview.runs.evaluating import Asked, evaluate
from polyview.training.train import train
from polyview.training.trainer import Trainer

LOW, HIGH = (-1.0, 0.5, 2.0), (3.0, 0.5, 2.5)  # the second dimension is constant


def clustered(rng, n, size=4):
    """Actions that gather around few, as those of a scripted expert do."""
    centres = rng.uniform(-1, 1, (12, size))
    spread = rng.normal(size=(n, size)) * rng.uniform(0.002, 0.1, (n, 1))
    return np.clip(centres[rng.integers(0, 12, n)] + spread, -1, 1).astype(np.float32)


# Equal bins


@pytest.mark.parametrize("codes", [1, 7, 256])
def test_uniform_tokens_err_by_half_a_bin_at_most(rng, codes):
    bins = Uniform(low=LOW, high=HIGH, codes=codes)
    low, high = np.array(LOW), np.array(HIGH)
    actions = rng.uniform(low, high, (2000, 3)).astype(np.float32)
    actions[:2] = low, high  # the ends are in the first and last bin
    tokens = np.asarray(jax.jit(bins.tokens)(actions))
    assert tokens.dtype == np.int32 and tokens.shape == (2000, bins.length)
    assert tokens.min() >= 0 and tokens.max() == codes - 1
    again = np.asarray(bins.actions(jnp.asarray(tokens)))
    half = (high - low) / 2 / codes
    assert (np.abs(again - actions) <= half + 1e-6).all()
    assert np.abs(again - actions)[:, 0].max() > 0.9 * half[0]
    np.testing.assert_array_equal(again[:, 1], 0.5)
    # A centre is where its own token leads.
    np.testing.assert_array_equal(bins.tokens(jnp.asarray(again)), tokens)


def test_actions_outside_the_range_are_clipped_and_seen():
    found = Range(LOW, HIGH)
    actions = jnp.array([[9.0, 0.5, 2.25], [-1.0, 0.7, 1.0]])
    np.testing.assert_allclose(found.scaled(actions), [[1, 0, 0], [-1, 0, -1]])
    np.testing.assert_array_equal(
        found.outside(actions), [[True, False, False], [False, True, True]]
    )
    np.testing.assert_allclose(
        found.restored(jnp.array([[2.0, 0.3, 0.5]])), [[3, 0.5, 2.375]]
    )


def test_wrong_ranges_and_widths_are_refused():
    with pytest.raises(InputError, match="low has 2 numbers and high 1"):
        Range([0, 0], [1])
    with pytest.raises(InputError, match=r"low\[1\]=2 is above high\[1\]=1"):
        Range([0, 2], [1, 1])
    with pytest.raises(OutOfRange, match="range"):
        Range([float("nan")], [1])
    with pytest.raises(InputError, match=r"actions \[n, 3\], not \[5, 4\]"):
        Uniform(low=LOW, high=HIGH).tokens(jnp.zeros((5, 4)))
    with pytest.raises(OutOfRange, match="codes=0"):
        Uniform(low=LOW, high=HIGH, codes=0)


# Residual quantisation


def loop_of_quantisation(rows, books):
    """Codes and sums, one row and one codebook after another."""
    codes, sums = [], []
    for row in rows:
        rest, own, total = row, [], np.zeros_like(row)
        for book in books:
            own.append(int(np.square(rest - book).sum(1).argmin()))
            total = total + book[own[-1]]
            rest = rest - book[own[-1]]
        codes.append(own)
        sums.append(total)
    return np.array(codes), np.array(sums)


def test_quantisation_is_that_of_a_loop(rng, x64):
    rows, books = rng.normal(size=(200, 5)), rng.normal(size=(3, 16, 5))
    codes, sums = jax.jit(residual.quantise)(rows, books)
    own, total = loop_of_quantisation(rows, books)
    np.testing.assert_array_equal(codes, own)
    np.testing.assert_allclose(sums, total, atol=1e-6)
    rest = np.asarray(jax.jit(residual.remainders)(rows, books, codes))
    np.testing.assert_allclose(rest[0], rows)
    np.testing.assert_allclose(rest[1], rows - books[0][own[:, 0]], atol=1e-12)
    np.testing.assert_allclose(rest[3], rows - total, atol=1e-12)


def test_moving_averages_are_those_of_a_loop(rng, x64):
    given = rng.normal(size=(2, 30, 3))
    codes = rng.integers(0, 5, (30, 2))
    valid = rng.random(30) < 0.7
    counts, sums = rng.random((2, 5)), rng.normal(size=(2, 5, 3))
    found = jax.jit(residual.ema_update)(counts, sums, given, codes, valid, 0.9)
    for m in range(2):
        for k in range(5):
            own = given[m][(codes[:, m] == k) & valid]
            count = 0.9 * counts[m, k] + 0.1 * len(own)
            total = 0.9 * sums[m, k] + 0.1 * own.sum(0)
            np.testing.assert_allclose(found[0][m, k], count, atol=1e-12)
            np.testing.assert_allclose(found[1][m, k], total, atol=1e-12)


def test_only_dead_codes_are_replaced_by_rows_of_the_batch(rng):
    given = rng.normal(size=(1, 40, 2)).astype(np.float32)
    counts = np.array([[4.0, 0.39, 3.0, 8.6, 0.41, 8.0, 0.0, 8.0]], np.float32)
    books = rng.normal(size=(1, 8, 2)).astype(np.float32)
    sums = books * counts[..., None]
    codes = rng.integers(0, 8, (40, 1))
    valid = np.arange(40) < 25
    replace = jax.jit(residual.replace_dead)
    key = jax.random.key(0)
    after, total = map(np.asarray, replace(counts, sums, given, codes, valid, 0.1, key))
    mean = counts.sum() / 8  # of which a tenth is .405
    np.testing.assert_allclose(after[0, [1, 6]], mean, rtol=1e-6)
    kept = [0, 2, 3, 4, 5, 7]
    np.testing.assert_array_equal(after[0][kept], counts[0, kept])
    np.testing.assert_array_equal(total[0][kept], sums[0, kept])
    new = total[0, [1, 6]] / mean
    match = np.isclose(new[:, None], given[0][None], atol=1e-5).all(-1)
    rows = match.argmax(1)
    assert match.any(1).all() and rows[0] != rows[1] and (rows < 25).all()


def test_dead_codes_come_back_to_life(rng):
    """Codebooks that began far from all rows: only replacement reaches these."""

    @jax.jit
    def update(state, rows, threshold, key):
        counts, sums = state
        books = sums / jnp.maximum(counts, 1e-9)[..., None]
        codes, _ = residual.quantise(rows, books)
        given = residual.remainders(rows, books, codes)[:-1]
        valid = jnp.ones(len(rows), bool)
        state = residual.ema_update(counts, sums, given, codes, valid, 0.9)
        state = residual.replace_dead(*state, given, codes, valid, threshold, key)
        used = jax.nn.one_hot(codes.T, 32).sum(1)
        return state, residual.perplexity(used)

    books = 100 + rng.normal(size=(2, 32, 4)).astype(np.float32)
    counts, actions = np.full((2, 32), 4.0, np.float32), clustered(rng, 512)
    for threshold in (0.0, 0.1):
        state = counts, books * counts[..., None]
        for key in jax.random.split(jax.random.key(0), 60):
            rows = actions[rng.integers(0, 512, 128)]
            state, found = update(state, rows, threshold, key)
        assert (found > 13).all() if threshold else (found < 3).all()


def test_perplexity_counts_the_codes_in_use():
    counts = jnp.array([[5, 5, 5, 5], [7, 0, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(
        residual.perplexity(counts.astype(float)), [4, 1, 2, 1], rtol=1e-5
    )


def test_codebooks_begin_as_k_means_of_the_valid_rows(rng):
    from sklearn.cluster import KMeans

    rows = clustered(rng, 300)
    valid = np.arange(300) % 5 > 0
    rows[~valid] = 50.0
    make = jax.jit(residual.k_means, static_argnums=(2, 3))
    books, counts, sums = map(np.asarray, make(rows, valid, 2, 16, jax.random.key(1)))
    own = KMeans(16, n_init=5, random_state=0).fit(rows[valid])
    codes, _ = loop_of_quantisation(rows[valid], books)
    first = rows[valid] - books[0][codes[:, 0]]
    errors = [np.square(x).sum() for x in (first, first - books[1][codes[:, 1]])]
    # Another start than the best of five; 16 rows drawn alike would be 4 times worse.
    assert errors[0] < 1.5 * own.inertia_ and errors[1] < 0.5 * errors[0]
    assert np.abs(books).max() < 3
    np.testing.assert_allclose(counts.sum(1), valid.sum(), rtol=1e-5)
    np.testing.assert_allclose(sums, books * counts[..., None], rtol=1e-6)
    # Its own rows are the mean of what chose a code.
    chosen = codes[:, 0] == 3
    np.testing.assert_allclose(books[0, 3], rows[valid][chosen].mean(0), atol=2e-2)


SIZES = {"low": LOW, "high": HIGH, "codes": 16, "width": 8, "dim": 6}


@pytest.fixture(scope="module")
def learn():
    """`learn(statistics, actions[64, 3], present[64], key)` -> what a step gives.

    Always with the first parameters, and one compiled program for all tests.
    """
    make = partial(ResidualVQ, **SIZES, threshold=0.0)
    seed = jnp.uint32(0)
    create = jax.jit(lambda seed: split_module(initialise_module(make, seed))[1:3])
    params, statistics = create(seed)
    graph = abstract_module(make).graph

    def step(statistics, actions, present, key):
        def loss_of(params):
            module = merge_module(graph, params, statistics)
            batch = {
                "views": {"action": actions.reshape(32, 2, 3)},
                "present": {"action": present.reshape(32, 2)},
                "targets": {},
            }
            loss, metrics = Quantisation(0.3)(module, None, batch, key)
            return loss, (split_module(module).statistics, metrics)

        gradients, (after, metrics) = jax.grad(loss_of, has_aux=True)(params)
        module = merge_module(graph, params, after)
        tokens = module.tokens(actions)
        return {
            "statistics": after,
            "metrics": metrics,
            "gradient": gradients["encoder"]["output"]["bias"],
            "scaled": module.scaled(actions),
            "tokens": tokens,
            "again": module.actions(tokens),
        }

    compiled = jax.jit(step)
    first = jax.tree.map(jnp.asarray, statistics)

    def learned(actions, present=None, key=0, statistics=first):
        present = np.ones(64, bool) if present is None else present
        return compiled(statistics, actions, present, jax.random.key(key))

    return learned


@pytest.fixture
def actions(rng):
    return rng.uniform(LOW, HIGH, (64, 3)).astype(np.float32)


def test_a_tokenizer_starts_as_residual_k_means(learn, actions):
    """The networks begin at zero beside an isometry, which keeps distances."""
    made = learn(actions)
    assert made["statistics"]["begun"] == 1
    tokens, scaled = made["tokens"], np.asarray(made["scaled"])
    assert tokens.shape == (64, 2) and tokens.dtype == jnp.int32
    assert 8 < int(tokens.max()) < 16
    np.testing.assert_array_equal(made["again"][:, 1], 0.5)
    # In the space of codes as among the actions: a loop finds the same.
    encoded = scaled @ np.asarray(made["statistics"]["isometry"])
    _, total = loop_of_quantisation(encoded, np.asarray(made["statistics"]["books"]))
    error = np.square(total - encoded).sum(1).mean()
    again = np.array(made["again"])
    found = np.square((again - np.array([1, 0.5, 2.25])) / [2, 1, 0.25] - scaled)
    # Clipped to the range, and along three of six dimensions: a little less.
    assert 0.5 * error < found.sum(1).mean() < 1.01 * error < 0.01
    reported = float(made["metrics"]["error"]) * 3
    assert 0.7 * error < reported < 1.3 * error


def test_only_the_first_batch_begins_the_codebooks(learn, actions, rng):
    first = learn(actions)["statistics"]
    other = rng.uniform(LOW, HIGH, (64, 3)).astype(np.float32)
    made = learn(other, key=1, statistics=first)
    counts = np.asarray(made["statistics"]["counts"] - 0.99 * first["counts"])
    np.testing.assert_allclose(counts.sum(1), 0.64, rtol=1e-4)
    encoded = np.asarray(made["scaled"]) @ np.asarray(first["isometry"])
    codes, _ = loop_of_quantisation(encoded, np.asarray(first["books"]))
    for m in range(2):
        chose = 0.01 * np.bincount(codes[:, m], minlength=16)
        np.testing.assert_allclose(counts[m], chose, atol=1e-5)
    mean = made["statistics"]["sums"] / made["statistics"]["counts"][..., None]
    np.testing.assert_allclose(made["statistics"]["books"], mean, rtol=1e-6)


def test_the_gradient_passes_through_the_codes(learn, actions):
    """As if Dec were given r_0 + a constant; the commitment pulls r_m to 0.

    With Enc(a) = Q a + b and Dec(q) = Q^T q, d loss / d b follows by hand.
    """
    # Of other actions, lest the errors about each code add up to nothing.
    first = learn(actions**2 / 4)["statistics"]
    made = learn(actions, statistics=first)
    books, isometry = np.asarray(first["books"]), np.asarray(first["isometry"])
    encoded = np.asarray(made["scaled"]) @ isometry
    codes, total = loop_of_quantisation(encoded, books)
    errors = total @ isometry.T - np.asarray(made["scaled"])
    rest = encoded - books[0][codes[:, 0]], encoded - total
    of_error = (2 / 3 * errors @ isometry).mean(0)
    of_commitment = (0.3 * 2 * (rest[0] + rest[1]) / 2).mean(0)
    assert np.abs(of_error).max() > 1e-3 and np.abs(of_commitment).max() > 1e-3
    np.testing.assert_allclose(made["gradient"], of_error + of_commitment, atol=1e-6)
    metrics = made["metrics"]
    assert float(metrics["error"]) == pytest.approx(np.square(errors).mean(), rel=1e-4)
    commitment = (np.square(rest[0]) + np.square(rest[1])).sum(1).mean() / 2
    assert float(metrics["commitment"]) == pytest.approx(commitment, rel=1e-4)
    expected = float(metrics["error"]) + 0.3 * commitment
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)


def test_absent_actions_change_nothing(learn, actions):
    present = np.arange(64) % 9 > 0
    other = np.where(present[:, None], actions, 2.0).astype(np.float32)
    one, two = (learn(own, present) for own in (actions, other))
    for name, value in one["metrics"].items():
        np.testing.assert_allclose(value, two["metrics"][name], rtol=1e-5)
    for name, value in one["statistics"].items():
        np.testing.assert_allclose(value, two["statistics"][name], atol=1e-6)
    np.testing.assert_allclose(one["gradient"], two["gradient"], atol=1e-6)


def test_too_few_actions_for_the_codes_are_refused(rng):
    def few():
        module = ResidualVQ(**SIZES, rngs=nnx.Rngs(0))
        rows, key = jnp.zeros((15, 3)), jax.random.key(0)
        module.reconstruct(rows, jnp.ones(15, bool), key)

    with pytest.raises(InputError, match="15 actions cannot begin .* codes=16"):
        jax.eval_shape(few)
    actions = np.repeat(clustered(rng, 5), 4, 0)
    ends = np.ones(4)
    with pytest.raises(InputError, match="codes=6, but there are only 5 distinct"):
        residual.fit(actions, 2, 6, 0, low=-ends, high=ends)
    exact = residual.fit(actions, 2, 5, 0, low=-ends, high=ends)
    again = jax.jit(lambda x: exact.actions(exact.tokens(x)))(actions)
    np.testing.assert_allclose(again, actions, atol=1e-6)
    with pytest.raises(InputError, match="needs the model"):
        Quantisation()(lambda batch: {}, None, {}, jax.random.key(0))


# Training


def episode(actions, **fields):
    other = {"instruction": "reach", "task": 0, "seed": 0}
    return {**other, "actions": actions, **fields}


def test_views_are_actions_of_an_episode(rng):
    actions = np.arange(20, dtype=np.float32).reshape(10, 2)
    made = Actions(m=400)(episode(actions), rng)
    found = made["views"]["action"]
    assert found.shape == (400, 2) and made["present"]["action"].all()
    assert not made["targets"]
    times = np.bincount((found[:, 0] / 2).astype(int), minlength=10)
    assert stats.chisquare(times).pvalue > 1e-3
    np.testing.assert_array_equal(found[:, 1], found[:, 0] + 1)
    actions[3, 1] = np.nan
    with pytest.raises(CorruptRecord, match="not finite at step 3"):
        Actions(m=1)(episode(actions), rng)
    for wrong in (np.arange(4), np.zeros((0, 2), np.float32)):
        with pytest.raises(InputError, match="numbered actions need none"):
            Actions(m=1)(episode(wrong), rng)


@pytest.fixture
def demonstrations(tmp_path, monkeypatch):
    """Small demonstrations of the contract, at the place where configs look."""
    rng = np.random.default_rng(0)
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))

    def episodes(seeds):
        state = np.zeros((41, 2), np.float32)
        return [episode(clustered(rng, 40), state=state, seed=seed) for seed in seeds]

    recording.write(
        tmp_path / "tiny",
        {"train": episodes(range(16)), "validation": episodes(range(16, 20))},
        world="metaworld",
        tasks=["reach-v3"],
        settings={},
        versions={"metaworld": "3.1.1"},
        observations={"state": [2]},
        action={"size": 4, "box": [-1.0, 1.0]},
        source="generated",
    )
    return tmp_path


def test_a_run_trains_a_tokenizer_and_measures_it(demonstrations):
    config = load_config("configs/agents_tokenizer.py:data=tiny,steps=30,codes=16")
    read = ArrayRecord("tiny", data_dir=demonstrations)
    actions = np.concatenate([read[number]["actions"] for number in range(16)])
    np.testing.assert_allclose(config.model.high, np.quantile(actions, 0.99, 0))
    config.batch_size, config.views.m, config.model.width = 16, 8, 16
    run = demonstrations / "run"
    train(Trainer(config), run)
    evaluate(run, None, Asked())
    found = json.loads((run / "eval/30-tokens.json").read_text())
    assert found["protocol"]["test"]["actions"] == 160
    # k-means of all actions at once; that of a batch is a little worse.
    assert 0 < 0.5 * found["k_means"]["error"] < found["error"] < 0.06
    low, high = found["error_interval"]
    assert low < found["error"] < high
    assert np.mean(found["error_of_dimensions"]) == pytest.approx(found["error"])
    assert all(6 < value <= 16 for value in found["perplexity"])
    assert all(0.4 < share <= 1 for share in found["used"])
    assert 0 < found["clipped"] < 0.5
    assert "of 16, clipped" in found["summary"]
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"error", "commitment", "perplexity/1", "perplexity/2"} <= set(logged)


class Known:
    """A tokenizer in place of a trained one, as an evaluation calls it."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def call(self, method, rows):
        return jax.jit(getattr(self.tokenizer, method))(rows)


def test_the_evaluation_is_that_of_a_loop(rng):
    bins = Uniform(low=[-1, -1], high=[1, 0.5], codes=8)
    episodes = [clustered(rng, n, 2) for n in (3, 11)]
    source = InMemory({"actions": episodes})
    found = Tokens(source, codes=8, resamples=20)(Known(bins), None)
    errors, clipped, used = [], [], [set(), set()]
    for row in np.concatenate(episodes).tolist():
        for column, (value, high) in enumerate(zip(row, (1, 0.5), strict=True)):
            inside = min(value, high)
            scaled = (inside + 1) / (high + 1) * 2 - 1
            code = min(int((scaled + 1) / 2 * 8), 7)
            used[column].add(code)
            errors.append((scaled - ((2 * code + 1) / 8 - 1)) ** 2)
            clipped.append(value > high)
    assert found["error"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found["clipped"] == pytest.approx(np.mean(clipped))
    assert found["used"] == [len(own) / 8 for own in used]
    with pytest.raises(InputError, match="set codes to that of the model"):
        Tokens(source, codes=4)(Known(bins), None)


# Strings

STRINGS = [[5], [5, 3], [5, 3, 1], [5, 4], [2, 2], [7]]
END, WORDS = 0, 9


@pytest.fixture
def scores():
    """A language model: scores of the next token at each node."""
    nodes = len(Strings(STRINGS, END).trie.token)
    return np.random.default_rng(3).normal(size=(nodes, WORDS)) * 2


def taught(strings, scores):
    """Scores along the string of each action, as a model gives when it is taught."""
    return scores[strings.trie.node]


def loop_of_log_prob(scores, legal):
    """log p of each action by walking prefixes, without a table."""
    strings = Strings(STRINGS, END)
    numbers = {(): 0, (5,): 1, (5, 3): 2, (2,): 3}
    assert len(strings.trie.token) == len(numbers)
    found = np.full(len(STRINGS), -np.inf)
    ended = [tuple(s) + (END,) if tuple(s) in numbers else tuple(s) for s in STRINGS]
    for action, string in enumerate(ended):
        if not legal[action]:
            continue
        found[action] = 0
        for depth, token in enumerate(string):
            prefix = string[:depth]
            options = {
                own[depth]
                for own, fine in zip(ended, legal, strict=True)
                if fine and own[:depth] == prefix and len(own) > depth
            }
            row = scores[numbers[prefix]]
            whole = np.log(sum(np.exp(row[option]) for option in options))
            found[action] += row[token] - whole
    return found


@pytest.mark.parametrize("some", [None, [1, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0]])
def test_probabilities_of_the_legal_actions_add_up_to_one(scores, some, x64):
    strings = Strings(STRINGS, END)
    actions = np.arange(strings.count)
    mask = None if some is None else np.tile(np.array(some, bool), (6, 1))
    given = taught(strings, scores)
    logs = jax.jit(strings.log_prob)(given, actions, mask)
    expected = loop_of_log_prob(scores, np.ones(6) if some is None else some)
    np.testing.assert_allclose(logs, expected, atol=1e-9)
    assert float(jnp.exp(logs).sum()) == pytest.approx(1, abs=1e-6)

    # Illegal branches leave no trace in the gradient.
    def second(scores):
        return jnp.exp(strings.log_prob(scores, actions, mask))[1]

    slope = jax.jit(jax.grad(second))(given)
    assert np.isfinite(slope).all()


def test_samples_have_the_probabilities_of_log_prob(scores):
    strings = Strings(STRINGS, END)
    legal = np.array([[1, 1, 1, 0, 1, 1]], bool)
    n = 4000

    @jax.jit
    def draw(key):
        node = jnp.zeros(n, jnp.int32)
        for one in jax.random.split(key, strings.length):
            given = jnp.asarray(scores)[jnp.minimum(node, len(scores) - 1)]
            everywhere = jnp.tile(legal, (n, 1))
            token, node = strings.sample(given, node, one, everywhere)
        return token, node

    token, node = draw(jax.random.key(0))
    assert np.asarray(strings.complete(node)).all()
    counts = np.bincount(strings.action(node), minlength=6)
    everywhere = np.tile(legal, (6, 1))
    log_prob = jax.jit(strings.log_prob)
    logs = log_prob(taught(strings, scores), np.arange(6), everywhere)
    share = np.exp(np.asarray(logs, np.float64))
    assert counts[3] == 0 and share[3] == 0
    real = share > 0
    expected = share[real] / share[real].sum() * n
    assert stats.chisquare(counts[real], expected).pvalue > 1e-3
    # A row that was complete before waits with the end token.
    assert (np.asarray(token)[np.asarray(strings.action(node)) == 5] == END).all()


def test_greedy_steps_follow_the_best_token(scores):
    strings = Strings(STRINGS, END)
    node, taken, step = jnp.zeros(1, jnp.int32), [], jax.jit(strings.greedy)
    for wanted in (5, 3, END):
        best = np.zeros((1, WORDS), np.float32)
        best[0, [wanted, 8]] = 1, 9  # no string has the token 8
        assert int(strings.action(node)[0]) == -1
        token, node = step(best, node)
        taken.append(int(token[0]))
    assert taken == [5, 3, END] and int(strings.action(node)[0]) == 1
    assert strings.rows.tolist()[:3] == [[5, 0, 0], [5, 3, 0], [5, 3, 1]]
    assert strings.length == 3 and hash(strings) == hash(Strings(STRINGS, END))
    # Without a string that begins another, nothing asks for an end.
    assert Strings([[4], [6]], END).rows.tolist() == [[4], [6]]


def test_strings_that_decide_nothing_are_refused():
    for strings, message in (
        ([], "no legal action"),
        ([[1], [2, 3], [1]], "actions 0 and 2 have the same tokens"),
        ([[1], []], "action 1 has no tokens"),
        ([[1, 0]], "contains the token 0"),
    ):
        with pytest.raises(InputError, match=message):
            Strings(strings, END)
    strings = Strings(STRINGS, END)
    strings.check_legal(np.eye(6, dtype=bool))
    with pytest.raises(InputError, match="row 1 has no legal action"):
        strings.check_legal(np.array([[True] * 6, [False] * 6]))
    with pytest.raises(InputError, match="there are 6 actions"):
        strings.check_legal(np.ones((2, 5), bool))


def test_digit_names_are_distinct_and_drawn_by_the_seed():
    names = digit_names(100, seed=4)
    assert len(set(names)) == 100
    assert all(len(n) == 3 and n[1] == " " and (n[0] + n[2]).isdigit() for n in names)
    assert digit_names(7, seed=4) == names[:7] != digit_names(7, seed=5)
    with pytest.raises(OutOfRange, match="count=101"):
        digit_names(101)
