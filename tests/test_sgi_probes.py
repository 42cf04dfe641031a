"""Probes read what is there, choose on one set of episodes and test on another."""

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
LENGTHS = (60, 90, 40, 70, 50, 80, 45, 75, 60, 30)  # of the episodes
PROBES = Variables("play", every=1, strengths=(1e-6, 1e-3), batch_size=64)


def steps(memory=None, game_seed=0):
    """Play whose frames show two of Pong's bytes as brightness, and nothing else."""
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
    """The brightness of both halves of the newest frame, bent: squares and one-hots."""
    frames = batch["views"]["frames"][:, -1].astype(jnp.float32)
    level = jnp.stack([frames[:, :42].mean((1, 2)), frames[:, 42:].mean((1, 2))], 1)
    h = jax.nn.one_hot((level / 10).astype(int), 25).reshape(len(frames), 1, -1)
    return {"frames": Features(z=h, h=h, local=None)}


@pytest.fixture(scope="module")
def result(data_dir):
    return PROBES(represent, devices.make_mesh())


@pytest.mark.parametrize("n, d", [(40, 7), (12, 30)])
def test_ridge_is_least_squares_with_rows_for_the_penalty(n, d):
    rng = np.random.default_rng(0)
    x, y, at = (
        rng.normal(3, 2, (n, d)),
        rng.normal(5, 1, (n, 2)),
        rng.normal(size=(9, d)),
    )
    shift, mean = x.mean(0), y.mean(0)
    total = ((x - shift) ** 2).sum()
    strengths = (1e-4, 0.1)
    for strength, found in zip(
        strengths, predictions(x, y, at, strengths), strict=True
    ):
        rows = np.concatenate([x - shift, np.sqrt(strength * total) * np.eye(d)])
        values = np.concatenate([y - mean, np.zeros((d, 2))])
        weight = np.linalg.lstsq(rows, values, rcond=None)[0]
        np.testing.assert_allclose(found, (at - shift) @ weight + mean, rtol=1e-8)


def test_what_the_features_hold_is_read_and_nothing_else(result):
    found = result["variables"]
    for name in "player_y", "enemy_y":
        assert found[name]["r2"] > 0.99, name
        assert found[name]["accuracy"] == found[name]["f1"] == 1, name
        assert found[name]["values"] == 10
    # ball_x is drawn by itself, and not on the screen.
    assert found["ball_x"]["r2"] < 0.1
    assert found["ball_x"]["accuracy"] < 0.3


def test_what_hardly_changes_is_left_out_and_said(result):
    assert result["left_out"].keys() == {"player_x", "enemy_x", "ball_y"}
    assert result["left_out"]["ball_y"] == "entropy 0.00 nats, below 0.6"


def test_entropy_is_that_of_the_frequencies():
    values = np.repeat([3, 7, 200], [50, 25, 25])
    assert probes.entropy(values) == pytest.approx(1.5 * np.log(2))


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    true, answers = rng.integers(0, 5, 200), rng.integers(0, 7, 200)
    found = probes.r2(true[:, None], np.stack([answers, true])[..., None])
    np.testing.assert_allclose(found[:, 0], [r2_score(true, answers), 1])
    each = f1_score(true, answers, average=None, labels=range(5), zero_division=0)
    assert probes.macro_f1(true, answers) == pytest.approx(each.mean())


def test_parts_are_whole_episodes_in_the_order_of_play(result):
    ends = np.cumsum(LENGTHS)
    counts = {part: result["protocol"][part] for part in ("fit", "validation", "test")}
    assert counts == {
        "fit": {"rows": ends[5], "episodes": 6},
        "validation": {"rows": ends[7] - ends[5], "episodes": 2},
        "test": {"rows": ends[9] - ends[7], "episodes": 2},
    }


def test_the_test_episodes_choose_nothing(data_dir, result):
    """Their memory may say anything: only what is measured on them changes."""
    count = iter(range(sum(LENGTHS)))
    start = sum(LENGTHS[:-2])

    def scrambled(ram, rng):
        # rng.permutation would change the draws of the steps that follow.
        return ram if next(count) < start else np.where(ram, 29 - ram, 0).astype("u1")

    write(data_dir, steps(scrambled), "scrambled")
    other = dataclasses.replace(PROBES, recording="scrambled")
    other = other(represent, devices.make_mesh())["variables"]
    for name, said in result["variables"].items():
        for key in "validation_r2", "validation_accuracy", "chosen":
            assert said[key] == other[name][key]
    assert other["player_y"]["r2"] < 0


def test_raw_pixels_are_the_stack_at_half_its_size(result):
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 84, 84), np.uint8)
    raw = PROBES.raw({"views": {"frames": frames}})["frames"].h
    assert raw.shape == (2, 1, 4 * 42 * 42)
    expected = frames[1, 3, 20:22, 30:32].mean() / 255
    np.testing.assert_allclose(
        raw[1, 0].reshape(4, 42, 42)[3, 10, 15], expected, rtol=1e-6
    )
    found = pixels(PROBES, devices.make_mesh())
    assert found["protocol"]["features"]["dimensions"] == 4 * 42 * 42
    assert found["variables"]["enemy_y"]["r2"] > 0.99


def test_a_result_is_told_and_drawn(result):
    said = result["variables"]
    assert f"player_y {said['player_y']['r2']:.2f}" in result.summary
    figures = Variables.figures(result, result.figure_data)
    assert figures.keys() == {"variables", "readings"}
    value, reading = result.figure_data["value"], result.figure_data["reading"]
    assert value.shape == (12, 3) and result.figure_data["frame"].shape == (12, 84, 84)
    # What is beneath a frame is of that frame.
    np.testing.assert_array_equal(
        10 * value[:, 0], result.figure_data["frame"][:, 0, 0]
    )
    np.testing.assert_allclose(reading[:, :2], value[:, :2], atol=0.1)
    texts = [text.get_text() for text in figures["readings"].axes[3].texts]
    label = figures["readings"].axes[3].get_xlabel()
    assert f"player_y {value[3, 0]:.0f} ({reading[3, 0]:.0f})" in label, texts


def test_what_cannot_be_probed_is_named(data_dir):
    write(data_dir, steps(), "surround", game="surround")
    write(data_dir, (s._replace(ram=None) for s in steps()), "blind")
    whole = (s._replace(terminal=False, first=t == 0) for t, s in enumerate(steps()))
    write(data_dir, whole, "whole")
    for name, message in {
        "surround": "no variables of 'surround' known",
        "blind": "no memory of the console",
        "whole": "has 1 episodes: too few",
        "absent": "no recording 'absent'",
    }.items():
        with pytest.raises(InputError, match=message):
            dataclasses.replace(PROBES, recording=name)(represent, devices.make_mesh())


def centre(mask):
    """Row and column of the middle of what is marked, nan where nothing is."""
    where = np.argwhere(mask)
    return where.mean(0) if len(where) else np.full(2, np.nan)


def seen(game, frame):
    """Where things are on the screen: {variable: place}, nan while they are away."""
    if game == "pong":
        court = np.where(np.arange(84)[:, None] > 14, frame, 87)[:76].astype(int)
        ball = centre(court > 175)
        sides = {"enemy_y": court[:, 7:12], "player_y": court[:, 72:77]}
        found = {
            name: centre((side > 110) & (side < 160))[0] for name, side in sides.items()
        }
        return found | {"ball_y": ball[0], "ball_x": ball[1]}
    if game == "breakout":
        bat, ball = centre(frame[75:77, 5:79] > 60), centre(frame[40:74, 5:79] > 60)
        return {"player_x": bat[1], "ball_y": ball[0], "ball_x": ball[1]}
    ring = frame[14:70, 18:66]
    places = {"player": centre(ring > 190), "enemy": centre(ring < 40)}
    return {
        f"{who}_{axis}": p["yx".index(axis)]
        for who, p in places.items()
        for axis in "xy"
    }


def test_addresses_are_of_games_that_exist_and_of_their_memory():
    games = pytest.importorskip("ale_py.roms").get_all_rom_ids()
    assert set(SEEN) < set(ADDRESSES) < set(games)
    for places in ADDRESSES.values():
        assert len(set(places.values())) == len(places)
        assert all(0 <= address < 128 for address in places.values())


@pytest.mark.parametrize("name", SEEN)
def test_an_address_follows_what_is_seen(name):
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
        byte = np.array([b[address] for b in bytes_], float)
        if variable not in places[0]:
            assert byte.std() == 0, variable
            continue
        place = np.array([p[variable] for p in places])
        there = np.isfinite(place) & (byte > 0)
        assert there.sum() > 100
        follows = abs(np.corrcoef(byte[there], place[there])[0, 1])
        assert follows > 0.97, (variable, follows)
