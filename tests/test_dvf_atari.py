"""Recorded play as episodes of latents, and values against what it shows."""

import dataclasses
import json
import re
from functools import partial

import jax
import matplotlib.figure
import numpy as np
import pytest
from ml_collections import ConfigDict

from dvf.evaluation.recorded import KINDS, RecordedReturns
from dvf.recording import describe, maze_of
from dvf.rewards import linear
from dvf.value import FromFutures, Value
from polyview.config.file import load_config
from polyview.config.text import to_json
from polyview.data.later import lost_share
from polyview.data.prepare import episodes
from polyview.data.sources.array_record import ArrayRecord
from polyview.errors import InputError
from polyview.model import initialise_module, split_module
from polyview.runs.checkpoint import Checkpoints
from polyview.training.trainer import Trainer
from sgi import latents, recording
from sgi.latents import Span, divided
from sgi.network import Network
from sgi.ram import ADDRESSES

# ------------------------------------------------------------------- episodes


def episode(rng, length, **changes):
    """Three numbers a state, two variables, one action."""
    made = {
        "states": rng.standard_normal((length, 3)).astype(np.float32),
        "variables": rng.integers(0, 256, (length, 2)).astype(np.float32),
        "rewards": rng.integers(0, 3, length).astype(np.float32),
        "policy": 0,
        "actions": np.eye(2, dtype=np.float32)[rng.integers(0, 2, length - 1)],
        "terminal": bool(length % 2),
    }
    return made | changes


def write(folder, splits, **changes):
    arguments = {
        "policies": ["play"],
        "source": "a test",
        "licence": "none",
        "version": "3",
        "provenance": {
            "state": ["a", "b", "c"],
            "action": ["left", "right"],
            "box": [0.0, 1.0],
            "variables": ["x", "y"],
        },
        "fields": {"variables": 2, "rewards": None},
    }
    episodes.write(folder, splits, **(arguments | changes))


def test_episodes_are_read_as_they_were_written(rng, tmp_path):
    lengths = (5, 9, 4)
    splits = {
        "train": [episode(rng, n) for n in lengths],
        "test": [episode(rng, 7)],
    }
    write(tmp_path / "own", splits)
    for split, rows in splits.items():
        source = ArrayRecord("own", split, tmp_path)
        assert len(source) == len(rows)
        for row, read in zip(rows, map(source.__getitem__, range(len(rows))), strict=1):
            assert set(row) == set(read) and read["terminal"] is row["terminal"]
            for name in ("states", "variables", "rewards", "actions"):
                np.testing.assert_array_equal(read[name], row[name])
                assert read[name].dtype == np.float32
    found = describe("own", tmp_path)
    states = np.concatenate([row["states"] for row in splits["train"]])
    np.testing.assert_allclose(
        found["statistics"]["states"]["std"], states.std(0, dtype=float), rtol=1e-6
    )
    assert found["counts"] == {"episodes": 3, "states": 18}
    assert found["lost"]["share"] == lost_share(lengths, episodes.DISCOUNT)
    assert found["variables"] == ["x", "y"]
    with pytest.raises(InputError, match="not played in a maze"):
        maze_of(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(4, np.float32)}, r"rewards is float32\[4\], not"),
        ({"variables": np.zeros((6, 3), np.float32)}, r"not float32\[6, 2\]"),
        ({"variables": np.zeros((6, 2))}, "variables is float64"),
        ({"rewards": np.full(6, np.nan, np.float32)}, "rewards has a number that is"),
    ],
)
def test_fields_that_do_not_fit_the_states_are_refused(changes, message, rng, tmp_path):
    with pytest.raises(InputError, match=f"train 1: .*{message}"):
        rows = [episode(rng, 6), episode(rng, 6, **changes)]
        write(tmp_path / "own", {"train": rows})
    assert not [*tmp_path.iterdir()]


# -------------------------------------------------------------------- latents

LENGTHS = (8, 6, 5, 4, 7)
UNFINISHED = 1  # the episode that another follows without an end
DIMS = 3
ACTIONS = ["NOOP", "FIRE", "RIGHT", "LEFT"]


@pytest.fixture(scope="module")
def steps():
    """Five episodes; action i of all gains i + 1, and the bytes of RAM are random."""
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate(LENGTHS):
        for time in range(length):
            ended = time == length - 1 and number not in (UNFINISHED, 4)
            made.append(
                recording.Step(
                    rng.integers(0, 256, (84, 84), np.uint8),
                    len(made) % 4,
                    float(len(made) + 1),
                    ended,
                    time == 0,
                    rng.integers(0, 256, 128, np.uint8),
                )
            )
    return made


@pytest.fixture(scope="module")
def network():
    return {
        "partial": "sgi.network:Network",
        "actions": 4,
        "hidden": 4,
        "encoder": {"partial": "sgi.encoders:Nature", "widths": (2, 2, 2)},
    }


def module_of(**changes):
    from sgi.encoders import Nature

    make = partial(
        Network, actions=4, hidden=4, encoder=partial(Nature, widths=(2, 2, 2))
    )
    return initialise_module(partial(make, **changes), 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, steps, network):
    """A data directory with a recording, and the checkpoint of a tiny network."""
    top = tmp_path_factory.mktemp("atari")
    play(top, steps)
    parts = split_module(module_of())
    state = {"params": parts.params, "statistics": parts.statistics}
    checkpoints = Checkpoints(top / "run" / "checkpoints")
    config = ConfigDict({"model": network, "views": {"target": "none"}, "seed": 0})
    checkpoints.save(9, state, to_json(config))
    checkpoints.close()
    return top


def play(top, steps, name="play", game="breakout", actions=ACTIONS):
    recording.write(
        top / name,
        steps,
        len(steps),
        source="",
        licence="",
        provenance={"game": game, "actions": actions},
    )


def encode(top, *more, name="latents", run="run"):
    latents.main(
        [
            *("--run", str(top / run), "--recording", "play", "--name", name),
            *("--dims", str(DIMS), "--batch", "4", "--data_dir", str(top)),
            *map(str, more),
        ]
    )


def read(top, name="latents"):
    sources = {s: ArrayRecord(name, s, top) for s in ("train", "validation", "test")}
    return {s: [*map(x.__getitem__, range(len(x)))] for s, x in sources.items()}


def components(rows, train):
    """The first principal components by a singular value decomposition."""
    mean = rows[:train].mean(0)
    _, sizes, ways = np.linalg.svd(rows[:train] - mean, full_matrices=False)
    deviations = sizes[:DIMS] / np.sqrt(train - 1)
    explained = (sizes[:DIMS] ** 2).sum() / (sizes**2).sum()
    return (rows - mean) @ ways[:DIMS].T / deviations, explained


def test_latents_are_those_of_an_encoding_frame_by_frame(folder, steps, capsys):
    encode(folder)
    line = capsys.readouterr().out
    module, found, past = module_of(), [], []
    for step in steps:
        past = [step.frame] if step.first else [*past, step.frame]
        stack = np.zeros((84, 84, 4), np.uint8)
        for age, frame in enumerate(past[::-1][:4]):
            stack[..., 3 - age] = frame
        latent = module.encode(stack[None], train=False)
        found.append(np.asarray(latent, float).reshape(-1))
    train = sum(LENGTHS[:3])
    expected, explained = components(np.stack(found), train)
    parts = read(folder)
    states = np.concatenate(
        [row["states"] for s in ("train", "validation", "test") for row in parts[s]]
    )
    signs = np.sign((states * expected).sum(0))
    np.testing.assert_allclose(states, expected * signs, atol=2e-3)
    described = episodes.describe(folder / "latents")
    assert described["explained"] == pytest.approx(explained, rel=1e-4)
    assert described["variables"] == ["player_x", "ball_x", "ball_y"]
    assert described["settings"]["step"] == 9 and described["game"] == "breakout"
    assert f"written: 3 training episodes, {train} states" in line


def test_boundaries_ends_and_rewards_stand_where_they_belong(folder, steps):
    if not (folder / "latents").exists():
        encode(folder)
    parts = read(folder)
    assert [len(row["states"]) for row in parts["train"]] == [8, 6, 5]
    assert [len(parts[name][0]["states"]) for name in ("validation", "test")] == [4, 7]
    start = 0
    for number, row in enumerate(sum(map(parts.get, parts), [])):
        own = steps[start : start + LENGTHS[number]]
        # Action i, which gains start + i + 1, leads to state i + 1.
        assert row["rewards"].tolist() == [
            0,
            *range(start + 1, start + LENGTHS[number]),
        ]
        assert row["actions"].argmax(1).tolist() == [s.action for s in own[:-1]]
        assert (row["actions"].sum(1) == 1).all()
        memory = [[s.ram[72], s.ram[99], s.ram[101]] for s in own]
        assert row["variables"].tolist() == memory
        assert row["terminal"] is (number not in (UNFINISHED, 4))
        start += LENGTHS[number]


def test_an_episode_that_the_split_cuts_is_not_terminal(folder):
    encode(folder, "--split", "train[2:24]", name="cut")
    rows = sum(read(folder, "cut").values(), [])
    # Of the fifth episode one step is left, which is no episode.
    assert [len(row["states"]) for row in rows] == [6, 6, 5, 4]
    assert [row["terminal"] for row in rows] == [True, False, True, True]
    encode(folder, "--split", "train[6:22]", name="short")
    rows = sum(read(folder, "short").values(), [])
    assert [len(row["states"]) for row in rows] == [2, 6, 5, 3]
    assert [row["terminal"] for row in rows] == [True, False, True, False]
    assert rows[-1]["rewards"].tolist() == [0, 20, 21]


def test_a_tenth_of_the_steps_is_kept_for_each_test():
    lengths = [30, 40, 3, 8, 4, 5, 6, 4]
    ends = np.cumsum(lengths)
    spans = [Span(int(e - n), int(e)) for e, n in zip(ends, lengths, strict=True)]
    parts = divided(spans, "play")
    # 6 + 4 of 100 are a tenth, and so are 8 + 4 + 5 but not 4 + 5.
    assert [len(parts[s]) for s in ("train", "validation", "test")] == [3, 3, 2]
    assert sum(parts.values(), []) == spans
    for few in (spans[:2], []):
        with pytest.raises(InputError, match="too few for"):
            divided(few, "play")


def test_existing_latents_are_kept_and_other_settings_refused(folder, capsys):
    encode(folder, name="kept")
    times = {p: p.stat().st_mtime_ns for p in (folder / "kept").iterdir()}
    capsys.readouterr()
    encode(folder, name="kept")
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(InputError, match="prepared with dims 3, not 2"):
        encode(folder, "--dims", 2, name="kept")
    with pytest.raises(InputError, match="prepared with split train, not"):
        encode(folder, "--split", "train[:29]", name="kept")
    assert times == {p: p.stat().st_mtime_ns for p in (folder / "kept").iterdir()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dims", 0), "--dims is 0; give 1 or more"),
        (("--batch", 0), "--batch is 0; give 1 or more"),
        (("--name", "a/b"), "--name a/b is a path"),
        (("--run", "runs/a@x"), "write RUN or RUN@STEP"),
        (("--run", "runs/a@3"), "no checkpoint of step 3"),
        (("--recording", "other"), "no recording 'other'"),
        (("--split", "train[:9]"), "2 episodes|1 episodes"),
        (("--dims", 500), "give 19 or less"),
        (("--dims", 19), r"vary in \d+ directions only; give"),
    ],
)
def test_what_cannot_be_encoded_is_an_error_that_writes_nothing(flags, message, folder):
    before = {*folder.iterdir()}
    with pytest.raises(InputError, match=message):
        encode(folder, *flags, name="new")
    assert {*folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"game": "tutankham"}, "no known variables of 'tutankham'"),
        ({"actions": ACTIONS[:3]}, "4 actions, but 'play' is play of breakout with 3"),
        ({}, "has no RAM of the console"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(
    changes, message, folder, tmp_path, steps
):
    own = [step._replace(action=0, ram=step.ram if changes else None) for step in steps]
    play(tmp_path, own, **changes)
    with pytest.raises(InputError, match=message):
        encode(tmp_path, run=folder / "run")


# --------------------------------------------------------------------- values

DISCOUNT, HORIZON, STRIDE = 0.8, 6, 2
NAMES = {"second": 1, "still": 2}  # columns


class Rows(list):
    targets: dict = {}

    def __repr__(self):
        return "rows in memory"


def toy(rng, lengths, still=4.0):
    """States that drift; variables are linear in them, and the score is noise."""
    rows = Rows()
    for length in lengths:
        states = np.cumsum(rng.standard_normal((length, 2)), 0).astype(np.float32)
        second = 3 * states[:, 0] - states[:, 1] + 10
        variables = np.stack([0 * second, second, 0 * second + still], 1)
        rows.append(
            {
                "states": states,
                "variables": variables.astype(np.float32),
                "rewards": rng.integers(0, 2, length).astype(np.float32),
                "policy": 0,
                "terminal": False,
            }
        )
    return rows


def slow_starts(rows):
    """State, value of each variable and of the score, episode; by loops."""
    found = []
    for number, row in enumerate(rows):
        length = len(row["states"])
        for time in range(0, length, STRIDE):
            if time + HORIZON > length - 1:
                continue
            value = np.zeros(3)
            for k in range(1, HORIZON + 1):
                told = [*row["variables"][time + k, [1, 2]], row["rewards"][time + k]]
                value += DISCOUNT**k * np.array(told, float)
            found.append((row["states"][time], value, number))
    return map(np.array, zip(*found, strict=True))


def evaluate(test, train, estimate, **changes):
    arguments = {"discount": DISCOUNT, "horizon": HORIZON, "stride": STRIDE}
    arguments |= {"variables": NAMES, "resamples": 200} | changes
    return RecordedReturns(test, train, estimate=estimate, **arguments)


def telling(values, error=None):
    """An estimate of endless sums whose first H steps are values[n, k]."""

    def estimate(model, states, policy, action, reward):
        assert model == "the model" and action is None
        assert len(states) == len(policy) == len(values)
        told = values / (1 - DISCOUNT**HORIZON)
        return Value(told, None if error is None else np.full(told.shape, error))

    return estimate


@pytest.fixture
def rows(rng):
    return toy(rng, (20, 6, 13, 9)), toy(rng, (30, 25, 7, 5))


def test_an_estimate_that_knows_the_recording_is_perfect(rows):
    test, train = rows
    state, value, _ = slow_starts(test)
    evaluation = evaluate(test, train, telling(value, 0.5))
    asked, _ = evaluation.read(test)
    np.testing.assert_array_equal(asked.state, state)
    np.testing.assert_allclose(asked.value, value, rtol=1e-12)
    found = evaluation("the model", None)
    assert found["left_out"].keys() == {"still"}
    assert [*found["variables"]] == ["second", "score"]
    for column, name in (0, "second"), (2, "score"):
        one = found["variables"][name]
        assert one["model"]["correlation"] == pytest.approx(1)
        assert one["model"]["rmse"] == pytest.approx(0, abs=1e-9)
        assert one["model"]["bias"] == pytest.approx(0, abs=1e-9)
        assert one["deviation"] == pytest.approx(value[:, column].std())
        error = 0.5 * (1 - DISCOUNT**HORIZON) / value[:, column].std()
        assert one["standard_error"] == pytest.approx(error)
    assert found["variables"]["second"]["read"] == pytest.approx(1, abs=1e-4)
    assert found["protocol"]["asked"] == {"states": len(value), "episodes": 3}
    assert found.columns["correlation of returns"] == pytest.approx(1)
    assert re.search(r"second 1\.00 \(1\.00 to 1\.00\), score 1\.00", found.summary)
    json.dumps(found, allow_nan=False)
    drawn = evaluation.figures(json.loads(json.dumps(found)), found.figure_data)
    assert isinstance(drawn["returns"], matplotlib.figure.Figure)
    drawn["returns"].canvas.draw()


def test_measures_and_references_are_what_one_computes_by_hand(rows, rng):
    test, train = rows
    state, value, episode_of = slow_starts(test)
    told = value + rng.standard_normal(value.shape) + 0.7
    found = evaluate(test, train, telling(told))("the model", None)
    weight = sum(DISCOUNT**k for k in range(1, HORIZON + 1))
    # "second" is linear in the state: what is read of it is what it is.
    stays = weight * (3 * state[:, 0] - state[:, 1] + 10.0)
    known, sums, _ = slow_starts(train)
    values = {"model": told, "as it is": stays[:, None]}
    values["regression"] = by_hand(known.astype(float), sums, state.astype(float))
    true = value[:, 0]
    for kind in KINDS:
        own, one = values[kind][:, 0], found["variables"]["second"][kind]
        close = partial(pytest.approx, rel=2e-3, abs=2e-4)
        assert one["correlation"] == close(np.corrcoef(true, own)[0, 1])
        assert one["rmse"] == close(np.sqrt(((own - true) ** 2).mean()) / true.std())
        assert one["bias"] == close((own - true).mean() / true.std())
        for name in ("correlation", "rmse", "bias"):
            low, high = one[f"{name}_interval"]
            assert low <= high and low <= one[name] + 1e-9
    means = [
        found["variables"][n]["as it is"]["correlation"] for n in found["variables"]
    ]
    assert found.columns["as it is"] == pytest.approx(np.mean(means))
    assert len(set(episode_of)) == 3


def by_hand(x, y, at):
    """Ridge regression whose penalties leave one row out, one after the other."""
    mean, std = x.mean(0), x.std(0)
    x, at = (x - mean) / std, (at - mean) / std

    def fit(x, y, penalty):
        x0, y0 = x.mean(0), y.mean(0)
        gram = (x - x0).T @ (x - x0) + penalty * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, (x - x0).T @ (y - y0))
        return lambda rows: (rows - x0) @ weights + y0

    told = np.zeros((len(at), y.shape[1]))
    for k in range(y.shape[1]):
        errors = []
        for penalty in np.logspace(-2, 6, 9):
            left = [np.delete(np.arange(len(x)), i) for i in range(len(x))]
            errors.append(
                np.mean(
                    [
                        (fit(x[rows], y[rows, k], penalty)(x[i]) - y[i, k]) ** 2
                        for i, rows in enumerate(left)
                    ]
                )
            )
        told[:, k] = fit(x, y[:, k], np.logspace(-2, 6, 9)[np.argmin(errors)])(at)
    return told


def test_linear_rewards_are_ridge_regression(rng):
    x = rng.standard_normal((25, 3)) * [1, 5, 0.1] + 2
    y = x @ rng.standard_normal((3, 2)) + rng.standard_normal((25, 2)) * [0.1, 3]
    at = rng.standard_normal((4, 6, 3))
    reward = linear(x.astype(np.float32), y, ["a", "b"])
    expected = by_hand(x.astype(np.float32).astype(float), y, at.reshape(-1, 3))
    np.testing.assert_allclose(reward(at).reshape(-1, 2), expected, rtol=1e-6)
    in_jax = reward(jax.numpy.asarray(at, jax.numpy.float32))
    np.testing.assert_allclose(in_jax, reward(at), rtol=1e-4, atol=1e-4)
    assert reward.names == ("a", "b")
    # A number that never changes says nothing, and more of them change nothing.
    padded = np.concatenate([x, np.ones((25, 1))], 1)
    more = linear(padded, y, ["a", "b"])
    np.testing.assert_allclose(more(padded), reward(x), rtol=1e-5)
    with pytest.raises(InputError, match="4 states and 4 rewards"):
        linear(x[:4], y[:4], ["a", "b"])


def test_intervals_resample_episodes(rows):
    """One of three is off: in 8 of 27 resamples it is absent, and the bias is 0."""
    test, train = rows
    _, value, episode_of = slow_starts(test)
    told = value + 5.0 * (episode_of == 0)[:, None]
    found = evaluate(test, train, telling(told))("the model", None)
    low, high = found["variables"]["second"]["model"]["bias_interval"]
    assert low == pytest.approx(0, abs=1e-9) and high > 0.1


def test_values_that_are_all_equal_have_no_correlation(rows):
    test, train = rows
    _, value, _ = slow_starts(test)
    evaluation = evaluate(test, train, telling(0 * value + 1.0))
    found = evaluation("the model", None)
    one = found["variables"]["score"]["model"]
    assert one["correlation"] == 0 and one["correlation_interval"] == [0, 0]
    assert one["rmse"] > 0
    evaluation.figures(found, {})["returns"].canvas.draw()


def test_what_cannot_be_evaluated_is_refused(rows):
    test, train = rows
    ideal = telling(np.zeros((1, 3)))
    for changes, message in [
        ({"horizon": 30}, "no episode of more than 30 states; lower"),
        ({"horizon": 15}, "has one episode of more than 15 states"),
        ({"variables": {"far": 3}}, "without a column 3"),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate(test, train, ideal, **changes)("the model", None)
    bare = Rows([{"states": row["states"]} for row in test])
    with pytest.raises(InputError, match="write them with python -m sgi.latents"):
        evaluate(bare, train, ideal)("the model", None)
    with pytest.raises(InputError, match="discount=0.8, and that of estimate is 0.9"):
        evaluate(test, train, FromFutures(0.9))
    with pytest.raises(InputError, match="is called 'score'"):
        evaluate(test, train, ideal, variables={"score": 0})


# --------------------------------------------------------------------- config


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("recorded")
    splits = {"train": 20, "validation": 3, "test": 3}
    write(
        folder / "own",
        {s: [episode(rng, 40 + n) for n in range(c)] for s, c in splits.items()},
    )
    return folder


@pytest.mark.parametrize("argument", ["", "method=flow,offset=False", "method=infonce"])
def test_the_config_builds_and_its_evaluation_runs(recorded, monkeypatch, argument):
    monkeypatch.setenv("POLYVIEW_DATA", str(recorded))
    path = f"configs/dvf_atari.py:data=own,steps=4,discount=.9,{argument}".rstrip(",")
    trainer = Trainer(load_config(path))
    shapes = trainer.trace()
    assert shapes["views"]["later"].shape == (16, 16, 3)
    evaluation = trainer.evaluations["returns"]
    assert evaluation.variables == {"x": 0, "y": 1} and evaluation.horizon == 30
    offset = trainer.config.model.offset_features
    assert offset == (0 if "offset=False" in argument else 16)
    if argument == "method=infonce":  # the cheapest to evaluate
        state, trainer.fixed = trainer.initial(trainer.seed)
        quick = dataclasses.replace(evaluation, resamples=20)
        found = quick(trainer.model(state, 0), trainer.mesh)
        assert [*found["variables"]] == ["x", "y", "score"]
        json.dumps(found, allow_nan=False)


def test_a_config_without_latents_says_what_to_do(recorded, monkeypatch):
    monkeypatch.setenv("POLYVIEW_DATA", str(recorded))
    with pytest.raises(InputError, match="sgi.latents --name none"):
        load_config("configs/dvf_atari.py:data=none")
    with pytest.raises(InputError, match="did you mean 'ddpm'"):
        load_config("configs/dvf_atari.py:data=own,method=dppm")
    with pytest.raises(InputError, match="needs rewards in training"):
        load_config("configs/dvf_atari.py:data=own,method=td")


def test_every_game_has_variables_with_names():
    assert all("score" not in names for names in ADDRESSES.values())
