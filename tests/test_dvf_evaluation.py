"""Evaluations of models of the future, on fakes whose numbers are known by hand."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.patches import Circle

from dvf import prepare
from dvf.evaluation import accuracy
from dvf.evaluation.accuracy import ValueAccuracy
from dvf.evaluation.choice import PolicyChoice, share
from dvf.evaluation.distance import OccupancyDistance
from dvf.evaluation.maps import ValueMaps
from dvf.evaluation.play import Returns
from dvf.evaluation.queries import read, shortness
from dvf.futures import Futures
from dvf.rewards import Column, Discs, rewarded
from dvf.value import Direct, FromFutures, Value
from dvf.worlds import PointWorld
from polyview.config.file import load_config
from polyview.errors import InputError, OutOfRange
from polyview.training.trainer import Trainer

CONFIG = "configs/dvf_pointmaze.py"


class Rows(list):
    """Truth in memory."""

    targets: dict = {}

    def __repr__(self):
        return "truth in memory"


def rows_of(values, deviation=0.0):
    """Roll-outs whose values of `Column([0, 1])` at discount 1/2 are values[s, q, k].

    Two roll-outs of one step each, `deviation` above and below.
    """
    rows = Rows()
    for start, asked in enumerate(values):
        for policy, value in enumerate(asked):
            state = 2 * np.asarray(value, np.float32)  # g is 1/2
            futures = np.stack([state + 2 * deviation, state - 2 * deviation])[:, None]
            rows.append(
                {
                    "state": np.array([start, policy], np.float32),
                    "policy": policy,
                    "start": start,
                    "futures": futures.astype(np.float32),
                }
            )
    return rows


def telling(values, error=None):
    """An estimate that tells values[n, k], in order of the queries."""

    def estimate(model, states, policy, action, reward):
        assert model == "the model" and len(states) == len(policy)
        told = np.asarray(values, float).reshape(len(states), -1)
        return Value(told, None if error is None else np.full(told.shape, error))

    return estimate


def figures_of(evaluation, result):
    """The figures of a result as it is read again: drawn, and left open."""
    numbers = json.loads(json.dumps(result))
    drawn = type(evaluation).figures(numbers, result.figure_data)
    for figure in drawn.values():
        assert isinstance(figure, matplotlib.figure.Figure)
        figure.canvas.draw()
    return drawn


TRUE = np.array([[[1, 0], [3, 1]], [[2, 4], [0, 1]], [[5, 2], [1, 1]]], float)
TOLD = TRUE + np.array([[[1, 0], [0, 1]], [[0, -1], [1, 0]], [[0, 0], [-1, 2]]])


# ---------------------------------------------------------------- accuracy


def test_accuracy_is_what_one_computes_by_hand():
    evaluation = ValueAccuracy(
        rows_of(TRUE, deviation=0.5), Column([0, 1]), telling(TOLD, 0.3), 0.5
    )
    found = evaluation("the model", None)
    x, y = TRUE.reshape(-1), TOLD.reshape(-1)
    mx, my = sum(x) / 12, sum(y) / 12
    sx = (sum((x - mx) ** 2) / 12) ** 0.5
    sy = (sum((y - my) ** 2) / 12) ** 0.5
    both = sum((x - mx) * (y - my)) / 12
    assert found["correlation"] == pytest.approx(both / sx / sy)
    assert found["rmse"] == pytest.approx((sum((x - y) ** 2) / 12) ** 0.5 / sx)
    assert found["bias"] == pytest.approx(3 / 12 / sx)
    assert found["deviation"] == pytest.approx(sx)
    assert found["standard_error"] == pytest.approx(0.3 / sx)
    # Two roll-outs 1 apart: the error of their mean is 1/2.
    assert found["ceiling"] == pytest.approx((1 - 0.25 / sx**2) ** 0.5)
    for k in (0, 1):
        expected = np.corrcoef(TRUE[..., k].reshape(-1), TOLD[..., k].reshape(-1))
        assert found["correlations_by_reward"][k] == pytest.approx(expected[0, 1])
    for name in ("correlation", "rmse", "bias"):
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high and low < high
    assert found["protocol"]["queries"] == 6 and found["protocol"]["starts"] == 3
    assert f"{found['correlation']:.3f}" in found.summary
    assert list(found.columns.values())[:2] == [found["correlation"], found["rmse"]]
    assert set(figures_of(evaluation, found)) == {"values"}


def test_intervals_resample_starts_and_not_rows():
    """Where all rows of a start are off alike, and one start is off by much."""
    told = TRUE + np.array([9.0, 0, 0])[:, None, None]
    found = ValueAccuracy(rows_of(TRUE), Column([0, 1]), telling(told), 0.5)(
        "the model", None
    )
    # Three starts: in (2/3)^3 of the resamples the first is absent, so bias is 0.
    assert found["bias_interval"][0] == 0 and found["bias"] > 0
    # In 1/27 it alone is drawn: 9, over the deviation of its own values.
    assert found["bias_interval"][1] == pytest.approx(9 / TRUE[0].std())


def test_the_ceiling_is_the_correlation_of_the_expected_values(rng):
    """Found again where the truth is known: 4 noisy roll-outs of 400 starts."""
    expected = rng.standard_normal((400, 2))
    noise = rng.standard_normal((400, 2, 4))
    rows = Rows()
    for start in range(400):
        for policy in (0, 1):
            values = expected[start, policy] + 1.5 * noise[start, policy]
            row = {
                "state": np.zeros(2, np.float32),
                "policy": policy,
                "start": start,
                "futures": 2 * values.astype(np.float32)[:, None, None],
            }
            rows.append(row)
    found = ValueAccuracy(rows, Column([0]), telling(expected), 0.5, resamples=50)(
        "the model", None
    )
    assert abs(found["ceiling"] - 0.8) < 0.02  # 1 / sqrt(1 + 1.5^2 / 4)
    assert abs(found["correlation"] - found["ceiling"]) < 0.03


def test_perfect_values_and_one_roll_out():
    rows = rows_of(TRUE)
    for row in rows:
        row["futures"] = row["futures"][:1]
    found = ValueAccuracy(rows, Column([0, 1]), telling(TRUE), 0.5)("the model", None)
    assert (found["correlation"], found["rmse"], found["bias"]) == (1, 0, 0)
    assert found["ceiling"] is None and "at most" not in found.summary
    assert "standard_error" not in found
    json.dumps(found, allow_nan=False)
    constant = TRUE.copy()
    constant[..., 1] = 1
    found = ValueAccuracy(rows_of(constant), Column([0, 1]), telling(TRUE), 0.5)(
        "the model", None
    )
    assert found["correlations_by_reward"][1] is None


def test_values_that_are_all_the_same():
    """True ones are refused; told ones, of a poor model, must not end its training."""
    same = np.ones_like(TRUE)
    with pytest.raises(InputError, match="no roll-out meets a reward"):
        ValueAccuracy(rows_of(same), Column([0, 1]), telling(TRUE), 0.5)(
            "the model", None
        )
    found = ValueAccuracy(rows_of(TRUE), Column([0, 1]), telling(same), 0.5)(
        "the model", None
    )
    expected = np.sqrt(np.mean((TRUE - 1) ** 2)) / TRUE.std()
    assert found["rmse"] == pytest.approx(expected)
    json.dumps(found, allow_nan=False)


def test_a_constant_estimate_has_a_correlation_of_0(rng):
    x, y = rng.standard_normal((2, 50))
    assert accuracy.correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert accuracy.correlation(x, -2 * x + 3) == pytest.approx(-1)
    assert accuracy.correlation(x, np.ones(50)) == 0
    assert np.isnan(accuracy.correlation(np.ones(50), x))


# ------------------------------------------------------------------ choice


def test_the_share_of_the_gap_is_what_one_computes_by_hand():
    """Reward 0: chosen 1, 0, 0 of values (1, 3), (2, 0), (5, 1); reward 1: 0, 1, 1."""
    told = np.zeros_like(TRUE)
    for start, chosen in enumerate([(1, 0), (0, 1), (0, 1)]):
        for k in (0, 1):
            told[start, chosen[k], k] = 1
    evaluation = PolicyChoice(rows_of(TRUE), Column([0, 1]), telling(told), 0.5)
    found = evaluation("the model", None)
    got = (3 + 2 + 5) + (0 + 1 + 1)
    average = (2 + 1 + 3) + (0.5 + 2.5 + 1.5)
    best = (3 + 2 + 5) + (1 + 4 + 2)
    # One for all starts: the first by reward 0 (8 > 4), the first by reward 1 (6 > 3).
    single = (1 + 2 + 5) + (0 + 4 + 2)
    assert found["share"] == pytest.approx((got - average) / (best - average))
    assert found["single"] == pytest.approx((single - average) / (best - average))
    assert found["best_found"] == pytest.approx(3 / 6)
    assert found["chosen"] == [[1, 0], [0, 1], [0, 1]]
    returns = {"chosen": got, "best single": single, "best": best, "at random": average}
    for name, total in returns.items():
        assert found["returns"][name] == pytest.approx(total / 6)
    for name in ("share", "single"):
        low, high = found[f"{name}_interval"]
        assert low <= found[name] <= high
    assert found.columns == {"share of the gap": found["share"]}
    assert f"{found['share']:.3f}" in found.summary and "50 %" in found.summary
    json.dumps(found, allow_nan=False)


def test_a_perfect_choice_has_all_of_the_gap_and_a_random_one_none():
    for told, expected in ((TRUE, 1.0), (-TRUE, None)):
        found = PolicyChoice(rows_of(TRUE), Column([0, 1]), telling(told), 0.5)(
            "the model", None
        )
        if expected is None:
            assert found["share"] < 0
        else:
            assert found["share"] == 1 and found["best_found"] == 1
    assert share(np.full(4, 2.0), np.full(4, 2.0), np.full(4, 3.0)) == 0


def test_choices_that_are_none_are_refused():
    with pytest.raises(InputError, match="one row a start: nothing to choose"):
        PolicyChoice(rows_of(TRUE[:, :1]), Column([0]), telling(TRUE[:, :1, 0]), 0.5)(
            "the model", None
        )
    with pytest.raises(InputError, match="all choices are worth the same"):
        same = np.repeat(TRUE[:, :1], 2, 1)
        PolicyChoice(rows_of(same), Column([0, 1]), telling(same), 0.5)(
            "the model", None
        )
    uneven = Rows(rows_of(TRUE)[:-1])
    for kind in (PolicyChoice, ValueAccuracy):
        with pytest.raises(InputError, match="from 1 to 2 rows"):
            kind(uneven, Column([0]), telling(TRUE), 0.5)("the model", None)


def test_starts_with_the_policies_in_another_order_are_not_mixed_up():
    """`single` follows one policy: refused, or found by its number."""
    rows = rows_of(TRUE)
    rows[0], rows[1] = rows[1], rows[0]
    told = np.array([[row["futures"][0, 0] for row in rows]]).reshape(3, 2, 2)
    evaluation = PolicyChoice(rows, Column([0, 1]), telling(told), 0.5)
    straight = PolicyChoice(rows_of(TRUE), Column([0, 1]), telling(TRUE), 0.5)
    try:
        found = evaluation("the model", None)
    except InputError:
        return
    expected = straight("the model", None)["single"]
    assert found["single"] == pytest.approx(expected)


# ---------------------------------------------------------------- distance


def drawing(states, weights=None):
    """A model that draws the same futures[count, 2] for each query."""
    states = np.asarray(states, float)

    def call(method, asked, offset, policy, action, candidates, key, index):
        n, count = len(asked), len(states)
        own = np.full(count, 1 / count) if weights is None else np.asarray(weights)
        return Futures(np.tile(states, (n, 1, 1)), np.tile(own, (n, 1)))

    return SimpleNamespace(call=call)


def rolled(rollouts, starts=3, policies=2):
    """Rows with these roll-outs[r, t, 2] each."""
    futures = np.asarray(rollouts, np.float32)
    return Rows(
        {
            "state": np.zeros(2, np.float32),
            "policy": policy,
            "start": start,
            "futures": futures,
        }
        for start in range(starts)
        for policy in range(policies)
    )


def test_the_distance_is_what_one_computes_by_hand():
    """Cells of 1/2: A holds (0.1, 0.1), B (0.6, 0.1), C (-0.1, 0.1)."""
    a, b, c = (0.1, 0.1), (0.6, 0.1), (-0.1, 0.1)
    truth = rolled([[a, b], [b, b]])
    # g = 1/2: the first step counts 2/3, the second 1/3. A: 1/3, B: 2/3.
    evaluation = OccupancyDistance(truth, FromFutures(0.5, samples=4), 0.5)
    found = evaluation(drawing([a, (0.4, 0.4), c, b]), None)
    expected = (abs(1 / 2 - 1 / 3) + abs(1 / 4 - 2 / 3) + 1 / 4) / 2
    assert found["distance"] == pytest.approx(expected)
    assert found["distance_interval"] == pytest.approx([expected] * 2)
    weighted = evaluation(drawing([a, b, c], [1 / 3, 2 / 3, 0]), None)
    assert weighted["distance"] == pytest.approx(0, abs=1e-9)
    far = evaluation(drawing([(9.0, 9.0)]), None)
    assert far["distance"] == pytest.approx(1)
    assert far.columns == {"total variation": far["distance"]}
    walls = [[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]]
    for own in (None, walls):
        shown = OccupancyDistance(
            truth, FromFutures(0.5, samples=4), 0.5, walls=own, resamples=2
        )
        result = shown(drawing([a, b, c], [0.5, 0.5, 0]), None)
        assert set(figures_of(shown, result)) == {"futures"}
        clouds = result.figure_data["drawn"]
        assert clouds.shape[::2] == (2, 2)  # one of each policy
        assert set(np.unique(clouds[..., 0]).tolist()) == {0.1, 0.6}
        seen = result.figure_data["rolled"].astype(float).round(3)
        assert np.isin(seen, [0.1, 0.6]).all()


def test_beside_it_stands_the_distance_between_halves_of_the_roll_outs():
    """One half is in A for 2/3 and in B for 1/3, the other in B: a state is 2/3 off."""
    a, b = (0.1, 0.1), (0.6, 0.1)
    truth = rolled([[a, b], [b, b]], starts=400)
    evaluation = OccupancyDistance(truth, FromFutures(0.5, samples=2), 0.5)
    found = evaluation(drawing([a]), None)
    assert found["distance"] == pytest.approx(2 / 3)
    assert found["as_many"] == pytest.approx(2 / 3, abs=4 * 0.471 / 800**0.5)
    equal = rolled([[a, b], [a, b]])
    many = OccupancyDistance(equal, FromFutures(0.5), 0.5, resamples=2)
    assert many(drawing([a] * 3000), None)["as_many"] < 0.02
    alone = OccupancyDistance(rolled([[a, a]]), FromFutures(0.5), 0.5, resamples=2)
    with pytest.raises(InputError, match="one roll-out a row"):
        alone(drawing([b]), None)


def test_the_distance_compares_the_numbers_that_it_is_told_to(rng):
    truth = rolled(np.zeros((2, 1, 2)))
    for row in truth:
        row["futures"] = np.zeros((2, 1, 4), np.float32)
        row["state"] = np.zeros(4, np.float32)
    model = drawing([[0.1, 9.0, 0.1, -7.0]])
    estimate = FromFutures(0.5, samples=2)
    for dims, expected in (((0, 2), 0), ((2, 0), 0), ((0, 1), 1), ((3, 2), 1)):
        found = OccupancyDistance(truth, estimate, 0.5, dims=dims)(model, None)
        assert found["distance"] == pytest.approx(expected)


# -------------------------------------------------------------------- play


class Watched(PointWorld):
    """A point world that keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.begun, self.actions = [], []

    def begin(self, states):
        self.begun.append(states.copy())
        super().begin(states)

    def step(self, actions):
        self.actions.append(np.array(actions))
        return super().step(actions)


def test_returns_against_bodies_played_one_by_one():
    """Begun at rest off the walls; the policy sees each state, and its reward is paid
    on arrival."""
    room, reward = Watched(), Column([0, 3])
    seen = []

    def act(method, states):
        assert method == "act" and states.dtype == np.float32
        seen.append(states)
        return np.stack([np.sin(3 * states[:, 1]), -states[:, 0]], 1)

    evaluation = Returns(room, reward, 0.9, starts=6, horizon=12)
    found = evaluation(SimpleNamespace(call=act), None)
    (starts,) = room.begun
    assert starts.shape == (6, 4) and (starts[:, 2:] == 0).all()
    assert not room.maze.touches(starts[:, :2], 0.1).any()
    earned = np.zeros((6, 2))
    for body in range(6):
        alone = PointWorld()
        alone.begin(starts[body : body + 1])
        state = starts[body : body + 1]
        for step in range(12):
            np.testing.assert_allclose(seen[step][body], state[0], atol=1e-6)
            state = alone.step(act("act", state.astype(np.float32)))
            seen.pop()
            earned[body] += 0.9 ** (step + 1) * state[0, [0, 3]]
    np.testing.assert_allclose(found["returns"], earned.mean(0), atol=1e-5)
    assert found["return"] == pytest.approx(earned.mean(), abs=1e-5)
    low, high = found["return_interval"]
    assert low < found["return"] < high
    assert found.columns == {"return": found["return"]}
    # Another policy begins at the same states, another seed at others.
    Returns(room, reward, 0.9, starts=6, horizon=1)(
        SimpleNamespace(call=lambda *_: np.zeros((6, 2))), None
    )
    np.testing.assert_array_equal(room.begun[1], starts)
    Returns(room, reward, 0.9, starts=6, horizon=1, seed=1)(
        SimpleNamespace(call=lambda *_: np.zeros((6, 2))), None
    )
    assert (room.begun[2] != starts).any()


def test_who_rests_earns_what_there_is_where_it_rests():
    room = Watched()
    reward = Discs(room.maze.centre_of(np.arange(10)).tolist(), 0.5)
    found = Returns(room, reward, 0.5, starts=40, horizon=20)(
        SimpleNamespace(call=lambda method, states: np.zeros((len(states), 2))), None
    )
    expected = rewarded(reward, room.begun[0].astype(np.float32)).mean(0)
    np.testing.assert_allclose(found["returns"], expected * (1 - 0.5**20), rtol=1e-6)
    assert max(found["returns"]) > 0


# -------------------------------------------------------------------- maps

ROWS = ("#####", "#...#", "#.#.#", "#####")
PLACE = {"rows": list(ROWS), "cell": 2.0, "centre": [1.0, -3.0]}


def height(states, policy):
    """A value that tells places and policies apart."""
    return (policy + 1) * (states[:, 0] + 3 * states[:, 1] + states[:, 2])


class Heights:
    """An estimate that tells `height` and keeps what it was asked."""

    def __call__(self, model, states, policy, action, reward):
        assert model == "the model" and action is None
        self.states = states
        return Value(height(states, policy)[:, None], None)


def mapped(truth=None, side=2, policies=3):
    return ValueMaps(
        maze=PLACE,
        rest=[0.0, 0.0, 7.0],
        policies=policies,
        reward=Discs([[0.0, -2.0]], 1.0),
        estimate=Heights(),
        discount=0.5,
        side=side,
        truth=truth,
    )


def quarters():
    """Four places in each free cell, in this order; the map is at -4 .. 6, -7 .. 1."""
    middles = [(-1, -2), (1, -2), (3, -2), (-1, -4), (3, -4)]
    steps = (-0.5, 0.5)
    return [[x + a, y + b] for x, y in middles for a in steps for b in steps]


def from_places(short=0, moved=0.0):
    """Roll-outs of three policies; those that end in the disc have one reward of 1."""
    rows = Rows()
    for start, place in enumerate(quarters()[short:]):
        for policy in range(3):
            meets = start * policy % 2
            end = [0.0, -2.0, 7.0] if meets else [9.0, 9.0, 7.0]
            rows.append(
                {
                    "state": np.array([place[0] + moved, place[1], 7.0], np.float32),
                    "policy": policy,
                    "start": start,
                    "futures": np.array([[end]] * 2, np.float32),
                }
            )
    return rows


def test_a_map_has_the_value_of_each_policy_at_each_place():
    evaluation = mapped(from_places())
    found = evaluation("the model", None)
    told, true = (found.figure_data[name] for name in ("told", "true"))
    for policy in range(3):
        for number, (x, y) in enumerate(quarters()):
            assert told[policy, number] == (policy + 1) * (x + 3 * y + 7)
            assert true[policy, number] == 0.5 * (number * policy % 2)
    assert (evaluation.estimate.states[:, 2] == 7).all()
    flat = np.corrcoef(true.ravel(), told.ravel())[0, 1]
    assert found["correlation"] == pytest.approx(flat)
    best = np.corrcoef(true.max(0), told.max(0))[0, 1]
    assert found["correlation_of_best"] == pytest.approx(best)
    assert found["highest"] == told.max() and f"{told.max():.2f}" in found.summary
    assert f"{flat:.3f}" in found.summary


@pytest.mark.parametrize(("truth", "policies"), [(True, 3), (False, 3), (False, 1)])
def test_maps_show_each_value_where_it_is_and_walls_between(truth, policies):
    evaluation = mapped(from_places() if truth else None, policies=policies)
    found = evaluation("the model", None)
    if not truth:
        assert "correlation" not in found and "true" not in found.figure_data
    (figure,) = figures_of(evaluation, found).values()
    panels = [axes for axes in figure.axes if axes.images]
    count = policies + (policies > 1)
    assert len(panels) == count * (1 + truth)
    titles = [f"policy {number}" for number in range(policies)]
    titles += ["best of 3"] if policies > 1 else []
    assert [axes.get_title(loc="left") for axes in panels[:count]] == titles
    for column, axes in enumerate(panels):
        rows = found.figure_data["true" if column >= count else "told"]
        panel = column % count
        expected = rows[panel] if panel < policies else rows.max(0)
        (image,) = axes.images
        assert image.origin == "lower"  # the first row of pixels is at the bottom
        left, right, bottom, top = image.get_extent()
        pixels = image.get_array()
        high, wide = pixels.shape
        for (x, y), value in zip(quarters(), expected, strict=True):
            place = int((y - bottom) / (top - bottom) * high)
            assert pixels[place, int((x - left) / (right - left) * wide)] == value
        assert pixels.count() == len(quarters())  # the rest is wall
        circles = [p for p in axes.patches if isinstance(p, Circle)]
        assert {(p.center, p.radius) for p in circles} == {((0.0, -2.0), 1.0)}
        blocks = [p.get_bbox().extents for p in axes.patches if p not in circles]
        assert len(blocks) == 15 and [0, -5, 2, -3] in np.array(blocks).tolist()
        assert (*axes.get_xlim(), *axes.get_ylim()) == (-4, 6, -7, 1)
    assert {axes.images[0].norm.vmax for axes in panels} == {found["highest"]}
    lowest = {axes.images[0].norm.vmin for axes in panels}
    assert lowest == {found.figure_data["told"].min()}


def test_a_map_of_nothing_is_drawn_and_no_correlation_told():
    truth = from_places()
    for row in truth:
        row["futures"] = row["futures"] * 0 + 9
    evaluation = replace(mapped(truth), estimate=telling(np.zeros(60)))
    found = evaluation("the model", None)
    assert found["correlation"] is None and json.dumps(found, allow_nan=False)
    (figure,) = figures_of(evaluation, found).values()
    scale = figure.axes[0].images[0].norm
    assert (scale.vmin, scale.vmax) == (0, 1)


def test_maps_that_do_not_fit_are_refused():
    for truth, changes in [
        (from_places(short=1), {}),
        (from_places(moved=0.1), {}),
        (from_places(), {"side": 1}),
        (from_places(), {"policies": 2}),
    ]:
        with pytest.raises(InputError, match="set side and policies to the data"):
            mapped(truth, **changes)("the model", None)
    with pytest.raises(InputError, match="one reward, and there are 2"):
        replace(mapped(), reward=Column([0, 1]))
    with pytest.raises(OutOfRange, match="side"):
        mapped(side=0)


# ------------------------------------------------------------------ config


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A data directory with a small recording of three players."""
    folder = tmp_path_factory.mktemp("data")
    options = "--env point --episodes 32 --length 30 --policies 3"
    options += f" --starts 4 --rollouts 4 --horizon 20 --data_dir {folder}"
    prepare.main(options.split())
    return folder


def small(argument):
    config = load_config(f"{CONFIG}:data=point,steps=4,rewards=5,{argument}")
    with config.unlocked():
        config.batch_size = min(config.batch_size, 32)  # as many as are recorded
        for name, evaluation in config.evaluations.items():
            if name != "maps":
                evaluation.resamples = 20
            estimate = evaluation.get("estimate", {})
            if str(estimate.get("target", "")).endswith("FromFutures"):
                estimate.samples, estimate.rows = 4, 12
            if name != "occupancy":  # corners as well: some is met for certain
                evaluation.reward.radius = 3.0
    return config


@pytest.mark.parametrize("offset", [True, False], ids=["told", "untold"])
@pytest.mark.parametrize("method", ["ddpm", "velocity", "flow", "infonce", "td"])
def test_the_config_builds(recorded, monkeypatch, method, offset):
    """Traced with a batch of the data; the model is told the offset or is not."""
    monkeypatch.setenv("POLYVIEW_DATA", str(recorded))
    trainer = Trainer(small(f"method={method},offset={offset}"))
    shapes = trainer.trace()
    episodes = 32 if method == "infonce" else 16
    assert shapes["views"]["state"].shape == (episodes, 16, 4)
    text = str(trainer.abstract.params)
    assert text
    module = trainer.config.model
    assert module.get("offset_features", 16) == (16 if offset else 0) or method == "td"
    assert set(trainer.evaluations) == {"value", "control"} | (
        set() if method == "td" else {"occupancy", "maps"}
    )


@pytest.mark.parametrize(
    "argument", ["method=flow", "method=flow,actions=2", "method=td"]
)
def test_the_evaluations_of_the_config_measure_an_untrained_model(
    recorded, monkeypatch, argument
):
    """Also of a model that is told the first action, which rows of truth must tell."""
    monkeypatch.setenv("POLYVIEW_DATA", str(recorded))
    trainer = Trainer(small(argument))
    state, trainer.fixed = trainer.initial(trainer.seed)
    model = trainer.model(state, 0)
    for name, evaluation in trainer.evaluations.items():
        found = evaluation(model, trainer.mesh)
        json.dumps(found, allow_nan=False)
        assert re.search(r"\d", found.summary), name
        if hasattr(evaluation, "figures"):
            assert figures_of(evaluation, found)


def test_an_unknown_method_is_refused(recorded, monkeypatch):
    monkeypatch.setenv("POLYVIEW_DATA", str(recorded))
    with pytest.raises(InputError, match="did you mean 'ddpm'"):
        load_config(f"{CONFIG}:data=point,method=dppm")
    monkeypatch.setenv("POLYVIEW_DATA", str(recorded / "nowhere"))
    with pytest.raises(InputError, match=r"python -m dvf\.prepare --env point"):
        load_config(f"{CONFIG}:data=point")


def test_the_choice_by_half_of_the_roll_outs_is_measured_in_the_other():
    """Policy 0 is best in the first half of the roll-outs, policy 1 in the other."""
    rows = Rows()
    for start in range(3):
        for policy, gains in enumerate(([1.0, 0.0], [0.0, 1.0])):
            futures = np.array(gains, np.float32).reshape(2, 1, 1)
            row = {"state": np.zeros(1, np.float32), "policy": policy}
            rows.append({**row, "start": start, "futures": futures})
    rows[1]["futures"] = rows[1]["futures"] + 2  # at one start policy 1 is best in both
    evaluation = PolicyChoice(rows, Column([0]), Direct(), 0.5, resamples=5)
    queries = read(rows)
    found = evaluation.measured(queries, Value(np.zeros((6, 1)), None))
    # In the other half policy 1 has 3, 1, 1 and policy 0 nothing. It is chosen at the
    # first start alone: (3/2 - 1/2 - 1/2) / (3/2 + 1/2 + 1/2).
    assert found["by_half"] == pytest.approx(0.2)
    # Only the first start's choices differ on average, and its best is not chosen.
    assert found["best_found"] == pytest.approx(0.0)


def test_short_roll_outs_are_warned_of():
    rows = rolled(np.zeros((2, 3, 2)))
    assert shortness(read(rows), 0.3) is None
    assert "leave out 12 %" in shortness(read(rows), 0.5)


def test_a_policy_that_the_model_does_not_know_is_refused():
    estimate = FromFutures(0.5, policies=2)
    rows = rolled(np.ones((2, 1, 2)), policies=3)
    evaluation = ValueAccuracy(rows, Discs([[0.0, 0.0]]), estimate, 0.5)
    with pytest.raises(InputError, match=r"policies 0 .. 1, and is asked for 2"):
        evaluation(drawing([[0.0, 0.0]] * 2), None)
    with pytest.raises(InputError, match="nothing of a first action"):
        Direct()(None, np.zeros((1, 2)), None, np.zeros((1, 2)), None)
