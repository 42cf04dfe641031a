"""The body of a language model: against loops, with a cache, adapters and devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_microbatch import assert_equal, mesh_of

from agents.llm import cache as caches
from agents.llm.language import LanguageModel
from agents.llm.llama import Body
from polyview import devices
from polyview.errors import InputError, OutOfRange
from polyview.model import merge_module, split_module
from polyview.nn.fixed import Fixed
from polyview.runs.checksum import flatten

SIZES = {
    "layers": 2,
    "width": 24,
    "heads": 4,
    "kv_heads": 2,
    "head": 6,
    "hidden": 40,
    "vocabulary": 50,
    "theta": 100.0,
}
# Padding on the left, on the right, on both sides and in the middle; one real position.
REAL = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 0],
    ],
    bool,
)


def body_of(seed: int = 0, **options) -> Body:
    """A small body whose norms are not all one."""
    body = Body(**SIZES | options, rngs=nnx.Rngs(seed))
    random = np.random.default_rng(seed)
    for part, name in (
        (body.blocks, "attention_norm"),
        (body.blocks, "mlp_norm"),
        (body, "norm"),
    ):
        scale = getattr(part, name)
        drawn = jnp.asarray(random.uniform(0.5, 2, scale.shape), scale.dtype)
        setattr(part, name, type(scale)(drawn))
    return body


def adapted_body(**options) -> Body:
    """A body whose adapters have been trained."""
    body = body_of(**{"lora": {"rank": 3, "alpha": 6.0}} | options)
    random = np.random.default_rng(1)
    for own in body.lora.values():
        own.b = nnx.LoRAParam(jnp.asarray(random.normal(size=own.b.shape), own.b.dtype))
    return body


def doubles() -> dict:
    return {"dtype": jnp.float64, "param_dtype": jnp.float64}


def row_by_loops(body: Body, x: np.ndarray) -> np.ndarray:
    """Hidden states of one text x[t, width] without padding, in float64."""
    arrays = {
        name: np.asarray(a, np.float64)
        for part in split_module(body)[1:]
        for name, a in flatten(part).items()
    }

    def normed(x, scale):
        return x / math.sqrt(sum(n * n for n in x) / len(x) + body.epsilon) * scale

    def turned(x, position):
        out, half = np.zeros_like(x), body.head // 2
        for i in range(half):
            angle = position * arrays["frequencies"][i]
            turn = complex(x[i], x[i + half]) * complex(np.cos(angle), np.sin(angle))
            out[i], out[i + half] = turn.real, turn.imag
        return out

    x = [np.asarray(row, np.float64) for row in x]
    for layer in range(body.layers):
        own = {
            n: arrays[f"blocks.{n}"][layer] for n in vars(body.blocks) if n[0] != "_"
        }
        queries, keys, values = [], [], []
        for t, row in enumerate(x):
            y = normed(row, own["attention_norm"])
            for to, name in ((queries, "query"), (keys, "key"), (values, "value")):
                heads = (y @ own[name]).reshape(-1, body.head)
                to.append(heads if name == "value" else [turned(h, t) for h in heads])
        after = []
        for t, row in enumerate(x):
            out = []
            for j in range(body.heads):
                theirs = j // (body.heads // body.kv_heads)
                scores = np.array(
                    [queries[t][j] @ keys[s][theirs] for s in range(t + 1)]
                )
                weights = np.exp(scores / math.sqrt(body.head))
                weights /= weights.sum()
                out.append(sum(w * values[s][theirs] for s, w in enumerate(weights)))
            row = row + np.concatenate(out) @ own["output"]
            y = normed(row, own["mlp_norm"])
            gate = y @ own["gate"]
            y = gate / (1 + np.exp(-gate)) * (y @ own["up"])
            after.append(row + y @ own["down"])
        x = after
    return np.stack([normed(row, arrays["norm"]) for row in x])


def by_loops(body: Body, x: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Hidden states of x[b, t, width]; padding is cut out, and zero in the result."""
    out = np.zeros(x.shape)
    for row in range(len(x)):
        out[row, real[row]] = row_by_loops(body, x[row, real[row]])
    return out


def assert_close(one, other, real=None, relative=1e-5):
    """Equal within `relative` of the scale, where `real`."""
    if real is not None:
        one, other = np.asarray(one)[real], np.asarray(other)[real]
    np.testing.assert_allclose(one, other, rtol=0, atol=relative * np.abs(other).max())


def run(body: Body, x, real, **options):
    """`body(x, real, **options)`, compiled."""
    graph, *arrays = split_module(body)

    def call(arrays, x, real, options):
        return merge_module(graph, *arrays)(x, real, **options, **static)

    static = {n: options.pop(n) for n in ("train",) if n in options}
    return jax.jit(call)(arrays, x, real, options)


def test_body_equals_loops_over_positions_and_heads(x64, rng):
    """Rotation by halves, grouped heads, SwiGLU, RMS norms, and any padding."""
    body = body_of(**doubles())
    x = rng.normal(size=(*REAL.shape, 24))
    expected = by_loops(body, x, REAL)
    hidden, cache = run(body, x, REAL)
    assert cache is None
    assert_close(hidden, expected, REAL, 1e-7)
    # Nothing attends to padding, whatever it holds.
    x[~REAL] = np.nan
    assert_close(run(body, x, REAL)[0], expected, REAL, 1e-7)


def test_bfloat16_follows_float32(rng):
    x = rng.normal(size=(*REAL.shape, 24)).astype(np.float32)
    hidden = run(body_of(dtype=jnp.bfloat16), x, REAL)[0]
    assert hidden.dtype == jnp.bfloat16
    assert_close(np.float32(hidden), run(body_of(), x, REAL)[0], REAL, 0.03)


def test_cached_chunks_equal_the_whole_pass(rng):
    """Rows of different lengths, several positions at once, resets of single rows."""
    body = body_of()
    graph, *arrays = split_module(body)

    @jax.jit
    def step(x, real, cache):
        return merge_module(graph, *arrays)(x, real, cache)

    length, b = 16, 4
    cache = body.empty_cache(b, length)
    # What lies beyond a row's length is never read, whatever it holds.
    cache = cache._replace(k=cache.k * jnp.nan, v=cache.v + 100)
    read = [np.zeros((0, 24))] * b
    for number, t in enumerate((4, 1, 4, 1, 1, 4)):
        x = rng.normal(size=(b, t, 24)).astype(np.float32)
        real = rng.uniform(size=(b, t)) < 0.7
        real[number % b] = True
        if number in (2, 4):
            rows = np.arange(b) == (number - 1) % b
            cache = caches.reset(cache, rows)
            read = [r[:0] if gone else r for r, gone in zip(read, rows, strict=True)]
        hidden, cache = step(x, real, cache)
        for row in range(b):
            read[row] = np.concatenate([read[row], x[row, real[row]]])
            assert cache.lengths[row] == len(read[row]) <= length
            if real[row].any():
                expected = row_by_loops(body, read[row])[-real[row].sum() :]
                assert_close(np.asarray(hidden)[row, real[row]], expected)
    assert len(set(map(len, read))) > 2


def test_hidden_states_beyond_the_cache_are_nan(rng):
    body = body_of()
    x = rng.normal(size=(2, 4, 24)).astype(np.float32)
    real = np.array([[1, 1, 1, 1], [1, 0, 1, 0]], bool)
    cache = body.empty_cache(2, 3)
    hidden, cache = run(body, x, real, cache=cache)
    wrong = np.isnan(hidden).all(-1)
    np.testing.assert_array_equal(wrong, [[0, 0, 0, 1], [0, 0, 0, 0]])
    assert_close(hidden[0, :3], row_by_loops(body, x[0])[:3])
    hidden, cache = run(body, x, real, cache=cache)
    wrong = np.isnan(hidden).all(-1)
    np.testing.assert_array_equal(wrong, [[1, 1, 1, 1], [0, 0, 1, 0]])
    # A row that is reset reads again, though its neighbour stays full.
    cache = caches.reset(cache, np.array([True, False]))
    hidden, _ = run(body, x[:, :2], real[:, :2], cache=cache)
    assert_close(hidden[0], row_by_loops(body, x[0, :2]))
    assert np.isnan(hidden[1, 0]).all()


def test_a_nan_is_forgotten_by_a_reset(rng):
    """An observation that is not finite spoils its row until then, and no other."""
    body = body_of()
    x = rng.normal(size=(2, 3, 24)).astype(np.float32)
    bad = x.copy()
    bad[0] = np.nan
    _, cache = run(body, bad, np.ones((2, 3), bool), cache=body.empty_cache(2, 8))
    hidden, _ = run(body, x[:, :1], np.ones((2, 1), bool), cache=cache)
    assert np.isnan(hidden[0]).all() and np.isfinite(hidden[1]).all()
    cache = caches.reset(cache, np.array([True, False]))
    hidden, _ = run(body, x[:, :1], np.ones((2, 1), bool), cache=cache)
    assert_close(hidden[0], row_by_loops(body, x[0, :1]))


def test_unknown_tokens_are_nan():
    """They are not those at the ends of the table."""
    body = body_of()
    rows = np.asarray(body.embed(jnp.array([[0, 49], [-1, 50]])))
    np.testing.assert_array_equal(rows[0], body.embedding[...][jnp.array([0, 49])])
    assert np.isnan(rows[1]).all()


def gradient_of(body: Body, x, real, key=None):
    """The loss and its gradient by the trained parameters, as a compiled function."""
    graph, params, *rest = split_module(body)

    def loss(params, rest, x):
        module = merge_module(graph, params, *rest)
        hidden, _ = module(x, real, train=True, key=key)
        return jnp.where(real[..., None], jnp.sin(hidden), 0).sum()

    return jax.value_and_grad(loss), params, rest


def test_rematerialisation_keeps_gradients(x64, rng):
    x = rng.normal(size=(*REAL.shape, 24))
    lora = {"rank": 2, "alpha": 4.0, "dropout": 0.3, "targets": ["value"]}
    found, norms = {}, {}
    for remat in ("none", "blocks", "dots"):
        body = adapted_body(**doubles(), frozen=False, remat=remat, lora=lora)
        call, params, rest = gradient_of(body, x, REAL, jax.random.key(3))
        if remat != "dots":  # as "blocks", with another policy
            found[remat] = jax.device_get(jax.jit(call)(params, rest, x))
        norms[remat] = str(jax.make_jaxpr(call)(params, rest, x)).count("rsqrt")
    # The backward pass computes the norms of a block again.
    assert norms == {"none": 3, "blocks": 5, "dots": 5}
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(found["none"][1]["blocks"]))
    assert_equal(found["blocks"], found["none"], 1e-9)
    with pytest.raises(ValueError, match="remat='block' is not one of"):
        body_of(remat="block")


def test_gradients_do_not_pass_through_padding(rng):
    """Padding that is not finite leaves the gradient as it is."""
    x = rng.normal(size=(*REAL.shape, 24)).astype(np.float32)
    call, params, rest = gradient_of(adapted_body(frozen=False), x, REAL)
    call = jax.jit(call)
    expected = call(params, rest, x)
    x[~REAL] = np.nan
    assert_equal(jax.device_get(call(params, rest, x)), jax.device_get(expected), 1e-6)


def test_split_weights_give_the_same_gradient(x64, rng, monkeypatch):
    """Two devices hold half of each weight; a block's is gathered inside the scan."""
    monkeypatch.setattr(devices, "SMALLEST_SPLIT", 512)
    x = rng.normal(size=(4, 5, 24))
    real = np.ones((4, 5), bool)
    body = adapted_body(**doubles(), frozen=False)
    found = {}
    for parts in (1, 2):
        mesh = mesh_of(1, parts)
        call, params, rest = gradient_of(body, x, real)
        with jax.set_mesh(mesh):
            params, rest = (
                jax.device_put(tree, devices.of_state(tree, mesh))
                for tree in (params, rest)
            )
            rows = jax.device_put(x, devices.rows(mesh))
            if parts == 2:
                split = [a for a in jax.tree.leaves(params) if a.size >= 512]
                assert split and all(
                    a.addressable_shards[0].data.size == a.size // 2 for a in split
                )
                whole = gathered(jax.make_jaxpr(call)(params, rest, rows).jaxpr)
                assert whole.count((24, 40)) >= 4  # gate and up, in both passes
                assert not [shape for shape in whole if len(shape) > 2]
            found[parts] = jax.device_get(jax.jit(call)(params, rest, rows))
    assert_equal(found[2], found[1], 1e-9)


def gathered(jaxpr) -> list[tuple]:
    """The shapes of all arrays that a program gathers."""
    shapes = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sharding_constraint":
            shapes.append(equation.outvars[0].aval.shape)
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            shapes += gathered(inner) if hasattr(inner, "eqns") else []
    return shapes


def test_adapters_start_as_the_base(rng):
    x = rng.normal(size=(*REAL.shape, 24)).astype(np.float32)
    base, adapted = body_of(), body_of(lora={"rank": 3, "alpha": 6.0})
    for own in adapted.lora.values():
        own.a = nnx.LoRAParam(own.a[...] * 5)
    np.testing.assert_array_equal(run(adapted, x, REAL)[0], run(base, x, REAL)[0])
    assert set(adapted.lora) == {*"query key value output gate up down".split()}


@pytest.mark.parametrize("targets", [None, ["value", "down"]])
def test_adapters_equal_a_change_of_the_kernels(x64, rng, targets):
    """y = x (W + alpha / rank A B), as loops over all blocks and kernels sum it."""
    x = rng.normal(size=(*REAL.shape, 24))
    lora = {"rank": 3, "alpha": 12.0} | ({"targets": targets} if targets else {})
    body, merged = adapted_body(lora=lora, **doubles()), body_of(**doubles())
    assert set(body.lora) == set(targets or body.lora) and len(body.lora) in (2, 7)
    for name, own in body.lora.items():
        kernel = np.array(getattr(merged.blocks, name)[...])
        for layer in range(2):
            for r in range(3):
                a, b = own.a[...][layer, :, r], own.b[...][layer, r]
                kernel[layer] += 12 / 3 * np.outer(a, b)
        whole = np.asarray(getattr(merged.blocks, name)[...] + own.whole())
        assert_close(whole, kernel, relative=1e-12)
        setattr(merged.blocks, name, Fixed(jnp.asarray(kernel)))
    hidden = run(body, x, REAL)[0]
    assert_close(hidden, run(merged, x, REAL)[0], REAL, 1e-9)
    assert np.abs(hidden - run(body_of(**doubles()), x, REAL)[0])[REAL].max() > 0.1


def test_dropout_of_adapters_needs_a_key_and_training(rng):
    x = rng.normal(size=(*REAL.shape, 24)).astype(np.float32)
    body = adapted_body(lora={"rank": 3, "alpha": 6.0, "dropout": 0.5})
    plain = run(body, x, REAL)[0]
    keys = jax.random.key(0), jax.random.key(1)
    assert_close(run(body, x, REAL, train=True)[0], plain, REAL, 1e-6)
    assert_close(run(body, x, REAL, key=keys[0])[0], plain, REAL, 1e-6)
    dropped = [run(body, x, REAL, train=True, key=key)[0] for key in keys]
    again = run(body, x, REAL, train=True, key=keys[0])[0]
    np.testing.assert_array_equal(again, dropped[0])
    for one, other in ((dropped[0], plain), (dropped[0], dropped[1])):
        assert np.abs(one - other)[REAL].max() > 0.1


def test_dropout_keeps_the_mean_of_the_change():
    own = adapted_body(lora={"rank": 3, "alpha": 6.0, "dropout": 0.2}).lora["gate"]
    a, b = (stack[0] for stack in own.stacked())
    x = jnp.ones((20_000, 24))
    mean = own.change(x, a, b, jax.random.key(0)).mean(0)
    plain = own.change(x[:1], a, b)[0]
    # The deviation of one row is below 8, so that of the mean below 0.06.
    assert_close(mean, plain, relative=0.3 / float(jnp.abs(plain).max()))


def test_bad_adapters_are_refused():
    for rank in (0, 25, 2.5):
        with pytest.raises(OutOfRange, match="rank"):
            body_of(lora={"rank": rank, "alpha": 1.0})
    # The keys' kernels have 12 outputs.
    with pytest.raises(OutOfRange, match="rank=13: it must be 12 or less"):
        body_of(lora={"rank": 13, "alpha": 1.0})
    body_of(lora={"rank": 24, "alpha": 1.0, "targets": ["gate"]})
    with pytest.raises(OutOfRange, match="dropout"):
        body_of(lora={"rank": 1, "alpha": 1.0, "dropout": 1.0})
    with pytest.raises(OutOfRange, match="alpha"):
        body_of(lora={"rank": 1, "alpha": 0.0})
    with pytest.raises(InputError, match="'quer'; did you mean 'query'"):
        body_of(lora={"rank": 1, "alpha": 1.0, "targets": ["quer"]})
    with pytest.raises(InputError, match="is a string; write a list"):
        body_of(lora={"rank": 1, "alpha": 1.0, "targets": "query"})


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="give divisors"):
        body_of(kv_heads=3)
    with pytest.raises(InputError, match="give divisors"):
        body_of(head=None, width=25)
    with pytest.raises(InputError, match="cannot be rotated"):
        body_of(head=5)
    with pytest.raises(OutOfRange, match="layers"):
        body_of(layers=0)


def test_only_adapters_are_trained(rng):
    """A frozen body has no other parameter, and a gradient reaches each of them."""
    x = rng.normal(size=(*REAL.shape, 24)).astype(np.float32)
    call, params, rest = gradient_of(adapted_body(), x, REAL)
    names = {f"lora.{name}.{part}" for name in adapted_body().lora for part in "ab"}
    assert set(flatten(params)) == names and not rest[0]
    for name, gradient in flatten(
        jax.jit(jax.grad(call_loss(call)))(params, rest, x)
    ).items():
        assert np.abs(gradient).max() > 0, name


def call_loss(call):
    return lambda *arguments: call(*arguments)[0]


def test_continuations_of_one_beginning_share_a_pass(x64, rng):
    """`position` and `seen` make one row of several texts that begin alike."""
    body = body_of(**doubles())
    x = rng.normal(size=(1, 7, 24))
    texts = [0, 1, 2, 3], [0, 1, 4, 5, 6]
    position, seen = np.zeros((1, 7), np.int32), np.zeros((1, 7, 7), bool)
    for text in texts:
        position[0, text] = np.arange(len(text))
        for t, at in enumerate(text):
            seen[0, at, text[: t + 1]] = True
    real = np.ones((1, 7), bool)
    hidden = run(body, x, real, position=position, seen=seen)[0]
    for text in texts:
        assert_close(hidden[0, text], row_by_loops(body, x[0, text]), relative=1e-7)


class Prompts:
    """Texts of different lengths with padding on the right."""

    tokens = np.array([[3, 7, 9, 11], [5, 1, 0, 0], [48, 0, 0, 0]], np.int32)
    real = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)


def language_model(**options) -> LanguageModel:
    body = partial(Body, **SIZES, tied=False)
    return LanguageModel(body=body, **options, rngs=nnx.Rngs(4))


def generated(model: LanguageModel, tokens, real, temperature=0.0, seed=0):
    graph, *arrays = split_module(model)

    @jax.jit
    def call(tokens, real, temperature, key):
        module = merge_module(graph, *arrays)
        return module.generate(tokens, real, temperature, key)

    arguments = np.float32(temperature), jax.random.key(seed)
    return np.asarray(call(tokens, real, *arguments))


def test_greedy_texts_equal_repeated_whole_passes():
    """One whole pass for each token; a text is over after its end."""
    steps = 6
    model = language_model(steps=steps)
    graph, *arrays = split_module(model)

    @jax.jit
    def scores(tokens, real):
        module = merge_module(graph, *arrays)
        return module.body.logits(module.body(module.body.embed(tokens), real)[0])

    expected = np.zeros((3, steps), np.int32)
    for row in range(3):
        text = Prompts.tokens[row, Prompts.real[row]].tolist()
        for step in range(steps):
            padded = np.array([text + [0] * (12 - len(text))])
            logits = scores(padded, np.arange(12)[None] < len(text))
            text.append(int(jnp.argmax(logits[0, len(text) - 1])))
            expected[row, step] = text[-1]
    found = generated(model, Prompts.tokens, Prompts.real)
    np.testing.assert_array_equal(found, expected)
    end = int(expected[0, 2])
    for row in expected:  # all is `end` after the first one
        if end in row:
            row[list(row).index(end) :] = end
    assert (expected != end).any(1).sum() >= 2
    found = generated(
        language_model(steps=steps, end=end), Prompts.tokens, Prompts.real
    )
    np.testing.assert_array_equal(found, expected)


def test_texts_are_sampled_from_the_softmax():
    n, temperature = 1500, 2.0
    tokens = np.tile(Prompts.tokens[:1], (n, 1))
    real = np.ones((n, 4), bool)
    model = language_model(steps=1)
    found = generated(model, tokens, real, temperature)[:, 0]
    hidden = row_by_loops(model.body, np.asarray(model.body.embed(tokens[0])))[-1]
    scores = np.asarray(model.body.unembedding[...]) @ hidden / temperature
    p = np.exp(scores - scores.max())
    p /= p.sum()
    share = np.bincount(found, minlength=50) / n
    assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / n) + 1e-3).all()
    again = generated(model, tokens, real, temperature)[:, 0]
    other = generated(model, tokens, real, temperature, seed=1)[:, 0]
    assert (found == again).all() and (found != other).any()


def test_log_likelihood_of_each_token():
    model = language_model()
    graph, *arrays = split_module(model)
    call = jax.jit(lambda *a: merge_module(graph, *arrays).log_likelihood(*a))
    found = call(Prompts.tokens, Prompts.real)
    table, expected = np.asarray(model.body.unembedding[...]), np.zeros((3, 3))
    for row in range(3):
        length = Prompts.real[row].sum()
        tokens = Prompts.tokens[row, :length]
        hidden = row_by_loops(model.body, np.asarray(model.body.embed(tokens)))
        for t in range(length - 1):
            scores = np.exp(table @ hidden[t])
            expected[row, t] = np.log(scores[tokens[t + 1]] / scores.sum())
    assert_close(found, expected, relative=1e-5)
    for unknown in (-1, 50):
        tokens = Prompts.tokens.copy()
        tokens[0, 3] = unknown
        assert np.isnan(call(tokens, Prompts.real)[0, 2])
