"""Play is recorded exactly; the DQN Replay layout is read and written."""

import ast
import gzip
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ale_py")

from polyview.errors import InputError
from sgi import dqn_replay, prepare, recording
from sgi.__main__ import COMMANDS
from sgi.atari import Game
from sgi.dqn_replay import padding_rows
from sgi.playing import EpsilonGreedy, Uniform, play
from sgi.recording import Step


def run(*arguments):
    prepare.main([str(argument) for argument in arguments])


def same(one, other):
    for key, column in vars(one).items():
        np.testing.assert_array_equal(column, getattr(other, key), err_msg=key)


@pytest.fixture(scope="module")
def breakout(tmp_path_factory):
    """A data directory with 600 steps of Breakout: several games, the last cut."""
    folder = tmp_path_factory.mktemp("data")
    run("--game", "breakout", "--steps", 600, "--data_dir", folder)
    return folder


def test_a_recording_matches_play_on_the_emulator(breakout):
    """Compare with a loop over the emulator that shares only the random draws."""
    found = recording.read("breakout_random", data_dir=breakout)
    game = Game("breakout", sticky=0.25, seed=0)
    rng, first = np.random.default_rng(0), True
    for row in range(600):
        if first:
            frame = game.reset(int(rng.integers(1, 31)))
        np.testing.assert_array_equal(found.frames[row], frame)
        np.testing.assert_array_equal(found.ram[row], game.ram())
        action = int(rng.integers(4))
        step = game.step(action)
        got = found.action[row], found.reward[row], found.first[row]
        assert got == (action, step.reward, first)
        assert found.terminal[row] == step.game_over
        frame, first = step.frame, step.game_over
    assert found.terminal.sum() >= 2 and not found.terminal[-1]


def test_the_manifest_records_how_play_was_made(breakout):
    manifest = json.loads((breakout / "breakout_random" / "manifest.json").read_text())
    provenance = manifest["provenance"]
    assert provenance["game"] == "breakout" and provenance["policy"] == "random"
    assert provenance["actions"] == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    assert (provenance["sticky"], provenance["noops"], provenance["seed"]) == (
        0.25,
        30,
        0,
    )
    assert provenance["preprocessing"]["resize"] == "cv2.INTER_AREA"
    found = recording.read("breakout_random", data_dir=breakout)
    counts = provenance["counts"]
    assert (counts["steps"], counts["episodes"]) == (600, found.first.sum())
    assert counts["finished"] == found.terminal.sum()
    ends = np.flatnonzero(found.terminal)
    returns = [part.sum() for part in np.split(found.reward, ends + 1)[: len(ends)]]
    assert counts["mean_return"] == pytest.approx(np.mean(returns))
    assert manifest["splits"]["train"]["files"][0]["sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 10**12}, "steps per record is 1000000000000"),
        ({"chunk": 0}, "number of steps per record is 0"),
        ({"counts": {"steps": 600}}, "number of episodes is None"),
        ({"counts": {"steps": True}}, "number of steps is True"),
        (
            {"counts": {"steps": 600, "episodes": 3, "finished": "x"}},
            "number of finished episodes is 'x'",
        ),
        (
            {
                "counts": {
                    **{"steps": 600, "episodes": 3, "finished": 2},
                    "mean_return": "x",
                }
            },
            "its mean return is not a number",
        ),
        (
            {
                "counts": {
                    **{"steps": 600, "episodes": 3, "finished": 2},
                    "mean_return": float("inf"),
                }
            },
            "its mean return is not a number",
        ),
        ({"actions": [1, {}]}, "its actions are not names"),
        ({"game": 5}, "holds no recorded play"),
    ],
)
def test_a_recording_with_invalid_provenance_is_refused(
    breakout, tmp_path, changes, message
):
    manifest = json.loads((breakout / "breakout_random/manifest.json").read_text())
    manifest["provenance"] |= changes
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        recording.describe("x", tmp_path)


def test_agents_play_in_turn(tmp_path, monkeypatch):
    from sgi import load as loading

    loaded = []

    def load(run, seed=0, at=None):
        loaded.append((run, seed, at))
        return SimpleNamespace(
            config={"game": "pong"}, action=1 + len(loaded), step=at or 20
        )

    def greedy(model):
        return lambda stack, rng: model.action

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(loading, "greedy", greedy)
    flags = "--agent_seed", 3, "--epsilon", 0, "--data_dir", tmp_path
    run("--game", "pong", "--steps", 31, "--agent", "a@7", "b", *flags)
    assert loaded == [("a", 3, 7), ("b", 3, None)]
    found = recording.read("pong_agent", data_dir=tmp_path)
    assert found.action.tolist() == 15 * [2] + 16 * [3]
    assert np.flatnonzero(found.first).tolist() == [0, 15]
    about = recording.describe("pong_agent", tmp_path)
    assert (about["policy"], about["agents"]) == ("agent", ["a@7", "b@20"])
    with pytest.raises(InputError, match="does not play breakout"):
        run("--game", "breakout", "--steps", 31, "--agent", "a", *flags)
    with pytest.raises(InputError, match="RUN@STEP"):
        run("--game", "pong", "--name", "x", "--steps", 9, "--agent", "a@b", *flags)
    assert not (tmp_path / "breakout_agent").exists()


def test_repeating_the_command_leaves_the_recording_unchanged(
    breakout, tmp_path, capsys
):
    path = breakout / "breakout_random" / "train-00000.array_record"
    before = path.stat().st_mtime_ns
    arguments = ["--game", "breakout", "--steps", 600]
    run(*arguments, "--data_dir", breakout)
    assert "already exists: 600 steps" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    run(*arguments, "--data_dir", tmp_path)
    again = tmp_path / "breakout_random" / "train-00000.array_record"
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match="prepared with sticky 0.25, not 0.0"):
        run(*arguments, "--sticky", 0, "--data_dir", breakout)


def test_interrupted_recording_leaves_no_files(tmp_path, monkeypatch):
    def stopped(self, stack, rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(Uniform, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("--game", "pong", "--steps", 50, "--data_dir", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_policy_sees_the_last_four_frames_of_its_game_only():
    stacks = []

    def fire(stack, rng):
        stacks.append(stack.copy())
        return 1

    game = Game("breakout")
    done = list(play(game, fire, 400, np.random.default_rng(0), noops=0))
    start = 0
    for t, step in enumerate(done):
        start = t if step.first else start
        for back in range(4):
            expected = done[t - back].frame if t - back >= start else 0
            assert (stacks[t][3 - back] == expected).all()
    assert start > 0


def test_an_epsilon_mixture_is_uniform_with_probability_epsilon():
    """Chi-squared test of 3,000 draws; the greedy action is always 2."""
    policy = EpsilonGreedy(lambda stack, rng: 2, epsilon=0.4, actions=4)
    rng = np.random.default_rng(0)
    drawn = np.bincount([policy(None, rng) for _ in range(3000)], minlength=4)
    expected = np.array([300, 300, 2100, 300])
    assert ((drawn - expected) ** 2 / expected).sum() < 16.3  # 99.9% quantile, df = 3
    drawn = np.bincount([Uniform(4)(None, rng) for _ in range(3000)], minlength=4)
    assert ((drawn - 750) ** 2 / 750).sum() < 16.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--game", "pong", "--steps", "0"], "--steps is 0"),
        (["--game", "pong", "--sticky", "1"], "not a probability below 1"),
        (["--game", "pong", "--noops", "31"], "give 0 to 30"),
        (["--game", "pong", "--checkpoints", "a"], "such as 1,25,50"),
        (["--game", "pongg"], "the nearest: pong"),
        (["--game", "pong", "--epsilon", "0.5"], "--epsilon only applies with --agent"),
        (["--game", "pong", "--checkpoints", "1"], "only applies with --import"),
        (["--game", "pong", "--import", "x", "--seed", "1"], "without --import"),
        (["--game", "pong", "--import", "x", "--agent", "y"], "not allowed with"),
        (["--game", "pong", "--name", "../pong"], "is a path"),
        ([], "--game"),
    ],
)
def test_bad_sgi_prepare_arguments_are_an_error(arguments, message):
    with pytest.raises(InputError, match=message):
        run(*arguments)


ROOT = Path(__file__).parent.parent


def test_an_sgi_prepare_error_is_one_line_with_status_2():
    done = subprocess.run(
        [sys.executable, "-m", "sgi.prepare", "--game", "combat"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "two players" in done.stderr and "nearest" in done.stderr


def test_a_recording_is_named_by_the_game_however_it_is_spelt(tmp_path, capsys):
    for game in ("PongNoFrameskip-v4", "ALE/Pong-v5", "Pong", "pong"):
        run("--game", game, "--steps", 9, "--data_dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pong_random"]
    assert capsys.readouterr().out.count("already exists: 9 steps") == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_need_docstrings(name, monkeypatch, capsys):
    """python -OO strips them."""
    module = importlib.import_module(f"sgi.{name}")
    purpose = module.__doc__.split()[0]
    monkeypatch.setattr(module, "__doc__", None)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0 and f"\n{purpose} " in capsys.readouterr().out


def test_no_code_of_sgi_reads_a_docstring():
    for path in (ROOT / "sgi").rglob("*.py"):
        parts = ast.walk(ast.parse(path.read_text()))
        assert "__doc__" not in {getattr(part, "id", "") for part in parts}, path


def synthetic(lengths, ended=True):
    rng = np.random.default_rng(1)
    for length in lengths:
        for time in range(length):
            yield Step(
                np.repeat(rng.integers(0, 256, (84, 1), np.uint8), 84, axis=1),
                int(rng.integers(6)),
                float(rng.integers(-3, 4)),
                ended and time == length - 1,
                time == 0,
            )


def dopamine(folder, steps, number=1, name="$store$_{}_ckpt.{}.gz", **replaced):
    """Write the four files as Dopamine's buffer does, step by step."""
    zero = np.zeros((84, 84), np.uint8)
    rows = []
    for step in steps:
        if step.first:
            rows += [(zero, 0, 0.0, 0)] * 3
        rows.append((step.frame, step.action, step.reward, step.terminal))
    frames, action, reward, terminal = zip(*rows, strict=True)
    arrays = {
        "observation": np.stack(frames),
        "action": np.array(action, np.int32),
        "reward": np.array(reward, np.float32),
        "terminal": np.array(terminal, np.uint8),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (arrays | replaced).items():
        with gzip.open(folder / name.format(kind, number), "wb", 1) as file:
            np.save(file, array, allow_pickle=False)
    return arrays


def imported(folder, data_dir, *arguments):
    run("--game", "pong", "--import", folder, "--data_dir", data_dir, *arguments)
    return recording.read("pong_dqn", data_dir=data_dir)


def test_import_drops_padding(tmp_path):
    play = list(synthetic([40, 7, 1, 900, 300]))
    dopamine(tmp_path / "files", play)
    found = imported(tmp_path / "files", tmp_path / "data")
    columns = Step(*zip(*play, strict=True))
    np.testing.assert_array_equal(found.frames, np.stack(columns.frame))
    np.testing.assert_array_equal(found.action, columns.action)
    np.testing.assert_array_equal(found.reward, columns.reward)
    np.testing.assert_array_equal(found.terminal, columns.terminal)
    np.testing.assert_array_equal(found.first, columns.first)
    assert found.ram is None


def test_checkpoints_of_either_naming_are_read_in_the_given_order(tmp_path):
    early, late = list(synthetic([20, 30])), list(synthetic([11]))
    dopamine(tmp_path / "files", late, number=50, name="{}_{}.gz")
    dopamine(tmp_path / "files", early, number=1)
    found = imported(tmp_path / "files", tmp_path / "all")
    assert np.flatnonzero(found.first).tolist() == [0, 20, 50]
    found = imported(tmp_path / "files", tmp_path / "other", "--checkpoints", "50,1")
    assert np.flatnonzero(found.first).tolist() == [0, 11, 31]
    with pytest.raises(InputError, match="checkpoint 25 .*checkpoints found: 1, 50"):
        imported(tmp_path / "files", tmp_path / "none", "--checkpoints", "25")


@pytest.mark.parametrize("other", ["{}_{}.gz", "$store$_{}_{}.gz", "{}_ckpt.0{}.gz"])
def test_two_spellings_of_a_file_are_refused_by_both_names(tmp_path, other):
    files = tmp_path / "files"
    dopamine(files, synthetic([20]))
    dopamine(files, synthetic([20]), number=2)
    (files / other.format("reward", 1)).write_bytes(
        (files / "$store$_reward_ckpt.2.gz").read_bytes()
    )
    with pytest.raises(
        InputError, match="2 files of the reward of checkpoint 1: "
    ) as e:
        imported(files, tmp_path / "data")
    assert other.format("reward", 1) in str(e.value)
    assert "$store$_reward_ckpt.1.gz" in str(e.value)
    assert not (tmp_path / "data").exists()
    imported(files, tmp_path / "data", "--checkpoints", 2)  # whose files are unique


def test_a_file_is_imported_only_once(tmp_path):
    dopamine(tmp_path / "files", synthetic([20]))
    (tmp_path / "link").symlink_to(tmp_path / "files")
    flags = "--game", "pong", "--data_dir", tmp_path / "data", "--import"
    for again in (tmp_path / "files", tmp_path / "link"):
        with pytest.raises(InputError, match=r"ckpt.1.gz twice; name each file once"):
            run(*flags, tmp_path / "files", again)
    with pytest.raises(InputError, match="twice"):
        run(*flags, tmp_path / "files", "--checkpoints", "1,1")


def test_runs_in_several_folders_are_imported_in_turn(tmp_path):
    lengths = [20], [11], [7]
    for number, length in enumerate(lengths, 1):
        dopamine(tmp_path / f"{number}" / "replay_logs", synthetic(length))
    folders = [tmp_path / f"{number}" / "replay_logs" for number in (1, 3, 2)]
    flags = "--checkpoints", 1, "--data_dir", tmp_path / "data"
    run("--game", "pong", "--import", *folders, *flags)
    found = recording.read("pong_dqn", data_dir=tmp_path / "data")
    assert np.flatnonzero(found.first).tolist() == [0, 20, 27]
    files = recording.describe("pong_dqn", tmp_path / "data")["files"]
    assert files[4].startswith("3/replay_logs/") and len(files) == 12


def test_padding_is_distinguished_from_black_screens():
    def rows(text):
        return padding_rows(np.array([character == "0" for character in text]))

    #      one character a row: 0 is all zeros, P is expected to be padding
    for text, expected in {
        "000x0x00x000xx": "PPPx0x00xPPPxx",
        "00000x0000x": "PPP00xPPP0x",
        "0xx": "Pxx",
        "x00": "x00",
        "x000": "xPPP",
        "": "",
    }.items():
        assert rows(text).tolist() == [character == "P" for character in expected]


def test_importing_an_export_gives_the_same_recording(breakout, tmp_path):
    arguments = ["--game", "breakout", "--steps", 600, "--data_dir", breakout]
    run(*arguments, "--export", tmp_path / "files")
    with pytest.raises(InputError, match="export into a new folder"):
        run(*arguments, "--export", tmp_path / "files")
    run("--game", "breakout", "--import", tmp_path / "files", "--data_dir", tmp_path)
    ours = recording.read("breakout_random", data_dir=breakout)
    back = recording.read("breakout_dqn", data_dir=tmp_path)
    same(recording.Recording(**{**vars(ours), "ram": None}), back)

    # The files are those of Dopamine's own writer.
    steps = map(Step, ours.frames, ours.action, ours.reward, ours.terminal, ours.first)
    dopamine(tmp_path / "theirs", steps)
    for path in (tmp_path / "theirs").iterdir():
        exported = gzip.decompress((tmp_path / "files" / path.name).read_bytes())
        assert exported == gzip.decompress(path.read_bytes())


def test_without_dqn_files_the_error_says_where_to_get_them(tmp_path):
    with pytest.raises(InputError, match="atari-replay-datasets.* 403 .*record play"):
        imported(tmp_path, tmp_path / "data")
    dopamine(tmp_path, synthetic([9]))
    (tmp_path / "$store$_reward_ckpt.1.gz").unlink()
    with pytest.raises(InputError, match="checkpoint 1 .* has no file of: reward"):
        imported(tmp_path, tmp_path / "data")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b"GIF")])
@pytest.mark.parametrize("kind", ["observation", "reward"])
def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path, damage, kind):
    dopamine(tmp_path / "files", synthetic([200]))
    path = tmp_path / "files" / f"$store$_{kind}_ckpt.1.gz"
    damage(path)
    with pytest.raises(InputError, match=f"store._{kind}_ckpt.1.gz is damaged"):
        imported(tmp_path / "files", tmp_path / "data")
    assert not list((tmp_path / "data").glob("*"))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"action": np.zeros(23, np.int64)}, r"it holds int64\[23\], not <i4\[23\]"),
        ({"reward": np.zeros(22, np.float32)}, "has 22 rows, but .* has 23"),
        ({"observation": np.zeros((23, 80, 84), np.uint8)}, r"\[23, 80, 84\], not"),
        ({"observation": np.zeros((22, 84, 84), np.uint8)}, r"\[22, 84, 84\], not"),
        ({"terminal": np.array([b"x"])}, "terminal.* is damaged"),
    ],
)
def test_files_with_inconsistent_arrays_are_refused(tmp_path, replaced, message):
    dopamine(tmp_path / "files", synthetic([20]), **replaced)
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "files", tmp_path / "data")


def one(value, dtype, at=11):
    column = np.zeros(23, dtype)
    column[at] = value
    return column


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        *(("reward", one(r, np.float32)) for r in (np.nan, np.inf, -np.inf, 3e9)),
        *(("action", one(a, np.int32)) for a in (6, -1)),
        ("terminal", one(2, np.uint8)),
    ],
)
def test_an_impossible_value_is_refused_by_file_and_step(tmp_path, kind, column):
    """Also within padding; nothing is written, least of all Infinity or a 0."""
    dopamine(tmp_path / "files", synthetic([20]), **{kind: column})
    where = rf"{kind}_ckpt.1.gz holds {kind} {column[11]} at step 11 "
    with pytest.raises(InputError, match=where):
        imported(tmp_path / "files", tmp_path / "data")
    assert not list((tmp_path / "data").glob("*"))


def test_the_largest_possible_reward_is_imported(tmp_path):
    reward = one(-(2.0**30), np.float32)
    dopamine(tmp_path / "files", synthetic([20]), reward=reward)
    assert imported(tmp_path / "files", tmp_path / "data").reward[8] == -(2**30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": np.inf}, "step 300 has reward inf"),
        ({"reward": np.nan}, "step 300 has reward nan"),
        ({"reward": 2**31}, "step 300 has reward 2147483648"),
        ({"action": 6}, "step 300 has action 6, which a game of 6 actions"),
        ({"action": -1}, "step 300 has action -1"),
    ],
)
def test_a_step_that_no_game_gives_is_not_recorded(tmp_path, changes, words):
    steps = list(synthetic([400]))
    steps[300] = steps[300]._replace(**changes)
    about = {"source": "", "licence": "", "provenance": {"actions": ["NOOP"] * 6}}
    with pytest.raises(InputError, match=words):
        recording.write(tmp_path / "x", steps, 400, **about)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("column", [{"reward": np.nan}, {"action": 4}])
def test_a_damaged_recording_is_refused_when_read(breakout, monkeypatch, column):
    """As if a record on disk held such a value."""
    read = recording.ArrayRecord.__getitem__

    def damaged(source, index):
        record = dict(read(source, index))
        for name, value in column.items():
            record[name] = record[name].copy()
            record[name][-1] = value
        return record

    monkeypatch.setattr(recording.ArrayRecord, "__getitem__", damaged)
    with pytest.raises(
        InputError, match="damaged .*a reward or an action that no game"
    ):
        recording.read("breakout_random", data_dir=breakout)


def test_a_pickle_in_a_dqn_file_is_not_loaded(tmp_path):
    dopamine(tmp_path / "files", synthetic([20]))
    with gzip.open(tmp_path / "files" / "$store$_action_ckpt.1.gz", "wb") as file:
        np.save(file, np.array([{}] * 23), allow_pickle=True)
    with pytest.raises(InputError, match="it holds object"):
        imported(tmp_path / "files", tmp_path / "data")


def test_a_long_file_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(dqn_replay, "_BLOCK", 16)
    play = list(synthetic([40, 5, 60], ended=False))
    dopamine(tmp_path / "files", play)
    found = imported(tmp_path / "files", tmp_path / "data")
    columns = Step(*zip(*play, strict=True))
    np.testing.assert_array_equal(found.frames, np.stack(columns.frame))
    np.testing.assert_array_equal(found.first, columns.first)
    dqn_replay.export(found, tmp_path / "out")
    for path in (tmp_path / "files").iterdir():
        exported = gzip.decompress((tmp_path / "out" / path.name).read_bytes())
        assert exported == gzip.decompress(path.read_bytes())
