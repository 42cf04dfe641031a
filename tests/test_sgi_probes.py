"""Probes read known variables, select on some episodes and test on others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score, r2_score

from polyview import devices
from polyview.errors import InputError
from polyview.evaluation.base import pixels
from polyview.evaluation.ridge import predictions
from polyview.nn.towers import Features
from sgi import probes, recording
from sgi.atari import Game
from sgi.probes import Variables
from sgi.ram import ADDRESSES, SEEN
from sgi.recording import Step

PONG = ADDRESSES["pong"]
LENGTHS = (60, 90, 40, 70, 50, 80, 45, 75, 60, 30)  # steps of each episode
PROBES = Variables("play", every=1, strengths=(1e-6, 1e-3), batch_size=64)


def steps(memory=None, game_seed=0):
    """Play with frames that show two bytes of Pong's memory as brightness."""
    rng = np.random.default_rng(game_seed)
    for length in LENGTHS:
        for time in range(length):
            ram = np.zeros(128, np.uint8)
            ram[[PONG["player_y"], PONG["enemy_y"], PONG["ball_x"]]] = rng.integers(
                10, 20, 3
            )
            frame = np.zeros((84, 84), np.uint8)
            frame[:42] = 10 * ram[PONG["player_y"]]
            frame[42:] = 10 * ram[PONG["enemy_y"]]
            if memory is not None:
                ram = memory(ram, rng)
            yield Step(frame, 0, 0.0, time == length - 1, time == 0, ram)


def write(folder, play, name="play", game="pong"):
    recording.write(
        folder / name,
        play,
        sum(LENGTHS),
        source="",
        licence="",
        provenance={"game": game, "actions": ["NOOP"]},
    )


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play")
    write(folder, steps())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        yield folder


@jax.jit
def represent(batch):
    """The brightness of both halves of the newest frame, as one-hot vectors."""
    frames = batch["views"]["frames"][:, -1].astype(jnp.float32)
    level = jnp.stack([frames[:, :42].mean((1, 2)), frames[:, 42:].mean((1, 2))], 1)
    h = jax.nn.one_hot((level / 10).astype(int), 25).reshape(len(frames), 1, -1)
    return {"frames": Features(z=h, h=h, local=None)}


@pytest.fixture(scope="module")
def result(data_dir):
    return PROBES(represent, devices.make_mesh())


@pytest.mark.parametrize("n, d", [(40, 7), (12, 30)])
def test_ridge_matches_least_squares_with_penalty_rows(n, d):
    rng = np.random.default_rng(0)
    x, y, at = (
        rng.normal(3, 2, (n, d)),
        rng.normal(5, 1, (n, 2)),
        rng.normal(size=(9, d)),
    )
    shift, mean = x.mean(0), y.mean(0)
    total = ((x - shift) ** 2).sum()
    strengths = (1e-4, 0.1)
    for strength, result in zip(
        strengths, predictions(x, y, at, strengths), strict=True
    ):
        rows = np.concatenate([x - shift, np.sqrt(strength * total) * np.eye(d)])
        values = np.concatenate([y - mean, np.zeros((d, 2))])
        weight = np.linalg.lstsq(rows, values, rcond=None)[0]
        np.testing.assert_allclose(result, (at - shift) @ weight + mean, rtol=1e-8)


def test_probes_read_only_variables_in_the_features(result):
    scores = result["variables"]
    for name in "player_y", "enemy_y":
        assert scores[name]["r2"] > 0.99, name
        assert scores[name]["accuracy"] == scores[name]["f1"] == 1, name
        assert scores[name]["values"] == 10
    # ball_x is drawn independently and is not on the screen.
    assert scores["ball_x"]["r2"] < 0.1
    assert scores["ball_x"]["accuracy"] < 0.3


def test_nearly_constant_variables_are_left_out_and_reported(result):
    assert result["left_out"].keys() == {"player_x", "enemy_x", "ball_y"}
    assert result["left_out"]["ball_y"] == "entropy 0.00 nats, below 0.6"


def test_entropy_matches_the_value_frequencies():
    values = np.repeat([3, 7, 200], [50, 25, 25])
    assert probes.entropy(values) == pytest.approx(1.5 * np.log(2))


def test_scores_match_scikit_learn():
    rng = np.random.default_rng(0)
    true, answers = rng.integers(0, 5, 200), rng.integers(0, 7, 200)
    scores = probes.r2(true[:, None], np.stack([answers, true])[..., None])
    np.testing.assert_allclose(scores[:, 0], [r2_score(true, answers), 1])
    each = f1_score(true, answers, average=None, labels=range(5), zero_division=0)
    assert probes.macro_f1(true, answers) == pytest.approx(each.mean())


def test_splits_are_whole_episodes_in_order(result):
    ends = np.cumsum(LENGTHS)
    counts = {part: result["protocol"][part] for part in ("fit", "validation", "test")}
    assert counts == {
        "fit": {"rows": ends[5], "episodes": 6},
        "validation": {"rows": ends[7] - ends[5], "episodes": 2},
        "test": {"rows": ends[9] - ends[7], "episodes": 2},
    }


def test_selection_ignores_the_test_episodes(data_dir, result):
    """Changing their memory changes only the test scores."""
    count = iter(range(sum(LENGTHS)))
    start = sum(LENGTHS[:-2])

    def scrambled(ram, rng):
        # rng.permutation would change the draws of later steps.
        return ram if next(count) < start else np.where(ram, 29 - ram, 0).astype("u1")

    write(data_dir, steps(scrambled), "scrambled")
    other = dataclasses.replace(PROBES, recording="scrambled")
    other = other(represent, devices.make_mesh())["variables"]
    for name, scores in result["variables"].items():
        for key in "validation_r2", "validation_accuracy", "chosen":
            assert scores[key] == other[name][key]
    assert other["player_y"]["r2"] < 0


def test_raw_pixels_are_the_stack_at_half_size(result):
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 84, 84), np.uint8)
    raw = PROBES.raw({"views": {"frames": frames}})["frames"].h
    assert raw.shape == (2, 1, 4 * 42 * 42)
    expected = frames[1, 3, 20:22, 30:32].mean() / 255
    np.testing.assert_allclose(
        raw[1, 0].reshape(4, 42, 42)[3, 10, 15], expected, rtol=1e-6
    )
    result_of_pixels = pixels(PROBES, devices.make_mesh())
    assert result_of_pixels["protocol"]["features"]["dimensions"] == 4 * 42 * 42
    assert result_of_pixels["variables"]["enemy_y"]["r2"] > 0.99


def test_a_result_has_a_summary_and_figures(result):
    scores = result["variables"]
    assert f"player_y {scores['player_y']['r2']:.2f}" in result.summary
    figures = Variables.figures(result, result.figure_data)
    assert figures.keys() == {"variables", "readings"}
    value, reading = result.figure_data["value"], result.figure_data["reading"]
    assert value.shape == (12, 3) and result.figure_data["frame"].shape == (12, 84, 84)
    # The caption beneath a frame belongs to that frame.
    np.testing.assert_array_equal(
        10 * value[:, 0], result.figure_data["frame"][:, 0, 0]
    )
    np.testing.assert_allclose(reading[:, :2], value[:, :2], atol=0.1)
    texts = [text.get_text() for text in figures["readings"].axes[3].texts]
    label = figures["readings"].axes[3].get_xlabel()
    assert f"player_y {value[3, 0]:.0f} ({reading[3, 0]:.0f})" in label, texts


def test_invalid_recordings_are_named(data_dir):
    write(data_dir, steps(), "surround", game="surround")
    write(data_dir, (s._replace(ram=None) for s in steps()), "blind")
    whole = (s._replace(terminal=False, first=t == 0) for t, s in enumerate(steps()))
    write(data_dir, whole, "whole")
    for name, message in {
        "surround": "no known variables of 'surround'",
        "blind": "no RAM of the console",
        "whole": "has 1 episodes: too few",
        "absent": "no recording 'absent'",
    }.items():
        with pytest.raises(InputError, match=message):
            dataclasses.replace(PROBES, recording=name)(represent, devices.make_mesh())


def centre(mask):
    """Row and column of the centre of the mask, or nan if it is empty."""
    where = np.argwhere(mask)
    return where.mean(0) if len(where) else np.full(2, np.nan)


def seen(game, frame):
    """Positions on the screen: {variable: position}, nan while not visible."""
    if game == "pong":
        court = np.where(np.arange(84)[:, None] > 14, frame, 87)[:76].astype(int)
        ball = centre(court > 175)
        sides = {"enemy_y": court[:, 7:12], "player_y": court[:, 72:77]}
        positions = {
            name: centre((side > 110) & (side < 160))[0] for name, side in sides.items()
        }
        return positions | {"ball_y": ball[0], "ball_x": ball[1]}
    if game == "breakout":
        bat, ball = centre(frame[75:77, 5:79] > 60), centre(frame[40:74, 5:79] > 60)
        return {"player_x": bat[1], "ball_y": ball[0], "ball_x": ball[1]}
    if game == "seaquest":
        lit = np.argwhere(frame[20:68] > 150)  # the submarine, and its missile
        y, x = np.median(lit, 0) if len(lit) > 3 else np.full(2, np.nan)
        return {"player_x": x, "player_y": y}
    ring = frame[14:70, 18:66]
    places = {"player": centre(ring > 190), "enemy": centre(ring < 40)}
    return {
        f"{who}_{axis}": p["yx".index(axis)]
        for who, p in places.items()
        for axis in "xy"
    }


def test_addresses_are_valid_and_of_existing_games():
    games = pytest.importorskip("ale_py.roms").get_all_rom_ids()
    assert set(SEEN) < set(ADDRESSES) < set(games)
    for places in ADDRESSES.values():
        assert len(set(places.values())) == len(places)
        assert all(0 <= address < 128 for address in places.values())


@pytest.mark.parametrize("name", [*SEEN, "seaquest"])
def test_an_address_tracks_its_screen_position(name):
    game, rng = Game(name, seed=0), np.random.default_rng(0)
    bytes_, places = [], []
    game.reset()
    for _ in range(900):
        outcome = game.step(int(rng.integers(len(game.actions))))
        if outcome.game_over:
            game.reset()
            continue
        bytes_.append(game.ram())
        places.append(seen(name, outcome.frame))
    for variable, address in ADDRESSES[name].items():
        if variable == "player_missile_x":  # a line of Seaquest, lost at this size
            continue
        byte = np.array([b[address] for b in bytes_], float)
        if variable not in places[0]:
            assert byte.std() == 0, variable
            continue
        place = np.array([p[variable] for p in places])
        visible = np.isfinite(place) & (byte > 0)
        assert visible.sum() > 100
        follows = abs(np.corrcoef(byte[visible], place[visible])[0, 1])
        assert follows > 0.97, (variable, follows)
