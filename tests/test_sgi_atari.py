"""Pixels, lives and state of the emulator follow the published preprocessing."""

import re
import sys
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("ale_py")

from polyview.errors import InputError
from sgi import atari, games
from sgi.atari import Game
from sgi.games import canonical_name


def played(game, steps, seed=0):
    """Random play across games: the frame, reward, flags and memory of each step."""
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(steps):
        step = game.step(int(rng.integers(len(game.actions))))
        seen.append((step.frame.tobytes(), *step[1:], game.ram().tobytes()))
        if step.game_over or step.truncated:
            game.reset(3)
    return seen


@pytest.mark.parametrize("name", ["breakout", "pong"])
def test_pixels_rewards_and_lives_match_gymnasium(name):
    gymnasium = pytest.importorskip("gymnasium")
    import ale_py

    gymnasium.register_envs(ale_py)
    theirs = gymnasium.wrappers.AtariPreprocessing(
        gymnasium.make(
            f"ALE/{name.capitalize()}-v5", frameskip=1, repeat_action_probability=0
        ),
        noop_max=0,
    )
    ours = Game(name)
    frame, info = theirs.reset(seed=0)
    np.testing.assert_array_equal(ours.reset(), frame)
    rng = np.random.default_rng(0)
    for _ in range(250):
        action = int(rng.integers(len(ours.actions)))
        lives = info["lives"]
        step = ours.step(action)
        frame, reward, over, truncated, info = theirs.step(action)
        assert step[1:] == (
            reward,
            info["lives"] < lives and not over,
            over,
            truncated,
        )
        if over:  # the frame after the end is not compared
            frame, info = theirs.reset()
            step = step._replace(frame=ours.reset())
        np.testing.assert_array_equal(step.frame, frame)


def test_a_frame_is_the_area_mean_of_the_maximum_of_two_screens():
    game = Game("breakout")
    game.reset()
    frame = game.step(1).frame
    weights = [np.zeros((84, size)) for size in (210, 160)]
    for weight in weights:  # the share of pixel j in the i-th of 84 cells
        size = weight.shape[1]
        for i in range(84):
            for j in range(size):
                start, stop = i * size / 84, (i + 1) * size / 84
                weight[i, j] = max(0, min(stop, j + 1) - max(start, j)) * 84 / size
    screen = np.maximum(*game._screens)
    assert (game._screens[0] != game._screens[1]).any()
    expected = weights[0] @ screen @ weights[1].T
    assert abs(frame - expected).max() <= 0.51


def test_a_lost_life_is_not_the_end_of_the_game():
    game = Game("breakout")
    game.reset()
    lost = over = 0
    while not over:
        step = game.step(game.actions.index("FIRE"))
        lost, over = lost + step.life_lost, step.game_over
        assert not (step.life_lost and step.game_over)
    assert lost == 4  # of five; the fifth ends the game


def test_a_game_without_lives_ends_only_when_it_is_over():
    game = Game("pong")
    game.reset()
    steps, score = [], 0
    while not (steps and steps[-1].game_over):
        steps.append(game.step(0))
        score += steps[-1].reward
    assert score == -21 and not any(step.life_lost for step in steps)
    assert not any(step.game_over for step in steps[:-1])


def test_a_game_is_truncated_at_the_frame_cap(monkeypatch):
    monkeypatch.setattr(atari, "FRAME_CAP", 42)
    game = Game("pong")
    game.reset()
    ends = [game.step(0)[3:] for _ in range(11)]
    assert ends == [(False, False)] * 10 + [(False, True)]


def test_only_sticky_play_depends_on_the_seed():
    def play(seed, sticky):
        game = Game("breakout", sticky=sticky, seed=seed)
        game.reset()
        return played(game, 60)

    assert play(1, 0.25) == play(1, 0.25) != play(2, 0.25)
    assert play(1, 0.0) == play(2, 0.0)


def test_a_restored_state_replays_exactly_with_sticky_actions():
    game = Game("breakout", sticky=0.25, seed=1)
    game.reset(7)
    played(game, 40)
    state, frame = game.state(), game.step(0).frame
    expected = played(game, 300)

    other = Game("breakout", sticky=0.25, seed=99)
    other.reset()
    played(other, 20)
    other.restore(state)
    np.testing.assert_array_equal(other.step(0).frame, frame)
    assert played(other, 300) == expected
    assert any(over for *_, over, _, _ in expected)


def test_a_state_that_is_damaged_or_of_another_game_is_refused():
    pong, breakout = Game("pong"), Game("breakout")
    pong.reset()
    breakout.reset()
    with pytest.raises(InputError, match="a state of pong .* does not fit breakout"):
        breakout.restore(pong.state())
    with pytest.raises(InputError, match="sticky 0.25"):
        pong.restore(Game("pong", sticky=0.25).state())
    for damaged in (b"", b"junk", pong.state()[:-9000]):
        with pytest.raises(InputError, match="not a state of pong"):
            pong.restore(damaged)
    fields = atari.unpack(pong.state())
    with pytest.raises(InputError, match="damaged"):
        pong.restore(atari.pack({**fields, "emulator": fields["emulator"][:999]}))


def test_an_unknown_game_suggests_the_nearest():
    with pytest.raises(InputError, match="no game 'KungFooMaster'.* kung_fu_master"):
        Game("KungFooMaster")
    with pytest.raises(InputError, match="spelt as in ms_pacman"):
        Game("chess at home")


def test_a_game_has_one_name_however_it_is_spelt():
    """Names of gymnasium and gym are those that ale-py registers for them."""
    from ale_py.registration import rom_id_to_name
    from ale_py.roms import get_all_rom_ids

    one_player = set(get_all_rom_ids()) - set(games.TWO_PLAYERS)
    assert set(games.NAMES) == one_player and len(games.NAMES) == len(one_player)
    for name in games.NAMES:
        title = rom_id_to_name(name)
        spelt = [name, title, f"ALE/{title}-v5", f"{title}NoFrameskip-v4"]
        spelt += [f"{title}-v0", f"{title}Deterministic-v4", f"{title}-ram-v0"]
        spelt += [f"{title}-ramNoFrameskip-v4", name.upper(), name.replace("_", " ")]
        assert {canonical_name(text) for text in spelt} == {name}
    assert Game("ALE/MsPacman-v5").name == "ms_pacman"


@pytest.mark.parametrize("name", games.TWO_PLAYERS)
def test_a_game_for_two_players_is_refused_before_it_ends_the_process(name):
    import ale_py

    assert ale_py.ALEInterface.isSupportedROM(ale_py.roms.get_rom_path(name)) is None
    for text in (name, f"ALE/{name.title().replace('_', '')}-v5"):
        with pytest.raises(InputError, match=f"{name} is a game for two.* nearest: "):
            Game(text)


def test_any_rom_that_the_emulator_cannot_load_is_refused(monkeypatch):
    """ale-py would end the process, and this one with it."""
    import ale_py

    combat = ale_py.roms.get_rom_path("combat")
    monkeypatch.setattr(ale_py.roms, "get_rom_path", lambda name: combat)
    with pytest.raises(InputError, match="cannot load the ROM of 'pong'"):
        Game("pong")


def test_every_single_player_rom_is_one_that_the_emulator_loads():
    for name in games.NAMES:
        atari.rom(name)


@pytest.mark.parametrize(
    ("folder", "message"),
    [("empty", "No such file"), ("other", "hash of pong.bin"), ("nowhere", "exist")],
)
def test_a_missing_or_wrong_rom_is_named(
    tmp_path, monkeypatch, capsys, folder, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pong.bin").write_bytes(b"a game")
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path / folder))
    with pytest.raises(InputError, match=f"no ROM of 'pong' in .*{message}") as caught:
        Game("pong")
    assert "unset ALE_ROMS_DIR" in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_without_ale_py_the_error_says_what_to_install(monkeypatch):
    atari._ale.cache_clear()
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(InputError, match="pip install ale-py==0.12.1"):
        Game("pong")
    monkeypatch.undo()
    Game("pong")


@pytest.mark.parametrize("version", ["0.8.1", None])
def test_another_ale_py_is_refused_by_its_version(monkeypatch, version):
    atari._ale.cache_clear()
    for name in ("ale_py", "ale_py.roms"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["ale_py"].roms = sys.modules["ale_py.roms"]
    sys.modules["ale_py"].__version__ = version
    needed = f"need ale-py 0.12.1, but {version} is installed: pip install"
    with pytest.raises(InputError, match=re.escape(needed)):
        Game("pong")
    monkeypatch.undo()
    Game("pong")
