"""The benchmark counts a model's FLOPs exactly, and its report is consistent."""

import json
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from polyview import bench
from polyview.config.file import load_config
from polyview.config.text import text_digest, to_json
from polyview.errors import InputError
from polyview.model import abstract_module, merge_module
from polyview.nn import resnet, vit
from polyview.training import cost, flops, peak
from polyview.training.trainer import Trainer


def arrays(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def counted(function, params, *inputs):
    """FLOPs of `function(params, *inputs)` and of its parameters' gradients."""
    program = jax.make_jaxpr(function)(params, *inputs).jaxpr
    trained = len(jax.tree.leaves(params))
    depends = [place < trained for place in range(len(program.invars))]
    products, _ = flops.products(program, depends)
    return (
        sum(product.flops for product in products),
        sum(product.flops * product.gradients for product in products),
    )


def test_products_of_a_perceptron():
    n, a, b, c = 5, 7, 11, 3

    def perceptron(w, x):
        return jax.nn.relu(x @ w[0]) @ w[1]

    first, second = 2 * n * a * b, 2 * n * b * c
    # The hidden layer and both weights need gradients, the images do not.
    expected = first + second, first + 2 * second
    assert counted(perceptron, arrays((a, b), (b, c)), *arrays((n, a))) == expected


def test_products_of_attention_a_frozen_layer_and_a_stopped_gradient():
    n, d, e = 6, 4, 5

    def function(w, x, fixed):
        h = (x @ fixed) @ w
        scores = h @ h.T
        return jax.lax.stop_gradient(scores) @ h

    frozen, layer, square = 2 * n * d * e, 2 * n * e * d, 2 * n * n * d
    expected = frozen + layer + 2 * square, layer + 2 * square + square
    inputs = arrays((n, d), (d, e))
    assert counted(function, arrays((e, d))[0], *inputs) == expected


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 4)])
def test_products_of_a_convolution_and_of_its_gradients(stride, groups):
    n, size, k, features, out = 2, 8, 3, 4, 8

    def function(w, x):
        for kernel in w:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                [(1, 1), (1, 1)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
        return x

    kernels = [(k, k, features // groups, out), (k, k, out // groups, out)]
    one, two = (
        2 * n * (size // stride**layer) ** 2 * out * k * k * shape[2]
        for layer, shape in enumerate(kernels, 1)
    )
    inputs = arrays(*kernels), *arrays((n, size, size, features))
    assert counted(function, *inputs) == (one + two, one + 2 * two)
    assert sum(counted(function, *inputs)) == of_its_gradient(function, *inputs)


def of_its_gradient(function, params, *inputs):
    """FLOPs of the program for a function and its gradient made by JAX."""
    gradient = jax.value_and_grad(lambda *given: function(*given).sum())
    return counted(gradient, params, *inputs)[0]


def block(x, w):
    return x + jax.nn.gelu(x @ w[0]) @ w[1], None


@pytest.mark.parametrize("body", [block, jax.checkpoint(block)])
def test_loops_count_every_trip_but_not_recomputation(body):
    depth, n, d, e = 7, 3, 4, 6

    def function(w, x):
        return jax.lax.scan(body, x, w)[0]

    once = 2 * 2 * n * d * e
    expected = depth * once, depth * 2 * once
    weights = arrays((depth, d, e), (depth, e, d))
    assert counted(function, weights, *arrays((n, d))) == expected


def test_a_product_in_a_loop_of_unknown_length_is_refused():
    def function(w, x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="unknown length"):
        counted(function, *arrays((3, 3), (2, 3)))


def test_a_scatter_has_no_product_but_its_inputs_count():
    def function(w, x):
        return jnp.zeros((9, 3)).at[jnp.array([4, 4])].add(x @ w)

    assert counted(function, *arrays((3, 3), (2, 3)))[0] == 2 * 2 * 3 * 3


def encoder(make, shape):
    graph, params, statistics, fixed = abstract_module(make)

    def function(params, statistics, fixed, x):
        return merge_module(graph, params, statistics, fixed)(x, train=True)[0]

    return function, params, statistics, fixed, *arrays(shape)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (partial(resnet.resnet_tiny, stem="small", width=16), (2, 64, 64, 1)),
        (
            partial(vit.ViT, width=128, depth=2, heads=4, patch=8, image=32),
            (4, 32, 32, 3),
        ),
    ],
)
def test_encoder_flops_match_their_gradients_and_the_compiler(make, shape):
    given = encoder(make, shape)
    total = sum(counted(*given))
    assert total == of_its_gradient(*given)
    function, *inputs = given
    gradient = jax.value_and_grad(lambda *given: function(*given).sum())
    program = jax.jit(gradient).lower(*inputs).compile()
    # The compiler skips products with padding and also counts other operations.
    assert total == pytest.approx(program.cost_analysis()["flops"], rel=0.06)


def test_resnet50_flops_match_the_published_count():
    forward, _ = counted(*encoder(resnet.resnet50, (1, 224, 224, 3)))
    # torchvision: 4.089 G multiply-adds, less 2,048 x 1,000 of the classifier.
    assert forward / 2 == pytest.approx(4.089e9 - 2.048e6, rel=2e-4)


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    bench.main()


def test_the_command_writes_a_consistent_record(
    data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("POLYVIEW_DATA", str(data_dir))
    output = tmp_path / "bench.json"
    run_command(
        monkeypatch,
        "--config",
        "configs/polyview_digits.py:views=3",
        "--config.batch_size=16",
        "--config.model.towers.image.encoder.width=4",
        "--steps",
        4,
        "--output",
        output,
    )
    record = json.loads(output.read_text())
    assert record["batch"] == {"images": 16, "views_of_an_image": 3}
    model, peak = record["model_flops"], record["peak"]["flops_per_second"]
    assert model["loss"] == 6 * (16 * 3) ** 2 * 32
    parts = ("forward", "backward", "target", "loss")
    assert model["total"] == sum(model[part] for part in parts)
    assert model["convention"].startswith("Model FLOPs are 2 for each")
    for name in ("pipeline", "fixed_batch"):
        timing = record[name]
        mean = timing["step_seconds"]["mean"]
        median = timing["step_seconds"]["median"]
        low, high = timing["step_seconds"]["quartiles"]
        assert 0 < low <= median <= high
        assert timing["images_per_second"] == pytest.approx(16 / mean)
        assert timing["views_per_second"] == pytest.approx(3 * 16 / mean)
        assert timing["mfu"] == pytest.approx(model["total"] / mean / peak)
    assert "measured: a large float32 matmul" in record["peak"]["source"]
    assert 0 <= record["input_wait_share"] < 1
    memory = record["memory"]
    *held, shared = memory["compiled_bytes"].values()
    assert memory["peak_bytes"] == sum(held) - shared > 0
    assert memory["process_bytes"] > memory["peak_bytes"]
    assert record["compile_seconds"] > 0
    config = load_config("configs/polyview_digits.py:views=3", {"batch_size": "16"})
    config.model.towers.image.encoder.width = 4
    assert record["config"]["digest"] == text_digest(to_json(config))
    assert record["config"]["keys"]["batch_size"] == 16
    table = capsys.readouterr().out
    assert "16 images of 3 views" in table and "input wait" in table


def test_photometry_is_not_counted(digits):
    def of_step(photometry):
        config = digits("views=2")
        config.model.towers.image.photometry = photometry
        run = Trainer(config)
        with jax.set_mesh(run.mesh):
            return flops.of_step(run, run.trace())

    assert of_step({"target": f"{__name__}:blurred"}) == of_step(None)


def test_each_part_of_an_accumulated_batch_has_a_loss(digits):
    costs = []
    for parts in (1, 2):
        config = digits("views=2", batch_size=16)
        with config.unlocked():
            config.accumulate = parts
        run = Trainer(config)
        with jax.set_mesh(run.mesh):
            costs.append(flops.of_step(run, run.trace())[0])
    once, twice = costs
    assert once["loss"] == 6 * 32**2 * 32 == 2 * twice["loss"]
    assert once["backward"] == twice["backward"]


def blurred():
    """A photometry that contains a matrix product."""
    return lambda images, keys: images @ jnp.ones((images.shape[-1],) * 2)


def test_wait_is_the_time_until_a_batch_arrives(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def batches():
        for number in range(6):
            clock[0] += 2.0
            yield number, number, None

    def program(state, fixed, batch, number, seed):
        clock[0] += 3.0
        return state, {"healthy": True}

    run = SimpleNamespace(seed=0, fixed={})
    _, seconds, waits = cost._take(run, program, None, batches())
    assert seconds == [5.0] * 6 and waits == [2.0] * 6


def test_bursts_of_batches_are_timed_over_whole_bursts(monkeypatch):
    """Four workers: four batches every 12 seconds; the first batches are ready."""
    clock, workers = [0.0], 4
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def batches(start, stop):
        for number in range(stop - start):
            if number and not number % workers and number >= 2 * workers:
                clock[0] += 12.0
            yield number, number, None

    monkeypatch.setattr(cost, "prefetch", lambda batches, mesh: batches)
    run = SimpleNamespace(
        seed=0, fixed={}, mesh=None, batches=batches, config={"workers": workers}
    )
    state = SimpleNamespace(step=0)
    program = lambda state, *_: (state, {"healthy": True})  # noqa: E731
    monkeypatch.setattr(jax, "block_until_ready", lambda x: x)
    for steps in (5, 8):
        seconds, waits = cost.with_pipeline(run, program, state, steps)
        assert len(seconds) == 8 and sum(seconds) == sum(waits) == 24


def test_a_vendor_peak_applies_only_to_its_dtype(monkeypatch):
    device = SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(peak, "matmul_rate", lambda dtype: 1e12)
    assert peak.peak_flops("bfloat16")[0] == 4 * 197e12
    rate, source = peak.peak_flops("float32")
    assert rate == 4e12 and "measured" in source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps 0: it must be 1 or more"),
        (["--output", "/"], "is a folder"),
        (["--output", "no/such/bench.json"], "its folder does not exist"),
        (["--stepz", "3"], "did you mean '--steps'"),
    ],
)
def test_invalid_arguments_are_refused_first(arguments, message, monkeypatch):
    with pytest.raises(InputError, match=message):
        run_command(monkeypatch, "--config", "configs/polyview_digits.py", *arguments)
