"""Rewards from preferences: the loss, the network, its data, and its scale."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agents import parts
from agents.bridges import State
from agents.evaluation.rewards import Rewards
from agents.feedback import labels, pairs
from agents.feedback.distil import (
    BradleyTerry,
    Pair,
    Preferred,
    Reward,
    Sought,
    bradley_terry,
    check_views,
)
from polyview.config.file import load_config
from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError, OutOfRange
from polyview.objectives.bounds import info_nce
from polyview.runs.load import load
from polyview.training.train import train
from polyview.training.trainer import Trainer

AUTO = jax.sharding.AxisType.Auto
KINDS, COLOURS = (5, 6), (0, 1, 2)
AT = {"target": "test_feedback_distil:Letters"}
NAMES = {"key": 5, "ball": 6, "red": 0, "green": 1, "blue": 2}


class Letters:
    """Stands in for a tokenizer: a token for each word."""

    def rows(self, texts, length):
        tokens = np.zeros((len(texts), length), np.int32)
        real = np.zeros(tokens.shape, bool)
        for row, text in enumerate(texts):
            words = text.split()
            if len(words) > length:
                raise InputError(f"room for {length}")
            own = [sum(map(ord, word)) for word in words]
            tokens[row, : len(own)], real[row, : len(own)] = own, True
        return tokens, real


def moment(rng, kind, colour):
    """Return a grid with the object that is named, and another, and its value."""
    grid = np.zeros((3, 3, 3), np.uint8)
    places = rng.permutation(9)[:2]
    others = [(k, c) for k in KINDS for c in COLOURS if (k, c) != (kind, colour)]
    for place, (own, shade) in zip(
        places, [(kind, colour), others[rng.integers(len(others))]], strict=True
    ):
        grid[place // 3, place % 3] = own, shade, 0
    return grid, -float(places[0] // 3 + places[0] % 3)


def drawn(rng, count, first):
    for number in range(first, first + count):
        kind, colour = rng.choice(["key", "ball"]), rng.choice(["red", "green", "blue"])
        two = [moment(rng, NAMES[kind], NAMES[colour]) for _ in range(2)]
        yield {
            "pair": number,
            "instruction": f"go to the {colour} {kind}",
            "task": 0,
            "caption_1": f"{-two[0][1]:.0f} steps away",
            "caption_2": f"{-two[1][1]:.0f} steps away",
            "value": np.array([value for _, value in two]),
            "episode": np.array([number // 4] * 2),
            "time": np.array([2 * (number % 4), 2 * (number % 4) + 1]),
            "grid": np.stack([grid for grid, _ in two]),
        }


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A data folder with pairs, and the labels of an oracle."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    provenance = {
        "holds": "pairs",
        "world": "babyai",
        "tasks": ["babyai:GoToLocal"],
        "settings": {"goal_only": False},
        "versions": {"minigrid": "3.2.0"},
        "observations": {"grid": [3, 3, 3]},
        "action": {"names": ["left", "right"]},
        "counts": {},
    }
    splits = {"train": [*drawn(rng, 600, 0)], "validation": [*drawn(rng, 80, 600)]}
    records.write(
        folder / "goto",
        splits,
        version="1",
        targets={},
        source="",
        licence="",
        provenance=provenance,
    )
    judged("oracle", folder, [*splits["train"], *splits["validation"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        yield folder


def judged(name, folder, rows, **header):
    """Write labels of rows by their values."""
    path = labels.path_of(folder / "goto", name)
    digest = pairs.describe("goto", folder)["digest"]
    labels.begin(
        path, {"pairs": digest, "judge": {}, "model": None, "prompt": None} | header
    )
    with open(path, "a") as file:
        for row in rows:
            sign = float(np.sign(row["value"][0] - row["value"][1]))
            file.write(labels.line(row["pair"], sign, sign))
    return path


def test_the_loss_is_info_nce_with_one_negative(x64, rng):
    rewards = rng.normal(size=(9, 2))
    first = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], bool)
    chosen = np.stack([first, ~first], 1)[:, :, None, None]
    scores = rewards[:, :, None, None]
    loss, nce = jax.jit(bradley_terry), jax.jit(info_nce)
    expected = nce(scores, chosen, ~chosen).loss
    found = loss(rewards, first * 1.0, np.ones(9))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # A tie is the mean of both preferences.
    turned = nce(scores, ~chosen, chosen).loss
    tied = loss(rewards, np.full(9, 0.5), np.ones(9))
    np.testing.assert_allclose(tied, (expected + turned) / 2, rtol=1e-12)


def test_gradients_are_those_of_finite_differences_with_ties_and_weights(x64, rng):
    rewards = rng.normal(size=(6, 2)) * 3
    preference = np.array([1, 0, 0.5, 1, 0.5, 0])
    weight = np.array([1, 2, 0.5, 0, 3, 1.5])
    both = jax.jit(jax.value_and_grad(bradley_terry))
    value, gradient = both(rewards, preference, weight)

    def loss(x):  # written out in another way
        logs = np.log(1 / (1 + np.exp(x[:, ::-1] - x)))
        sides = np.stack([preference, 1 - preference], 1)
        return -(weight[:, None] * sides * logs).sum() / weight.sum()

    np.testing.assert_allclose(value, loss(rewards), rtol=1e-12)
    for place in np.ndindex(rewards.shape):
        moved = []
        for step in (1e-4, -1e-4, 2e-4, -2e-4):
            other = rewards.copy()
            other[place] += step
            moved.append(loss(other))
        near, far = moved[0] - moved[1], moved[2] - moved[3]
        slope = (8 * near - far) / 12e-4  # of order step^4
        assert float(gradient[place]) == pytest.approx(slope, abs=1e-9)
    assert both(rewards, preference, np.zeros(6))[0] == 0


def test_only_differences_are_learnt(rng):
    rewards = rng.normal(size=(6, 2)).astype(np.float32)
    given = np.full(6, 0.5, np.float32), np.ones(6, np.float32)
    loss = jax.jit(bradley_terry)
    found = [float(loss(rewards + np.float32(c), *given)) for c in (0, 10)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    large = loss(rewards * np.float32(1e4), *given)
    assert np.isfinite(large)


def network(rngs):
    def state(width, *, rngs):
        options = {"param_dtype": jnp.float64, "dtype": jnp.float64}
        kept = {"mean": [0.0] * 3, "std": [1.0] * 3, "hidden": 8}
        return State(width, **kept, **options, rngs=rngs)

    wide = {"param_dtype": jnp.float64, "dtype": jnp.float64}
    return Reward(encoders={"state": state}, width=8, hidden=8, **wide, rngs=rngs)


def test_devices_change_nothing(x64, rng):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: network(nnx.Rngs(0))))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape) / 2, shapes)
    batch = {
        "views": {"state": rng.normal(size=(16, 2, 3))},
        "targets": {
            "preference": rng.choice([0, 0.5, 1], 16),
            "weight": rng.random(16),
        },
    }

    def loss(params, batch):
        return BradleyTerry()(nnx.merge(graph, params), None, batch, None)

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (expected, metrics), gradient = both(params, batch)
    sure = batch["targets"]["preference"] != 0.5
    assert 0 < metrics["accuracy"] < 1 and sure.any()
    mesh = jax.make_mesh((8,), ("data",), (AUTO,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with jax.set_mesh(mesh):
        (found, _), own = both(params, jax.device_put(batch, rows))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for a, b in zip(*map(jax.tree.leaves, (own, gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_pairs_meet_their_labels(shelf):
    source = ArrayRecord("goto", "validation")
    gaps = [np.subtract(*source[index]["value"]) for index in range(80)]
    one, other = (next(n for n in range(80) if gaps[n] * s > 0) for s in (1, -1))
    path = judged("some", shelf, [source[one], source[other]])
    with path.open("a") as file:  # unknown, then two that disagree, and a tie
        for line in ((37, 3), (39, 0), (39, 1), (41, 2)):
            pair = int(source[line[0]]["pair"])
            file.write(json.dumps({"pair": pair, "label": line[1]}) + "\n")
    found = Preferred(source, "goto", "some")
    rows = [found[index] for index in range(len(found))]
    assert [row["pair"] - 600 for row in rows] == [*sorted([one, other]), 39, 41]
    assert [row["preference"] for row in rows[2:]] == [0.5, 0.5]
    for row in rows[:2]:
        gap = row["value"][0] - row["value"][1]
        assert row["preference"] == (np.sign(gap) + 1) / 2 and row["weight"] == 1
    again = Preferred(source, "goto", "some")
    assert again.digest == found.digest
    with path.open("a") as file:
        file.write(json.dumps({"pair": int(source[50]["pair"]), "label": 0}) + "\n")
    assert Preferred(source, "goto", "some").digest != found.digest


def test_labels_of_other_pairs_and_of_none_of_these_are_told(shelf):
    source = ArrayRecord("goto", "validation")
    judged("stranger", shelf, [source[0]], pairs="0" * 64)
    with pytest.raises(InputError, match="labels of other pairs"):
        Preferred(source, "goto", "stranger")
    judged("few", shelf, [source[number] for number in range(20)])
    with pytest.raises(InputError, match="no label of these 600 pairs"):
        Preferred(ArrayRecord("goto", "train"), "goto", "few", tie_quantile=0.0)
    with pytest.raises(InputError, match="there are no labels"):
        Preferred(source, "goto", "nobody")


def test_a_pair_becomes_two_looks_and_one_instruction(shelf, rng):
    source = Preferred(ArrayRecord("goto", "validation"), "goto", "oracle")
    views = Pair(["grid", "caption"], text=Letters(), length=6, room=4)
    made = views(source[0], rng)
    shapes = {name: x.shape for name, x in made["views"].items()}
    assert shapes == {"grid": (2, 3, 3, 3), "caption": (2, 4), "text": (1, 6)}
    assert made["views"]["text"][0, -1] == -1  # padding
    assert {name: len(x) for name, x in made["present"].items()} == {
        "grid": 2,
        "caption": 2,
        "text": 1,
    }
    assert made["targets"]["preference"].dtype == np.float32
    with pytest.raises(InputError, match="captions need a tokenizer"):
        Pair(["caption"])
    with pytest.raises(InputError, match="room for 2"):
        Pair(["caption"], text=Letters(), room=2)(source[0], rng)


def test_a_run_learns_the_order_and_its_scale_becomes_that_of_shaping(
    shelf, tmp_path, monkeypatch, on_devices
):
    on_devices(1)
    monkeypatch.setattr(parts, "tokenizer", lambda name: dict(AT))
    config = load_config(
        "configs/rewards_distil.py:data=goto,steps=80",
        {"batch_size": "100", "views.length": "8", "optimizer.warm_up": "0.0"}
        | {"evaluations.reward.views.length": "8"},
    )
    train(Trainer(config), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "eval" / "80-reward.json").read_text())
    # An object is looked for by its colour and its kind among all that are there.
    assert told["spearman"] > 0.9
    print(told["spearman"])
    low, high = told["spearman_interval"]
    assert low < told["spearman"] < high
    assert told["labels"] == {k: told["truth"][k] for k in told["labels"]}
    assert told["judge"]["accuracy"]["share"] == told["judge"]["agreement"] == 1
    assert told["columns"]["judge %"] == told["columns"]["asked once %"] == 100
    assert told["judge"]["pairs"] == 600
    found, scale = parts.scale_of(str(tmp_path / "run"))
    assert found["source"]["name"] == "goto" and scale == told["scale"]
    # The scale is that of the rewards of all distinct moments of training.
    model = load(tmp_path / "run", trust=("test_feedback_distil",))
    module = nnx.merge(model.parts.graph, *model.parts[1:])
    rows = pairs.read("goto", "train")
    shown = [Pair(["grid"], text=Letters(), length=8).shown(row) for row in rows]
    views = {name: np.stack([row[name] for row in shown]) for name in shown[0]}
    rewards = np.asarray(jax.jit(lambda shown: module.pairs(shown))(views))
    assert scale["mean"] == pytest.approx(rewards.mean(), rel=1e-4)
    assert scale["deviation"] == pytest.approx(rewards.std(), rel=1e-4)
    ends = [rewards.min(), np.median(rewards), rewards.max()]
    np.testing.assert_allclose(
        np.array(scale["quantiles"])[[0, 10, 20]], ends, rtol=1e-4
    )
    made = parts.shaping(
        "thresholded",
        scale,
        quantile=0.5,
        weight=1.0,
        extrinsic=1.0,
        discount=0.9,
        power=3.0,
        counted="grid",
    )
    threshold = (np.median(rewards) - rewards.mean()) / rewards.std()
    assert made["threshold"] == pytest.approx(threshold, rel=1e-3, abs=1e-4)


class Known:
    """Stands in for a model: the reward of a moment follows from its grid alone."""

    def __init__(self, reward):
        self.reward = reward

    def call(self, method, views):
        assert method == "pairs"
        return np.array([[self.reward(x) for x in two] for two in views["grid"]])


def evaluation(**own):
    views = Pair(["grid"], text=Letters(), length=8)
    test, known = (ArrayRecord("goto", split) for split in ("validation", "train"))
    given = {"test": test, "known": known, "views": views, "name": "goto"}
    return Rewards(**given, labels="oracle", resamples=20, **own)


def test_a_reward_that_knows_nothing_is_measured_as_such(shelf):
    rng = np.random.default_rng(1)
    found = evaluation()(Known(lambda grid: rng.normal()), None)
    assert abs(found["spearman"]) < 0.3
    assert 0.3 < found["truth"]["share"] < 0.7
    assert found["truth"]["across"]["pairs"] == 0  # all are of one episode here
    assert found["moments"] == 160
    with pytest.raises(InputError, match="not finite"):
        evaluation()(Known(lambda grid: np.nan), None)


def test_a_reward_that_is_the_same_everywhere_gives_no_scale(shelf, tmp_path):
    found = evaluation()(Known(lambda grid: 1.0), None)
    assert found["spearman"] is None and found["scale"]["deviation"] == 0
    (tmp_path / "eval").mkdir()
    spec = {"model": {"partial": "agents.feedback.distil:Sought"}}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="is not evaluated"):
        parts.scale_of(str(tmp_path))
    (tmp_path / "eval" / "9-reward.json").write_text(
        json.dumps({"scale": found["scale"]})
    )
    with pytest.raises(InputError, match="alike .deviation 0."):
        parts.scale_of(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("source", None, "its config has no source.name"),
        ("source", {"name": 3}, "its config has no source.name"),
        ("views", [], "its config has no views.text"),
        ("views", {"text": AT}, "its config has no views.observations"),
        ("views", {"text": AT, "observations": ["caption"]}, "has no views.room"),
        ("views", {"text": AT, "observations": ["grid", "caption"]}, "reads 2 obs"),
        ("model", {"partial": "polyview.nn.towers:Towers"}, "holds no reward"),
    ],
)
def test_a_damaged_run_of_a_reward_is_told_in_a_line(
    shelf, tmp_path, monkeypatch, key, value, told
):
    pytest.importorskip("minigrid")
    monkeypatch.setattr(parts, "tokenizer", lambda name: dict(AT))
    (tmp_path / "eval").mkdir()
    scale = {"mean": 0.0, "deviation": 1.0, "quantiles": [-1.0, 1.0]}
    (tmp_path / "eval" / "9-reward.json").write_text(json.dumps({"scale": scale}))
    spec = {
        "source": {"name": "goto"},
        "views": {"text": AT, "observations": ["grid"]},
        "model": {"partial": "agents.feedback.distil:Sought"},
    }
    (tmp_path / "config.json").write_text(json.dumps(spec))
    given = f"configs/rewards_ppo.py:reward={tmp_path},fast=False"
    assert load_config(given).shaping.deviation == 1.0
    (tmp_path / "config.json").write_text(json.dumps(spec | {key: value}))
    with pytest.raises(InputError, match=told) as error:
        load_config(given)
    assert str(error.value).count("\n") <= 1 and "Error" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda r: Reward(encoders={}, rngs=r), "needs an encoder"),
        (lambda r: Sought(shape=(3, 3, 3), looks=0, rngs=r), "looks=0"),
        (
            lambda r: check_views({"text": r}, ["grid", "text"]),
            "shows text, and the reward reads 'grid'",
        ),
        (lambda r: parts.rewarding("image", "goto"), "reads='image'"),
        (lambda r: parts.rewarding("state", "goto"), "and goto shows grid"),
        (
            lambda r: parts.shaping(
                "raw", {"quantiles": [0, 1]}, quantile=1.5, weight=1.0, extrinsic=1.0,
                discount=1.0, power=1.0, counted="grid",
            ),
            "quantile=1.5; give 0 to 1",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(make, text, shelf):
    with pytest.raises((InputError, OutOfRange), match=text):
        make(nnx.Rngs(0))
